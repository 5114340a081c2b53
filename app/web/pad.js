// Draws strokes with the pointer, on the background colour of the model's input.

export class Pad {
  constructor(canvas, { brush, ink, undo, wipe }, changed) {
    Object.assign(this, { canvas, brush, ink, changed, strokes: [], background: "black" });
    this.pen = canvas.getContext("2d");
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    undo.addEventListener("click", () => { this.strokes.pop(); this.redraw(); });
    wipe.addEventListener("click", () => { this.strokes = []; this.redraw(); });
  }

  // Takes the aspect ratio of the model's input, at the size that the page shows.
  reshape([height, width], background) {
    const longest = 280;
    this.canvas.width = Math.round(longest * Math.min(1, width / height));
    this.canvas.height = Math.round(longest * Math.min(1, height / width));
    this.background = background;
    this.redraw(false);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.canvas.width / box.width, (event.clientY - box.top) * this.canvas.height / box.height];
  }

  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.strokes.push({ width: Number(this.brush.value), colour: this.ink.value, points: [this.at(event)] });
    this.redraw();
  }

  move(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    this.strokes.at(-1).points.push(...(steps.length ? steps : [event]).map((each) => this.at(each)));
    this.redraw();
  }

  redraw(tell = true) {
    const { pen, canvas } = this;
    pen.fillStyle = this.background;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    Object.assign(pen, { lineCap: "round", lineJoin: "round" });
    for (const { width, colour, points } of this.strokes) {
      Object.assign(pen, { lineWidth: width, strokeStyle: colour });
      pen.beginPath();
      pen.moveTo(...points[0]);
      for (const point of points.length > 1 ? points.slice(1) : points) pen.lineTo(...point);
      pen.stroke();
    }
    if (tell) this.changed(this.strokes.length > 0);
  }

  file() {
    return new Promise((resolve) => this.canvas.toBlob((blob) => resolve(new File([blob], "drawing.png", { type: "image/png" })), "image/png"));
  }
}
