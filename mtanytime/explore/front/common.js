// What the drawings of all explorers share. They run as an anywidget in a notebook and without a kernel in an exported
// page; export.py joins the files of this folder into one script. `model` holds the contents (see contents/) and the
// reader's choices. Every text is added as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const FONT = '12px system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif'; // as in explorer.css
const KEYS = { "data-lm-suppress-shortcuts": "true" }; // on a control, so that JupyterLab leaves it the arrow keys
const SMALL = 0.75; // size of small letters relative to FONT
const GAP = 28; // between pictures side by side, as in explorer.css
const LEAST_ROOM = 320; // for a picture; in a narrower box it scrolls
const UNKNOWN_ROOM = 560; // in a box that is not on the screen yet
const REACH = 22; // of a pointer, in a picture's units
const DASHES = [null, "8 3", "2 3", "10 3 2 3"];
const LETTERS_UP_TO = 60; // per name in a picture

function node(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  return fill(made, attributes, ...children);
}

function fill(made, attributes, ...children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) made.removeAttribute(key);
    else made.setAttribute(key, value);
  }
  if (children.length) made.replaceChildren(...children.filter((child) => child !== null));
  return made;
}

const svg = (name, attributes, ...children) => node(`svg:${name}`, attributes, ...children);
const words = (x, y, text, more = {}) => svg("text", { x, y, ...more }, text);
const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });

function picture(width, height, label, ...children) {
  const attributes = { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label };
  return svg("svg", attributes, ...children);
}

// a function from a pointer's event to the nearest of some points in a picture, at most REACH away; null if none is
function pointed(whole, points) {
  return (event) => {
    const box = whole.getBoundingClientRect();
    const size = whole.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * size, (event.clientY - box.top) * size];
    const far = (point) => Math.hypot(point.x - x, point.y - y);
    const nearest = points.reduce((best, point) => (best === null || far(point) < far(best) ? point : best), null);
    return nearest !== null && far(nearest) <= REACH ? nearest : null;
  };
}

// a box that can be reached and scrolled by keyboard where its contents are wider than it
function scrolling(name, kind = "scroll") {
  const box = node("div", { class: kind });
  const check = () => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    fill(box, wide ? { tabindex: 0, role: "region", "aria-label": name } : { tabindex: null, role: null, "aria-label": null });
  };
  new ResizeObserver(check).observe(box);
  return box;
}

// Pictures are drawn as wide as there is room, rather than stretched, so that all letters have one size.
const room_in = (box, most) => Math.round(Math.min(Math.max(box.clientWidth || UNKNOWN_ROOM, LEAST_ROOM), most));
const between = (least, value, most) => Math.min(Math.max(value, least), most);

// calls `draw` whenever a box has got another width; returns a function that ends this
function on_width(box, draw) {
  let width = box.clientWidth;
  const observer = new ResizeObserver(() => {
    if (box.clientWidth === width || box.clientWidth === 0) return;
    width = box.clientWidth;
    draw();
  });
  observer.observe(box);
  return () => observer.disconnect();
}

const pen = document.createElement("canvas").getContext("2d");
function width_of(texts) {
  pen.font = FONT;
  return Math.ceil(Math.max(...texts.map((text) => pen.measureText(text).width)));
}

// a name, without its middle if it would leave no room for the picture
const shortened = (name) => (name.length <= LETTERS_UP_TO ? name : `${name.slice(0, LETTERS_UP_TO / 2)}…${name.slice(1 - LETTERS_UP_TO / 2)}`);

function choice(label, options, value, choose) {
  const select = node("select", { ...KEYS, "aria-label": label }, ...options.map(([key, text]) => node("option", { value: key }, text)));
  select.value = value;
  select.addEventListener("change", () => choose(select.value));
  return { element: node("label", {}, label, select), select };
}

// "1.32", or two significant digits where all values are small
const number = (value, largest) => (largest >= 0.1 ? value.toFixed(2) : value.toPrecision(2));
const percent = (value) => `${Math.round(100 * value)}%`;

// about `most` round values from low to high
function ticks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// 1, 2 and 5 times powers of ten between low and high; only the powers over many decades, even steps over few
function log_ticks(low, high) {
  const decades = Math.log10(high / low);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of decades > 3 ? [1] : [1, 2, 5]) {
      const value = Number(`${factor}e${power}`);
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found.length < 3 ? ticks(low, high, 4) : found;
}

function short(value) {
  for (const [size, letter] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return `${Number(value.toPrecision(3))}`;
}

// black on bright cells, white on dark ones
function ink_on(rgb) {
  const [red, green, blue] = rgb.map((part) => part / 255);
  return 0.2126 * red ** 2.2 + 0.7152 * green ** 2.2 + 0.0722 * blue ** 2.2 > 0.2 ? "#000" : "#fff";
}

function slider(label, count) {
  const input = node("input", { ...KEYS, type: "range", min: 0, max: Math.max(count - 1, 0), step: 1 });
  const stop = node("output", { class: "stop", "aria-live": "off" }); // the slider announces it already
  return { input, stop, element: node("label", { class: "slider" }, label, input, stop) };
}

const setter = (model) => (name, value) => {
  model.set(name, value);
  model.save_changes();
};

// A button that calls `step` at an interval until it returns false. Meanwhile screen readers do not announce the
// read-out: several sentences per second would be too much.
function player(readout, milliseconds, begin, step) {
  const button = node("button", { ...KEYS, type: "button" }, "▶ Play");
  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    fill(button, {}, "▶ Play");
    readout.setAttribute("aria-live", "polite");
  };
  button.addEventListener("click", () => {
    if (timer !== null) return pause();
    readout.setAttribute("aria-live", "off");
    fill(button, {}, "⏸ Pause");
    begin();
    timer = setInterval(() => {
      if (!step()) pause();
    }, milliseconds);
    return undefined;
  });
  return { button, pause };
}
