/** The dialogs that ask for one thing: the token, a yes, and the help that lists the keys. */

import { byId, make } from "./words.js";

const KEPT_TOKEN = "metaecg-token";

/** Return the token of the address or of this tab. It leaves the address, where others may see it. */
export function tokenAtStart() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEPT_TOKEN, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(KEPT_TOKEN) ?? "";
}

/** Ask for a token until one is given; one that is merely offered may also be left out (null). */
export function askForToken(reason, { isNeeded = true } = {}) {
  const dialog = byId("token-dialog");
  byId("token-why").textContent = reason || "The server asks for an access token.";
  byId("token").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    // Escape would leave a page on which nothing works, so it asks again.
    dialog.onclose = () => {
      const token = byId("token").value.trim();
      if (dialog.returnValue === "use" && token) {
        sessionStorage.setItem(KEPT_TOKEN, token);
        resolve(token);
      } else if (isNeeded) dialog.showModal();
      else resolve(null);
    };
  });
}

/** Ask whether to go on with what can't be undone; the harmless answer has the focus. */
export function confirmed({ title, text, yes }) {
  const dialog = byId("confirm-dialog");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}

/** Show the keys; `rows` are [[key, ...], what it does]. */
export function showHelp(rows) {
  byId("key-rows").replaceChildren(...rows.map(([keys, what]) => make("tr", {},
    make("td", {}, ...keys.flatMap((key, at) => [at ? " or " : "", make("kbd", { text: key })])),
    make("td", { text: what }))));
  byId("help-dialog").showModal();
}
