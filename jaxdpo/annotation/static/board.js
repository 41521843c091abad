// The answers of a conversation side by side, and everything that can be done with them.

import { byId, el, getJson, isTyping, keepingFocus, readLines, say } from "./dom.js";
import { keepDraft, newId, send } from "./outbox.js";

const DONE = {
  selected: "the choice", tie: "the tie", all_bad: "“all bad”", thumbs: "the thumb", judged: "the judgement",
  edited: "the edit", accepted: "the acceptance", note: "the note", skipped: "the skip", abandoned: "leaving",
};

export class Board {
  // `kind` is "chat", "review" or "match"; `changed` is called with each new state.
  constructor(kind, { criteria = [], changed = () => {} } = {}) {
    this.kind = kind;
    this.criteria = criteria;
    this.changed = changed;
    this.state = null;
    this.at = 0;
    this.criterionAt = 0;
    this.editing = null;
    this.growing = null;
  }

  get turn() {
    return this.state?.turns.at(-1) ?? null;
  }

  get answers() {
    return this.turn?.attempts.at(-1) ?? [];
  }

  get isOver() {
    return this.turn?.ended === "abandoned";
  }

  clear() {
    this.state = null;
    byId("turns").replaceChildren();
    byId("acts").hidden = true;
  }

  async open(conversation) {
    this.at = 0;
    this.editing = null;
    this.show(await getJson(`/api/conversation?name=${encodeURIComponent(conversation)}`));
  }

  show(state) {
    this.state = state;
    keepingFocus(() => this.draw());
    this.changed(state);
    const asked = this.turn && !this.turn.attempts.length;
    if (state.answering) this.watch();
    else if (state.error) say(`No answer: ${state.error}`, true);
    else if (asked) this.again();
  }

  // Follows answers while they are drawn, then shows them as they are kept.
  async watch() {
    const name = this.state.conversation;
    if (this.growing === name) return;
    this.growing = name;
    try {
      const reply = await fetch(`/api/stream?name=${encodeURIComponent(name)}`);
      await readLines(reply, ({ texts }) => {
        if (this.state?.conversation === name) this.drawGrowing(texts);
      });
      this.growing = null;
      if (this.state?.conversation === name) await this.open(name);
    } catch {
      // The server was killed or the connection lost; the next one knows what there is.
      this.growing = null;
      setTimeout(() => this.reload(name), 700);
    }
  }

  async reload(name) {
    if (this.state?.conversation !== name) return;
    try {
      await this.open(name);
    } catch {
      setTimeout(() => this.reload(name), 700);
    }
  }

  again() {
    const { conversation } = this.state;
    const attempt = this.turn.attempts.length;
    return send("/api/answer", { conversation, attempt }).then(
      (state) => this.show(state),
      () => {},
    );
  }

  act(...acts) {
    if (!this.state) return Promise.resolve();
    const events = acts.map((act) => ({ id: newId(), ...act }));
    const { conversation } = this.state;
    return send("/api/acts", { conversation, events }).then(
      (state) => {
        if (this.state?.conversation === conversation) this.show(state);
      },
      () => {},
    );
  }

  choose(place) {
    const answer = this.answers[place];
    if (answer && this.answers.length > 1) {
      this.at = place;
      return this.act({ event: "selected", output: answer.output });
    }
  }

  compareAll(event) {
    if (this.answers.length > 1) {
      return this.act({ event, outputs: this.answers.map((answer) => answer.output) });
    }
  }

  accept() {
    const chosen = this.answers.find((answer) => answer.verdict === "chosen");
    const answer = chosen ?? (this.answers.length === 1 ? this.answers[0] : null);
    if (!answer) return say("Choose an answer first.", true);
    return this.act({ event: "accepted", output: answer.output });
  }

  thumb(place, label) {
    const answer = this.answers[place];
    if (!answer) return;
    // The same thumb again takes it back.
    return this.act({ event: "thumbs", output: answer.output, label: answer.label === label ? null : label });
  }

  judge(place, criterion, passed) {
    const answer = this.answers[place];
    if (!answer || !criterion) return;
    const why = this.whyField(place, criterion);
    return this.act({ event: "judged", output: answer.output, criterion, passed, explanation: why?.value ?? "" });
  }

  get criterion() {
    return this.criteria[this.criterionAt % this.criteria.length];
  }

  nextCriterion() {
    this.criterionAt += 1;
    keepingFocus(() => this.draw());
  }

  whyField(place, criterion) {
    return document.querySelector(`[data-focus="why-${place}-${CSS.escape(criterion ?? "")}"]`);
  }

  edit(place) {
    if (!this.answers[place]) return;
    this.editing = place;
    keepingFocus(() => this.draw());
    document.querySelector(`[data-focus="editor-${place}"]`)?.focus();
  }

  save(place, field, forget) {
    const { output } = this.answers[place];
    const acts = [{ event: "edited", output, content: field.value }];
    if (this.kind === "chat") acts.push({ event: "accepted", output });
    this.editing = null;
    return this.act(...acts).then(forget);
  }

  undo() {
    const done = this.turn?.acts ?? [];
    if (!done.length) return say("There is nothing to undo.");
    // Saving an edit is two acts of one click: the edit and its acceptance.
    const [before, latest] = [done.at(-2), done.at(-1)];
    const both = latest.event === "accepted" && before?.event === "edited";
    const undone = both ? [latest, before] : [latest];
    return this.act(...undone.map((each) => ({ event: "undo", undoes: each.id }))).then(() =>
      say(`Undone: ${DONE[undone.at(-1).event]}.`),
    );
  }

  go(step) {
    const count = this.answers.length;
    if (!count) return;
    this.at = (this.at + step + count) % count;
    this.draw();
    document.querySelector(".answer.at")?.scrollIntoView({ block: "nearest" });
  }

  // Does what a key stands for; returns whether it stands for anything.
  key(name) {
    const chat = this.kind === "chat", review = this.kind === "review";
    if (/^[1-9]$/.test(name)) this.choose(Number(name) - 1);
    else if (name === "t") this.compareAll("tie");
    else if (name === "b") this.compareAll("all_bad");
    else if (name === "u") this.undo();
    else if (chat && name === "r") this.again();
    else if (chat && name === "a") this.accept();
    else if (chat && name === "x") this.act({ event: "abandoned" });
    else if (chat && name === "+") this.thumb(this.best(), true);
    else if (chat && name === "-") this.thumb(this.best(), false);
    else if (chat && name === "e") this.edit(this.best());
    else if (review && name === "e") this.edit(this.at);
    else if (review && name === "j") this.go(1);
    else if (review && name === "k") this.go(-1);
    else if (review && name === "p") this.judge(this.at, this.criterion, true);
    else if (review && name === "f") this.judge(this.at, this.criterion, false);
    else if (review && name === "w") this.whyField(this.at, this.criterion)?.focus();
    else if (review && name === "c") this.nextCriterion();
    else return false;
    return true;
  }

  best() {
    const chosen = this.answers.findIndex((answer) => answer.verdict === "chosen");
    return chosen < 0 ? 0 : chosen;
  }

  draw() {
    const turns = this.state.turns.map((turn, number) => this.drawTurn(turn, number));
    byId("turns").replaceChildren(...turns);
    this.drawActs();
  }

  drawTurn(turn, number) {
    const latest = number === this.state.turns.length - 1;
    // Each turn's prompt repeats those before it; the first one shows them all.
    const messages = number === 0 ? turn.messages : turn.messages.slice(-1);
    const said = messages.map((message) =>
      el("div", { class: "said" }, el("span", { class: "tag" }, message.role), ` ${textOf(message)}`),
    );
    const attempts = turn.attempts.map((answers, attempt) => {
      const now = latest && attempt === turn.attempts.length - 1;
      const cards = answers.map((answer, place) => this.drawAnswer(turn, answer, place, now));
      return el("div", { class: now ? "answers" : "answers earlier" }, ...cards);
    });
    const notes = turn.notes.map((note) => el("p", { class: "muted" }, `Note: ${note}`));
    const ended = turn.ended ? [el("p", { class: "muted" }, `This turn was ${turn.ended}.`)] : [];
    const growing = latest ? [el("div", { class: "answers", id: "growing" })] : [];
    return el("section", { class: "turn", "aria-label": `Turn ${number + 1}` },
      ...said, ...attempts, ...growing, ...notes, ...ended);
  }

  drawGrowing(texts) {
    const cards = texts.map((text, place) =>
      el("section", { class: "answer" }, el("h3", {}, `Answer ${place + 1}`), el("div", { class: "text" }, text)),
    );
    byId("growing")?.replaceChildren(...cards);
  }

  drawAnswer(turn, answer, place, now) {
    const accepted = turn.accepted === answer.output;
    const tags = [
      answer.model && `model: ${answer.model}`,
      { chosen: "chosen", tie: "tie", all_bad: "bad" }[answer.verdict],
      accepted && "accepted",
    ].filter(Boolean).map((tag) => el("span", { class: "tag" }, tag));
    const classes = ["answer", answer.verdict === "chosen" && "chosen", accepted && "accepted",
      now && this.kind === "review" && place === this.at && "at"];
    return el("section", { class: classes.filter(Boolean).join(" "), "aria-label": `Answer ${place + 1}`, "data-place": place },
      el("h3", {}, `Answer ${place + 1}`, ...tags),
      el("div", { class: "text" }, answer.content),
      ...(answer.edited === null ? [] : [el("p", { class: "muted" }, "Edited:"), el("div", { class: "text edited" }, answer.edited)]),
      ...(now && !this.isOver ? this.drawControls(answer, place) : []),
    );
  }

  drawControls(answer, place) {
    const button = (what, focus, onclick, pressed = null) =>
      el("button", { type: "button", "data-focus": focus, "aria-pressed": pressed === null ? null : String(pressed), onclick }, what);
    const row = [];
    if (this.answers.length > 1) {
      row.push(button("Choose", `choose-${place}`, () => this.choose(place), answer.verdict === "chosen"));
    }
    if (this.kind === "chat") {
      row.push(
        button("Accept", `accept-${place}`, () => this.act({ event: "accepted", output: answer.output })),
        button("Good", `up-${place}`, () => this.thumb(place, true), answer.label === true),
        button("Bad", `down-${place}`, () => this.thumb(place, false), answer.label === false),
      );
    }
    if (this.kind !== "match") row.push(button("Edit", `edit-${place}`, () => this.edit(place)));
    const made = [el("div", { class: "row" }, ...row)];
    if (this.editing === place) made.push(this.drawEditor(answer, place));
    if (this.kind === "review") made.push(...this.criteria.map((each) => this.drawCriterion(answer, place, each)));
    return made;
  }

  drawEditor(answer, place) {
    const field = el("textarea", { rows: 5, "data-focus": `editor-${place}`, "aria-label": `Edit of answer ${place + 1}` });
    field.value = answer.edited ?? answer.content;
    const forget = keepDraft(field, `edit:${answer.output}`);
    const save = () => this.save(place, field, forget);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.ctrlKey) save();
      if (event.key === "Escape") this.cancel();
    });
    return el("div", { class: "editor" }, field, el("div", { class: "row" },
      el("button", { type: "button", "data-focus": `save-${place}`, onclick: save }, "Save"),
      el("button", { type: "button", onclick: () => this.cancel() }, "Cancel"),
      el("span", { class: "muted" }, el("kbd", {}, "Ctrl"), "+", el("kbd", {}, "Enter")),
    ));
  }

  cancel() {
    this.editing = null;
    this.draw();
  }

  drawCriterion(answer, place, criterion) {
    const said = answer.judgements[criterion];
    const pick = (what, passed) => el("button", {
      type: "button", "data-focus": `${what}-${place}-${criterion}`, "aria-pressed": String(said?.passed === passed),
      onclick: () => this.judge(place, criterion, passed),
    }, what);
    const why = el("textarea", { rows: 2, "data-focus": `why-${place}-${criterion}`, placeholder: "why", "aria-label": `Why: ${criterion}, answer ${place + 1}` });
    why.value = said?.explanation ?? "";
    const forget = keepDraft(why, `why:${answer.output}:${criterion}`);
    why.addEventListener("change", () => {
      // Written after the judgement: the same judgement again, with its reason.
      if (said && why.value !== said.explanation) this.judge(place, criterion, said.passed)?.then(forget);
    });
    why.addEventListener("keydown", (event) => {
      if (event.key === "Escape" || (event.key === "Enter" && event.ctrlKey)) why.blur();
    });
    const at = place === this.at && criterion === this.criterion && this.criteria.length > 1;
    return el("fieldset", { class: at ? "at" : null }, el("legend", {}, criterion),
      el("div", { class: "row" }, pick("PASS", true), pick("FAIL", false)), why);
  }

  drawActs() {
    const button = (what, focus, onclick) => el("button", { type: "button", "data-focus": focus, onclick }, what);
    const made = [];
    if (this.answers.length > 1) {
      made.push(button("Tie", "tie", () => this.compareAll("tie")), button("All bad", "all_bad", () => this.compareAll("all_bad")));
    }
    if (this.kind === "chat" && (this.answers.length || this.state.error)) {
      made.push(button("Regenerate", "again", () => this.again()));
      made.push(button("Leave", "leave", () => this.act({ event: "abandoned" })));
    }
    made.push(button("Undo", "undo", () => this.undo()));
    byId("acts").replaceChildren(...made);
    byId("acts").hidden = !this.turn;
  }
}

function textOf(message) {
  return typeof message.content === "string" ? message.content : JSON.stringify(message.content ?? message.tool_calls);
}

// Keys work wherever nothing is being typed.
export function listen(does) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (isTyping(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    // Enter on a button or link is a click on it.
    if (event.key === "Enter" && event.target !== document.body && event.target.id !== "main") return;
    if (does(event.key)) event.preventDefault();
  });
}

// The note's field, and the key that leads to it.
export function notes(board) {
  const field = byId("note");
  const forget = keepDraft(field, "note");
  byId("note-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!board.turn || !field.value.trim()) return;
    board.act({ event: "note", text: field.value }).then(forget);
    field.value = "";
  });
}

// Who judges, on a page that needs no tokens; a second tab or another person may have acted meanwhile.
export function person(board) {
  const form = byId("who");
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const reply = await fetch("/api/login", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name: byId("name").value.trim() }),
    });
    if (reply.ok) location.assign(location.pathname);
    else say((await reply.json()).error, true);
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && board?.state && board.editing === null) board.reload(board.state.conversation);
  });
}
