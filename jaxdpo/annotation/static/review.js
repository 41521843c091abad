import { byId, getJson, say } from "./dom.js";
import { Board, listen, notes, person } from "./board.js";
import { flush, send } from "./outbox.js";

const board = new Board("review");
let task = null;
person(board);

async function show(queue) {
  task = queue.task;
  board.criteria = queue.criteria;
  const { done, skipped, rows } = queue.progress;
  byId("progress").max = rows;
  byId("progress").value = done + skipped;
  byId("count").textContent = `${done} done, ${skipped} skipped, ${rows} in all`;
  byId("next").disabled = byId("skip").disabled = task === null;
  if (task === null) {
    board.clear();
    say("No rows are left for you. Thank you.");
    return;
  }
  await board.open(queue.conversation);
}

async function move(what) {
  // The skip is an act of the conversation as well, so that the log tells it.
  const left = task;
  if (what === "skip" && left) await board.act({ event: "skipped" });
  // Nothing can be done with the row that was left: a key that is pressed before the next one is
  // there must not be taken for that one, nor change the last.
  task = null;
  board.clear();
  await send("/api/review", { task: left, do: what }).then(show, () => {});
}

if (byId("next")) {
  byId("next").addEventListener("click", () => move("next"));
  byId("skip").addEventListener("click", () => move("skip"));
  byId("back").addEventListener("click", () => move("back"));
  notes(board);
  listen((key) => {
    if (key === "Enter" && task) move("next");
    else if (key === "s" && task) move("skip");
    else if (key === "ArrowLeft") move("back");
    else if (key === "n") byId("note").focus();
    else return board.turn !== null && board.key(key);
    return true;
  });
  await flush();
  await show(await getJson("/api/review"));
}
