// Editing: one canvas with an image, the marks of what is generated anew, and the room by which it is extended.
import { byId, element, fileChooser, radios, radioValue, setRadio } from "./dom.js";
import { maskBlob } from "./label_map.js";
import { Painter } from "./painter.js";

const SIDES = [
  ["none", "None"],
  ["left", "Left"],
  ["right", "Right"],
  ["top", "Above"],
  ["bottom", "Below"],
  ["all", "All"],
];

export class Editing {
  /** `changed` after every change, `sized` when the canvas has another size. */
  constructor(model, stage, { changed, sized }) {
    Object.assign(this, { model, stage, changed, sized, image: null, bitmap: null });
    this.extension = { top: 0, right: 0, bottom: 0, left: 0 };
    this.painter = new Painter({
      name: "mask",
      title: "Image to edit: paint over what is to be generated",
      fills: false,
      changed,
      labels: [{ name: "Mark", color: "#e0563b" }],
      room: () => this.room,
    });
    this.painter.canvas.id = "mask-canvas";
  }

  get room() {
    const { width, height } = this.stage.room;
    return { width, height };
  }

  /** `open(file)` when a file is chosen. */
  controls(open) {
    const input = fileChooser("open-image", open);
    this.sideChoice = radios(
      "extend",
      "Extend",
      SIDES.map(([value, label]) => ({ value, label })),
      "none",
      () => this.onExtend(),
    );
    const f = this.model.factor,
      [height, width] = this.model.size;
    this.amount = element("input", {
      type: "range",
      id: "amount",
      min: f,
      max: this.model.limits.side,
      step: f,
      value: Math.floor(width / 2 / f) * f,
      oninput: () => this.onExtend(),
    });
    this.amountShown = element("output", { htmlFor: "amount" }, this.amount.value);
    this.strokes = element("div", { className: "group" }, this.painter.chips, this.painter.tools);
    this.amountField = element(
      "div",
      { className: "field", hidden: true },
      element("label", { htmlFor: "amount" }, "Pixels", this.amountShown),
      this.amount,
    );
    return [
      element(
        "div",
        { className: "line" },
        input,
        element("button", { type: "button", id: "open", onclick: () => input.click() }, "Open an image…"),
        element("small", { className: "hint" }, "or drop one, or choose Edit below an image"),
      ),
      this.strokes,
      this.sideChoice,
      this.amountField,
      element(
        "p",
        { className: "hint" },
        this.model.any_order
          ? "Unmarked pixels stay exactly as they are. New ones are generated given all of them."
          : "Unmarked pixels stay exactly as they are. The best of four tries is kept for each image.",
      ),
    ];
  }

  /** Edit an image {blob, name, width, height}; with a `side`, extend it. */
  async open(image, side = "none") {
    this.bitmap?.close();
    this.bitmap = await createImageBitmap(image.blob);
    this.image = image;
    setRadio("extend", side);
    this.painter.zoom = 1;
    this.painter.setImage(null);
    this.extension = { top: 0, right: 0, bottom: 0, left: 0 };
    this.painter.resize(image.width, image.height, { x: 0, y: 0 });
    this.painter.clear();
    this.painter.history.clear();
    this.painter.showUndo();
    const f = this.model.factor,
      [height, width] = this.model.size;
    this.amount.value = Math.floor((["top", "bottom"].includes(side) ? height : width) / 2 / f) * f;
    this.onExtend();
  }

  /** Pixels that are added on each side. */
  wanted() {
    const amount = Number(this.amount.value),
      side = radioValue("extend"),
      all = side === "all";
    return Object.fromEntries(
      ["top", "right", "bottom", "left"].map((name) => [name, all || side === name ? amount : 0]),
    );
  }

  get size() {
    if (!this.image) return null;
    const { top, right, bottom, left } = this.extension;
    return { height: this.image.height + top + bottom, width: this.image.width + left + right };
  }

  /** The codes of an image that are generated anew. */
  get newCodes() {
    const f = this.model.factor,
      { width, height } = this.size,
      inside = (x, y) => !this.painter.fixed?.(x, y);
    let count = 0;
    for (let row = 0; row < height; row += f) {
      for (let column = 0; column < width; column += f) {
        let kept = inside(column, row);
        for (let at = 0; kept && at < f * f; at++)
          kept = this.painter.numbers[(row + Math.floor(at / f)) * width + column + (at % f)] !== 0;
        count += kept ? 0 : 1;
      }
    }
    return count;
  }

  onExtend() {
    const side = radioValue("extend");
    this.amountField.hidden = side === "none";
    if (this.image) {
      const f = this.model.factor,
        twice = side === "all" ? 2 : 1;
      const longest =
        side === "top" || side === "bottom"
          ? this.image.height
          : side === "all"
            ? Math.max(this.image.height, this.image.width)
            : this.image.width;
      this.amount.max = Math.max(Math.floor((this.model.limits.side - longest) / twice / f) * f, f);
      const before = this.extension,
        after = this.wanted();
      this.extension = after;
      const { width, height } = this.size,
        place = { x: after.left, y: after.top },
        { image } = this;
      this.painter.resize(width, height, { x: after.left - before.left, y: after.top - before.top });
      this.painter.setImage(
        this.bitmap,
        place,
        (x, y) => x < place.x || y < place.y || x >= place.x + image.width || y >= place.y + image.height,
      );
      this.painter.layOut();
      this.sized({ x: after.left - before.left, y: after.top - before.top });
    }
    this.amountShown.textContent = this.amount.value;
    this.changed();
  }

  show() {
    if (!this.image) {
      this.stage.show(
        "message",
        () => {},
        element(
          "div",
          {},
          element("p", {}, "Open or drop an image, or choose Edit below one of the gallery."),
          element(
            "button",
            { type: "button", className: "primary", onclick: () => byId("open-image").click() },
            "Open an image…",
          ),
        ),
      );
      return;
    }
    const { painter } = this;
    this.stage.show("editor", () => painter.layOut(), painter.viewport);
    painter.draw();
  }

  /** The files of a job: the image, and the mask of its own pixels. */
  async files() {
    const { image, painter } = this,
      { left, top } = this.extension,
      files = { image: image.blob };
    const mask = new Int16Array(image.width * image.height);
    for (let y = 0; y < image.height; y++) {
      for (let x = 0; x < image.width; x++)
        mask[y * image.width + x] = painter.numbers[(y + top) * painter.width + x + left];
    }
    if (mask.some((number) => number === 0)) files.mask = await maskBlob(mask, image.width, image.height);
    return files;
  }

  get isMarked() {
    return this.painter.isPainted || Object.values(this.extension).some((amount) => amount > 0);
  }
}
