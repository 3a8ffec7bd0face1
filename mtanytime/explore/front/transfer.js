// Draws a TransferExplorer.

const NUMBERS_UP_TO = 12; // layers per side; in a larger map cells have colours only
const BLANK_ALPHA = 60; // of the grey for a pair without a number
const BARS_UP_TO = 64; // channels drawn in the detail
const PLAY_MS = 250; // per step while playing

function transfer(model, content, root, on) {
  const { steps, sources, targets, pairs, values, spreads, colours } = content;
  const measured = content.arrived ?? null;
  const rgb = colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const index_of = () => Math.max(steps.indexOf(model.get("step")), 0);
  const place = new Map(pairs.map(([s, t], i) => [`${s} ${t}`, i]));
  const said = { role: "status", "aria-live": "polite", class: "readout" };
  const controls = node("div", { class: "controls" });
  const options = node("div", { class: "controls" });
  const readout = node("p", said);
  const map_box = node("div");
  const detail_box = node("div");
  const note = node("p", { class: "note" });
  fill(root, {}, controls, options, readout, node("div", { class: "figures" }, map_box, detail_box), note);

  const set = setter(model);
  const time = slider("Training step", steps.length);
  time.input.addEventListener("input", () => set("step", steps[Number(time.input.value)]));
  const { button: play, pause } = player(
    readout,
    PLAY_MS,
    () => (index_of() === steps.length - 1 ? set("step", steps[0]) : undefined),
    () => {
      if (index_of() < steps.length - 1) set("step", steps[index_of() + 1]);
      return index_of() < steps.length - 1;
    },
  );
  fill(controls, {}, ...(steps.length > 1 ? [play] : []), time.element);
  time.input.disabled = steps.length < 2;

  const chosen = {};
  if (measured) chosen.quantity = choice("Show", [["asked", "asked (λ)"], ["arrived", "arrived (R²)"]], "", (v) => set("quantity", v));
  const scale = choice("Scale", [["", "λ, one scale for all steps"], ["share", "share of the target layer's λ"]], "", (v) => set("relative", v !== ""));
  const all = (names, word) => [["", `all ${word}`], ...names.map((name) => [name, name])];
  if (content.networks.length) chosen.network = choice("Source network", all(content.networks, "networks"), "", (v) => set("network", v));
  if (content.slices.length) chosen.slice = choice("Slice", all(content.slices, "slices"), "", (v) => set("slice", v));
  const from = choice("Pair", [], "", (v) => set("pair", [v, now.pair_names[1]]));
  const to = choice("→", [], "", (v) => set("pair", [now.pair_names[0], v]));
  from.select.setAttribute("aria-label", "Pair: source layer");
  to.select.setAttribute("aria-label", "Pair: target layer");
  fill(options, {}, ...Object.values(chosen).map((c) => c.element), scale.element, from.element, to.element);

  // what is shown for the chosen network, slice and scale; replaced when one of them changes
  let now = null;
  function choose() {
    const network = model.get("network");
    const slice = model.get("slice");
    const arrived = measured !== null && model.get("quantity") === "arrived";
    const relative = !arrived && model.get("relative");
    const rows = sources.map((name, i) => i).filter((i) => !network || sources[i].startsWith(`${network}/`));
    const columns = targets.map((name, i) => i).filter((i) => !slice || targets[i].endsWith(` slice ${slice}`));
    const shown = pairs.map((pair, i) => i).filter((i) => rows.includes(pairs[i][0]) && columns.includes(pairs[i][1]));
    const lines = arrived ? measured : { steps, values }; // drawn over time
    const at = steps.map((step) => Math.max(lines.steps.filter((s) => s <= step).length - 1, 0)); // the last line's step up to each
    const scaled = at.map((k) => lines.values[k]).map((row) => {
      if (!relative) return row;
      const totals = {};
      for (const i of shown) totals[pairs[i][1]] = (totals[pairs[i][1]] ?? 0) + (row[i] ?? 0);
      return row.map((value, i) => (value === null ? null : value / (totals[pairs[i][1]] || 1)));
    });
    let vmax = arrived ? 1 : 0; // R² has one scale for all runs
    if (!arrived) for (const row of scaled) for (const i of shown) if (row[i] > vmax) vmax = row[i];
    now = { rows, columns, shown, scaled, relative, arrived, vmax: vmax || 1, at, line_steps: lines.steps };
    now.line_rows = arrived ? lines.values : scaled;
    now.quantity = arrived ? "R²" : relative ? "share of λ" : "λ";
    now.show = (value) => (value === null ? "nan" : relative ? percent(value) : number(value, now.vmax));
    scale.select.value = model.get("relative") ? "share" : "";
    scale.select.disabled = arrived;
    if (chosen.quantity) chosen.quantity.select.value = arrived ? "arrived" : "asked";
    if (chosen.network) chosen.network.select.value = network;
    if (chosen.slice) chosen.slice.select.value = slice;
    for (const [control, names] of [[from, rows.map((i) => sources[i])], [to, columns.map((i) => targets[i])]]) {
      fill(control.select, {}, ...names.map((name) => node("option", { value: name }, name)));
      if (!names.length) control.select.replaceChildren();
    }
    if (!shown.length) {
      for (const box of [map_box, detail_box]) box.replaceChildren();
      return show();
    }
    draw_map();
    choose_pair();
    return undefined;
  }

  function choose_pair() {
    if (!now.shown.length) return;
    const [source, target] = model.get("pair");
    const s = sources.indexOf(source);
    const t = targets.indexOf(target);
    now.pair = place.get(`${s} ${t}`) ?? -1;
    if (!now.shown.includes(now.pair)) {
      const row = now.scaled[now.scaled.length - 1];
      now.pair = now.shown.reduce((best, i) => ((row[i] ?? -1) > (row[best] ?? -1) ? i : best), now.shown[0]);
    }
    now.unmatched = s >= 0 && t >= 0 && now.rows.includes(s) && now.columns.includes(t) && place.get(`${s} ${t}`) === undefined;
    now.pair_names = now.unmatched ? [source, target] : [sources[pairs[now.pair][0]], targets[pairs[now.pair][1]]];
    [from.select.value, to.select.value] = now.pair_names;
    draw_detail();
    show();
  }

  function draw_map() {
    const { rows, columns, shown, vmax } = now;
    const few = Math.max(rows.length, columns.length) <= NUMBERS_UP_TO;
    const names = columns.map((i) => shortened(targets[i]));
    const row_names = rows.map((i) => shortened(sources[i]));
    const least = few ? 46 : 11;
    const longest = width_of(names);
    const wide = few ? Math.min(Math.max(least, columns.length <= 6 ? longest + 10 : least), 120) : least;
    const high = few ? (rows.length <= 6 ? 44 : 34) : 11;
    const upright = longest + 6 > wide;
    const left = 26 + width_of(row_names) * (few ? 1 : SMALL);
    const top = 26;
    const [width, height] = [left + wide * columns.length, top + high * rows.length];
    const below = (upright ? longest * (few ? 1 : SMALL) + 10 : 20) + 20;
    const kind = few ? null : "small";
    const every = [Math.ceil(rows.length / 120), Math.ceil(columns.length / 120)];
    // One pixel per cell, stretched: thousands of cells can change within a frame and stay sharp at any zoom.
    const [wider, higher] = [wide * columns.length, high * rows.length];
    now.canvas = node("canvas", { width: columns.length, height: rows.length, "aria-hidden": "true" });
    now.pixels = new ImageData(columns.length, rows.length);
    const bytes = now.pixels.data;
    for (let i = 0; i < bytes.length; i += 1) bytes[i] = i % 4 === 3 ? BLANK_ALPHA : 128;
    const at = new Map(rows.map((s, i) => [s, i]));
    const across = new Map(columns.map((t, i) => [t, i]));
    now.cells = new Map();
    const drawn = [];
    const texts = [];
    for (const i of shown) {
      const [column, row] = [across.get(pairs[i][1]), at.get(pairs[i][0])];
      const [x, y] = [left + wide * column, top + high * row];
      const worded = few || now.scaled.some((all_pairs) => all_pairs[i] === null);
      const text = worded ? words(x + wide / 2, y + high / 2 + 4, "", { "text-anchor": "middle" }) : null;
      now.cells.set(i, { text, x, y, pixel: 4 * (row * columns.length + column) });
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
      if (columns[column] !== undefined && rows[row] !== undefined) set("pair", [sources[rows[row]], targets[columns[column]]]);
    });
    now.frame = svg("rect", { width: wide, height: high, class: "ring" });
    now.title = words(left, 14, "", { class: "strong" });
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
    labels.push(words(left + (wide * columns.length) / 2, height + below - 4, "target layer", { "text-anchor": "middle" }));
    labels.push(words(0, 0, "source layer", { "text-anchor": "middle", transform: `translate(12 ${top + (high * rows.length) / 2}) rotate(-90)` }));
    // the colour bar
    const bar = width + 18;
    const scale_words = now.arrived ? "R²: share of the source's variance" : now.relative ? "share of the target layer's λ" : "mean λ (pair weight)";
    const long = Math.max(high * rows.length, width_of([scale_words]) - 20); // so that its label fits beside it
    colours.forEach((colour, i) => {
      drawn.push(svg("rect", { x: bar, y: top + long * (1 - (i + 1) / colours.length), width: 14, height: long / colours.length + 0.5, fill: colour }));
    });
    const marks = ticks(0, vmax, 4);
    for (const mark of marks) {
      const y = top + long * (1 - mark / vmax);
      drawn.push(line(bar + 14, y, bar + 18, y, "axis"));
      labels.push(words(bar + 21, y + 4, now.relative ? percent(mark) : `${mark}`));
    }
    const scale_x = bar + 28 + width_of(marks.map((mark) => (now.relative ? percent(mark) : `${mark}`)));
    labels.push(words(0, 0, scale_words, { "text-anchor": "middle", transform: `translate(${scale_x + 8} ${top + long / 2}) rotate(-90)` }));
    const deep = Math.max(height + below, top + long + 12, top + long / 2 + width_of([scale_words]) / 2);
    const least_width = left + 1.2 * width_of(["Share of the target layer's λ at step 100000"]);
    now.map = picture(Math.max(scale_x + 16, least_width), deep, "", ...drawn, ...texts, ...labels, now.frame, now.title, field);
    const part = (length, whole) => `${(100 * length) / whole}%`; // so that canvas and map shrink together
    const whole = now.map.viewBox.baseVal;
    const place_of = { left: part(left, whole.width), top: part(top, whole.height), width: part(wider, whole.width), height: part(higher, whole.height) };
    Object.assign(now.canvas.style, place_of);
    const stack = node("div", { class: "stack" }, now.canvas, now.map);
    stack.style.width = `${whole.width}px`;
    fill(map_box, {}, stack);
    const incomplete = shown.length < rows.length * columns.length;
    const broken = now.scaled.some((row) => shown.some((i) => row[i] === null));
    const notes = [content.note, incomplete ? "A grey cell was not matched." : "", broken ? `${few ? "nan" : "×"}: no finite number.` : ""];
    fill(note, {}, notes.filter((text) => text).join(" "));
    now.few = few;
    now.wide = wide;
  }

  const CHART = { width: 400, left: 52, right: 388 };
  function draw_detail() {
    const { pair, relative, arrived, vmax, line_steps } = now;
    const line_of = now.line_rows.map((row) => row[pair]);
    const band = !relative && !arrived && spreads !== null ? spreads.map((row) => row[pair]) : null;
    const [low, high] = [steps[0], steps[steps.length - 1]];
    const [top, bottom] = [26, 176];
    const x = (step) => (high > low ? CHART.left + ((CHART.right - CHART.left) * (step - low)) / (high - low) : (CHART.left + CHART.right) / 2);
    const most = Math.max(...line_of.map((value, i) => (value ?? 0) + (band?.[i] ?? 0)), vmax * (arrived ? 1 : 1e-6));
    const y = (value) => bottom - ((bottom - top) * Math.max(value, 0)) / (most * 1.05);
    const drawn = [];
    for (const tick of ticks(0, most * 1.05, 4)) {
      drawn.push(line(CHART.left, y(tick), CHART.right, y(tick), "grid"));
      drawn.push(words(CHART.left - 6, y(tick) + 4, relative ? percent(tick) : `${tick}`, { "text-anchor": "end" }));
    }
    for (const tick of ticks(low, high, 5).filter((t) => Number.isInteger(t))) drawn.push(words(x(tick), bottom + 16, `${tick}`, { "text-anchor": "middle" }));
    drawn.push(line(CHART.left, bottom, CHART.right, bottom, "axis"));
    const runs = [];
    line_of.forEach((value, i) => {
      if (value === null) return;
      if (i === 0 || line_of[i - 1] === null) runs.push([]);
      runs[runs.length - 1].push(i);
    });
    for (const run of runs) {
      if (band) {
        const up = run.map((i) => `${x(line_steps[i])},${y(line_of[i] + (band[i] ?? 0))}`);
        const down = run.map((i) => `${x(line_steps[i])},${y(line_of[i] - (band[i] ?? 0))}`).reverse();
        drawn.push(svg("polygon", { points: [...up, ...down].join(" "), fill: "#56B4E9", opacity: 0.3 }));
      }
      drawn.push(svg("polyline", { points: run.map((i) => `${x(line_steps[i])},${y(line_of[i])}`).join(" "), fill: "none", stroke: "#0072B2", "stroke-width": 2 }));
      if (run.length === 1) drawn.push(svg("circle", { cx: x(line_steps[run[0]]), cy: y(line_of[run[0]]), r: 3, fill: "#0072B2" }));
    }
    const cursor = line(0, top, 0, bottom, "cursor");
    const dot = svg("circle", { r: 5, fill: "#D55E00" });
    const below = arrived && line_of.some((value) => value < 0) ? ", negative as 0" : "";
    const title = `${relative ? "Share of λ" : now.quantity} over time${band ? ", ± 1 standard deviation" : ""}${below}`;
    drawn.push(cursor, dot, words(CHART.left, 14, title, { class: "strong" }));
    drawn.push(words((CHART.left + CHART.right) / 2, bottom + 34, "training step", { "text-anchor": "middle" }));
    const label = `${title} of ${now.pair_names.join(" → ")}`;
    now.chart = { cursor, dot, x, y, line_of };
    now.bars = node("div");
    const gone = node("p", { class: "note" }, "This pair was not matched.");
    fill(detail_box, {}, node("div", { class: "stop" }, now.pair_names.join(" → ")), now.unmatched ? gone : picture(CHART.width, bottom + 42, label, ...drawn), now.bars);
    now.bars_at = null;
  }

  function draw_bars(step) {
    if (content.channels === null || now.unmatched) return;
    const found = content.channels.pairs[now.pair];
    if (!found) {
      if (now.bars_at === null) fill(now.bars, {}, node("p", { class: "note" }, "There are no channel weights for this pair."));
      now.bars_at = "none";
      return;
    }
    const kept = content.channels.steps;
    const at = Math.max(kept.filter((s) => s <= step).length - 1, 0); // the last kept step up to this one
    if (now.bars_at === at) return;
    now.bars_at = at;
    const weights = found.weights[at];
    const first = found.weights[0];
    const count = weights.length;
    const order = weights.map((weight, i) => i).filter((i) => weights[i] !== null).sort((a, b) => weights[b] - weights[a] || a - b).slice(0, BARS_UP_TO);
    const uniform = 1 / count;
    const most = 1.05 * Math.max(uniform, ...order.map((i) => weights[i]), ...order.map((i) => first[i] ?? 0));
    const [top, bottom] = [60, 186];
    const y = (value) => bottom - ((bottom - top) * value) / most;
    const each = (CHART.right - CHART.left) / Math.max(order.length, 1);
    const x = (i) => CHART.left + each * i;
    const drawn = [];
    for (const tick of ticks(0, most, 3)) {
      drawn.push(line(CHART.left, y(tick), CHART.right, y(tick), "grid"));
      drawn.push(words(CHART.left - 6, y(tick) + 4, `${tick}`, { "text-anchor": "end" }));
    }
    order.forEach((channel, i) => {
      drawn.push(svg("rect", { x: x(i) + each * 0.1, y: y(weights[channel]), width: each * 0.8, height: bottom - y(weights[channel]), fill: "#0072B2" }));
      if (at > 0 && first[channel] !== null) drawn.push(svg("rect", { x: x(i), y: y(first[channel]) - 1, width: each, height: 2, fill: "#E69F00" }));
      if (order.length <= 16) drawn.push(words(x(i) + each / 2, bottom + 15, `${found.names[channel]}`, { "text-anchor": "middle" }));
    });
    drawn.push(line(CHART.left, y(uniform), CHART.right, y(uniform), "cursor"), line(CHART.left, bottom, CHART.right, bottom, "axis"));
    const part = order.length < count ? `the largest ${order.length} of ${count} channels` : `${count} channel${count > 1 ? "s" : ""}`;
    const title = `Channel weights at step ${kept[at]}`;
    drawn.push(words(CHART.left, 14, title, { class: "strong" }));
    drawn.push(words(CHART.left, 31, part), words(CHART.left, 47, `dashed: 1/${count}${at > 0 ? `; orange: at step ${kept[0]}` : ""}`));
    drawn.push(words((CHART.left + CHART.right) / 2, bottom + (order.length <= 16 ? 32 : 18), "channel, by weight", { "text-anchor": "middle" }));
    const label = `${title} of ${now.pair_names.join(" → ")}, ${part}; the largest is channel ${order.length ? found.names[order[0]] : "none"}`;
    fill(now.bars, {}, picture(CHART.width, bottom + 38, label, ...drawn));
  }

  function show() {
    const i = index_of();
    const step = steps[i];
    if (!now.shown.length) {
      readout.textContent = "No pair of layers was matched in this choice of network and slice.";
      return;
    }
    const row = now.scaled[i];
    const last = steps[steps.length - 1];
    time.input.value = i;
    const stop = steps.length > 1 ? `step ${step} of ${last}` : `step ${step}`;
    time.input.setAttribute("aria-valuetext", stop);
    if (time.stop.textContent !== stop) time.stop.textContent = stop;
    let best = null;
    const bytes = now.pixels.data;
    for (const [p, { pixel, text }] of now.cells) {
      const value = row[p];
      const share = value === null ? 0 : Math.min(Math.max(value / now.vmax, 0), 1);
      const colour = Math.round(share * (colours.length - 1));
      for (let i = 0; i < 3; i += 1) bytes[pixel + i] = value === null ? 128 : rgb[colour][i];
      bytes[pixel + 3] = value === null ? BLANK_ALPHA : 255;
      if (text) {
        const said_here = now.few ? now.show(value) : value === null ? "×" : "";
        if (text.textContent !== said_here) text.textContent = said_here;
        text.style.fill = value === null ? "" : ink_on(rgb[colour]);
      }
      if (value !== null && (best === null || value > row[best])) best = p;
    }
    now.canvas.getContext("2d").putImageData(now.pixels, 0, 0);
    const what = now.relative ? "Share of the target layer's λ" : now.quantity;
    const shown_step = now.line_steps[now.at[i]];
    now.title.textContent = `${what} at step ${shown_step}`;
    const cell = now.unmatched ? null : now.cells.get(now.pair);
    fill(now.frame, cell ? { x: cell.x, y: cell.y, visibility: null } : { visibility: "hidden" });
    const pair_at = (p) => `${sources[pairs[p][0]]} → ${targets[pairs[p][1]]}`;
    const largest = best === null ? "no finite number" : `largest: ${pair_at(best)}, ${now.show(row[best])}`;
    now.map.setAttribute("aria-label", `Heat map of ${what}, ${now.rows.length} source × ${now.columns.length} target layers, at step ${shown_step}; ${largest}`);
    const pair = now.pair_names.join(" → ");
    const value = row[now.pair];
    let about = `${pair}: ${now.quantity} ${now.show(value)}`;
    if (shown_step !== step) about += `, measured at step ${shown_step}`;
    if (!now.relative && !now.arrived && value !== null && spreads?.[i][now.pair] != null) about += ` ± ${number(spreads[i][now.pair], now.vmax)}`;
    if (now.unmatched) about = `${pair}: not matched`;
    readout.textContent = `Step ${step}. ${about}. ${largest[0].toUpperCase()}${largest.slice(1)}.`;
    if (!now.unmatched) {
      const { cursor, dot, x, y, line_of } = now.chart;
      fill(cursor, { x1: x(step), x2: x(step) });
      const height = line_of[now.at[i]];
      fill(dot, height === null ? { visibility: "hidden" } : { cx: x(shown_step), cy: y(height), visibility: null });
    }
    draw_bars(step);
  }

  choose();
  on(["step"], show);
  on(["pair"], choose_pair);
  on(["network", "slice", "relative", "quantity"], choose);
  return pause;
}
