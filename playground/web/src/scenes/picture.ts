// The picture: 784 numbers, and how a drawing is moved into the middle before the network sees it.

import { SIDE, type Values } from "../network";
import { phase } from "../motion";
import { COLOUR, fixed, type Painter, rastered } from "../painter";
import type { Centring, Scene, View } from "../view";

export const pixels: Scene = {
  seconds: 3,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter, ink = view.answer.layers[0];
    const size = isNarrow ? Math.min(width - 16, height - 54) : Math.min(width * 0.7, height - 56);
    const x = isNarrow ? (width - size) / 2 : width * 0.04, y = isNarrow ? 8 : (height - size) / 2 - 6, cell = size / SIDE;
    const inked = inkedPixels(ink), at = inked[Math.min(inked.length - 1, Math.floor(position * inked.length))] ?? 406;
    painter.show(painter.kept(view.answer, "numbers", (own) => {
      own.picture(ink, x, y, size);
      drawNumbers(own, ink, { x, y, cell });
    }));
    painter.box(x + (at % SIDE) * cell - 1, y + Math.floor(at / SIDE) * cell - 1, cell + 2, cell + 2, { stroke: COLOUR.activation, line: 2.5 });
    if (isNarrow) {
      painter.formula(`pixel *a*_${at}_ = [a${fixed(ink[at])}]`, width / 2, y + size + 24, { size: 20 });
    } else {
      drawColumn(painter, ink, at, x + size + (width - x - size) / 2);
    }
  },
  stage: (_, view) => (view.isBlank ? "no ink" : "pixel by pixel"),
};

function inkedPixels(ink: Values): number[] {
  return [...ink.keys()].filter((i) => ink[i] > 0);
}

function drawNumbers(painter: Painter, ink: Values, { x, y, cell }: { x: number; y: number; cell: number }): void {
  if (cell >= 15) {
    ink.forEach((value, i) => {
      if (value === 0) return;
      painter.text(value >= 0.995 ? "1" : value.toFixed(2).slice(1), x + (i % SIDE + 0.5) * cell, y + (Math.floor(i / SIDE) + 0.5) * cell + 0.5, {
        size: cell * 0.46, colour: value > 0.55 ? "#10141c" : "#aeb8c6",
      });
    });
  }
  painter.grid(x, y, SIDE * cell, SIDE, COLOUR.edge, 0.8, 0.5);
}

/** The picture as a column of numbers, in the order of the rows; the part around one pixel is shown. */
function drawColumn(painter: Painter, ink: Values, at: number, x: number): void {
  const { height } = painter, rows = 11, gap = Math.min(44, (height - 150) / rows), top = height / 2 - rows * gap / 2;
  const first = Math.min(Math.max(0, at - 5), 784 - rows);
  painter.formula("*a*_0_", x, top - 40, { size: 18, colour: COLOUR.dim });
  painter.text("\u22ee", x, top - 14, { size: 18, colour: COLOUR.dim });
  for (let k = 0; k < rows; k += 1) {
    const i = first + k, y = top + (k + 0.5) * gap, isAt = i === at;
    painter.neuron(x - 20, y, gap * 0.36, ink[i], { ring: isAt ? COLOUR.activation : COLOUR.faint, line: isAt ? 2.5 : 1, hasNumber: false });
    painter.formula(`*a*_${i}_`, x - 44, y, { size: 15, align: "right", alpha: isAt ? 1 : 0.55 });
    painter.formula(`[a${fixed(ink[i])}]`, x + 4, y, { size: isAt ? 22 : 16, align: "left", alpha: isAt ? 1 : 0.55 });
  }
  painter.text("\u22ee", x, top + rows * gap + 14, { size: 18, colour: COLOUR.dim });
  painter.formula("*a*_783_", x, top + rows * gap + 40, { size: 18, colour: COLOUR.dim });
}

export const centring: Scene = {
  seconds: 2.4,
  draw(painter, view, position) {
    if (!view.centring) return drawNothingMoved(painter, view);
    const { width, height, isNarrow } = painter, { steps, side, uncentred } = view.centring;
    const size = isNarrow ? (width - 36) / 2 : Math.min((width - 130) / 2, height - 150);
    const left = isNarrow ? 12 : (width - 2 * size - 70) / 2, right = width - left - size, y = isNarrow ? 40 : (height - size) / 2 - 14;
    painter.text("as it was drawn", left + size / 2, y - 18, { size: isNarrow ? 13 : 16, colour: COLOUR.dim });
    painter.text("as the network gets it", right + size / 2, y - 18, { size: isNarrow ? 13 : 16, colour: COLOUR.dim });
    painter.picture(uncentred.layers[0], left, y, size);
    drawMoving(painter, view.centring, right, y, size, position);
    const scale = size / side, { from } = steps;
    painter.box(left + from.x * scale, y + from.y * scale, from.width * scale, from.height * scale, { stroke: COLOUR.activation, line: 1.5 });
    cross(painter, left + (steps.massBefore[0] + 0.5) * scale, y + (steps.massBefore[1] + 0.5) * scale, COLOUR.negative);
    const low = y + size + (isNarrow ? 24 : 34);
    reading(painter, uncentred, left + size / 2, low);
    reading(painter, view.answer, right + size / 2, low, phase(position, 0.7, 1));
  },
  stage: (position) => (position < 0.45 ? "scaled into 20 x 20" : position < 1 ? "centre of mass to the middle" : "centred"),
};

/** The cut-out digit on its way: from where it was drawn to its size, then to its place. */
function drawMoving(painter: Painter, { steps, side }: Centring, x: number, y: number, size: number, position: number): void {
  const cell = size / SIDE, { from, to, digit } = steps;
  painter.box(x, y, size, size, { fill: "#000", stroke: COLOUR.edge });
  const scaled = phase(position, 0, 0.45), moved = phase(position, 0.5, 1), scale = size / side;
  const middle = [(from.x + from.width / 2) * scale, (from.y + from.height / 2) * scale];
  const width = mix(from.width * scale, to.width * cell, scaled), height = mix(from.height * scale, to.height * cell, scaled);
  const left = mix(middle[0], (to.x + to.width / 2) * cell, moved) - width / 2;
  const top = mix(middle[1], (to.y + to.height / 2) * cell, moved) - height / 2;
  painter.g.save();
  painter.g.beginPath();
  painter.g.rect(x, y, size, size);
  painter.g.clip();
  painter.g.imageSmoothingEnabled = false;
  painter.g.drawImage(rastered(shares(digit.data), false, digit.width), x + left, y + top, width, height);
  painter.g.restore();
  painter.box(x + left, y + top, width, height, { stroke: COLOUR.activation, line: 1.5, alpha: 1 - phase(position, 0.9, 1) * 0.6 });
  cross(painter, x + size / 2, y + size / 2, COLOUR.bias);
}

const mix = (from: number, to: number, share: number): number => from + (to - from) * share;

function cross(painter: Painter, x: number, y: number, colour: string): void {
  painter.line(x - 9, y, x + 9, y, colour, 2);
  painter.line(x, y - 9, x, y + 9, colour, 2);
}

function reading(painter: Painter, { layers, digit }: View["answer"], x: number, y: number, alpha = 1): void {
  painter.formula(`reads ${digit}, activation [a${fixed(layers[3][digit])}]`, x, y, { size: painter.isNarrow ? 15 : 20, alpha });
}

function drawNothingMoved(painter: Painter, view: View): void {
  const { width, height } = painter, size = Math.min(width - 40, height - 120);
  painter.picture(view.answer.layers[0], (width - size) / 2, 24, size);
  cross(painter, width / 2, 24 + size / 2, COLOUR.bias);
  painter.text("This one is of MNIST, and centred already.", width / 2, size + 54, { size: 15 });
  painter.text("Draw a digit in a corner to see it moved.", width / 2, size + 78, { size: 15, colour: COLOUR.dim });
}

const known = new WeakMap<Values, Values>();

/** Levels of 0 to 255 as shares. */
function shares(levels: Values): Values {
  const found = known.get(levels) ?? levels.map((level) => level / 255);
  known.set(levels, found);
  return found;
}
