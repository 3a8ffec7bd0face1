// What a TransferExplorer shows: the numbers of its maps and lines for the reader's choices. No drawing.

// the index of the last step up to `step`; the first of all before it
function index_at(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return Math.max(low - 1, 0);
}

const largest_of = (rows, shown, size) => {
  let found = 0;
  for (const row of rows) for (const i of shown) if (row[i] !== null && size(row[i]) > found) found = size(row[i]);
  return found || 1;
};

// rows of λ as shares of the target layer's λ among the shown pairs
function shares_of(rows, shown, pairs) {
  return rows.map((row) => {
    const totals = {};
    for (const i of shown) totals[pairs[i][1]] = (totals[pairs[i][1]] ?? 0) + (row[i] ?? 0);
    return row.map((value, i) => (value === null ? null : value / (totals[pairs[i][1]] || 1)));
  });
}

const minus = (row, other) => row.map((value, i) => (value === null || other[i] === null ? null : value - other[i]));

// "seed0: λ at step 100": how a kind of numbers is called and written
function wording({ arrived, relative, change, runs }) {
  const plain = arrived ? "R²" : relative ? "share of λ" : "λ";
  const quantity = change ? `change of ${plain}` : plain;
  const long = arrived ? "R²" : relative ? "share of the target layer's λ" : "λ";
  const unit = relative && !arrived ? " (percentage points)" : " (no unit)";
  let scale = arrived ? "R²: share of the source's variance" : relative ? long : "mean λ (pair weight)";
  if (change) scale = `${long}: change since the first step${unit}`;
  if (runs) scale = `${change ? `change of ${plain}` : long}: ${runs}${unit}`;
  return { quantity, title: change ? `Change of ${long}` : `${long[0].toUpperCase()}${long.slice(1)}`.replace("Λ", "λ"), scale };
}

// how numbers are written in a map whose strongest colour stands for `vmax`
function writer(vmax, shares, diverging) {
  return (value) => {
    if (value === null) return "nan";
    if (!diverging) return shares ? percent(value) : number(value, vmax);
    const size = Math.abs(value);
    return `${value < 0 ? "−" : "+"}${shares ? Math.round(100 * size) : number(size, vmax)}`;
  };
}

function transfer_numbers(content) {
  const { sources, targets, pairs } = content;
  const held = content.runs.length ? content.runs : [content];
  const run_called = (name) => held.find((run) => run.name === name) ?? held[0];
  const any_arrived = held.some((run) => run.arrived !== null);

  // a run's numbers of one kind at its own steps, in the chosen scale
  function line_of(run, arrived, { relative, change }, shown) {
    const { steps, values } = arrived ? run.arrived : run;
    let rows = relative && !arrived ? shares_of(values, shown, pairs) : values;
    if (change) rows = rows.map((row) => minus(row, rows[0]));
    const spreads = arrived || relative || change ? null : run.spreads;
    return { name: run.name, run, steps, rows, spreads, missing: new Set(run.missing) };
  }

  // everything that a choice of run, network, slice, scale and quantity shows
  function chosen(model) {
    const network = model.get("network");
    const slice = model.get("slice");
    const rows = sources.map((name, i) => i).filter((i) => !network || sources[i].startsWith(`${network}/`));
    const columns = targets.map((name, i) => i).filter((i) => !slice || targets[i].endsWith(` slice ${slice}`));
    const [in_rows, in_columns] = [new Set(rows), new Set(columns)];
    const shown = pairs.map((pair, i) => i).filter((i) => in_rows.has(pairs[i][0]) && in_columns.has(pairs[i][1]));
    const run = run_called(model.get("run"));
    const other = model.get("compare") && model.get("compare") !== run.name ? run_called(model.get("compare")) : null;
    const runs = other === null ? [run] : [run, other];
    const measured = runs.every((one) => one.arrived !== null);
    const quantity = measured ? model.get("quantity") : "asked";
    const scale = { relative: model.get("relative"), change: model.get("change") };
    const groups = [];
    for (const arrived of quantity === "both" ? [false, true] : [quantity === "arrived"]) {
      groups.push(group_of(runs, arrived, scale, shown));
    }
    return { rows, columns, shown, run, other, runs, quantity, measured, scale, groups, maps: groups.flatMap((group) => group.maps) };
  }

  // λ or R² of one run or of two: the lines over time, and the maps, of two runs with their difference
  function group_of(runs, arrived, scale, shown) {
    const { relative, change } = scale;
    const shares = relative && !arrived;
    const words = wording({ arrived, relative, change });
    const lines = runs.map((run) => line_of(run, arrived, scale, shown));
    const all = lines.flatMap((one) => one.rows);
    const vmax = arrived && !change ? 1 : largest_of(all, shown, change ? Math.abs : (value) => value); // R² has one scale for all runs
    const show = writer(vmax, shares, change);
    const group = { arrived, shares, vmax, show, lines, change, quantity: words.quantity, title: words.title };
    const named = content.runs.length > 0;
    group.maps = lines.map((one) => ({
      ...one, arrived, vmax, show, diverging: change, shares, quantity: words.quantity, scale: words.scale,
      title: named ? `${shortened(one.name)}: ${words.quantity}` : words.title,
    }));
    if (runs.length > 1) group.maps.push(difference_of(lines, { arrived, relative, change }, shares, shown));
    return group;
  }

  function difference_of(lines, kind, shares, shown) {
    const runs = lines.map((one) => shortened(one.name)).join(" − ");
    const words = wording({ ...kind, runs });
    const rows = content.steps.map((step) => minus(...lines.map((one) => one.rows[index_at(one.steps, step)])));
    const vmax = largest_of(rows, shown, Math.abs);
    return {
      name: runs, steps: content.steps, rows, spreads: null, vmax, shares, diverging: true, arrived: kind.arrived, difference: true,
      missing: new Set(lines.flatMap((one) => [...one.missing])), show: writer(vmax, shares, true), quantity: words.quantity,
      scale: words.scale, title: `${runs}: ${words.quantity}`,
    };
  }

  return { held, chosen, any_arrived };
}
