// A canvas to paint labels on, or a mask over an image: brush with a ring, fill, undo and redo, zoom; by mouse, touch,
// pen and keyboard. Numbers are those of `label_map.js`: a label per pixel, UNPAINTED elsewhere.
import { announce, element, radios, radioValue, setEnabled, isEnabled, setRadio } from "./dom.js";
import { History, resized } from "./history.js";
import { rgb, UNPAINTED, withNearestLabels } from "./label_map.js";

const MOST_FILLED = 400_000; // pixels of a map up to which the nearest labels are shown
const NEUTRAL = [
  [150, 150, 150],
  [172, 172, 172],
]; // the two grays of unpainted pixels
const KEYS =
  "Arrow keys move the brush, Space paints, Enter holds the brush down, F fills, [ and ] change its width, " +
  "digits choose a label, Delete erases, Ctrl+Z undoes, plus and minus zoom.";

export class Painter {
  /**
   * `labels`: [{name, color}]; `fills`: whether unpainted pixels take the nearest label; `changed` is called after
   * strokes.
   */
  constructor({ name, title, labels, fills, changed, room }) {
    Object.assign(this, { name, title, fills, changed, room });
    this.labels = labels.map((label) => ({ ...label, rgb: rgb(label.color) }));
    [this.width, this.height, this.numbers] = [1, 1, new Int16Array([UNPAINTED])];
    Object.assign(this, {
      image: null,
      fixed: null,
      zoom: 1,
      history: new History(),
      pen: false,
      last: null,
      pending: false,
    });
    this.cursor = { x: 0, y: 0 };
    this.build();
  }

  build() {
    this.canvas = element("canvas", { tabIndex: 0, role: "application", "aria-label": `${this.title}. ${KEYS}` });
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.ring = element("div", { className: "ring", hidden: true });
    this.ground = element("div", { className: "ground" }, this.canvas, this.ring);
    this.viewport = element("div", { className: "viewport" }, this.ground);
    const choices = this.labels.map(({ name, color }, value) => ({ value: String(value), label: name, color }));
    this.chips = radios(
      `${this.name}-label`,
      "Label",
      [...choices, { value: String(UNPAINTED), label: this.fills ? "Unpainted" : "Keep", color: "" }],
      "0",
      () => {},
      { hideTitle: true },
    );
    this.chips.classList.add("chips");
    const tool = radios(
      `${this.name}-tool`,
      "Tool",
      [
        { value: "brush", label: "Brush" },
        { value: "fill", label: "Fill" },
      ],
      "brush",
      () => {},
      { hideTitle: true },
    );
    this.brush = element("input", {
      type: "range",
      min: 1,
      max: 64,
      value: 8,
      id: `${this.name}-brush`,
      oninput: () => this.showRing(),
    });
    const button = (text, title, act, id) =>
      element(
        "button",
        {
          type: "button",
          title,
          id: `${this.name}-${id}`,
          onclick: (event) => {
            if (isEnabled(event.currentTarget)) act();
          },
          "aria-label": title,
        },
        text,
      );
    this.undoButton = button("↶", "Undo (Ctrl+Z)", () => this.undo(), "undo");
    this.redoButton = button("↷", "Redo (Ctrl+Shift+Z)", () => this.redo(), "redo");
    this.tools = element(
      "div",
      { className: "tools" },
      tool,
      element("label", { className: "slider", htmlFor: this.brush.id }, "Width"),
      this.brush,
      this.undoButton,
      this.redoButton,
      button("−", "Zoom out", () => this.setZoom(this.zoom / 2), "out"),
      button("+", "Zoom in", () => this.setZoom(this.zoom * 2), "in"),
      button("Clear", "Clear", () => this.clear(), "clear"),
    );
    this.listen();
    this.showUndo();
  }

  // --- what is painted ---------------------------------------------------------------------------------------------

  get isPainted() {
    return this.numbers.some((number) => number !== UNPAINTED);
  }

  get chosen() {
    return Number(radioValue(`${this.name}-label`));
  }

  /** Another size. The painted pixels are scaled, or with `moved` {x, y} they keep their size and move. */
  resize(width, height, moved = null) {
    if (width === this.width && height === this.height && !moved) return;
    const numbers = resized(this, { width, height, moved });
    this.history.resize({ width, height, moved });
    Object.assign(this, { width, height, numbers, nearest: null });
    this.cursor = { x: width >> 1, y: height >> 1 };
    this.brush.max = Math.max(Math.ceil(Math.max(width, height) / 2), 4);
    this.showUndo();
    this.layOut();
    this.draw();
  }

  /** Show other numbers. */
  set(numbers, width, height) {
    this.resize(width, height, { x: 0, y: 0 });
    this.remember();
    this.numbers = Int16Array.from(numbers);
    this.finish();
  }

  /** Show an image (a bitmap) under the mask, and `fixed` pixels ((x, y) -> bool) that are always marked. */
  setImage(image, place, fixed) {
    Object.assign(this, { image, place, fixed });
    this.draw();
  }

  clear() {
    this.remember();
    this.numbers = new Int16Array(this.width * this.height).fill(UNPAINTED);
    this.finish();
    announce("Cleared");
  }

  remember() {
    this.history.remember(this);
  }

  undo() {
    this.restore(this.history.undo(this), "Undone");
  }

  redo() {
    this.restore(this.history.redo(this), "Done again");
  }

  restore(state, said) {
    if (!state) return;
    this.numbers = state.numbers;
    this.finish();
    announce(said);
  }

  showUndo() {
    setEnabled(this.undoButton, this.history.canUndo);
    setEnabled(this.redoButton, this.history.canRedo);
  }

  finish() {
    this.nearest = null;
    this.showUndo();
    this.draw();
    this.changed();
  }

  dab(x, y, label = this.chosen) {
    const radius = Number(this.brush.value) / 2;
    for (let row = Math.max(Math.ceil(y - radius), 0); row <= Math.min(y + radius, this.height - 1); row++) {
      for (let column = Math.max(Math.ceil(x - radius), 0); column <= Math.min(x + radius, this.width - 1); column++) {
        if ((row - y) ** 2 + (column - x) ** 2 <= radius ** 2) this.numbers[row * this.width + column] = label;
      }
    }
    const at = Math.round(y) * this.width + Math.round(x); // a brush of one pixel
    if (x > -0.5 && y > -0.5 && x < this.width - 0.5 && y < this.height - 0.5) this.numbers[at] = label;
  }

  line(from, to) {
    const steps = Math.max(
      Math.ceil((2 * Math.hypot(to.x - from.x, to.y - from.y)) / Math.max(this.brush.value / 2, 1)),
      1,
    );
    for (let step = 0; step <= steps; step++) {
      this.dab(from.x + ((to.x - from.x) * step) / steps, from.y + ((to.y - from.y) * step) / steps);
    }
    this.drawSoon();
  }

  fill(x, y) {
    const start = Math.floor(y) * this.width + Math.floor(x),
      from = this.numbers[start],
      to = this.chosen,
      todo = [start];
    if (from === undefined || from === to) return;
    this.remember();
    while (todo.length) {
      const at = todo.pop();
      if (this.numbers[at] !== from) continue;
      this.numbers[at] = to;
      const column = at % this.width;
      if (column > 0) todo.push(at - 1);
      if (column < this.width - 1) todo.push(at + 1);
      if (at >= this.width) todo.push(at - this.width);
      if (at < this.numbers.length - this.width) todo.push(at + this.width);
    }
    this.finish();
  }

  // --- what is seen ------------------------------------------------------------------------------------------------

  drawSoon() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  draw() {
    const { width, height, numbers, context } = this,
      count = width * height;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      [this.canvas.width, this.canvas.height] = [width, height];
    }
    if (this.fills && !this.nearest && !this.last && count <= MOST_FILLED) {
      this.nearest = withNearestLabels(numbers, width, height);
    }
    if (this.image) {
      context.clearRect(0, 0, width, height);
      context.drawImage(this.image, this.place.x, this.place.y);
    }
    const shown = this.image ? context.getImageData(0, 0, width, height) : context.createImageData(width, height);
    for (let at = 0; at < count; at++) {
      const x = at % width,
        y = (at - x) / width,
        odd = (Math.floor(x / 4) + Math.floor(y / 4)) % 2;
      const marked = numbers[at] !== UNPAINTED;
      if (this.image) {
        const always = this.fixed?.(x, y);
        if (!marked && !always) continue;
        const color = marked ? this.labels[numbers[at]].rgb : NEUTRAL[odd],
          part = marked ? (odd ? 0.75 : 0.55) : 1;
        for (let channel = 0; channel < 3; channel++) {
          shown.data[at * 4 + channel] = shown.data[at * 4 + channel] * (1 - part) + color[channel] * part;
        }
      } else {
        const label = marked ? numbers[at] : (this.nearest?.[at] ?? UNPAINTED);
        for (let channel = 0; channel < 3; channel++) {
          const color = label === UNPAINTED ? NEUTRAL[odd][channel] : this.labels[label].rgb[channel];
          shown.data[at * 4 + channel] = marked ? color : color * 0.3 + NEUTRAL[odd][channel] * 0.7;
        }
      }
      shown.data[at * 4 + 3] = 255;
    }
    context.putImageData(shown, 0, 0);
  }

  /** The canvas fits into its room at a whole multiple, times the zoom. */
  layOut() {
    const { width, height } = this.room();
    const fit = Math.min(width / this.width, height / this.height);
    this.scale = (fit >= 1 ? Math.floor(fit) : fit) * this.zoom;
    this.canvas.style.width = `${this.width * this.scale}px`;
    this.canvas.style.height = `${this.height * this.scale}px`;
    this.viewport.style.maxWidth = `${width}px`;
    this.viewport.style.maxHeight = `${height}px`;
    this.showRing();
  }

  setZoom(zoom) {
    const before = this.zoom;
    this.zoom = Math.min(Math.max(zoom, 1), 16);
    const { viewport } = this,
      middle = [viewport.scrollLeft + viewport.clientWidth / 2, viewport.scrollTop + viewport.clientHeight / 2];
    this.layOut();
    viewport.scrollLeft = (middle[0] * this.zoom) / before - viewport.clientWidth / 2;
    viewport.scrollTop = (middle[1] * this.zoom) / before - viewport.clientHeight / 2;
    announce(`Zoom ${this.zoom}`);
  }

  showRing() {
    const side = Math.max(Number(this.brush.value), 1) * (this.scale ?? 1),
      { style } = this.ring;
    style.width = style.height = `${side}px`;
    style.left = `${(this.cursor.x + 0.5) * this.scale - side / 2}px`;
    style.top = `${(this.cursor.y + 0.5) * this.scale - side / 2}px`;
  }

  // --- mouse, pen, touch and keyboard ------------------------------------------------------------------------------

  listen() {
    const { canvas } = this,
      place = (event) => {
        const box = canvas.getBoundingClientRect();
        return {
          x: ((event.clientX - box.left) / box.width) * this.width - 0.5,
          y: ((event.clientY - box.top) / box.height) * this.height - 0.5,
        };
      };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      const here = place(event);
      if (radioValue(`${this.name}-tool`) === "fill") {
        this.fill(Math.round(here.x), Math.round(here.y));
        return;
      }
      canvas.setPointerCapture(event.pointerId);
      this.remember();
      this.last = here;
      this.line(here, here);
    });
    canvas.addEventListener("pointermove", (event) => {
      this.ring.hidden = false;
      const here = place(event);
      this.cursor = here;
      this.showRing();
      if (this.last) {
        this.line(this.last, here);
        this.last = here;
      }
    });
    const end = () => {
      if (this.last) {
        this.last = null;
        this.finish();
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => {
      if (document.activeElement !== canvas) this.ring.hidden = true;
    });
    canvas.addEventListener("focus", () => {
      this.ring.hidden = false;
      this.showRing();
    });
    canvas.addEventListener("blur", () => {
      this.ring.hidden = true;
      this.pen = false;
    });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.viewport.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        this.setZoom(event.deltaY < 0 ? this.zoom * 2 : this.zoom / 2);
      },
      { passive: false },
    );
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const { x, y } = { x: Math.round(this.cursor.x), y: Math.round(this.cursor.y) };
    if (moves) {
      const step = event.shiftKey ? Math.max(Number(this.brush.value), 1) : 1;
      const to = {
        x: Math.min(Math.max(x + moves[0] * step, 0), this.width - 1),
        y: Math.min(Math.max(y + moves[1] * step, 0), this.height - 1),
      };
      if (this.pen) this.line({ x, y }, to);
      this.cursor = to;
      this.showRing();
      this.follow();
    } else if (event.key === " ") {
      this.remember();
      this.dab(x, y);
      this.finish();
    } else if (event.key === "Enter") {
      this.pen = !this.pen;
      if (this.pen) {
        this.remember();
        this.dab(x, y);
        this.draw();
      } else this.finish();
      announce(this.pen ? "The brush is down" : "The brush is up");
    } else if (event.key === "f" || event.key === "F") this.fill(x, y);
    else if (event.key === "[" || event.key === "]") {
      this.brush.value = Number(this.brush.value) + (event.key === "]" ? 1 : -1);
      this.showRing();
      announce(`Brush ${this.brush.value}`);
    } else if (event.key === "+" || event.key === "=") this.setZoom(this.zoom * 2);
    else if (event.key === "-") this.setZoom(this.zoom / 2);
    else if (event.key === "Delete" || event.key === "Backspace") {
      this.remember();
      this.dab(x, y, UNPAINTED);
      this.finish();
    } else if (/^[1-9]$/.test(event.key) && setRadio(`${this.name}-label`, String(event.key - 1))) {
      announce(this.labels[event.key - 1].name);
    } else return;
    event.preventDefault();
  }

  follow() {
    const { viewport, scale, cursor } = this,
      x = cursor.x * scale,
      y = cursor.y * scale;
    if (x < viewport.scrollLeft || x > viewport.scrollLeft + viewport.clientWidth)
      viewport.scrollLeft = x - viewport.clientWidth / 2;
    if (y < viewport.scrollTop || y > viewport.scrollTop + viewport.clientHeight)
      viewport.scrollTop = y - viewport.clientHeight / 2;
  }
}
