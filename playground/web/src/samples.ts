// Digits to take: clear ones and hard ones; and the examples that flow until a person does something.

import { element } from "./dom";
import { bytes, type Numbers, type Sample } from "./numbers";
import { rastered } from "./painter";
import { toInk } from "./network";

const EXAMPLES = [7, 3, 2, 5, 9, 4];
const INTERVAL = 4200; // milliseconds

export class Samples {
  private readonly clear: Sample[];
  private shown = 0;
  private timer = 0;

  /** `taken` receives the sample that a person takes, or an example. */
  constructor({ clear, hard }: Numbers["samples"], private readonly taken: (sample: Sample, isExample: boolean) => void) {
    const unpack = ({ label, pixels }: { label: number; pixels: string }): Sample => ({ label, pixels: bytes(pixels) });
    this.clear = clear.map(unpack);
    element("samples").append(...this.clear.map((sample) => this.button(sample, `A handwritten ${sample.label}`)));
    element("hard").append(...hard.map(unpack).map((sample) => this.button(sample, `A ${sample.label} that is hard to read`)));
  }

  /** One example, and while `goesOn` says so, one after the other. */
  showExamples(goesOn: () => boolean): void {
    this.taken(this.clear[EXAMPLES[this.shown]], true);
    this.shown += 1;
    if (this.shown < EXAMPLES.length) this.timer = window.setTimeout(() => { if (goesOn()) this.showExamples(goesOn); }, INTERVAL);
  }

  stopExamples(): void {
    clearTimeout(this.timer);
  }

  private button(sample: Sample, name: string): HTMLElement {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.append(rastered(toInk(sample.pixels), false));
    button.addEventListener("click", () => {
      this.stopExamples();
      this.taken(sample, false);
    });
    return button;
  }
}
