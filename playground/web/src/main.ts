// The page put together: the pad makes pictures, the state reads them, the stage and the words show how.

import { Calls } from "./calls";
import { words } from "./chapters";
import { Controls } from "./controls";
import { element, input, painterOf, say } from "./dom";
import { drawLens } from "./lens";
import { type Activation, type Neuron, run, SIDE, toInk } from "./network";
import { bytes, type Numbers, type Sample } from "./numbers";
import { isAnyInk } from "./mnist";
import { Pad } from "./pad";
import * as service from "./service";
import { described, Stage } from "./stage";
import { State } from "./state";
import { layerTables, neuronTables } from "./tables";
import { addressOf, chapterForKey, chapterForSwipe, chapterOf, neighbour, placeOf, type Slug, SLUGS, TITLES } from "./tour";

declare global {
  // eslint-disable-next-line no-var
  var NUMBERS: Numbers;
  interface Window { playground: { read(pixels: ArrayLike<number>, activation?: Activation): unknown; pixels(): number[] } }
}

const FLOWS = [7, 3, 2, 5, 9, 4]; // the examples that flow until a person does something
const NEXT_EXAMPLE = 4200; // milliseconds

const state = new State(globalThis.NUMBERS);
const stage = new Stage(() => state.view, (neuron) => choose(neuron));
const calls = new Calls(state, globalThis.NUMBERS.networks, () => { show(); element("photograph").hidden = !calls.has; });
const controls = new Controls(state, () => { state.update(); show(); stage.finish(); }, choose);
const pad = new Pad(element<HTMLCanvasElement>("pad"), element("pen"), {
  changed(isDone) {
    stopExamples();
    if (isDone) return readPad(true);
    nextRead ||= requestAnimationFrame(() => readPad(false)); // a pen tells more often than the screen shows
  },
  cleared() {
    stopExamples();
    element("hint").hidden = false;
    nothing();
  },
});
let nextRead = 0;
let chapter: Slug = chapterOf(location.hash);

// --- the picture ----------------------------------------------------------------------------------------------------

function readPad(isDone: boolean): void {
  cancelAnimationFrame(nextRead);
  nextRead = 0;
  const levels = pad.levels(), isInked = isAnyInk(levels);
  element("hint").hidden = isInked;
  if (state.draw(levels)) read(isDone);
  else nothing(isInked ? "Go on: too little yet for a digit." : "");
}

/** A new picture is there: it flows once it is whole, and is instant while a person draws. */
function read(isDone: boolean): void {
  calls.ask(state.picture.pixels);
  if (isDone) stage.start();
  else stage.finish();
  show();
}

/** There is no digit, for that reason. */
function nothing(reason = ""): void {
  state.clear();
  stage.finish();
  show();
  if (reason) say("verdict", reason);
}

function take(sample: Sample): void {
  pad.showPixels(sample.pixels);
  element("hint").hidden = true;
  state.isChosen = state.isChosen && chapter !== "draw";
  state.set({ pixels: sample.pixels, label: sample.label, centred: null, levels: null });
  read(true);
}

async function takePhotograph(file: File | undefined): Promise<void> {
  if (!file || !calls.has) return;
  stopExamples();
  try {
    const { pixels, nothing: reason = "" } = await service.toPixels(file);
    if (!pixels) return nothing(sentence(reason));
    const image = await createImageBitmap(file);
    pad.show(image, image.width, image.height);
    element("hint").hidden = true;
    state.set({ pixels: Uint8Array.from(pixels), label: null, centred: null, levels: null });
    read(true);
  } catch (error) {
    const text = error instanceof service.ServiceError ? error.message : "the picture cannot be shown";
    say("verdict", sentence(text));
  }
}

const sentence = (text: string): string => `${text.slice(0, 1).toUpperCase()}${text.slice(1)}.`;

const samples = Object.fromEntries((["clear", "hard"] as const).map((kind) => [
  kind, globalThis.NUMBERS.samples[kind].map(({ label, pixels }): Sample => ({ label, pixels: bytes(pixels) })),
])) as Record<"clear" | "hard", Sample[]>;

function addSample(row: HTMLElement, sample: Sample, name: string): void {
  const button = document.createElement("button"), canvas = document.createElement("canvas"), image = new ImageData(SIDE, SIDE);
  button.type = "button";
  button.setAttribute("aria-label", name);
  canvas.width = canvas.height = SIDE;
  sample.pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  button.append(canvas);
  button.addEventListener("click", () => {
    stopExamples();
    take(sample);
  });
  row.append(button);
}

// --- the examples that flow until a person does something -------------------------------------------------------------

let examples = 0, nextExample = 0;

function showExample(): void {
  take(samples.clear[FLOWS[examples % FLOWS.length]]);
  examples += 1;
  if (stage.motion.isReduced || examples >= FLOWS.length || chapter !== "draw") return;
  nextExample = window.setTimeout(showExample, NEXT_EXAMPLE);
}

function stopExamples(): void {
  clearTimeout(nextExample);
}

// --- showing ----------------------------------------------------------------------------------------------------------

const one = (digit: number): string => `${digit === 8 ? "an" : "a"} ${digit}`;

function verdict(): string {
  const { answer, isBlank } = state.view, { label } = state.picture, value = answer.layers[3][answer.digit];
  if (isBlank) return "Nothing is drawn yet.";
  const changed = state.edits.isChanged ? ", by the network as you changed it" : "";
  return `Reads ${one(answer.digit)}, activation ${value.toFixed(2)}${changed}` +
    (value < 0.5 ? ": no output is lit, so hardly a digit to it" : "") +
    (label === null || label === answer.digit ? "." : `; it is ${one(label)}.`);
}

function show(): void {
  const { view } = state;
  say("digit", view.isBlank ? "?" : String(view.answer.digit));
  say("verdict", verdict());
  say("served", calls.summary());
  element("moved").hidden = !view.centring || chapter === "centring";
  element<HTMLButtonElement>("undo").disabled = !pad.canUndo;
  showWords();
  controls.refresh();
  showLens();
  showTables();
  stage.canvas.setAttribute("aria-label", described(view));
  stage.refresh();
}

let shownWords = "";

function showWords(): void {
  const text = words(chapter, state.view, { hasService: calls.has, facts: calls.facts() });
  if (text !== shownWords) element("words").innerHTML = shownWords = text;
  if (chapter === "service") {
    element("burst").hidden = !calls.has;
    calls.showMessages();
  }
}

function showLens(): void {
  if (element("lens-figure").hidden) return;
  const canvas = element<HTMLCanvasElement>("lens"), sentence = drawLens(painterOf(canvas), state.view);
  say("lens-caption", sentence);
  canvas.setAttribute("aria-label", sentence);
}

function showTables(): void {
  if (!element<HTMLDetailsElement>("details").open) return;
  element("tables").replaceChildren(...layerTables(state.view));
  element("looked").replaceChildren(...neuronTables(state.view));
}

function choose(neuron: Neuron): void {
  if (state.isChosen && neuron.layer === state.neuron.layer && neuron.index === state.neuron.index && state.first.index === (neuron.layer === 1 ? neuron.index : state.first.index)) return;
  state.choose(neuron);
  show();
}

// --- chapters ---------------------------------------------------------------------------------------------------------

function go(slug: Slug | null): void {
  if (slug && slug !== chapter) location.hash = addressOf(slug);
}

function open(slug: Slug, isFirst = false): void {
  chapter = slug;
  if (slug !== "draw") stopExamples();
  document.title = slug === "draw" ? TITLES.draw : `${TITLES[slug]} - a network reads a digit`;
  say("title", TITLES[slug]);
  say("place", placeOf(slug) ? `${placeOf(slug)} of ${SLUGS.length - 1}` : "\u00a0");
  for (const name of ["main", "body"]) (name === "main" ? element("main") : document.body).dataset.chapter = slug;
  document.querySelector<HTMLElement>(".words")!.dataset.chapter = slug;
  turn("previous", neighbour(slug, -1));
  turn("next", neighbour(slug, 1));
  document.querySelectorAll("#chapters a").forEach((link, i) => {
    if (SLUGS[i] === slug) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  element("menu").setAttribute("aria-expanded", "false");
  controls.show(slug);
  show();
  stage.show(slug);
  if (isFirst) return;
  element("title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

function turn(id: string, slug: Slug | null): void {
  const link = element<HTMLAnchorElement>(id);
  link.hidden = !slug;
  if (!slug) return;
  link.href = addressOf(slug);
  const [long, short] = [TITLES[slug], id === "next" ? "Next" : "Back"].map((text, i) =>
    Object.assign(document.createElement("span"), { className: i ? "short" : "long", textContent: text }));
  link.replaceChildren(long, short);
}

function addChapters(): void {
  SLUGS.forEach((slug, i) => {
    const item = document.createElement("li"), link = document.createElement("a"), name = document.createElement("span");
    link.href = addressOf(slug);
    link.title = TITLES[slug];
    name.className = "name";
    name.textContent = TITLES[slug];
    link.append(i ? String(i) : "\u2302", name);
    link.setAttribute("aria-label", TITLES[slug]);
    item.append(link);
    element("chapters").append(item);
  });
}

function onKey(event: KeyboardEvent): void {
  const { target } = event;
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (target instanceof Element && target.closest("input, canvas, pre, .tables")) return;
  const slug = chapterForKey(chapter, event.key);
  if (!slug) return;
  event.preventDefault();
  go(slug);
}

let touched: { x: number; y: number } | null = null;

function listenForSwipes(): void {
  for (const area of [".words", ".stage"]) {
    const found = document.querySelector<HTMLElement>(area)!;
    found.addEventListener("touchstart", (event) => {
      const isControl = event.target instanceof Element && event.target.closest("input, .formula, pre");
      touched = event.touches.length === 1 && !isControl ? { x: event.touches[0].clientX, y: event.touches[0].clientY } : null;
    }, { passive: true });
    found.addEventListener("touchend", (event) => {
      const end = event.changedTouches[0];
      if (touched) go(chapterForSwipe(chapter, end.clientX - touched.x, end.clientY - touched.y));
      touched = null;
    });
  }
}

// --- beginning --------------------------------------------------------------------------------------------------------

samples.clear.forEach((sample) => addSample(element("samples"), sample, `A handwritten ${sample.label}`));
samples.hard.forEach((sample) => addSample(element("hard"), sample, `A ${sample.label} that is hard to read`));
addChapters();
listenForSwipes();
addEventListener("hashchange", () => open(chapterOf(location.hash)));
addEventListener("keydown", onKey);
element("menu").addEventListener("click", () => {
  const menu = element("menu");
  menu.setAttribute("aria-expanded", String(menu.getAttribute("aria-expanded") !== "true"));
});
element("eraser").addEventListener("click", () => {
  pad.isErasing = !pad.isErasing;
  element("eraser").setAttribute("aria-pressed", String(pad.isErasing));
});
element("undo").addEventListener("click", () => pad.undo());
element("clear").addEventListener("click", () => pad.clear());
element("details").addEventListener("toggle", showTables);
input("photo").addEventListener("change", () => {
  void takePhotograph(input("photo").files?.[0]);
  input("photo").value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  void takePhotograph(event.dataTransfer?.files[0]);
});
addEventListener("resize", showLens);

/** For the console, and for tests: what the page computes for 784 bytes, and the bytes of the picture that it shows. */
window.playground = {
  read: (pixels, activation = "sigmoid") => {
    const answer = run(state.builtIn[activation], toInk(pixels));
    return { digit: answer.digit, layers: answer.layers.slice(1).map((values) => [...values]) };
  },
  pixels: () => [...state.picture.pixels],
};

showExample();
state.first = state.brightestFirst();
state.update();
open(chapter, true);
stage.canvas.setAttribute("aria-label", described(state.view));
void document.fonts.ready.then(() => stage.refresh());
void calls.connect();
