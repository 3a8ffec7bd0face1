// Explorers in frames: each frame is as tall as its explorer, and as light or dark as this page.

const frames = () => [...document.querySelectorAll("iframe.explorer")];
const system = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = document.body.dataset.theme; // light, dark or auto
  if (chosen === "light" || chosen === "dark") return chosen;
  return system.matches ? "dark" : "light";
}

const tell = (frame) => frame.contentWindow.postMessage({ theme: theme() }, "*");

addEventListener("message", ({ source, data }) => {
  const frame = frames().find((each) => each.contentWindow === source);
  if (!frame || !Number.isFinite(data?.height)) return;
  if (!frame.style.height) tell(frame); // it has just been loaded
  frame.style.height = `${data.height}px`;
});
new MutationObserver(() => frames().forEach(tell)).observe(document.body, { attributeFilter: ["data-theme"] });
system.addEventListener("change", () => frames().forEach(tell));
