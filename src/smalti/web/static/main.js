// The page: settings, jobs, and what is on the stage.
import * as api from "./api.js";
import { Comparing } from "./comparing.js";
import { announce, byId, download, duration, element, isEnabled, radioValue, setEnabled, setRadio, showStatus } from "./dom.js";
import { Editing } from "./editing.js";
import { Gallery } from "./gallery.js";
import { MapPanel } from "./map_panel.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
import { getValue, openStorage, setValue } from "./storage.js";

const GENERATED = ["sample", "edit", "vary"];

class Page {
  constructor(model) {
    Object.assign(this, { model, mode: "create", running: null, results: [], single: null, examples: [] });
    this.stage = new Stage();
    this.gallery = new Gallery((image) => this.showSingle(image));
    this.settings = new Settings(model, { changed: () => this.onChange(), sized: () => this.onSize() });
    const part = model.conditions.find((one) => one.kind === "paint");
    this.map = part ? new MapPanel(part, () => this.onChange()) : null;
    this.editing = new Editing(model, this.stage, { changed: () => this.onChange(), sized: (moved) => this.map?.resize(this.editing.size, moved) });
    this.comparing = new Comparing(this.stage);
  }

  // --- building ---------------------------------------------------------------------------------------------------------

  build() {
    const { settings } = this, section = (modes, ...nodes) => {
      const made = element("div", { className: "group" }, ...nodes);
      made.dataset.modes = modes;
      return made;
    };
    byId("panel").append(
      section("edit", ...this.editing.controls()),
      section("create edit", ...settings.conditionControls(), this.map ? element("div", { className: "line" }, this.map.toggle(),
        element("small", { className: "hint" }, "Paint where sky, water or houses are".replace("sky, water or houses", this.map.part.names.slice(0, 3).join(", ")))) : null),
      section("create", ...settings.sizeControls()),
      section("create edit", ...settings.commonControls()),
      section("reconstruct", ...this.comparing.controls((file) => this.reconstruct(file))),
    );
    byId("prompt-line").hidden = !settings.text;
    this.buildActions();
    for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", () => this.setMode(input.value));
    byId("bar").addEventListener("submit", (event) => { event.preventDefault(); this.generate(); });
    byId("cancel").addEventListener("click", () => this.cancel());
    byId("copy-link").addEventListener("click", () => this.copy(this.link(), "The link is copied."));
    byId("prompt").addEventListener("input", () => this.onChange());
    document.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("dragover", (event) => { event.preventDefault(); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file) this.drop(file);
    });
    document.body.classList.add("ready");
    this.setMode("create");
    this.onSize();
    this.onChange();
  }

  buildActions() {
    const button = (id, text, act) => element("button", { type: "button", id, onclick: () => this.guard(act) }, text);
    byId("actions").append(
      button("back", "Back", () => this.back()), button("download", "Download", () => download(this.single.blob, this.single.name)),
      button("edit-this", "Edit", () => this.edit(this.single)), button("extend-this", "Extend", () => this.edit(this.single, "right")),
      button("vary-this", "Variations", () => this.vary(this.single)), button("reuse", "Reuse settings", () => this.reuse(this.single)),
      button("copy-seed", "Copy seed", () => this.copy(String(this.single.seed), "The seed is copied.")),
      button("delete", "Delete", () => this.remove(this.single)));
  }

  /** Run something; an error becomes a sentence under the stage. */
  async guard(act) {
    try { await act(); } catch (error) { showStatus(error.message, { error: true }); }
  }

  // --- changes ----------------------------------------------------------------------------------------------------------

  get size() { return this.mode === "edit" ? this.editing.size ?? this.settings.size : this.settings.size; }

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
    if (!this.showRunning()) this.showMode();
    byId("generate").textContent = mode === "reconstruct" ? "Reconstruct" : "Generate";
    this.onChange();
  }

  /** What the stage shows in a mode while nothing else is chosen. */
  showMode() {
    this.setSingle(null);
    if (this.mode === "edit") this.editing.show();
    else if (this.mode === "reconstruct") this.comparing.show();
    else if (this.results.length) this.showResults();
    else if (this.examples.length) this.stage.showExamples(this.examples, (one) => this.guard(() => this.reuseExample(one)));
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
    this.keeping = setTimeout(() => setValue("settings", { settings: this.settings.values(), locked: byId("lock").checked, mapOpen: Boolean(this.map && !this.map.root.hidden) }), 300);
    if (!this.running) this.showEstimate();
  }

  showEstimate() {
    if (byId("status").classList.contains("error")) return;
    const codes = this.mode === "edit" && this.editing.image ? this.editing.newCodes : null;
    const seconds = this.settings.estimate(this.size, { count: Number(byId("count").value), codes });
    const tries = this.mode === "edit" && !this.model.any_order ? 4 : 1;
    const known = seconds !== null && this.mode !== "reconstruct" && !(this.mode === "edit" && !this.editing.isMarked);
    showStatus(known ? `about ${duration(seconds * tries)}` : "");
  }

  // --- jobs -------------------------------------------------------------------------------------------------------------

  async generate() {
    if (this.running) return;
    await this.guard(async () => {
      if (this.mode === "reconstruct") {
        if (!this.photo) byId("open-photo").click();
        else await this.reconstruct(this.photo);
        return;
      }
      this.settings.drawSeed();
      const settings = this.settings.values(), conditions = this.settings.conditions(), files = { ...this.settings.files };
      if (this.map?.isUsed) files[this.map.part.key] = await this.map.blob();
      if (!Object.keys(conditions).length && !Object.keys(files).length) settings.guidance = 1;
      if (this.mode === "create") {
        history.replaceState(null, "", this.link(settings, conditions));
        await this.run({ task: "sample", settings, conditions }, files, settings);
      } else {
        if (!this.editing.image) throw new Error("there is no image to edit; open one, or choose Edit below an image");
        if (!this.editing.isMarked) throw new Error("nothing is marked and nothing added; paint over a region, or extend the image");
        Object.assign(files, await this.editing.files());
        await this.run({ task: "edit", settings, conditions, extend: this.editing.extension }, files, this.editing.size);
      }
    });
  }

  /** Submit a job and follow it to its end. */
  async run(job, files, size) {
    if (this.running) throw new Error("one job is running; wait for it, or cancel it");
    const { width, height } = size;
    this.running = { job, size: { width, height }, mode: this.mode, state: null };
    this.setBusy(true);
    try {
      const state = await api.submit(job, files);
      this.running.state = state;
      sessionStorage.setItem("job", JSON.stringify({ key: state.job, job, size: { width, height }, mode: this.mode }));
      if (this.running.cancelled) await api.cancel(state.job);
      await this.finish(await api.follow(state.job, (now) => this.onState(now)));
    } finally {
      sessionStorage.removeItem("job");
      this.running = null;
      this.setBusy(false);
    }
  }

  /** Go on with the job that was running when the page was reloaded. */
  async resume() {
    const kept = JSON.parse(sessionStorage.getItem("job") ?? "null");
    if (!kept) return;
    try {
      this.running = { ...kept, state: { job: kept.key } };
      this.setBusy(true);
      await this.finish(await api.follow(kept.key, (now) => this.onState(now)));
    } catch { /* it is too long ago */ } finally {
      sessionStorage.removeItem("job");
      this.running = null;
      this.setBusy(false);
    }
  }

  setBusy(busy) {
    setEnabled(byId("generate"), !busy);
    setEnabled(byId("cancel"), busy);
    document.body.classList.toggle("busy", busy);
    if (!busy) this.showShare(0);
    else showStatus("Sending …");
  }

  showShare(share) {
    byId("progress").firstElementChild.style.width = `${share * 100}%`;
    byId("progress").setAttribute("aria-valuenow", String(Math.round(share * 100)));
  }

  onState(state) {
    this.running.state = state;
    if (state.phase === "waiting") {
      const wait = state.wait ? `, about ${duration(state.wait)} until it begins` : "";
      const text = state.position > 1 ? `Waiting: number ${state.position} in the queue${wait}` : `Waiting: next in the queue${wait}`;
      if (state.position !== this.running.position) announce(text);
      this.running.position = state.position;
      showStatus(text);
    } else if (state.phase === "running") {
      const share = state.share ?? 0, left = state.seconds_left ? `, about ${duration(state.seconds_left)} left` : "";
      this.showShare(share);
      showStatus(`${Math.round(share * 100)} %${left}`);
      this.showRunning();
    }
  }

  /** Show the previews of the running job in its own mode; returns whether there are any. */
  showRunning() {
    const { state, mode, size } = this.running ?? {};
    if (!state?.previews?.length || mode !== this.mode || this.single) return false;
    this.stage.showPreviews(state.previews, size);
    return true;
  }

  async finish(state) {
    const { job, mode } = this.running;
    if (state.phase === "failed") throw new Error(state.error);
    if (state.phase === "cancelled") {
      showStatus("Cancelled.");
      announce("Cancelled");
      if (this.mode === mode && !this.single) this.showMode();
      return;
    }
    const images = [];
    for (const one of state.images) images.push({ ...one, blob: await api.getBlob(one.url) });
    if (GENERATED.includes(job.task)) await this.keep(images, job, mode);
    else {
      this.comparing.set(images.map((one) => ({ ...one, url: URL.createObjectURL(one.blob) })), state.facts);
      if (this.mode !== "reconstruct") this.setMode("reconstruct");
    }
    this.model.pace = (await api.getJson("api/model")).pace;
    const count = images.length, what = GENERATED.includes(job.task) ? `${count} image${count > 1 ? "s" : ""} done` : "Reconstructed";
    const note = state.facts.note ? ` Note: ${state.facts.note}.` : "";
    this.settings.showTimes();
    showStatus(`${what}.${note}`);
    announce(`${what}.${note}`);
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

  async cancel() {
    if (!isEnabled(byId("cancel")) || !this.running) return;
    this.running.cancelled = true;
    const key = this.running.state?.job;
    showStatus("Cancelling …");
    if (key) await this.guard(() => api.cancel(key));
  }

  // --- images -----------------------------------------------------------------------------------------------------------

  setSingle(image) {
    this.single = image;
    byId("actions").hidden = !image;
    this.gallery.mark(image);
  }

  showResults() {
    if (this.results.length === 1) { this.showSingle(this.results[0]); return; }
    this.setSingle(null);
    this.stage.showImages(this.results, (image) => { this.showSingle(image); byId("back").focus(); });
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

  async edit(image, side = "none") {
    await this.editing.open(image, side);
    if (this.mode !== "edit") this.setMode("edit");
    this.showMode();
    this.map?.resize(this.editing.size);
    showStatus("");
    this.onChange();
    byId("mask-canvas").focus({ preventScroll: true });
  }

  async vary(image) {
    this.settings.drawSeed();
    const settings = this.settings.values();
    this.setSingle(null);
    const conditions = image.conditions ?? {};
    if (!Object.keys(conditions).length) settings.guidance = 1;
    await this.run({ task: "vary", settings, conditions }, { image: image.blob }, image);
  }

  async remove(image) {
    const next = await this.gallery.remove(image);
    this.results = this.results.filter((one) => one.id !== image.id);
    if (next) this.showSingle(next);
    else { this.setSingle(null); this.showMode(); }
  }

  /** The settings in an image's file, its map too. */
  async reuse(image) {
    const found = await api.readImage(new File([image.blob], image.name ?? "image.png"));
    if (!found.settings) throw new Error("this image has no settings of this model");
    if (this.mode !== "create") this.setMode("create");
    await this.restore(found.settings);
    this.showSingle(image);
    showStatus("The settings and the seed of the image are set.");
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
    const conditions = Object.fromEntries(this.model.conditions.filter(({ key }) => typeof example.settings[key] === "string").map(({ key }) => [key, example.settings[key]]));
    await this.restore({ settings: example.settings, conditions, maps: example.settings.maps ?? {} });
    showStatus("The settings of the example are set. Press Generate, or change them.");
  }

  /** A dropped file: an image of ours restores its settings, another one is edited, or reconstructed in that mode. */
  drop(file) {
    return this.guard(async () => {
      if (this.mode === "reconstruct") { await this.reconstruct(file); return; }
      const found = await api.readImage(file);
      if (!found.settings || this.mode === "edit") {
        const { name, width, height } = found;
        await this.edit({ blob: api.pngBlob(found.png), name, width, height });
        return;
      }
      await this.restore(found.settings);
      const { width, height } = found, { seed } = found.settings.settings, { conditions } = found.settings;
      const caption = Object.values(conditions)[0] ?? "image";
      this.showSingle(await this.gallery.add({ blob: file.slice(0, file.size, "image/png"), name: file.name, caption, seed, width, height, conditions }));
      showStatus(`The settings of ${file.name} are set.`);
    });
  }

  reconstruct(file) {
    return this.guard(async () => {
      this.photo = file;
      await this.run({ task: "reconstruct" }, { image: file }, { width: 0, height: 0 });
    });
  }

  // --- links and keys ---------------------------------------------------------------------------------------------------

  link(settings = this.settings.values(), conditions = this.settings.conditions()) {
    return `${location.origin}${location.pathname}?${new URLSearchParams({ ...conditions, ...settings })}`;
  }

  async copy(text, said) {
    await navigator.clipboard.writeText(text);
    showStatus(said);
    announce(said);
  }

  onKey(event) {
    const typing = event.target.matches?.("input[type=text], input[type=number]");
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key === "Enter") { event.preventDefault(); this.generate(); return; }
    if (control && !typing && ["z", "y"].includes(event.key.toLowerCase())) {
      const painter = this.mode === "edit" && this.stage.root.dataset.kind === "editor" ? this.editing.painter : this.map?.painter;
      if (!painter) return;
      event.preventDefault();
      if (event.key.toLowerCase() === "y" || event.shiftKey) painter.redo();
      else painter.undo();
    }
    if (event.key === "Escape" && this.single) this.back();
  }

  // --- the beginning ----------------------------------------------------------------------------------------------------

  async open() {
    await openStorage();
    this.build();
    await this.gallery.open();
    await this.restoreVisit();
    await this.openLink();
    this.resume();
    await this.loadExamples();
    for (let tries = 0; tries < 30 && !Object.keys(this.model.pace).length; tries++) {
      await new Promise((next) => setTimeout(next, 1000));
      this.model.pace = (await api.getJson("api/model")).pace;
    }
    this.onChange();
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
      const found = await api.getJson(`api/settings${location.search}`).catch((error) => { throw new Error(`Invalid link: ${error.message}`); });
      this.settings.restore(found);
      showStatus("The settings of the link are set.");
    });
  }

  async loadExamples() {
    for (let tries = 0; tries < 120; tries++) {
      const found = await api.getJson("api/examples");
      if (found.length > this.examples.length) {
        this.examples = found;
        if (this.mode === "create" && !this.results.length && !this.single && !this.running) this.showMode();
      }
      if (this.examples.length >= 4) return;
      await new Promise((next) => setTimeout(next, 2000));
    }
  }
}

try {
  const page = new Page(await api.getJson("api/model"));
  window.smaltiPage = page;
  await page.open();
} catch (error) {
  showStatus(error.message, { error: true });
  throw error;
}
