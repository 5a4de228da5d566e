import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { contributions, gradient, incoming, largest, type Network, PIXELS, run, sigmoid, SIZES, toInk } from "../src/network";
import { bytes, type Numbers, unpack, unpackRecording, weightsAt } from "../src/numbers";

const text = readFileSync(new URL("../../static/numbers.js", import.meta.url), "utf8");
const numbers = JSON.parse(text.slice(text.indexOf("{"), text.lastIndexOf("}") + 1)) as Numbers;
const networks = { sigmoid: unpack("sigmoid", numbers.networks.sigmoid), relu: unpack("relu", numbers.networks.relu) };
const ink = toInk(bytes(numbers.samples.clear[3].pixels));

/** The layers as the formulas have them, one number at a time. */
function plainly({ weights, biases, activation }: Network): number[][] {
  const layers = [[...ink]];
  for (const layer of [1, 2, 3]) {
    layers.push([...biases[layer]].map((bias, i) => {
      const z = layers[layer - 1].reduce((sum, a, j) => sum + a * weights[layer][i * SIZES[layer - 1] + j], bias);
      return activation === "relu" && layer < 3 ? Math.max(0, z) : 1 / (1 + Math.exp(-z));
    }));
  }
  return layers;
}

describe.each(["sigmoid", "relu"] as const)("the %s network", (name) => {
  const network = networks[name], answer = run(network, ink);

  test("has 13,002 weights and biases", () => {
    const count = [...network.weights, ...network.biases].reduce((sum, values) => sum + values.length, 0);
    expect(count).toBe(13_002);
  });

  test("computes what the formulas say", () => {
    plainly(network).forEach((layer, l) => layer.forEach((value, i) => expect(answer.layers[l][i]).toBeCloseTo(value, 12)));
  });

  test("reads each clear sample as what it is", () => {
    for (const { label, pixels } of numbers.samples.clear) expect(run(networks.sigmoid, toInk(bytes(pixels))).digit).toBe(label);
  });

  test.each([1, 2, 3])("contributions and bias add up to the sum in layer %i", (layer) => {
    for (let index = 0; index < SIZES[layer]; index += 1) {
      const sum = contributions(network, answer, { layer, index }).reduce((a, b) => a + b, network.biases[layer][index]);
      expect(sum).toBeCloseTo(answer.sums[layer][index], 10);
    }
  });

  test.each([1, 2, 3])("the gradient in layer %i is the slope by a little more ink", (layer) => {
    const neuron = { layer, index: 4 }, slopes = gradient(network, answer, neuron), step = 1e-6;
    for (const pixel of [350, 406, 410]) {
      const more = Float64Array.from(ink);
      more[pixel] += step;
      const measured = (run(network, more).layers[layer][4] - answer.layers[layer][4]) / step;
      expect(slopes[pixel]).toBeCloseTo(measured, 4);
    }
  });

  test("a neuron that is off holds 0 and contributes nothing", () => {
    const without = run(network, ink, new Set(["1:9"]));
    expect(without.layers[1][9]).toBe(0);
    expect(contributions(network, without, { layer: 2, index: 0 })[9]).toBeCloseTo(0, 15);
  });
});

test("the lowest digit wins a tie", () => {
  expect(largest([0.2, 0.7, 0.7])).toBe(1);
});

test("the sigmoid of any sum lies between 0 and 1", () => {
  for (const z of [-1000, -5, 0, 5, 1000]) expect(sigmoid(z)).toBeGreaterThanOrEqual(0);
  for (const z of [-1000, -5, 0, 5, 1000]) expect(sigmoid(z)).toBeLessThanOrEqual(1);
  expect(sigmoid(0)).toBe(0.5);
});

test("incoming weights are the row of the neuron", () => {
  const own = incoming(networks.sigmoid, { layer: 1, index: 3 });
  expect(own).toHaveLength(PIXELS);
  expect(own[5]).toBe(networks.sigmoid.weights[1][3 * PIXELS + 5]);
});

describe("the recorded training", () => {
  const recording = unpackRecording(numbers.recording), { checkpoints, accuracy } = recording;

  test("begins before the first epoch and ends with the last", () => {
    expect(checkpoints[0].epoch).toBe(0);
    expect(checkpoints.at(-1)!.epoch).toBe(accuracy.length - 1);
    for (const { weights } of checkpoints) expect(weights).toHaveLength(16 * PIXELS);
  });

  test("learns", () => {
    expect(accuracy[0]).toBeLessThan(0.3);
    expect(accuracy.at(-1)!).toBeGreaterThan(0.95);
  });

  test("has between two checkpoints what lies between them", () => {
    const [from, to] = checkpoints.slice(-2), middle = weightsAt(recording, (from.epoch + to.epoch) / 2);
    expect(middle[400]).toBeCloseTo((from.weights[400] + to.weights[400]) / 2, 12);
    expect(weightsAt(recording, 0)).toBe(checkpoints[0].weights);
    expect(weightsAt(recording, accuracy.length - 1)[7]).toBeCloseTo(to.weights[7], 12);
  });
});
