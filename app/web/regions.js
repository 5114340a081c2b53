// Anomalous regions: boxes over the picture, their list, and the slider of the false-alarm rate that they follow.

import { mapsPatches, share } from "./answer.js";
import { element } from "./api.js";

const STEPS = [1, 1.5, 2, 3, 4, 5, 7]; // in each power of ten
const MOST_STOPS = 10; // boxes that the Tab key stops at; the list has them all
const place = document.getElementById("answer");
const rate = document.getElementById("rate"), strength = document.getElementById("strength");

let model = null; // whose rate the slider moves

const short = (p) => `p = ${Number(p.toPrecision(2))}`;

// From the smallest rate for which there are enough normal images, 1 / (images + 1), to a half; a step that allows as
// many of them above the threshold as the last one is left out.
function ratesOf({ manifest: { anomaly: { calibrated_on: images, false_alarm_rate: own } } }) {
  const digit = 10 ** (Math.floor(Math.log10(1 / (images + 1))) - 2);
  const least = Number((Math.ceil(1 / (images + 1) / digit - 1e-6) * digit).toPrecision(3));
  const rates = new Set([least, own, 0.5]);
  for (let ten = 100 * digit; ten < 0.5; ten *= 10) {
    for (const step of STEPS) if (step * ten > least && step * ten < 0.5) rates.add(Number((step * ten).toPrecision(2)));
  }
  const allowed = (each) => Math.floor(each * (images + 1) + 1e-9);
  return [...rates].sort((a, b) => a - b)
    .filter((each, index, all) => index === 0 || each === own || allowed(each) > allowed(all[index - 1]));
}

export function slider(chosen) {
  model = chosen;
  rate.parentElement.hidden = !mapsPatches(model);
  if (rate.parentElement.hidden) return;
  const rates = ratesOf(model), own = model.manifest.anomaly.false_alarm_rate, now = model.rate ?? own;
  rate.max = rates.length - 1;
  rate.value = rates.indexOf(now);
  const text = `${share(now)} of normal images${now === own ? " (the model’s own)" : ""}`;
  rate.setAttribute("aria-valuetext", text);
  rate.parentElement.querySelector("span").textContent = text;
}

// `rate` of a model is null while it is the model's own.
rate.addEventListener("input", () => {
  const chosen = ratesOf(model)[rate.value];
  model.rate = chosen === model.manifest.anomaly.false_alarm_rate ? null : chosen;
  slider(model);
});

function strengthen() {
  strength.setAttribute("aria-valuetext", `${strength.value} %`);
  place.style.setProperty("--strength", strength.value / 100);
}
strength.addEventListener("input", strengthen);
strengthen();

export const counted = ({ regions }) => regions?.length ? `${regions.length} odd region${regions.length > 1 ? "s" : ""}` : "No odd region";

export function show({ result, rate: asked }, frame) {
  strength.parentElement.hidden = !mapsPatches(model) || !result.heatmap;
  const section = place.querySelector("[data-part=regions]");
  section.hidden = !result.regions;
  if (section.hidden) return;
  section.querySelector("p").textContent =
    `${counted(result)}. At most ${share(asked ?? model.manifest.anomaly.false_alarm_rate)} of normal images have any.`;
  const words = result.regions.map(({ box, p_value }) => {
    const [left, top, right, bottom] = box.map(Math.round);
    return `x ${left} to ${right}, y ${top} to ${bottom} px, ${short(p_value)}`;
  });
  section.querySelector("ol").replaceChildren(...words.map((textContent) => element("li", { textContent })));
  const image = frame.querySelector("img"), layer = frame.querySelector(".boxes");
  if (!image || !layer) return; // the browser cannot show the file
  const draw = () => layer.replaceChildren(...result.regions.flatMap((region, index) => box(region, index, words[index], result.regions, image, model)));
  if (image.complete) draw();
  else image.addEventListener("load", draw, { once: true });
}

// A box at its place over the picture, which lies in the frame as the model's input has it, and its p-value.
function box({ box: [left, top, right, bottom], area, p_value }, index, words, all, { naturalWidth, naturalHeight }, { manifest, input }) {
  const [height, width] = input, across = naturalWidth / width, down = naturalHeight / height;
  const { [manifest.input.resize]: scale } = { pad: Math.max(across, down), crop: Math.min(across, down) };
  const x = (at) => 50 + 100 * (at - naturalWidth / 2) / ((scale ?? across) * width);
  const y = (at) => 50 + 100 * (at - naturalHeight / 2) / ((scale ?? down) * height);
  const made = element("button", { type: "button", ariaLabel: `Region ${index + 1}: ${words}`, tabIndex: index < MOST_STOPS ? 0 : -1 });
  Object.assign(made.style, {
    left: `${x(left)}%`, top: `${y(top)}%`, width: `${x(right) - x(left)}%`, height: `${y(bottom) - y(top)}%`,
    zIndex: all.filter((other) => other.area > area).length, // the smaller lie above
  });
  return [made, element("span", { ariaHidden: "true", textContent: `${index + 1}: ${short(p_value)}` })];
}
