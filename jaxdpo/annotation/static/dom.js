// Elements made by hand: text is always text, so nothing that a model or a user says is markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

export function say(text, bad = false) {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

// Redrawing replaces what has the focus; whoever works by keys must not lose their place.
export function keepingFocus(draw) {
  const at = document.activeElement?.dataset?.focus;
  draw();
  if (at) document.querySelector(`[data-focus="${CSS.escape(at)}"]`)?.focus();
}

export function isTyping(target) {
  return ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);
}

export async function getJson(path) {
  const reply = await fetch(path);
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error);
  return body;
}

// Calls `seen` with each line of a reply of JSON lines, as it comes.
export async function readLines(reply, seen) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).forEach((line) => seen(JSON.parse(line)));
  }
}
