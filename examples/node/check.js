// Checks the behaviours that clients rely on, with two servers, and prints a line for each behaviour. One server is in
// plain text without tokens, the other has TLS and tokens.
//
//   node check.js ADDRESS SECURE_ADDRESS CA_FILE TOKEN
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { credentials, loadPackageDefinition, Metadata, status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const IMAGE_SIZE = 28 * 28;
const TIMEOUT = 30_000; // milliseconds
const GZIP = { "grpc.default_compression_algorithm": 2 };

if (process.argv.length !== 6) {
  console.error("usage: node check.js ADDRESS SECURE_ADDRESS CA_FILE TOKEN");
  process.exit(2);
}
const [address, secureAddress, caFile, token] = process.argv.slice(2);

const load = (path) => loadPackageDefinition(loadSync(path, { keepCase: true, defaults: true, enums: String }));
const packaged = createRequire(import.meta.url).resolve; // these packages contain the .proto of their services
const reflectionProto = (version) =>
  packaged("@grpc/reflection").replace(/build.*/, `build/proto/grpc/reflection/${version}/reflection.proto`);
const healthProto = packaged("grpc-health-check").replace(/build.*/, "proto/health/v1/health.proto");

const { DigitService } = load("../../proto/digits/v1/digits.proto").digits.v1;
const { Health } = load(healthProto).grpc.health.v1;

const insecure = credentials.createInsecure();
const plain = new DigitService(address, insecure);
const compressed = new DigitService(address, insecure, GZIP);
const secure = new DigitService(secureAddress, credentials.createSsl(readFileSync(caFile)));

// Returns the first sample of a digit; there are 10 of each, from 0 to 9.
const samples = readFileSync("../../samples/digits-100-images-idx3-ubyte").subarray(16);
const image = (digit) => samples.subarray(digit * 10 * IMAGE_SIZE, (digit * 10 + 1) * IMAGE_SIZE);

const deadline = (milliseconds = TIMEOUT) => ({ deadline: Date.now() + milliseconds });

/** Call a method of one request and one reply; the reply, and the status with its trailing metadata. */
function call(client, method, request, metadata = new Metadata()) {
  return new Promise((resolve, reject) => {
    let reply;
    const call = client[method](request, metadata, deadline(), (error, message) => {
      if (error) reject(error);
      else reply = message;
    });
    call.on("status", (status) => resolve({ reply, status }));
  });
}

/** The messages of a stream until it ends; rejects where it ends with an error. */
async function messages(stream) {
  const found = [];
  stream.on("data", (message) => found.push(message));
  await once(stream, "end");
  return found;
}

/** Expect a call to end with a status. */
async function ends(promise, code) {
  const error = await promise.then(
    () => assert.fail(`got OK; want ${status[code]}`),
    (error) => error,
  );
  assert.equal(status[error.code], status[code], error.message);
}

async function listServices(version) {
  const { ServerReflection } = load(reflectionProto(version)).grpc.reflection[version];
  const client = new ServerReflection(address, insecure);
  const stream = client.ServerReflectionInfo(deadline());
  stream.end({ list_services: "" });
  const [reply] = await messages(stream);
  client.close();
  const names = reply.list_services_response.service.map(({ name }) => name);
  assert.ok(names.includes("digits.v1.DigitService"), `got services ${names}`);
}

async function predictWithToken(token) {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return call(secure, "Predict", { pixels: image(0) }, metadata);
}

const behaviours = {
  async unary() {
    const { reply } = await call(plain, "Predict", { pixels: Buffer.concat([image(0), image(1), image(2)]) });
    assert.deepEqual(reply.digits, [0, 1, 2]);
    assert.equal(reply.activations.length, 30);
  },

  // Three messages, and a reply to each, in order.
  async stream() {
    const stream = plain.PredictStream(deadline());
    for (const digit of [0, 1, 2]) stream.write({ pixels: image(digit) });
    stream.end();
    const replies = await messages(stream);
    assert.deepEqual(
      replies.map((reply) => reply.digits),
      [[0], [1], [2]],
    );
  },

  // A stream that stays idle until its deadline ends it.
  async deadline() {
    await ends(messages(plain.PredictStream(deadline(200))), status.DEADLINE_EXCEEDED);
    await behaviours.unary();
  },

  // A stream that is cancelled after its first reply; the connection stays usable.
  async cancel() {
    const stream = plain.PredictStream(deadline());
    stream.write({ pixels: image(0) });
    await once(stream, "data");
    const ended = messages(stream);
    stream.cancel();
    await ends(ended, status.CANCELLED);
    await behaviours.unary();
  },

  async gzip() {
    const { reply } = await call(compressed, "Predict", { pixels: image(2) });
    assert.deepEqual(reply.digits, [2]);
  },

  // A request id, which comes back in the trailing metadata.
  async metadata() {
    const metadata = new Metadata();
    metadata.set("x-request-id", "node-1");
    const { status } = await call(plain, "Predict", { pixels: image(0) }, metadata);
    assert.deepEqual(status.metadata.get("x-request-id"), ["node-1"]);
  },

  async "too large"() {
    await ends(call(plain, "Predict", { pixels: Buffer.alloc(5000 * IMAGE_SIZE) }), status.RESOURCE_EXHAUSTED);
  },

  async health() {
    const health = new Health(address, insecure);
    for (const service of ["", "digits.v1.DigitService"]) {
      const { reply } = await call(health, "Check", { service });
      assert.equal(reply.status, "SERVING");
    }
    health.close();
  },

  "reflection v1": () => listServices("v1"),

  "reflection v1alpha": () => listServices("v1alpha"),

  tls: () => predictWithToken(token),

  async "wrong token"() {
    await ends(predictWithToken("wrong"), status.UNAUTHENTICATED);
  },
};

for (const [name, check] of Object.entries(behaviours)) {
  try {
    await check();
    console.log(`${name}: ok`);
  } catch (error) {
    process.exitCode = 1;
    console.log(`${name}: FAILED: ${error.message.split("\n")[0]}`);
  }
}
for (const client of [plain, compressed, secure]) client.close();
