// The gallery: images that this browser keeps, the newest first.
import { announce, byId, download, element, setEnabled, isEnabled } from "./dom.js";
import { describe } from "./stage.js";
import * as storage from "./storage.js";
import { zip } from "./zip.js";

export class Gallery {
  /** `pick(image)` when one is chosen, `removed(images)` after some are deleted. */
  constructor(pick, removed) {
    Object.assign(this, { pick, removed, images: [], chosen: null });
    byId("download-all").onclick = (event) => {
      if (isEnabled(event.currentTarget)) this.downloadAll();
    };
    const remove = byId("delete-all");
    remove.onclick = () => {
      if (!isEnabled(remove)) return;
      if (remove.dataset.sure) this.deleteAll();
      else {
        remove.dataset.sure = "1";
        remove.textContent = `Delete ${this.images.length} images?`;
        setTimeout(() => this.calm(), 5000);
      }
    };
  }

  async open() {
    this.images = (await storage.allImages()).map((image) => ({ ...image, url: URL.createObjectURL(image.blob) }));
    this.show();
  }

  calm() {
    const button = byId("delete-all");
    delete button.dataset.sure;
    button.textContent = "Delete all";
  }

  /** Keep an image {blob, name, caption, seed, width, height, job} -> it, with its id and address. */
  async add(image) {
    const kept = { ...image, id: await storage.addImage(image), url: URL.createObjectURL(image.blob) };
    this.images.push(kept);
    this.show();
    return kept;
  }

  async remove(image) {
    const place = this.images.findIndex((one) => one.id === image.id);
    if (place < 0) return null;
    await storage.deleteImage(image.id);
    this.images.splice(place, 1);
    URL.revokeObjectURL(image.url);
    this.show();
    this.removed([image]);
    announce(`Deleted ${image.name}`);
    return this.images[Math.min(place, this.images.length - 1)] ?? null;
  }

  async deleteAll() {
    await storage.deleteAllImages();
    this.images.forEach((image) => URL.revokeObjectURL(image.url));
    const deleted = this.images.splice(0);
    this.calm();
    this.show();
    this.removed(deleted);
    announce("The gallery is empty");
  }

  async downloadAll() {
    download(await zip(this.images.map(({ name, blob }) => ({ name, blob }))), "smalti.zip");
  }

  mark(image) {
    this.chosen = image?.id ?? null;
    for (const thumb of byId("thumbs").querySelectorAll("button")) {
      if (Number(thumb.dataset.id) === this.chosen) thumb.setAttribute("aria-current", "true");
      else thumb.removeAttribute("aria-current");
    }
  }

  show() {
    const list = byId("thumbs"),
      known = new Map([...list.children].map((item) => [Number(item.dataset.id), item]));
    const items = [...this.images].reverse().map((image) => known.get(image.id) ?? this.item(image));
    const focused = document.activeElement,
      wanted = new Set(items);
    for (const item of [...list.children]) if (!wanted.has(item)) item.remove();
    items.forEach((item, place) => {
      if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
    });
    if (focused instanceof HTMLElement && focused.isConnected && list.contains(focused))
      focused.focus({ preventScroll: true });
    byId("gallery-empty").hidden = this.images.length > 0;
    for (const id of ["download-all", "delete-all"]) setEnabled(byId(id), this.images.length > 0);
    this.mark({ id: this.chosen });
  }

  item(image) {
    const thumb = element(
      "button",
      {
        type: "button",
        title: image.name,
        onclick: () => this.pick(image),
        onkeydown: (event) => {
          if (event.key === "Delete") this.remove(image);
        },
      },
      element("img", { src: image.url, alt: describe(image), loading: "lazy" }),
    );
    thumb.dataset.id = image.id;
    const item = element(
      "li",
      {},
      thumb,
      element(
        "p",
        {},
        element("span", {}, image.caption.replaceAll("-", " ")),
        element("small", {}, String(image.seed)),
      ),
    );
    item.dataset.id = image.id;
    return item;
  }
}
