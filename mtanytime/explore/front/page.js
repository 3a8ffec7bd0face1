// Shows the explorer of an exported page: what a notebook's kernel and widget do elsewhere.

const state = JSON.parse(document.getElementById("state").textContent);
const calls = {};
const model = {
  get: (name) => state[name],
  set(name, value) {
    state[name] = value;
    for (const call of calls[`change:${name}`] ?? []) call();
  },
  save_changes() {
    address.write();
  },
  on(event, call) {
    (calls[event] ??= []).push(call);
  },
  off() {},
};
const address = keep_in_address([{ state, set: model.set, prefix: "" }]);
address.read();
addEventListener("hashchange", address.read);
render({ model, el: document.getElementById("explorer") });
