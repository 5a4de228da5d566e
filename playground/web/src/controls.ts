// The controls of the chapters: which neuron of layer 1, and every change to the network.

import { element, input, say } from "./dom";
import { contributions, incoming, key, largest, type Neuron, SIZES, SIDE } from "./network";
import { PICTURE, pictureSize } from "./lens";
import { fixed } from "./painter";
import type { State } from "./state";
import type { Slug } from "./tour";

export class Controls {
  /** The value below the chosen neuron whose weight is changed; the one that contributes most until a person picks one. */
  private from = 0;
  private of = "";

  constructor(private readonly state: State, private readonly changed: () => void, private readonly chosen: (neuron: Neuron) => void) {
    element("controls").addEventListener("submit", (event) => event.preventDefault());
    input("first").addEventListener("input", () => this.chosen({ layer: 1, index: Number(input("first").value) }));
    input("bias").addEventListener("input", () => this.edit(() => state.edits.setBias(state.neuron, Number(input("bias").value))));
    input("weight").addEventListener("input", () => this.edit(() => state.edits.setWeight(state.neuron, this.from, Number(input("weight").value))));
    input("from").addEventListener("input", () => this.pick(Number(input("from").value)));
    input("noise").addEventListener("input", () => this.edit(() => state.edits.setNoise(Number(input("noise").value))));
    const press = (id: string, change: () => void) => element(id).addEventListener("click", () => this.edit(change));
    press("off", () => state.edits.toggle(state.neuron));
    press("randomise", () => state.edits.randomise());
    press("undo-change", () => state.edits.undo());
    press("reset", () => state.edits.reset());
    const lens = element<HTMLCanvasElement>("lens");
    lens.addEventListener("pointerdown", (event) => {
      const size = pictureSize(lens.clientWidth, lens.clientHeight), box = lens.getBoundingClientRect();
      const x = Math.floor((event.clientX - box.left - PICTURE.x) / size * SIDE), y = Math.floor((event.clientY - box.top - PICTURE.y) / size * SIDE);
      if (state.neuron.layer === 1 && x >= 0 && y >= 0 && x < SIDE && y < SIDE) this.pick(y * SIDE + x);
    });
  }

  show(slug: Slug): void {
    for (const one of document.querySelectorAll<HTMLElement>("[data-for]")) one.hidden = !one.dataset.for!.split(" ").includes(slug);
    this.refresh();
  }

  refresh(): void {
    const { view, neuron, first, edits } = this.state, { layer, index } = neuron, width = SIZES[layer - 1];
    if (this.of !== key(neuron)) {
      this.of = key(neuron);
      this.from = largest(contributions(view.network, view.answer, neuron).map(Math.abs));
    }
    input("first").value = String(first.index);
    say("first-value", `${first.index}`);
    input("from").max = String(width - 1);
    input("from").value = String(this.from);
    say("from-value", layer === 1 ? `pixel in row ${Math.floor(this.from / SIDE)}, column ${this.from % SIDE}` : `neuron ${this.from} of layer ${layer - 1}`);
    const weight = incoming(view.network, neuron)[this.from], bias = view.network.biases[layer][index];
    input("weight").value = String(weight);
    input("bias").value = String(bias);
    say("weight-value", fixed(weight));
    say("bias-value", fixed(bias));
    input("noise").value = String(edits.state.noise);
    say("noise-value", `${Math.round(100 * edits.state.noise)}%`);
    element("off").setAttribute("aria-pressed", String(view.off.has(key(neuron))));
    element<HTMLButtonElement>("undo-change").disabled = !edits.canUndo;
    element<HTMLButtonElement>("reset").disabled = !edits.isChanged;
  }

  private pick(from: number): void {
    this.from = from;
    this.refresh();
  }

  private edit(change: () => void): void {
    change();
    this.changed();
  }
}
