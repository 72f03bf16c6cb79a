/** What the page says: a quiet line for what happened, a loud one for what went wrong. */

import { byId } from "./words.js";

let source = "";

/** Say in the status line what happened; screen readers read it out when they are free. */
export function say(text) {
  byId("status").textContent = text;
}

/** Show what went wrong until it is dismissed. `from` lets whoever mends it take it away again. */
export function complain(text, from = "action") {
  source = from;
  byId("trouble-text").textContent = text;
  byId("trouble").hidden = false;
}

/** Take a complaint away if it came from there. */
export function settle(from) {
  if (source !== from) return;
  source = "";
  byId("trouble").hidden = true;
}

/** Run what a person asked for; what fails is told in words instead of vanishing in the console. */
export async function attempt(work) {
  try {
    const answer = await work();
    settle("action");
    return answer;
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
    if (!error.code && error.name !== "AbortError") console.error(error);
    return undefined;
  }
}

byId("trouble-close").addEventListener("click", () => {
  byId("trouble").hidden = true;
});
