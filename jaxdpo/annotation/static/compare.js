import { byId, getJson, readLines, say } from "./dom.js";
import { Board, listen, person } from "./board.js";
import { flush } from "./outbox.js";

let last = null;
const board = new Board("match", { changed: judged });
person(board);

// Shows the score of a match, and its next comparison if there is one.
async function next() {
  const match = await getJson(`/api/match?pair=${byId("match").value}`);
  const score = byId("score");
  score.hidden = false;
  if (match.rate) {
    const [rate, low, high] = match.rate.map((value) => Math.round(100 * value));
    score.textContent = `${match.first} wins ${rate}% against ${match.second} (95% interval ${low} to ${high}; `
      + `${match.count} comparisons, ${match.ties} ties counted half; p = ${match.p.toPrecision(2)})`;
  } else {
    score.textContent = `${match.first} against ${match.second}: no comparison yet`;
  }
  if (match.conversation) await board.open(match.conversation);
  else {
    board.clear();
    say("Every prompt was compared.");
  }
}

function judged(state) {
  const decided = board.answers.some((answer) => answer.verdict);
  if (decided && !state.answering) {
    last = state.conversation;
    // A second key must not change what was judged, before the next comparison is there.
    board.clear();
    next();
  }
}

// The last comparison is gone from the page, so undoing opens it again.
async function undo() {
  if (!last) return say("There is nothing to undo.");
  const state = await getJson(`/api/conversation?name=${encodeURIComponent(last)}`);
  board.state = state;
  last = null;
  await board.undo();
}

if (byId("begin")) {
  byId("begin").addEventListener("click", () => next().catch((error) => say(error.message, true)));
  byId("match").addEventListener("change", () => board.clear());
  listen((key) => {
    if (key === "u") undo();
    else return board.turn !== null && board.key(key);
    return true;
  });
  await flush();
}

byId("side")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const cards = new Map([...document.querySelectorAll("#answers .answer")].map((card) =>
    [card.dataset.model, card.querySelector(".text")]));
  cards.forEach((card) => { card.textContent = ""; });
  try {
    const reply = await fetch("/api/side_by_side", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: byId("prompt").value }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error);
    await readLines(reply, ({ model, piece, error }) => {
      cards.get(model).textContent += error ? `No answer: ${error}` : piece;
    });
    say("Answered.");
  } catch (error) {
    say(error.message, true);
  }
});
