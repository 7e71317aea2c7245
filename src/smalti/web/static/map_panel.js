// The map panel: labels are painted, loaded and saved. The map of each mode has the size of that mode's images.
import { readMap } from "./api.js";
import { byId, download, element, fileChooser, showStatus } from "./dom.js";
import { mapBlob, mapLabels, rgb } from "./label_map.js";
import { Painter } from "./painter.js";
import { getValue, setValue } from "./storage.js";

export class MapPanel {
  /** `part`: the model's painted condition; `changed` after every change. */
  constructor(part, changed) {
    Object.assign(this, { part, changed, states: {}, mode: "create", isRestored: false, root: byId("map-panel") });
    this.colors = part.colors.map(rgb);
    const labels = part.names.map((name, at) => ({ name, color: part.colors[at] }));
    this.painter = new Painter({
      name: "map",
      title: `Map of ${part.names.length} labels`,
      labels,
      fills: true,
      room: () => this.room,
      changed: () => {
        this.keepSoon();
        changed();
      },
    });
    this.painter.canvas.id = "map-canvas";
    const input = fileChooser("map-file", (file) => this.load(file));
    const files = element(
      "div",
      { className: "line" },
      input,
      element("button", { type: "button", id: "map-load", onclick: () => input.click() }, "Load…"),
      element("button", { type: "button", id: "map-save", onclick: () => this.save() }, "Save"),
      element(
        "button",
        {
          type: "button",
          id: "map-close",
          onclick: () => {
            this.open(false);
            byId("map-toggle").focus();
          },
        },
        "Close",
      ),
    );
    const hint = element(
      "p",
      { className: "hint" },
      "Unpainted areas take the nearest label. An empty map changes nothing.",
    );
    this.root.append(this.painter.chips, this.painter.viewport, this.painter.tools, files, hint);
    new ResizeObserver(() => {
      if (!this.root.hidden) this.painter.layOut();
    }).observe(this.root);
  }

  get room() {
    const style = getComputedStyle(this.root);
    const width = this.root.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return { width, height: Math.max(Math.min(width, innerHeight * 0.52), 160) };
  }

  /** The button that opens and closes the panel. */
  toggle() {
    this.button = element(
      "button",
      {
        type: "button",
        id: "map-toggle",
        "aria-expanded": "false",
        "aria-controls": "map-panel",
        onclick: () => this.open(this.root.hidden),
      },
      "Paint a map",
    );
    return this.button;
  }

  open(shown) {
    this.root.hidden = !shown;
    document.body.classList.toggle("with-map", shown);
    this.button.setAttribute("aria-expanded", String(shown));
    this.button.textContent = shown ? "Close the map" : "Paint a map";
    if (shown) this.painter.layOut();
    this.changed();
  }

  get isUsed() {
    return !this.root.hidden && this.painter.isPainted;
  }

  /** Another mode's map. */
  switchMode(from, to, { width, height }) {
    const { painter } = this;
    this.mode = to;
    this.states[from] = { numbers: painter.numbers, width: painter.width, height: painter.height };
    const found = this.states[to];
    if (found && found.width === width && found.height === height) painter.set(found.numbers, width, height);
    else painter.resize(width, height);
  }

  resize({ width, height }, moved = null) {
    this.painter.resize(width, height, moved);
    this.keepSoon();
  }

  /** A file -> the map on the canvas; what is no map is a sentence under the stage. */
  async load(file) {
    const { width, height } = this.painter;
    try {
      await this.setBlob(await readMap(this.part.key, file, { width, height }));
      showStatus(`${file.name} is on the canvas.`);
    } catch (error) {
      showStatus(error.message, { error: true });
    }
  }

  async setBlob(blob) {
    const { labels, width, height } = await mapLabels(blob, this.colors);
    this.painter.set(labels, width, height);
  }

  blob() {
    const { numbers, width, height } = this.painter;
    return mapBlob(numbers, width, height, this.colors);
  }

  async save() {
    download(await this.blob(), "map.png");
  }

  /** The map of new images is kept in this browser. */
  keepSoon() {
    if (!this.isRestored || this.mode !== "create") return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const { numbers, width, height } = this.painter;
      setValue(`map-${this.part.key}`, { numbers, width, height, names: this.part.names });
    }, 300);
  }

  /** The map of the last visit, if the labels are the same; returns its size. */
  async restore() {
    const kept = await getValue(`map-${this.part.key}`);
    this.isRestored = true;
    if (!kept || JSON.stringify(kept.names) !== JSON.stringify(this.part.names)) return null;
    if (!kept.numbers.some((number) => number >= 0)) return null;
    this.painter.set(kept.numbers, kept.width, kept.height);
    return kept;
  }
}
