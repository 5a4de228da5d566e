// The drawing pad: light ink on black, 256 pixels a side, however large it is shown. Strokes that begin beside it count.

import type { Grey } from "./mnist";
import { SIDE } from "./network";

const WIDTH = 20; // of the pen, of 256: it is as broad on a phone as on a desk, seen from the drawing
const ERASER = 44;
const STEP = 9; // of the keyboard's pen
const UNDO = 40;

interface Point { readonly x: number; readonly y: number }

export interface PadEvents {
  /** The drawing changed; `isDone` when the pen was lifted. */
  changed(isDone: boolean): void;
  cleared(): void;
}

const ARROWS: Record<string, readonly [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  private readonly ink: CanvasRenderingContext2D;
  private past: ImageData[] = [];
  private last: Point | null = null;
  private pen = { x: 128, y: 54, isDown: false };
  isErasing = false;
  /** What is shown is a sample or a photograph, which a stroke replaces. */
  isShown = false;

  constructor(private readonly canvas: HTMLCanvasElement, private readonly mark: HTMLElement, private readonly events: PadEvents) {
    this.ink = canvas.getContext("2d", { willReadFrequently: true })!;
    this.blank();
    canvas.addEventListener("pointerdown", (event) => { if (event.button === 0) this.begin(event); });
    canvas.addEventListener("pointerenter", (event) => {
      if (event.buttons !== 1 || this.last) return;
      getSelection()?.removeAllRanges();
      document.body.classList.add("drawing");
      this.begin(event);
    });
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.end());
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) this.showPen(); });
    canvas.addEventListener("blur", () => { mark.hidden = true; });
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  /** How light each pixel is, 0 to 255. */
  levels(): Grey {
    const { width, height, data } = this.ink.getImageData(0, 0, this.canvas.width, this.canvas.height);
    const levels = new Float64Array(width * height);
    for (let i = 0; i < levels.length; i += 1) levels[i] = data[4 * i];
    return { width, height, data: levels };
  }

  clear(): void {
    if (!this.isShown) this.keep();
    this.blank();
    this.pen.isDown = this.isShown = false;
    this.mark.classList.remove("down");
    this.events.cleared();
  }

  undo(): void {
    const before = this.past.pop();
    if (!before) return;
    this.ink.putImageData(before, 0, 0);
    this.isShown = false;
    this.events.changed(true);
  }

  /** A picture of 28x28, as it is. */
  showPixels(pixels: Uint8Array): void {
    const small = document.createElement("canvas"), image = new ImageData(SIDE, SIDE);
    small.width = small.height = SIDE;
    pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
    small.getContext("2d")!.putImageData(image, 0, 0);
    this.show(small, SIDE, SIDE);
  }

  show(picture: CanvasImageSource, width: number, height: number): void {
    this.past = [];
    this.blank();
    const scale = Math.min(this.canvas.width / width, this.canvas.height / height), [w, h] = [width * scale, height * scale];
    this.ink.imageSmoothingEnabled = width > 2 * SIDE;
    this.ink.drawImage(picture, (this.canvas.width - w) / 2, (this.canvas.height - h) / 2, w, h);
    this.isShown = true;
  }

  private blank(): void {
    this.ink.fillStyle = "#000";
    this.ink.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  private keep(): void {
    this.past.push(this.ink.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.past.length > UNDO) this.past.shift();
  }

  private begin(event: PointerEvent): void {
    this.canvas.setPointerCapture(event.pointerId);
    this.prepare();
    this.last = this.place(event);
    this.stroke(this.last, this.last);
    this.events.changed(false);
  }

  private prepare(): void {
    if (this.isShown) {
      this.past = [];
      this.blank();
      this.isShown = false;
      this.events.cleared();
    }
    this.keep();
  }

  private move(event: PointerEvent): void {
    if (!this.last) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) {
      const to = this.place(one);
      this.stroke(this.last, to);
      this.last = to;
    }
    this.events.changed(false);
  }

  private end(): void {
    if (!this.last) return;
    this.last = null;
    document.body.classList.remove("drawing");
    this.events.changed(true);
  }

  private place(event: PointerEvent): Point {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * this.canvas.width / box.width, y: (event.clientY - box.top) * this.canvas.height / box.height };
  }

  private stroke(from: Point, to: Point): void {
    this.ink.strokeStyle = this.isErasing ? "#000" : "#fff";
    this.ink.lineWidth = this.isErasing ? ERASER : WIDTH;
    this.ink.lineCap = this.ink.lineJoin = "round";
    this.ink.beginPath();
    this.ink.moveTo(from.x, from.y);
    this.ink.lineTo(to.x + 0.01, to.y); // a line without length, of the first touch, would be none
    this.ink.stroke();
  }

  private press(event: KeyboardEvent): void {
    const from = { ...this.pen }, { width } = this.canvas;
    if (event.key in ARROWS) {
      const [dx, dy] = ARROWS[event.key];
      this.pen.x = Math.min(width - STEP, Math.max(STEP, this.pen.x + dx * STEP));
      this.pen.y = Math.min(width - STEP, Math.max(STEP, this.pen.y + dy * STEP));
    } else if (event.key === " ") {
      this.pen.isDown = !this.pen.isDown;
      if (this.pen.isDown) this.prepare();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.showPen();
    if (this.pen.isDown) {
      this.stroke(from, this.pen);
      this.events.changed(false);
    } else if (event.key === " ") {
      this.events.changed(true);
    }
  }

  private showPen(): void {
    const size = 100 * WIDTH / this.canvas.width;
    this.mark.hidden = false;
    this.mark.classList.toggle("down", this.pen.isDown);
    Object.assign(this.mark.style, {
      left: `${100 * this.pen.x / this.canvas.width}%`, top: `${100 * this.pen.y / this.canvas.height}%`, width: `${size}%`, height: `${size}%`,
    });
  }
}
