// Draws a TransferExplorer.

const PLAY_MS = 250; // per step while playing

function transfer(model, content, root, on) {
  const { steps, sources, targets, pairs } = content;
  const numbers = transfer_numbers(content);
  const index_of = () => index_at(steps, model.get("step"));
  const place = new Map(pairs.map(([s, t], i) => [`${s} ${t}`, i]));
  const pair_of = ([source, target]) => place.get(`${sources.indexOf(source)} ${targets.indexOf(target)}`) ?? -1;
  const controls = node("div", { class: "controls" });
  const options = node("div", { class: "controls" });
  const readout = node("p", { role: "status", "aria-live": "polite", class: "readout" });
  const map_box = scrolling("Heat maps", "figures maps");
  const detail_box = scrolling("Pair of layers", "detail");
  const note = node("p", { class: "note" });
  const accuracy = node("p", { class: "note said" });
  fill(root, {}, controls, options, accuracy, readout, node("div", { class: "figures" }, map_box, detail_box), note);

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
  const names_of = (names) => names.map((name) => [name, name]);
  const all = (names, word) => [["", `all ${word}`], ...names_of(names)];
  const runs = content.runs.map((run) => run.name);
  if (runs.length) {
    chosen.run = choice("Run", names_of(runs), "", (v) => set("run", v));
    chosen.compare = choice("Compare with", [["", "no other run"], ...names_of(runs)], "", (v) => set("compare", v));
  }
  const quantities = [["asked", "asked (λ)"], ["arrived", "arrived (R²)"], ["both", "both, side by side"]];
  if (numbers.any_arrived) chosen.quantity = choice("Show", quantities, "", (v) => set("quantity", v));
  const scale = choice("Scale", [], "", (v) => {
    set("relative", v.includes("share"));
    set("change", v.includes("change"));
  });
  if (content.networks.length) chosen.network = choice("Source network", all(content.networks, "networks"), "", (v) => set("network", v));
  if (content.slices.length) chosen.slice = choice("Slice", all(content.slices, "slices"), "", (v) => set("slice", v));
  const from = choice("Pair", [], "", (v) => set("pair", [v, now.pair_names[1]]));
  const to = choice("→", [], "", (v) => set("pair", [now.pair_names[0], v]));
  from.select.setAttribute("aria-label", "Pair: source layer");
  to.select.setAttribute("aria-label", "Pair: target layer");
  const pin = node("button", { ...KEYS, type: "button", "aria-pressed": "false" }, "Pin");
  pin.addEventListener("click", () => toggle(now.pair_names));
  fill(options, {}, ...Object.values(chosen).map((c) => c.element), scale.element, from.element, to.element, pin);

  const same = (one, other) => one[0] === other[0] && one[1] === other[1];
  function toggle(pair) {
    const pinned = model.get("pinned");
    if (pinned.some((one) => same(one, pair))) set("pinned", pinned.filter((one) => !same(one, pair)));
    else if (pair_of(pair) >= 0) set("pinned", [...pinned, pair].slice(-PIN_COLOURS.length));
  }

  // "Test accuracy after training, seed 0: 74.0 %; seed 1: 71.5 %."
  function accuracies(runs) {
    const known = runs.filter((run) => run.accuracy !== undefined);
    const said = known.map((run) => `${content.runs.length ? `${run.name}: ` : ""}${(100 * run.accuracy).toFixed(1)} %`);
    return said.length ? `Test accuracy after training${content.runs.length ? ", " : ": "}${said.join("; ")}.` : "";
  }

  function scales(arrived) {
    if (arrived) return [["", "R², one scale for all runs"], ["change", "change since the first step"]];
    const words_of = [["", "λ, one scale for all steps"], ["share", "share of the target layer's λ"]];
    return [...words_of, ["change", "change since the first step"], ["change share", "change of the share since the first step"]];
  }

  // what is shown for the chosen runs, network, slice and scale; replaced when one of them changes
  let now = null;
  function choose() {
    now = numbers.chosen(model);
    const { relative, change } = now.scale;
    const arrived = now.quantity === "arrived";
    fill(scale.select, {}, ...scales(arrived).map(([value, text]) => node("option", { value }, text)));
    scale.select.value = [change ? "change" : "", relative && !arrived ? "share" : ""].join(" ").trim();
    if (chosen.run) {
      chosen.run.select.value = now.run.name;
      for (const option of chosen.compare.select.options) option.disabled = option.value === now.run.name;
      chosen.compare.select.value = now.other?.name ?? "";
    }
    if (chosen.quantity) {
      chosen.quantity.select.value = now.quantity;
      chosen.quantity.select.disabled = !now.measured;
    }
    if (chosen.network) chosen.network.select.value = model.get("network");
    if (chosen.slice) chosen.slice.select.value = model.get("slice");
    for (const [control, names] of [[from, now.rows.map((i) => sources[i])], [to, now.columns.map((i) => targets[i])]]) {
      fill(control.select, {}, ...names.map((name) => node("option", { value: name }, name)));
      if (!names.length) control.select.replaceChildren();
    }
    accuracy.textContent = accuracies(now.runs);
    accuracy.hidden = accuracy.textContent === "";
    pin.disabled = !now.shown.length;
    if (!now.shown.length) {
      for (const box of [map_box, detail_box]) box.replaceChildren();
      return show();
    }
    const click = (source, target) => {
      set("pair", [source, target]);
      toggle([source, target]);
    };
    map_box.classList.toggle("several", now.maps.length > 1 || now.columns.length > NUMBERS_UP_TO);
    const room = room_for(now.maps.length);
    now.drawn = now.maps.map((map) => heat_map({ ...content, ...now }, map, map.diverging ? content.diverging : content.colours, room, click));
    fill(map_box, {}, ...now.drawn.map((map) => map.element));
    const lacking = numbers.any_arrived && !now.measured ? "R² was not measured in this choice of runs." : "";
    const notes = new Set([content.note, lacking, ...now.drawn.flatMap((map) => map.notes)]);
    fill(note, {}, [...notes].filter((text) => text).join(" "));
    choose_pair();
    return undefined;
  }

  // the width for each of several maps, with as many beside each other as have room
  function room_for(maps) {
    const all = room_in(map_box, Infinity);
    const across = between(1, Math.floor((all + GAP) / (LEAST_ROOM + GAP)), maps);
    return Math.floor((all - GAP * (across - 1)) / across);
  }

  function choose_pair() {
    if (!now.shown.length) return;
    const [source, target] = model.get("pair");
    const s = sources.indexOf(source);
    const t = targets.indexOf(target);
    const wanted = pair_of([source, target]);
    now.pair = wanted;
    if (!now.shown.includes(wanted)) {
      const { rows } = now.maps[0];
      const row = rows[rows.length - 1];
      now.pair = now.shown.reduce((best, i) => ((row[i] ?? -1) > (row[best] ?? -1) ? i : best), now.shown[0]);
    }
    const offered = s >= 0 && t >= 0 && now.rows.includes(s) && now.columns.includes(t);
    now.unmatched = offered && (wanted < 0 || now.maps.every((map) => map.missing.has(wanted)));
    now.pair_names = now.unmatched ? [source, target] : [sources[pairs[now.pair][0]], targets[pairs[now.pair][1]]];
    [from.select.value, to.select.value] = now.pair_names;
    draw_detail();
    show();
  }

  function draw_detail() {
    const pinned = model.get("pinned");
    now.pins = pinned.map(pair_of);
    const is_pinned = now.pins.indexOf(now.unmatched ? -1 : now.pair);
    fill(pin, { "aria-pressed": is_pinned >= 0 }, is_pinned >= 0 ? "Unpin" : "Pin");
    pin.disabled = now.unmatched;
    const pair = now.pair_names.join(" → ");
    const gone = node("p", { class: "note" }, "This pair was not matched.");
    now.charts = now.unmatched && !pinned.length ? [] : now.groups.map((group) => chart_of(group, pair));
    const see = (channel) => set("channel", channel);
    const features = now.runs.map((run) => content.feature_maps[run.features] ?? null); // of each run, if there are any
    now.bars = now.unmatched ? [] : now.runs.map((run, k) => channel_bars(run.channels, now.pair, pair, room_in(detail_box, CHART.most), features[k] ? see : null));
    now.views = now.bars.map((bars, k) => (features[k] && bars.found ? channel_view(features[k], now.pair_names[0], bars, see) : null));
    const bars = now.bars.flatMap(({ element }, k) => {
      const name = now.other && now.runs[k].channels ? node("p", { class: "stop said" }, now.runs[k].name) : null;
      return [name, element, now.views[k]?.element ?? null];
    });
    fill(detail_box, {}, node("div", { class: "stop said" }, pair), pins_of(pinned), key_of_runs(), now.unmatched ? gone : null, ...now.charts.map((chart) => chart.element), ...bars);
    for (const map of now.drawn) map.mark(now.unmatched ? -1 : now.pair, now.pins);
  }

  // the pinned pairs, each with the number and colour of its curve, and a button that releases it
  function pins_of(pinned) {
    if (!pinned.length) return null;
    const chips = pinned.map((pair, k) => {
      const number_of = node("span", { class: "pin said" }, `${k + 1}`);
      number_of.style.background = PIN_COLOURS[k];
      const release = node("button", { ...KEYS, type: "button", class: "chip", "aria-label": `Unpin ${pair.join(" → ")}` }, number_of, node("span", { class: "said" }, pair.map(shortened).join(" → ")), node("span", { "aria-hidden": "true" }, " ×"));
      release.addEventListener("click", () => {
        toggle(pair);
        (detail_box.querySelector(".chip") ?? pin).focus(); // so that the keyboard stays here
      });
      return release;
    });
    return node("div", { class: "gallery", role: "group", "aria-label": "Pinned pairs" }, ...chips);
  }

  const key_of_runs = () => (now.other === null ? null : node("p", { class: "note said" }, `Solid lines: ${now.run.name}; dashed: ${now.other.name}.`));

  function chart_of(group, pair) {
    const lines = [];
    const chosen_at = now.unmatched ? -1 : now.pair;
    const add = (p, colour, mark, strong) => group.lines.forEach((one, k) => {
      if (one.missing.has(p)) return;
      const band = one.spreads !== null && now.runs.length === 1 && !now.pins.length ? one.spreads.map((row) => row[p]) : null;
      lines.push({ steps: one.steps, values: one.rows.map((row) => row[p]), band, colour, dash: k ? "6 4" : null, mark: k ? null : mark, strong });
    });
    now.pins.forEach((p, k) => (p >= 0 && now.shown.includes(p) ? add(p, PIN_COLOURS[k], `${k + 1}`, p === chosen_at) : null));
    if (chosen_at >= 0 && !now.pins.includes(chosen_at)) add(chosen_at, "#0072B2", null, true);
    const negative = group.arrived && !group.change && lines.some((one) => one.values.some((value) => value < 0));
    const what = group.shares && !group.change ? "Share of λ" : group.quantity[0] === "c" ? `C${group.quantity.slice(1)}` : group.quantity;
    const title = `${what} over time${lines.some((one) => one.band) ? ", ± 1 standard deviation" : ""}${negative ? ", negative as 0" : ""}`;
    const floor = group.change ? 0 : group.vmax * (group.arrived ? 1 : 1e-6);
    return time_chart({ title, label: `${title} of ${pair}`, steps, lines, floor, signed: group.change, shares: group.shares, width: room_in(detail_box, CHART.most), jump: (step) => set("step", step) });
  }

  function show() {
    const i = index_of();
    const step = steps[i];
    if (!now.shown.length) {
      readout.textContent = "No pair of layers was matched in this choice of network and slice.";
      return;
    }
    time.input.value = i;
    const stop = steps.length > 1 ? `step ${step} of ${steps[steps.length - 1]}` : `step ${step}`;
    time.input.setAttribute("aria-valuetext", stop);
    if (time.stop.textContent !== stop) time.stop.textContent = stop;
    const said = now.maps.map((map, k) => {
      const at = index_at(map.steps, step);
      const row = map.rows[at];
      const { largest } = now.drawn[k].update(row, map.steps[at]);
      const value = map.missing.has(now.pair) ? null : row[now.pair];
      let about = `${map.quantity} ${map.missing.has(now.pair) ? "not matched" : map.show(value)}`;
      if (map.spreads !== null && value !== null && map.spreads[at][now.pair] != null) about += ` ± ${number(map.spreads[at][now.pair], map.vmax)}`;
      if (content.runs.length) about += map.difference ? `, ${map.name}` : ` in ${map.name}`;
      if (map.steps[at] !== step) about += `, measured at step ${map.steps[at]}`;
      return { about, largest };
    });
    const pair = now.pair_names.join(" → ");
    const about = now.unmatched ? "not matched" : said.map((one) => one.about).join("; ");
    const { largest } = now.other === null ? said[0] : said[2];
    const leading = `${largest[0].toUpperCase()}${largest.slice(1)}`;
    readout.textContent = `Step ${step}. ${pair}: ${about}. ${now.other === null ? leading : leading.replace("Largest", "Largest difference")}.`;
    for (const chart of now.charts) chart.show(step);
    const channel = model.get("channel");
    for (const bars of now.bars) bars.show(step, channel);
    for (const view of now.views) view?.show(step, channel);
  }

  choose();
  const let_be = on_width(root, choose);
  on(["step", "channel"], show);
  on(["pair", "pinned"], choose_pair);
  on(["network", "slice", "relative", "change", "quantity", "run", "compare"], choose);
  // the numbers in the maps: a row per pair, a column per map; of one run's λ, a trace
  function table() {
    const step = steps[index_of()];
    const several = content.runs.length > 0;
    const column = (map) => {
      const plain = map.arrived ? "r2" : now.scale.relative ? "share" : "weight";
      const named = `${now.scale.change ? "change_of_" : ""}${plain}`;
      return several ? `${named} ${map.name}` : named;
    };
    const at = now.maps.map((map) => index_at(map.steps, step));
    const heads = now.maps.flatMap((map) => [column(map), ...(map.spreads ? [`${column(map)}_std`.replace(/(.*) (.*)_std/, "$1_std $2")] : []), ...(map.arrived ? [`${column(map)} at step`] : [])]);
    const rows = now.shown.map((p) => [
      step, sources[pairs[p][0]], targets[pairs[p][1]],
      ...now.maps.flatMap((map, k) => [map.rows[at[k]][p], ...(map.spreads ? [map.spreads[at[k]][p]] : []), ...(map.arrived ? [map.steps[at[k]]] : [])]),
    ]);
    return [["step", "source", "target", ...heads], ...rows];
  }
  function stop() {
    pause();
    let_be();
  }
  return { stop, table };
}
