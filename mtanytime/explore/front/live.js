// Draws a LiveTraining.

function live(model, content, root, on) {
  const controls = node("div", { class: "controls" });
  const figures = node("div", { class: "figures" });
  const bar = node("progress", { max: 1, value: 0, "aria-label": "Training" });
  const said = node("output", { class: "stop", "aria-live": "off" }); // twice per second is too often for a screen reader
  const halt = node("button", { ...KEYS, type: "button" }, "■ Stop");
  const again = node("button", { ...KEYS, type: "button" }, "▶ Resume");
  const note = node("p", { class: "note", role: "status" });
  halt.addEventListener("click", () => {
    model.send({ kind: "stop" });
    halt.disabled = true;
    fill(halt, {}, "stopping…");
  });
  again.addEventListener("click", () => {
    model.send({ kind: "resume" });
    again.disabled = true;
    fill(again, {}, "resuming…");
  });
  fill(controls, {}, halt, again, bar, said);
  fill(root, {}, controls, figures, note);

  function panel({ title, unit, lines }, steps, width) {
    const [left, right, top, bottom] = [52, width - 30, 28, 28 + between(170, Math.round(width / 3), 240)];
    const known = lines.flatMap((l) => l.values.filter((value) => value !== null));
    let [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
    if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
    const room = (high - low) * 0.05;
    [low, high] = [low - room, high + room];
    const x = (step) => left + ((right - left) * step) / Math.max(steps, 1);
    const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
    const drawn = [];
    for (const tick of ticks(low, high, 4)) drawn.push(line(left, y(tick), right, y(tick), "grid"), words(left - 6, y(tick) + 4, `${tick}`, { "text-anchor": "end" }));
    for (const tick of ticks(0, steps, 5).filter((t) => Number.isInteger(t))) drawn.push(words(x(tick), bottom + 16, `${tick}`, { "text-anchor": "middle" }));
    drawn.push(line(left, bottom, right, bottom, "axis"), words(left, 14, `${title}${unit}`, { class: "strong" }), words((left + right) / 2, bottom + 34, "training step", { "text-anchor": "middle" }));
    let [across, below] = [left, bottom + 52];
    lines.forEach((l, k) => {
      const look = { stroke: l.colour === "#000000" ? "var(--ink)" : l.colour, "stroke-width": 2, "stroke-dasharray": DASHES[k % DASHES.length], fill: "none" };
      const points = l.values.map((value, i) => (value === null ? null : [x(l.steps[i]), y(value)])).filter((p) => p);
      drawn.push(svg("polyline", { points: points.map((p) => p.join(",")).join(" "), ...look }));
      if (points.length < 20) for (const [a, b] of points) drawn.push(svg("circle", { cx: a, cy: b, r: 2.5, fill: look.stroke }));
      const wide = width_of([l.name]) + 44;
      if (across > left && across + wide > right) [across, below] = [left, below + 17];
      drawn.push(svg("line", { x1: across, x2: across + 26, y1: below - 4, y2: below - 4, ...look }), words(across + 31, below, l.name));
      across += wide;
    });
    return picture(width, below + 8, `${title}${unit} against the training step: ${lines.map((l) => `${l.name} now ${short_of(l.values)}`).join(", ")}`, ...drawn);
  }
  const short_of = (values) => {
    const last = values.filter((value) => value !== null).pop();
    return last === undefined ? "unknown" : `${Number(last.toPrecision(3))}`;
  };

  function show() {
    const { panels, step, steps, words: text, state } = model.get("content");
    fill(bar, { max: steps, value: step });
    said.textContent = text;
    const page = model.get("page") === true; // which has no kernel to stop
    halt.hidden = state !== "running" || page;
    again.hidden = state !== "stopped" || page;
    if (state !== "stopped") {
      again.disabled = false;
      fill(again, {}, "▶ Resume");
    }
    if (state !== "running") {
      halt.disabled = false;
      fill(halt, {}, "■ Stop");
    }
    const boxes = panels.map(() => node("div"));
    figures.replaceChildren(...boxes);
    boxes.forEach((box, k) => fill(box, {}, panel(panels[k], steps, room_in(box, 720))));
    note.textContent = model.get("content").note;
  }

  show();
  const let_be = on_width(root, show);
  on(["content"], show);
  function table() {
    const lines = model.get("content").panels.flatMap((p) => p.lines.map((l) => ({ ...l, unit: p.unit })));
    return [["name", "unit", "step", "value"], ...lines.flatMap((l) => l.values.map((value, i) => [l.name, l.unit.trim(), l.steps[i], value]))];
  }
  return { stop: let_be, table };
}
