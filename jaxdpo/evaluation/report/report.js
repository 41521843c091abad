// Shows the answers side by side, those that the filters leave. All text is set as text, never HTML.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [filters, shown, list] = ["filters", "shown", "examples"].map((id) => document.getElementById(id));

// Control characters are written out: ESC and its kin are no text that one can read.
const controls = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
const visible = (text) => text.replace(controls, (c) => "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0"));

function element(tag, className, text, parent) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = visible(text);
  if (parent) parent.append(made);
  return made;
}

function choice(label, options) {
  const holder = element("label", "", label + " ", filters);
  const select = element("select", "", undefined, holder);
  for (const [value, name] of options) element("option", "", name, select).value = value;
  select.addEventListener("change", show);
  return select;
}

const names = data.models.map((name) => [name, name]);
const by = data.criteria.map((name) => ["c" + name, name]);
if (data.duels.length) by.push(["duel", "head to head"]);
const second = choice("model", names);
const first = choice("against", names);
const judged = choice("by", by);
const outcome = choice("show", [
  ["all", "all"], ["won", "won"], ["lost", "lost"], ["tied", "tied"], ["none", "not judged"],
]);
const holder = element("label", "", "text ", filters);
const wanted = element("input", "", undefined, holder);
wanted.type = "search";
wanted.addEventListener("input", show);
second.value = data.models[data.models.length - 1];
first.value = data.models[Math.max(0, data.models.length - 2)];

function value(judgement) {
  if (judgement.passed !== null) return judgement.passed ? 1 : 0;
  return judgement.score;
}

function outcomeOf(row) {
  if (judged.value === "duel") {
    for (const [a, b, verdict] of row.preferences) {
      if (verdict === null && [a, b].includes(first.value) && [a, b].includes(second.value)) return "none";
      const better = verdict === "first" ? a : verdict === "second" ? b : null;
      if (a === first.value && b === second.value || a === second.value && b === first.value)
        return better === null ? "tied" : better === second.value ? "won" : "lost";
    }
    return "none";
  }
  const name = judged.value.slice(1);
  if (!(name in row.judgements[second.value])) return "none";
  const [mine, other] = [second.value, first.value].map((model) => value(row.judgements[model][name]));
  if (mine === null || other === null) return "none";
  return mine > other ? "won" : mine < other ? "lost" : "tied";
}

function add(row) {
  const box = element("section", "example", undefined, list);
  element("h3", "", row.where, box);
  for (const [role, text] of row.messages) element("div", "message", role + ": " + text, box);
  const columns = element("div", "answers", undefined, box);
  for (const model of data.models) {
    const column = element("div", "answer", undefined, columns);
    element("h4", "", model, column);
    element("div", "text", row.answers[model], column);
    for (const [name, said] of Object.entries(row.judgements[model])) {
      const passed = said.passed === null ? "none" : said.passed ? "pass" : "fail";
      const word = said.passed === null ? (said.score === null ? "not judged" : "") : passed;
      const score = said.score === null ? "" : " " + said.score;
      const why = said.explanation ? " – " + said.explanation : "";
      element("div", "said " + passed, `${name}: ${word}${score}${why}`, column);
    }
  }
  for (const [a, b, verdict, why] of row.preferences) {
    const better = verdict === "first" ? a : verdict === "second" ? b : verdict ? "a tie" : "not judged";
    element("div", "said", `${a} against ${b}: ${better} – ${why}`, box);
  }
}

function show() {
  const text = wanted.value.toLowerCase();
  list.replaceChildren();
  let count = 0;
  for (const row of data.rows) {
    if (outcome.value !== "all" && outcomeOf(row) !== outcome.value) continue;
    if (text && !JSON.stringify([row.messages, row.answers]).toLowerCase().includes(text)) continue;
    count += 1;
    add(row);
  }
  shown.textContent = `${count} of ${data.rows.length} prompts`;
}

show();
