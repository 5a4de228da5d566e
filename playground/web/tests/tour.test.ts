import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { percentile } from "../src/calls";
import { Edits } from "../src/edits";
import { Motion, phase } from "../src/motion";
import type { Network } from "../src/network";
import { math } from "../src/chapters";
import { EDGE_R2, HURTS } from "../src/scenes/insight";
import { addressOf, chapterForKey, chapterForSwipe, chapterOf, neighbour, SLUGS, TITLES } from "../src/tour";

describe("the tour", () => {
  test("has an address for each chapter, which leads back to it", () => {
    for (const slug of SLUGS) expect(chapterOf(addressOf(slug))).toBe(slug);
    expect(new Set(Object.values(TITLES)).size).toBe(SLUGS.length);
  });

  test.each(["", "#", "#/nothing", "#/sigmoid/more", "#sigmoid"])("begins at the first for the address %j", (hash) => {
    expect(chapterOf(hash)).toBe("draw");
  });

  test("goes on to the end and no further, and back to the beginning", () => {
    let slug: ReturnType<typeof neighbour> = SLUGS[0];
    const visited = [];
    while (slug) {
      visited.push(slug);
      slug = neighbour(slug, 1);
    }
    expect(visited).toEqual(SLUGS);
    expect(neighbour(SLUGS[0], -1)).toBeNull();
  });

  test("follows the arrow keys, Page Up and Down, Home and End, and no other key", () => {
    expect(chapterForKey("bias", "ArrowRight")).toBe("sigmoid");
    expect(chapterForKey("bias", "PageDown")).toBe("sigmoid");
    expect(chapterForKey("bias", "ArrowLeft")).toBe("sum");
    expect(chapterForKey("bias", "PageUp")).toBe("sum");
    expect(chapterForKey("bias", "Home")).toBe("draw");
    expect(chapterForKey("bias", "End")).toBe("service");
    expect(chapterForKey("bias", "a")).toBeNull();
    expect(chapterForKey("service", "ArrowRight")).toBeNull();
  });

  test("follows a swipe to the side, and neither a short one nor one up or down", () => {
    expect(chapterForSwipe("bias", -120, 10)).toBe("sigmoid");
    expect(chapterForSwipe("bias", 120, -10)).toBe("sum");
    expect(chapterForSwipe("bias", -30, 0)).toBeNull();
    expect(chapterForSwipe("bias", -120, 100)).toBeNull();
  });
});

describe("the motion", () => {
  test("plays from the beginning to the end and stops there", () => {
    const motion = new Motion(2, false);
    motion.start();
    motion.advance(1);
    expect(motion).toMatchObject({ position: 0.5, isPlaying: true });
    motion.advance(5);
    expect(motion).toMatchObject({ position: 1, isPlaying: false });
  });

  test("is at its end at once where motion is to be reduced", () => {
    const motion = new Motion(1, true);
    motion.start();
    expect(motion).toMatchObject({ position: 1, isPlaying: false });
  });

  test("pauses, goes on, and begins again at the end", () => {
    const motion = new Motion(1, false);
    motion.start();
    motion.advance(0.25);
    motion.toggle();
    motion.advance(0.25);
    expect(motion.position).toBe(0.25);
    motion.toggle();
    motion.advance(1);
    motion.toggle();
    expect(motion).toMatchObject({ position: 0, isPlaying: true });
  });

  test("can be scrubbed, within its ends, which pauses it", () => {
    const motion = new Motion(1, false);
    motion.start();
    motion.scrub(0.4);
    expect(motion).toMatchObject({ position: 0.4, isPlaying: false });
    motion.scrub(7);
    expect(motion.position).toBe(1);
  });

  test("a phase is 0 before it and 1 after", () => {
    expect([0, 0.2, 0.3, 0.4, 1].map((position) => phase(position, 0.2, 0.4))).toEqual([0, 0, expect.closeTo(0.5), 1, 1]);
  });
});

describe("edits", () => {
  const values = (n: number) => Float64Array.from({ length: n }, (_, i) => i / n), none = new Float64Array(0);
  const network: Network = { activation: "sigmoid", accuracy: null, weights: [none, values(16 * 784), values(256), values(160)], biases: [none, values(16), values(16), values(10)] };

  test("change a weight and a bias, and leave the network they began with as it is", () => {
    const edits = new Edits(network);
    edits.setWeight({ layer: 2, index: 3 }, 5, 9);
    edits.setBias({ layer: 3, index: 1 }, -2);
    expect(edits.state.network.weights[2][3 * 16 + 5]).toBe(9);
    expect(edits.state.network.biases[3][1]).toBe(-2);
    expect(network.weights[2][3 * 16 + 5]).not.toBe(9);
    expect(edits.isChanged).toBe(true);
  });

  test("are undone one by one, those of one pull at a slider together", () => {
    const edits = new Edits(network);
    for (const value of [1, 2, 3]) edits.setBias({ layer: 1, index: 0 }, value);
    edits.toggle({ layer: 1, index: 0 });
    edits.undo();
    expect(edits.state.off.size).toBe(0);
    expect(edits.state.network.biases[1][0]).toBe(3);
    edits.undo();
    expect(edits.state.network).toBe(network);
    expect(edits.canUndo).toBe(false);
    edits.undo();
    expect(edits.isChanged).toBe(false);
  });

  test("switch a neuron off and on", () => {
    const edits = new Edits(network);
    edits.toggle({ layer: 2, index: 7 });
    expect([...edits.state.off]).toEqual(["2:7"]);
    edits.toggle({ layer: 2, index: 7 });
    expect(edits.isChanged).toBe(false);
  });

  test("randomise every number and reset, which is undone too", () => {
    const edits = new Edits(network);
    edits.setNoise(0.5);
    edits.randomise(() => 0.75);
    expect(edits.state.network.weights[1][0]).not.toBe(network.weights[1][0]);
    expect(edits.state.network.weights[0]).toHaveLength(0);
    edits.reset();
    expect(edits.isChanged).toBe(false);
    edits.undo();
    expect(edits.state.noise).toBe(0.5);
  });
});

test("a formula is text with its letters, its indices and its colours", () => {
  expect(math("*a*_0_ = [a0.93] \u2212 [b1.20]")).toBe('<i class="activation">a</i><sub>0</sub> = <span class="activation">0.93</span> \u2212 <span class="bias">1.20</span>');
  expect(math("1 < 2")).toBe("1 &lt; 2");
});

test("the percentiles are of the nearest rank", () => {
  expect(percentile([4, 1, 3, 2], 0.5)).toBe(2);
  expect(percentile([4, 1, 3, 2], 0.95)).toBe(4);
  expect(percentile([5], 0.5)).toBe(5);
});

test("what the gallery says of each neuron is what docs/inside.md has measured", () => {
  const page = readFileSync(new URL("../../../docs/inside.md", import.meta.url), "utf8");
  const rows = page.split("\n").filter((line) => /^\| \d+ \| 0\.\d\d \|/.test(line)).map((line) => line.split("|").map((cell) => cell.trim()));
  expect(rows).toHaveLength(16);
  rows.forEach((cells, index) => {
    expect(EDGE_R2[index]).toBe(Number(cells[2]));
    expect(HURTS[index]).toEqual([Number(cells[4]), Number(cells[5])]);
  });
});
