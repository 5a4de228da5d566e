// What scenes draw with: text, formulas, neurons, and pictures of 28x28 values, on a canvas in CSS pixels.

import { SIDE, type Values } from "./network";

export const COLOUR = {
  stage: "#0d1017", panel: "#151a24", edge: "#2a3140", faint: "#3a4354", dim: "#93a0b4", text: "#eef2f7",
  positive: "#58c4dd", negative: "#fc6255", activation: "#ffe066", bias: "#5cd0b3", ghost: "#6b7688",
};

export const SERIF = "'Film Serif', 'Latin Modern Roman', Georgia, serif";
export const MATH = "'Film Math', 'Latin Modern Math', Georgia, serif";
export const SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

const LETTERS: Record<string, string> = {
  a: COLOUR.activation, w: COLOUR.positive, W: COLOUR.positive, b: COLOUR.bias,
};

export interface TextStyle {
  size?: number;
  align?: CanvasTextAlign;
  colour?: string;
  font?: string;
  alpha?: number;
}

const drawings = new WeakMap<object, Map<string, HTMLCanvasElement>>();

export class Painter {
  constructor(readonly g: CanvasRenderingContext2D, readonly width: number, readonly height: number) {}

  /** As on a phone: too narrow for what stands side by side elsewhere. */
  get isNarrow(): boolean {
    return this.width < 520;
  }

  clear(): void {
    this.g.fillStyle = COLOUR.stage;
    this.g.fillRect(0, 0, this.width, this.height);
  }

  text(content: string, x: number, y: number, style: TextStyle = {}): void {
    const { size = 14, align = "center", colour = COLOUR.text, font = SANS, alpha = 1 } = style;
    this.g.font = `${size}px ${font}`;
    this.g.textAlign = align;
    this.g.textBaseline = "middle";
    this.g.globalAlpha = alpha;
    this.g.fillStyle = colour;
    this.g.fillText(content, x, y);
    this.g.globalAlpha = 1;
  }

  /** A formula: `*z*` is a letter of it, `_1_` and `^1^` are set low and high, `[+0.25]` and `{...}` are coloured. */
  formula(markup: string, x: number, y: number, style: TextStyle = {}): number {
    const { size = 20, align = "center", colour = COLOUR.text, alpha = 1 } = style;
    const pieces = parse(markup), widths = pieces.map((piece) => this.measure(piece, size));
    const total = widths.reduce((sum, width) => sum + width, 0);
    let at = x - (align === "center" ? total / 2 : align === "right" ? total : 0);
    pieces.forEach((piece, i) => {
      const small = piece.raised !== 0;
      this.text(piece.text, at, y - piece.raised * size * 0.32, {
        size: small ? size * 0.68 : size, align: "left", font: piece.isLetter ? MATH : SERIF,
        colour: piece.colour ?? colour, alpha,
      });
      at += widths[i];
    });
    return total;
  }

  private measure(piece: Piece, size: number): number {
    this.g.font = `${piece.raised ? size * 0.68 : size}px ${piece.isLetter ? MATH : SERIF}`;
    return this.g.measureText(piece.text).width;
  }

  line(x1: number, y1: number, x2: number, y2: number, colour: string = COLOUR.dim, width = 1, alpha = 1): void {
    this.g.globalAlpha = alpha;
    this.g.strokeStyle = colour;
    this.g.lineWidth = width;
    this.g.beginPath();
    this.g.moveTo(x1, y1);
    this.g.lineTo(x2, y2);
    this.g.stroke();
    this.g.globalAlpha = 1;
  }

  /** What does not move, drawn once and kept for its owner: the same picture on every further frame. */
  kept(owner: object, name: string, draw: (painter: Painter) => void): HTMLCanvasElement {
    const { width, height } = this.g.canvas, known = drawings.get(owner) ?? new Map<string, HTMLCanvasElement>(), found = known.get(name);
    drawings.set(owner, known);
    if (found && found.width === width && found.height === height) return found;
    const canvas = document.createElement("canvas"), g = canvas.getContext("2d")!, ratio = width / this.width;
    [canvas.width, canvas.height] = [width, height];
    g.scale(ratio, ratio);
    draw(new Painter(g, this.width, this.height));
    known.set(name, canvas);
    return canvas;
  }

  /** A part of such a picture, in its place: from x or y of `from` to `to`. */
  show(picture: HTMLCanvasElement, isTall = false, from = 0, to = isTall ? this.height : this.width, alpha = 1): void {
    const ratio = picture.width / this.width, first = Math.max(0, Math.round(from * ratio)), length = Math.round(to * ratio) - first;
    if (length <= 0 || alpha <= 0) return;
    this.g.globalAlpha = alpha;
    const [x, y, w, h] = isTall ? [0, first, picture.width, length] : [first, 0, length, picture.height];
    this.g.drawImage(picture, x, y, w, h, x / ratio, y / ratio, w / ratio, h / ratio);
    this.g.globalAlpha = 1;
  }

  /** The lines between n by n cells, as one stroke. */
  grid(x: number, y: number, size: number, n: number, colour: string, alpha = 1, width = 1): void {
    this.g.globalAlpha = alpha;
    this.g.strokeStyle = colour;
    this.g.lineWidth = width;
    this.g.beginPath();
    for (let k = 1; k < n; k += 1) {
      this.g.moveTo(x + k * size / n, y);
      this.g.lineTo(x + k * size / n, y + size);
      this.g.moveTo(x, y + k * size / n);
      this.g.lineTo(x + size, y + k * size / n);
    }
    this.g.stroke();
    this.g.globalAlpha = 1;
  }

  arrow(x1: number, y1: number, x2: number, y2: number, colour: string = COLOUR.text, width = 2): void {
    const length = Math.hypot(x2 - x1, y2 - y1);
    if (length < 1) return;
    const [ux, uy] = [(x2 - x1) / length, (y2 - y1) / length], head = Math.min(10, length);
    this.line(x1, y1, x2 - ux * head * 0.8, y2 - uy * head * 0.8, colour, width);
    this.g.fillStyle = colour;
    this.g.beginPath();
    this.g.moveTo(x2, y2);
    this.g.lineTo(x2 - ux * head - uy * head * 0.5, y2 - uy * head + ux * head * 0.5);
    this.g.lineTo(x2 - ux * head + uy * head * 0.5, y2 - uy * head - ux * head * 0.5);
    this.g.fill();
  }

  box(x: number, y: number, width: number, height: number, { fill, stroke, radius = 0, line = 1, alpha = 1 }:
  { fill?: string; stroke?: string; radius?: number; line?: number; alpha?: number }): void {
    this.g.globalAlpha = alpha;
    this.g.beginPath();
    this.g.roundRect(x, y, width, height, Math.max(0, Math.min(radius, width / 2, height / 2)));
    if (fill) {
      this.g.fillStyle = fill;
      this.g.fill();
    }
    if (stroke) {
      this.g.strokeStyle = stroke;
      this.g.lineWidth = line;
      this.g.stroke();
    }
    this.g.globalAlpha = 1;
  }

  /** A neuron as in the film: a circle as bright as its activation, the number inside where there is room for it. */
  neuron(x: number, y: number, r: number, activation: number, { ring = COLOUR.dim, line = 1.5, alpha = 1, hasNumber = r >= 13, isOff = false } = {}): void {
    const level = Math.round(255 * Math.min(1, Math.max(0, activation)));
    this.g.globalAlpha = alpha;
    this.g.beginPath();
    this.g.arc(x, y, r, 0, 2 * Math.PI);
    this.g.fillStyle = isOff ? COLOUR.stage : `rgb(${level} ${level} ${level})`;
    this.g.fill();
    this.g.strokeStyle = ring;
    this.g.lineWidth = line;
    this.g.stroke();
    this.g.globalAlpha = 1;
    if (isOff) return this.line(x - r * 0.6, y - r * 0.6, x + r * 0.6, y + r * 0.6, COLOUR.negative, 2, alpha);
    if (hasNumber) {
      this.text(short(activation), x, y + 0.5, { size: Math.min(16, r * 0.72), colour: level > 107 ? COLOUR.stage : "#dfe6ef", alpha });
    }
  }

  /** 28x28 values as a picture with a hairline around it. */
  picture(values: Values, x: number, y: number, size: number, { isSigned = false, isSmooth = false, alpha = 1 } = {}): void {
    this.g.globalAlpha = alpha;
    this.g.imageSmoothingEnabled = isSmooth;
    this.g.drawImage(rastered(values, isSigned), x, y, size, size);
    this.g.globalAlpha = 1;
    this.box(x - 0.5, y - 0.5, size + 1, size + 1, { stroke: COLOUR.edge });
  }
}

/** A number as it stands in a neuron: `.93`, `1.0`, `12`. */
export function short(value: number): string {
  const magnitude = Math.abs(value), sign = value < 0 ? "\u2212" : "";
  if (magnitude >= 9.95) return sign + magnitude.toFixed(0);
  if (magnitude >= 0.995) return sign + magnitude.toFixed(1);
  return sign + magnitude.toFixed(2).slice(1);
}

export const signed = (value: number, digits = 2): string => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
export const fixed = (value: number, digits = 2): string => (value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(digits);

export const signColour = (value: number): string => (value < 0 ? COLOUR.negative : COLOUR.positive);

const LEVELS = 255;
const rgb = (r: number, g: number, b: number): number => (255 << 24 | b << 16 | g << 8 | r) >>> 0; // as ImageData has it
const GREYS = Uint32Array.from({ length: LEVELS + 1 }, (_, level) => rgb(level, level, level));
/** From the most negative, red, over black to the most positive, blue; the eye tells dark colours apart less well. */
const SIGNED = Uint32Array.from({ length: 2 * LEVELS + 1 }, (_, i) => {
  const share = (Math.abs(i - LEVELS) / LEVELS) ** 0.7, [r, g, b] = i > LEVELS ? [88, 196, 221] : [252, 98, 85];
  return rgb(r * share, g * share, b * share);
});

const rasters = new WeakMap<Values, HTMLCanvasElement>();

/** Values as a picture, kept: grey from 0 to 1; or signed, black at 0, the largest at full colour. */
export function rastered(values: Values, isSigned: boolean, width: number = SIDE): HTMLCanvasElement {
  const found = rasters.get(values) ?? raster(document.createElement("canvas"), values, isSigned, width);
  rasters.set(values, found);
  return found;
}

/** Values row by row onto a canvas, a pixel each. */
export function raster(canvas: HTMLCanvasElement, values: Values, isSigned: boolean, width: number): HTMLCanvasElement {
  const image = new ImageData(width, values.length / width), out = new Uint32Array(image.data.buffer);
  let most = 1e-9;
  if (isSigned) for (let i = 0; i < values.length; i += 1) most = Math.max(most, Math.abs(values[i]));
  for (let i = 0; i < values.length; i += 1) {
    out[i] = isSigned ? SIGNED[LEVELS + Math.round(values[i] / most * LEVELS)] : GREYS[Math.round(Math.min(1, Math.max(0, values[i])) * LEVELS)];
  }
  if (canvas.width !== width || canvas.height !== image.height) [canvas.width, canvas.height] = [width, image.height];
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  return canvas;
}

/** `kind` is what a coloured value is: an activation, a bias, or a number above or below 0. */
export interface Piece { text: string; isLetter: boolean; raised: number; colour: string | undefined; kind: Kind | "" }
type Kind = "activation" | "bias" | "positive" | "negative";

/** The markup of `formula`, piece by piece; the words of a page use it too. */
export function parse(markup: string): Piece[] {
  const pieces: Piece[] = [];
  const add = (text: string, more: Partial<Piece> = {}) => pieces.push({ text, isLetter: false, raised: 0, colour: undefined, kind: "", ...more });
  for (const [whole, letter, low, high, value] of markup.matchAll(/\*([^*]+)\*|_([^_]+)_|\^([^^]+)\^|\[([^\]]+)\]|[^*_^[]+/g)) {
    if (letter) add(letter, { isLetter: true, colour: LETTERS[letter[0]] });
    else if (low) add(low, { raised: -1 });
    else if (high) add(high, { raised: 1 });
    else if (value) add(value.replace(/^[abw]/, ""), { colour: COLOUR[kindOf(value)], kind: kindOf(value) });
    else add(whole);
  }
  return pieces;
}

/** `[a0.93]` is an activation, `[b-4.40]` a bias, `[+0.25]` and `[w-0.25]` have the colour of their sign. */
function kindOf(value: string): Kind {
  if (value[0] === "a") return "activation";
  if (value[0] === "b") return "bias";
  return /^w?[-\u2212]/.test(value) ? "negative" : "positive";
}
