// Shows what a channel of the source sees: its feature maps on a few images (see feature_maps.py).

// `features`: the run's file; `layer`: the source layer; `bars`: its channel weights; `see(channel)` chooses one.
function channel_view(features, layer, bars, see) {
  const held = features.layers[layer] ?? {};
  const weights = bars.found ? bars.found.weights[bars.kept.length - 1] : [];
  const ordered = ranked(weights).map((i) => bars.found.names[i]).filter((name) => held[name]); // by the last weight
  const menu = choice("What does it see? Channel", [["-1", "none chosen"], ...ordered.map((name) => [`${name}`, `${name}`])], "-1", (v) => see(Number(v)));
  const said = node("p", { class: "note said" });
  const box = scrolling("Feature maps");
  const element = node("div", { class: "seen" }, node("div", { class: "controls" }, menu.element), said, box);

  function show(step, channel) {
    menu.select.value = held[channel] ? `${channel}` : "-1";
    const place = bars.found ? bars.found.names.indexOf(channel) : -1;
    const shown = held[channel] !== undefined && place >= 0;
    if (!shown) {
      said.textContent = channel < 0 ? "" : `There is no feature map of channel ${channel} of ${layer} in the file.`;
      box.replaceChildren();
      return;
    }
    const now = bars.found.weights[index_at(bars.kept, step)];
    const rank = ranked(now).indexOf(place) + 1;
    const { uri, low, high } = held[channel];
    said.textContent = `Channel ${channel} of ${layer}: weight ${Number((now[place] ?? NaN).toPrecision(3))}, number ${rank} of ${now.length}; black is ${low}, white ${high}.`;
    if (box.dataset.shown === uri) return;
    box.dataset.shown = uri;
    const count = features.images.length;
    const images = features.images.map((image, i) => node("img", { src: image, alt: `image ${i}`, class: "seen" }));
    const maps = node("img", { src: uri, alt: `what channel ${channel} of ${layer} sees in ${count} image${count > 1 ? "s" : ""}`, class: "maps_of" });
    maps.style.width = `${SEEN * count}px`;
    fill(box, {}, node("div", { class: "row" }, ...images), maps);
  }

  return { element, show };
}

const SEEN = 72; // pixels per image, as in explorer.css
