// What can be done with one image: download, edit, extend, vary, reuse its settings, delete. And what a dropped file
// does.
import * as api from "./api.js";
import { byId, copy, download, element, showStatus } from "./dom.js";

export class ImageActions {
  /** `page`: the page, whose `single` image is on the stage. */
  constructor(page) {
    this.page = page;
  }

  build() {
    const { page } = this,
      actions = [
        ["back", "Back", () => page.back()],
        ["download", "Download", (image) => download(image.blob, image.name)],
        ["edit-this", "Edit", (image) => this.edit(image)],
        ["extend-this", "Extend", (image) => this.edit(image, "right")],
        ["vary-this", "Variations", (image) => this.vary(image)],
        ["reuse", "Reuse settings", (image) => this.reuse(image)],
        ["copy-seed", "Copy seed", (image) => copy(String(image.seed), "The seed is copied.")],
        ["delete", "Delete", (image) => this.remove(image)],
      ];
    byId("actions").append(
      ...actions.map(([id, label, act]) =>
        element("button", { type: "button", id, onclick: () => page.guard(() => act(page.single)) }, label),
      ),
    );
  }

  async edit(image, side = "none") {
    const { page } = this;
    await page.editing.open(image, side);
    if (image.conditions) page.settings.setConditions(image.conditions); // new parts are like the image
    if (page.mode !== "edit") page.setMode("edit");
    page.showMode();
    page.map?.resize(page.editing.size);
    showStatus("");
    page.onChange();
    byId("mask-canvas").focus({ preventScroll: true });
  }

  async vary(image) {
    const { page } = this;
    page.settings.drawSeed();
    const settings = page.settings.values(),
      conditions = image.conditions ?? {};
    if (!Object.keys(conditions).length) settings.guidance = 1;
    page.setSingle(null);
    await page.run({ task: "vary", settings, conditions }, { image: image.blob }, image);
  }

  /** The settings in an image's file, its map too. */
  async reuse(image) {
    const { page } = this,
      found = await api.readImage(new File([image.blob], image.name ?? "image.png"));
    if (!found.settings) throw new Error("this image has no settings of this model");
    if (page.mode !== "create") page.setMode("create");
    await page.restore(found.settings);
    page.showSingle(image);
    showStatus("The settings and the seed of the image are set.");
  }

  async remove(image) {
    const { page } = this,
      next = await page.gallery.remove(image);
    if (next) page.showSingle(next);
  }

  /** An image file is edited. */
  editFile(file) {
    return this.page.guard(async () => this.editUpload(await api.readImage(file)));
  }

  editUpload({ png, name, width, height }) {
    return this.edit({ blob: api.pngBlob(png), name, width, height });
  }

  /** A dropped file: an image of ours restores its settings, another one is edited, or reconstructed in that mode. */
  drop(file) {
    const { page } = this;
    return page.guard(async () => {
      if (page.mode === "reconstruct") {
        await page.reconstruct(file);
        return;
      }
      const found = await api.readImage(file),
        { width, height, settings } = found;
      if (!settings || page.mode === "edit") {
        await this.editUpload(found);
        return;
      }
      await page.restore(settings);
      const { conditions } = settings,
        caption = Object.values(conditions)[0] ?? "image";
      const blob = file.slice(0, file.size, "image/png"),
        { seed } = settings.settings;
      page.showSingle(await page.gallery.add({ blob, name: file.name, caption, seed, width, height, conditions }));
      showStatus(`The settings of ${file.name} are set.`);
    });
  }
}
