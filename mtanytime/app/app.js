// The web app: draws the explorers in the page, and shows a training that the server runs for this page.

function model_of(state, send = () => {}) {
  const calls = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      for (const call of calls[`change:${name}`] ?? []) call();
    },
    save_changes() {},
    on(event, call) {
      (calls[event] ??= []).push(call);
    },
    off() {},
    send,
  };
}

for (const script of document.querySelectorAll("script.state")) {
  render({ model: model_of(JSON.parse(script.textContent)), el: script.previousElementSibling });
}

const LOST = "The connection to the server was lost. Start the training again, or reload the page.";
const button = document.getElementById("train");
const message = document.getElementById("message");
const answers = document.getElementById("answers");

function say(text, kind = "") {
  message.textContent = text;
  message.className = kind;
  message.hidden = text === "";
}

// one connection per training; the server ends the training when it is closed
function train() {
  let shown = null; // the model of the explorer that is watched
  let ended = false;
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/training`);
  const [figure, playground] = ["training", "answers"].map((id) => document.querySelector(`#${id} .explorer`));
  const end = (text, kind) => {
    ended = true;
    button.disabled = false;
    fill(button, {}, "▶ Train again");
    say(text, kind);
    const content = shown?.get("content");
    if (content && content.state !== "finished") shown.set("content", { ...content, state: "ended" }); // without its buttons
  };
  const receive = {
    waiting: ({ text }) => say(text),
    training({ content }) {
      say("");
      if (shown === null) {
        shown = model_of({ content }, (order) => socket.send(order.kind));
        render({ model: shown, el: figure });
      } else shown.set("content", content);
    },
    playground({ state, text }) {
      answers.hidden = false;
      render({ model: model_of({ ...state, page: true }), el: playground });
      end(text, "");
    },
    error: ({ text }) => end(text, "error"),
  };
  button.disabled = true;
  answers.hidden = true;
  figure.replaceChildren();
  say("The training starts …");
  socket.addEventListener("message", ({ data }) => {
    const { kind, ...rest } = JSON.parse(data);
    receive[kind](rest);
  });
  socket.addEventListener("close", () => (ended ? null : end(LOST, "error")));
}

button.addEventListener("click", train);
