// Draws the detail of a TransferExplorer: numbers of pairs over time, and the channel weights of the chosen pair.

const CHART = { left: 52, edge: 12, most: 720 }; // pixels left and right of a chart, and its largest width
const BARS_UP_TO = 64; // channels drawn in the detail

// the height of a chart's field
const tall = (width) => Math.round(between(150, width / 3, 220));

// A chart of lines over time. `lines`: name, steps, values, band, colour, dash, strong and a mark at the end; `jump(step)` is
// called with the step that is clicked.
function time_chart({ title, label, steps, lines, floor, signed, shares, width, jump }) {
  const [low, high] = [steps[0], steps[steps.length - 1]];
  const [top, bottom] = [26, 26 + tall(width)];
  const right = width - CHART.edge - (lines.some((one) => one.mark) ? 14 : 0);
  const x = (step) => (high > low ? CHART.left + ((right - CHART.left) * (step - low)) / (high - low) : (CHART.left + right) / 2);
  let [least, most] = [0, floor];
  for (const { values, band } of lines) {
    values.forEach((value, i) => {
      if (value === null) return;
      most = Math.max(most, value + (band?.[i] ?? 0));
      if (signed) least = Math.min(least, value);
    });
  }
  const room = 0.05 * (most - least || 1);
  most += room;
  if (least < 0) least -= room;
  const y = (value) => bottom - ((bottom - top) * (Math.max(value, least) - least)) / (most - least);
  const drawn = [];
  for (const tick of ticks(least, most, 4)) {
    drawn.push(line(CHART.left, y(tick), right, y(tick), "grid"));
    drawn.push(words(CHART.left - 6, y(tick) + 4, shares ? percent(tick) : `${tick}`, { "text-anchor": "end" }));
  }
  for (const tick of ticks(low, high, 5).filter((t) => Number.isInteger(t))) drawn.push(words(x(tick), bottom + 16, `${tick}`, { "text-anchor": "middle" }));
  drawn.push(line(CHART.left, y(Math.max(0, least)), right, y(Math.max(0, least)), "axis"));
  for (const { steps: own, values, band, colour, dash, strong, mark } of lines) {
    const stretches = []; // of finite numbers
    values.forEach((value, i) => {
      if (value === null) return;
      if (i === 0 || values[i - 1] === null) stretches.push([]);
      stretches[stretches.length - 1].push(i);
    });
    for (const stretch of stretches) {
      if (band) {
        const up = stretch.map((i) => `${x(own[i])},${y(values[i] + (band[i] ?? 0))}`);
        const down = stretch.map((i) => `${x(own[i])},${y(values[i] - (band[i] ?? 0))}`).reverse();
        drawn.push(svg("polygon", { points: [...up, ...down].join(" "), fill: "#56B4E9", opacity: 0.3 }));
      }
      const points = stretch.map((i) => `${x(own[i])},${y(values[i])}`).join(" ");
      drawn.push(svg("polyline", { points, fill: "none", stroke: colour, "stroke-width": strong ? 2.5 : 1.75, "stroke-dasharray": dash }));
      if (stretch.length === 1) drawn.push(svg("circle", { cx: x(own[stretch[0]]), cy: y(values[stretch[0]]), r: 3, fill: colour }));
    }
    const last = values.findLastIndex((value) => value !== null);
    if (mark && last >= 0) drawn.push(words(x(own[last]) + 5, y(values[last]) + 4, mark, { class: "end" }));
  }
  const cursor = line(0, top, 0, bottom, "cursor");
  const dots = lines.map(({ colour }) => svg("circle", { r: 4.5, fill: colour, class: "dot" }));
  const field = svg("rect", { x: CHART.left, y: top, width: right - CHART.left, height: bottom - top, class: "field" });
  field.addEventListener("click", (event) => {
    const box = field.getBoundingClientRect();
    const wanted = low + ((high - low) * (event.clientX - box.left)) / box.width;
    jump(steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best)));
  });
  drawn.push(cursor, ...dots, words(CHART.left, 14, title, { class: "strong" }));
  drawn.push(words((CHART.left + right) / 2, bottom + 34, "training step", { "text-anchor": "middle" }), field);
  function show(step) {
    fill(cursor, { x1: x(step), x2: x(step) });
    lines.forEach(({ steps: own, values }, k) => {
      const i = index_at(own, step);
      fill(dots[k], values[i] === null ? { visibility: "hidden" } : { cx: x(own[i]), cy: y(values[i]), visibility: null });
    });
  }
  return { element: picture(width, bottom + 42, label, ...drawn), show };
}

// The channel weights of a pair at the last kept step up to the present one; `see(channel)` is called with a clicked bar's.
function channel_bars(channels, pair_index, pair_name, width, see) {
  const box = node("div");
  const right = width - CHART.edge;
  let drawn_at = null;
  const found = channels?.pairs[pair_index];
  const kept = channels?.steps ?? [];

  function show(step, chosen) {
    if (!found) {
      if (drawn_at === null && channels) fill(box, {}, node("p", { class: "note" }, "There are no channel weights for this pair."));
      drawn_at = "none";
      return;
    }
    const at = index_at(kept, step);
    if (drawn_at === `${at} ${chosen}`) return;
    drawn_at = `${at} ${chosen}`;
    const weights = found.weights[at];
    const first = found.weights[0];
    const count = weights.length;
    const order = ranked(weights).slice(0, BARS_UP_TO);
    const uniform = 1 / count;
    const most = 1.05 * Math.max(uniform, ...order.map((i) => weights[i]), ...order.map((i) => first[i] ?? 0));
    const [top, bottom] = [60, 34 + tall(width)];
    const y = (value) => bottom - ((bottom - top) * value) / most;
    const each = (right - CHART.left) / Math.max(order.length, 1);
    const x = (i) => CHART.left + each * i;
    const drawn = [];
    for (const tick of ticks(0, most, 3)) {
      drawn.push(line(CHART.left, y(tick), right, y(tick), "grid"));
      drawn.push(words(CHART.left - 6, y(tick) + 4, `${tick}`, { "text-anchor": "end" }));
    }
    order.forEach((channel, i) => {
      const name = found.names[channel];
      const bar = { x: x(i) + each * 0.1, y: y(weights[channel]), width: each * 0.8, height: bottom - y(weights[channel]) };
      drawn.push(svg("rect", { ...bar, fill: name === chosen ? "#D55E00" : "#0072B2" }));
      if (at > 0 && first[channel] !== null) drawn.push(svg("rect", { x: x(i), y: y(first[channel]) - 1, width: each, height: 2, fill: "#E69F00" }));
      if (order.length <= 16) drawn.push(words(x(i) + each / 2, bottom + 15, `${name}`, { "text-anchor": "middle" }));
      if (!see) return;
      const field = svg("rect", { x: x(i), y: top, width: each, height: bottom - top, class: "field" }, svg("title", {}, `channel ${name}`));
      field.addEventListener("click", () => see(name));
      drawn.push(field);
    });
    drawn.push(line(CHART.left, y(uniform), right, y(uniform), "cursor"), line(CHART.left, bottom, right, bottom, "axis"));
    const part = order.length < count ? `the largest ${order.length} of ${count} channels` : `${count} channel${count > 1 ? "s" : ""}`;
    const title = `Channel weights at step ${kept[at]}`;
    drawn.push(words(CHART.left, 14, title, { class: "strong" }));
    drawn.push(words(CHART.left, 31, part), words(CHART.left, 47, `dashed: 1/${count}${at > 0 ? `; orange: at step ${kept[0]}` : ""}`));
    drawn.push(words((CHART.left + right) / 2, bottom + (order.length <= 16 ? 32 : 18), "channel, by weight", { "text-anchor": "middle" }));
    const label = `${title} of ${pair_name}, ${part}; the largest is channel ${order.length ? found.names[order[0]] : "none"}`;
    fill(box, {}, picture(width, bottom + 38, label, ...drawn));
  }

  return { element: box, show, found, kept };
}

// the channels that have a weight, the largest first
const ranked = (weights) => weights.map((weight, i) => i).filter((i) => weights[i] !== null).sort((a, b) => weights[b] - weights[a] || a - b);
