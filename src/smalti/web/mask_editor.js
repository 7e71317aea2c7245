// The mask editor: paints labels, or a mask over an image. It belongs to a gr.HTML component, which provides `element`,
// `props`, `watch` and `trigger`.
// props: width, height (pixels of the image), labels ([{name, color}]), first (the initially selected label), image (a URL,
// "" for none) and hint. props.value is the painted map: "" for none, else a PNG with the labels in its red channel.
const UNDO = 30;
let width = 0, height = 0, numbers = new Uint8Array(0), past = [], chosen = props.first, filling = false, last = null;
let sent = "", painted = false;

element.innerHTML = `<div class="mask-editor"><div class="labels" role="radiogroup"></div>
  <div class="ground"><img alt=""><canvas aria-label="Canvas to paint on"></canvas></div>
  <p class="hint"></p>
  <div class="tools"><label>Brush <input type="range" min="1" max="40" value="12" aria-label="Width of the brush"></label>
  <button type="button" data-tool="fill" aria-pressed="false">Fill</button>
  <button type="button" data-tool="undo">Undo</button><button type="button" data-tool="clear">Clear</button></div></div>`;
const find = (selector) => element.querySelector(selector);
const canvas = find("canvas"), context = canvas.getContext("2d"), brush = find("input");

const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));

function chips() {
  find(".labels").replaceChildren(...props.labels.map((label, number) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.setAttribute("role", "radio");
    chip.setAttribute("aria-checked", String(number === chosen));
    const spot = document.createElement("i");
    spot.style.background = label.color;
    chip.append(spot, label.name);
    chip.onclick = () => { chosen = number; chips(); };
    return chip;
  }));
}

function show() {
  const image = context.createImageData(width, height), colors = props.labels.map((label) => rgb(label.color));
  for (let at = 0; at < numbers.length; at++) {
    const number = numbers[at];
    image.data.set(colors[number], at * 4);
    image.data[at * 4 + 3] = props.image ? (number ? 190 : 0) : (painted ? 255 : 70);
  }
  context.putImageData(image, 0, 0);
  find(".hint").textContent = painted ? "" : props.hint;
}

function send() {
  let text = "";
  if (painted) {
    const plain = document.createElement("canvas");
    [plain.width, plain.height] = [width, height];
    const image = new ImageData(width, height);
    for (let at = 0; at < numbers.length; at++) image.data.set([numbers[at], 0, 0, 255], at * 4);
    plain.getContext("2d").putImageData(image, 0, 0);
    text = plain.toDataURL("image/png");
  }
  sent = text;
  props.value = text;
  trigger("change");
}

// On a new size the painted map is resized; on a new image it is discarded.
function fit(forget) {
  const [oldWidth, oldHeight, old] = [width, height, numbers];
  [width, height] = [props.width, props.height];
  [canvas.width, canvas.height] = [width, height];
  numbers = new Uint8Array(width * height);
  if (forget || !oldWidth) painted = false;
  else for (let y = 0; y < height; y++) for (let x = 0; x < width; x++)
    numbers[y * width + x] = old[Math.floor(y * oldHeight / height) * oldWidth + Math.floor(x * oldWidth / width)];
  past = [];
  find(".ground").style.aspectRatio = `${width} / ${height}`;
  find(".ground").style.maxWidth = `min(100%, calc(42vh * ${width} / ${height}))`;
  find("img").src = props.image || "data:,";
  find("img").hidden = !props.image;
  show();
}

// Loads a map: its labels are in the red channel.
function load(address) {
  const image = new Image();
  image.onload = () => {
    const plain = document.createElement("canvas");
    [plain.width, plain.height] = [width, height];
    const pen = plain.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, width, height);
    const data = pen.getImageData(0, 0, width, height).data;
    remember();
    for (let at = 0; at < numbers.length; at++) numbers[at] = Math.min(data[at * 4], props.labels.length - 1);
    painted = true;
    show();
    send();
  };
  image.src = address;
}

function remember() {
  past.push([numbers.slice(), painted]);
  if (past.length > UNDO) past.shift();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
}

// Hard edges: a pixel has one label, and a mixture of two colors would be a third one.
function disc([x, y]) {
  const radius = Math.max(brush.value / 200 * Math.max(width, height), 0.5);
  for (let row = Math.max(Math.floor(y - radius), 0); row < Math.min(y + radius, height); row++)
    for (let column = Math.max(Math.floor(x - radius), 0); column < Math.min(x + radius, width); column++)
      if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2 + 0.25) numbers[row * width + column] = chosen;
}

function line(from, to) {
  const steps = Math.max(Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])), 1);
  for (let step = 0; step <= steps; step++)
    disc([from[0] + (to[0] - from[0]) * step / steps, from[1] + (to[1] - from[1]) * step / steps]);
}

function fill([x, y]) {
  const start = Math.floor(y) * width + Math.floor(x), old = numbers[start];
  if (old === chosen) return;
  const open = [start];
  while (open.length) {
    const at = open.pop();
    if (at < 0 || at >= numbers.length || numbers[at] !== old) continue;
    numbers[at] = chosen;
    if (at % width) open.push(at - 1);
    if ((at + 1) % width) open.push(at + 1);
    open.push(at - width, at + width);
  }
}

canvas.onpointerdown = (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  remember();
  painted = true;
  last = place(event);
  if (filling) fill(last); else disc(last);
  show();
};
canvas.onpointermove = (event) => {
  if (!last || filling) return;
  const now = place(event);
  line(last, now);
  last = now;
  show();
};
canvas.onpointerup = canvas.onpointercancel = () => { if (last) { last = null; send(); } };

find(".tools").onclick = (event) => {
  const tool = event.target.dataset.tool;
  if (tool === "fill") { filling = !filling; event.target.setAttribute("aria-pressed", String(filling)); }
  if (tool === "undo" && past.length) { [numbers, painted] = past.pop(); show(); send(); }
  if (tool === "clear") { remember(); numbers.fill(0); painted = false; show(); send(); }
};

watch(["width", "height"], () => fit(false));
watch("image", () => { fit(true); send(); });
watch("value", () => { if (props.value !== sent && props.value) load(props.value); });
chips();
fit(true);
