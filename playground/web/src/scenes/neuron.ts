// One neuron of layer 1, from its 784 weights to its activation.

import { activate, contributions, incoming, SIDE, type Values } from "../network";
import { phase } from "../motion";
import { COLOUR, fixed, type Painter, signColour, signed } from "../painter";
import type { Scene, View } from "../view";

export const neuron: Scene = {
  seconds: 1.6,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter, { layer, index } = view.first, value = view.answer.layers[layer][index];
    const shown = value * phase(position, 0, 0.9);
    const size = isNarrow ? 116 : Math.min(width * 0.26, height * 0.42), x = isNarrow ? 12 : width * 0.05, y = (height - size) * (isNarrow ? 0.16 : 0.4);
    const r = isNarrow ? 62 : Math.min(118, height * 0.2), cx = isNarrow ? width - r - 26 : width * 0.55, cy = y + size / 2;
    painter.picture(view.answer.layers[0], x, y, size);
    painter.arrow(x + size + 10, cy, cx - r - 10, cy, COLOUR.dim);
    painter.neuron(cx, cy, r, shown, { ring: COLOUR.text, line: 2.5, hasNumber: false });
    painter.text(fixed(shown), cx, cy + 1, { size: r * 0.55, colour: shown > 0.55 ? COLOUR.stage : COLOUR.text, font: "'Film Serif', Georgia, serif" });
    drawScale(painter, shown, isNarrow ? 30 : width * 0.14, Math.min(height - 56, cy + r + (isNarrow ? 62 : 110)), isNarrow ? width - 60 : width * 0.6);
    if (!isNarrow) drawColumn(painter, view, index, position);
  },
};

/** From 0 to 1, dark to bright, with the activation on it. */
function drawScale(painter: Painter, value: number, x: number, y: number, width: number): void {
  const gradient = painter.g.createLinearGradient(x, 0, x + width, 0);
  gradient.addColorStop(0, "#000");
  gradient.addColorStop(1, "#fff");
  painter.g.fillStyle = gradient;
  painter.g.fillRect(x, y, width, 12);
  painter.box(x, y, width, 12, { stroke: COLOUR.faint });
  painter.formula("0", x, y + 30, { size: 18 });
  painter.formula("1", x + width, y + 30, { size: 18 });
  painter.arrow(x + width * Math.min(1, value), y - 26, x + width * Math.min(1, value), y - 3, COLOUR.activation, 2.5);
}

function drawColumn(painter: Painter, view: View, index: number, position: number): void {
  const { width, height } = painter, gap = (height - 60) / 16, x = width * 0.9;
  view.answer.layers[1].forEach((value, i) => {
    painter.neuron(x, 30 + (i + 0.5) * gap, Math.min(17, gap * 0.42), value * phase(position, 0.3, 1), {
      ring: i === index ? COLOUR.activation : COLOUR.ghost, line: i === index ? 2.5 : 1.2, hasNumber: position >= 1 && gap > 28,
    });
  });
}

export const weights: Scene = {
  seconds: 2.4,
  draw(painter, view, position) {
    const ink = view.answer.layers[0], own = incoming(view.network, view.first), parts = contributions(view.network, view.answer, view.first);
    const laid = phase(position, 0.1, 0.55), found = phase(position, 0.6, 1);
    const { width, height, isNarrow } = painter;
    if (isNarrow) {
      const size = Math.min((width - 48) / 2, (height - 76) / 1.72);
      trio(painter, { ink, own, parts }, size, laid, found);
      return;
    }
    const size = Math.min((width - 150) / 3, height - 190), y = (height - size) / 2 - 10, gap = (width - 3 * size) / 4;
    const xs = [gap, 2 * gap + size, 3 * gap + 2 * size];
    painter.picture(ink, xs[0], y, size);
    painter.picture(own, xs[1], y, size, { isSigned: true });
    painter.picture(own, xs[1] + (xs[0] - xs[1]) * laid, y, size, { isSigned: true, alpha: 0.8 * laid * (1 - found) });
    painter.picture(parts, xs[2], y, size, { isSigned: true, alpha: found });
    painter.formula("\u00d7", (xs[0] + size + xs[1]) / 2, y + size / 2, { size: 34 });
    painter.formula("=", (xs[1] + size + xs[2]) / 2, y + size / 2, { size: 34 });
    ["ink, *a*", "weights, *w*", "contributions, *w a*"].forEach((name, i) => painter.formula(name, xs[i] + size / 2, y - 24, { size: 20 }));
    key(painter, xs[1] + size / 2, y + size + 34, own);
    key(painter, xs[2] + size / 2, y + size + 34, parts);
    painter.formula(`neuron ${view.first.index} of layer 1`, width / 2, height - 26, { size: 17, colour: COLOUR.dim });
  },
  stage: (position) => (position < 0.55 ? "weights over the picture" : "contributions"),
};

function trio(painter: Painter, { ink, own, parts }: { ink: Values; own: Values; parts: Values }, size: number, laid: number, found: number): void {
  const { width } = painter, left = width / 2 - size - 12, right = width / 2 + 12, small = size * 0.72, y = 26, low = y + small + 34;
  painter.picture(ink, left + (size - small) / 2, y, small);
  painter.picture(own, right + (size - small) / 2, y, small, { isSigned: true });
  painter.picture(own, left + (size - small) / 2, y, small, { isSigned: true, alpha: 0.8 * laid * (1 - found) });
  painter.picture(parts, width / 2 - size / 2, low, size, { isSigned: true, alpha: found });
  painter.formula("ink *a*", left + size / 2, 12, { size: 15 });
  painter.formula("weights *w*", right + size / 2, 12, { size: 15 });
  painter.formula("\u00d7", width / 2, y + small / 2, { size: 24 });
  painter.formula("= contributions *w a*", width / 2, low - 16, { size: 15 });
}

/** What the colours mean: from minus to plus the largest. */
function key(painter: Painter, x: number, y: number, values: Values): void {
  const most = values.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9), width = 96;
  const gradient = painter.g.createLinearGradient(x - width / 2, 0, x + width / 2, 0);
  gradient.addColorStop(0, COLOUR.negative);
  gradient.addColorStop(0.5, "#000");
  gradient.addColorStop(1, COLOUR.positive);
  painter.g.fillStyle = gradient;
  painter.g.fillRect(x - width / 2, y - 4, width, 8);
  painter.text(signed(-most), x - width / 2 - 8, y, { size: 13, align: "right", colour: COLOUR.dim });
  painter.text(signed(most), x + width / 2 + 8, y, { size: 13, align: "left", colour: COLOUR.dim });
}

export const sum: Scene = {
  seconds: 3,
  draw(painter, view, position) {
    const parts = contributions(view.network, view.answer, view.first), rows = rowSums(parts), done = phaseLinear(position, 0.05, 0.95) * SIDE;
    const { width, height, isNarrow } = painter;
    const size = isNarrow ? Math.min(width * 0.46, height - 80) : Math.min(width * 0.44, height - 150);
    const x = isNarrow ? 10 : width * 0.04, y = isNarrow ? 20 : (height - size) / 2 - 26, cell = size / SIDE;
    painter.picture(parts, x, y, size, { isSigned: true });
    painter.line(x, y + done * cell, x + size, y + done * cell, COLOUR.activation, 2);
    const left = x + size + (isNarrow ? 12 : 26), right = width - (isNarrow ? 10 : width * 0.05);
    drawRunning(painter, rows, { left, right, y, cell, done });
    const total = rows.reduce((s, v, i) => s + (i < Math.floor(done) ? v : 0), 0), shown = position >= 0.95 ? parts.reduce((a, b) => a + b, 0) : total;
    painter.formula(`*w*_0_*a*_0_ + *w*_1_*a*_1_ + \u2026 + *w*_783_*a*_783_ = [${signed(shown)}]`, width / 2, y + size + (isNarrow ? 30 : 52), { size: isNarrow ? 16 : 24 });
  },
  stage: (position) => `row ${Math.min(SIDE, Math.round(phaseLinear(position, 0.05, 0.95) * SIDE))} of 28`,
};

const phaseLinear = (position: number, from: number, to: number): number => Math.min(1, Math.max(0, (position - from) / (to - from)));

export function rowSums(parts: Values): number[] {
  return Array.from({ length: SIDE }, (_, row) => parts.subarray(row * SIDE, (row + 1) * SIDE).reduce((a, b) => a + b, 0));
}

/** Beside each row of the picture the running sum: each row carries it to the right or to the left. */
function drawRunning(painter: Painter, rows: number[], { left, right, y, cell, done }:
{ left: number; right: number; y: number; cell: number; done: number }): void {
  let total = 0;
  const totals = rows.map((value) => (total += value)), low = Math.min(0, ...totals), high = Math.max(0.1, ...totals);
  const at = (value: number) => left + (value - low) / (high - low || 1) * (right - left);
  painter.line(at(0), y - 6, at(0), y + SIDE * cell + 6, COLOUR.faint, 1.5);
  painter.formula("0", at(0), y - 15, { size: 14, colour: COLOUR.dim });
  rows.forEach((value, row) => {
    if (row >= done) return;
    const from = at(totals[row] - value), to = at(totals[row]);
    painter.box(Math.min(from, to), y + row * cell + cell * 0.14, Math.max(1.5, Math.abs(to - from)), cell * 0.72, { fill: signColour(value) });
    painter.line(to, y + row * cell + cell * 0.5, to, y + (row + 1.3) * cell, COLOUR.ghost, 1);
  });
}

export const bias: Scene = {
  seconds: 1.8,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter, { layer, index } = view.first;
    const z = view.answer.sums[layer][index], own = view.network.biases[layer][index], weighted = z - own;
    const low = Math.min(-1, weighted, z), high = Math.max(1, weighted, z), reach = Math.max(high - low, 2);
    const left = isNarrow ? 26 : width * 0.1, right = width - left, at = (value: number) => left + (value - low + reach * 0.06) / (reach * 1.12) * (right - left);
    const y = height * (isNarrow ? 0.56 : 0.52), up = isNarrow ? 88 : Math.max(100, height * 0.2);
    drawAxis(painter, at, low, high, y);
    const first = phase(position, 0, 0.45), second = phase(position, 0.5, 0.95);
    painter.arrow(at(0), y - up, at(weighted * first), y - up, signColour(weighted), 5);
    painter.formula(`weighted sum [${signed(weighted)}]`, clampTo(painter, at(weighted * 0.5)), y - up - 22, { size: isNarrow ? 17 : 26 });
    if (second > 0) {
      painter.line(at(weighted), y - up, at(weighted), y - up * 0.5, COLOUR.faint, 1.5);
      painter.arrow(at(weighted), y - up * 0.5, at(weighted + own * second), y - up * 0.5, COLOUR.bias, 5);
      painter.formula(`bias *b* = [b${signed(own)}]`, clampTo(painter, at(weighted + own * 0.5)), y - up * 0.5 + 22, { size: isNarrow ? 16 : 24 });
    }
    const reached = weighted * first + own * second;
    painter.g.fillStyle = COLOUR.text;
    painter.g.beginPath();
    painter.g.arc(at(reached), y, 8, 0, 2 * Math.PI);
    painter.g.fill();
    painter.formula(`*z* = ${fixed(weighted)} ${own < 0 ? "\u2212" : "+"} [b${fixed(Math.abs(own))}] = ${fixed(z)}`, width / 2, y + (isNarrow ? 76 : 118), { size: isNarrow ? 20 : 30, alpha: phase(position, 0.85, 1) });
  },
};

const clampTo = ({ width, isNarrow }: Painter, x: number): number => Math.min(Math.max(x, isNarrow ? 92 : 130), width - (isNarrow ? 92 : 130));

function drawAxis(painter: Painter, at: (value: number) => number, low: number, high: number, y: number): void {
  const step = high - low > 12 ? 4 : high - low > 6 ? 2 : 1;
  painter.line(at(low) - 14, y, at(high) + 14, y, COLOUR.dim, 1.5);
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
    painter.line(at(tick), y - 5, at(tick), y + 5, COLOUR.dim, 1.5);
    painter.formula(fixed(tick, 0).replace("\u22120", "0"), at(tick), y + 24, { size: 16, colour: COLOUR.dim });
  }
}

export const sigmoidScene: Scene = {
  seconds: 1.8,
  draw(painter, view, position) {
    const { layer, index } = view.first, { width, height, isNarrow } = painter, pad = isNarrow ? 30 : 64;
    const box = { x: pad, y: isNarrow ? 22 : 50, width: width - 2 * pad, height: height - (isNarrow ? 92 : 160) };
    const z = view.answer.sums[layer][index], limit = Math.max(6, Math.ceil(Math.max(...view.answer.sums[layer].map(Math.abs))));
    drawCurve(painter, view, box, limit, { z, others: view.answer.sums[layer], position });
    const a = activate(view.network, layer, z), name = view.network.activation === "relu" ? "ReLU" : "\u03c3";
    painter.formula(name === "ReLU" ? `*a* = max(0, ${fixed(z)}) = [a${fixed(a, 3)}]` : `*a* = *\u03c3*(${fixed(z)}) = [a${fixed(a, 3)}]`, width / 2, height - (isNarrow ? 26 : 44), { size: isNarrow ? 22 : 30, alpha: phase(position, 0.7, 1) });
  },
};

export interface Area { readonly x: number; readonly y: number; readonly width: number; readonly height: number }

/** The activation function, with the sum of one neuron on its axis and the point where it meets the curve. */
export function drawCurve(painter: Painter, view: Pick<View, "network">, box: Area, limit: number, { z, others, position }:
{ z: number; others: ArrayLike<number>; position: number }): void {
  const isRelu = view.network.activation === "relu", top = isRelu ? limit : 1;
  const px = (value: number) => box.x + (value + limit) / (2 * limit) * box.width, py = (a: number) => box.y + box.height * (1 - a / top);
  painter.line(box.x, py(0), box.x + box.width, py(0), COLOUR.faint, 1.5);
  painter.line(px(0), box.y - 8, px(0), py(0), COLOUR.faint, 1.5);
  if (!isRelu) painter.line(box.x, py(1), box.x + box.width, py(1), COLOUR.edge, 1);
  painter.formula(isRelu ? String(limit) : "1", px(0) - 8, py(top) + 12, { size: 16, align: "right", colour: COLOUR.dim });
  [-limit, 0, limit].filter((tick) => Math.abs(px(tick) - px(z)) > 26).forEach((tick) => painter.formula(fixed(tick, 0).replace(/^\u22120$/, "0"), px(tick), py(0) + 18, { size: 15, colour: COLOUR.dim, align: tick < 0 ? "left" : tick ? "right" : "center" }));
  painter.g.beginPath();
  for (let k = 0; k <= 120; k += 1) {
    const value = -limit + 2 * limit * k / 120;
    painter.g.lineTo(px(value), py(activate(view.network, 1, value)));
  }
  painter.g.strokeStyle = COLOUR.positive;
  painter.g.lineWidth = 3;
  painter.g.stroke();
  const dot = (value: number, r: number, colour: string) => {
    painter.g.fillStyle = colour;
    painter.g.beginPath();
    painter.g.arc(px(value), py(activate(view.network, 1, value)), r, 0, 2 * Math.PI);
    painter.g.fill();
  };
  Array.from(others).forEach((value) => dot(Math.max(-limit, Math.min(limit, value)), 3.5, COLOUR.ghost));
  const a = activate(view.network, 1, z), up = phase(position, 0.1, 0.5), across = phase(position, 0.5, 0.9);
  painter.line(px(z), py(0), px(z), py(a * up), COLOUR.text, 1.5);
  painter.line(px(z), py(a), px(z) + (px(0) - px(z)) * across, py(a), COLOUR.activation, 1.5, across > 0 ? 1 : 0);
  painter.formula("*z*", px(z), py(0) + 18, { size: 19 });
  if (up >= 1) dot(z, 7, COLOUR.activation);
}
