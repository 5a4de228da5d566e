// Sends the first of the sample digits, a 0, and prints the server's answer.
import { readFileSync } from "node:fs";
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { digits } = loadPackageDefinition(loadSync("../../proto/digits/v1/digits.proto", { keepCase: true }));

const samples = readFileSync("../../samples/digits-100-images-idx3-ubyte");
const image = samples.subarray(16, 800); // 16 bytes of header, then 28x28 bytes an image: 0 is background, 255 is ink

const address = process.env.DIGITS_ADDRESS ?? "localhost:50051";
const client = new digits.v1.DigitService(address, credentials.createInsecure());

client.Predict({ pixels: image }, { deadline: Date.now() + 5000 }, (error, reply) => {
  client.close();
  if (error) throw error;
  const [digit] = reply.digits;
  console.log(`digit ${digit}, activation ${reply.activations[digit].toFixed(2)}`);
});
