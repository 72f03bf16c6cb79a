/** The versions of a patient's detector: list them, go back to one. */

import { versionName } from "./compare.js";
import { attempt, say } from "./messages.js";
import { byId, capital, counted, make, when } from "./words.js";

export class Versions {
  #session;
  #hooks;
  #list = { active_version: 0, detectors: [] };

  /** hooks: {onList(detectors)}: the list has changed. */
  constructor(session, hooks) {
    this.#session = session;
    this.#hooks = hooks;
  }

  async load() {
    const empty = { active_version: 0, detectors: [] };
    const { patient } = this.#session;
    this.#take(patient ? await this.#session.api.get(`${this.#session.patientPath}/detectors`) : empty);
  }

  #take(list) {
    this.#list = list;
    const rows = list.detectors.map((one) => this.#row(one)).reverse();
    const base = this.#row({ version: 0, is_active: list.active_version === 0 });
    byId("versions").querySelector("tbody").replaceChildren(...rows, base);
    byId("versions-empty").hidden = list.detectors.length > 0;
    this.#hooks.onList(list);
  }

  #row({ version, created_at: madeAt, is_active: isActive, method, rhythm, n_support: support }) {
    const facts = version ? `${method}, neighbours: ${rhythm}; ${counted(support)}` : "the same for every patient";
    const choice = isActive
      ? make("span", { text: "in use ✓" })
      : make("button", { type: "button", text: "Use", "aria-label": `Use ${versionName(version)}`, onClick: () => attempt(() => this.#activate(version)) });
    return make("tr", {},
      make("th", { scope: "row", text: version ? String(version) : "base" }),
      make("td", { text: version ? when(madeAt) : "" }), make("td", { text: facts }), make("td", {}, choice));
  }

  /** Going back is as good as going forward: nothing is lost either way, so nothing is asked. */
  async #activate(version) {
    this.#take(await this.#session.api.post(`${this.#session.patientPath}/detectors/${version}/activate`));
    say(capital(`${versionName(version)} is in use now.`));
    byId("versions").querySelector("button")?.focus();
    await this.#hooks.onActivated();
  }
}
