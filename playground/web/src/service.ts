// The service behind the page, where there is one: what it is, and each real call. The page works without.

import { type Activation, PIXELS, SIZES, type Network } from "./network";
import { floats, network as networkOf } from "./numbers";

export interface Served {
  readonly address: string;
  /** How the gateway calls it: gRPC or HTTP. */
  readonly transport: string;
  readonly name: string;
  readonly version: string;
  readonly activation: Activation;
  readonly accuracy: string;
  readonly sha256: string;
  readonly provider: string;
  readonly platform: string;
  /** Runs of the model by the number of images in them, since the server started. */
  readonly batches: readonly { readonly images: number; readonly runs: number }[];
}

export interface Call {
  readonly digit: number;
  readonly activations: readonly number[];
  readonly layer1: readonly number[];
  readonly layer2: readonly number[];
  readonly version: string;
  readonly request_id: string;
  /** What the call took as the gateway saw it. */
  readonly milliseconds: number;
  /** The RPC, or the method and path of HTTP. */
  readonly method: string;
  readonly request: string;
  readonly request_bytes: number;
  readonly reply: string;
  readonly reply_bytes: number;
}

export interface Burst { readonly calls: number; readonly milliseconds: number; readonly batches: Served["batches"] }

/** A reply that is not one: `message` is the sentence of the service or of the gateway. */
export class ServiceError extends Error {
  constructor(readonly status: number, readonly code: string, message: string) {
    super(message);
  }

  get isPassing(): boolean {
    return this.status >= 500 || this.status === 429;
  }
}

async function fetched<T>(path: string, options: RequestInit = {}): Promise<T> {
  let reply: Response;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new ServiceError(503, "", "the page's own gateway does not answer");
  }
  const body: unknown = await reply.json().catch(() => ({ error: "no JSON", code: "" }));
  if (reply.ok) return body as T;
  const { error, code } = body as { error: string; code?: string };
  throw new ServiceError(reply.status, code ?? "", error);
}

const post = (body: BodyInit, type: string): RequestInit => ({ method: "POST", body, headers: { "Content-Type": type } });
const RAW = "application/octet-stream";

/** Whether this page comes from a gateway; a folder on a disk or on a plain host has none. */
export async function hasGateway(): Promise<boolean> {
  if (!location.protocol.startsWith("http")) return false;
  try {
    const reply = await fetch("gateway");
    return reply.ok && reply.headers.get("content-type")?.startsWith("application/json") === true;
  } catch {
    return false;
  }
}

export const describe = (): Promise<Served[]> => fetched("service");
export const predict = (pixels: Uint8Array): Promise<Call[]> => fetched("predict", post(pixels.slice().buffer, RAW));
export const burst = (pixels: Uint8Array): Promise<Burst> => fetched("burst", post(pixels.slice().buffer, RAW));

/** A photograph or a drawing of any kind in MNIST's form, by the code of the client; `nothing` says why there is none. */
export const toPixels = (picture: Blob): Promise<{ pixels?: number[]; nothing?: string }> => fetched("pixels", post(picture, picture.type));

/** The weights of a network that serves, of the one at that place. */
export async function download(place: number, { activation, accuracy }: Served): Promise<Network> {
  const { parameters } = await fetched<{ parameters: string }>(`network/${place}`), values = floats(parameters);
  const lengths = [1, 2, 3].flatMap((layer) => [SIZES[layer - 1] * SIZES[layer], SIZES[layer]]);
  if (values.length !== lengths.reduce((a, b) => a + b) || lengths[0] !== 16 * PIXELS) throw new ServiceError(502, "", "the network has another shape");
  let at = 0;
  return networkOf(activation, Number(accuracy) || null, lengths.map((length) => values.subarray(at, (at += length))));
}
