// What a person did is kept in the browser until the server has answered that it is kept there.
// It is sent again after a lost connection, a killed server or a reload, under the same id, so that
// the server counts it once.

import { say } from "./dom.js";

const PREFIX = "outbox:";
const AGAIN_MS = 500;
const who = document.body.dataset.annotator;
// In the order in which they were made; each tab sends its own, and what a closed one has left.
const queue = leftBehind();
let last = 0;
let sending = false;

function leftBehind() {
  const found = [];
  for (const key of Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).sort()) {
    const { by, path, body } = JSON.parse(localStorage.getItem(key));
    // Another person's acts wait until that person is back; the server would refuse them from here.
    if (by === who) found.push({ key, path, body, resolve() {}, reject() {} });
  }
  return found;
}

export function newId() {
  // Not `crypto.randomUUID`: it is missing where the page comes by plain HTTP from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Keeps a request and sends it; resolves to the server's answer, or rejects if it is refused.
export function send(path, body) {
  // Keys sort as the acts were made, so that a reload sends them in that order.
  last = Math.max(last + 1, Date.now());
  const key = `${PREFIX}${String(last).padStart(16, "0")}:${newId()}`;
  try {
    localStorage.setItem(key, JSON.stringify({ by: who, path, body }));
  } catch {
    say("The browser keeps nothing for this page: leave it open until everything is saved.", true);
  }
  return new Promise((resolve, reject) => {
    queue.push({ key, path, body, resolve, reject });
    flush();
  });
}

// Sends what waits, one after another, until all is answered or the server cannot be reached.
export async function flush() {
  if (sending) return;
  sending = true;
  while (queue.length && await sendFirst());
  sending = false;
  if (queue.length) setTimeout(flush, AGAIN_MS);
}

async function sendFirst() {
  const { key, path, body, resolve, reject } = queue[0];
  let reply, answer;
  try {
    reply = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    answer = await reply.json();
  } catch {
    const waits = queue.length === 1 ? "1 act waits" : `${queue.length} acts wait`;
    say(`No connection. ${waits} here and will be sent.`, true);
    return false;
  }
  if (reply.status >= 500) {
    say(`The server cannot keep this now (${reply.status}). It will be sent again.`, true);
    return false;
  }
  queue.shift();
  localStorage.removeItem(key);
  if (reply.ok) {
    say("Saved.");
    resolve(answer);
  } else {
    say(answer.error, true);
    reject(new Error(answer.error));
  }
  return true;
}

window.addEventListener("online", flush);

// Text that is typed and not sent yet survives a reload.
export function keepDraft(field, name) {
  const key = `draft:${who}:${name}`;
  field.value = localStorage.getItem(key) ?? field.value;
  field.addEventListener("input", () => localStorage.setItem(key, field.value));
  return () => localStorage.removeItem(key);
}
