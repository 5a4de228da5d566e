// What a scene shows: the picture, what the networks compute on it, and the neuron that a person looks at.

import type { Centred } from "./mnist";
import type { Activation, Answer, Network, Neuron } from "./network";
import type { Recording } from "./numbers";
import type { Painter } from "./painter";

export interface Variant { readonly network: Network; readonly answer: Answer; readonly isServed: boolean }

export interface View {
  /** The network shown, edits included, and what it computes. */
  readonly network: Network;
  readonly answer: Answer;
  /** The same without edits. */
  readonly before: Answer;
  readonly off: ReadonlySet<string>;
  readonly isBlank: boolean;
  readonly neuron: Neuron;
  /** The neuron of layer 1 that the chapters follow. */
  readonly first: Neuron;
  readonly variants: Readonly<Record<Activation, Variant>>;
  readonly recording: Recording;
  readonly centring: Centring | null;
}

/** How the drawing was moved, and what is read without. */
export interface Centring { readonly steps: Centred; readonly side: number; readonly uncentred: Answer }

/** A place on the stage that can be pressed. */
export interface Spot { readonly neuron: Neuron; readonly x: number; readonly y: number; readonly r: number }

export interface Scene {
  /** Seconds from beginning to end. */
  readonly seconds: number;
  draw(painter: Painter, view: View, position: number): void;
  /** Neurons that can be pointed at; none by default. */
  spots?(width: number, height: number): Spot[];
  /** What is reached at a position, in a word or two. */
  stage?(position: number, view: View): string;
}
