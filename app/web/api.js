// Requests to the service: addresses, the API key, problems as sentences, timings.

const KEY = "graft-key";
const MOST_TRIES = 5;

// This file is served at <root>/web/api.js; a proxy may put the root below any path.
export const root = new URL("..", import.meta.url);

const SAID = {
  "not-an-image": "This is no image that Graft can read.",
  "broken-image": "This image is damaged.",
  "too-many-pixels": "This image has too many pixels.",
  "body-too-large": "This file is too large.",
  "queue-full": "The service is busy. Try again in a moment.",
  "deadline-passed": "The answer took too long.",
  "not-ready": "The service has no model to answer with.",
  "unknown-model": "This model is not loaded any more.",
  "unauthorised": "This needs a key.",
  "unreachable": "The service does not answer.",
};

export class Problem extends Error {
  constructor({ type = "", title = "Something went wrong", detail = "", status = 0 }, retryAfter = 0) {
    const kind = type.split(":").pop();
    super(SAID[kind] || sentence(title));
    Object.assign(this, { kind, status, retryAfter, detail: sentence(detail) });
  }
}

export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

let asking = null;

// One dialog for all requests that wait for a key. sessionStorage keeps the key until the tab is closed.
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const field = element("input", { type: "password", autocomplete: "off", required: true });
    const form = element("form", { method: "dialog" },
      element("h2", { id: "key-title", textContent: "This service asks for a key" }),
      element("p", { className: "problem", textContent: "The key that you gave is not one of its keys.", hidden: !wrong }),
      element("label", {}, "Key ", field),
      element("p", { className: "quiet", textContent: "It stays in this tab, and goes when you close it." }),
      element("div", { className: "buttons" }, element("button", { className: "main", value: "use", textContent: "Use it" }),
        element("button", { value: "", formNoValidate: true, textContent: "Cancel" })));
    const dialog = element("dialog", { id: "key" }, form);
    dialog.setAttribute("aria-labelledby", "key-title");
    dialog.addEventListener("close", () => {
      const key = dialog.returnValue === "use" ? field.value.trim() : "";
      if (key) sessionStorage.setItem(KEY, key);
      dialog.remove();
      asking = null;
      resolve(Boolean(key));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

function send(path, options, key) {
  const headers = new Headers(options.headers);
  // Headers takes one character per byte: the key's UTF-8 bytes.
  if (key !== null) headers.set("Authorization", `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`);
  return fetch(new URL(path, root), { ...options, headers });
}

// With `ask: false`, a missing key is an error, and the dialog is not shown.
export async function call(path, { ask = true, ...options } = {}) {
  for (let tries = 1; ; tries += 1) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await send(path, options, key);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem({ type: "unreachable", detail: "Is it still running?" });
    }
    if (answer.ok) return answer;
    const changed = key !== sessionStorage.getItem(KEY);
    if (answer.status === 401 && ask && (changed || await askForKey(key !== null))) continue;
    const wait = Number(answer.headers.get("Retry-After"));
    if (answer.status === 429 && tries < MOST_TRIES) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(wait || 1, 10)));
      continue;
    }
    const body = await answer.json().catch(() => ({ title: `The service answers ${answer.status}` }));
    throw new Problem(body, wait);
  }
}

export const json = async (path, options) => (await call(path, options)).json();

// Server-Timing: queue;dur=0.1, decode;dur=0.2 → {queue: 0.1, decode: 0.2}, in milliseconds
export function timings(answer) {
  const parts = (answer.headers.get("Server-Timing") || "").split(",");
  return Object.fromEntries(parts.map((part) => part.trim().split(";dur=")).filter((pair) => pair.length === 2)
    .map(([name, milliseconds]) => [name, Number(milliseconds)]));
}

export function element(tag, properties = {}, ...children) {
  const { data, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

// The key of an anomaly score's distance in `distances` of a result.
export const nameOf = ({ measure, takes }) => (["pixels", "patches"].includes(takes) ? measure : `${takes}.${measure}`);

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const milliseconds = (ms) => (ms < 0.95 ? `${ms.toFixed(2)} ms` : ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`);
