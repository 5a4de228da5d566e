// The words of each chapter, with the numbers of the picture that is shown. HTML of our own: nothing in it is typed by anybody.

import { contributions, incoming, largest, type Values } from "./network";
import { fixed, parse, signed } from "./painter";
import { bias, neuron, sigmoidScene, sum, weights } from "./scenes/neuron";
import { centring, pixels } from "./scenes/picture";
import { flow } from "./scenes/flow";
import { EDGE_R2, gallery, hope, HURTS, reluScene } from "./scenes/insight";
import { accuracyAt, learning } from "./scenes/learning";
import { layerOne, layerTwo, outputs } from "./scenes/layers";
import { served } from "./scenes/served";
import type { Slug } from "./tour";
import type { Scene, View } from "./view";

export const SCENES: Record<Slug, Scene> = {
  draw: flow, pixels, centring, neuron, weights, sum, bias, sigmoid: sigmoidScene, "layer-1": layerOne, "layer-2": layerTwo,
  outputs, hope, gallery, relu: reluScene, learning, change: flow, service: served,
};

const COLOURS: Record<string, string> = { a: "activation", w: "weight", W: "weight", b: "bias" };

/** The markup of `Painter.formula` as HTML; its colours are classes, so that they suit light and dark. */
export function math(markup: string): string {
  return parse(markup).map(({ text, isLetter, raised, kind }) => {
    if (isLetter) return `<i class="${COLOURS[text[0]] ?? ""}">${text}</i>`;
    if (kind) return `<span class="${kind}">${text}</span>`;
    return raised < 0 ? `<sub>${text}</sub>` : raised > 0 ? `<sup>${text}</sup>` : text.replace(/</g, "&lt;");
  }).join("");
}

const formula = (...lines: string[]): string => `<p class="formula">${lines.map(math).join("<br>")}</p>`;
const activation = (value: number, digits = 2): string => `<b class="activation">${fixed(value, digits)}</b>`;
const biasOf = (value: number): string => `<b class="bias">${fixed(value)}</b>`;
const p = (...sentences: string[]): string => `<p>${sentences.join(" ")}</p>`;

/** Context that the words need beside the view. */
export interface Context { readonly hasService: boolean; readonly transport: string; readonly facts: string }

export function words(slug: Slug, view: View, context: Context): string {
  return WORDS[slug](view, context);
}

const WORDS: Record<Slug, (view: View, context: Context) => string> = {
  draw: () => p("This is the network of <cite>But what is a neural network?</cite>: 784 pixels, two layers of 16 neurons, ten outputs.",
    "Draw a digit and watch it flow through 13,002 weights and biases.") +
    p("Point at a neuron to see what it adds up, or take the tour."),

  pixels: ({ answer }) => {
    const ink = answer.layers[0], inked = ink.filter((value) => value > 0).length;
    return p("The picture has 28 rows of 28 pixels. Each pixel is one number: 0 for background, 1 for ink.") +
      p(`The network gets the 784 numbers as one long column, ${math("*a*_0_")} to ${math("*a*_783_")}. It does not know which pixels are neighbours.`) +
      p(`In this picture <b>${inked}</b> of the 784 numbers are above 0.`);
  },

  centring: ({ centring: moved, answer }) => p("The network was trained on MNIST. There each digit is scaled into 20 x 20 pixels, and its centre of mass is in the middle of 28 x 28.") +
    p("So the page does the same to your drawing. The network has no other way to find a digit in a corner.") +
    (moved
      ? p(`Without this step it reads <b>${moved.uncentred.digit}</b> (activation ${activation(moved.uncentred.layers[3][moved.uncentred.digit])}).`,
        `With it: <b>${answer.digit}</b> (activation ${activation(answer.layers[3][answer.digit])}).`)
      : p("<b>Draw a digit in a corner of the pad</b> to see the step.")),

  neuron: ({ answer, first }) => p("A neuron is a thing that holds a number between 0 and 1. The number is its <em>activation</em>.") +
    p("The brighter the circle, the larger the activation. The 784 pixels are the first layer of such numbers.") +
    p(`On this picture neuron ${first.index} of layer 1 holds ${activation(answer.layers[1][first.index])}. The next chapters show where that number comes from.`),

  weights: ({ network, answer, first }) => {
    const own = incoming(network, first), parts = contributions(network, answer, first), up = largest(parts), down = largest(parts.map((v) => -v));
    return p("Each pixel has a connection to the neuron, and each connection has a <em>weight</em>. Laid out as a picture, the 784 weights show what the neuron looks for.") +
      p(`<span class="positive">Blue</span> weights are positive: ink there raises the neuron. <span class="negative">Red</span> weights are negative: ink there lowers it.`) +
      formula(`[a${fixed(answer.layers[0][up])}] \u00d7 [w${signed(own[up])}] = ${signed(parts[up])}`, `[a${fixed(answer.layers[0][down])}] \u00d7 [w${signed(own[down])}] = ${signed(parts[down])}`) +
      p(`These are the pixels that count most for and against: row ${Math.floor(up / 28)}, column ${up % 28}, and row ${Math.floor(down / 28)}, column ${down % 28}.`);
  },

  sum: ({ network, answer, first }) => {
    const parts = contributions(network, answer, first), total = (sign: number) => parts.filter((v) => v * sign > 0).reduce((a, b) => a + b, 0);
    return p("Multiply each pixel by its weight and add up all 784 products. Row by row, the bars on the right carry the sum up or down.") +
      formula(`[w${signed(total(1))}] [w${signed(total(-1))}] = ${signed(sumOf(parts))}`) +
      p(`Ink on blue weights adds <b>${signed(total(1))}</b>. Ink on red weights adds <b>${signed(total(-1))}</b>.`, "The sum can be any number.");
  },

  bias: ({ network, answer, first }) => {
    const own = network.biases[1][first.index], z = answer.sums[1][first.index];
    return p("Before the neuron lights up, one more number is added: its <em>bias</em>.") +
      p(own < 0
        ? `This neuron's bias is ${biasOf(own)}. The weighted sum has to exceed <b>${fixed(-own)}</b> before the neuron is more on than off.`
        : `This neuron's bias is ${biasOf(own)}. The neuron is more on than off as long as the weighted sum stays above <b>${fixed(-own)}</b>.`) +
      formula(`*z* = ${fixed(z - own)} ${own < 0 ? "\u2212" : "+"} ${fixed(Math.abs(own))} = ${fixed(z)}`) +
      p("The weights say which pattern the neuron looks for. The bias says how much of it is enough.");
  },

  sigmoid: ({ network, answer, first }) => {
    const z = answer.sums[1][first.index], a = answer.layers[1][first.index];
    return p(`The sum ${math("*z*")} can be any number; an activation lies between 0 and 1. The <em>sigmoid</em> squeezes the whole line into that range.`) +
      (network.activation === "relu" ? p("The network that is served has ReLUs instead: max(0, z).") : formula(`*\u03c3*(*z*) = 1 / (1 + *e*^\u2212z^)`, `*\u03c3*(${fixed(z)}) = [a${fixed(a, 3)}]`)) +
      p("Very negative sums end near 0, very positive ones near 1. Around 0 the curve is steep: there a little more ink counts most.") +
      p("The grey points are the other fifteen neurons.");
  },

  "layer-1": ({ network }) => p("All 16 neurons of layer 1 do the same, each with weights of its own. Put the weights in a matrix, one row a neuron, and the layer is one line:") +
    formula(network.activation === "relu" ? "*a*^(1)^ = ReLU(*W* *a*^(0)^ + *b*)" : "*a*^(1)^ = *\u03c3*(*W* *a*^(0)^ + *b*)") +
    p("16 x 784 weights and 16 biases: 12,560 of the network's 13,002 numbers. The columns shown belong to the four pixels with the most ink.") +
    p("This one product is what the server computes first, for one picture or for a thousand."),

  "layer-2": ({ network, answer, neuron: chosen }) => {
    const index = chosen.layer === 2 ? chosen.index : largest(answer.layers[2]);
    return p("Layer 2 treats the 16 activations of layer 1 as layer 1 treats the pixels: weights, a sum, a bias, the same function.") +
      formula(network.activation === "relu" ? "*a*^(2)^ = ReLU(*W* *a*^(1)^ + *b*)" : "*a*^(2)^ = *\u03c3*(*W* *a*^(1)^ + *b*)") +
      p(`The bars show what each neuron of layer 1 contributes to neuron <b>${index}</b>, which holds ${activation(answer.layers[2][index])}.`, "Point at another neuron to see its sum.");
  },

  outputs: ({ answer, isBlank }) => {
    const order = [...answer.layers[3].keys()].sort((i, j) => answer.layers[3][j] - answer.layers[3][i]), [best, second] = order;
    if (isBlank) return p("Ten neurons, one a digit. Draw something to see them.");
    const value = answer.layers[3][best];
    return p("The last layer has ten neurons, one a digit. The answer is the one with the largest activation.") +
      p(`Here: <b>${best}</b> with ${activation(value)}, then <b>${second}</b> with ${activation(answer.layers[3][second])}.`,
        value < 0.5 ? "None is above 0.5: to this network it is hardly a digit." : "") +
      p("Each output is a sigmoid of its own, so the ten do not add up to 1. Several can be lit, or none.") +
      p("A bright output means: more like this digit than like the other nine. The network was only ever shown digits.");
  },

  hope: () => p("Why layers? The film hopes: layer 2 might find loops and lines, and the outputs put them together. A 9 is a loop over a line.") +
    p("A loop is itself made of short edges. Layer 1 might find these.") +
    p("Then each step from pixels to digits would be one that a person can follow. Is it so? The next chapter looks."),

  gallery: ({ network, first, answer }) => p("These are all 16 neurons of layer 1, each by its weights. Some are strokes at a place; none is a clean edge and nothing else.") +
    (network.activation === "sigmoid" ? p(`Neuron <b>${first.index}</b>: one edge explains <b>${Math.round(100 * EDGE_R2[first.index])}%</b> of its weights.`,
      `Hold it at its mean, and <b>${HURTS[first.index][1].toFixed(0)}%</b> of the test set's ${HURTS[first.index][0]}s are read correctly no more.`,
      `On this picture it holds ${activation(answer.layers[1][first.index])}.`) : "") +
    p("So a neuron is tied to a digit or two, not to a part of all digits. As the film says: the network solves the task without the pieces that one hopes for."),

  relu: ({ variants }) => p("Later networks use the <em>ReLU</em>: 0 below 0, the sum itself above. Its slope is 1 however large the sum, so training is easier.") +
    formula("ReLU(*z*) = max(0, *z*)") +
    p("The same picture in both:", ...(["sigmoid", "relu"] as const).map((name) => {
      const { answer, network, isServed } = variants[name], accuracy = network.accuracy ? `, ${(100 * network.accuracy).toFixed(2)}% on the test set` : "";
      return `the ${name === "relu" ? "ReLU" : "sigmoid"} network${isServed ? " (served)" : ""} reads <b>${answer.digit}</b> with ${activation(answer.layers[3][answer.digit])}${accuracy};`;
    })).replace(/;<\/p>$/, ".</p>") +
    p("The outputs are sigmoids in both, so that they can be compared."),

  learning: ({ recording }) => {
    const last = recording.accuracy.length - 1;
    return p("Nobody chose the weights. They begin as noise, and each step of training moves all 13,002 numbers a little downhill.") +
      p(`This is a recorded training of the same network, ${last} passes over 50,000 digits. Before it, <b>${(100 * accuracyAt(recording, 0)).toFixed(0)}%</b> of 10,000 other digits are read correctly;`,
        `after one pass <b>${(100 * accuracyAt(recording, 1)).toFixed(0)}%</b>, at the end <b>${(100 * accuracyAt(recording, last)).toFixed(1)}%</b>.`) +
      p("Press play, or pull the slider. The strokes appear in the first few passes; the rest is polish.");
  },

  change: ({ network, answer, before, neuron: chosen, isBlank }) => p("Every number is yours to change. Pick a neuron on the stage, and change its bias, one of its weights, or switch it off.") +
    (isBlank ? "" : p(`Unchanged, the network reads <b>${before.digit}</b> (${activation(before.layers[3][before.digit])}). Now it reads <b>${answer.digit}</b> (${activation(answer.layers[3][answer.digit])}).`)) +
    p(`Chosen: <b>${nameOf(chosen.layer, chosen.index)}</b>, activation ${activation(answer.layers[chosen.layer][chosen.index])}, bias ${biasOf(network.biases[chosen.layer][chosen.index])}.`),

  service: (_, { hasService, transport, facts }) => (hasService
    ? p(`The same network answers over ${transport || "the network"}. Each drawing is a real call: the page asks its gateway, the gateway asks digitserve, and ONNX Runtime computes what you have just followed.`) + facts
    : p("This page computes by itself, with the same 13,002 numbers. With the service behind it, it shows the real calls: latency, batches, version and the messages.") +
      '<pre class="message">make play</pre>' + p("serves the network over gRPC, and this page.")),
};

const sumOf = (values: Values): number => values.reduce((a, b) => a + b, 0);

export function nameOf(layer: number, index: number): string {
  return layer === 3 ? `output ${index}` : `layer ${layer}, neuron ${index}`;
}
