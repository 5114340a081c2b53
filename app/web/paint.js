// Graphics that the page draws: heatmaps over images, embeddings as strips, the score's gauge, the latent map.

const FOR = [232, 106, 0], AGAINST = [0, 114, 178], ODD = [236, 28, 96];
// Distinct for colour-blind people too (Okabe and Ito); a bundle's report uses the same.
export const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a6761d", "#7570b3", "#66a61e", "#e7298a"];

export const blobOf = (base64) => new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/png" });
export const addressOf = (base64) => `data:image/png;base64,${base64}`;

// Grey level → RGBA. 128 is neutral, lighter speaks for the label, darker against it.
export const reasons = (grey) => {
  const share = (grey - 127.5) / 127.5;
  return [...(share > 0 ? FOR : AGAINST), 235 * Math.abs(share) ** 0.8];
};
export const errors = (grey) => [...ODD, 240 * (grey / 255) ** 0.9];

// Draws a grey PNG (base64) on the canvas; `colour` maps a grey level to RGBA.
export async function overlay(canvas, base64, colour) {
  const bitmap = await createImageBitmap(blobOf(base64));
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  const picture = pen.getImageData(0, 0, canvas.width, canvas.height);
  const colours = Array.from({ length: 256 }, (_, grey) => colour(grey));
  for (let at = 0; at < picture.data.length; at += 4) picture.data.set(colours[picture.data[at]], at);
  pen.putImageData(picture, 0, 0);
}

// A cell per number: blue below zero, orange above, paler near zero.
export function strip(canvas, code) {
  const most = Math.max(...code.map(Math.abs)) || 1;
  const rows = Math.max(1, Math.ceil(code.length / 64));
  canvas.width = Math.ceil(code.length / rows);
  canvas.height = rows;
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, rows);
  code.forEach((value, index) => {
    pen.fillStyle = `rgb(${value > 0 ? FOR : AGAINST} / ${Math.abs(value / most)})`.replaceAll(",", " ");
    pen.fillRect(index % canvas.width, Math.floor(index / canvas.width), 1, 1);
  });
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// The score on a line, with the range of nine in ten normal images and the threshold.
export function gauge(score, threshold, quantiles, text) {
  const width = 400, from = 8, to = width - 8;
  const normal = Object.fromEntries(Object.entries(quantiles).map(([share, value]) => [Number(share), value]));
  const low = Math.min(normal[0.01] ?? 0, score, threshold);
  const beyond = threshold + Math.max(threshold - (normal[0.5] ?? low), 1e-9);
  const high = Math.max(beyond, Math.min(score, beyond + (beyond - low)));
  const at = (value) => from + (to - from) * Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
  const within = (middle, half) => Math.max(from + half, Math.min(middle, to - half)); // so that a text is not cut off
  const parts = [
    svg("rect", { class: "below", x: from, y: 20, width: at(threshold) - from, height: 10 }),
    svg("rect", { class: "above", x: at(threshold), y: 20, width: to - at(threshold), height: 10 }),
  ];
  if (0.05 in normal && 0.95 in normal) {
    parts.push(svg("rect", { class: "usual", x: at(normal[0.05]), y: 20, width: at(normal[0.95]) - at(normal[0.05]), height: 10 }),
      svg("text", { x: within((at(normal[0.05]) + at(normal[0.95])) / 2, 84), y: 48, "text-anchor": "middle" }, "nine in ten normal images"));
  }
  const edge = at(threshold);
  parts.push(svg("path", { class: "edge", d: `M${edge} 14V36` }),
    svg("text", { x: within(edge, 34), y: 11, "text-anchor": "middle" }, "threshold"),
    score > threshold && score >= high
      ? svg("path", { class: "here", d: `M${to - 9} 15l9 10l-9 10Z` })
      : svg("circle", { class: "here", cx: at(score), cy: 25, r: 7.5 }));
  return svg("svg", { viewBox: `0 0 ${width} 54`, role: "img", "aria-label": text }, ...parts);
}

// The latent map's points in the colours of their labels. `mark` moves the image's mark, at most to the map's edge.
export function points(map, coloured) {
  const width = 400, height = 280, margin = 14;
  const axis = (index, from, to) => {
    const values = map.points.map((point) => point[index]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (value) => from + (to - from) * Math.max(-0.03, Math.min(1.03, (value - low) / (high - low || 1)));
  };
  const x = axis(0, margin, width - margin), y = axis(1, height - margin, margin);
  const dots = map.points.map((point, index) => svg("circle", {
    cx: x(point[0]).toFixed(1), cy: y(point[1]).toFixed(1), r: 3.2, "fill-opacity": 0.62,
    fill: coloured ? COLOURS[map.labels[index] % COLOURS.length] : "currentColor",
  }));
  const marks = [svg("circle", { class: "halo", r: 10 }), svg("circle", { class: "mark", r: 6 })];
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, ...dots, ...marks);
  const mark = ([across, up], text) => {
    picture.setAttribute("aria-label", text);
    for (const each of marks) {
      each.setAttribute("cx", x(across));
      each.setAttribute("cy", y(up));
    }
  };
  return { picture, mark };
}
