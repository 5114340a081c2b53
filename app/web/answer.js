// Shows the results of one image: classes, pictures, anomaly, embedding, place on the map, timing, the curl command.

import { element, hasKey, milliseconds, nameOf, percent, root } from "./api.js";
import { addressOf, COLOURS, errors, gauge, overlay, points, reasons, strip } from "./paint.js";

const MOST_BARS = 10, COVERAGE = 0.95;
const FIT = { stretch: "fill", pad: "contain", crop: "cover" };
const place = document.getElementById("answer");
const part = (name) => place.querySelector(`[data-part="${name}"]`);
const figure = (name) => place.querySelector(`[data-figure="${name}"]`);

// The path and query of the request for each image; the curl command shows the same.
export function request(model) {
  const able = model.operations;
  const query = new URLSearchParams({ model: `${model.name}@${model.version}` });
  if (able.includes("explain")) query.set("explain", "true");
  if (able.includes("reconstruct") || mapsPatches(model)) query.set("heatmap", "true");
  if (able.includes("regions")) query.set("regions", "true");
  if (able.includes("sets")) query.set("coverage", COVERAGE);
  if (model.rate) query.set("false_alarm_rate", model.rate);
  return `v1/predict?${query}`.replace("%40", "@");
}

// The label, or all labels that the image has, where it may have several.
export const labelled = ({ label, labels }) => label ?? (labels && (labels.map((each) => each.label).join(", ") || "None of its labels"));

export function headline(result) {
  if (labelled(result) !== undefined) return `${labelled(result)}, ${percent(result.confidence)} sure. ${judgement(result)}`;
  return [judgement(result) || "Encoded", result.regions && regions.counted(result)].filter(Boolean).join(". ");
}

const judgement = (result) => result.score === undefined ? ""
  : result.anomalous ? "Unlike what this model knows" : "Like what this model knows";

export const mapsPatches = (model) => Boolean(model.manifest.graphs.patches && model.manifest.anomaly);
export const share = (value) => `${Number((100 * value).toPrecision(2))} %`;

let regions = null; // loaded for the first model that maps patches
let similar = null; // loaded for the first model that has an index

export async function prepare(model) {
  if (mapsPatches(model)) regions ??= await import("./regions.js");
  if (model.operations.includes("similar")) similar ??= await import("./similar.js");
}

let shown = ""; // the picture and the model of the answer on the page

export function show(item, model) {
  place.hidden = false;
  place.classList.toggle("waiting", item.state === "waiting" && !item.result);
  const problem = place.querySelector("[data-problem]");
  problem.hidden = !item.problem;
  problem.replaceChildren(...(item.problem ? tell(item.problem) : []));
  place.querySelector(".split").hidden = place.querySelector(".cards").hidden = item.state === "failed" || !item.result;
  if (!item.result || item.state === "failed") return;
  const key = `${item.url} ${model.digest}`, again = key === shown; // again: another false-alarm rate at most
  shown = key;
  classes(item.result);
  setIn(item.result);
  anomaly(item, model, again);
  regions?.slider(model);
  if (!again) pictures(item, model);
  if (!again) similar?.show(item, model);
  regions?.show(item, figure("odd").querySelector(".frame"));
  code(item.result);
  timing(item);
  shell(item);
  fallsWhere(item.result, model);
}

export const tell = (problem) => [element("strong", { textContent: problem.message }), ` ${problem.detail}`];

function classes(result) {
  part("classes").hidden = labelled(result) === undefined;
  if (labelled(result) === undefined) return;
  const present = result.labels && new Set(result.labels.map((each) => each.label));
  const first = (label) => Number(present?.has(label) ?? false); // those that it has, then by probability
  // JavaScript reorders numeric keys.
  const ranked = Object.entries(result.probabilities).sort(([one, a], [other, b]) => first(other) - first(one) || b - a);
  const bars = place.querySelector(".bars");
  const shown = ranked.slice(0, MOST_BARS);
  while (bars.children.length > shown.length) bars.lastChild.remove();
  while (bars.children.length < shown.length) {
    bars.append(element("li", {}, element("span", { className: "label" }), element("span", { className: "share" }),
      element("div", { className: "bar" }, element("div"))));
  }
  bars.classList.toggle("odd", Boolean(result.anomalous));
  bars.firstChild.querySelector(".label").dataset.testid = "top-label";
  shown.forEach(([label, share], index) => {
    const [name, number, bar] = bars.children[index].children;
    name.textContent = label;
    const chosen = present ? present.has(label) : index === 0;
    number.textContent = chosen ? `${percent(share)} ${present ? "likely" : "sure"}` : percent(share);
    bars.children[index].classList.toggle("chosen", chosen);
    bar.firstChild.style.width = `${100 * share}%`;
  });
}

// What the prediction set says: one label, several that it cannot tell apart, or none.
function setIn({ set, anomalous }) {
  const words = place.querySelector(".set");
  words.hidden = set === undefined;
  if (words.hidden) return;
  const strong = element("strong", { textContent: set.join(", ") });
  const said = set.length === 0 ? ["None of its labels is likely enough"]
    : set.length === 1 ? ["Nothing but ", strong, " is likely enough"] : ["It cannot tell these apart: ", strong];
  const promise = set.length === 0 ? `; of 100 images like those that it knows this happens to at most ${Math.round(100 - 100 * COVERAGE)}.`
    : anomalous ? "; for an image like this nothing is promised." : `: such a set holds the truth for ${100 * COVERAGE} of 100 images.`;
  words.replaceChildren(...said, promise);
}

function anomaly({ result, rate }, model, again) {
  const section = part("anomaly");
  section.hidden = result.score === undefined;
  if (section.hidden) return;
  const calibration = model.manifest.anomaly;
  section.classList.toggle("odd", result.anomalous);
  // An anomaly comes first, because it casts doubt on the label. While the slider moves, it stays.
  if (!again) section.parentElement[result.anomalous ? "prepend" : "append"](section);
  section.querySelector("h2").textContent = judgement(result);
  const words = asHigh(result.p_value, calibration.calibrated_on);
  section.querySelector("p").textContent =
    `${words} (p = ${Number(result.p_value.toPrecision(2))}). The score is ${signed(result.score)}; above ` +
    `${signed(result.threshold)} an image is called anomalous, as at most ${share(rate ?? calibration.false_alarm_rate)} of normal ones are. It adds up, in standard deviations, ` +
    `${calibration.distances.map((distance) => summand(distance, result.distances)).join(", ")}.`;
  const label = `Anomaly score ${signed(result.score)}, ${result.anomalous ? "above" : "not above"} the threshold of ${signed(result.threshold)}`;
  section.querySelector(".gauge").replaceChildren(gauge(result.score, result.threshold, calibration.quantiles, label));
}

const TAKEN = { pixels: "the drawing", embedding: "its embedding", features: "its feature vector", thumbnail: "its thumbnail", patches: "its oddest patches" };
const MEASURED = {
  reconstruction: (what) => `how far off ${what} is`,
  mahalanobis: (what) => `how far ${what} lies from the middle of the normal ones`,
  residual: (what) => `how much of ${what} lies where no normal one differs`,
  neighbours: (what) => `how far ${what} is from the nearest normal ones`,
  local: (what) => `how far ${what} is from the nearest normal ones, relative to the distances among those`,
  patches: (what) => `how unlike those of normal ones ${what} are`,
};

// One distance of the score in words, with its value in standard deviations, of which the score is the sum. A distance
// that has no words here is shown by its name.
function summand(distance, distances) {
  const { measure, takes, mean, std } = distance, name = nameOf(distance);
  const text = takes in TAKEN && measure in MEASURED ? MEASURED[measure](TAKEN[takes]) : name;
  return `${text} (${signed((distances[name] - mean) / std)})`;
}

// A p-value in words. The p-value counts the image itself as one of the held-out images.
export function asHigh(p, heldOut) {
  const count = Math.round(p * (heldOut + 1)) - 1;
  if (count <= 0) return `None of ${heldOut.toLocaleString("en")} held-out normal images scores as high`;
  if (p >= 0.995) return "Nearly every held-out normal image scores as high";
  if (p >= 0.1) return `${Math.round(100 * p)} of 100 held-out normal images score as high`;
  return `${count.toLocaleString("en")} of ${heldOut.toLocaleString("en")} held-out normal images ${count === 1 ? "scores" : "score"} as high`;
}

function framed(name, model, ...children) {
  const frame = figure(name).querySelector(".frame");
  const [height, width] = model.input;
  const shape = (across, down) => {
    frame.style.aspectRatio = `${across} / ${down}`;
    frame.style.setProperty("--aspect", across / down);
  };
  shape(width, height);
  if (model.manifest.input.tiles) { // a picture in tiles keeps its shape
    const image = children.find((child) => child.tagName === "IMG");
    image?.addEventListener("load", () => shape(image.naturalWidth, image.naturalHeight), { once: true });
  }
  frame.replaceChildren(...children);
}

// The colour of what is added at the sides; where the edge is repeated, none.
function bars(background, padding) {
  if (padding === "edge") return "";
  return Array.isArray(padding) ? `rgb(${[0, 1, 2].map((channel) => padding[channel] ?? padding[0]).join(" ")})` : background;
}

export function pictureOf(item, model, alt) {
  const { resize, background, padding } = model.manifest.input;
  const image = element("img", { src: item.url, alt, draggable: false });
  image.style.objectFit = FIT[resize];
  image.style.background = resize === "pad" ? bars(background, padding) : "";
  image.addEventListener("load", () => image.classList.toggle("coarse", Math.max(image.naturalWidth, image.naturalHeight) < 100));
  image.addEventListener("error", () => image.replaceWith(element("span", { className: "unseeable", textContent: "Your browser cannot show this file; the model can read it." })));
  return image;
}

function pictures(item, model) {
  const { result } = item, patches = mapsPatches(model);
  const likeliest = result.labels ? result.labels[0] : result; // whose evidence is drawn
  const has = { input: !patches, drawn: result.image, why: likeliest?.explanation, odd: result.heatmap };
  for (const [name, value] of Object.entries(has)) figure(name).hidden = !value;
  const caption = (name, text) => { figure(name).querySelector("span").textContent = text; };
  framed("input", model, pictureOf(item, model, `Your image, ${item.name}`));
  caption("input", item.name);
  if (result.image) {
    framed("drawn", model, element("img", { src: addressOf(result.image), alt: "The image, reconstructed from its embedding", className: "coarse" }));
    caption("drawn", `from ${result.embedding.length} numbers, ${percent(Math.sqrt(result.error))} off`);
  }
  layered("why", item, model, likeliest?.explanation, reasons, `What speaks for ${likeliest?.label}, and against it`);
  const key = (kind, text) => element("span", { className: `key ${kind}`, textContent: text });
  figure("why").querySelector("span").replaceChildren(key("for", `for ${likeliest?.label}`), " ", key("against", "against"));
  figure("odd").classList.toggle("patches", patches);
  figure("odd").querySelector("b").textContent = patches ? "Anomaly map" : "Reconstruction error";
  layered("odd", item, model, result.heatmap, errors, patches ? `Where ${item.name} is least like sound pictures` : "Where the image differs most from its reconstruction");
  const counts = result.distances && ("reconstruction" in result.distances ? "; part of the score" : "; not part of the score");
  caption("odd", patches ? `where ${item.name} is least like sound ones` : `where the reconstruction is off${counts ?? ""}`);
}

function layered(name, item, model, map, colour, alt) {
  if (!map) return;
  const canvas = element("canvas", { role: "img", ariaLabel: alt });
  const below = pictureOf(item, model, "");
  below.classList.add("below");
  framed(name, model, below, canvas, element("div", { className: "boxes" }));
  overlay(canvas, map, colour);
}

const signed = (number) => number.toFixed(2).replace("-", "−");

function code({ embedding }) {
  const canvas = place.querySelector(".strip");
  strip(canvas, embedding);
  const [low, high] = [Math.min(...embedding), Math.max(...embedding)];
  const summary = `${embedding.length} numbers, from ${signed(low)} to ${signed(high)}`;
  canvas.setAttribute("aria-label", summary);
  part("code").querySelector("p").textContent = `${summary}. Similar images have similar embeddings.`;
}

function timing({ times, elapsed }) {
  const known = ["queue", "decode", "run"].filter((name) => name in times);
  const sum = known.reduce((total, name) => total + times[name], 0);
  const parts = [...known.map((name) => [name, times[name]]),
    ["rest of the service", Math.max(0, (times.total ?? sum) - sum)], ["network and browser", Math.max(0, elapsed - (times.total ?? sum))]];
  part("timing").querySelector(".spans").replaceChildren(...parts.map(([, ms], index) => {
    const span = element("i", { className: `t${index}` });
    span.style.flexGrow = ms;
    return span;
  }));
  part("timing").querySelector(".times").replaceChildren(...[...parts, ["total", elapsed]].map(([name, ms], index) =>
    element("div", { className: `t${index}` }, element("dt", { textContent: name }), element("dd", { textContent: milliseconds(ms) }))));
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function shell(item) {
  const key = hasKey() ? ' -H "Authorization: Bearer $GRAFT_KEY"' : "";
  // curl treats ; and , in a file name as syntax, unless the name is in double quotes.
  const file = /[;,"\\]/.test(item.name) ? `"${item.name.replace(/["\\]/g, "\\$&")}"` : item.name;
  const [command, answer] = part("curl").querySelectorAll("code");
  command.textContent = `curl${key} -F ${quoted(`image=@${file}`)} \\\n  ${quoted(new URL(item.address, root).href)}`;
  answer.textContent = JSON.stringify(item.answer, (_, value) => typeof value === "string" && value.length > 200 ? `${value.slice(0, 60)}…` : value, 1);
}

let drawn = { map: null };

export function fallsWhere({ embedding, label }, model) {
  const section = part("map"), { map } = model;
  const words = section.querySelector("p"), place = section.querySelector(".map");
  place.hidden = !map;
  if (!map) {
    words.textContent = model.parts.includes("map") ? "Reading the map…" : "This bundle has no map. Bundles that are exported from now on do.";
    return;
  }
  const coloured = Boolean(map.labels && model.labels);
  if (drawn.map !== map) {
    const keys = (coloured ? model.labels : []).map((name, index) => {
      const dot = element("i");
      dot.style.background = COLOURS[index % COLOURS.length];
      return element("li", { data: { label: name } }, dot, name);
    });
    drawn = { map, keys, ...points(map, coloured) };
    place.replaceChildren(drawn.picture, element("ul", { className: "keys", hidden: !coloured }, ...keys));
    words.textContent = `Among ${map.points.length} held-out images, by the two directions that ${coloured ? "separate the classes best" : "have the most variance"}.`;
  }
  const at = [0, 1].map((axis) => embedding.reduce((sum, value, index) => sum + (value - map.mean[index]) * map.directions[index][axis], 0));
  drawn.mark(at, `The image among ${map.points.length} others${coloured ? `; nearest are ${nearestLabels(map, at, model.labels)}` : ""}`);
  for (const key of drawn.keys) key.className = key.dataset.label === label ? "own" : "";
}

function nearestLabels(map, at, labels) {
  const order = map.points.map((p, index) => [Math.hypot(p[0] - at[0], p[1] - at[1]), map.labels[index]]).sort((a, b) => a[0] - b[0]);
  return [...new Set(order.slice(0, 9).map(([, label]) => labels[label]))].slice(0, 3).join(", ");
}
