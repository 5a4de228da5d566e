// A drawing, light on black, brought into MNIST's form: what the client's image.py does to it, to a grey level.
//
// MNIST's digits are scaled into 20x20 pixels with their proportions kept, and put into 28x28 so that the centre of
// mass is in the middle. A network that was trained on such pictures wants no others.

import { SIDE } from "./network";

const BOX = 20;
const FAINTEST_INK = 25;
const SMALLEST = 1 / 7; // of the side: anything smaller is the first dot of a stroke
const THINNEST_STROKE = 2; // pixels in the box

export interface Grey { readonly width: number; readonly height: number; readonly data: Float64Array }

/** The pixels, and how they came about: where the ink was on the drawing, and where it went. */
export interface Centred {
  readonly pixels: Uint8Array;
  readonly from: { readonly x: number; readonly y: number; readonly width: number; readonly height: number };
  readonly to: { readonly x: number; readonly y: number; readonly width: number; readonly height: number };
  readonly digit: Grey;
  readonly massBefore: readonly [number, number];
}

/** The drawing in MNIST's form; null where it shows too little. Levels are 0 to 255; at most 256 a side. */
export function toMnist(levels: Grey): Centred | null {
  const bounds = boundsOf(levels, FAINTEST_INK);
  if (!bounds || Math.max(bounds.width, bounds.height) < SMALLEST * Math.max(levels.width, levels.height)) return null;
  const inked = { ...levels, data: levels.data.map((v) => (v >= FAINTEST_INK ? v : 0)) };
  let picture = crop(inked, bounds);
  const scale = Math.max(picture.width, picture.height) / BOX, missing = THINNEST_STROKE * scale - strokeOf(picture);
  let margin = 0;
  if (missing > 1) {
    margin = Math.ceil(missing / 2);
    picture = thicken(picture, margin);
  }
  const from = { x: bounds.x - margin, y: bounds.y - margin, width: picture.width, height: picture.height };
  return { ...place(picture), from, massBefore: centreOf(crop(inked, { x: 0, y: 0, width: levels.width, height: levels.height })) };
}

/** The drawing scaled down as it stands, without centring: what the network would get if nobody moved it. */
export function toUncentred(levels: Grey): Uint8Array {
  return Uint8Array.from(resize(levels, SIDE, SIDE).data);
}

export const isAnyInk = ({ data }: Grey): boolean => data.some((value) => value >= FAINTEST_INK);

function boundsOf({ width, height, data }: Grey, least: number) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (data[y * width + x] < least) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
    }
  }
  return right < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

function crop(grey: Grey, { x, y, width, height }: { x: number; y: number; width: number; height: number }): Grey {
  const data = new Float64Array(width * height);
  for (let row = 0; row < height; row += 1) {
    data.set(grey.data.subarray((y + row) * grey.width + x, (y + row) * grey.width + x + width), row * width);
  }
  return { width, height, data };
}

/** Pixels across the pen's line: the area over half the length of its outline, which is counted along both axes. */
function strokeOf({ width, height, data }: Grey): number {
  let area = 0, outline = 0;
  const at = (x: number, y: number) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x] / 255);
  for (let y = -1; y < height; y += 1) {
    for (let x = -1; x < width; x += 1) {
      area += at(x, y);
      outline += Math.abs(at(x + 1, y) - at(x, y)) + Math.abs(at(x, y + 1) - at(x, y));
    }
  }
  return 2 * area / (outline * Math.PI / 4);
}

/** The greatest of the square around each pixel, on a picture that is wider by the margin. */
function thicken(grey: Grey, margin: number): Grey {
  const width = grey.width + 2 * margin, height = grey.height + 2 * margin;
  const rows = new Float64Array(width * grey.height), data = new Float64Array(width * height);
  for (let y = 0; y < grey.height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      let most = 0;
      for (let k = Math.max(0, x - 2 * margin); k <= Math.min(grey.width - 1, x); k += 1) most = Math.max(most, grey.data[y * grey.width + k]);
      rows[y * width + x] = most;
    }
  }
  for (let y = 0; y < height; y += 1) {
    for (let k = Math.max(0, y - 2 * margin); k <= Math.min(grey.height - 1, y); k += 1) {
      for (let x = 0; x < width; x += 1) data[y * width + x] = Math.max(data[y * width + x], rows[k * width + x]);
    }
  }
  return { width, height, data };
}

function place(picture: Grey): Pick<Centred, "pixels" | "to" | "digit"> {
  const scale = BOX / Math.max(picture.width, picture.height);
  const width = Math.max(1, halfToEven(picture.width * scale)), height = Math.max(1, halfToEven(picture.height * scale));
  const digit = resize(picture, width, height), most = digit.data.reduce((a, b) => Math.max(a, b), 1);
  digit.data.forEach((value, i) => { digit.data[i] = value * (255 / most); });
  const [cx, cy] = centreOf(digit), middle = (SIDE - 1) / 2;
  const x = Math.min(Math.max(halfToEven(middle - cx), 0), SIDE - width);
  const y = Math.min(Math.max(halfToEven(middle - cy), 0), SIDE - height);
  const pixels = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      pixels[(y + row) * SIDE + x + column] = halfToEven(digit.data[row * width + column]);
    }
  }
  return { pixels, to: { x, y, width, height }, digit };
}

function centreOf({ width, height, data }: Grey): [number, number] {
  let sum = 0, x = 0, y = 0;
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const value = data[row * width + column];
      sum += value;
      x += column * value;
      y += row * value;
    }
  }
  return [x / sum, y / sum];
}

/** As Pillow's box filter does it: first along the rows, then along the columns, each rounded to whole levels. */
export function resize(grey: Grey, width: number, height: number): Grey {
  const across = resizeRows(grey, width);
  return transpose(resizeRows(transpose(across), height));
}

const PRECISION = 2 ** 22;

function resizeRows({ width, height, data }: Grey, size: number): Grey {
  const scale = width / size, support = 0.5 * Math.max(scale, 1), inverse = 1 / Math.max(scale, 1), out = new Float64Array(size * height);
  for (let to = 0; to < size; to += 1) {
    const centre = (to + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const weights: number[] = [];
    for (let from = first; from < Math.min(width, Math.trunc(centre + support + 0.5)); from += 1) {
      const distance = (from - centre + 0.5) * inverse; // not a division: at the edge of the box the last bit decides
      weights.push(distance > -0.5 && distance <= 0.5 ? 1 : 0);
    }
    const total = weights.reduce((a, b) => a + b, 0);
    const fixed = weights.map((weight) => Math.trunc(0.5 + weight / total * PRECISION));
    for (let y = 0; y < height; y += 1) {
      let sum = PRECISION / 2;
      for (let k = 0; k < fixed.length; k += 1) sum += data[y * width + first + k] * fixed[k];
      out[y * size + to] = Math.min(255, Math.floor(sum / PRECISION));
    }
  }
  return { width: size, height, data: out };
}

function transpose({ width, height, data }: Grey): Grey {
  const out = new Float64Array(data.length);
  for (let y = 0; y < height; y += 1) for (let x = 0; x < width; x += 1) out[x * height + y] = data[y * width + x];
  return { width: height, height: width, data: out };
}

function halfToEven(value: number): number {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
