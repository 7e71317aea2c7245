// Small helpers: elements, numbers in words, and what is announced to screen readers.

/** A tag, its properties and attributes, and its children -> the element. Functions named on... are listeners. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Seconds -> a short text. */
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(Math.round(seconds), 1)} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Say something to screen readers, once. */
export function announce(text) {
  byId("live").textContent = "";
  setTimeout(() => {
    byId("live").textContent = text;
  }, 50);
}

/** Show a line under the stage; an error is also announced. */
export function showStatus(text, { error = false } = {}) {
  const line = byId("status");
  line.textContent = text;
  line.classList.toggle("error", error);
  if (error) announce(text);
}

/** Enable or disable a button without taking the focus from it. */
export function setEnabled(button, enabled) {
  button.setAttribute("aria-disabled", String(!enabled));
}

export const isEnabled = (button) => button.getAttribute("aria-disabled") !== "true";

/** Offer a file for download. */
export function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A hidden chooser of image files, to be clicked by a button: `open(file)`, also when the same one is chosen again. */
export function fileChooser(id, open) {
  return element("input", {
    type: "file",
    id,
    accept: "image/*",
    hidden: true,
    onchange: (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) open(file);
    },
  });
}

/** A group of radio buttons. `choices`: [{value, label, hint, color}] -> the fieldset; `change` gets the value. */
export function radios(name, title, choices, selected, change, { hideTitle = false } = {}) {
  const group = element("fieldset", { className: "pills", id: name });
  group.append(element("legend", { className: hideTitle ? "hidden-text" : "" }, title));
  for (const { value, label, hint, color } of choices) {
    const input = element("input", {
      type: "radio",
      name,
      value,
      checked: value === selected,
      onchange: () => change(value),
    });
    const swatch = color === undefined ? null : element("i", { className: color ? "swatch" : "swatch unpainted" });
    if (swatch && color) swatch.style.background = color;
    const text = element("span", {}, swatch, label, hint ? element("small", {}, hint) : null);
    group.append(element("label", {}, input, text));
  }
  return group;
}

export const radioValue = (name) => document.querySelector(`input[name="${CSS.escape(name)}"]:checked`)?.value ?? "";

/** Select a radio button; returns whether there is one of this value. */
export function setRadio(name, value) {
  const input = document.querySelector(`input[name="${CSS.escape(name)}"][value="${CSS.escape(value)}"]`);
  if (input) input.checked = true;
  return Boolean(input);
}

/** Copy a text, and say so. Browsers have no `navigator.clipboard` for a page that is neither local nor HTTPS. */
export async function copy(text, said) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {
    const before = document.activeElement,
      field = element("textarea", { value: text, className: "hidden-text" });
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    before?.focus({ preventScroll: true });
    if (!copied) throw new Error(`this browser does not copy; the text is ${text}`);
  }
  showStatus(said);
  announce(said);
}
