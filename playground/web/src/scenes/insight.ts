// What one hopes the layers do, what they do, and the other activation function.

import { incoming } from "../network";
import { phase } from "../motion";
import { COLOUR, fixed, type Painter } from "../painter";
import { drawCurve } from "./neuron";
import type { Scene, Spot, View } from "../view";

type Stroke = (g: CanvasRenderingContext2D) => void;

const loop = (x: number, y: number, rx: number, ry: number, from = 0, to = 2): Stroke => (g) => {
  g.beginPath();
  g.ellipse(x, y, rx, ry, 0, from * Math.PI, to * Math.PI);
  g.stroke();
};
const straight = (...points: [number, number][]): Stroke => (g) => {
  g.beginPath();
  points.forEach(([x, y]) => g.lineTo(x, y));
  g.stroke();
};

/** In a box of 1 by 1: a digit, and the parts that make it up. */
const UPPER = loop(0.5, 0.3, 0.2, 0.2), LOWER = loop(0.5, 0.72, 0.22, 0.2), TAIL = straight([0.7, 0.3], [0.64, 0.92]);
const DIGITS: { digit: number; parts: Stroke[] }[] = [
  { digit: 9, parts: [UPPER, TAIL] },
  { digit: 8, parts: [UPPER, LOWER] },
  { digit: 4, parts: [straight([0.34, 0.12], [0.3, 0.5], [0.72, 0.5]), straight([0.66, 0.12], [0.64, 0.92])] },
];
const EDGES: Stroke[] = [0, 0.4, 0.8, 1.2, 1.6].map((from) => loop(0.5, 0.3, 0.2, 0.2, from + 0.02, from + 0.38));

export const hope: Scene = {
  seconds: 3.2,
  draw(painter, _, position) {
    const { width, height, isNarrow } = painter, rows = DIGITS.length, top = isNarrow ? 12 : 30;
    const gap = (height * 0.66 - top) / rows, size = Math.min(gap * 0.94, width * (isNarrow ? 0.17 : 0.14));
    DIGITS.forEach(({ digit, parts }, row) => {
      const y = top + row * gap, shown = phase(position, row * 0.14, row * 0.14 + 0.2), middle = width / 2;
      const shift = isNarrow ? 0 : 34, xs = [middle - size * 2.35, middle - size * 0.5, middle + size * 1.35].map((x) => x + shift);
      glyph(painter, parts, xs[0], y, size, shown, COLOUR.activation);
      painter.formula("=", (xs[0] + size + xs[1]) / 2, y + size / 2, { size: 26, alpha: shown });
      glyph(painter, [parts[0]], xs[1], y, size, shown, COLOUR.positive);
      painter.formula("+", (xs[1] + size + xs[2]) / 2, y + size / 2, { size: 26, alpha: shown });
      glyph(painter, [parts[1]], xs[2], y, size, shown, COLOUR.bias);
      if (!isNarrow) painter.formula(`output ${digit}`, xs[0] - 20, y + size / 2, { size: 17, align: "right", colour: COLOUR.dim, alpha: shown });
    });
    const y = height * (isNarrow ? 0.7 : 0.73), small = size, step = (width - small) / 6.2;
    painter.text("and a loop is made of edges", width / 2, y - (isNarrow ? 10 : 16), { size: isNarrow ? 13 : 16, colour: COLOUR.dim, alpha: phase(position, 0.5, 0.6) });
    glyph(painter, [UPPER], step * 0.1, y, small, phase(position, 0.5, 0.65), COLOUR.positive);
    painter.formula("=", step * 0.75 + small / 2, y + small * 0.3, { size: 26, alpha: phase(position, 0.5, 0.65) });
    EDGES.forEach((edge, i) => {
      const shown = phase(position, 0.6 + i * 0.07, 0.7 + i * 0.07), x = step * (1.35 + i * 1.05);
      glyph(painter, [edge], x, y, small, shown, COLOUR.text);
      if (i) painter.formula("+", x - step * 0.525 + small / 2, y + small * 0.3, { size: 22, alpha: shown });
    });
    painter.text("layer 1: edges      layer 2: loops and lines      outputs: digits", width / 2, height - 14, { size: isNarrow ? 11 : 14, colour: COLOUR.dim });
  },
  stage: (position) => (position < 0.5 ? "digits from loops" : "loops from edges"),
};

function glyph({ g }: Painter, parts: Stroke[], x: number, y: number, size: number, alpha: number, colour: string): void {
  g.save();
  g.translate(x, y);
  g.scale(size, size);
  g.globalAlpha = alpha;
  g.strokeStyle = colour;
  g.lineWidth = 0.085;
  g.lineCap = g.lineJoin = "round";
  parts.forEach((part) => part(g));
  g.restore();
}

interface Tiles { readonly size: number; readonly x: (i: number) => number; readonly y: (i: number) => number }

/** Where sixteen pictures stand, with their captions: in four rows or in two, whichever leaves them larger. */
function tiles(width: number, height: number): Tiles {
  const caption = width < 520 ? 15 : 26, gap = width < 520 ? 8 : 18;
  const sizeIn = (columns: number) => Math.min((width - (columns + 1) * gap) / columns, (height - (16 / columns) * (caption + gap * 0.6) - 14) / (16 / columns));
  const columns = sizeIn(8) > sizeIn(4) ? 8 : 4, size = sizeIn(columns), rows = 16 / columns;
  const left = (width - columns * size - (columns - 1) * gap) / 2, top = (height - rows * (size + caption) - (rows - 1) * gap * 0.6) / 2;
  return { size, x: (i) => left + (i % columns) * (size + gap), y: (i) => top + Math.floor(i / columns) * (size + caption + gap * 0.6) };
}

/** From docs/inside.md, of the sigmoid network: how much of each neuron's weights one edge explains. */
export const EDGE_R2 = [0.5, 0.38, 0.66, 0.67, 0.68, 0.62, 0.44, 0.56, 0.5, 0.45, 0.58, 0.58, 0.51, 0.36, 0.74, 0.64];
/** And the digit that loses the most when the neuron is held at its mean, with the percentage points that it loses. */
export const HURTS: readonly (readonly [number, number])[] = [[1, 25.4], [0, 27.4], [6, 59.2], [3, 6.1], [5, 34.8], [2, 5.7], [4, 14.4], [1, 30.1], [3, 5.2], [1, 35.7], [4, 30.8], [5, 19.4], [5, 4], [2, 6.7], [3, 4.8], [3, 16.1]];

export const gallery: Scene = {
  seconds: 1.6,
  draw(painter, view, position) {
    const { size, x, y } = tiles(painter.width, painter.height);
    for (let index = 0; index < 16; index += 1) {
      const shown = phase(position, index * 0.04, index * 0.04 + 0.3), weights = incoming(view.network, { layer: 1, index });
      painter.picture(weights, x(index), y(index), size, { isSigned: true, alpha: shown });
      const isChosen = view.first.index === index;
      if (isChosen) painter.box(x(index) - 2.5, y(index) - 2.5, size + 5, size + 5, { stroke: COLOUR.activation, line: 2.5, radius: 3 });
      caption(painter, view, index, x(index), y(index) + size, size);
    }
  },
  spots(width, height): Spot[] {
    const { size, x, y } = tiles(width, height);
    return Array.from({ length: 16 }, (_, index) => ({ neuron: { layer: 1, index }, x: x(index) + size / 2, y: y(index) + size / 2, r: size / 2 }));
  },
};

function caption(painter: Painter, view: View, index: number, x: number, y: number, size: number): void {
  const activation = view.answer.layers[1][index], small = painter.isNarrow;
  painter.text(String(index), x + 1, y + (small ? 9 : 14), { size: small ? 10 : 13, align: "left", colour: COLOUR.dim });
  painter.text(fixed(activation), x + size - 1, y + (small ? 9 : 14), { size: small ? 10 : 13, align: "right", colour: COLOUR.activation });
}

export const reluScene: Scene = {
  seconds: 1.8,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter;
    (["sigmoid", "relu"] as const).forEach((name, side) => {
      const variant = view.variants[name];
      const area = { x: side * width / 2 + (isNarrow ? 8 : 30), y: 0, width: width / 2 - (isNarrow ? 16 : 60), height };
      drawVariant(painter, variant, name, area, position);
    });
    painter.line(width / 2, 20, width / 2, height - 20, COLOUR.edge, 1.5);
  },
};

function drawVariant(painter: Painter, { network, answer }: View["variants"]["relu"], name: string, { x, width, height }: { x: number; width: number; height: number }, position: number): void {
  const { isNarrow } = painter, middle = x + width / 2, limit = Math.max(4, Math.ceil(Math.max(...answer.sums[1].map(Math.abs))));
  painter.formula(name === "relu" ? "ReLU, max(0, *z*)" : "sigmoid, *\u03c3*(*z*)", middle, isNarrow ? 14 : 28, { size: isNarrow ? 15 : 22 });
  const curve = { x: x + 16, y: isNarrow ? 36 : 66, width: width - 32, height: height * (isNarrow ? 0.2 : 0.23) };
  const top = answer.sums[1].reduce((best, z, i, all) => (z > all[best] ? i : best), 0);
  drawCurve(painter, { network }, curve, limit, { z: answer.sums[1][top], others: answer.sums[1], position });
  let y = curve.y + curve.height + (isNarrow ? 44 : Math.max(60, Math.min(70, height * 0.12)));
  for (const layer of [1, 2]) {
    const gap = width / 16, most = name === "relu" ? Math.max(1, ...answer.layers[layer]) : 1;
    painter.text(`layer ${layer}`, x, y - (isNarrow ? 12 : 20), { size: isNarrow ? 10 : 13, align: "left", colour: COLOUR.dim });
    if (name === "relu") painter.text(`largest ${fixed(Math.max(...answer.layers[layer]), 1)}`, x + width, y - (isNarrow ? 12 : 20), { size: isNarrow ? 10 : 13, align: "right", colour: COLOUR.dim });
    answer.layers[layer].forEach((value, i) => painter.neuron(x + (i + 0.5) * gap, y, gap * 0.4, value / most * phase(position, 0.2 * layer, 0.2 * layer + 0.3), { ring: COLOUR.ghost, line: 1, hasNumber: false }));
    y += isNarrow ? 38 : Math.min(56, height * 0.095);
  }
  drawBars(painter, answer, { x, y: y - (isNarrow ? 14 : Math.min(24, height * 0.03)), width, height: height - y - (isNarrow ? 10 : 14) }, phase(position, 0.6, 1));
}

/** Ten bars, standing. */
function drawBars(painter: Painter, answer: View["answer"], { x, y, width, height }: { x: number; y: number; width: number; height: number }, grown: number): void {
  const gap = width / 10, tall = height - 22;
  answer.layers[3].forEach((value, digit) => {
    const isBest = digit === answer.digit, colour = isBest ? COLOUR.activation : COLOUR.ghost;
    painter.box(x + digit * gap + 2, y + tall * (1 - value * grown), gap - 4, Math.max(1.5, tall * value * grown), { fill: colour, radius: 2 });
    painter.formula(String(digit), x + (digit + 0.5) * gap, y + tall + 16, { size: painter.isNarrow ? 14 : 18, colour: isBest ? COLOUR.activation : COLOUR.dim });
    if (isBest && !painter.isNarrow) painter.text(fixed(value), x + (digit + 0.5) * gap, y + tall * (1 - value * grown) - 11, { size: 13, colour: COLOUR.activation });
  });
}
