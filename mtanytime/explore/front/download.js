// Downloads of what is shown, without a network: the pictures as SVG and PNG, the numbers as CSV.

const LOOKS = ["stroke-width", "stroke-dasharray", "opacity", "fill-opacity", "font-size", "font-weight", "font-family", "text-anchor", "visibility"];
const PNG_SCALE = 2;
const PNG_PIXELS_UP_TO = 16000; // per side; browsers refuse more
const EDGE = 12; // around the pictures
const NO_XML = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g;

const clean = (text) => text.toWellFormed().replace(NO_XML, "\ufffd");

const colours_known = new Map(); // a colour as a page computes it -> [rgb(…), opacity]: other programs know no color-mix()
function plain_colour(colour) {
  if (!colours_known.has(colour)) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    colours_known.set(colour, [`rgb(${red},${green},${blue})`, Number((alpha / 255).toFixed(3))]);
  }
  return colours_known.get(colour);
}

// a copy of a drawing that has its looks in attributes, since a file has no style sheet
function standalone(element) {
  const style = getComputedStyle(element);
  if (element.classList.contains("field") || style.display === "none") return null;
  const copy = element.cloneNode(false);
  for (const name of ["class", "style", "role", "aria-label", "tabindex"]) copy.removeAttribute(name);
  if (element.tagName !== "svg" && element.tagName !== "g") {
    for (const name of ["fill", "stroke"]) {
      const value = style.getPropertyValue(name);
      if (value === "none") {
        copy.setAttribute(name, "none");
        continue;
      }
      const [colour, alpha] = plain_colour(value);
      copy.setAttribute(name, alpha === 0 ? "none" : colour);
      if (alpha > 0 && alpha < 1) copy.setAttribute(`${name}-opacity`, alpha);
    }
  }
  for (const name of LOOKS) {
    const value = style.getPropertyValue(name);
    if (!(name === "fill-opacity" && copy.hasAttribute(name)) && value !== "1" && value !== "none") copy.setAttribute(name, value);
  }
  for (const child of element.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) copy.append(clean(child.textContent));
    else if (child.tagName !== "title") copy.append(...[standalone(child)].filter((made) => made));
  }
  return copy;
}

// the cells of a heat map as rectangles, which stay sharp in every program
function cells_of(canvas, box) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const [wide, high] = [box.width / canvas.width, box.height / canvas.height];
  const cells = svg("g", { "shape-rendering": "crispEdges" });
  for (let i = 0; i < data.length; i += 4) {
    const [column, row] = [(i / 4) % canvas.width, Math.floor(i / 4 / canvas.width)];
    const cell = { x: box.x + column * wide, y: box.y + row * high, width: wide, height: high, fill: `rgb(${data[i]},${data[i + 1]},${data[i + 2]})` };
    cells.append(svg("rect", data[i + 3] < 255 ? { ...cell, "fill-opacity": (data[i + 3] / 255).toFixed(2) } : cell));
  }
  return cells;
}

// a name or a key outside the pictures: text on its background
function written(element, at) {
  const style = getComputedStyle(element);
  const [ground, alpha] = plain_colour(style.backgroundColor);
  const look = { fill: plain_colour(style.color)[0], "font-size": style.fontSize, "font-weight": style.fontWeight, "font-family": style.fontFamily };
  const left = at.x + parseFloat(style.paddingLeft);
  return svg("g", {}, alpha > 0 ? svg("rect", { ...at, rx: 3, fill: ground }) : null, words(left, at.y + at.height / 2 + 5, clean(element.textContent), look));
}

function wrapped(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines[lines.length - 1]} ${word}`.trim();
    if (width_of([longer]) <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

// all pictures of an explorer as one, placed as on the screen, below its title and read-out
function whole_picture(root, title, ink, paper) {
  const seen = [...root.querySelectorAll("canvas, svg[role=img], img, .chip[aria-pressed=true] svg, .said")].map((element) => ({ element, box: element.getBoundingClientRect() }));
  const shown = seen.filter(({ element, box }) => box.width > 0 && box.height > 0 && !element.closest("[aria-pressed=false]"));
  const left = Math.min(...shown.map(({ box }) => box.left));
  const top = Math.min(...shown.map(({ box }) => box.top));
  const width = Math.max(320, ...shown.map(({ box }) => box.right - left));
  const said = (root.querySelector(".readout") ?? root.querySelector("output"))?.textContent ?? "";
  const lines = wrapped(clean(said), width);
  const down = EDGE + 26 + 17 * lines.length;
  const height = down + Math.max(...shown.map(({ box }) => box.bottom - top)) + EDGE;
  const drawn = shown.map(({ element, box }) => {
    const at = { x: box.left - left + EDGE, y: box.top - top + down, width: box.width, height: box.height };
    if (element.tagName === "CANVAS") return cells_of(element, at);
    if (element.tagName === "IMG") return svg("image", { ...at, href: element.src, "image-rendering": "pixelated", preserveAspectRatio: getComputedStyle(element).objectFit === "fill" ? "none" : null });
    if (element.tagName !== "svg") return written(element, at);
    return fill(standalone(element), { ...at, overflow: "visible" });
  });
  const font = { fill: ink, "font-family": "system-ui, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif" };
  const heads = [words(EDGE, EDGE + 12, title, { ...font, "font-size": 15, "font-weight": 600 })];
  lines.forEach((text, i) => heads.push(words(EDGE, EDGE + 34 + 17 * i, text, { ...font, "font-size": 12 })));
  const size = { width: width + 2 * EDGE, height };
  const whole = svg("svg", { ...size, viewBox: `0 0 ${size.width} ${height}` }, svg("title", {}, title), svg("rect", { ...size, fill: paper }), ...heads, ...drawn);
  return { text: new XMLSerializer().serializeToString(whole), ...size };
}

async function png_of({ text, width, height }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const times = Math.min(PNG_SCALE, PNG_PIXELS_UP_TO / Math.max(width, height));
  const canvas = node("canvas", { width: Math.round(width * times), height: Math.round(height * times) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large"))), "image/png");
  });
}

const csv_cell = (value) => {
  const plain = typeof value === "number" ? Number(value.toPrecision(9)) : value; // of a difference, not its rounding errors
  const text = plain === null || plain === undefined ? "" : `${plain}`;
  return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
};
const csv_of = (rows) => `${rows.map((row) => row.map(csv_cell).join(",")).join("\n")}\n`;

function save_file(name, blob) {
  const link = node("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The menu. `table()` returns the numbers that are shown, rows with a header; null if there are none.
function download_menu(root, content, table) {
  const said = node("span", { class: "note", "aria-live": "polite" });
  const name = `mtanytime-${content.kind}`;
  const item = (label, make) => {
    const button = node("button", { ...KEYS, type: "button" }, label);
    button.addEventListener("click", async () => {
      said.textContent = "";
      try {
        save_file(`${name}.${label.toLowerCase()}`, await make(getComputedStyle(button)));
      } catch (error) {
        said.textContent = `The ${label} could not be made: ${error.message}`;
      }
    });
    return button;
  };
  const drawn = ({ color, backgroundColor }) => whole_picture(root, content.title, plain_colour(color)[0], plain_colour(backgroundColor)[0]);
  const items = [
    item("SVG", (style) => new Blob([drawn(style).text], { type: "image/svg+xml" })),
    item("PNG", (style) => png_of(drawn(style))),
    item("CSV", () => new Blob([csv_of(table())], { type: "text/csv" })),
  ];
  const group = node("div", { class: "gallery", role: "group", "aria-label": "Save as" }, ...items);
  return node("details", { class: "menu" }, node("summary", {}, "Download"), group, said);
}
