// Every number as text: for screen readers, for copying, and for whoever checks them.

import { nameOf } from "./chapters";
import { contributions, gradient, incoming, SIDE } from "./network";
import type { View } from "./view";

const NAMES = ["", "Layer 1", "Layer 2", "Outputs"];
const exact = (value: number): string => value.toFixed(6);
const pixel = (j: number): string => `${Math.floor(j / SIDE)}, ${j % SIDE}`;

export function layerTables({ answer, isBlank }: View): HTMLElement[] {
  return [3, 1, 2].map((layer) => {
    const table = tableOf(NAMES[layer], [layer === 3 ? "digit" : "neuron", "activation", "sum"]);
    answer.layers[layer].forEach((value, i) => addRow(table.tBodies[0], String(i), [exact(value), exact(answer.sums[layer][i])])
      .classList.toggle("won", layer === 3 && !isBlank && i === answer.digit));
    return table;
  });
}

/** What adds up to the neuron's sum, and the slope of its activation by each pixel. */
export function neuronTables(view: View): HTMLElement[] {
  const { network, answer, neuron } = view, { layer, index } = neuron, name = nameOf(layer, index);
  const below = answer.layers[layer - 1], weights = incoming(network, neuron), parts = contributions(network, answer, neuron);
  const sum = tableOf(`${name}: what adds up to its sum`, [layer === 1 ? "pixel" : "neuron", layer === 1 ? "ink" : "activation", "weight", "contribution"]);
  below.forEach((value, j) => addRow(sum.tBodies[0], layer === 1 ? pixel(j) : String(j), [value, weights[j], parts[j]].map(exact)));
  const foot = sum.createTFoot();
  addRow(foot, "bias", ["", "", exact(network.biases[layer][index])]);
  addRow(foot, "sum", ["", "", exact(answer.sums[layer][index])]);
  const slopes = tableOf(`${name}: slope by ink`, ["pixel", "ink", "slope"]);
  gradient(network, answer, neuron).forEach((slope, j) => addRow(slopes.tBodies[0], pixel(j), [exact(answer.layers[0][j]), slope.toExponential(2)]));
  return [sum, slopes];
}

function tableOf(caption: string, headings: string[]): HTMLTableElement {
  const table = document.createElement("table"), head = table.createTHead().insertRow();
  table.createCaption().textContent = caption;
  for (const heading of headings) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = heading;
    head.append(cell);
  }
  table.createTBody();
  return table;
}

function addRow(section: HTMLTableSectionElement, head: string, values: string[]): HTMLTableRowElement {
  const row = section.insertRow(), first = document.createElement("th");
  first.scope = "row";
  first.textContent = head;
  row.append(first);
  for (const value of values) row.insertCell().append(value);
  return row;
}
