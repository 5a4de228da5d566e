// The whole network, and a picture flowing through it: pixels light up, lines carry their contributions upwards.

import { contributions, key, SIDE, SIZES } from "../network";
import { phase } from "../motion";
import { COLOUR, type Painter, signColour } from "../painter";
import type { Scene, Spot, View } from "../view";

const STAGES = [0, 0.18, 0.48, 0.72, 0.97] as const; // pixels, layer 1, layer 2, outputs
const STRONGEST = 20; // lines from the picture to each neuron of layer 1: all 784 would be a fog
const BUCKETS = 5;

interface Line { readonly x1: number; readonly y1: number; readonly x2: number; readonly y2: number; readonly share: number; readonly to: number }

export const flow: Scene = {
  seconds: 1.1,
  spots,
  draw(painter, view, position) {
    const places = spots(painter.width, painter.height), grid = gridOf(painter.width, painter.height);
    for (const layer of [1, 2, 3]) drawLines(painter, view, layer, position);
    const lit = phase(position, STAGES[0], STAGES[1]);
    drawGrid(painter, view, grid, lit);
    for (const layer of [1, 2, 3]) drawLayer(painter, view, places.filter((spot) => spot.neuron.layer === layer), position);
    drawCaptions(painter, grid, places);
  },
  stage(position) {
    if (position >= 1) return "all layers";
    return ["pixels", "layer 1", "layer 2", "outputs"][STAGES.findIndex((end, i) => i > 0 && position < end) - 1];
  },
};

interface Grid { readonly x: number; readonly y: number; readonly size: number; readonly isTall: boolean }

function gridOf(width: number, height: number): Grid {
  const isTall = width < 520;
  if (isTall) {
    const size = Math.min(112, height * 0.32);
    return { x: (width - size) / 2, y: 8, size, isTall };
  }
  const size = Math.min(width * 0.3, height * 0.52);
  return { x: width * 0.035, y: (height - size) / 2 - 8, size, isTall };
}

let placed = { width: 0, height: 0, found: [] as Spot[] };

/** From left to right; on a phone from top to bottom. */
function spots(width: number, height: number): Spot[] {
  if (placed.width !== width || placed.height !== height) placed = { width, height, found: place(width, height) };
  return placed.found;
}

function place(width: number, height: number): Spot[] {
  const { isTall } = gridOf(width, height), found: Spot[] = [];
  for (const layer of [1, 2, 3]) {
    const n = SIZES[layer];
    for (let index = 0; index < n; index += 1) {
      const across = index - (n - 1) / 2;
      if (isTall) {
        const gap = (width - 14) / n, top = gridOf(width, height).size + 8;
        const y = top + (height - top - 38) * [0, 0.3, 0.64, 1][layer] + 6;
        found.push({ neuron: { layer, index }, x: width / 2 + across * gap, y, r: layer === 3 ? 14 : Math.min(9.6, gap * 0.42) });
      } else {
        const gap = Math.min((height - 44) / n, layer === 3 ? 66 : 46);
        const x = width * [0, 0.505, 0.705, 0.885][layer];
        found.push({ neuron: { layer, index }, x, y: height / 2 - 8 + across * gap, r: Math.min(layer === 3 ? 20 : 17, gap * 0.42) });
      }
    }
  }
  return found;
}

/** The lines of a layer, the strongest to each neuron; each share is of the strongest of all. */
function linesOf({ width, height }: Painter, view: View, layer: number): Line[] {
  const places = spots(width, height), grid = gridOf(width, height), below = places.filter((spot) => spot.neuron.layer === layer - 1), lines: Line[] = [];
  for (const { neuron, x, y } of places.filter((spot) => spot.neuron.layer === layer)) {
    const parts = contributions(view.network, view.answer, neuron);
    const strongest = [...parts.keys()].sort((i, j) => Math.abs(parts[j]) - Math.abs(parts[i])).slice(0, STRONGEST);
    for (const from of strongest.filter((i) => parts[i] !== 0)) {
      const start = layer === 1 ? pixelSpot(grid, from) : below[from];
      lines.push({ x1: start.x, y1: start.y, x2: x, y2: y, share: parts[from], to: neuron.index });
    }
  }
  const most = lines.reduce((m, line) => Math.max(m, Math.abs(line.share)), 1e-9);
  return lines.map((line) => ({ ...line, share: line.share / most }));
}

const pixelSpot = ({ x, y, size }: Grid, i: number) => ({
  x: x + (i % SIDE + 0.5) * size / SIDE, y: y + (Math.floor(i / SIDE) + 0.5) * size / SIDE,
});

/** All lines of a layer are drawn once, faint and bright; what moves is how much of these pictures is shown. */
function drawLines(painter: Painter, view: View, layer: number, position: number): void {
  const from = STAGES[layer] - (layer === 1 ? 0.06 : 0), to = STAGES[layer + 1];
  const reached = phase(position, from, to), settled = layer === 3 ? phase(position, 0.97, 1) : phase(position, to, to + 0.12);
  if (reached <= 0) return;
  const chosen = view.neuron.layer === layer && position >= 1 ? view.neuron.index : -1;
  const drawn = (glow: number, only = -1) => painter.kept(view.answer, `lines ${layer} ${glow} ${only}`, (own) => stroke(own.g, linesOf(painter, view, layer), layer, glow, only));
  if (chosen >= 0) return painter.show(drawn(0, chosen));
  const [start, end, isTall] = spanOf(painter, layer), front = start + (end - start) * reached;
  painter.show(drawn(0), isTall, 0, front);
  painter.show(drawn(1), isTall, reached < 1 ? front - (end - start) * 0.4 : 0, front, 1 - settled);
}

/** Where the lines of a layer begin and end, along the way of the flow. */
function spanOf({ width, height }: Painter, layer: number): [number, number, boolean] {
  const { x, y, isTall } = gridOf(width, height), at = (one: number) => spots(width, height).find((spot) => spot.neuron.layer === one)!;
  const along = (one: number) => (one === 0 ? (isTall ? y : x) : isTall ? at(one).y : at(one).x);
  return [along(layer - 1), along(layer), isTall];
}

/** Each strength and each sign is one path. */
function stroke(g: CanvasRenderingContext2D, lines: Line[], layer: number, glow: number, only: number): void {
  g.lineCap = "round";
  for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
    for (const sign of [1, -1]) {
      g.beginPath();
      for (const line of lines) {
        if (Math.sign(line.share) !== sign || Math.min(BUCKETS - 1, Math.floor(Math.abs(line.share) * BUCKETS)) !== bucket) continue;
        if (only >= 0 && line.to !== only) continue;
        g.moveTo(line.x1, line.y1);
        g.lineTo(line.x2, line.y2);
      }
      const strength = (bucket + 0.5) / BUCKETS;
      g.strokeStyle = signColour(sign);
      g.globalAlpha = Math.min(1, (only >= 0 ? 0.25 : layer === 1 ? 0.05 : 0.08) + strength * 0.75 + 0.2 * glow);
      g.lineWidth = (layer === 1 ? 0.5 : 0.6) + strength * (layer === 1 ? 1.6 : 3.4) + 0.8 * glow;
      g.stroke();
    }
  }
  g.globalAlpha = 1;
}

function drawGrid(painter: Painter, view: View, { x, y, size }: Grid, lit: number): void {
  painter.box(x, y, size, size, { fill: "#000" });
  painter.g.save();
  painter.g.beginPath();
  painter.g.rect(x, y, size, size * lit);
  painter.g.clip();
  painter.picture(view.answer.layers[0], x, y, size);
  painter.g.restore();
  if (size > 150) {
    painter.grid(x, y, size, SIDE, "#000", 0.5);
  }
  if (lit > 0 && lit < 1) painter.line(x, y + size * lit, x + size, y + size * lit, COLOUR.activation, 2);
  painter.box(x - 0.5, y - 0.5, size + 1, size + 1, { stroke: COLOUR.faint, radius: 2 });
}

/** A layer that is still dark, or lit already, is drawn once; one by one are the neurons that light up, and all at the end. */
function drawLayer(painter: Painter, view: View, places: Spot[], position: number): void {
  const { neuron: { layer }, x, y, r } = places[0], from = STAGES[layer + 1] - 0.07, to = STAGES[layer + 1];
  const state = position <= from ? 0 : position >= to && position < 1 ? to : null;
  if (state === null) return places.forEach((spot) => drawNeuron(painter, view, spot, position));
  const kept = painter.kept(view.answer, `layer ${layer} ${state}`, (own) => places.forEach((spot) => drawNeuron(own, view, spot, state)));
  const { isTall } = gridOf(painter.width, painter.height), middle = isTall ? y : x;
  painter.show(kept, isTall, middle - r - 10, middle + r + 50);
}

function drawNeuron(painter: Painter, view: View, { neuron, x, y, r }: Spot, position: number): void {
  const { layer, index } = neuron, arrived = phase(position, STAGES[layer + 1] - 0.07, STAGES[layer + 1]);
  const isEnd = layer === 3 && !view.isBlank && index === view.answer.digit && arrived >= 1;
  const isChosen = view.neuron.layer === layer && view.neuron.index === index && position >= 1;
  const largest = view.network.activation === "relu" && layer < 3 ? Math.max(1, ...view.answer.layers[layer]) : 1;
  painter.neuron(x, y, r, view.answer.layers[layer][index] * arrived / largest, {
    ring: isChosen || isEnd ? COLOUR.activation : COLOUR.ghost,
    line: isChosen || isEnd ? 2.5 : 1.2,
    hasNumber: false,
    isOff: view.off.has(key(neuron)),
  });
  const value = view.answer.layers[layer][index];
  if (r >= 12.5 && arrived >= 1 && !view.off.has(key(neuron))) {
    painter.text(value >= 9.95 ? value.toFixed(0) : value >= 0.995 ? value.toFixed(1) : value.toFixed(2).slice(1), x, y + 0.5, {
      size: Math.min(12, r * 0.72), colour: value / largest > 0.42 ? COLOUR.stage : value / largest > 0.2 ? COLOUR.text : COLOUR.dim,
    });
  }
  if (layer < 3) return;
  const colour = isEnd ? COLOUR.activation : COLOUR.dim;
  if (painter.isNarrow) {
    painter.text(String(index), x, y + r + 13, { size: 16, colour });
  } else {
    painter.text(String(index), x + r + 16, y + 1, { size: isEnd ? 22 : 18, colour });
    if (isEnd) painter.box(x - r - 6, y - r - 4, 2 * r + 40, 2 * r + 8, { stroke: COLOUR.activation, radius: 6, line: 1.5 });
  }
}

function drawCaptions(painter: Painter, grid: Grid, places: Spot[]): void {
  if (grid.isTall) {
    const style = { size: 12, colour: COLOUR.dim, align: "left" as const };
    painter.text("784 pixels", 8, grid.y + 10, style);
    return;
  }
  const y = painter.height - 14, style = { size: 14, colour: COLOUR.dim };
  painter.text("784 pixels", grid.x + grid.size / 2, Math.min(y, grid.y + grid.size + 22), style);
  ["layer 1", "layer 2", "outputs"].forEach((name, i) => {
    const spot = places.find((one) => one.neuron.layer === i + 1)!;
    painter.text(name, spot.x + (i === 2 ? 8 : 0), y, style);
  });
}
