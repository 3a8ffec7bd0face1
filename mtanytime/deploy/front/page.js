// A page that classifies pictures with an exported network, step by step, under a deadline. No server, no network.

const byId = (id) => document.getElementById(id);
const bytesOf = (id) => {
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
};
const manifest = JSON.parse(byId("manifest").textContent);
const [channels, height, width] = manifest.image_shape;
const steps = manifest.steps.length ? manifest.steps : manifest.exits;
const WARM_UP = 700; // milliseconds, until the browser has compiled the runtime for speed
const FINEST = 0.05; // milliseconds: browsers round their clocks, some to 0
const REMEMBERED = 10; // times of each step from which the next one is predicted
const TOP = 5; // classes shown
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(2) : ms.toFixed(1)} ms`;
const nameOf = (k) => (manifest.classes ? manifest.classes[k] : `class ${k}`);

let ort, sessions;
const times = steps.map(() => []); // the last ones: of the first step milliseconds, of others multiples of the first

// How long step k is expected to take: nine of ten of its last times were shorter.
function expected(k) {
  const ordered = (values) => [...values].sort((a, b) => a - b);
  const first = ordered(times[0])[Math.floor(times[0].length / 2)];
  const ratios = ordered(times[k]);
  return ratios.length ? first * ratios[Math.floor(0.9 * (ratios.length - 1))] : 0;
}

async function load() {
  const script = URL.createObjectURL(new Blob([bytesOf("runtime")], { type: "text/javascript" }));
  ort = await import(script);
  URL.revokeObjectURL(script);
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: bytesOf("wasm").buffer });
  ort.env.logLevel = "error";
  const data = bytesOf("weights");
  sessions = [];
  for (const part of steps) {
    const options = { executionProviders: ["wasm"], externalData: [{ path: "weights.bin", data }] };
    sessions.push(await ort.InferenceSession.create(bytesOf(part.graph), options));
  }
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

// The answers to one image within a deadline in milliseconds, the first one always.
async function answers(pixels, deadline) {
  const state = { images: new ort.Tensor("float32", pixels, [1, channels, height, width]) };
  const started = performance.now();
  const found = [];
  let first = 1;
  for (let k = 0; k < steps.length; k++) {
    const spent = performance.now() - started;
    if (k > 0 && spent + expected(k) > deadline) break;
    const before = performance.now();
    const feeds = Object.fromEntries(steps[k].inputs.map((name) => [name, state[name]]));
    Object.assign(state, await sessions[k].run(feeds));
    const now = performance.now();
    if (k === 0) first = Math.max(now - before, FINEST);
    times[k] = [...times[k].slice(1 - REMEMBERED), k === 0 ? first : (now - before) / first];
    found.push({ exit: k + 1, ms: now - started, logits: Array.from(state.logits.data) });
  }
  return found;
}

// The pixels of a picture at the network's size, (channels, height, width) in [0, 1].
function pixelsOf(picture) {
  const canvas = byId("small");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // behind transparent pixels
  context.fillRect(0, 0, width, height);
  const [w0, h0] = [picture.naturalWidth ?? picture.width, picture.naturalHeight ?? picture.height];
  const scale = Math.max(width / w0, height / h0); // covers the network's size and is cropped, as in training
  const [w, h] = [w0 * scale, h0 * scale];
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height);
  const size = width * height;
  const pixels = new Float32Array(channels * size);
  for (let i = 0; i < size; i++) {
    const rgb = [data[4 * i], data[4 * i + 1], data[4 * i + 2]].map((value) => value / 255);
    if (channels === 1) pixels[i] = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
    else for (let c = 0; c < 3; c++) pixels[c * size + i] = rgb[c];
  }
  return pixels;
}

let pixels;
let running = false;
let again = false;

// The slider's positions from 0 to 1000 are deadlines from `shortest` to `longest`, in equal ratios.
let [shortest, longest] = [1, 100];
const deadline = () => shortest * (longest / shortest) ** (Number(byId("deadline").value) / 1000);

async function refresh() {
  byId("deadline-text").textContent = milliseconds(deadline());
  byId("deadline").setAttribute("aria-valuetext", milliseconds(deadline()));
  if (!pixels) return;
  again = true;
  if (running) return;
  running = true;
  try {
    while (again) {
      again = false;
      show(await answers(pixels, deadline()));
    }
  } catch (error) {
    complain(`the network failed on this picture: ${error.message}`);
  } finally {
    running = false;
  }
}

function show(found) {
  const last = found.at(-1);
  const chances = softmax(last.logits);
  const best = chances.indexOf(Math.max(...chances));
  byId("answer").textContent = `${nameOf(best)}, ${percent(chances[best])}`;
  byId("how").textContent = `exit ${last.exit} of ${steps.length}, after ${milliseconds(last.ms)}`;
  const order = chances.map((_, k) => k).sort((a, b) => chances[b] - chances[a]).slice(0, TOP);
  const rows = steps.map((_, k) => {
    const answer = found[k];
    const row = document.createElement("tr");
    row.className = answer ? "given" : "missing";
    const add = (kind, text) => row.appendChild(Object.assign(document.createElement(kind), { textContent: text }));
    add("th", `exit ${k + 1}`).scope = "row";
    add("td", answer ? milliseconds(answer.ms) : "too late");
    const own = answer && softmax(answer.logits);
    for (const name of order) {
      const cell = add("td", own ? percent(own[name]) : "");
      cell.className = "bar";
      cell.style.setProperty("--share", own ? own[name] : 0);
    }
    return row;
  });
  const head = document.createElement("tr");
  for (const text of ["exit", "time", ...order.map(nameOf)]) {
    head.appendChild(Object.assign(document.createElement("th"), { textContent: text, scope: "col" }));
  }
  byId("answers").replaceChildren(head, ...rows);
}

function complain(text) {
  byId("error").textContent = text;
}

async function take(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    complain(`${file.name ?? "picture"}: expected an image file that this browser can read, got ${file.type || "none"}`);
    return;
  }
  await use(picture);
}

async function use(picture) {
  complain("");
  pixels = pixelsOf(picture);
  byId("picture").hidden = false;
  await refresh();
}

function listen() {
  byId("file").addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    if (file) await take(file);
  });
  byId("deadline").addEventListener("input", refresh);
  const drop = byId("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  addEventListener("drop", (event) => {
    const [file] = event.dataTransfer.files;
    if (file) take(file);
    else complain("expected an image file, got something else");
  });
  addEventListener("paste", (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]));
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", () => {
      byId("file").value = "";
      use(example.querySelector("img"));
    });
  }
}

async function start() {
  try {
    await load();
    const blank = new Float32Array(channels * height * width);
    const until = performance.now() + WARM_UP;
    do await answers(blank, Infinity);
    while (performance.now() < until);
    const runs = [];
    for (let i = 0; i < REMEMBERED; i++) runs.push(await answers(blank, Infinity));
    const median = (k) => runs.map((run) => run[k].ms).sort((a, b) => a - b)[REMEMBERED / 2];
    const last = median(steps.length - 1);
    [shortest, longest] = [Math.max(median(0), FINEST) / 2, 10 * Math.max(last, FINEST)]; // single runs are slower
    const all = steps.length > 1 ? `all ${steps.length} answers take` : "an answer takes";
    byId("status").textContent = `Ready. On this machine ${all} ${milliseconds(last)}.`;
    byId("controls").disabled = false;
    listen();
    refresh();
    document.body.dataset.ready = "yes";
  } catch (error) {
    byId("status").textContent = "";
    complain(`this browser cannot run the network: ${error.message}`);
  }
}

start();
