// A call to the service: from this page to the model and back.

import { phase } from "../motion";
import { COLOUR, type Painter } from "../painter";
import type { Scene } from "../view";

interface Station { readonly name: string; readonly below: string }

const stations = (transport: string): Station[] => [
  { name: "this page", below: "784 bytes" },
  { name: "gateway", below: transport === "HTTP" ? "HTTP" : `HTTP to ${transport}` },
  { name: "transport", below: "decode, check" },
  { name: "batch", below: "gather" },
  { name: "model", below: "ONNX Runtime" },
];

/** What the calls came to, for the scene; written by the page when a reply comes. */
export const lastCall: { transport: string; times: readonly number[]; batches: readonly { images: number; runs: number }[]; isBurst: boolean } = { transport: "gRPC", times: [], batches: [], isBurst: false };

export const served: Scene = {
  seconds: 1.4,
  draw(painter, view, position) {
    const { width, height, isNarrow } = painter, shown = stations(lastCall.transport), n = shown.length;
    const at = (i: number) => (isNarrow ? { x: width / 2, y: 30 + i * (height - 70) / (n - 1) } : { x: width * 0.1 + i * width * 0.8 / (n - 1), y: height * (lastCall.times.length ? 0.2 : 0.4) });
    const w = isNarrow ? 190 : Math.min(128, width * 0.155), h = isNarrow ? 40 : 74;
    for (let i = 0; i + 1 < n; i += 1) {
      const from = at(i), to = at(i + 1);
      painter.line(from.x, from.y, to.x, to.y, COLOUR.faint, 2);
    }
    const up = phase(position, 0, 0.48) * (n - 1), down = phase(position, 0.55, 1) * (n - 1);
    shown.forEach(({ name, below }, i) => {
      const { x, y } = at(i), isReached = position >= 1 || (position < 0.52 ? Math.round(up) === i : Math.round(n - 1 - down) === i);
      painter.box(x - w / 2, y - h / 2, w, h, { fill: COLOUR.panel, stroke: isReached ? COLOUR.activation : COLOUR.faint, radius: 9, line: isReached ? 2 : 1.2 });
      painter.text(name, x, y - (isNarrow ? 7 : 10), { size: isNarrow ? 14 : 16 });
      painter.text(below, x, y + (isNarrow ? 10 : 14), { size: isNarrow ? 10.5 : Math.min(12, w / 11), colour: COLOUR.dim });
    });
    if (position < 1) drawPulse(painter, at, up, position >= 0.55 ? n - 1 - down : null);
    if (!isNarrow) {
      painter.picture(view.answer.layers[0], at(0).x - 32, at(0).y + 54, 64);
      if (lastCall.times.length) drawTimes(painter, { x: width * 0.1, y: height * 0.56, width: width * 0.36, height: height * 0.3 });
      if (lastCall.batches.length) drawBatches(painter, { x: width * 0.58, y: height * 0.56, width: width * 0.34, height: height * 0.3 });
    }
  },
  stage: (position) => (position < 0.5 ? "request" : "reply"),
};

function drawPulse({ g }: Painter, at: (i: number) => { x: number; y: number }, up: number, back: number | null): void {
  const { x, y } = at(back ?? up);
  g.fillStyle = back === null ? COLOUR.positive : COLOUR.activation;
  g.beginPath();
  g.arc(x, y, 7, 0, 2 * Math.PI);
  g.fill();
}

interface Area { readonly x: number; readonly y: number; readonly width: number; readonly height: number }

/** Milliseconds of each call as this page saw it, the last at the right. */
function drawTimes(painter: Painter, { x, y, width, height }: Area): void {
  const times = lastCall.times.slice(-60), most = Math.max(...times, 1), gap = width / Math.max(times.length, 12);
  painter.text("milliseconds of each call", x, y - 22, { size: 14, align: "left", colour: COLOUR.dim });
  painter.line(x, y + height, x + width, y + height, COLOUR.faint, 1.5);
  painter.text(most.toFixed(1), x - 8, y, { size: 12, align: "right", colour: COLOUR.dim });
  times.forEach((time, i) => {
    const tall = Math.max(2, time / most * height), isLast = i === times.length - 1;
    painter.box(x + i * gap, y + height - tall, Math.max(2, gap - 2), tall, { fill: isLast ? COLOUR.activation : COLOUR.positive, radius: 2 });
  });
  painter.formula(`[a${times[times.length - 1].toFixed(1)} ms]`, x + width, y + height + 24, { size: 20, align: "right" });
}

/** How many images the model read at a time. */
function drawBatches(painter: Painter, { x, y, width, height }: Area): void {
  const { batches, isBurst } = lastCall, shown = batches.slice(0, 10), most = Math.max(...shown.map(({ runs }) => runs)), gap = height / Math.max(shown.length, 4);
  painter.text(isBurst ? "64 calls: runs by images in them" : "runs of the model by images in them", x - 34, y - 22, { size: 14, align: "left", colour: COLOUR.dim });
  shown.forEach(({ images, runs }, i) => {
    const middle = y + (i + 0.5) * gap;
    painter.text(String(images), x - 10, middle, { size: 14, align: "right" });
    painter.box(x, middle - gap * 0.3, Math.max(3, Math.log(1 + runs) / Math.log(1 + most) * width * 0.8), gap * 0.6, { fill: COLOUR.bias, radius: 3 });
    painter.text(String(runs), x + Math.log(1 + runs) / Math.log(1 + most) * width * 0.8 + 10, middle, { size: 13, align: "left", colour: COLOUR.dim });
  });
}
