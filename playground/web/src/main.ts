// The page put together: the pad makes pictures, the state reads them, the stage and the words show how.

import { Calls } from "./calls";
import { words } from "./chapters";
import { Controls } from "./controls";
import { element, input, painterOf, say } from "./dom";
import { drawLens } from "./lens";
import { Navigation } from "./navigation";
import { type Activation, key, type Neuron, run, toInk } from "./network";
import type { Numbers, Sample } from "./numbers";
import { isAnyInk } from "./mnist";
import { Pad } from "./pad";
import { Samples } from "./samples";
import * as service from "./service";
import { described, Stage } from "./stage";
import { State } from "./state";
import { layerTables, neuronTables } from "./tables";
import type { Slug } from "./tour";

declare global {
  // eslint-disable-next-line no-var
  var NUMBERS: Numbers;
  interface Window { playground: { read(pixels: ArrayLike<number>, activation?: Activation): unknown; pixels(): number[] } }
}

const state = new State(globalThis.NUMBERS);
const stage = new Stage(() => state.view, (neuron) => choose(neuron));
const calls = new Calls(state, globalThis.NUMBERS.networks, () => { show(); element("photograph").hidden = !calls.has; });
const controls = new Controls(state, () => { state.update(); show(); stage.finish(); }, choose);
const pad = new Pad(element<HTMLCanvasElement>("pad"), element("pen"), {
  changed(isDone) {
    samples.stopExamples();
    if (isDone) return readPad(true);
    nextRead ||= requestAnimationFrame(() => readPad(false)); // a pen tells more often than the screen shows
  },
  cleared() {
    samples.stopExamples();
    element("hint").hidden = false;
    nothing();
  },
});
const navigation = new Navigation(open);
const samples = new Samples(globalThis.NUMBERS.samples, take);
let nextRead = 0;

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

function take(sample: Sample, isExample: boolean): void {
  pad.showPixels(sample.pixels);
  element("hint").hidden = !isExample;
  state.isChosen = state.isChosen && navigation.chapter !== "draw";
  state.set({ pixels: sample.pixels, label: sample.label, centred: null, levels: null });
  read(true);
}

async function takePhotograph(file: File | undefined): Promise<void> {
  if (!file || !calls.has) return;
  samples.stopExamples();
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
  element("moved").hidden = !view.centring || navigation.chapter === "centring";
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
  const text = words(navigation.chapter, state.view, { hasService: calls.has, transport: calls.transport(), facts: calls.facts() });
  if (text !== shownWords) element("words").innerHTML = shownWords = text;
  if (navigation.chapter === "service") {
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
  const isFirst = neuron.layer !== 1 || key(neuron) === key(state.first);
  if (state.isChosen && key(neuron) === key(state.neuron) && isFirst) return;
  state.choose(neuron);
  show();
}

function open(slug: Slug): void {
  if (slug !== "draw") samples.stopExamples();
  navigation.show();
  controls.show(slug);
  show();
  stage.show(slug);
}

// --- beginning --------------------------------------------------------------------------------------------------------

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

samples.showExamples(() => !stage.motion.isReduced && navigation.chapter === "draw");
state.first = state.brightestFirst();
state.update();
open(navigation.chapter);
stage.canvas.setAttribute("aria-label", described(state.view));
void document.fonts.ready.then(() => stage.refresh());
void calls.connect();
