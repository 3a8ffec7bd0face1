// Draws pictures that were made ahead of time: a page's own, or those below an explorer.

function pictures(model, content, root) {
  fill(root, {}, node("p", { class: "note" }, content.note));
  return { stop: () => {}, table: null };
}

const shown_below = (content) =>
  (content.pictures ?? []).map(({ uri, alt, caption }) =>
    node("figure", {}, caption ? node("figcaption", { class: "stop" }, caption) : null, node("img", { src: uri, alt, class: "picture" })));
