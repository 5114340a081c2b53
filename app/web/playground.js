// The playground: takes images, sends each to the chosen model, and shows the results.

import { call, element, json, Problem, percent, root, timings } from "./api.js";
import { fallsWhere, headline, labelled, pictureOf, prepare, request, show, tell } from "./answer.js";
import { inDialog, photograph } from "./camera.js";
import { offer } from "./explorer.js";
import { Pad } from "./pad.js";

const AT_ONCE = 6; // concurrent requests, which the service batches
const PAUSE = 250; // milliseconds that the slider must rest before images are sent again
const SAMPLES = [["sneaker", "a sneaker"], ["t-shirt", "a t-shirt"], ["trouser", "trousers"], ["bag", "a bag"], ["rings", "rings"]];
const at = (id) => document.getElementById(id);

let models = [], model = null, items = [], selected = null, drawing = null, made = 0, under_way = 0;

// ---- models

async function begin() {
  const { models: loaded, refused } = await json("v1/models");
  models = loaded;
  if (!models.length) {
    const why = refused.map(({ reason }) => reason).join(" ");
    throw new Problem({ type: "not-ready", detail: why || "Put a bundle into the models folder, or train one, and start the service again" });
  }
  const [name, version] = (new URLSearchParams(location.search).get("model") || "").split("@");
  const wanted = models.filter((each) => each.name === name);
  const meant = wanted.find((each) => String(each.version) === version) ?? wanted.at(-1) ?? models.find((each) => each.default) ?? models.at(-1);
  at("model").replaceChildren(...[...new Set(models.map((each) => each.name))].map((each) => element("option", { textContent: each })));
  at("model").value = meant.name;
  versions(meant.version);
  await choose(meant);
}

function versions(chosen) {
  const numbers = models.filter((each) => each.name === at("model").value).map((each) => each.version);
  at("version").replaceChildren(...numbers.map((each) => element("option", { textContent: each })));
  at("version").value = chosen ?? numbers.at(-1);
}

const named = () => models.find((each) => each.name === at("model").value && String(each.version) === at("version").value);

async function choose(summary) {
  const address = `v1/models/${summary.name}@${summary.version}`;
  const chosen = await json(address);
  await prepare(chosen);
  if (named() !== summary) return; // the user chose another model meanwhile
  model = chosen;
  if (model.parts.includes("map")) mapped(model, `${address}/map`);
  at("about").href = new URL(`models/${model.name}@${model.version}`, root);
  history.replaceState(null, "", `?model=${model.name}@${model.version}`);
  at("what").textContent = described();
  at("service").textContent = `${model.name}@${model.version} runs on ${model.provider}, ${model.milliseconds.toFixed(2)} ms an image.`;
  pad.reshape(model.input, model.manifest.input.background);
  for (const item of items) queue(item);
  arrange();
  offer(items, model);
}

// The map may arrive after the first results.
async function mapped(chosen, address) {
  chosen.map = await json(address);
  if (model === chosen && selected?.state === "done") fallsWhere(selected.result, model);
}

function described() {
  const can = model.operations;
  const kinds = model.labels?.slice(0, 12).join(", ") + (model.labels?.length > 12 ? ", …" : "");
  const parts = [
    can.includes("classify") && `knows ${model.labels.length} ${model.manifest.classifier.thresholds ? "labels, of which an image may have several" : "classes"} (${kinds})`,
    can.includes("reconstruct") && `reconstructs the image from ${model.manifest.latent_size} numbers`,
    can.includes("anomaly") && `says when${can.includes("regions") ? " and where" : ""} an image is unlike those it was trained on`,
  ].filter(Boolean);
  const list = parts.length > 1 ? `${parts.slice(0, -1).join(", ")}, and ${parts.at(-1)}` : parts[0] ?? "turns images into embeddings";
  return `${model.name} ${list}.`;
}

at("model").addEventListener("change", () => { versions(); guarded(choose(named())); });
at("version").addEventListener("change", () => guarded(choose(named())));

// ---- images

function add(files, select = true) {
  const fresh = [...files].map((file) => {
    made += 1;
    return { id: made, file, name: file.name || "image.png", url: URL.createObjectURL(file), state: "new" };
  });
  items.push(...fresh);
  if (fresh.length && select) pick(fresh[0]);
  fresh.forEach(queue);
  arrange();
  return fresh;
}

function queue(item) {
  Object.assign(item, { state: "waiting", begun: performance.now(), problem: null });
  work();
}

let soon = 0;
at("rate").addEventListener("input", () => {
  clearTimeout(soon);
  soon = setTimeout(() => items.forEach(queue), PAUSE);
});

function work() {
  if (!model) return;
  while (under_way < AT_ONCE) {
    const item = selected?.state === "waiting" ? selected : items.find((each) => each.state === "waiting");
    if (!item) return;
    item.state = "asked";
    under_way += 1;
    look(item, model).finally(() => { under_way -= 1; work(); });
  }
}

async function look(item, asked) {
  const form = new FormData();
  form.append("image", item.file, item.name);
  const file = item.file, address = request(asked), { rate } = asked;
  const late = () => asked !== model || address !== request(model) || item.state !== "asked" || file !== item.file;
  try {
    const answer = await call(address, { method: "POST", body: form });
    const body = await answer.json();
    if (late()) return;
    const times = timings(answer);
    Object.assign(item, { state: "done", answer: body, result: body.results[0], digest: body.model.digest, times, problem: null });
    Object.assign(item, { address, rate, answered: file });
    item.elapsed = performance.now() - item.begun;
  } catch (problem) {
    if (late()) return;
    // What was answered at another false-alarm rate still holds.
    const holds = item.result && item.digest === asked.digest && item.answered === file;
    Object.assign(item, holds ? { state: "done", problem } : { state: "failed", problem, result: null });
    if (!(problem instanceof Problem)) throw problem;
  }
  if (item === selected) tellOf(item);
  arrange();
  offerSoon();
}

let offered = 0;
function offerSoon() {
  cancelAnimationFrame(offered);
  offered = requestAnimationFrame(() => offer(items, model));
}

function pick(item) {
  selected = item;
  document.body.classList.add("looking");
  if (item.state === "waiting" || item.state === "new") show(item, model);
  else tellOf(item);
  for (const card of at("grid").children) card.firstChild.setAttribute("aria-pressed", String(Number(card.dataset.item) === item.id));
}

function tellOf(item) {
  show(item, model);
  at("said").textContent = item.problem ? `${item.problem.message} ${item.problem.detail}` : item.result ? headline(item.result) : "";
}

// ---- the grid of several images

const ORDERS = {
  came: () => 0,
  anomaly: (a, b) => (b.result?.score ?? -Infinity) - (a.result?.score ?? -Infinity),
  confidence: (a, b) => (a.result?.confidence ?? Infinity) - (b.result?.confidence ?? Infinity),
  label: (a, b) => labelOf(a).localeCompare(labelOf(b)),
};

const labelOf = ({ result }) => (result && labelled(result)) ?? "";

let arranged = 0;
function arrange() {
  cancelAnimationFrame(arranged);
  arranged = requestAnimationFrame(() => {
    at("tray").hidden = items.length < 2;
    const waiting = items.filter((item) => ["waiting", "asked"].includes(item.state)).length;
    at("tray-title").textContent = `${items.length} images${waiting ? `, ${waiting} to go` : ""}`;
    const known = new Map([...at("grid").children].map((card) => [Number(card.dataset.item), card]));
    const cards = [...items].sort(ORDERS[at("sort").value]).map((item) => fill(known.get(item.id) ?? card(item), item));
    if (cards.length !== at("grid").children.length || cards.some((each, index) => each !== at("grid").children[index])) at("grid").replaceChildren(...cards);
  });
}

function card(item) {
  const button = element("button", { type: "button" }, pictureOf(item, model, ""), element("b"), element("span"));
  button.addEventListener("click", () => pick(item));
  return element("li", { data: { item: item.id } }, button);
}

function fill(made, item) {
  const { result } = item;
  const button = made.firstChild;
  button.setAttribute("aria-pressed", String(item === selected));
  button.classList.toggle("odd", Boolean(result?.anomalous));
  button.classList.toggle("failed", item.state === "failed");
  const title = item.state === "failed" ? "Not read" : (result && labelled(result)) ?? (result?.anomalous ? "Odd" : result ? "Usual" : "…");
  const under = item.state === "failed" ? item.name : result ? [result.confidence !== undefined && percent(result.confidence, 0), result.anomalous && "odd"].filter(Boolean).join(" · ") : "";
  button.querySelector("b").textContent = title;
  button.querySelector(":scope > span:last-child").textContent = under;
  button.setAttribute("aria-label", `${item.name}: ${title} ${under}`);
  return made;
}

at("sort").addEventListener("change", arrange);
at("clear").addEventListener("click", () => {
  for (const item of items) URL.revokeObjectURL(item.url);
  items = [];
  selected = drawing = null;
  at("answer").hidden = true;
  document.body.classList.remove("looking");
  arrange();
  offer(items, model);
  at("choose").focus();
});

// ---- files, camera, clipboard, drag and drop, samples

at("choose").addEventListener("click", () => at("files").click());
for (const input of [at("files"), at("shot")]) {
  input.addEventListener("change", () => { add(input.files); input.value = ""; });
}
at("photograph").addEventListener("click", () => (inDialog() ? photograph((file) => add([file])) : at("shot").click()));

const images = (transfer) => [...(transfer?.files ?? [])];
document.addEventListener("paste", (event) => { if (images(event.clipboardData).length) { event.preventDefault(); add(images(event.clipboardData)); } });

let depth = 0;
const over = (change) => { depth = Math.max(0, depth + change); at("over").hidden = depth === 0; };
document.addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) over(1); });
document.addEventListener("dragleave", () => over(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(-depth);
  add(images(event.dataTransfer));
});

async function sample(name, select = true) {
  const known = items.find((item) => item.sample === name);
  if (known) {
    if (select) pick(known);
    return;
  }
  const blob = await (await call(`web/samples/${name}.png`)).blob();
  const [item] = add([new File([blob], `${name}.png`, { type: "image/png" })], select);
  item.sample = name;
}

for (const [name, label] of SAMPLES) {
  const button = element("button", { type: "button", ariaLabel: `Sample: ${label}`, title: label }, element("img", { src: `web/samples/${name}.png`, alt: "" }));
  button.addEventListener("click", () => guarded(sample(name)));
  document.querySelector(".samples").append(button);
}

document.querySelector("[data-samples]").addEventListener("click", () => guarded((async () => {
  for (const [name] of SAMPLES.slice(0, 2)) await sample(name, !selected);
})()));

// ---- drawing

let drawnAgain = false, sending = false;
const pad = new Pad(at("pad").querySelector("canvas"), { brush: at("brush"), ink: at("ink"), undo: at("undo"), wipe: at("wipe") }, async (anything) => {
  if (!anything) return;
  drawnAgain = true;
  if (sending) return;
  sending = true;
  while (drawnAgain) {
    drawnAgain = false;
    await redrawn(await pad.file());
  }
  sending = false;
});

// A changed drawing replaces its image instead of adding another.
async function redrawn(file) {
  if (!drawing) {
    [drawing] = add([file]);
    return;
  }
  const before = drawing.url;
  Object.assign(drawing, { file, url: URL.createObjectURL(file), state: "asked", begun: performance.now(), problem: null });
  if (selected !== drawing) pick(drawing);
  if (model) await look(drawing, model);
  const shown = at("grid").querySelector(`[data-item="${drawing?.id}"] img`);
  if (shown) shown.src = drawing.url;
  URL.revokeObjectURL(before);
}

at("draw").addEventListener("click", () => {
  const open = at("pad").hidden;
  at("pad").hidden = !open;
  at("draw").setAttribute("aria-expanded", String(open));
  document.body.classList.add("looking"); // now, because it moves the layout, which must not happen at the first stroke
});

// ---- copying, errors, start

at("answer").querySelector("[data-copy]").addEventListener("click", async (event) => {
  const button = event.currentTarget, code = button.closest("section").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch { // there is no clipboard without https: select the text, so that the user can copy it
    getSelection().selectAllChildren(code);
    button.textContent = "Marked: copy it";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

async function guarded(promise) {
  try {
    await promise;
    at("problem").hidden = true;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    at("problem").hidden = false;
    at("problem").replaceChildren(...tell(problem));
  }
}

guarded(begin());
