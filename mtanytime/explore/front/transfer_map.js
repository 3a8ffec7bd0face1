// Draws one heat map of a TransferExplorer: a row per source layer, a column per target layer.

const NUMBERS_UP_TO = 12; // layers per side; in a larger map cells have colours only
const CELL = { few: 120, many: [8, 28], tall: 700 }; // pixels: the widest of few, the width of many, the height of all
const BLANK_ALPHA = 60; // of the grey for a pair without a number
const PIN_COLOURS = ["#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C510A", "#6A7F10"];

const rgb_of = (colours) => colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

// `layout`: names and indices of the layers, the pairs and those shown; `map`: its numbers (see transfer_numbers.js);
// `room`: pixels from side to side, if that is enough for the numbers; `choose(source, target)` is called with the layers
// of a cell that is clicked.
function heat_map(layout, map, colours, room, choose) {
  const { sources, targets, pairs, rows, columns, shown } = layout;
  const { vmax, diverging, show } = map;
  const rgb = rgb_of(colours);
  const few = Math.max(rows.length, columns.length) <= NUMBERS_UP_TO;
  const names = columns.map((i) => shortened(targets[i]));
  const row_names = rows.map((i) => shortened(sources[i]));
  const longest = width_of(names);
  const left = 26 + width_of(row_names) * (few ? 1 : SMALL);
  const top = 26;
  const each = Math.floor((room - left - bar_width(map)) / Math.max(columns.length, 1));
  const wide = few ? between(width_of([show(vmax), diverging ? show(-vmax) : "nan"]) + 8, each, CELL.few) : between(CELL.many[0], each, CELL.many[1]);
  const high = few ? between(rows.length <= 6 ? 44 : 34, Math.round(wide / 2), 60) : between(CELL.many[0], Math.floor(CELL.tall / rows.length), wide);
  const upright = longest + 6 > wide;
  const [wider, higher] = [wide * columns.length, high * rows.length];
  const [width, height] = [left + wider, top + higher];
  const below = (upright ? longest * (few ? 1 : SMALL) + 10 : 20) + 20;
  const kind = few ? null : "small";
  const every = [[rows, high], [columns, wide]].map(([layers, side]) => Math.max(Math.ceil(10 / side), Math.ceil(layers.length / 120)));
  // One pixel per cell, stretched: thousands of cells can change within a frame and stay sharp at any zoom.
  const canvas = node("canvas", { width: columns.length, height: rows.length, "aria-hidden": "true" });
  const pixels = new ImageData(columns.length, rows.length);
  const bytes = pixels.data;
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = i % 4 === 3 ? BLANK_ALPHA : 128;
  const at = new Map(rows.map((s, i) => [s, i]));
  const across = new Map(columns.map((t, i) => [t, i]));
  const cells = new Map();
  const drawn = [];
  const texts = [];
  for (const i of shown) {
    if (map.missing.has(i)) continue;
    const [column, row] = [across.get(pairs[i][1]), at.get(pairs[i][0])];
    const [x, y] = [left + wide * column, top + high * row];
    const worded = few || map.rows.some((numbers) => numbers[i] === null);
    const text = worded ? words(x + wide / 2, y + high / 2 + 4, "", { "text-anchor": "middle" }) : null;
    cells.set(i, { text, x, y, pixel: 4 * (row * columns.length + column) });
    if (text) texts.push(text);
  }
  if (few) {
    for (let i = 1; i < rows.length; i += 1) drawn.push(line(left, top + high * i, left + wider, top + high * i, "gap"));
    for (let i = 1; i < columns.length; i += 1) drawn.push(line(left + wide * i, top, left + wide * i, top + higher, "gap"));
  }
  const field = svg("rect", { x: left, y: top, width: wider, height: higher, class: "field" });
  field.addEventListener("click", (event) => {
    const box = field.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns.length);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
    if (columns[column] !== undefined && rows[row] !== undefined) choose(sources[rows[row]], targets[columns[column]]);
  });
  const frame = svg("rect", { width: wide, height: high, class: "ring" });
  const pins = svg("g", {});
  const title_wide = 1.12 * width_of([`${map.title} at step ${layout.steps[layout.steps.length - 1]}`]); // it is bold
  const title = words(0, 14, "", { class: "strong" });
  const labels = [];
  row_names.forEach((name, i) => {
    if (i % every[0] === 0) labels.push(words(left - 6, top + high * (i + 0.5) + (few ? 4 : 3), name, { "text-anchor": "end", class: kind }));
  });
  names.forEach((name, i) => {
    if (i % every[1] !== 0) return;
    const x = left + wide * (i + 0.5);
    if (!upright) labels.push(words(x, height + 16, name, { "text-anchor": "middle", class: kind }));
    else labels.push(words(0, 0, name, { "text-anchor": "end", class: kind, transform: `translate(${x + (few ? 4 : 3)} ${height + 6}) rotate(-90)` }));
  });
  labels.push(words(left + wider / 2, height + below - 4, "target layer", { "text-anchor": "middle" }));
  labels.push(words(0, 0, "source layer", { "text-anchor": "middle", transform: `translate(12 ${top + higher / 2}) rotate(-90)` }));
  const bar = colour_bar(map, colours, width + 18, top, higher);
  const deep = Math.max(height + below, bar.deep);
  const right = Math.max(bar.right, title_wide);
  title.setAttribute("x", Math.min(left, right - title_wide));
  const picture_of = picture(right, deep, "", ...drawn, ...bar.drawn, ...texts, ...labels, ...bar.labels, frame, pins, title, field);
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${wider}px`, height: `${higher}px` });
  const element = node("div", { class: "stack" }, canvas, picture_of);

  // show the numbers of a step; returns the pair with the largest one, by size where colours diverge
  function update(numbers, step) {
    let best = null;
    for (const [p, { pixel, text }] of cells) {
      const value = numbers[p];
      const share = value === null ? 0 : Math.min(Math.max(diverging ? (value / vmax + 1) / 2 : value / vmax, 0), 1);
      const colour = Math.round(share * (colours.length - 1));
      for (let i = 0; i < 3; i += 1) bytes[pixel + i] = value === null ? 128 : rgb[colour][i];
      bytes[pixel + 3] = value === null ? BLANK_ALPHA : 255;
      if (text) {
        const said = few ? show(value) : value === null ? "×" : "";
        if (text.textContent !== said) text.textContent = said;
        text.style.fill = value === null ? "" : ink_on(rgb[colour]);
      }
      if (value === null) continue;
      if (best === null || (diverging ? Math.abs(value) > Math.abs(numbers[best]) : value > numbers[best])) best = p;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    title.textContent = `${map.title} at step ${step}`;
    const largest = best === null ? "no finite number" : `largest: ${sources[pairs[best][0]]} → ${targets[pairs[best][1]]}, ${show(numbers[best])}`;
    picture_of.setAttribute("aria-label", `Heat map of ${map.title}, ${rows.length} source × ${columns.length} target layers, at step ${step}; ${largest}`);
    return { best, largest };
  }

  // frame the chosen pair, and number the pinned ones as beside their curves
  function mark(pair, pinned) {
    const cell = cells.get(pair);
    fill(frame, cell ? { x: cell.x, y: cell.y, visibility: null } : { visibility: "hidden" });
    const marks = [];
    pinned.forEach((p, k) => {
      const here = cells.get(p);
      if (!here) return;
      const box = { x: here.x + 1.5, y: here.y + 1.5, width: wide - 3, height: high - 3, fill: "none", stroke: PIN_COLOURS[k], "stroke-width": few ? 3 : 2 };
      marks.push(svg("rect", box));
      if (!few) return;
      marks.push(svg("rect", { x: here.x, y: here.y, width: 13, height: 14, fill: PIN_COLOURS[k] }), words(here.x + 6.5, here.y + 11, `${k + 1}`, { "text-anchor": "middle", class: "number" }));
    });
    pins.replaceChildren(...marks);
  }

  const nulls = shown.some((i) => !map.missing.has(i) && map.rows.some((numbers) => numbers[i] === null));
  const notes = [cells.size < rows.length * columns.length ? "A grey cell was not matched." : "", nulls ? `${few ? "nan" : "×"}: no finite number.` : ""];
  return { element, update, mark, notes: notes.filter((text) => text) };
}

// the marks of a map's scale of colours, as numbers and in words
function marks_of({ vmax, diverging, shares }) {
  const said = (mark) => (!shares ? `${mark}`.replace("-", "−") : diverging ? `${Math.round(100 * mark)}`.replace("-", "−") : percent(mark));
  return ticks(diverging ? -vmax : 0, vmax, 4).map((mark) => [mark, said(mark)]);
}

// the pixels of a scale of colours from the map's edge on
const bar_width = (map) => 18 + 28 + width_of(marks_of(map).map(([, said]) => said)) + 16;

// the scale of a map's colours from x on: shapes, labels, and how far they reach
function colour_bar(map, colours, x, top, higher) {
  const { vmax, diverging, scale } = map;
  const drawn = [];
  const labels = [];
  const long = Math.max(higher, width_of([scale]) - 20); // so that its label fits beside it
  colours.forEach((colour, i) => {
    drawn.push(svg("rect", { x, y: top + long * (1 - (i + 1) / colours.length), width: 14, height: long / colours.length + 0.5, fill: colour }));
  });
  const low = diverging ? -vmax : 0;
  for (const [mark, said] of marks_of(map)) {
    const y = top + long * (1 - (mark - low) / (vmax - low));
    drawn.push(line(x + 14, y, x + 18, y, "axis"));
    labels.push(words(x + 21, y + 4, said));
  }
  const right = x - 18 + bar_width(map);
  labels.push(words(0, 0, scale, { "text-anchor": "middle", transform: `translate(${right - 8} ${top + long / 2}) rotate(-90)` }));
  return { drawn, labels, right, deep: Math.max(top + long + 12, top + long / 2 + width_of([scale]) / 2) };
}
