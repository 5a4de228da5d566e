// The real calls: each picture is read by the service too, and the page shows what that took and what went over the wire.

import { element, say } from "./dom";
import type { Network } from "./network";
import type { PackedNetwork } from "./numbers";
import { lastCall } from "./scenes/served";
import * as service from "./service";
import type { State } from "./state";

const AGAIN = 1000; // milliseconds until a service that did not answer is asked again
const KEPT = 200;

export class Calls {
  has = false;
  served: service.Served[] = [];
  private answers: service.Call[] = [];
  private answered: Uint8Array | null = null;
  private times: number[] = [];
  private pixels: Uint8Array | null = null;
  private isAsking = false;
  private bursts: service.Burst | null = null;

  constructor(private readonly state: State, private readonly built: Record<string, PackedNetwork>, private readonly changed: () => void) {
    element("burst").addEventListener("click", () => void this.sendMany());
  }

  async connect(): Promise<void> {
    if (!(await service.hasGateway())) return;
    this.has = true;
    element("photograph").hidden = false;
    this.ask(this.state.picture.pixels);
    this.changed();
  }

  /** What serves; from then on the page shows that network. */
  private async learn(): Promise<void> {
    const served = await service.describe();
    this.state.adopt(await Promise.all(served.map((one, place) => this.networkOf(one, place))));
    this.served = served;
  }

  /** The page's own network where it has the same weights; else the service's. */
  private async networkOf(one: service.Served, place: number): Promise<Network> {
    if (this.built[one.activation]?.sha256 === one.sha256) return this.state.builtIn[one.activation];
    return service.download(place, one);
  }

  /** Have the service read these pixels; those that come meanwhile replace the ones that wait. */
  ask(pixels: Uint8Array | null): void {
    this.pixels = pixels;
    if (this.has && pixels && !this.isAsking) void this.askAll();
  }

  private async askAll(): Promise<void> {
    this.isAsking = true;
    while (this.pixels) {
      const pixels = this.pixels;
      this.pixels = null;
      const began = performance.now();
      await this.attempt(async () => {
        if (!this.served.length) await this.learn();
        this.answers = await service.predict(pixels);
        this.answered = pixels;
        this.times.push(performance.now() - began);
        if (this.times.length > KEPT) this.times.shift();
      }, pixels);
      this.changed();
    }
    this.isAsking = false;
  }

  private async sendMany(): Promise<void> {
    const button = element<HTMLButtonElement>("burst");
    button.disabled = true;
    await this.attempt(async () => {
      this.bursts = await service.burst(this.state.picture.pixels);
      this.served = await service.describe();
    });
    button.disabled = false;
    this.changed();
  }

  private async attempt(call: () => Promise<void>, pixels: Uint8Array | null = null): Promise<void> {
    try {
      await call();
      element("trouble").hidden = true;
    } catch (error) {
      const known = error instanceof service.ServiceError ? error : new service.ServiceError(500, "", String(error));
      const code = known.code ? `${known.code}: ` : "";
      say("trouble", known.isPassing ? `The service does not answer (${code}${known.message}). The page computes by itself, and tries again.` : known.message);
      element("trouble").hidden = false;
      if (!known.isPassing) return;
      await new Promise((resolve) => setTimeout(resolve, AGAIN));
      this.pixels ??= pixels ?? this.state.picture.pixels;
      if (!this.isAsking) void this.askAll();
    }
  }

  /** One line for the head of the page. */
  summary(): string {
    if (!this.has || !this.served.length) return this.has ? "the service does not answer" : "computed in this page";
    return `served: ${this.served.map(({ name, version, activation }) => `${name} ${version}, ${activation}`).join("; ")}`;
  }

  /** How the gateway calls the service or the services; empty until one answers. */
  transport(): string {
    return [...new Set(this.served.map(({ transport }) => transport))].join(" and ");
  }

  /** The table of the last call, as HTML; the messages are added by `messages`, as text. */
  facts(): string {
    const [call] = this.answers, [one] = this.served;
    if (!one) return "";
    const rows: [string, string][] = [
      ["server", `${one.address}, version ${one.version}, over ${one.transport}`],
      ["runs on", `${one.provider || "not told"}${one.platform ? `, ${one.platform}` : ""}`],
    ];
    if (call) {
      rows.push(["this call", `${call.milliseconds.toFixed(1)} ms at the gateway, ${this.times.at(-1)!.toFixed(1)} ms here`]);
      rows.push([`last ${this.times.length}`, `p50 ${percentile(this.times, 0.5).toFixed(1)}, p95 ${percentile(this.times, 0.95).toFixed(1)} ms here`]);
      rows.push(["service reads", this.answers.map(({ digit, activations }, i) => `${digit} (${activations[digit].toFixed(3)}${this.answers.length > 1 ? `, ${this.served[i]?.activation ?? ""}` : ""})`).join(", ")]);
      if (this.isCurrent()) rows.push(["difference to this page", this.difference(call).toExponential(0)]);
    }
    if (one.batches.length) rows.push(["runs by images in them", one.batches.map(({ images, runs }) => `${images}: ${runs}`).join(", ")]);
    if (this.bursts) rows.push([`${this.bursts.calls} at once`, `${this.bursts.milliseconds.toFixed(1)} ms; runs by images: ${this.bursts.batches.map(({ images, runs }) => `${images}: ${runs}`).join(", ") || "not told"}`]);
    Object.assign(lastCall, { transport: one.transport, times: this.times, batches: this.bursts?.batches ?? one.batches, isBurst: this.bursts !== null });
    return `<table class="facts"><tbody>${rows.map(([head, value]) => `<tr><th scope="row">${escaped(head)}</th><td>${escaped(value)}</td></tr>`).join("")}</tbody></table>`;
  }

  /** Whether the last answer is for the picture that the page shows; while a digit is drawn, it is for an earlier one. */
  private isCurrent(): boolean {
    const { pixels } = this.state.picture;
    return this.answered !== null && this.answered.every((value, i) => value === pixels[i]);
  }

  /** The largest difference of any activation between the service and this page, on the picture that both have read. */
  private difference(call: service.Call): number {
    const { layers } = this.state.view.variants[this.served[0].activation].answer;
    const pairs: [readonly number[], Float64Array][] = [[call.layer1, layers[1]], [call.layer2, layers[2]], [call.activations, layers[3]]];
    return Math.max(...pairs.flatMap(([served, own]) => served.map((value, i) => Math.abs(value - own[i]))));
  }

  showMessages(): void {
    const [call] = this.answers;
    if (!call) return;
    const parts = [
      heading(`${call.method}, ${call.request_bytes} bytes`), message(call.request, "The request"),
      heading(`its reply, ${call.reply_bytes} bytes`), message(call.reply, "The reply"),
    ];
    element("calls").replaceChildren(...parts);
  }
}

const escaped = (text: string): string => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);

/** The nearest rank. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}

function heading(text: string): HTMLElement {
  return Object.assign(document.createElement("h2"), { className: "small", textContent: text });
}

function message(text: string, label: string): HTMLElement {
  const shown = Object.assign(document.createElement("pre"), { className: "message", textContent: text, tabIndex: 0 });
  shown.setAttribute("role", "region");
  shown.setAttribute("aria-label", label);
  return shown;
}
