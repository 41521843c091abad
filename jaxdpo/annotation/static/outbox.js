// What a person did is kept in the browser until the server has answered that it is kept there.
// It is sent again after a lost connection, a killed server or a reload, under the same id, so that
// the server counts it once.

import { say } from "./dom.js";

const PREFIX = "outbox:";
const who = document.body.dataset.annotator;
const waiting = new Map();
let last = 0;
let flushing = false;

export function newId() {
  // Not `crypto.randomUUID`: it is missing where the page comes by plain HTTP from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Keeps a request and sends it; resolves to the server's answer, or rejects if it is refused.
export function send(path, body) {
  last = Math.max(last + 1, Date.now());
  const key = `${PREFIX}${String(last).padStart(16, "0")}:${newId()}`;
  localStorage.setItem(key, JSON.stringify({ who, path, body }));
  return new Promise((resolve, reject) => {
    waiting.set(key, { resolve, reject });
    flush();
  });
}

function pending() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(PREFIX))
    .sort()
    .filter((key) => JSON.parse(localStorage.getItem(key)).who === who);
}

export async function flush() {
  if (flushing) return;
  flushing = true;
  try {
    // One tab at a time where browsers can say so; elsewhere the ids keep both from counting.
    if (navigator.locks) await navigator.locks.request("outbox", flushAll);
    else await flushAll();
  } finally {
    flushing = false;
  }
  if (pending().length) setTimeout(flush, 500);
}

async function flushAll() {
  for (const key of pending()) {
    const stored = localStorage.getItem(key);
    if (!stored) continue;
    const { path, body } = JSON.parse(stored);
    let reply, answer;
    try {
      reply = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      answer = await reply.json();
    } catch {
      const count = pending().length;
      say(`No connection. ${count} ${count === 1 ? "act waits" : "acts wait"} here and will be sent.`, true);
      return;
    }
    if (reply.status >= 500) {
      say(`The server cannot keep this now (${reply.status}). It will be sent again.`, true);
      return;
    }
    localStorage.removeItem(key);
    const promise = waiting.get(key);
    waiting.delete(key);
    if (reply.ok) {
      say("Saved.");
      promise?.resolve(answer);
    } else {
      say(answer.error, true);
      promise?.reject(new Error(answer.error));
    }
  }
}

window.addEventListener("online", flush);

// Text that is typed and not sent yet survives a reload.
export function keepDraft(field, name) {
  const key = `draft:${who}:${name}`;
  field.value = localStorage.getItem(key) ?? field.value;
  field.addEventListener("input", () => localStorage.setItem(key, field.value));
  return () => localStorage.removeItem(key);
}
