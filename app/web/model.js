// A model's page: its manifest, card and report, and its live metrics.

import { call, element, json, milliseconds, nameOf, percent, Problem, root, sentence } from "./api.js";
import { quantile, series, summary } from "./live.js";
import { svg } from "./paint.js";

const EVERY = 5000; // milliseconds between two requests of /metrics
const at = (id) => document.getElementById(id);
const name = decodeURIComponent(location.pathname.split("/").filter(Boolean).pop());

const SHARE = (value) => percent(value, 2);
const TILES = { // metric → [text, format of its value]
  accuracy: ["classified correctly", SHARE],
  balanced_accuracy: ["correct, mean over classes", SHARE],
  mean_average_precision: ["average precision, mean over labels", SHARE],
  micro_f1: ["F1 of all decisions on labels", SHARE],
  macro_f1: ["macro F1", SHARE],
  left_out_accuracy: ["of its few images classified correctly, each left out in turn", SHARE],
  set_coverage: ["of sets at 95 % coverage hold the truth", SHARE],
  calibration_error: ["mean error of its confidence", SHARE],
  false_alarm_rate: ["false alarms on normal images", SHARE],
  reconstruction_mse: ["mean squared error of reconstructions", (value) => value.toPrecision(2)],
};

async function begin() {
  const { models } = await json("v1/models");
  const model = await json(`v1/models/${encodeURIComponent(name)}`);
  const full = `${model.name}@${model.version}`;
  document.title = `Graft: ${full}`;
  at("model").replaceChildren(...models.map((each) => element("option", { textContent: `${each.name}@${each.version}` })));
  at("model").value = full;
  at("model").addEventListener("change", () => { location.href = new URL(`models/${at("model").value}`, root); });
  at("try").href = new URL(`./?model=${full}`, root);
  at("name").textContent = model.name;
  at("title").textContent = `${sentence(model.title)} Version ${model.version}.`;
  tiles(model);
  facts(model);
  await Promise.all([card(model, full), report(model, full), live(model), drift(model, full)]);
}

function tiles({ metrics, milliseconds: each }) {
  const shown = metrics.filter((metric) => metric.name in TILES && !(metric.name === "balanced_accuracy" && even(metrics, metric))).map((metric) => {
    const [text, format] = TILES[metric.name];
    return [format(metric.value), text, `${metric.images.toLocaleString("en")} images: ${metric.how}`];
  });
  shown.push([milliseconds(each), "an image, measured at start", "everything that the model can do with it"]);
  at("tiles").replaceChildren(...shown.map(([value, text, how]) =>
    element("li", { className: "card", title: how }, element("strong", { textContent: value }), element("span", { textContent: text }))));
}

// Whether balanced accuracy equals accuracy: the classes have the same size, so it is not worth a tile.
const even = (metrics, balanced) => Math.abs(metrics.find((each) => each.name === "accuracy")?.value - balanced.value) < 5e-5;

function facts(model) {
  const { manifest, input: [height, width, channels] } = model;
  const p = manifest.provenance;
  const rows = [
    ["Takes", `${width} × ${height} pixels, ${channels === 1 ? "grey" : "colour"}; other images are resized (${manifest.input.resize})`],
    ["Classes", model.labels?.join(", ")],
    ["Can", model.operations.join(", ")],
    ["Embedding", `${manifest.latent_size} numbers`],
    ["Confidence", manifest.classifier && `logits divided by ${manifest.classifier.temperature.toFixed(3)} before ${manifest.classifier.thresholds ? "the sigmoid of each label" : "softmax"}, fitted on held-out images`],
    ["Has a label", manifest.classifier?.thresholds && `from ${manifest.classifier.labels.map((label, index) => `${percent(manifest.classifier.thresholds[index], 0)} for ${label}`).join(", ")} on`],
    ["Anomalous", manifest.anomaly && `above ${manifest.anomaly.threshold.toFixed(2)}: ${percent(manifest.anomaly.false_alarm_rate, 2)} of normal images, by ${manifest.anomaly.calibrated_on.toLocaleString("en")} held-out ones; the score sums ${manifest.anomaly.distances.map(nameOf).join(" + ")}`],
    ["From", `${p.source} → ${p.target}, seed ${p.seed}, ${p.created.slice(0, 10)}`],
    ["Began with", model.weights && `${model.weights.backbone}, ${model.weights.file}${model.weights.publisher ? `, published by ${model.weights.publisher}` : ""}, licence ${model.weights.licence ?? "not known"}`],
    ["Runs on", model.provider],
    ["Digest", model.digest],
  ];
  at("facts").replaceChildren(...rows.filter(([, value]) => value).map(([term, value]) =>
    element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: value }))));
}

// Renders the Markdown that cards use: headings, paragraphs, tables and inline code.
function prose(text) {
  const words = (line) => line.split(/(`[^`]+`)/).map((word) => /^`.+`$/.test(word) ? element("code", { textContent: word.slice(1, -1) }) : word);
  const cells = (line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  return text.trim().split(/\n\s*\n/).map((block) => {
    if (block.startsWith("#")) return element("h3", {}, ...words(block.replace(/^#+\s*/, "")));
    if (!block.startsWith("|")) return element("p", {}, ...words(block.replaceAll("\n", " ")));
    const [head, , ...rows] = block.split("\n");
    const row = (tag) => (line) => element("tr", {}, ...cells(line).map((cell) => element(tag, {}, ...words(cell))));
    return element("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: "Table" }, element("table", {},
      element("thead", {}, row("th")(head)), element("tbody", {}, ...rows.map(row("td")))));
  });
}

async function card(model, full) {
  if (!model.parts.includes("card")) return;
  at("card").querySelector(".prose").replaceChildren(...prose(await (await call(`v1/models/${full}/card`)).text()));
  at("card").hidden = false;
}

// Shown in a sandboxed frame without scripts, because the report comes with the bundle and is not trusted.
async function report(model, full) {
  if (!model.parts.includes("report")) return;
  const frame = at("report").querySelector("iframe");
  frame.srcdoc = await (await call(`v1/models/${full}/report`)).text();
  at("report").hidden = false;
  frame.addEventListener("load", () => {
    const page = frame.contentDocument.documentElement;
    new ResizeObserver(() => { frame.style.height = `${page.scrollHeight + 2}px`; }).observe(page);
  });
}

async function live(model) {
  try {
    showLive(model, summary(series(await (await call("metrics", { ask: false })).text(), model.name, model.version)));
    at("live-problem").textContent = "";
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    at("live-problem").textContent = problem.status === 401 ? "The service shows these numbers to whoever has the key to its metrics."
      : `${problem.message} ${problem.detail}`;
    if (problem.status === 401) return;
  }
  setTimeout(() => live(model), EVERY);
}

function showLive(model, now) {
  const within = (times, share) => times.count ? `${milliseconds(1000 * quantile(times, share))} or less` : "–";
  const rows = [
    ["requests", now.requests.toLocaleString("en")], ["refused", now.refused.toLocaleString("en")], ["images", Math.round(now.images).toLocaleString("en")],
    ["images per batch", now.together ? now.together.toFixed(1) : "–"],
    ["run, median", within(now.run, 0.5)], ["run, 95th percentile", within(now.run, 0.95)], ["queue, 95th percentile", within(now.queue, 0.95)], ["decode, 95th percentile", within(now.decode, 0.95)],
  ];
  at("numbers").replaceChildren(...rows.map(([term, value]) => element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: value }))));
  at("charts").replaceChildren(...[
    model.manifest.anomaly && chart("Anomaly scores", now.score, model.manifest.anomaly.threshold),
    model.manifest.classifier && chart("Confidence", now.confidence),
  ].filter(Boolean));
  at("asked").textContent = `as of ${new Date().toLocaleTimeString()}`;
}

async function drift(model, full) {
  if (!model.parts.includes("drift")) {
    at("drift").textContent = "This bundle cannot measure drift: it was exported without embeddings of held-out images, or from too few images. "
      + "Export it again, or run graft-train calibrate on normal images of yours; the next version can.";
    return;
  }
  try {
    showDrift(await json(`v1/models/${full}/drift`));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    at("drift").textContent = `${problem.message} ${problem.detail}`;
  }
  setTimeout(() => drift(model, full), EVERY);
}

const grouped = (number) => number.toLocaleString("en");
// A capital, which may be astronomical.
const capital = (value) => (value >= 1e6 ? `10^${Math.floor(Math.log10(value))}` : value >= 10 ? grouped(Math.round(value)) : value.toPrecision(2));

function showDrift(found) {
  const { images, window, drifted, p_value, discrepancy, confidence_stability, anomaly_score_stability } = found;
  showMartingale(found);
  at("drift").textContent = drifted === undefined
    ? `Not known yet: it needs ${window.toLocaleString("en")} images, and has seen ${images.toLocaleString("en")}.`
    : `The latest ${window.toLocaleString("en")} images ${drifted ? "do not look" : "look"} like those that were held out when it was trained: `
      + `a random draw of as many held-out images differs as much in ${percent(p_value)} of cases${drifted ? " or fewer" : ""}.`;
  at("drift").className = drifted ? "problem" : "";
  const moved = (index) => index !== undefined && `${index.toFixed(2)}, ${index < 0.1 ? "unchanged" : index <= 0.25 ? "changed" : "much changed"}`;
  const { estimated_accuracy: accuracy, estimated_accuracy_interval: interval } = found;
  const rows = [["accuracy, estimated without labels", accuracy && `${percent(accuracy)}, ${percent(interval[0])} to ${percent(interval[1])}`],
    ["discrepancy of embeddings", discrepancy?.toPrecision(2)], ["confidence", moved(confidence_stability)], ["anomaly score", moved(anomaly_score_stability)]];
  at("moved").replaceChildren(...rows.filter(([, value]) => value).map(([term, value]) =>
    element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: value }))));
}

function showMartingale({ watched, martingale, martingale_alarm_at: limit, martingale_over_time: points, alarm, alarm_after: after }) {
  at("martingale").hidden = martingale === undefined;
  if (martingale === undefined) return;
  const words = at("martingale").querySelector("p");
  words.textContent = alarm
    ? `Alarm${after === undefined ? " in another worker" : ` after ${grouped(after)} images`}: images have changed. What the model promises holds for images like those it was calibrated on: `
      + "coverage of sets, confidence, false alarms. For these it holds no longer."
    : `No alarm in ${grouped(watched)} images. A gambler who bets that images have changed has made ${capital(martingale)} of 1; at ${grouped(limit)} the alarm is raised, `
      + "which without a change happens in 1 of 100 services, however long they run.";
  words.className = alarm ? "problem" : "";
  at("martingale").querySelector("figure")?.remove();
  if (points.length > 1) at("martingale").append(over(points, limit));
}

const MOST_POWER = 6; // of ten: beyond, the line runs along the edge

// The martingale over images, on a scale of powers of ten; a dashed line where the alarm is raised.
function over(points, limit) {
  const logs = points.map(([, value]) => Math.max(-MOST_POWER, Math.min(MOST_POWER, Math.log10(value || Number.MIN_VALUE))));
  const low = Math.floor(Math.min(-1, ...logs)), high = Math.ceil(Math.max(Math.log10(limit) + 0.5, ...logs));
  const last = points.at(-1)[0], x = (image) => 44 + 346 * image / last, y = (log) => 108 - 98 * (log - low) / (high - low);
  const text = (word, place) => svg("text", place, word);
  const parts = [
    svg("path", { class: "axis", d: "M44 108.5H390" }),
    svg("path", { class: "limit", d: `M44 ${y(Math.log10(limit))}H390` }),
    svg("polyline", { class: "line", points: points.map(([image], index) => `${x(image).toFixed(1)},${y(logs[index]).toFixed(1)}`).join(" ") }),
    ...[0, Math.round(Math.log10(limit)), low, high].filter((power, index, all) => !all.slice(0, index).some((other) => Math.abs(y(other) - y(power)) < 12))
      .map((power) => text(`10^${power}`.replace("-", "−"), { x: 38, y: y(power) + 3, "text-anchor": "end" })),
    text("0", { x: 44, y: 124, "text-anchor": "middle" }), text(`${grouped(last)} images`, { x: 390, y: 124, "text-anchor": "end" }),
  ];
  const caption = `The gambler's capital over ${grouped(last)} images; alarm at ${grouped(limit)}`;
  return element("figure", {}, svg("svg", { viewBox: "0 0 400 132", role: "img", "aria-label": caption }, ...parts), element("figcaption", { textContent: caption }));
}

// A bar per bin, with the upper bounds below; bins above the threshold have another colour.
function chart(title, { count, bins }, threshold) {
  const most = Math.max(1, ...bins.map((bin) => bin.count)), width = 400 / Math.max(1, bins.length);
  const parts = bins.flatMap((bin, index) => [
    svg("rect", { class: threshold !== undefined && bin.below > threshold ? "odd" : "bin", x: index * width + 1, width: width - 2, y: 110 - 100 * bin.count / most, height: 100 * bin.count / most },
      svg("title", {}, `${bin.count} ${bin.below === Infinity ? "above the last" : `up to ${bin.below}`}`)),
    index % 3 || bin.below === Infinity ? "" : svg("text", { x: (index + 1) * width, y: 126, "text-anchor": "middle" }, String(bin.below)),
  ]);
  const summary = count ? `${title} of ${count.toLocaleString("en")} images` : `${title}: no image yet`;
  const caption = threshold === undefined ? summary : `${summary}; anomalous above ${threshold.toFixed(2)}`;
  return element("figure", {}, svg("svg", { viewBox: "0 0 400 132", role: "img", "aria-label": caption }, svg("path", { class: "axis", d: "M0 110.5H400" }), ...parts), element("figcaption", { textContent: caption }));
}

begin().catch((problem) => {
  if (!(problem instanceof Problem)) throw problem;
  at("problem").hidden = false;
  at("problem").replaceChildren(element("strong", { textContent: problem.message }), ` ${problem.detail}`);
});
