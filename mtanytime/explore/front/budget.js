// Draws a BudgetExplorer.

const TABLE_FROM = 540; // pixels; in a narrower box the table has fewer columns and a second row per model
const SHAPES = ["circle", "square", "diamond", "triangle", "down", "plus", "cross"];

function marker(shape, x, y, size, colour) {
  const polygon = (points) => svg("polygon", { points: points.map(([a, b]) => `${x + a * size},${y + b * size}`).join(" "), fill: colour });
  if (shape === "circle") return svg("circle", { cx: x, cy: y, r: size, fill: colour });
  if (shape === "square") return polygon([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]);
  if (shape === "diamond") return polygon([[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]]);
  if (shape === "triangle") return polygon([[0, -1.2], [1.2, 1], [-1.2, 1]]);
  if (shape === "down") return polygon([[0, 1.2], [1.2, -1], [-1.2, -1]]);
  const turn = shape === "cross" ? `rotate(45 ${x} ${y})` : null;
  const arm = (w, h) => svg("rect", { x: x - w * size, y: y - h * size, width: 2 * w * size, height: 2 * h * size, fill: colour });
  return svg("g", { transform: turn }, arm(0.4, 1.3), arm(1.3, 0.4));
}

function budget(model, content, root, on) {
  const { models, views, strip } = content;
  const controls = node("div", { class: "controls" });
  const options = node("div", { class: "controls" });
  const legend = node("div", { class: "gallery", role: "group", "aria-label": "Models shown" });
  const readout = node("p", { role: "status", "aria-live": "polite", class: "readout" });
  const chart_box = scrolling("Chart");
  const table_box = scrolling("What the budget buys");
  const strip_box = scrolling("Answers to test images");
  fill(root, {}, controls, options, legend, readout, node("div", { class: "figures" }, chart_box, table_box), strip_box, node("p", { class: "note" }, content.note));
  const set = setter(model);
  const bar = slider("Budget", 1);
  bar.input.addEventListener("input", () => set("at", now.stops[Number(bar.input.value)].at[0]));
  fill(controls, {}, bar.element);
  const cost = choice("Cost", content.costs.map(({ name, words: text }) => [name, text]), "", (v) => set("cost", v));
  const level = choice("Level", content.levels.map((name) => [name, name]), "", (v) => set("level", v));
  const offered = [content.costs.length > 1 ? cost.element : null, content.levels.length ? level.element : null];
  if (offered.some((element) => element)) fill(options, {}, ...offered);

  let now = null;
  // many colours run from dark to bright; mixed with the colour of the text, all of them stand out from the page
  const colour_of = (colour) => (models.length > 8 ? `color-mix(in srgb, ${colour} 60%, var(--ink))` : colour === "#000000" ? "var(--ink)" : colour);
  const look = (m) => ({
    colour: colour_of(models[m].colour),
    shape: SHAPES[m % SHAPES.length],
    dash: DASHES[Math.floor(m / 2) % DASHES.length],
  });

  const key_of = ({ colour, shape, dash }) =>
    svg("svg", { width: 34, height: 14, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 34, y1: 7, y2: 7, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }), marker(shape, 17, 7, 5, colour));
  const toggles = models.map(({ name }, m) => {
    const button = node("button", { ...KEYS, type: "button", class: "chip", title: `show or hide ${name}` }, key_of(look(m)), node("span", { class: "said" }, name));
    button.addEventListener("click", () => {
      const hidden = model.get("hidden");
      if (hidden.includes(name)) set("hidden", hidden.filter((other) => other !== name));
      else if (hidden.length < models.length - 1) set("hidden", [...hidden, name]); // the last one stays
    });
    return button;
  });
  if (models.length > 1) fill(legend, {}, ...toggles);

  // a stop of the slider with the exits of the models that are shown; null if there is none
  function shown_stop(view, stop) {
    const at = stop.at.filter(([name]) => now.visible.includes(name));
    if (!at.length || at.length === stop.at.length) return at.length ? stop : null;
    const exits = at.map(([name, exit]) => [name, view.lines[models.findIndex((m) => m.name === name)].find((p) => p.exit === exit)]);
    const names = exits.map(([name, point]) => `${name} ${point.words}`);
    return { ...stop, at, label: `${exits[0][1].costs} · ${names.slice(0, 2).join(", ")}${names.length > 2 ? `, and ${names.length - 2} more` : ""}` };
  }

  function choose() {
    const view = views.find((v) => v.cost === model.get("cost") && (v.level ?? "") === model.get("level"));
    const hidden = model.get("hidden");
    now = { view, visible: models.map(({ name }) => name).filter((name) => !hidden.includes(name)) };
    now.lines = view.lines.map((points, m) => (now.visible.includes(models[m].name) ? points : []));
    now.stops = view.stops.map((stop) => shown_stop(view, stop)).filter((stop) => stop !== null);
    if (!now.stops.length) now.stops = [view.stops[0]]; // models without exits at this level
    toggles.forEach((button, m) => {
      const on_screen = now.visible.includes(models[m].name);
      fill(button, { "aria-pressed": on_screen, "aria-disabled": on_screen && now.visible.length === 1 ? "true" : null });
    });
    cost.select.value = view.cost;
    level.select.value = view.level ?? "";
    bar.input.max = now.stops.length - 1;
    bar.input.disabled = now.stops.length < 2;
    draw_chart();
    show();
  }

  function draw_chart() {
    const { view, lines, stops } = now;
    const all = lines.flat();
    const width = room_in(chart_box, 900);
    const height = between(320, Math.round(0.6 * width), 460);
    const [left, right, top, bottom] = [56, width - 12, 28, height - 48];
    let [low, high] = [stops[0].cost, stops[stops.length - 1].cost];
    const room = Math.max(1.15, Math.sqrt((2.6 * low) / high));
    [low, high] = [low / room, high * room];
    const known = all.filter((point) => point.accuracy !== null);
    let least = Math.min(...known.map((p) => p.accuracy - (p.spread ?? 0)));
    let most = Math.max(...known.map((p) => p.accuracy + (p.spread ?? 0)));
    if (!known.length) [least, most] = [0, 100];
    const margin = Math.max((most - least) * 0.07, 0.5);
    [least, most] = [least - margin, most + margin];
    const x = (value) => left + ((right - left) * Math.log(value / low)) / Math.log(high / low);
    const y = (value) => bottom - ((bottom - top) * (value - least)) / (most - least);
    const drawn = [];
    for (const tick of ticks(least, most, 6)) {
      drawn.push(line(left, y(tick), right, y(tick), "grid"), words(left - 6, y(tick) + 4, `${tick}`, { "text-anchor": "end" }));
    }
    for (const tick of log_ticks(low, high)) {
      drawn.push(line(x(tick), top, x(tick), bottom, "grid"), words(x(tick), bottom + 17, short(tick), { "text-anchor": "middle" }));
    }
    drawn.push(line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis"));
    const words_of = content.costs.find(({ name }) => name === view.cost).words;
    drawn.push(words((left + right) / 2, bottom + 38, `${words_of}, log scale`, { "text-anchor": "middle" }));
    drawn.push(words(0, 0, "test accuracy (%)", { "text-anchor": "middle", transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)` }));
    drawn.push(words(left, 16, `Accuracy against ${words_of}${view.level ? `, level ${view.level}` : ""}`, { class: "strong" }));
    now.cursor = line(0, top, 0, bottom, "cursor");
    drawn.push(now.cursor);
    lines.forEach((points, m) => {
      const { colour, shape, dash } = look(m);
      const seen = points.filter((point) => point.accuracy !== null);
      drawn.push(svg("polyline", { points: seen.map((p) => `${x(p.cost)},${y(p.accuracy)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
      for (const p of seen) {
        if (p.spread !== null) {
          for (const [a, b, c, d] of [[0, -1, 0, 1], [-4, -1, 4, -1], [-4, 1, 4, 1]]) {
            drawn.push(svg("line", { x1: x(p.cost) + a, y1: y(p.accuracy + b * p.spread), x2: x(p.cost) + c, y2: y(p.accuracy + d * p.spread), stroke: colour, "stroke-width": 1.5 }));
          }
        }
        drawn.push(marker(shape, x(p.cost), y(p.accuracy), 5, colour));
      }
    });
    now.rings = lines.map(() => svg("circle", { r: 10, class: "ring" }));
    Object.assign(now, { x, y, words_of });
    const points = lines.flatMap((line_of, m) => line_of.filter((p) => p.accuracy !== null).map((point) => ({ point, m, x: x(point.cost), y: y(point.accuracy) })));
    const field = svg("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "field" });
    const about = svg("g", { class: "about", visibility: "hidden" });
    now.chart = picture(width, height, "", ...drawn, ...now.rings, about, field);
    const near = pointed(now.chart, points);
    field.addEventListener("pointermove", (event) => describe(about, near(event), { left, right, top }));
    field.addEventListener("pointerleave", () => describe(about, null));
    field.addEventListener("click", (event) => {
      const found = near(event);
      if (found) set("at", [models[found.m].name, found.point.exit]);
    });
    fill(chart_box, {}, now.chart);
  }

  // the values of a point beside it, above everything else
  function describe(about, found, area) {
    if (!found) return about.setAttribute("visibility", "hidden");
    const { point, m } = found;
    const lines = [`${shortened(models[m].name)}, ${point.words}`, `${point.costs}, ${point.said}`];
    const wide = width_of(lines) + 16;
    const x_box = Math.min(Math.max(found.x - wide / 2, area.left), area.right - wide);
    const y_box = found.y - 54 > area.top ? found.y - 54 : found.y + 14;
    fill(about, {}, svg("rect", { x: x_box, y: y_box, width: wide, height: 40, rx: 3, class: "sheet" }), ...lines.map((text, i) => words(x_box + 8, y_box + 16 + 16 * i, text)));
    about.removeAttribute("visibility");
    return undefined;
  }

  // the slider's stop of an exit; of a hidden model's exit, the last stop that costs no more
  function place_of([name, exit]) {
    const has = (stop) => stop.at.some(([m, e]) => m === name && e === exit);
    const found = now.stops.findIndex(has);
    const cost = now.view.stops.find(has)?.cost;
    return found >= 0 || cost === undefined ? Math.max(found, 0) : Math.max(now.stops.findLastIndex((stop) => stop.cost <= cost), 0);
  }

  function show() {
    const { x, y } = now;
    const stop = now.stops[place_of(model.get("at"))];
    const found = now.stops.indexOf(stop);
    bar.input.value = found;
    bar.input.setAttribute("aria-valuetext", stop.label);
    bar.stop.textContent = stop.label;
    fill(now.cursor, { x1: x(stop.cost), x2: x(stop.cost) });
    const said = [];
    const narrow = room_in(table_box, TABLE_FROM) < TABLE_FROM;
    const body = now.lines.flatMap((points, m) => {
      if (!now.visible.includes(models[m].name)) {
        fill(now.rings[m], { visibility: "hidden" });
        return [];
      }
      const point = stop.picks[m] < 0 ? null : points[stop.picks[m]];
      const ringed = point !== null && point.accuracy !== null;
      fill(now.rings[m], ringed ? { cx: x(point.cost), cy: y(point.accuracy), visibility: null } : { visibility: "hidden" });
      const key = key_of(look(m));
      const short_of = points.length ? `none: its cheapest exit costs ${points[0].costs}` : "none: it has no exit";
      const cells = point === null ? [short_of, "", "", ""] : [point.words, point.costs, point.said, point.next];
      said.push(point === null ? `${models[m].name}: ${short_of}` : `${models[m].name}: ${point.words}, ${point.said}; next, ${point.next}`);
      const plain = cells.map((text) => node("td", {}, text));
      const row = (...more) => node("tr", {}, node("td", {}, key), node("th", { scope: "row" }, models[m].name, ...more), ...plain);
      if (!narrow) return [row()];
      const [pick, next] = [plain.shift(), plain.pop()]; // the pick goes below the name, the next exit below the row
      const below = point === null ? pick : fill(next, {}, `the next exit: ${point.next}`);
      const under = node("tr", { class: "under" }, node("td"), fill(below, { colspan: 3 }));
      return [point === null ? row() : row(node("span", { class: "coarse" }, point.words)), under];
    });
    readout.textContent = `Budget ${stop.label}. ${said.join(". ")}.`;
    readout.classList.toggle("hidden", now.visible.length > 1); // only for screen readers: the table says the same
    const heads = ["", ...(narrow ? ["model and pick"] : ["model", "pick"]), "costs", "accuracy", ...(narrow ? [] : ["the next exit"])].map((text) => node("th", { scope: "col" }, text));
    fill(table_box, {}, node("table", { class: narrow ? "picks narrow" : "picks" }, node("thead", {}, node("tr", {}, ...heads)), node("tbody", {}, ...body)));
    now.chart.setAttribute("aria-label", `Accuracy against ${now.words_of}. At ${stop.label}: ${said.join(". ")}`);
    if (strip !== null) show_strip(stop);
  }

  function show_strip(stop) {
    const images = strip.images.map((uri, i) => node("td", {}, node("img", { src: uri, alt: `test image ${i}` })));
    const rows = models.map(({ name }, m) => {
      if (!now.visible.includes(name)) return null;
      const point = stop.picks[m] < 0 ? null : now.view.lines[m][stop.picks[m]];
      const cells = strip.images.map((uri, i) => {
        const answer = point === null ? undefined : strip.answers[name]?.[point.exit]?.[i];
        if (answer === undefined) return node("td", {}, "–");
        const mark = answer.right === undefined ? "" : answer.right ? "✓ " : "✗ ";
        const spoken = answer.right === undefined ? null : node("span", { class: "hidden" }, answer.right ? "right: " : "wrong: ");
        const seen = node("span", { "aria-hidden": "true" }, mark);
        return node("td", {}, seen, spoken, answer.answer, answer.coarse === undefined ? null : node("span", { class: "coarse" }, answer.coarse));
      });
      const exit = node("span", { class: "coarse" }, point === null ? "no exit" : point.words);
      return node("tr", {}, node("th", { scope: "row" }, name, exit), ...cells);
    });
    fill(strip_box, {}, node("table", { class: "strip" }, node("tbody", {}, node("tr", {}, node("th", {}, "test images"), ...images), ...rows)));
  }

  choose();
  const let_be = on_width(root, choose);
  on(["at"], show);
  on(["cost", "level", "hidden"], choose);
  const share = (value) => (value === null ? "" : Number((value / 100).toFixed(6)));
  function table() {
    const stop = now.stops[place_of(model.get("at"))];
    const rows = now.lines.flatMap((points, m) => points.map((p, i) => [models[m].name, p.exit, p.cost, share(p.accuracy), share(p.spread), i === stop.picks[m]]));
    return [["model", "exit", now.view.cost, "accuracy", "spread", "picked"], ...rows];
  }
  return { stop: let_be, table };
}
