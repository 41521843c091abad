import { byId, say } from "./dom.js";

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const reply = await fetch("/api/login", {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name: byId("token").value }),
  });
  if (reply.ok) location.assign("/");
  else say((await reply.json()).error, true);
});
