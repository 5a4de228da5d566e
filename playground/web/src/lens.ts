// One neuron closer: of layer 1 its weights and their contributions as pictures; of the others what adds up to its sum.

import { nameOf } from "./chapters";
import { contributions, gradient, incoming } from "./network";
import { COLOUR, fixed, Painter, signColour } from "./painter";
import type { View } from "./view";

export function drawLens(painter: Painter, view: View): string {
  painter.clear();
  return view.neuron.layer === 1 ? drawPictures(painter, view) : drawParts(painter, view);
}

export const PICTURE = { x: 12, y: 26 };

/** The side of the picture of weights, on which a pixel can be picked. */
export const pictureSize = (width: number, height: number): number => Math.min((width - 36) / 2, height - 38);

function drawPictures(painter: Painter, view: View): string {
  const { width, height } = painter, size = pictureSize(width, height), right = width - 12 - size;
  painter.picture(incoming(view.network, view.neuron), PICTURE.x, PICTURE.y, size, { isSigned: true });
  painter.picture(contributions(view.network, view.answer, view.neuron), right, PICTURE.y, size, { isSigned: true });
  painter.formula("weights *w*", PICTURE.x + size / 2, 13, { size: 14 });
  painter.formula("contributions *w a*", right + size / 2, 13, { size: 14 });
  return sentence(view);
}

function drawParts(painter: Painter, view: View): string {
  const { width, height } = painter, parts = contributions(view.network, view.answer, view.neuron);
  const size = Math.min(height - 38, width * 0.4), gap = (height - 30) / parts.length;
  const most = parts.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9), left = size + 40, middle = left + (width - left - 12) / 2, reach = (width - left - 12) / 2 - 4;
  painter.picture(gradient(view.network, view.answer, view.neuron), 12, 26, size, { isSigned: true });
  painter.formula("slope by ink", 12 + size / 2, 13, { size: 14 });
  painter.formula("contributions *w a*", middle, 13, { size: 14 });
  painter.line(middle, 24, middle, height - 6, COLOUR.faint);
  parts.forEach((part, j) => {
    const y = 26 + (j + 0.5) * gap, length = part / most * reach;
    painter.box(Math.min(middle, middle + length), y - gap * 0.36, Math.max(1, Math.abs(length)), gap * 0.72, { fill: signColour(part), radius: 1 });
    painter.text(String(j), left - 8, y, { size: 9, align: "right", colour: COLOUR.dim });
  });
  return sentence(view);
}

function sentence({ network, answer, neuron: { layer, index } }: View): string {
  const z = answer.sums[layer][index], bias = network.biases[layer][index], name = nameOf(layer, index);
  return `${name[0].toUpperCase()}${name.slice(1)}: contributions ${fixed(z - bias)}, bias ${fixed(bias)}, sum ${fixed(z)}, activation ${fixed(answer.layers[layer][index], 3)}.`;
}
