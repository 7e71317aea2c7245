// The settings of a generation: class, size with an estimated time, number of images, seed, and sampling.
import { byId, duration, element, radios, radioValue, setRadio } from "./dom.js";

const ANY = "*",
  PLAIN_GUIDANCE = 2,
  MAP_GUIDANCE = 3,
  MOST_SEED = 2 ** 32;
const PRESETS = [
  ["Square", 1, 1],
  ["Landscape", 1, 2],
  ["Portrait", 2, 1],
  ["Panorama", 1, 4],
  ["Large", 2, 2],
];

export class Settings {
  /** `changed` is called after every change; `sized` after a change of the size. */
  constructor(model, { changed, sized }) {
    Object.assign(this, { model, changed, sized, ownGuidance: false, hasMap: false, files: {} });
    this.choice = model.conditions.find((part) => part.kind === "choice");
    this.text = model.conditions.find((part) => part.kind === "text");
    this.fileParts = model.conditions.filter((part) => ["image", "json"].includes(part.kind));
  }

  /** The controls for the class and for files of other conditions. */
  conditionControls() {
    const { choice } = this,
      parts = [],
      change = () => this.changed();
    if (choice?.axes) {
      choice.axes.forEach((axis, place) =>
        parts.push(
          radios(
            `axis-${place}`,
            place ? "Time" : "Season",
            [...axis.map((name) => ({ value: name, label: name })), { value: ANY, label: "any" }],
            this.text ? ANY : place ? axis[0] : (axis[1] ?? axis[0]),
            change,
          ),
        ),
      );
      if (choice.axes[0].some((name) => !["spring", "summer", "autumn", "winter"].includes(name))) {
        parts.forEach((part, place) => {
          part.querySelector("legend").textContent = `${choice.key} ${place + 1}`;
        });
      }
    } else if (choice) {
      const options = [["any", ANY], ...choice.names.map((name) => [name, name])];
      parts.push(
        element(
          "div",
          { className: "field" },
          element("label", { htmlFor: "choice" }, capital(choice.key)),
          element(
            "select",
            { id: "choice", onchange: change },
            ...options.map(([label, value]) => element("option", { value }, label)),
          ),
        ),
      );
    }
    for (const part of this.fileParts) {
      parts.push(
        element(
          "div",
          { className: "field" },
          element(
            "label",
            { htmlFor: `file-${part.key}` },
            `${capital(part.key)} (${part.kind === "json" ? "JSON file" : "image file"})`,
          ),
          element("input", {
            type: "file",
            id: `file-${part.key}`,
            onchange: (event) => {
              const [file] = event.target.files;
              if (file) this.files[part.key] = file;
              else delete this.files[part.key];
              change();
            },
          }),
        ),
      );
    }
    return parts;
  }

  sizeControls() {
    const [height, width] = this.model.size,
      { side, codes } = this.model.limits,
      f = this.model.factor;
    this.presets = PRESETS.map(([label, down, right]) => ({
      label,
      height: height * down,
      width: width * right,
    })).filter((one) => Math.max(one.height, one.width) <= side && (one.height / f) * (one.width / f) <= codes);
    const choices = this.presets.map(({ label, height: h, width: w }) => ({
      value: `${h}x${w}`,
      label,
      hint: `${w}×${h}`,
    }));
    const group = radios(
      "size",
      "Size",
      [...choices, { value: "custom", label: "Custom", hint: "…" }],
      `${height}x${width}`,
      () => this.onSize(),
    );
    group.classList.add("sizes");
    const [least, most] = [this.model.smallest, Math.floor(side / f) * f];
    const number = (name, title, value, min) =>
      element(
        "div",
        { className: "field small" },
        element("label", { htmlFor: name }, title),
        element("input", {
          type: "number",
          id: name,
          value,
          min,
          max: most,
          step: f,
          onchange: () => this.onNumbers(),
        }),
      );
    this.custom = element(
      "div",
      { className: "line", hidden: true },
      number("width", "Width", width, least[1]),
      number("height", "Height", height, least[0]),
    );
    return [group, this.custom];
  }

  commonControls() {
    const slider = (id, title, value, { min, max, step, hint }) => {
      const shown = element("output", { htmlFor: id }, String(value));
      const input = element("input", {
        type: "range",
        id,
        min,
        max,
        step,
        oninput: () => {
          shown.textContent = input.value;
          if (id === "guidance") this.ownGuidance = true;
          this.changed();
        },
      });
      input.value = value;
      return element(
        "div",
        { className: "field" },
        element("label", { htmlFor: id }, title, shown),
        input,
        hint ? element("small", { id: `${id}-hint`, className: "hint" }, hint) : null,
      );
    };
    const seed = element(
      "div",
      { className: "field" },
      element("label", { htmlFor: "seed" }, "Seed"),
      element(
        "div",
        { className: "line" },
        element("input", {
          type: "number",
          id: "seed",
          min: 0,
          max: Number.MAX_SAFE_INTEGER,
          step: 1,
          value: randomSeed(),
          onchange: () => {
            byId("lock").checked = true;
            this.changed();
          },
        }),
        element(
          "button",
          {
            type: "button",
            id: "dice",
            title: "New seed",
            "aria-label": "New random seed",
            onclick: () => {
              byId("seed").value = randomSeed();
              this.changed();
            },
          },
          "⚄",
        ),
        element(
          "label",
          { className: "check" },
          element("input", { type: "checkbox", id: "lock", onchange: () => this.changed() }),
          "Lock",
        ),
      ),
    );
    const more = element(
      "details",
      { id: "advanced" },
      element("summary", {}, "Sampling settings"),
      slider("temperature", "Temperature", 1, { min: 0, max: 2, step: 0.05 }),
      slider("top_k", "Top-k", 0, { min: 0, max: this.model.codes, step: 1, hint: "0: all codes" }),
      slider("top_p", "Top-p", 1, { min: 0, max: 1, step: 0.01 }),
      element(
        "p",
        { id: "greedy-hint", className: "hint warning", hidden: true },
        "Always the most likely code: images become uniform, often a plain area. Use a temperature near 1 and top-k 0.",
      ),
      this.choice
        ? element(
            "label",
            { className: "check" },
            element("input", { type: "checkbox", id: "unconditional", onchange: () => this.changed() }),
            `Ignore the ${this.choice.key} (unconditional)`,
          )
        : null,
      element("button", { type: "button", id: "copy-link" }, "Copy a link to these settings"),
    );
    return [
      slider("count", "Images", Math.min(4, this.model.limits.count), {
        min: 1,
        max: this.model.limits.count,
        step: 1,
      }),
      this.model.guidance
        ? slider("guidance", "Guidance", PLAIN_GUIDANCE, {
            min: 1,
            max: 10,
            step: 0.5,
            hint: `How closely the images follow ${this.model.conditions.map(({ key }) => `the ${key}`).join(" and ")}`,
          })
        : null,
      seed,
      more,
    ].filter(Boolean);
  }

  // --- values ------------------------------------------------------------------------------------------------------

  get size() {
    const value = radioValue("size");
    if (value !== "custom" && value) {
      const [height, width] = value.split("x").map(Number);
      return { height, width };
    }
    return { height: Number(byId("height").value), width: Number(byId("width").value) };
  }

  onSize() {
    const custom = radioValue("size") === "custom";
    this.custom.hidden = !custom;
    if (!custom) [byId("height").value, byId("width").value] = [this.size.height, this.size.width];
    this.sized();
    this.changed();
  }

  /** A typed size becomes the nearest one that is possible. */
  onNumbers() {
    const f = this.model.factor,
      { side, codes } = this.model.limits,
      [leastHeight, leastWidth] = this.model.smallest;
    const height = nearest(byId("height").value, leastHeight, side, f);
    const width = nearest(byId("width").value, leastWidth, Math.min(side, (codes * f * f) / height), f);
    [byId("height").value, byId("width").value] = [height, width];
    this.sized();
    this.changed();
  }

  setSize(height, width) {
    [byId("height").value, byId("width").value] = [height, width];
    if (!setRadio("size", `${height}x${width}`)) setRadio("size", "custom");
    this.custom.hidden = radioValue("size") !== "custom";
    this.sized();
  }

  /** The most images of the size that a request may have; the slider stops there. */
  limitCount(size = this.size) {
    const f = this.model.factor,
      most = Math.floor(this.model.limits.codes / ((size.height / f) * (size.width / f)));
    const input = byId("count");
    input.max = Math.max(Math.min(most, this.model.limits.count), 1);
    input.previousElementSibling.querySelector("output").textContent = input.value;
  }

  values() {
    const number = (id, other) => (byId(id) ? Number(byId(id).value) : other);
    return {
      ...this.size,
      count: number("count", 1),
      seed: number("seed", 0),
      temperature: number("temperature", 1),
      top_k: number("top_k", 0),
      top_p: number("top_p", 1),
      guidance: number("guidance", 1),
    };
  }

  /** Whether no class is chosen. */
  get anyClass() {
    const { axes } = this.choice;
    return axes ? axes.every((_, place) => radioValue(`axis-${place}`) === ANY) : byId("choice").value === ANY;
  }

  /** The texts by their keys: "any" becomes a class that follows from the seed, or none where there is a text. */
  conditions() {
    const found = {},
      seed = Number(byId("seed").value) || 0,
      text = this.text ? byId("prompt").value.trim() : "";
    if (this.choice && !byId("unconditional").checked && !(text && this.anyClass)) {
      if (this.choice.axes) {
        found[this.choice.key] = this.choice.axes
          .map((axis, place) => {
            const value = radioValue(`axis-${place}`);
            return value === ANY ? axis[Math.floor(seed / 7 ** place) % axis.length] : value;
          })
          .join("-");
      } else {
        const { value } = byId("choice"),
          { names } = this.choice;
        found[this.choice.key] = value === ANY ? names[seed % names.length] : value;
      }
    }
    if (text) found[this.text.key] = text;
    return found;
  }

  /** A new seed, unless it is locked. */
  drawSeed() {
    if (!byId("lock").checked) byId("seed").value = randomSeed();
  }

  /** Guidance 2, or 3 with a map, until it is moved. */
  setMap(hasMap) {
    this.hasMap = hasMap;
    if (!this.ownGuidance && byId("guidance")) this.setSlider("guidance", hasMap ? MAP_GUIDANCE : PLAIN_GUIDANCE);
  }

  setSlider(id, value) {
    const input = byId(id);
    if (!input) return;
    if (Number(value) > Number(input.max)) input.max = value;
    input.value = value;
    input.previousElementSibling.querySelector("output").textContent = input.value;
  }

  /** Settings and conditions of an image or a link; the seed stays as it is given. */
  restore({ settings, conditions }, { size = true, count = true } = {}) {
    if (size && settings.height) this.setSize(settings.height, settings.width);
    if (count && settings.count) this.setSlider("count", settings.count);
    for (const id of ["temperature", "top_k", "top_p", "guidance"]) {
      if (settings[id] !== undefined && !(id === "guidance" && settings[id] < 1)) this.setSlider(id, settings[id]);
    }
    this.ownGuidance = settings.guidance !== undefined;
    if (settings.seed !== undefined) {
      byId("seed").value = settings.seed;
      byId("lock").checked = true;
    }
    this.setConditions(conditions);
    this.changed();
  }

  /** The text and the class of an image or a link. */
  setConditions(conditions) {
    if (this.text) byId("prompt").value = conditions[this.text.key] ?? "";
    if (this.choice) {
      const name = conditions[this.choice.key],
        { axes } = this.choice;
      byId("unconditional").checked = !name && !(this.text && conditions[this.text.key]);
      if (axes) (name?.split("-") ?? axes.map(() => ANY)).forEach((value, place) => setRadio(`axis-${place}`, value));
      else byId("choice").value = name ?? ANY;
    }
  }

  // --- times -------------------------------------------------------------------------------------------------------

  /** The estimated seconds of `codes` new codes in an image of a size; null before anything was measured. */
  estimate({ height, width }, { count, codes = null }) {
    const f = this.model.factor,
      [rows, columns] = [height / f, width / f],
      [windowRows, windowColumns] = this.model.window;
    const region = ["window", "strip", "field"][(rows > windowRows) + (columns > windowColumns)],
      pace = this.model.pace[region];
    const guided = byId("guidance") && Number(byId("guidance").value) !== 1;
    return pace ? pace * (codes ?? rows * columns) * (1 + 0.15 * (count * (guided ? 2 : 1) - 1)) : null;
  }

  showTimes() {
    const count = Number(byId("count").value);
    for (const { height, width } of this.presets) {
      const hint = document.querySelector(`input[name="size"][value="${height}x${width}"] + span small`);
      const seconds = this.estimate({ height, width }, { count });
      const time = seconds === null ? "" : `, about\u00a0${duration(seconds).replace(" ", "\u00a0")}`;
      hint.textContent = `${width} × ${height}${time}`;
    }
    byId("greedy-hint").hidden = Number(byId("temperature").value) > 0 && Number(byId("top_k").value) !== 1;
  }
}

const randomSeed = () => Math.floor(Math.random() * MOST_SEED);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const nearest = (value, least, most, step) =>
  Math.min(Math.max(Math.round(Number(value) / step) * step, least), Math.max(Math.floor(most / step) * step, least));
