import { byId, el, getJson, say } from "./dom.js";
import { person } from "./board.js";

person(null);
byId("judges")?.addEventListener("click", async (event) => {
  event.target.disabled = true;
  say("Judges are asked …");
  try {
    const found = await getJson("/api/judges");
    byId("judged").replaceChildren(...found.map((each) =>
      el("li", {}, `${each.criterion}: agrees with people on ${each.agreement} of ${each.answers} answers, κ ${each.kappa}`)));
    say(found.length ? "" : "Nobody has judged by these criteria yet.");
  } catch (error) {
    say(error.message, true);
  }
  event.target.disabled = false;
});
