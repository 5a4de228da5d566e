// What the page knows: the picture, the networks, a person's edits; and from these the view that scenes show.

import { Edits } from "./edits";
import { type Centred, type Grey, toMnist, toUncentred } from "./mnist";
import { type Activation, type Answer, largest, type Network, type Neuron, PIXELS, run, toInk, type Values } from "./network";
import { type Numbers, type Recording, unpack, unpackRecording } from "./numbers";
import type { View } from "./view";

/** The picture that is read, and what is known of it. */
export interface Picture {
  readonly pixels: Uint8Array;
  /** What it is, of a sample. */
  readonly label: number | null;
  readonly centred: Centred | null;
  readonly levels: Grey | null;
}

const BLANK: Picture = { pixels: new Uint8Array(PIXELS), label: null, centred: null, levels: null };

export class State {
  readonly recording: Recording;
  readonly edits: Edits;
  readonly builtIn: Readonly<Record<Activation, Network>>;
  private networks: Record<Activation, { network: Network; isServed: boolean }>;
  private shown: Activation = "sigmoid";
  picture: Picture = BLANK;
  neuron: Neuron = { layer: 3, index: 0 };
  first: Neuron = { layer: 1, index: 0 };
  /** A person chose the neuron; until then it is the output of the digit read. */
  isChosen = false;
  view: View;

  constructor(numbers: Numbers) {
    this.builtIn = { sigmoid: unpack("sigmoid", numbers.networks.sigmoid), relu: unpack("relu", numbers.networks.relu) };
    this.networks = {
      sigmoid: { network: this.builtIn.sigmoid, isServed: false }, relu: { network: this.builtIn.relu, isServed: false },
    };
    this.recording = unpackRecording(numbers.recording);
    this.edits = new Edits(this.builtIn.sigmoid);
    this.view = this.compute();
  }

  get isBlank(): boolean {
    return this.picture === BLANK;
  }

  /** A drawing from the pad; false where it shows too little. */
  draw(levels: Grey): boolean {
    const centred = toMnist(levels);
    if (!centred) return false;
    this.set({ pixels: centred.pixels, label: null, centred, levels });
    return true;
  }

  set(picture: Picture): void {
    this.picture = picture;
    this.update();
  }

  clear(): void {
    this.isChosen = false;
    this.set(BLANK);
  }

  /** Networks that serve take the place of the page's own; the first is the one shown. */
  adopt(served: readonly Network[]): void {
    for (const network of served) this.networks[network.activation] = { network, isServed: true };
    this.shown = served[0].activation;
    this.edits.restart(served[0]);
    this.update();
  }

  choose(neuron: Neuron): void {
    this.neuron = neuron;
    this.isChosen = true;
    if (neuron.layer === 1) this.first = neuron;
    this.view = { ...this.view, neuron, first: this.first };
  }

  /** After a change of the picture or the network. */
  update(): void {
    this.view = this.compute();
  }

  private compute(): View {
    const { network, off, noise } = this.edits.state, clean = toInk(this.picture.pixels), ink = noisy(clean, noise);
    const answer = run(network, ink, off), original = this.networks[this.shown].network;
    const before = this.edits.isChanged ? run(original, clean) : answer;
    if (!this.isChosen) this.neuron = { layer: 3, index: answer.digit };
    const variants = Object.fromEntries((["sigmoid", "relu"] as const).map((name) => [name, { ...this.networks[name], answer: run(this.networks[name].network, clean) }]));
    return {
      network, answer, before, off, isBlank: this.isBlank, neuron: this.neuron, first: this.first,
      variants: variants as unknown as View["variants"], recording: this.recording, centring: this.centring(original),
    };
  }

  private centring(network: Network): View["centring"] {
    const { centred, levels } = this.picture;
    if (!centred || !levels) return null;
    let uncentred: Answer | null = null; // computed when it is looked at: a stroke has other things to do
    return {
      steps: centred,
      side: levels.width,
      get uncentred() {
        return (uncentred ??= run(network, toInk(toUncentred(levels))));
      },
    };
  }

  /** The neuron of layer 1 that is brightest, which a chapter can begin with. */
  brightestFirst(): Neuron {
    const { answer, network } = this.view, most = network.activation === "relu" ? answer.layers[1] : answer.layers[1].map((a) => a);
    return { layer: 1, index: largest(most) };
  }
}

let noise: Values | null = null;

/** Ink with so large a share of noise in it, always the same noise, so that a slider changes the share alone. */
export function noisy(ink: Values, share: number): Values {
  if (share === 0) return ink;
  let seed = 1;
  noise ??= Float64Array.from({ length: PIXELS }, () => (seed = seed * 48271 % 2147483647) / 2147483647);
  return ink.map((value, i) => value * (1 - share) + noise![i] * share);
}
