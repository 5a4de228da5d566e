import { expect, test } from "vitest";
import { type Grey, resize, toMnist, toUncentred } from "../src/mnist";
import { SIDE } from "../src/network";

const SIZE = 256;

/** A drawing with rectangles of ink: left, top, width, height. */
function drawing(...rectangles: [number, number, number, number][]): Grey {
  const data = new Float64Array(SIZE * SIZE);
  for (const [left, top, width, height] of rectangles) {
    for (let y = top; y < top + height; y += 1) data.fill(255, y * SIZE + left, y * SIZE + left + width);
  }
  return { width: SIZE, height: SIZE, data };
}

const centre = (pixels: Uint8Array): [number, number] => {
  let sum = 0, x = 0, y = 0;
  pixels.forEach((value, i) => {
    sum += value;
    x += value * (i % SIDE);
    y += value * Math.floor(i / SIDE);
  });
  return [x / sum, y / sum];
};

test("nothing, and the first dot of a stroke, are no digit yet", () => {
  expect(toMnist(drawing())).toBeNull();
  expect(toMnist(drawing([100, 100, 20, 20]))).toBeNull();
});

test.each([[[10, 10, 20, 120]], [[200, 120, 20, 120]]] as [[number, number, number, number]][])("a stroke at %j is scaled to 20 pixels and its centre of mass moved to the middle", (stroke) => {
  const found = toMnist(drawing(stroke))!;
  expect(Math.max(found.to.width, found.to.height)).toBe(20);
  const [x, y] = centre(found.pixels);
  expect(Math.abs(x - 13.5)).toBeLessThanOrEqual(0.5);
  expect(Math.abs(y - 13.5)).toBeLessThanOrEqual(0.5);
  expect(Math.max(...found.pixels)).toBe(255);
});

test("where a drawing stands makes no difference", () => {
  const [one, other] = [[20, 30], [120, 60]].map(([x, y]) => toMnist(drawing([x, y, 100, 20], [x + 40, y, 20, 150]))!);
  expect([...one.pixels]).toEqual([...other.pixels]);
});

test("a hairline is thickened to the breadth of MNIST's pens", () => {
  const ink = (pixels: Uint8Array) => pixels.reduce((sum, value) => sum + value, 0) / 255;
  expect(ink(toMnist(drawing([50, 20, 2, 200]))!.pixels)).toBeGreaterThan(30);
});

test("a drawing wider than high is compressed, and all of it is moved", () => {
  const { from, to } = toMnist(drawing([20, 100, 200, 20], [200, 100, 20, 100]))!;
  expect(to.height).toBe(20);
  expect(to.width).toBeLessThanOrEqual(19);
  expect(from.x).toBeLessThanOrEqual(20);
  expect(from.x + from.width).toBeGreaterThanOrEqual(220);
});

test("a faint stroke becomes as dark as the others", () => {
  const levels = drawing([60, 40, 100, 20], [140, 40, 20, 160]);
  for (let y = 80; y < 200; y += 1) levels.data.fill(130, y * SIZE + 140, y * SIZE + 160);
  const rows = Array.from({ length: SIDE }, (_, y) => Math.max(...toMnist(levels)!.pixels.subarray(y * SIDE, (y + 1) * SIDE)));
  expect(Math.min(...rows.slice(14, 25))).toBeGreaterThanOrEqual(240);
});

test("without centring the drawing stays where it is", () => {
  const [x] = centre(toUncentred(drawing([0, 0, 40, 200])));
  expect(x).toBeLessThan(4);
});

test("scaling keeps a plain picture plain", () => {
  const data = new Float64Array(60 * 60).fill(120);
  expect(new Set(resize({ width: 60, height: 60, data }, 20, 20).data)).toEqual(new Set([120]));
});
