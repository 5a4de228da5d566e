// The stage: shows the scene of a chapter as it moves, and lets a person point at its neurons.

import { nameOf, SCENES } from "./chapters";
import { element, input, painterOf, say } from "./dom";
import { Motion } from "./motion";
import { key, type Neuron } from "./network";
import { fixed } from "./painter";
import type { Slug } from "./tour";
import type { Spot, View } from "./view";

const PLAY = "M5 3l13 7-13 7z", PAUSE = "M4 3h4v14H4zM12 3h4v14h-4z";

export class Stage {
  readonly canvas = element<HTMLCanvasElement>("stage");
  readonly motion: Motion;
  private slug: Slug = "draw";
  private frame = 0;
  private last = 0;

  constructor(private readonly view: () => View, private readonly choose: (neuron: Neuron) => void) {
    const reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.motion = new Motion(1, reduced.matches);
    reduced.addEventListener("change", () => { this.motion.isReduced = reduced.matches; });
    element("play").addEventListener("click", () => { this.motion.toggle(); this.refresh(); });
    input("scrub").addEventListener("input", () => { this.motion.scrub(Number(input("scrub").value) / 1000); this.refresh(); });
    this.canvas.addEventListener("pointerdown", (event) => this.point(event, 12));
    this.canvas.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") this.point(event, 3); });
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.refresh()).observe(this.canvas);
  }

  show(slug: Slug): void {
    this.slug = slug;
    this.motion.seconds = SCENES[slug].seconds;
    this.motion.start();
    this.refresh();
  }

  /** The scene from its beginning. */
  start(): void {
    this.motion.start();
    this.refresh();
  }

  /** The end of the scene at once, as while a person draws. */
  finish(): void {
    this.motion.finish();
    this.refresh();
  }

  refresh(): void {
    if (!this.frame) this.frame = requestAnimationFrame((now) => this.draw(now));
  }

  private draw(now: number): void {
    this.frame = 0;
    this.motion.advance(this.last ? Math.min(0.1, (now - this.last) / 1000) : 0);
    this.last = this.motion.isPlaying ? now : 0;
    const scene = SCENES[this.slug], painter = painterOf(this.canvas), view = this.view();
    painter.clear();
    scene.draw(painter, view, this.motion.position);
    this.tell(scene.stage?.(this.motion.position, view) ?? "");
    if (this.motion.isPlaying) this.refresh();
  }

  private tell(reached: string): void {
    const { position, isPlaying } = this.motion, play = element("play"), label = isPlaying ? "Pause" : "Play";
    input("scrub").value = String(Math.round(position * 1000));
    say("reached", reached);
    if (play.getAttribute("aria-label") !== label) play.setAttribute("aria-label", label);
    element("play-icon").setAttribute("d", isPlaying ? PAUSE : PLAY);
  }

  private spots(): Spot[] {
    return SCENES[this.slug].spots?.(this.canvas.clientWidth, this.canvas.clientHeight) ?? [];
  }

  private point(event: PointerEvent, reach: number): void {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const near = this.spots().map((spot) => ({ spot, distance: Math.hypot(spot.x - x, spot.y - y) }));
    const found = near.filter(({ spot, distance }) => distance < spot.r + reach).sort((a, b) => a.distance - b.distance)[0];
    this.canvas.classList.toggle("pointing", Boolean(found));
    if (found) this.choose(found.spot.neuron);
  }

  private press(event: KeyboardEvent): void {
    const spots = this.spots();
    if (!spots.length || !event.key.startsWith("Arrow")) return;
    const { neuron, first } = this.view(), is = (wanted: Neuron) => (spot: Spot) => key(spot.neuron) === key(wanted);
    const at = spots.find(is(neuron)) ?? spots.find(is(first)) ?? spots[0];
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    const ahead = spots.filter((spot) => (spot.x - at.x) * dx + (spot.y - at.y) * dy > 2);
    const cost = (spot: Spot) => Math.abs((spot.x - at.x) * dx + (spot.y - at.y) * dy) + 3 * Math.abs((spot.x - at.x) * dy) + 3 * Math.abs((spot.y - at.y) * dx);
    const next = ahead.sort((a, b) => cost(a) - cost(b))[0];
    event.preventDefault();
    event.stopPropagation();
    if (next) this.choose(next.neuron);
  }
}

/** What the stage shows, for those who hear it. */
export function described(view: View): string {
  const { layer, index } = view.neuron;
  return `The network. Shown: ${nameOf(layer, index)}, activation ${fixed(view.answer.layers[layer][index])}.`;
}
