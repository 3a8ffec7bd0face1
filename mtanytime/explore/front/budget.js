// Draws a BudgetExplorer.

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
  const readout = node("p", { role: "status", "aria-live": "polite", class: "readout" });
  const chart_box = node("div");
  const table_box = node("div", { class: "scroll" });
  const strip_box = node("div", { class: "scroll" });
  fill(root, {}, controls, options, readout, node("div", { class: "figures" }, chart_box, table_box), strip_box, node("p", { class: "note" }, content.note));
  const set = setter(model);
  const bar = slider("Budget", 1);
  bar.input.addEventListener("input", () => set("at", now.view.stops[Number(bar.input.value)].at[0]));
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

  function choose() {
    const view = views.find((v) => v.cost === model.get("cost") && (v.level ?? "") === model.get("level"));
    now = { view };
    cost.select.value = view.cost;
    level.select.value = view.level ?? "";
    bar.input.max = view.stops.length - 1;
    bar.input.disabled = view.stops.length < 2;
    draw_chart();
    show();
  }

  function draw_chart() {
    const { view } = now;
    const all = view.lines.flat();
    const [width, height] = [620, 380];
    const [left, right, top, bottom] = [56, width - 12, 28, height - 48];
    let [low, high] = [view.stops[0].cost, view.stops[view.stops.length - 1].cost];
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
    view.lines.forEach((points, m) => {
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
    now.rings = view.lines.map(() => svg("circle", { r: 10, class: "ring" }));
    Object.assign(now, { x, y, words_of });
    now.chart = picture(width, height, "", ...drawn, ...now.rings);
    fill(chart_box, {}, now.chart);
  }

  function show() {
    const { view, x, y } = now;
    const [name, exit] = model.get("at");
    const found = view.stops.findIndex((s) => s.at.some(([m, e]) => m === name && e === exit));
    const stop = view.stops[Math.max(found, 0)];
    bar.input.value = Math.max(found, 0);
    bar.input.setAttribute("aria-valuetext", stop.label);
    bar.stop.textContent = stop.label;
    fill(now.cursor, { x1: x(stop.cost), x2: x(stop.cost) });
    const said = [];
    const body = view.lines.map((points, m) => {
      const point = stop.picks[m] < 0 ? null : points[stop.picks[m]];
      const ringed = point !== null && point.accuracy !== null;
      fill(now.rings[m], ringed ? { cx: x(point.cost), cy: y(point.accuracy), visibility: null } : { visibility: "hidden" });
      const { colour, shape, dash } = look(m);
      const key = svg("svg", { width: 34, height: 14, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 34, y1: 7, y2: 7, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }), marker(shape, 17, 7, 5, colour));
      const short_of = points.length ? `none: its cheapest exit costs ${points[0].costs}` : "none: it has no exit";
      const cells = point === null ? [short_of, "", "", ""] : [point.words, point.costs, point.said, point.next];
      said.push(point === null ? `${models[m].name}: ${short_of}` : `${models[m].name}: ${point.words}, ${point.said}; next, ${point.next}`);
      return node("tr", {}, node("td", {}, key), node("th", { scope: "row" }, models[m].name), ...cells.map((text) => node("td", {}, text)));
    });
    readout.textContent = `Budget ${stop.label}. ${said.join(". ")}.`;
    readout.classList.toggle("hidden", models.length > 1); // only for screen readers: the table says the same
    const heads = ["", "model", "pick", "costs", "accuracy", "the next exit"].map((text) => node("th", { scope: "col" }, text));
    fill(table_box, {}, node("table", { class: "picks" }, node("thead", {}, node("tr", {}, ...heads)), node("tbody", {}, ...body)));
    now.chart.setAttribute("aria-label", `Accuracy against ${now.words_of}. At ${stop.label}: ${said.join(". ")}`);
    if (strip !== null) show_strip(stop);
  }

  function show_strip(stop) {
    const images = strip.images.map((uri, i) => node("td", {}, node("img", { src: uri, alt: `test image ${i}` })));
    const rows = models.map(({ name }, m) => {
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
  on(["at"], show);
  on(["cost", "level"], choose);
  return () => {};
}
