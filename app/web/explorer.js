// Interpolates between the embeddings of two images and shows the decoded image as the slider moves.

import { call, element } from "./api.js";
import { pictureOf } from "./answer.js";

const section = document.getElementById("explorer");
const slider = document.getElementById("mix");
const picture = section.querySelector(".middle img");
const output = section.querySelector("output");
const ends = { from: null, to: null };
let model = null, items = [], wanted = null, busy = false;

slider.addEventListener("input", draw);

// Offers the images that have embeddings of the chosen model.
export function offer(all, chosen) {
  model = chosen;
  section.hidden = !model.operations.includes("decode");
  items = all.filter((item) => item.state === "done" && item.digest === model.digest);
  const enough = items.length > 1;
  section.querySelector(".between").hidden = !enough;
  section.querySelector(".empty").hidden = enough;
  if (section.hidden || !enough) return;
  if (!items.includes(ends.from)) ends.from = items.find((item) => item !== ends.to);
  if (!items.includes(ends.to) || ends.to === ends.from) ends.to = items.findLast((item) => item !== ends.from);
  for (const end of Object.keys(ends)) list(end);
  draw();
}

function list(end) {
  const choices = section.querySelector(`[data-end="${end}"] .choices`);
  const made = new Map([...choices.children].map((label) => [Number(label.dataset.item), label]));
  choices.replaceChildren(...items.map((item) => made.get(item.id) ?? choice(end, item)));
  for (const label of choices.children) label.querySelector("input").checked = Number(label.dataset.item) === ends[end].id;
  large(end);
}

function large(end) {
  const frame = section.querySelector(`[data-end="${end}"] .frame`);
  frame.style.aspectRatio = `${model.input[1]} / ${model.input[0]}`;
  frame.replaceChildren(pictureOf(ends[end], model, ends[end].name));
}

function choice(end, item) {
  const radio = element("input", { type: "radio", name: end, ariaLabel: item.name });
  radio.addEventListener("change", () => { ends[end] = item; large(end); draw(); });
  return element("label", { data: { item: item.id } }, radio, pictureOf(item, model, ""));
}

function draw() {
  const share = slider.value / 100;
  const [from, to] = [ends.from.result.embedding, ends.to.result.embedding];
  output.textContent = `${100 - slider.value} % ${ends.from.name}, ${slider.value} % ${ends.to.name}`;
  wanted = from.map((value, index) => value + share * (to[index] - value));
  decode();
}

// Runs one request at a time, for the slider's latest position.
async function decode() {
  if (busy) return;
  busy = true;
  try {
    while (wanted !== null) {
      const body = JSON.stringify({ embeddings: [wanted] }), of = output.textContent;
      wanted = null;
      const headers = { "Content-Type": "application/json", Accept: "image/png" };
      const answer = await call(`v1/decode?model=${model.name}@${model.version}`, { method: "POST", headers, body });
      const before = picture.src;
      picture.src = URL.createObjectURL(await answer.blob());
      await picture.decode();
      URL.revokeObjectURL(before);
      picture.alt = `Drawn from an embedding between both: ${of}`;
      picture.hidden = false;
      picture.parentElement.style.aspectRatio = `${model.input[1]} / ${model.input[0]}`;
    }
  } catch (problem) {
    output.textContent = `${problem.message} ${problem.detail}`;
  } finally {
    busy = false;
  }
}
