// For an exported page in a frame of another page: tells its height, and is as light or dark as the page around it.

if (window.parent !== window) {
  const root = document.documentElement;
  root.classList.add("framed");
  new ResizeObserver(() => {
    window.parent.postMessage({ height: Math.ceil(root.getBoundingClientRect().height) }, "*");
  }).observe(root);
  addEventListener("message", ({ source, data }) => {
    if (source !== window.parent || !["light", "dark"].includes(data?.theme)) return;
    root.style.colorScheme = data.theme;
    root.classList.add("fitted"); // a page that answers also follows the height, so nothing is to be scrolled
  });
}
