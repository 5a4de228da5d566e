// The page: takes a drawing, asks the gateway, shows what the service answered. It computes nothing of the network.

const SIDE = 28, SIZES = [16, 16, 10], ROW = 8, PEN = 22, STEP = 10;
const NAMES = ["First hidden layer", "Second hidden layer", "Outputs"];
const STEPS = ["the pixels", "first hidden layer", "second hidden layer", "all layers"];
const FOR = [88, 166, 255], AGAINST = [255, 96, 82];
const SVG = "http://www.w3.org/2000/svg";
const FAINTEST_LINE = 0.05; // of the strongest
const SHORTEST_BAR = 5; // a bar shorter than it is high would look like a speck beside its digit

const $ = (id) => document.getElementById(id);
const pad = $("pad"), ink = pad.getContext("2d", { willReadFrequently: true });
const narrow = matchMedia("(max-width: 900px)"); // too narrow for layers side by side: targets would be under 24 px
const latencies = [];

let network = null; // what serves
let answer = null; // the last answer
let chosen = [2, 0], byHand = false; // the neuron looked at: place of its layer, place in it; whether a person chose it
let step = 3; // how many layers are shown; one further than all begins again at the pixels
let ranks = []; // of cells, one behind the other: a layer each, or on a phone its two rows
let cells = [], lines = [], picture = null, settled = 0;

// --- asking -------------------------------------------------------------------------------------------------------

let asking = null, next = null, drawing = 0, retry = 0;

/** Asks for the latest picture, a `label` if it is known; what comes while an answer is under way replaces what waits. */
function ask(content, began = performance.now(), label = null) {
  next = { content, began, label, drawing };
  asking ??= answerAll();
}

async function answerAll() {
  while (next) {
    const job = next;
    next = null;
    const content = await job.content();
    const type = content instanceof Blob ? content.type : "application/octet-stream";
    const path = job.content === asPng ? "read?ink=light" : "read"; // what is light on the pad is ink, however much it is
    const reply = await fetched(path, { method: "POST", body: content, headers: { "Content-Type": type } }, job);
    if (reply && job.drawing === drawing && reply.digit === null) {
      $("verdict").textContent = job.content === asPng ? "Go on: too little yet for a digit." : sentence(reply.nothing);
    } else if (reply && job.drawing === drawing) {
      show(reply);
      requestAnimationFrame(() => setTimeout(() => tell(reply, job.label, performance.now() - job.began)));
    }
  }
  asking = null;
}

/** The JSON of a reply; otherwise says what is wrong and gives null, and `job` is asked again where that may help. */
async function fetched(path, options = {}, job = null) {
  try {
    const reply = await fetch(path, options);
    const body = await reply.json();
    if (reply.ok) {
      $("trouble").hidden = true;
      return body;
    }
    if (reply.status === 422) { // no picture
      if (job.drawing === drawing) $("verdict").textContent = sentence(body.error);
      return null;
    }
    complain(reply.status >= 500 || reply.status === 429
      ? `The service does not answer (${body.code}: ${body.error}). Trying again.` : body.error, job);
    if (reply.status >= 500 || reply.status === 429) again(job);
  } catch {
    complain("The page's own gateway does not answer. Trying again.");
    again(job);
  }
  return null;
}

function complain(what) {
  if ($("trouble").textContent !== what || $("trouble").hidden) $("trouble").textContent = what;
  $("trouble").hidden = false;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

function again(job) {
  clearTimeout(retry);
  retry = setTimeout(async () => {
    await start();
    if (job && job.drawing === drawing && !next) ask(job.content, performance.now(), job.label);
  }, 700);
}

async function start() {
  if ($("samples").childElementCount === 0) {
    const samples = await fetched("samples");
    if (samples && $("samples").childElementCount === 0) {
      samples.clear.forEach((sample) => addSample($("samples"), sample, `A handwritten ${sample.label}`));
      samples.hard.forEach((sample) => addSample($("hard"), sample, `A ${sample.label} that is hard to read`));
    }
  }
  const found = await fetched("network");
  if (!found) return;
  network = found;
  const share = Number(network.accuracy);
  $("about").textContent = `784 pixels, two layers of 16 ${network.activation === "relu" ? "ReLUs" : "sigmoids"}, ten digits; ` +
    (share ? `reads ${(share * 100).toFixed(2)}% of unseen digits` : "accuracy not measured") + `; version ${network.version}`;
  look(...chosen, byHand);
}

// --- drawing ------------------------------------------------------------------------------------------------------

const asPng = () => new Promise((resolve) => pad.toBlob(resolve, "image/png"));
let last = null;
let photographed = false; // what the pad shows is not light ink on black
const pen = { x: 140, y: 60, down: false };

function blank() {
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, pad.width, pad.height);
}

function clear() {
  erase();
  pen.down = false;
  $("pen").classList.remove("down");
}

function erase() {
  blank();
  drawing += 1;
  next = answer = looked = null;
  byHand = photographed = false;
  $("hint").hidden = false;
  $("digit").textContent = "?";
  $("verdict").textContent = "Nothing is drawn yet.";
  $("latency").textContent = "";
  render();
}

function stroke(from, to) {
  if (photographed) erase();
  $("hint").hidden = true;
  ink.strokeStyle = "#fff";
  ink.lineWidth = PEN;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(from.x, from.y);
  ink.lineTo(to.x, to.y);
  ink.stroke();
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return { x: (event.clientX - box.left) * pad.width / box.width, y: (event.clientY - box.top) * pad.height / box.height };
}

function begin(event) {
  pad.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(last, last);
  ask(asPng, event.timeStamp);
}

pad.addEventListener("pointerdown", (event) => { if (event.button === 0) begin(event); });
pad.addEventListener("pointerenter", (event) => { // pressed beside the pad, and drawn into it
  if (event.buttons !== 1 || last) return;
  getSelection().removeAllRanges();
  document.body.classList.add("drawing");
  begin(event);
});
pad.addEventListener("pointermove", (event) => {
  if (!last) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const one of events.length ? events : [event]) {
    const to = place(one);
    stroke(last, to);
    last = to;
  }
  ask(asPng, event.timeStamp);
});
for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, () => {
    last = null;
    document.body.classList.remove("drawing");
  });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

pad.addEventListener("keydown", (event) => {
  const from = { ...pen };
  if (event.key in ARROWS) {
    const [dx, dy] = ARROWS[event.key];
    pen.x = Math.min(pad.width - STEP, Math.max(STEP, pen.x + dx * STEP));
    pen.y = Math.min(pad.height - STEP, Math.max(STEP, pen.y + dy * STEP));
  } else if (event.key === " ") {
    pen.down = !pen.down;
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
  showPen();
  if (pen.down) {
    stroke(from, pen);
    ask(asPng, event.timeStamp);
  }
});
pad.addEventListener("focus", () => { if (pad.matches(":focus-visible")) showPen(); });
pad.addEventListener("blur", () => { $("pen").hidden = true; });

function showPen() {
  const mark = $("pen");
  mark.hidden = false;
  mark.classList.toggle("down", pen.down);
  mark.style.left = `${100 * pen.x / pad.width}%`;
  mark.style.top = `${100 * pen.y / pad.height}%`;
}

$("clear").addEventListener("click", clear);
$("photo").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });

/** A photograph goes to the gateway as it is; the pad shows it. */
async function take(file) {
  if (!file) return;
  const began = performance.now();
  clear();
  $("hint").hidden = photographed = true;
  const mine = drawing;
  ask(async () => file, began);
  try {
    const image = await createImageBitmap(file);
    if (mine !== drawing) return;
    const scale = Math.min(pad.width / image.width, pad.height / image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    ink.drawImage(image, (pad.width - width) / 2, (pad.height - height) / 2, width, height);
  } catch { /* the gateway says what is wrong with it */ }
}

function addSample(row, { label, pixels }, name) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  button.type = "button";
  button.setAttribute("aria-label", name);
  canvas.width = canvas.height = SIDE;
  canvas.getContext("2d").putImageData(grey(pixels), 0, 0);
  button.append(canvas);
  button.addEventListener("click", (event) => {
    clear();
    $("hint").hidden = true;
    ink.imageSmoothingEnabled = false;
    ink.drawImage(canvas, 0, 0, pad.width, pad.height);
    ask(async () => Uint8Array.from(pixels), event.timeStamp, label);
  });
  row.append(button);
}

// --- showing ------------------------------------------------------------------------------------------------------

function show(reply) {
  answer = reply;
  if (!byHand) chosen = [2, reply.digit];
  render();
}

/** Says what was read, and among the tables how long that took, once it is painted. */
function tell(reply, label, milliseconds) {
  if (reply !== answer) return;
  const brightness = reply.layers[2][reply.digit];
  $("digit").textContent = reply.digit;
  $("verdict").textContent = `Reads ${one(reply.digit)}, brightness ${brightness.toFixed(2)}` +
    (brightness < 0.5 ? ": no output is lit, so hardly a digit to it" : "") +
    (reply.warnings.some((warning) => warning.includes("perhaps")) ? `; perhaps ${one(reply.second)}` : "") +
    (label === null || label === reply.digit ? "." : `; it is ${one(label)}.`) + seen(reply.warnings);
  latencies.push(milliseconds);
  if (latencies.length > 200) latencies.shift();
  const sorted = [...latencies].sort((a, b) => a - b);
  const at = (share) => sorted[Math.ceil(share * sorted.length) - 1].toFixed(0); // the nearest rank
  $("latency").textContent = `Stroke to answer ${milliseconds.toFixed(0)} ms (service ${reply.milliseconds.toFixed(1)} ms); ` +
    `last ${sorted.length}: p50 ${at(0.5)}, p95 ${at(0.95)} ms`;
}

/** What speaks against the picture being one digit, as sentences; what `predict` would expect instead is left out. */
const seen = (warnings) => warnings.filter((warning) => warning.startsWith("picture: "))
  .map((warning) => ` ${sentence(warning.slice("picture: ".length).split(";")[0])}`).join("");

const one = (digit) => `${digit === 8 ? "an" : "a"} ${digit}`;

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Where each neuron stands: layers from left to right, or on a phone from top to bottom, the hidden ones in two rows. */
function spot(layer, i) {
  if (narrow.matches) {
    if (layer === 2) return { x: 200 + (i - 4.5) * 38, y: 546, r: 15 };
    const row = Math.floor(i / ROW); // the second is shifted, so that lines pass between the neurons of the other
    return { x: 200 + (i % ROW - 3.5 + (row ? 0.25 : -0.25)) * 45, y: [188, 366][layer] + 42 * row, r: 15 };
  }
  const gap = layer === 2 ? 64 : 41.5;
  return { x: [360, 560, 750][layer], y: 335 + (i - (SIZES[layer] - 1) / 2) * gap, r: layer === 2 ? 21 : 15 };
}

function build() {
  const svg = $("network"), tall = narrow.matches;
  svg.setAttribute("viewBox", tall ? "0 0 400 606" : "0 0 860 690");
  const box = tall ? { x: 138, y: 6, width: 124, height: 124 } : { x: 4, y: 229, width: 212, height: 212 };
  picture = element("image", { ...box, class: "sent" });
  const ends = [spot(0, 0), spot(0, 15)];
  const fan = tall
    ? `M${box.x} ${box.y + box.height}H${box.x + box.width}L${ends[1].x} ${ends[0].y}H${ends[0].x}Z`
    : `M${box.x + box.width} ${box.y}V${box.y + box.height}L${ends[1].x} ${ends[1].y}V${ends[0].y}Z`;
  const wires = element("g", { "aria-hidden": "true" });
  lines = [1, 2].map((layer) => Array.from({ length: SIZES[layer] }, (_, to) => Array.from({ length: 16 }, (_, from) => {
    const a = spot(layer - 1, from), b = spot(layer, to);
    const line = element("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: "line", opacity: 0 });
    wires.append(line);
    return line;
  })));
  cells = SIZES.map((size, layer) => Array.from({ length: size }, (_, i) => cell(layer, i)));
  ranks = cells.flatMap((layer, l) => (tall && l < 2 ? [layer.slice(0, ROW), layer.slice(ROW)] : [layer]));
  const caption = tall
    ? element("text", { x: 200, y: 150, class: "name" }, "28 x 28 pixels, as sent")
    : element("text", { x: box.x + box.width / 2, y: box.y + box.height + 24, class: "name" }, "28 x 28 pixels, as sent");
  svg.replaceChildren(
    element("path", { d: fan, class: "fan" }), element("rect", { ...box, class: "frame" }), picture, caption, wires,
    ...cells.map((layer, l) => element("g", { role: "group", "aria-label": NAMES[l] }, ...layer)),
  );
  render();
}

function cell(layer, i) {
  const { x, y, r } = spot(layer, i);
  const made = element("g", { class: "cell", role: "button", tabindex: -1 },
    element("circle", { cx: x, cy: y, r: layer === 2 ? r + 4 : r + 5.5, class: "hit" }), element("circle", { cx: x, cy: y, r, class: "body" }));
  if (layer === 2) {
    made.append(narrow.matches
      ? element("text", { x, y: y + 34, "text-anchor": "middle" }, String(i))
      : element("text", { x: x + 29, y: y + 6, class: "big" }, String(i)));
    made.append(narrow.matches
      ? element("rect", { x: x - 14, y: y + 44, width: 0, height: 4, rx: 2, class: "bar" })
      : element("rect", { x: x + 45, y: y - 3, width: 0, height: 6, rx: 3, class: "bar" }));
  }
  made.addEventListener("pointerenter", () => look(layer, i));
  made.addEventListener("focus", () => look(layer, i));
  made.addEventListener("click", () => look(layer, i));
  made.addEventListener("keydown", (event) => walk(event, layer, i));
  return made;
}

/** Arrow keys: along a layer, and from rank to rank, whichever way the layers lie. */
function walk(event, layer, i) {
  if (!(event.key in ARROWS)) return;
  event.preventDefault();
  let [across, along] = ARROWS[event.key];
  if (narrow.matches) [across, along] = [along, across];
  if (along) return cells[layer][Math.min(SIZES[layer] - 1, Math.max(0, i + along))].focus();
  const at = ranks.findIndex((rank) => rank.includes(cells[layer][i]));
  const from = ranks[at], to = ranks[Math.min(ranks.length - 1, Math.max(0, at + across))];
  to[Math.round(from.indexOf(cells[layer][i]) * (to.length - 1) / (from.length - 1))].focus();
}

function render() {
  if (!cells.length) return;
  picture.setAttribute("href", asUrl(answer ? answer.pixels : new Array(SIDE * SIDE).fill(0)));
  cells.forEach((layer, l) => {
    const values = answer ? answer.layers[l] : layer.map(() => 0);
    const most = Math.max(1, ...values); // a ReLU may be brighter than 1
    layer.forEach((made, i) => {
      const level = Math.round(255 * values[i] / most), won = Boolean(answer) && l === 2 && i === answer.digit;
      made.querySelector(".body").setAttribute("fill", `rgb(${level} ${level} ${level})`);
      made.classList.toggle("won", won);
      made.classList.toggle("later", l >= step);
      made.setAttribute("aria-label", (l === 2 ? `Output ${i}` : `${NAMES[l]}, neuron ${i}`) +
        (answer ? `, ${values[i].toFixed(2)}${won ? ", the answer" : ""}` : ""));
      const length = (narrow.matches ? 28 : 60) * values[i] / most;
      made.querySelector(".bar")?.setAttribute("width", length < SHORTEST_BAR ? 0 : length);
    });
  });
  lines.forEach((layer, l) => {
    const all = answer ? answer.contributions[l] : null;
    const most = all ? Math.max(1e-9, ...all.flat().map(Math.abs)) : 1;
    layer.forEach((to, i) => to.forEach((line, j) => {
      const share = all && l + 1 < step ? all[i][j] / most : 0, strength = Math.abs(share);
      line.setAttribute("class", `line ${share > 0 ? "for" : "against"}`);
      line.setAttribute("stroke-width", (0.4 + 3.2 * strength).toFixed(2));
      line.setAttribute("display", strength < FAINTEST_LINE ? "none" : "inline");
      line.setAttribute("opacity", strength < FAINTEST_LINE ? 0 : lineOpacity(strength, l, i, j).toFixed(3));
    }));
  });
  $("step").textContent = STEPS[step];
  renderTables();
  clearTimeout(settled); // a neuron is looked at when the pen rests: the answer comes first
  settled = setTimeout(() => look(...chosen, byHand), answer && last ? 120 : 0);
  highlight();
}

/** The lines of the neuron that is looked at stand out. */
function lineOpacity(strength, l, i, j) {
  const [layer, index] = chosen;
  const mine = (layer === l + 1 && index === i) || (layer === l && index === j);
  return mine ? Math.min(1, 0.35 + strength) : 0.1 + 0.55 * strength;
}

function highlight() {
  lines.forEach((layer, l) => layer.forEach((to, i) => to.forEach((line, j) => {
    if (line.getAttribute("opacity") === "0") return;
    const strength = (Number(line.getAttribute("stroke-width")) - 0.4) / 3.2;
    line.setAttribute("opacity", lineOpacity(strength, l, i, j).toFixed(3));
  })));
  cells.flat().forEach((other) => { other.classList.remove("chosen"); other.setAttribute("tabindex", -1); });
  const mine = cells[chosen[0]][chosen[1]];
  mine.classList.add("chosen");
  mine.setAttribute("tabindex", 0);
}

for (const [id, by] of [["back", -1], ["forth", 1]]) {
  $(id).addEventListener("click", () => { step = (step + by + STEPS.length) % STEPS.length; render(); });
}
narrow.addEventListener("change", build);

// --- one neuron ---------------------------------------------------------------------------------------------------

let looks = 0;
let looked = null; // the neuron that is shown, with what it is to the last answer

const nameOf = (layer, i) => (layer === 2 ? `Output ${i}` : `${NAMES[layer]}, neuron ${i}`);

/** Shows a neuron: its weights, and what each contributes on this digit. */
async function look(layer, i, person = true) {
  chosen = [layer, i];
  byHand = person;
  if (!cells.length) return;
  highlight();
  if (!network) return;
  const mine = ++looks, of = answer, name = nameOf(layer, i), weights = network.weights[layer][i];
  $("neuron-title").textContent = name;
  $("further").textContent = `${name}: see below`;
  $("second-figure").hidden = !of;
  if (layer === 0) paint("first", weights, `weights of ${name} by pixel`);
  $("first-figure").hidden = layer !== 0;
  $("first-caption").textContent = "its weights, a pixel each";
  $("second-caption").textContent = layer === 0 ? "contribution of each pixel: weight times ink"
    : "which pixels would brighten it (blue) or dim it (red) with more ink";
  $("neuron-sum").textContent = of
    ? `Sum ${signed(of.sums[layer][i])}, of which its bias ${signed(network.biases[layer][i])}; brightness ${of.layers[layer][i].toFixed(3)}.`
    : `Bias ${signed(network.biases[layer][i])}. Draw something to see contributions.`;
  showBelow(layer, weights, of && layer > 0 ? of.contributions[layer - 1][i] : null);
  if (!of) {
    paint("second", null, "nothing yet");
    return renderLooked();
  }
  const options = { method: "POST", body: Uint8Array.from(of.pixels), headers: { "Content-Type": "application/octet-stream" } };
  const why = await fetched(`neuron/${layer + 1}/${i}`, options);
  if (!why || mine !== looks) return;
  paint("second", layer === 0 ? why.contributions : why.gradient, $("second-caption").textContent);
  looked = { layer, i, of, why };
  renderLooked();
}

const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);

/** Values as a picture, the strongest at full colour: blue above 0, red below, black at 0. */
function paint(id, values, label) {
  const most = values ? Math.max(1e-12, ...values.map(Math.abs)) : 1, image = new ImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i += 1) {
    const share = values ? values[i] / most : 0, colour = share > 0 ? FOR : AGAINST;
    const light = Math.abs(share) ** 0.6; // the eye tells dark colours apart less well
    image.data.set([...colour.map((c) => c * light), 255], 4 * i);
  }
  $(id).getContext("2d").putImageData(image, 0, 0);
  const ends = values ? [`\u2212${short(most)}`, `+${short(most)}`] : ["", ""];
  $(id).setAttribute("aria-label", values ? `${label}, ${ends.join(" to ")}` : label);
  [$(`${id}-low`).textContent, $(`${id}-high`).textContent] = ends;
}

const short = (value) => (value >= 0.01 ? value.toFixed(2) : value.toExponential(0));

function showBelow(layer, weights, contributions) {
  if (layer === 0) return $("below").replaceChildren();
  const table = tableOf(`${NAMES[layer - 1]}; contribution: weight times activation`,
    ["neuron", "weight", "contribution"]);
  const scales = [weights, contributions].map((v) => (v ? Math.max(1e-9, ...v.map(Math.abs)) : 1));
  weights.forEach((_, j) => addRow(table.tBodies[0], j,
    [weights, contributions].map((values, k) => (values ? amount(values[j], scales[k]) : ""))));
  $("below").replaceChildren(table);
}

/** A number and its bar, one on each side of the axis. */
function amount(value, most) {
  const made = document.createElement("div"), number = document.createElement("span");
  made.className = `amount ${value > 0 ? "for" : "against"}`;
  number.textContent = signed(value);
  made.append(bar(value / most), number);
  return made;
}

function bar(share) {
  const width = 49 * Math.abs(share);
  return element("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    element("line", { x1: 50, x2: 50, y1: 0, y2: 10, class: "axis" }),
    element("rect", { x: share > 0 ? 50 : 50 - width, y: 1, width, height: 8, class: share > 0 ? "for" : "against" }));
}

// --- tables and pictures ------------------------------------------------------------------------------------------

function tableOf(caption, headings) {
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

function addRow(section, head, values) {
  const row = section.insertRow(), first = document.createElement("th");
  first.scope = "row";
  first.textContent = head;
  row.append(first);
  for (const value of values) row.insertCell().append(value);
  return row;
}

const exact = (value) => value.toFixed(4); // with a plain minus, which programs read too

function renderTables() {
  if (!$("details").open) return;
  if (!answer) return $("tables").replaceChildren("Nothing is drawn yet.");
  $("tables").replaceChildren(...[2, 0, 1].map((l) => {
    const table = tableOf(NAMES[l], [l === 2 ? "digit" : "neuron", "activation", "sum"]);
    answer.layers[l].forEach((value, i) => addRow(table.tBodies[0], i, [exact(value), exact(answer.sums[l][i])])
      .classList.toggle("won", l === 2 && i === answer.digit));
    return table;
  }));
}

/** The neuron that is shown, in numbers: what adds up to its sum, and its slope by each pixel. */
function renderLooked() {
  if (!$("details").open) return;
  if (!looked) return $("looked").replaceChildren();
  const { layer, i, of, why } = looked, name = nameOf(layer, i), pixels = of.pixels;
  const below = layer === 0 ? pixels.map((value) => value / 255) : of.layers[layer - 1];
  const sum = tableOf(`${name}: what adds up to its sum`,
    [layer === 0 ? "pixel" : "neuron", layer === 0 ? "ink" : "activation", "weight", "contribution"]);
  below.forEach((value, j) => addRow(sum.tBodies[0], layer === 0 ? pixel(j) : j,
    [value, network.weights[layer][i][j], why.contributions[j]].map(exact)));
  const foot = sum.createTFoot();
  addRow(foot, "bias", ["", "", exact(network.biases[layer][i])]);
  addRow(foot, "sum", ["", "", exact(of.sums[layer][i])]);
  const slopes = tableOf(`${name}: slope by ink`, ["pixel", "ink", "slope"]);
  pixels.forEach((value, j) => addRow(slopes.tBodies[0], pixel(j), [exact(value / 255), why.gradient[j].toExponential(2)]));
  $("looked").replaceChildren(sum, slopes);
}

const pixel = (j) => `${Math.floor(j / SIDE)}, ${j % SIDE}`; // row, column

$("details").addEventListener("toggle", () => { renderTables(); renderLooked(); });

function grey(pixels) {
  const image = new ImageData(SIDE, SIDE);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  return image;
}

const scratch = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });

function asUrl(pixels) {
  scratch.getContext("2d").putImageData(grey(pixels), 0, 0);
  return scratch.toDataURL();
}

blank();
build();
start();
