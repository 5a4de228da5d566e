// Whole layers: W a + b with its numbers, the second layer, and the ten outputs.

import { contributions, largest, SIZES, type Values } from "../network";
import { phase } from "../motion";
import { COLOUR, fixed, type Painter, rastered, signColour } from "../painter";
import type { Scene, View } from "../view";

export const layerOne: Scene = { seconds: 2.6, draw: (painter, view, position) => drawProduct(painter, view, position), stage: (position) => `row ${Math.min(15, Math.floor(position * 16))}` };

/** sigma(W a + b) = a', each with the numbers that fit: of 784 columns those whose pixels hold the most ink. */
function drawProduct(painter: Painter, view: View, position: number): void {
  const { width, height, isNarrow } = painter, ink = view.answer.layers[0];
  const columns = [...ink.keys()].sort((i, j) => ink[j] - ink[i]).slice(0, isNarrow ? 2 : 4).sort((i, j) => i - j);
  const rows = isNarrow ? [0, 1, 2, 15] : [0, 1, 2, 3, 4, 5, 14, 15], gap = Math.min(40, (height - (isNarrow ? 130 : 210)) / (rows.length + 1));
  const size = isNarrow ? 13 : Math.min(17, width / 44), top = isNarrow ? 36 : 76, at = (row: number) => top + (row + (rows[row] > 13 ? 1 : 0) + 0.5) * gap;
  const bottom = at(rows.length - 1) + gap * 0.5, unit = width / (columns.length + 7.1);
  const now = Math.min(15, Math.floor(position * 16)), reached = (row: number) => position >= 1 || rows[row] <= now;
  let x = unit * 0.25;
  const block = (n: number, name: string, cell: (row: number, k: number) => string, count = rows.length) => {
    bracket(painter, x, top, unit * n * 0.96, bottom - top);
    painter.formula(name, x + unit * n * 0.48, top - 20, { size: isNarrow ? 16 : 22 });
    for (let row = 0; row < count; row += 1) {
      for (let k = 0; k < n; k += 1) painter.formula(cell(row, k), x + unit * (k + 0.48) * 0.98, at(row), { size });
    }
    if (count === rows.length) dots(painter, x + unit * n * 0.48, at(rows.findIndex((index) => index > 13) - 1) + gap);
    x += unit * n + unit * 0.42;
  };
  const width0 = SIZES[0];
  block(columns.length + 1, "*W*", (row, k) => (k === columns.length ? "\u2026" : `[w${fixed(view.network.weights[1][rows[row] * width0 + columns[k]])}]`));
  block(1, "*a*", (row) => (row < columns.length ? `[a${fixed(ink[columns[row]])}]` : row === columns.length ? "\u22ee" : ""), Math.min(rows.length, columns.length + 1));
  painter.formula("+", x - unit * 0.23, (top + bottom) / 2, { size: size + 6 });
  block(1, "*b*", (row) => `[b${fixed(view.network.biases[1][rows[row]])}]`);
  painter.formula("=", x - unit * 0.23, (top + bottom) / 2, { size: size + 6 });
  block(1, "*z*", (row) => (reached(row) ? fixed(view.answer.sums[1][rows[row]]) : ""));
  painter.formula("\u2192", x - unit * 0.23, (top + bottom) / 2, { size: size + 4 });
  painter.formula(view.network.activation === "relu" ? "ReLU" : "*\u03c3*", x - unit * 0.23, (top + bottom) / 2 - 22, { size });
  rows.forEach((row, place) => {
    const value = view.answer.layers[1][row];
    painter.neuron(x + unit * 0.34, at(place), Math.min(gap * 0.42, 17), reached(place) ? value : 0, { hasNumber: reached(place) && gap > 22 });
    if (reached(place) && row === now && position < 1) painter.box(unit * 0.2, at(place) - gap / 2, x + unit * 0.7 - unit * 0.2, gap, { stroke: COLOUR.activation, radius: 5, line: 1.5 });
  });
  painter.formula(view.network.activation === "relu" ? "ReLU(*z*)" : "*\u03c3*(*z*)", x + unit * 0.34, top - 20, { size: isNarrow ? 15 : 20 });
  drawMatrix(painter, view.network.weights[1], bottom + (isNarrow ? 24 : 40), now, position);
}

function bracket({ g }: Painter, x: number, y: number, width: number, height: number): void {
  g.strokeStyle = COLOUR.text;
  g.lineWidth = 1.6;
  for (const [side, inward] of [[x, 6], [x + width, -6]]) {
    g.beginPath();
    g.moveTo(side + inward, y);
    g.lineTo(side, y);
    g.lineTo(side, y + height);
    g.lineTo(side + inward, y + height);
    g.stroke();
  }
}

const dots = (painter: Painter, x: number, y: number): void => painter.text("\u22ee", x, y, { size: 15, colour: COLOUR.dim });

/** All of W: 16 rows, 784 columns, a column a pixel. */
function drawMatrix(painter: Painter, weights: Values, y: number, now: number, position: number): void {
  const { width, height, isNarrow } = painter, left = isNarrow ? 10 : width * 0.04, size = width - 2 * left, tall = Math.max(20, Math.min(96, height - y - 34));
  const g = painter.g;
  g.imageSmoothingEnabled = true;
  g.drawImage(rastered(weights, true, SIZES[0]), left, y, size, tall);
  painter.box(left - 0.5, y - 0.5, size + 1, tall + 1, { stroke: COLOUR.edge });
  if (position < 1) painter.box(left - 1, y + now * tall / 16, size + 2, tall / 16, { stroke: COLOUR.activation, line: 1.5 });
  painter.text("all of W: 16 rows, one a neuron; 784 columns, one a pixel", width / 2, y + tall + 16, { size: isNarrow ? 11.5 : 14, colour: COLOUR.dim });
}

export const layerTwo: Scene = {
  seconds: 2.2,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter, chosen = view.neuron.layer === 2 ? view.neuron.index : largest(view.answer.layers[2]);
    const gap = (height - (isNarrow ? 40 : 60)) / 16, x1 = isNarrow ? 26 : width * 0.09, x2 = isNarrow ? width * 0.4 : width * 0.4;
    const y = (i: number) => (isNarrow ? 14 : 30) + (i + 0.5) * gap, r = Math.min(17, gap * 0.42), reached = phase(position, 0.05, 0.6);
    const lines = painter.kept(view.answer, `layer 2 ${chosen}`, (own) => drawFan(own, view, chosen, (j, i) => [x1 + r, y(j), x2 - r, y(i)]));
    painter.show(lines, false, 0, x1 + r + (x2 - x1 - r) * reached);
    for (let i = 0; i < 16; i += 1) {
      painter.neuron(x1, y(i), r, view.answer.layers[1][i]);
      painter.neuron(x2, y(i), r, view.answer.layers[2][i] * phase(position, 0.5, 0.8), { ring: i === chosen ? COLOUR.activation : COLOUR.ghost, line: i === chosen ? 2.5 : 1.2 });
    }
    painter.text("layer 1", x1, height - (isNarrow ? 12 : 16), { size: 13, colour: COLOUR.dim });
    painter.text("layer 2", x2, height - (isNarrow ? 12 : 16), { size: 13, colour: COLOUR.dim });
    drawParts(painter, view, chosen, { x: isNarrow ? width * 0.5 : width * 0.5, y, gap, position });
  },
  spots: (width, height) => {
    const isNarrow = width < 520, gap = (height - (isNarrow ? 40 : 60)) / 16;
    return Array.from({ length: 16 }, (_, index) => ({ neuron: { layer: 2, index }, x: width * 0.4, y: (isNarrow ? 14 : 30) + (index + 0.5) * gap, r: Math.min(17, gap * 0.42) }));
  },
};

/** All connections between the layers: those of the chosen neuron by what they contribute, the others faint. */
function drawFan(painter: Painter, view: View, chosen: number, ends: (j: number, i: number) => [number, number, number, number]): void {
  for (let i = 0; i < 16; i += 1) {
    if (i === chosen) continue;
    const parts = contributions(view.network, view.answer, { layer: 2, index: i });
    parts.forEach((part, j) => painter.line(...ends(j, i), signColour(part), Math.min(2, 0.4 + Math.abs(part) * 0.5), 0.13));
  }
  const own = contributions(view.network, view.answer, { layer: 2, index: chosen });
  own.forEach((part, j) => painter.line(...ends(j, chosen), signColour(part), Math.min(5, 0.4 + Math.abs(part) * 0.9), 0.95));
}

/** What adds up to one neuron's sum: weight times activation, sixteen times, and the bias. */
function drawParts(painter: Painter, view: View, chosen: number, { x, y, gap, position }: { x: number; y: (i: number) => number; gap: number; position: number }): void {
  const parts = contributions(view.network, view.answer, { layer: 2, index: chosen }), { isNarrow, width, height } = painter;
  const most = parts.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9), middle = isNarrow ? x + (width - x) * 0.5 : x + (width - x) * 0.62, reach = isNarrow ? (width - x) * 0.44 : (width - x) * 0.3;
  const shown = phase(position, 0.3, 0.9);
  painter.line(middle, y(0) - gap / 2, middle, y(15) + gap / 2, COLOUR.faint, 1.5);
  parts.forEach((part, j) => {
    const length = part / most * reach * shown, weight = view.network.weights[2][chosen * 16 + j];
    painter.box(Math.min(middle, middle + length), y(j) - gap * 0.32, Math.max(1, Math.abs(length)), gap * 0.64, { fill: signColour(part), radius: 2 });
    if (!isNarrow) painter.formula(`[w${fixed(weight)}] \u00d7 [a${fixed(view.answer.layers[1][j])}]`, x + 4, y(j), { size: Math.min(16, gap * 0.5), align: "left", alpha: 0.9 });
  });
  if (!isNarrow) painter.formula(`sum + bias [b${fixed(view.network.biases[2][chosen])}] = ${fixed(view.answer.sums[2][chosen])},  *a* = [a${fixed(view.answer.layers[2][chosen])}]`, (x + width) / 2, height - 16, { size: 17 });
}

export const outputs: Scene = {
  seconds: 1.6,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter, values = view.answer.layers[3], gap = (height - (isNarrow ? 24 : 50)) / 10;
    const x = isNarrow ? 62 : width * 0.2, right = width - (isNarrow ? 22 : width * 0.12), grown = phase(position, 0.1, 0.9);
    values.forEach((value, digit) => {
      const y = (isNarrow ? 12 : 25) + (digit + 0.5) * gap, isBest = digit === view.answer.digit && !view.isBlank, colour = isBest ? COLOUR.activation : COLOUR.dim;
      painter.formula(String(digit), x - (isNarrow ? 40 : 70), y, { size: Math.min(30, gap * 0.56), colour });
      painter.neuron(x, y, Math.min(22, gap * 0.38), value * grown, { ring: isBest && grown >= 1 ? COLOUR.activation : COLOUR.ghost, line: isBest ? 2.5 : 1.2 });
      const start = x + Math.min(22, gap * 0.38) + 14;
      painter.box(start, y - gap * 0.2, right - start, gap * 0.4, { fill: COLOUR.panel, radius: 4 });
      painter.box(start, y - gap * 0.2, Math.max(2, (right - start) * value * grown), gap * 0.4, { fill: isBest ? COLOUR.activation : COLOUR.ghost, radius: 4 });
      if (!isNarrow) painter.formula(fixed(value, 3), right + 34, y, { size: 17, colour: isBest ? COLOUR.activation : COLOUR.dim });
    });
    const start = x + Math.min(22, gap * 0.38) + 14, half = start + (right - start) / 2;
    painter.line(half, 12, half, height - 14, COLOUR.faint, 1);
    painter.text("lit: over 0.5", half + 6, height - 9, { size: 11, colour: COLOUR.dim, align: "left" });
  },
};
