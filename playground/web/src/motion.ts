// Where an animation stands, 0 to 1. It knows no clock and no screen: `advance` is told how much time has passed.

export class Motion {
  position = 1;
  isPlaying = false;

  /** With `isReduced` nothing moves by itself: each beginning is the end. */
  constructor(public seconds: number, public isReduced: boolean) {}

  /** From the beginning, as after a new drawing. */
  start(): void {
    this.position = this.isReduced ? 1 : 0;
    this.isPlaying = !this.isReduced;
  }

  /** To the end at once, as while a person draws. */
  finish(): void {
    this.position = 1;
    this.isPlaying = false;
  }

  /** A person presses play or pause; at the end it plays from the beginning. */
  toggle(): void {
    if (!this.isPlaying && this.position >= 1) this.position = 0;
    this.isPlaying = !this.isPlaying;
  }

  scrub(position: number): void {
    this.position = Math.min(1, Math.max(0, position));
    this.isPlaying = false;
  }

  advance(seconds: number): void {
    if (!this.isPlaying) return;
    this.position = Math.min(1, this.position + seconds / this.seconds);
    if (this.position >= 1) this.isPlaying = false;
  }
}

/** How far a part of the whole is, 0 to 1, eased at both ends. */
export function phase(position: number, from: number, to: number): number {
  const share = Math.min(1, Math.max(0, (position - from) / (to - from)));
  return share * share * (3 - 2 * share);
}
