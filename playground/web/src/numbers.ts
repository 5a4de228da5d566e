// numbers.js, which scripts/page_numbers.py writes: both networks, some digits, a recorded training.

import { type Activation, type Network, PIXELS, SIZES, type Values } from "./network";

export interface PackedNetwork { sha256: string; step: number; first: string; rest: string; accuracy: number }
export interface PackedSample { label: number; pixels: string }
export interface PackedRecording {
  activation: Activation;
  accuracy: number[];
  checkpoints: { epoch: number; largest: number; weights: string }[];
}

export interface Numbers {
  networks: Record<Activation, PackedNetwork>;
  samples: { clear: PackedSample[]; hard: PackedSample[] };
  recording: PackedRecording;
}

export interface Sample { readonly label: number; readonly pixels: Uint8Array }

const LEVELS = 5, EXPONENT = 0.75; // as in export/recording.py

export function bytes(base64: string): Uint8Array<ArrayBuffer> {
  const text = atob(base64), found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) found[i] = text.charCodeAt(i);
  return found;
}

export function floats(base64: string): Float32Array {
  return new Float32Array(bytes(base64).buffer); // little-endian, as every machine with a browser is
}

/** The first layer is 24-bit integers, sign in the lowest bit, in three planes of bytes; the rest is float32. */
export function unpack(activation: Activation, { step, first, rest, accuracy }: PackedNetwork): Network {
  const planes = bytes(first), n = SIZES[1] * PIXELS, W1 = new Float64Array(n);
  for (let i = 0; i < n; i += 1) {
    const folded = planes[i] + 256 * planes[n + i] + 65536 * planes[2 * n + i];
    W1[i] = step * (folded % 2 ? -(folded + 1) / 2 : folded / 2);
  }
  return network(activation, accuracy, [W1, ...split(floats(rest), [16, 256, 16, 160, 10])]);
}

/** From the six arrays, W1 b1 W2 b2 W3 b3. */
export function network(activation: Activation, accuracy: number | null, arrays: ArrayLike<number>[]): Network {
  const [W1, b1, W2, b2, W3, b3] = arrays.map((values) => Float64Array.from(values)), none = new Float64Array(0);
  return { activation, accuracy, weights: [none, W1, W2, W3], biases: [none, b1, b2, b3] };
}

function split(values: Float32Array, lengths: number[]): Float32Array[] {
  let at = 0;
  return lengths.map((length) => values.subarray(at, (at += length)));
}

export interface Recording {
  readonly accuracy: readonly number[];
  readonly checkpoints: readonly { readonly epoch: number; readonly weights: Values }[];
}

/** Each letter is a weight: `A` minus the largest, `F` 0, `K` the largest, and a power between. */
export function unpackRecording({ accuracy, checkpoints }: PackedRecording): Recording {
  return {
    accuracy,
    checkpoints: checkpoints.map(({ epoch, largest, weights }) => ({
      epoch,
      weights: Float64Array.from(weights, (letter) => {
        const level = (letter.charCodeAt(0) - 65 - LEVELS) / LEVELS;
        return Math.sign(level) * largest * Math.abs(level) ** (1 / EXPONENT);
      }),
    })),
  };
}

/** First-layer weights at any epoch, fractions too: between two checkpoints the straight line. */
export function weightsAt({ checkpoints }: Recording, epoch: number): Values {
  const after = checkpoints.findIndex((one) => one.epoch >= epoch);
  if (after <= 0) return checkpoints[Math.max(after, after < 0 ? checkpoints.length - 1 : 0)].weights;
  const [from, to] = [checkpoints[after - 1], checkpoints[after]];
  const share = (epoch - from.epoch) / (to.epoch - from.epoch);
  return from.weights.map((weight, i) => weight + share * (to.weights[i] - weight));
}
