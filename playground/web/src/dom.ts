// The page's own elements by id, and canvases as sharp as the screen.

import { Painter } from "./painter";

export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

export const input = (id: string): HTMLInputElement => element<HTMLInputElement>(id);

/** Sets text where it differs: an unchanged status is not announced again. */
export function say(id: string, text: string): void {
  const found = element(id);
  if (found.textContent !== text) found.textContent = text;
}

/** Canvas pixels for each CSS pixel: of a phone's three most cost frames, and the eye does not see them. */
const sharpness = (): number => (devicePixelRatio > 2 ? 1.75 : devicePixelRatio || 1);

/** A painter in CSS pixels, for a canvas of the size that it has on the page. */
export function painterOf(canvas: HTMLCanvasElement): Painter {
  const { clientWidth: width, clientHeight: height } = canvas, ratio = sharpness();
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const g = canvas.getContext("2d", { alpha: false })!; // opaque, so that nothing below it is painted
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  return new Painter(g, width, height);
}
