"use strict";
const list = JSON.parse(document.getElementById("list").textContent);
const inputs = [...document.querySelectorAll("li input")];
const names = document.getElementById("names"), state = document.getElementById("state");
const kept = `graft-label:${list.id}`;

function changed() {
  const done = inputs.filter((input) => !["", "?"].includes(input.value.trim()));
  const known = [...new Set([...list.kinds, ...done.map((input) => input.value.trim())])].sort();
  names.replaceChildren(...known.map((name) => Object.assign(document.createElement("option"), {value: name})));
  state.textContent = `${done.length} of ${inputs.length} have a label`;
  const values = Object.fromEntries(inputs.map((input) => [input.dataset.row, input.value]));
  try { localStorage.setItem(kept, JSON.stringify(values)); } catch { /* the browser keeps nothing: the file is what counts */ }
}

function next(input) {
  const other = inputs[inputs.indexOf(input) + 1];
  (other ?? document.getElementById("save")).focus();
  if (other) other.select();
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const labels = new Map(inputs.map((input) => [Number(input.dataset.row), input.value.trim()]));
  const lines = list.rows.map(([path, label], row) => `${quoted(path)},${quoted(labels.get(row) ?? label)}`);
  const file = new Blob([["path,label", ...lines, ""].join("\n")], {type: "text/csv"});
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(file), download: "labels.csv"});
  link.click();
  URL.revokeObjectURL(link.href);
}

let before = {};
try { before = JSON.parse(localStorage.getItem(kept)) ?? {}; } catch { /* the same */ }
for (const input of inputs) {
  if (before[input.dataset.row]) input.value = before[input.dataset.row];
  input.addEventListener("input", changed);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); next(input); }
  });
}
for (const button of document.querySelectorAll("li button")) {
  button.addEventListener("click", () => {
    const input = button.closest("li").querySelector("input");
    input.value = button.value;
    changed();
    next(input);
  });
}
document.getElementById("save").addEventListener("click", save);
changed();
inputs[0]?.focus({preventScroll: true});
