// Keeps a page's choices in its address, after "#", so that a link shows what its sender saw. Not in notebooks.

const WRITE_MS = 200; // after the last choice; browsers limit how often an address may change

// `explorers`: of each one its `state`, which holds the choices at first, `set(name, value)`, which makes one, and the
// `prefix` of its names in the address
function keep_in_address(explorers) {
  const kept = explorers.map(({ state, set, prefix }) => {
    const offered = offered_by(state.content);
    const first = Object.fromEntries(Object.keys(offered).map((name) => [name, JSON.stringify(state[name])]));
    return { state, set, prefix, offered, first };
  });

  function read_one({ state, offered }, name, text) {
    if (text === null) return undefined;
    let value = text;
    try {
      if (typeof state[name] !== "string") value = JSON.parse(text);
    } catch {
      return undefined; // not what this page has written
    }
    return offered[name](value) ? value : undefined;
  }

  // What is not in the address, or is not offered, stays or becomes as it was at first. Returns the place of the
  // explorer that the address names last, which is the one that its sender moved last; -1 if it names none.
  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const one of kept) {
      for (const name of Object.keys(one.offered)) {
        const value = JSON.stringify(read_one(one, name, given.get(one.prefix + name))) ?? one.first[name];
        if (value !== JSON.stringify(one.state[name])) one.set(name, JSON.parse(value));
      }
    }
    const last = [...given.keys()].pop();
    return kept.findIndex(({ prefix, offered }) => Object.keys(offered).some((name) => prefix + name === last));
  }

  let timer = null;
  let order = kept; // the explorer that was moved last comes last
  function write(place = 0) {
    order = [...order.filter((one) => one !== kept[place]), kept[place]];
    clearTimeout(timer);
    timer = setTimeout(() => {
      const chosen = new URLSearchParams();
      for (const { state, prefix, offered, first } of order) {
        for (const name of Object.keys(offered)) {
          const value = JSON.stringify(state[name]);
          if (value !== first[name]) chosen.set(prefix + name, typeof state[name] === "string" ? state[name] : value);
        }
      }
      const text = chosen.toString();
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    }, WRITE_MS);
  }

  return { read, write };
}
