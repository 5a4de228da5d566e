// A recorded training: how many unseen digits are read correctly, epoch by epoch, and what the weights look like on the way.

import { PIXELS, SIDE, type Values } from "../network";
import { type Recording, weightsAt } from "../numbers";
import { COLOUR, type Painter, raster } from "../painter";
import type { Scene } from "../view";

/** The epoch at a position: the first few, in which most happens, take more of the time. */
export function epochAt(recording: Recording, position: number): number {
  return (recording.accuracy.length - 1) * position ** 1.8;
}

export function accuracyAt({ accuracy }: Recording, epoch: number): number {
  const before = Math.floor(epoch), after = Math.min(accuracy.length - 1, before + 1);
  return accuracy[before] + (accuracy[after] - accuracy[before]) * (epoch - before);
}

export const learning: Scene = {
  seconds: 9,
  draw(painter, { recording }, position) {
    const { width, height, isNarrow } = painter, epoch = epochAt(recording, position), all = pictures(recording, epoch), { g } = painter;
    const gap = isNarrow ? 5 : 9, columns = isNarrow ? 8 : 4, top = isNarrow ? 10 : 40;
    const size = isNarrow ? (width - 16 - 7 * gap) / 8 : Math.min((width * 0.5 - 3 * gap) / 4, (height - 90 - 3 * gap) / 4), left = isNarrow ? 8 : width * 0.04;
    const high = isNarrow ? 0 : (height - 4 * size - 3 * gap) / 2 - top;
    g.imageSmoothingEnabled = true;
    for (let i = 0; i < 16; i += 1) {
      const x = left + (i % columns) * (size + gap), y = top + high + Math.floor(i / columns) * (size + gap);
      g.drawImage(all, 0, i * SIDE, SIDE, SIDE, x, y, size, size);
      painter.box(x - 0.5, y - 0.5, size + 1, size + 1, { stroke: COLOUR.edge });
    }
    const y = isNarrow ? 2 * size + 58 : top + high + 10, x = isNarrow ? 44 : left + 4 * size + 3 * gap + 76;
    drawErrors(painter, recording, { x, y, width: width - x - (isNarrow ? 14 : width * 0.05), height: (isNarrow ? height - 44 : top + high + 4 * size + 3 * gap) - y - 12 }, epoch);
  },
  stage: (position, { recording }) => `epoch ${epochAt(recording, position).toFixed(1)}`,
};

let sheet: HTMLCanvasElement | null = null;
let drawn = { recording: null as Recording | null, epoch: -1 };

/** All sixteen pictures below each other, on one canvas that is drawn anew for each epoch. */
function pictures(recording: Recording, epoch: number): HTMLCanvasElement {
  if (sheet && drawn.recording === recording && drawn.epoch === epoch) return sheet;
  drawn = { recording, epoch };
  const weights = weightsAt(recording, epoch);
  sheet ??= document.createElement("canvas");
  return raster(sheet, normalised(weights), true, SIDE);
}

/** Each neuron's weights as shares of its own largest. */
function normalised(weights: Values): Values {
  const out = new Float64Array(weights.length);
  for (let first = 0; first < weights.length; first += PIXELS) {
    let most = 1e-9;
    for (let i = first; i < first + PIXELS; i += 1) most = Math.max(most, Math.abs(weights[i]));
    for (let i = first; i < first + PIXELS; i += 1) out[i] = weights[i] / most;
  }
  return out;
}

/** The share read wrongly, each step of the axis a third of the one above: the last points of accuracy show too. */
function drawErrors(painter: Painter, recording: Recording, { x, y, width, height }: { x: number; y: number; width: number; height: number }, epoch: number): void {
  const last = recording.accuracy.length - 1, px = (e: number) => x + e / last * width;
  const py = (accuracy: number) => y + height * Math.log(1 / (1 - accuracy)) / Math.log(1 / 0.02);
  for (const share of [1, 0.3, 0.1, 0.03]) {
    painter.line(x, py(1 - share), x + width, py(1 - share), COLOUR.edge, 1);
    painter.text(`${Math.round(share * 100)}%`, x - 8, py(1 - share), { size: 12, align: "right", colour: COLOUR.dim });
  }
  painter.text("read wrongly", x, y - 16, { size: 13, align: "left", colour: COLOUR.dim });
  const { g } = painter;
  g.beginPath();
  for (let e = 0; e <= epoch; e += 0.1) g.lineTo(px(e), py(accuracyAt(recording, e)));
  g.lineTo(px(epoch), py(accuracyAt(recording, epoch)));
  g.strokeStyle = COLOUR.positive;
  g.lineWidth = 3;
  g.stroke();
  const share = accuracyAt(recording, epoch);
  g.fillStyle = COLOUR.activation;
  g.beginPath();
  g.arc(px(epoch), py(share), 6, 0, 2 * Math.PI);
  g.fill();
  painter.formula(`[a${(100 * share).toFixed(1)}%] correct`, x + width, y + 16, { size: painter.isNarrow ? 18 : 22, align: "right" });
  for (const tick of [0, Math.round(last / 3), Math.round(2 * last / 3), last]) painter.text(String(tick), px(tick), y + height + 14, { size: 12, colour: COLOUR.dim });
  painter.text("epochs", x + width / 2, y + height + (painter.isNarrow ? 28 : 34), { size: 13, colour: COLOUR.dim });
}
