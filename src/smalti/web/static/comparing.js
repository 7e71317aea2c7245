// Reconstruction: an image before and after, with a divider, smooth or as tiles of one color per code.
import { byId, element, fileChooser, radios, radioValue } from "./dom.js";
import { bestGrid } from "./stage.js";

export class Comparing {
  constructor(stage) {
    Object.assign(this, { stage, shown: null });
  }

  controls(open) {
    const input = fileChooser("open-photo", open);
    this.facts = element(
      "p",
      { id: "facts", className: "hint" },
      "The image becomes codes, and the codes an image again.",
    );
    return [
      element(
        "div",
        { className: "line" },
        input,
        element("button", { type: "button", id: "open-photo-button", onclick: () => input.click() }, "Open an image…"),
        element("small", { className: "hint" }, "or drop one"),
      ),
      radios(
        "tiles",
        "Shown on the right",
        [
          { value: "reconstruction", label: "Smooth" },
          { value: "codes", label: "Tiles" },
        ],
        "reconstruction",
        () => this.show(),
      ),
      this.facts,
    ];
  }

  /** The images of a reconstruction [{name, url, width, height}] and its facts. */
  set(images, facts) {
    this.shown = { original: images[0], reconstruction: images[1], codes: images[2] };
    const [rows, columns] = facts.grid,
      [pixels, codes] = facts.bytes;
    this.facts.textContent =
      `PSNR ${facts.psnr.toFixed(1)} dB. ${rows} × ${columns} codes, ${facts.distinct} different ones: ` +
      `${pixels.toLocaleString("en")} bytes of pixels become ${codes.toLocaleString("en")} bytes of codes.`;
    this.show();
  }

  show() {
    if (!this.shown) {
      this.stage.show(
        "message",
        () => {},
        element(
          "div",
          {},
          element("p", {}, "Open or drop an image to see what its codes keep of it."),
          element(
            "button",
            { type: "button", className: "primary", onclick: () => byId("open-photo").click() },
            "Open an image…",
          ),
        ),
      );
      return;
    }
    const { original } = this.shown,
      after = this.shown[radioValue("tiles")];
    const before = element("img", { src: original.url, alt: "The original" });
    const covered = element("img", {
      src: after.url,
      alt: radioValue("tiles") === "codes" ? "Its codes, one color each" : "Its reconstruction",
      className: "after",
    });
    const frame = element("div", { className: "compare" }, before, covered, element("i", {}));
    const divider = element("input", {
      type: "range",
      id: "divider",
      min: 0,
      max: 100,
      value: this.place ?? 50,
      "aria-label": "Divider between the original and the reconstruction",
      oninput: () => {
        this.place = divider.value;
        move();
      },
    });
    const move = () => {
      covered.style.clipPath = `inset(0 0 0 ${divider.value}%)`;
      frame.querySelector("i").style.left = `${divider.value}%`;
    };
    const drag = (event) => {
      if (!event.buttons) return;
      const box = frame.getBoundingClientRect();
      divider.value = this.place = Math.round(((event.clientX - box.left) / box.width) * 100);
      move();
    };
    frame.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      frame.setPointerCapture(event.pointerId);
      drag(event);
    });
    frame.addEventListener("pointermove", drag);
    const refit = () => {
      const { width, height } = this.stage.room,
        { scale } = bestGrid(original, 1, width, height - 40);
      for (const node of [frame, divider]) node.style.width = `${original.width * scale}px`;
      frame.style.height = `${original.height * scale}px`;
    };
    this.stage.show("compare", refit, frame, divider);
    move();
  }
}
