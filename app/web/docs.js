// Renders openapi.json, which is generated from the routes. Its texts are set as textContent, never as HTML.

import { element, json, root } from "./api.js";

const text = (tag, words) => element(tag, { textContent: words });

function table(head, rows) {
  const line = (tag, cells) => element("tr", {}, ...cells.map((cell) => text(tag, cell)));
  return element("div", { className: "wide" }, element("table", {}, line("th", head), ...rows.map((row) => line("td", row))));
}

function block(words) {
  const made = text("pre", words);
  made.tabIndex = 0;
  return made;
}

// Schema → the shape of its JSON: {"name": string, …}
function sketch(schema, all, depth = 0) {
  if (!schema || depth > 6) return "…";
  if (schema.$ref) return sketch(all[schema.$ref.split("/").pop()], all, depth);
  if (schema.anyOf) return schema.anyOf.map((one) => sketch(one, all, depth)).join(" | ");
  const pad = "  ".repeat(depth + 1);
  if (schema.properties) {
    const lines = Object.entries(schema.properties).map(([name, one]) => `${pad}"${name}": ${sketch(one, all, depth + 1)}`);
    return `{\n${lines.join(",\n")}\n${"  ".repeat(depth)}}`;
  }
  if (schema.type === "array") return `[${sketch(schema.items, all, depth)}, …]`;
  if (schema.type === "object") return `{"…": ${sketch(schema.additionalProperties || {}, all, depth)}}`;
  return schema.const ? JSON.stringify(schema.const) : schema.format || schema.contentEncoding || schema.type || "any";
}

function operation(path, verb, described, all) {
  const inside = element("div");
  if (described.description) inside.append(text("p", described.description));
  const body = described.requestBody && described.requestBody.content;
  if (body) {
    inside.append(text("h3", "Body, one of"));
    for (const [type, one] of Object.entries(body)) inside.append(block(`${type}\n${sketch(one.schema, all)}`));
    if (body["multipart/form-data"]) inside.append(block(`curl -F image=@FILE ${new URL(path.slice(1), root)}`));
  }
  if (described.parameters && described.parameters.length) {
    const rows = described.parameters.map((one) => [one.name, one.in, one.description || (one.required ? "required" : "")]);
    inside.append(text("h3", "Parameters"), table(["name", "in", "meaning"], rows));
  }
  inside.append(text("h3", "Answers"));
  const problems = [];
  for (const [status, one] of Object.entries(described.responses)) {
    const [type, media] = Object.entries(one.content || {})[0] || ["", {}];
    if (type === "application/problem+json") problems.push([status, one.description]);
    else inside.append(block(`${status} ${type}\n${sketch(media.schema, all)}`));
  }
  if (problems.length) inside.append(table(["status", "application/problem+json"], problems));
  return element("details", {}, element("summary", {}, element("span", { className: "verb", textContent: verb.toUpperCase() }),
    text("code", path), element("span", { className: "quiet", textContent: described.summary })), inside);
}

json("openapi.json").then((api) => {
  document.getElementById("summary").textContent = `${api.info.summary}. Version ${api.info.version}.`;
  const all = (api.components || {}).schemas || {};
  const groups = new Map();
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, described] of Object.entries(verbs)) {
      const group = (described.tags || ["other"])[0];
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(operation(path, verb, described, all));
    }
  }
  for (const [group, made] of groups) document.getElementById("operations").append(text("h2", group), ...made);
}).catch((error) => { document.getElementById("summary").textContent = `openapi.json could not be read: ${error.message}`; });
