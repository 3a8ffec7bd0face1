// Keeps a page's choices in its address, after "#", so that a link shows what its sender saw. Only in exported pages.

const WRITE_MS = 200; // after the last choice; browsers limit how often an address may change

// `state` holds the choices at first; `set(name, value)` makes one
function keep_in_address(state, set) {
  const offered = offered_by(state.content);
  const first = Object.fromEntries(Object.keys(offered).map((name) => [name, JSON.stringify(state[name])]));

  function read_one(name, text) {
    if (text === null) return undefined;
    let value = text;
    try {
      if (typeof state[name] !== "string") value = JSON.parse(text);
    } catch {
      return undefined; // not what this page has written
    }
    return offered[name](value) ? value : undefined;
  }

  // what is not in the address, or is not offered, stays or becomes as it was at first
  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(offered)) {
      const value = JSON.stringify(read_one(name, given.get(name))) ?? first[name];
      if (value !== JSON.stringify(state[name])) set(name, JSON.parse(value));
    }
  }

  let timer = null;
  function write() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const chosen = new URLSearchParams();
      for (const name of Object.keys(offered)) {
        const value = JSON.stringify(state[name]);
        if (value !== first[name]) chosen.set(name, typeof state[name] === "string" ? state[name] : value);
      }
      const text = chosen.toString();
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    }, WRITE_MS);
  }

  addEventListener("hashchange", read);
  return { read, write };
}
