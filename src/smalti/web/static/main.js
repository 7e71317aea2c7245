// The page: its modes, what each of them requests, and what is on the stage.
import * as api from "./api.js";
import { Comparing } from "./comparing.js";
import { announce, byId, copy, duration, element, setRadio, showStatus } from "./dom.js";
import { Editing } from "./editing.js";
import { Gallery } from "./gallery.js";
import { ImageActions } from "./image_actions.js";
import { JobRunner } from "./jobs.js";
import { MapPanel } from "./map_panel.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
import { getValue, openStorage, setValue } from "./storage.js";

const GENERATED = ["sample", "edit", "vary"]; // tasks whose images go to the gallery

class Page {
  constructor(model) {
    Object.assign(this, { model, mode: "create", results: [], single: null, examples: [] });
    this.stage = new Stage();
    this.gallery = new Gallery(
      (image) => this.showSingle(image),
      (images) => this.onRemoved(images),
    );
    this.settings = new Settings(model, { changed: () => this.onChange(), sized: () => this.onSize() });
    const part = model.conditions.find((one) => one.kind === "paint");
    this.map = part ? new MapPanel(part, () => this.onChange()) : null;
    this.editing = new Editing(model, this.stage, {
      changed: () => this.onChange(),
      sized: (moved) => this.map?.resize(this.editing.size, moved),
    });
    this.comparing = new Comparing(this.stage);
    this.jobs = new JobRunner(() => this.showPreviews());
    this.actions = new ImageActions(this);
  }

  // --- building ----------------------------------------------------------------------------------------------------

  build() {
    const { settings } = this,
      section = (modes, ...nodes) => {
        const made = element("div", { className: "group" }, ...nodes);
        made.dataset.modes = modes;
        return made;
      };
    byId("panel").append(
      section("edit", ...this.editing.controls((file) => this.actions.editFile(file))),
      section(
        "create edit",
        ...settings.conditionControls(),
        this.map
          ? element(
              "div",
              { className: "line" },
              this.map.toggle(),
              element(
                "small",
                { className: "hint" },
                "Paint where sky, water or houses are".replace(
                  "sky, water or houses",
                  this.map.part.names.slice(0, 3).join(", "),
                ),
              ),
            )
          : null,
      ),
      section("create", ...settings.sizeControls()),
      section("create edit", ...settings.commonControls()),
      section("reconstruct", ...this.comparing.controls((file) => this.reconstruct(file))),
    );
    byId("prompt-line").hidden = !settings.text;
    this.actions.build();
    for (const input of document.querySelectorAll("input[name=mode]"))
      input.addEventListener("change", () => this.setMode(input.value));
    byId("bar").addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    byId("cancel").addEventListener("click", () => this.guard(() => this.jobs.cancel()));
    byId("copy-link").addEventListener("click", () => this.guard(() => copy(this.link(), "The link is copied.")));
    byId("prompt").addEventListener("input", () => this.onChange());
    document.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file) this.actions.drop(file);
    });
    this.setMode("create");
    this.onSize();
  }

  /** Run something; an error becomes a sentence under the stage. */
  async guard(act) {
    try {
      await act();
    } catch (error) {
      showStatus(error.message, { error: true });
    }
  }

  // --- changes -----------------------------------------------------------------------------------------------------

  get size() {
    return this.mode === "edit" ? (this.editing.size ?? this.settings.size) : this.settings.size;
  }

  setMode(mode) {
    const before = this.mode;
    this.mode = mode;
    document.body.dataset.mode = mode;
    setRadio("mode", mode);
    for (const part of byId("panel").children) part.hidden = !part.dataset.modes.split(" ").includes(mode);
    byId("prompt-line").hidden = !this.settings.text || mode === "reconstruct";
    if (this.map && mode === "reconstruct") this.map.open(false);
    if (this.map && before !== mode && mode !== "reconstruct") this.map.switchMode(before, mode, this.size);
    this.setSingle(null);
    if (!this.showPreviews()) this.showMode();
    byId("generate").textContent = mode === "reconstruct" ? "Reconstruct" : "Generate";
    this.onChange();
  }

  /** What the stage shows in a mode while nothing else is chosen. */
  showMode() {
    this.setSingle(null);
    if (this.mode === "edit") this.editing.show();
    else if (this.mode === "reconstruct") this.comparing.show();
    else if (this.results.length) this.showResults();
    else if (this.examples.length)
      this.stage.showExamples(this.examples, (one) => this.guard(() => this.reuseExample(one)));
    else this.stage.showMessage("The model makes its first images …");
  }

  onSize() {
    if (this.mode === "create") this.map?.resize(this.settings.size);
  }

  onChange() {
    if (!document.body.classList.contains("ready")) return;
    this.settings.limitCount(this.size);
    this.settings.setMap(Boolean(this.map?.isUsed));
    this.settings.showTimes();
    clearTimeout(this.keeping);
    this.keeping = setTimeout(
      () =>
        setValue("settings", {
          settings: this.settings.values(),
          locked: byId("lock").checked,
          mapOpen: Boolean(this.map && !this.map.root.hidden),
        }),
      300,
    );
    if (!this.jobs.isBusy) this.showEstimate();
  }

  showEstimate() {
    const codes = this.mode === "edit" && this.editing.image ? this.editing.newCodes : null;
    const seconds = this.settings.estimate(this.size, { count: Number(byId("count").value), codes });
    const tries = this.mode === "edit" && !this.model.any_order ? 4 : 1;
    const known = seconds !== null && this.mode !== "reconstruct" && !(this.mode === "edit" && !this.editing.isMarked);
    showStatus(known ? `about ${duration(seconds * tries)}` : "");
  }

  // --- jobs --------------------------------------------------------------------------------------------------------

  async generate() {
    if (this.jobs.isBusy) return;
    await this.guard(async () => {
      if (this.mode === "reconstruct") {
        if (!this.photo) byId("open-photo").click();
        else await this.reconstruct(this.photo);
        return;
      }
      this.settings.drawSeed();
      const settings = this.settings.values(),
        conditions = this.settings.conditions(),
        files = { ...this.settings.files };
      if (this.map?.isUsed) files[this.map.part.key] = await this.map.blob();
      if (!Object.keys(conditions).length && !Object.keys(files).length) settings.guidance = 1;
      if (this.mode === "create") {
        history.replaceState(null, "", this.link(settings, conditions));
        await this.run({ task: "sample", settings, conditions }, files, settings);
      } else {
        if (!this.editing.image) throw new Error("there is no image to edit; open one, or choose Edit below an image");
        if (!this.editing.isMarked)
          throw new Error("nothing is marked and nothing added; paint over a region, or extend the image");
        Object.assign(files, await this.editing.files());
        await this.run(
          { task: "edit", settings, conditions, extend: this.editing.extension },
          files,
          this.editing.size,
        );
      }
    });
  }

  /** Run a job and show how it ended. */
  async run(job, files, size) {
    await this.finish(await this.jobs.run(job, files, { size, mode: this.mode }));
  }

  /** Show the previews of the running job in its own mode; returns whether there are any. */
  showPreviews() {
    const { state, mode, size } = this.jobs.current ?? {};
    if (!state?.previews?.length || mode !== this.mode || this.single) return false;
    this.stage.showPreviews(state.previews, size);
    return true;
  }

  /** What `JobRunner.run` gives -> it is on the stage. */
  async finish(ended) {
    if (!ended) {
      showStatus("Cancelled.");
      announce("Cancelled");
      if (!this.single) this.showMode();
      return;
    }
    const { job, mode, state, images } = ended,
      isGenerated = GENERATED.includes(job.task);
    if (isGenerated) await this.keep(images, job, mode);
    else {
      this.comparing.set(
        images.map((one) => ({ ...one, url: URL.createObjectURL(one.blob) })),
        state.facts,
      );
      if (this.mode !== "reconstruct") this.setMode("reconstruct");
    }
    this.model.pace = (await api.getJson("api/model")).pace;
    this.settings.showTimes();
    const what = isGenerated ? `${images.length} image${images.length > 1 ? "s" : ""} done` : "Reconstructed";
    const said = `${what}.${state.facts.note ? ` Note: ${state.facts.note}.` : ""}`;
    showStatus(said);
    announce(said);
  }

  /** Images of a finished job go to the gallery and on the stage. */
  async keep(images, job, mode) {
    const kept = [];
    for (const { blob, name, caption, seed, width, height } of images) {
      kept.push(await this.gallery.add({ blob, name, caption, seed, width, height, conditions: job.conditions }));
    }
    this.results = kept;
    if (this.mode === mode) this.showResults();
  }

  // --- images ------------------------------------------------------------------------------------------------------

  setSingle(image) {
    this.single = image;
    byId("actions").hidden = !image;
    this.gallery.mark(image);
  }

  /** Deleted images leave the stage. */
  onRemoved(images) {
    const deleted = new Set(images.map(({ id }) => id));
    const isShown = this.single ? deleted.has(this.single.id) : this.stage.root.dataset.kind === "results";
    this.results = this.results.filter(({ id }) => !deleted.has(id));
    if (isShown) this.showMode();
  }

  showResults() {
    if (this.results.length === 1) {
      this.showSingle(this.results[0]);
      return;
    }
    this.setSingle(null);
    this.stage.showImages(this.results, (image) => {
      this.showSingle(image);
      byId("back").focus();
    });
  }

  showSingle(image) {
    this.setSingle(image);
    this.stage.showImages([image]);
    byId("back").textContent = this.mode === "edit" && this.editing.image ? "Back to the canvas" : "Back";
    announce(`${image.caption.replaceAll("-", " ")}, seed ${image.seed}, is on the stage`);
  }

  back() {
    const { single } = this;
    this.setSingle(null);
    if (this.mode === "create" && this.results.length > 1 && this.results.includes(single)) this.showResults();
    else {
      if (this.mode === "create") this.results = [];
      this.showMode();
    }
    byId("stage").focus({ preventScroll: true });
  }

  async restore({ settings, conditions, maps = {} }) {
    this.settings.restore({ settings, conditions }, { count: false });
    if (this.map && maps[this.map.part.key]) {
      await this.map.setBlob(api.pngBlob(maps[this.map.part.key]));
      this.map.open(true);
    } else if (this.map && !this.map.root.hidden) this.map.open(false);
    this.onChange();
  }

  async reuseExample(example) {
    const conditions = Object.fromEntries(
      this.model.conditions
        .filter(({ key }) => typeof example.settings[key] === "string")
        .map(({ key }) => [key, example.settings[key]]),
    );
    await this.restore({ settings: example.settings, conditions, maps: example.settings.maps ?? {} });
    showStatus("The settings of the example are set. Press Generate, or change them.");
  }

  reconstruct(file) {
    return this.guard(async () => {
      this.photo = file;
      await this.run({ task: "reconstruct" }, { image: file }, { width: 0, height: 0 });
    });
  }

  // --- links and keys ----------------------------------------------------------------------------------------------

  link(settings = this.settings.values(), conditions = this.settings.conditions()) {
    return `${location.origin}${location.pathname}?${new URLSearchParams({ ...conditions, ...settings })}`;
  }

  onKey(event) {
    const typing = event.target.matches?.("input[type=text], input[type=number]");
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key === "Enter") {
      event.preventDefault();
      this.generate();
      return;
    }
    if (control && !typing && ["z", "y"].includes(event.key.toLowerCase())) {
      const painter =
        this.mode === "edit" && this.stage.root.dataset.kind === "editor" ? this.editing.painter : this.map?.painter;
      if (!painter) return;
      event.preventDefault();
      if (event.key.toLowerCase() === "y" || event.shiftKey) painter.redo();
      else painter.undo();
    }
    if (event.key === "Escape" && this.single) this.back();
  }

  // --- the beginning -----------------------------------------------------------------------------------------------

  async open() {
    await openStorage();
    this.build();
    await this.gallery.open();
    await this.restoreVisit();
    document.body.classList.add("ready"); // from now on changes are kept
    this.onChange();
    await this.openLink();
    this.guard(() => this.resume());
    await this.loadExamples();
    for (let tries = 0; tries < 30 && !Object.keys(this.model.pace).length; tries++) {
      await new Promise((next) => setTimeout(next, 1000));
      this.model.pace = (await api.getJson("api/model")).pace;
    }
    this.settings.showTimes();
    if (!byId("status").textContent && !this.jobs.isBusy) this.showEstimate();
  }

  async resume() {
    const ended = await this.jobs.resume();
    if (ended) await this.finish(ended);
  }

  /** What this browser kept: the map, and whether it was open. */
  async restoreVisit() {
    const kept = await getValue("settings");
    if (!this.map) return;
    const size = await this.map.restore();
    if (!size) return;
    if (kept?.mapOpen) {
      this.settings.setSize(size.height, size.width);
      this.map.open(true);
    } else this.map.resize(this.settings.size);
  }

  async openLink() {
    if (!location.search) return;
    await this.guard(async () => {
      const found = await api.getJson(`api/settings${location.search}`).catch((error) => {
        throw new Error(`Invalid link: ${error.message}`);
      });
      this.settings.restore(found);
      showStatus("The settings of the link are set.");
    });
  }

  async loadExamples() {
    for (let tries = 0; tries < 120; tries++) {
      const found = await api.getJson("api/examples");
      if (found.length > this.examples.length) {
        this.examples = found;
        if (this.mode === "create" && !this.results.length && !this.single && !this.jobs.isBusy) this.showMode();
      }
      if (this.examples.length >= 4) return;
      await new Promise((next) => setTimeout(next, 2000));
    }
  }
}

try {
  const page = new Page(await api.getJson("api/model"));
  await page.open();
} catch (error) {
  showStatus(error.message, { error: true });
  throw error;
}
