// Which values a reader's choices may have: those that the contents offer, as the explorers in Python check them.

function offered_by(content) {
  const among = (values) => (value) => values.includes(value);
  const flag = (value) => typeof value === "boolean";
  if (content.kind === "transfer") {
    const runs = content.runs.map((run) => run.name);
    const measured = (content.runs.length ? content.runs : [content]).some((run) => run.arrived !== null);
    const pair = (value) => Array.isArray(value) && value.length === 2 && content.sources.includes(value[0]) && content.targets.includes(value[1]);
    const distinct = (pairs) => new Set(pairs.map((one) => JSON.stringify(one))).size === pairs.length;
    return {
      step: among(content.steps),
      run: among(runs.length ? runs : [""]),
      compare: among(["", ...runs]),
      network: among(["", ...content.networks]),
      slice: among(["", ...content.slices]),
      relative: flag,
      change: flag,
      quantity: among(measured ? ["asked", "arrived", "both"] : ["asked"]),
      channel: (value) => Number.isInteger(value) && value >= -1,
      pair,
      pinned: (value) => Array.isArray(value) && value.length <= PIN_COLOURS.length && value.every(pair) && distinct(value),
    };
  }
  if (content.kind === "budget") {
    const names = content.models.map((model) => model.name);
    return {
      cost: among(content.costs.map((cost) => cost.name)),
      level: among(content.levels.length ? content.levels : [""]),
      at: (value) => content.exits.some(([name, exit]) => Array.isArray(value) && value.length === 2 && value[0] === name && value[1] === exit),
      hidden: (value) => Array.isArray(value) && new Set(value).size === value.length && value.length < names.length && value.every(among(names)),
    };
  }
  if (content.kind === "playground") {
    return {
      image: (value) => Number.isInteger(value) && value >= 0 && value < content.images.length,
      deadline: (value) => Number.isFinite(value) && value >= 0 && value <= content.most,
    };
  }
  return {};
}
