import { byId, el, getJson, say } from "./dom.js";
import { Board, listen, notes, person } from "./board.js";
import { flush, keepDraft, newId, send } from "./outbox.js";

const who = document.body.dataset.annotator;
const board = new Board("chat");
person(board);

const text = byId("text");
if (text) {
  const forget = keepDraft(text, "message");
  // The address names the conversation, so that a reload and a second tab show the same.
  let conversation = new URLSearchParams(location.search).get("c");

  const open = (name) => {
    conversation = name;
    history.replaceState(null, "", name ? `?c=${encodeURIComponent(name)}` : location.pathname);
  };

  const list = async () => {
    const known = await getJson("/api/conversations");
    const options = known.map((each) =>
      el("option", { value: each.conversation, selected: each.conversation === conversation }, each.title));
    byId("earlier").replaceChildren(el("option", { value: "" }, "–"), ...options);
  };

  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!text.value.trim()) return;
    if (!conversation || board.isOver) open(`chat/${who}/${newId()}`);
    const body = { id: newId(), conversation, text: text.value };
    send("/api/ask", body).then((state) => {
      forget();
      text.value = "";
      board.show(state);
      list();
    }, () => {});
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) byId("ask").requestSubmit();
  });
  byId("new").addEventListener("click", () => {
    open(null);
    board.clear();
    text.focus();
  });
  byId("earlier").addEventListener("change", (event) => {
    if (!event.target.value) return;
    open(event.target.value);
    board.open(conversation).catch((error) => say(error.message, true));
  });
  notes(board);
  listen((key) => {
    if (key === "n") byId("note").focus();
    else if (key === "m") text.focus();
    else return board.turn !== null && board.key(key);
    return true;
  });

  await flush();
  await list();
  if (conversation) await board.open(conversation).catch((error) => say(error.message, true));
}
