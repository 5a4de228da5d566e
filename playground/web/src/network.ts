// The network 784-16-16-10 and its forward pass, the same that the service runs: a' = f(W a + b), layer after layer.

export type Activation = "sigmoid" | "relu";
export type Values = Float64Array;

export const SIDE = 28;
export const PIXELS = SIDE * SIDE;
export const SIZES = [PIXELS, 16, 16, 10] as const;

/** Weights row by row, one row a neuron, and biases, of layers 1, 2 and 3; index 0 is empty, so that `weights[1]` is layer 1. */
export interface Network {
  readonly activation: Activation;
  readonly accuracy: number | null;
  readonly weights: readonly Values[];
  readonly biases: readonly Values[];
}

/** Everything the network computes on one picture. `layers[0]` is the ink, 0 to 1; `sums[l]` is z of layer l. */
export interface Answer {
  readonly layers: readonly Values[];
  readonly sums: readonly Values[];
  readonly digit: number;
}

/** A neuron: layer 1 to 3, and its place in the layer. */
export interface Neuron { readonly layer: number; readonly index: number }

export const sigmoid = (z: number): number => 1 / (1 + Math.exp(-z));
export const relu = (z: number): number => Math.max(0, z);

/** What a layer applies to its sums: the outputs are sigmoids in both variants. */
export function activate(network: Network, layer: number, z: number): number {
  return network.activation === "relu" && layer < 3 ? relu(z) : sigmoid(z);
}

/** Run the network on ink, 784 values of 0 (background) to 1; `off` neurons (`layer:index`) have activation 0. */
export function run(network: Network, ink: Values, off: ReadonlySet<string> = new Set()): Answer {
  const layers = [ink], sums: Values[] = [new Float64Array(0)];
  for (let layer = 1; layer <= 3; layer += 1) {
    const below = layers[layer - 1], weights = network.weights[layer], z = Float64Array.from(network.biases[layer]);
    for (let i = 0; i < z.length; i += 1) {
      const row = i * below.length;
      for (let j = 0; j < below.length; j += 1) z[i] += weights[row + j] * below[j];
    }
    sums.push(z);
    layers.push(z.map((value, i) => (off.has(key({ layer, index: i })) ? 0 : activate(network, layer, value))));
  }
  return { layers, sums, digit: largest(layers[3]) };
}

export const key = ({ layer, index }: Neuron): string => `${layer}:${index}`;

/** The place of the largest value; the first on a tie. */
export function largest(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i += 1) if (values[i] > values[best]) best = i;
  return best;
}

const rows = new WeakMap<Values, Values[]>();
const parts = new WeakMap<Answer, Map<string, Values>>();

/** The weights that lead into a neuron, one for each value of the layer below: always the same array of the same network. */
export function incoming(network: Network, { layer, index }: Neuron): Values {
  const weights = network.weights[layer], width = SIZES[layer - 1], known = rows.get(weights) ?? [];
  rows.set(weights, known);
  return (known[index] ??= weights.subarray(index * width, (index + 1) * width));
}

/** Weight times activation, for each value below a neuron; with its bias they add up to its sum. The same array again. */
export function contributions(network: Network, answer: Answer, neuron: Neuron): Values {
  const known = parts.get(answer) ?? new Map<string, Values>(), name = key(neuron), below = answer.layers[neuron.layer - 1];
  parts.set(answer, known);
  const found = known.get(name) ?? incoming(network, neuron).map((weight, j) => weight * below[j]);
  known.set(name, found);
  return found;
}

/** The slope of a neuron's activation by the ink of each pixel, through all layers between, (784). */
export function gradient(network: Network, answer: Answer, { layer, index }: Neuron): Values {
  let slope: Values = incoming(network, { layer, index }).map((w) => w * slopeAt(network, answer, layer, index));
  for (let lower = layer - 1; lower > 0; lower -= 1) {
    const next = new Float64Array(SIZES[lower - 1]);
    for (let i = 0; i < slope.length; i += 1) {
      const own = slope[i] * slopeAt(network, answer, lower, i), row = i * next.length;
      for (let j = 0; j < next.length; j += 1) next[j] += own * network.weights[lower][row + j];
    }
    slope = next;
  }
  return slope;
}

function slopeAt(network: Network, answer: Answer, layer: number, i: number): number {
  const a = answer.layers[layer][i];
  return network.activation === "relu" && layer < 3 ? Number(a > 0) : a * (1 - a);
}

export const toInk = (pixels: ArrayLike<number>): Values => Float64Array.from(pixels, (byte) => byte / 255);
