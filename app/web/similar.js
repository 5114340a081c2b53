// The images of the model's index that are most like the one on the page.

import { element, json, Problem } from "./api.js";

const COUNT = 6;
const part = document.querySelector('[data-part="similar"]');
let asked = null; // the item and the model that were asked about last

export async function show(item, model) {
  const own = asked = { item, model };
  part.hidden = !model.operations.includes("similar");
  if (part.hidden) return;
  const list = part.querySelector("ol"), words = part.querySelector("p");
  const form = new FormData();
  form.append("image", item.file, item.name);
  try {
    const address = `v1/similar?model=${model.name}@${model.version}&k=${COUNT}&thumbnails=true`;
    const { results: [{ similar }] } = await json(address, { method: "POST", body: form });
    if (own !== asked) return; // the user looks at another image meanwhile
    list.replaceChildren(...similar.map((each) => one(each, model)));
    words.textContent = told(similar, item);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (own !== asked) return;
    list.replaceChildren();
    words.textContent = `${problem.message} ${problem.detail}`;
  }
}

function one({ label, file, distance, thumbnail }, model) {
  const name = label ?? file ?? "without a label";
  const picture = thumbnail
    ? element("img", { src: `data:image/webp;base64,${thumbnail}`, alt: "", className: Math.max(...model.input.slice(0, 2)) < 100 ? "coarse" : "" })
    : element("span", { className: "blank", textContent: "no picture" });
  return element("li", { title: file ?? "" }, picture, element("b", { textContent: name }),
    element("span", { textContent: distance.toFixed(2) }));
}

function told(similar, { result }) {
  const labels = similar.map((each) => each.label), own = result?.label;
  const agreed = labels.filter((label) => label === own).length;
  const agreeing = own && labels.some(Boolean) ? ` ${agreed} of ${similar.length} are ${own}.` : "";
  return `By the distance between embeddings, the nearest first.${agreeing}`;
}
