// The stage: examples, images while they are generated, results, one image, or an editor. It is never empty.
import { byId, element } from "./dom.js";

const GAP = 8;

export class Stage {
  constructor() {
    this.root = byId("stage");
    this.sizes = [];
    this.urls = [];
    this.refit = () => {};
    new ResizeObserver(() => this.refit()).observe(this.root);
    new ResizeObserver(([{ target }]) => {
      // What gets the focus is scrolled out from under the stage.
      document.documentElement.style.setProperty("--covered", `${target.offsetHeight}px`);
    }).observe(byId("work"));
  }

  /** The room for images in pixels. */
  get room() {
    const style = getComputedStyle(this.root);
    return {
      width: this.root.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight),
      height: this.root.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom),
    };
  }

  show(kind, refit, ...nodes) {
    this.root.dataset.kind = kind;
    this.root.replaceChildren(...nodes);
    this.refit = refit;
    refit();
  }

  /** Images of one size as large as whole multiples allow: `make(index)` gives the element of each. */
  showGrid(kind, images, make, note = null) {
    const figures = images.map((image, index) => make(image, index));
    const grid = element("div", { className: "images" }, ...figures);
    const refit = () => {
      const { width, height } = this.room,
        below = note ? note.offsetHeight + GAP : 0;
      const { columns, scale } = bestGrid(images[0], images.length, width, height - below);
      grid.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
      figures.forEach((figure, index) => {
        const img = figure.querySelector("img") ?? figure;
        img.style.width = `${images[index].width * scale}px`;
        img.style.height = `${images[index].height * scale}px`;
      });
    };
    this.show(kind, refit, grid, ...(note ? [note] : []));
    return figures;
  }

  /** Previews as data URLs: elements stay, so that nothing flickers. */
  showPreviews(previews, size) {
    const shown = [...this.root.querySelectorAll("img")];
    if (this.root.dataset.kind === "previews" && shown.length === previews.length) {
      previews.forEach((url, index) => {
        shown[index].src = url;
      });
      return;
    }
    this.showGrid(
      "previews",
      previews.map(() => size),
      (_, index) =>
        element("img", {
          src: previews[index],
          alt: `Image ${index + 1}, in progress`,
        }),
    );
  }

  /** Results or one image: `pick(image)` when one of several is chosen. */
  showImages(images, pick) {
    const several = images.length > 1;
    return this.showGrid(several ? "results" : "image", images, (image) => {
      const img = element("img", { src: image.url, alt: describe(image), draggable: true });
      return several
        ? element(
            "button",
            {
              type: "button",
              className: "pick",
              onclick: () => pick(image),
              title: `${image.caption}, seed ${image.seed}`,
            },
            img,
          )
        : img;
    });
  }

  /** Examples of the model: a wide one above the others. */
  showExamples(examples, pick) {
    const wide = examples.filter((one) => one.width > 1.5 * one.height),
      square = examples.filter((one) => !wide.includes(one));
    const button = (one) =>
      element(
        "button",
        { type: "button", className: "pick", onclick: () => pick(one), title: "Reuse these settings" },
        element("img", { src: one.url, alt: describe(one) }),
      );
    const rows = [wide.slice(0, 1), square.slice(0, 4)].filter((row) => row.length);
    const grids = rows.map((row) => element("div", { className: "images row" }, ...row.map(button)));
    const note = element("p", { className: "hint" }, "Made with this model. Click one to reuse its settings.");
    const refit = () => {
      const { width, height } = this.room,
        left = height - note.offsetHeight - GAP * rows.length;
      const aspect = (row) => row.reduce((sum, one) => sum + one.width / one.height, 0);
      const wanted = rows.reduce((sum, row) => sum + 1 / aspect(row), 0); // height at width 1
      const used = Math.min(width - 3 * GAP, left / wanted);
      rows.forEach((row, index) => {
        const tall = (used - GAP * (row.length - 1)) / aspect(row);
        [...grids[index].querySelectorAll("img")].forEach((img, place) => {
          img.style.height = `${tall}px`;
          img.style.width = `${(tall * row[place].width) / row[place].height}px`;
        });
      });
    };
    this.show("examples", refit, ...grids, note);
  }

  showMessage(text) {
    this.show("message", () => {}, element("p", { className: "hint" }, text));
  }
}

/** The number of columns and the scale, a whole multiple where one fits, for `count` images of a size. */
export function bestGrid(size, count, width, height) {
  let best = { columns: 1, scale: 0 };
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const free = Math.min(
      (width - GAP * (columns - 1)) / (columns * size.width),
      (height - GAP * (rows - 1)) / (rows * size.height),
    );
    const scale = free >= 1 ? Math.floor(free) : free;
    if (scale > best.scale) best = { columns, scale };
  }
  return best;
}

/** An image -> its alternative text: what was requested. */
export function describe(image) {
  const { conditions = {} } = image,
    named = Object.values(conditions).filter(Boolean).join(", ");
  const subject = named || image.settings?.label || image.caption || "no class and no text";
  const seed = image.seed ?? image.settings?.seed;
  return `Image for: ${subject.replaceAll("-", " ")}; seed ${seed}, ${image.width} by ${image.height} pixels`;
}
