// The web app: draws the explorers in the page, and shows a training that the server runs for this page.

function model_of(state, { send = () => {}, save = () => {} } = {}) {
  const calls = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      for (const call of calls[`change:${name}`] ?? []) call();
    },
    save_changes: save,
    on(event, call) {
      (calls[event] ??= []).push(call);
    },
    off() {},
    send,
  };
}

// the committed results; their choices are in the address, as "1.step" of the first explorer
const shown = [...document.querySelectorAll("script.state")].map((script, place) => {
  const state = JSON.parse(script.textContent);
  const model = model_of(state, { save: () => address.write(place) });
  return { state, set: model.set, prefix: `${place + 1}.`, model, el: script.previousElementSibling };
});
const address = keep_in_address(shown);
const sent = address.read();
for (const explorer of shown) render(explorer);
const go_to = (place) => (place > 0 ? shown[place].el.parentElement.scrollIntoView() : null);
go_to(sent);
addEventListener("hashchange", () => go_to(address.read()));

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
  let watched = null; // the explorer's model
  let ended = false;
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/training`);
  const [figure, playground] = ["training", "answers"].map((id) => document.querySelector(`#${id} .explorer`));
  const end = (text, kind) => {
    ended = true;
    button.disabled = false;
    fill(button, {}, "▶ Train again");
    say(text, kind);
    const content = watched?.get("content");
    if (content && content.state !== "finished") watched.set("content", { ...content, state: "ended" }); // without its buttons
  };
  const receive = {
    waiting: ({ text }) => say(text),
    training({ content }) {
      say("");
      if (watched === null) {
        watched = model_of({ content }, { send: (order) => socket.send(order.kind) });
        render({ model: watched, el: figure });
      } else watched.set("content", content);
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
