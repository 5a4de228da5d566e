// Changes that a person makes to the network, each undone one by one. Nothing here changes the network it began with.

import { key, type Network, type Neuron, SIZES } from "./network";

export interface State {
  readonly network: Network;
  /** Neurons that are switched off, by `key`. */
  readonly off: ReadonlySet<string>;
  /** Share of noise on the picture, 0 to 1. */
  readonly noise: number;
}

export class Edits {
  private past: { name: string; state: State }[] = [];
  state: State;

  constructor(private original: Network) {
    this.state = { network: original, off: new Set(), noise: 0 };
  }

  get isChanged(): boolean {
    return this.state.network !== this.original || this.state.off.size > 0 || this.state.noise > 0;
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  setWeight(neuron: Neuron, below: number, value: number): void {
    const weights = [...this.state.network.weights], row = Float64Array.from(weights[neuron.layer]);
    row[neuron.index * SIZES[neuron.layer - 1] + below] = value;
    weights[neuron.layer] = row;
    this.change(`weight ${key(neuron)}:${below}`, { network: { ...this.state.network, weights } });
  }

  setBias(neuron: Neuron, value: number): void {
    const biases = [...this.state.network.biases], row = Float64Array.from(biases[neuron.layer]);
    row[neuron.index] = value;
    biases[neuron.layer] = row;
    this.change(`bias ${key(neuron)}`, { network: { ...this.state.network, biases } });
  }

  toggle(neuron: Neuron): void {
    const off = new Set(this.state.off);
    if (!off.delete(key(neuron))) off.add(key(neuron));
    this.change("", { off });
  }

  setNoise(noise: number): void {
    this.change("noise", { noise });
  }

  /** New weights and biases throughout, spread as a training begins: of each layer as wide as 1 / root of its inputs. */
  randomise(random: () => number = Math.random): void {
    const spread = (layer: number) => Math.sqrt(6 / (SIZES[layer - 1] + SIZES[layer])) * 4;
    const draw = (values: Float64Array, layer: number) => values.map(() => (2 * random() - 1) * spread(layer));
    const { weights, biases } = this.state.network;
    this.change("", { network: { ...this.state.network, weights: weights.map(draw1), biases: biases.map(draw1) } });

    function draw1(values: Float64Array, layer: number): Float64Array {
      return layer ? draw(values, layer) : values;
    }
  }

  undo(): void {
    const last = this.past.pop();
    if (last) this.state = last.state;
  }

  /** All changes away, which can be undone too. */
  reset(): void {
    this.change("", { network: this.original, off: new Set(), noise: 0 });
  }

  /** Another network to begin with. */
  restart(original: Network): void {
    this.original = original;
    this.past = [];
    this.state = { network: original, off: new Set(), noise: 0 };
  }

  /** Changes of one name that follow each other, as those of one pull at a slider, are undone together. */
  private change(name: string, changed: Partial<State>): void {
    if (!name || this.past.at(-1)?.name !== name) this.past.push({ name, state: this.state });
    this.state = { ...this.state, ...changed };
  }
}
