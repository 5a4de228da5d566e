// A drawing, light on black, brought into MNIST's form: what the client's preparation.py does to it, to a grey level.
//
// MNIST's digits are scaled into 20x20 pixels with their proportions kept, and put into 28x28 so that the centre of
// mass is in the middle. A network that was trained on such pictures wants no others.

import { SIDE } from "./network";

const BOX = 20;
const FAINTEST_INK = 25;
const SMALLEST = 1 / 7; // of the side: anything smaller is the first dot of a stroke
const EDGE = 0.3; // of the fullest ink: fainter pixels are no part of the digit's extent
const ENLARGEMENT = 8; // pixels for each of the 28x28, at which the pen is measured and changed
const PEN = 2.3; // pixels in the box: the median of MNIST's pens, to which a thinner one is broadened
const BROADEST_PEN = 3.0; // what a broader one is thinned to, so that it does not fill the digit's holes
const WIDEST = 0.9; // largest width over height; a wider digit is compressed to it
const PRESSURE_REACH = 2; // pixels of the 28x28 around a pixel; the fullest ink among them becomes full
const FAINTEST_STROKE = 0.15; // of the fullest ink: a stroke below it stays fainter than the others

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
  const ink = { ...levels, data: levels.data.map((v) => (v >= FAINTEST_INK ? v / 255 : 0)) };
  const extent = boundsOf(ink, EDGE * largest(ink.data), true)!;
  const large = enlarged(crop(ink, extent)), { picture, left, top } = withAPenLikeMnists(large);
  const across = extent.width / large.width, down = extent.height / large.height;
  const from = { x: extent.x + left * across, y: extent.y + top * down, width: picture.width * across, height: picture.height * down };
  return { ...place(picture), from, massBefore: centreOf(ink) };
}

/** The drawing scaled down as it stands, without centring: what the network would get if nobody moved it. */
export function toUncentred(levels: Grey): Uint8Array {
  return Uint8Array.from(resize(levels, SIDE, SIDE).data, halfToEven);
}

export const isAnyInk = ({ data }: Grey): boolean => data.some((value) => value >= FAINTEST_INK);

function boundsOf({ width, height, data }: Grey, least: number, isAbove = false) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const value = data[y * width + x];
      if (isAbove ? value <= least : value < least) continue;
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

const largest = (values: Float64Array): number => values.reduce((a, b) => Math.max(a, b), 0);

/** The digit with its longer side of BOX x ENLARGEMENT, at most WIDEST. */
function enlarged(digit: Grey): Grey {
  const compressed = Math.min(digit.width, WIDEST * digit.height), scale = BOX * ENLARGEMENT / Math.max(compressed, digit.height);
  const [width, height] = [compressed, digit.height].map((n) => Math.max(1, halfToEven(n * scale)));
  const picture = resize(digit, width, height, scale < 1 ? BOX_FILTER : BICUBIC);
  picture.data.forEach((value, i) => { picture.data[i] = Math.min(1, Math.max(0, value)); });
  return picture;
}

/** A thin pen broadened, a broad one thinned, and where on the digit the picture begins. The digit is scaled by what its outline gains or loses. */
function withAPenLikeMnists(digit: Grey): { picture: Grey; left: number; top: number } {
  const pen = penWidth(digit) / ENLARGEMENT, target = Math.min(Math.max(pen, PEN), BROADEST_PEN);
  const by = halfToEven((target - pen) * BOX / (BOX - target) * ENLARGEMENT / 2);
  return by >= 0 ? { picture: grown(digit, by), left: -by, top: -by } : thinned(digit, -by);
}

/** The digit thinned by so many pixels on all sides; a stroke too thin to outlast it stays as it is. */
function thinned(digit: Grey, by: number): { picture: Grey; left: number; top: number } {
  const padded = padding(digit, 2 * by), inverted = { ...padded, data: padded.data.map((v) => 1 - v) };
  const eroded = inner(grown(inverted, by), by);
  eroded.data.forEach((value, i) => { eroded.data[i] = 1 - value; });
  const opened = inner(grown(eroded, by), by);
  const data = eroded.data.map((v, i) => Math.max(v, padded.data[i] - Math.min(padded.data[i], opened.data[i])));
  const whole = { ...padded, data }, extent = boundsOf(whole, EDGE * largest(data), true)!;
  return { picture: crop(whole, extent), left: extent.x - 2 * by, top: extent.y - 2 * by };
}

const inner = (grey: Grey, by: number): Grey => crop(grey, { x: by, y: by, width: grey.width - 2 * by, height: grey.height - 2 * by });

/** Pixels across the pen's line: the area over half the length of its outline, which is counted along both axes. */
function penWidth({ width, height, data }: Grey): number {
  const half = 0.5 * largest(data);
  let area = 0, outline = 0;
  const at = (x: number, y: number) => Number(x >= 0 && y >= 0 && x < width && y < height && data[y * width + x] > half);
  for (let y = -1; y < height; y += 1) {
    for (let x = -1; x < width; x += 1) {
      area += at(x, y);
      outline += Math.abs(at(x + 1, y) - at(x, y)) + Math.abs(at(x, y + 1) - at(x, y));
    }
  }
  return 2 * area / (outline * Math.PI / 4);
}

/** The digit grown by so many pixels on all sides: by crosses and squares in turn, which together make octagons. */
function grown(digit: Grey, by: number): Grey {
  const { width, height, data: padded } = padding(digit, by);
  let data = padded;
  for (let step = 0; step < by; step += 1) data = grownByOne(data, width, height, step % 2 === 1);
  return { width, height, data };
}

function padding(grey: Grey, by: number): Grey {
  const width = grey.width + 2 * by, height = grey.height + 2 * by, data = new Float64Array(width * height);
  for (let y = 0; y < grey.height; y += 1) {
    data.set(grey.data.subarray(y * grey.width, (y + 1) * grey.width), (y + by) * width + by);
  }
  return { width, height, data };
}

function grownByOne(data: Float64Array, width: number, height: number, isSquare: boolean): Float64Array {
  const rows = new Float64Array(data.length), out = new Float64Array(data.length);
  const at = (values: Float64Array, x: number, y: number) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : values[y * width + x]);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) rows[y * width + x] = Math.max(at(data, x, y - 1), data[y * width + x], at(data, x, y + 1));
  }
  const beside = isSquare ? rows : data;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) out[y * width + x] = Math.max(at(beside, x - 1, y), rows[y * width + x], at(beside, x + 1, y));
  }
  return out;
}

function place(picture: Grey): Pick<Centred, "pixels" | "to" | "digit"> {
  const scale = BOX / Math.max(picture.width, picture.height);
  const width = Math.max(1, halfToEven(picture.width * scale)), height = Math.max(1, halfToEven(picture.height * scale));
  const digit = resize(picture, width, height), most = largest(digit.data);
  digit.data.forEach((value, i) => { digit.data[i] = value / most; });
  const around = inner(grown(digit, PRESSURE_REACH), PRESSURE_REACH).data;
  digit.data.forEach((value, i) => { digit.data[i] = value / Math.max(around[i], FAINTEST_STROKE) * 255; });
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

interface Filter { readonly support: number; readonly weight: (distance: number) => number }

const BOX_FILTER: Filter = { support: 0.5, weight: (x) => Number(x > -0.5 && x <= 0.5) };
const BICUBIC: Filter = { support: 2, weight: (x) => bicubic(Math.abs(x)) };

/** Keys' cubic convolution with a = -0.5, as in Pillow. */
function bicubic(x: number): number {
  const a = -0.5;
  return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** As Pillow does it on float32: first along the rows, then along the columns. */
export function resize(grey: Grey, width: number, height: number, filter: Filter = BOX_FILTER): Grey {
  const across = resizeRows(grey, width, filter);
  return transpose(resizeRows(transpose(across), height, filter));
}

function resizeRows(grey: Grey, size: number, { support: reach, weight }: Filter): Grey {
  const { width, height, data } = grey, scale = width / size, support = reach * Math.max(scale, 1), inverse = 1 / Math.max(scale, 1);
  if (size === width) return grey;
  const out = new Float64Array(size * height);
  for (let to = 0; to < size; to += 1) {
    const centre = (to + 0.5) * scale, first = Math.max(0, Math.trunc(centre - support + 0.5)), weights: number[] = [];
    for (let from = first; from < Math.min(width, Math.trunc(centre + support + 0.5)); from += 1) {
      weights.push(weight((from - centre + 0.5) * inverse)); // not a division: at the edge of the box the last bit decides
    }
    const total = weights.reduce((a, b) => a + b, 0);
    for (let y = 0; y < height; y += 1) {
      let sum = 0;
      for (let k = 0; k < weights.length; k += 1) sum += data[y * width + first + k] * (weights[k] / total);
      out[y * size + to] = Math.fround(sum);
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
