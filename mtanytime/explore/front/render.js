// The entry point: draws an explorer of any kind.

const DRAWN_BY = { transfer, budget, playground, live, pictures };

function render({ model, el }) {
  const content = model.get("content");
  const heard = [];
  const on = (names, call) => {
    for (const name of names) {
      model.on(`change:${name}`, call);
      heard.push([`change:${name}`, call]);
    }
  };
  const root = node("section", { class: "mtanytime", "aria-label": content.title });
  el.replaceChildren(root);
  const { stop, table } = DRAWN_BY[content.kind](model, content, root, on);
  if (table) root.append(download_menu(root, content, table));
  root.append(...shown_below(content));
  return () => {
    stop();
    for (const [name, call] of heard) model.off(name, call);
  };
}

export default { render };
