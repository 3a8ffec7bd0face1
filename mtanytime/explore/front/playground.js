// Draws an AnytimePlayground.

const SWEEP_MS = 4000; // duration of "Play", from 0 ms to the end
const TREE_COLUMN = [110, 168]; // pixels at least and at most
const TREE_GAP = 34; // between two columns
const TREE_ROW = 22;

function playground(model, content, root, on) {
  const { images, answers, levels, parents, shown, shares, truths, most } = content;
  const controls = node("div", { class: "controls" });
  const gallery = node("div", { class: "gallery", role: "group", "aria-label": "Image" });
  const readout = node("p", { role: "status", "aria-live": "polite", class: "readout" });
  const [large, chart_box, tree_box] = [node("div", { class: "fixed" }), scrolling("Confidence"), scrolling("Label tree")];
  const table_box = scrolling("Answers");
  const note = node("p", { class: "note" }, content.note);
  fill(root, {}, controls, gallery, readout, node("div", { class: "figures" }, large, chart_box, tree_box), table_box, note);
  const set = setter(model);
  const stops = 100;
  const time = slider("Deadline", stops + 1);
  const at_stop = (i) => Number(((most * i) / stops).toPrecision(3));
  time.input.addEventListener("input", () => set("deadline", at_stop(Number(time.input.value))));
  const place = () => Math.min(stops, Math.round((stops * model.get("deadline")) / most));
  const { button: play, pause } = player(
    readout,
    SWEEP_MS / stops,
    () => (place() >= stops ? set("deadline", 0) : undefined),
    () => {
      if (place() < stops) set("deadline", at_stop(place() + 1));
      return place() < stops;
    },
  );
  fill(controls, {}, play, time.element);
  const thumbs = images.map((uri, i) => {
    const thumb = node("button", { ...KEYS, type: "button", class: "thumb", "aria-label": `image ${i}${truths ? `, ${truths[i]}` : ""}` }, node("img", { src: uri, alt: "" }));
    thumb.addEventListener("click", () => set("image", i));
    return thumb;
  });
  if (images.length > 1) fill(gallery, {}, ...thumbs);

  const LEFT = 46;
  const [TOP, BOTTOM] = [26, 190];
  const x = (ms) => LEFT + ((now.right - LEFT) * ms) / most;
  const y = (share) => BOTTOM - (BOTTOM - TOP) * share;
  const named = (answer) => levels[answer.level][answer.group];
  const mark = (answer) => (answer.right === null ? "" : answer.right ? "✓ " : "✗ ");
  let now = null;

  function choose() {
    const i = model.get("image");
    now = { i, row: answers[i] };
    thumbs.forEach((thumb, k) => thumb.setAttribute("aria-pressed", k === i));
    const caption = truths ? `image ${i}: ${truths[i]}` : `image ${i}`;
    fill(large, {}, node("img", { src: images[i], alt: caption, class: "large" }), node("div", { class: "note" }, caption));
    draw_chart();
    draw_tree();
    show();
  }

  function draw_chart() {
    const drawn = [];
    const width = room_in(chart_box, 560);
    now.right = width - 12;
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) drawn.push(line(LEFT, y(tick), now.right, y(tick), "grid"), words(LEFT - 6, y(tick) + 4, percent(tick), { "text-anchor": "end" }));
    for (const tick of ticks(0, most, 5)) drawn.push(words(x(tick), BOTTOM + 16, `${tick}`, { "text-anchor": "middle" }));
    drawn.push(line(LEFT, BOTTOM, now.right, BOTTOM, "axis"), words((LEFT + now.right) / 2, BOTTOM + 34, "time since the image arrived (ms)", { "text-anchor": "middle" }));
    drawn.push(words(LEFT, 14, "Confidence of each exit's answer", { class: "strong" }));
    now.parts = now.row.map((answer, k) => {
      const end = Math.max(x(now.row[k + 1]?.ms ?? most), x(answer.ms));
      const part = svg("g", {}, line(x(answer.ms), y(answer.confidence), end, y(answer.confidence), "answer"), svg("circle", { cx: x(answer.ms), cy: y(answer.confidence), r: 4, fill: "#0072B2" }), words(x(answer.ms), y(answer.confidence) + (answer.confidence > 0.9 ? 18 : -8), `${k + 1}`, { "text-anchor": "middle" }));
      return part;
    });
    now.cursor = line(0, TOP, 0, BOTTOM, "cursor");
    now.chart = picture(width, BOTTOM + 42, "", ...drawn, ...now.parts, now.cursor);
    fill(chart_box, {}, now.chart);
  }

  function draw_tree() {
    const mine = shown[now.i];
    const leaves = mine[mine.length - 1];
    const places = mine.map(() => new Map());
    leaves.forEach((group, row) => places[mine.length - 1].set(group, row));
    for (let l = mine.length - 2; l >= 0; l -= 1) {
      for (const group of mine[l]) {
        const below = mine[l + 1].filter((child) => parents[l + 1][child] === group).map((child) => places[l + 1].get(child)).filter((row) => row !== undefined);
        places[l].set(group, below.length ? below.reduce((a, b) => a + b) / below.length : 0);
      }
    }
    const top = 26;
    const high = TREE_ROW - 5;
    const column = between(TREE_COLUMN[0], Math.floor((room_in(tree_box, Infinity) + TREE_GAP) / levels.length), TREE_COLUMN[1]);
    const wide = column - TREE_GAP;
    const letters = Math.floor((wide - 40) / 6.2); // beside a percentage
    const joins = [];
    now.nodes = mine.map((groups, l) => groups.map((group) => {
      const [left, above] = [column * l, top + TREE_ROW * places[l].get(group)];
      let join = null;
      if (l > 0 && places[l - 1].has(parents[l][group])) {
        join = line(left - TREE_GAP, top + TREE_ROW * places[l - 1].get(parents[l][group]) + high / 2, left, above + high / 2, "branch");
        joins.push(join);
      }
      const filled = svg("rect", { x: left, y: above, width: 0, height: high, class: "share" });
      const ring = svg("rect", { x: left, y: above, width: wide, height: high, class: "node", rx: 3 });
      const name = levels[l][group];
      const share = words(left + wide - 5, above + 13, "", { "text-anchor": "end" });
      const fits = name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
      return { group, filled, share, join, left, wide, element: svg("g", {}, svg("title", {}, name), filled, ring, words(left + 5, above + 13, fits), share), ring };
    }));
    const title = levels.length > 1 ? "Probability, coarse to fine" : "Probability of each class";
    now.tree = picture(Math.max(column * levels.length - TREE_GAP, width_of([title]) * 1.2), top + TREE_ROW * leaves.length, "", words(0, 14, title, { class: "strong" }), ...joins, ...now.nodes.flat().map((n) => n.element));
    fill(tree_box, {}, now.tree);
  }

  function show() {
    const deadline = model.get("deadline");
    const { i, row } = now;
    const in_time = row.map((answer) => answer.ms <= deadline); // exits that run alone need not be in order of time
    const exit = in_time.lastIndexOf(true) + 1; // the last exit in time; 0: none yet
    time.input.value = Math.round((stops * deadline) / most);
    const stop = `${Number(deadline.toPrecision(3))} ms · ${exit ? `exit ${exit} of ${row.length}` : "no answer yet"}`;
    time.input.setAttribute("aria-valuetext", stop);
    time.stop.textContent = stop;
    fill(now.cursor, { x1: x(Math.min(deadline, most)), x2: x(Math.min(deadline, most)) });
    now.parts.forEach((part, k) => part.setAttribute("opacity", in_time[k] ? 1 : 0.15));
    const answer = exit ? row[exit - 1] : null;
    const lit = new Set();
    if (answer) {
      let group = answer.group;
      for (let l = answer.level; l >= 0; l -= 1) {
        lit.add(`${l} ${group}`);
        group = l > 0 ? parents[l][group] : group;
      }
    }
    now.nodes.forEach((nodes, l) => nodes.forEach((n, k) => {
      const share = answer ? shares[i][exit - 1][l][k] : 0;
      const asked = answer !== null && l <= answer.level;
      n.filled.setAttribute("width", n.wide * share);
      n.share.textContent = answer ? percent(share) : "";
      n.element.setAttribute("opacity", answer === null || asked ? 1 : 0.4);
      n.ring.classList.toggle("lit", lit.has(`${l} ${n.group}`));
      if (n.join) n.join.classList.toggle("lit", lit.has(`${l} ${n.group}`));
    }));
    const right = { true: ", which is correct", false: ", which is incorrect", null: "" };
    const first = `no answer yet; the first comes after ${Math.min(...row.map((a) => a.ms)).toPrecision(3)} ms`;
    const said = answer ? `exit ${exit} of ${row.length}, after ${answer.ms.toPrecision(3)} ms, says ${named(answer)} (${percent(answer.confidence)})${right[answer.right]}` : first;
    readout.textContent = `Deadline ${Number(deadline.toPrecision(3))} ms: ${said}.`;
    now.chart.setAttribute("aria-label", `Confidence against time. ${readout.textContent}`);
    now.tree.setAttribute("aria-label", `Probabilities of the classes. ${readout.textContent}`);
    const heads = ["exit", "after", "answer", "confidence"].map((text) => node("th", { scope: "col" }, text));
    const body = row.map((a, k) => node("tr", { class: in_time[k] ? null : "later" }, node("th", { scope: "row" }, `${k + 1}`), node("td", {}, `${a.ms.toPrecision(3)} ms`), node("td", {}, in_time[k] ? `${mark(a)}${named(a)}` : "…"), node("td", {}, in_time[k] ? percent(a.confidence) : "")));
    fill(table_box, {}, node("table", {}, node("thead", {}, node("tr", {}, ...heads)), node("tbody", {}, ...body)));
  }

  choose();
  const let_be = on_width(root, choose);
  on(["deadline"], show);
  on(["image"], choose);
  function table() {
    const rows = now.row.map((a, k) => [now.i, k + 1, a.ms, named(a), a.confidence, a.right ?? "", a.ms <= model.get("deadline")]);
    return [["image", "exit", "milliseconds", "answer", "confidence", "right", "in_time"], ...rows];
  }
  function stop() {
    pause();
    let_be();
  }
  return { stop, table };
}
