/** What the library proposes to label next, one after the other. */

import { attempt, say } from "./messages.js";
import { byId, clock, make, refill } from "./words.js";

const ASKED = 10;

export class Proposals {
  #list = [];
  #place = -1;
  #path = null;
  #session;
  #hooks;

  /** hooks: {labelOf(index), onGo(segment), onChange()}. */
  constructor(session, hooks) {
    this.#session = session;
    this.#hooks = hooks;
    byId("proposals-load").addEventListener("click", () => this.load());
  }

  open(recordingPath) {
    this.#path = recordingPath;
    this.#list = [];
    this.#place = -1;
    this.draw();
  }

  get indices() {
    return new Set(this.#list.map((one) => one.index));
  }

  /** Return why a segment is proposed, or null. */
  reasonOf(index) {
    return this.#list.find((one) => one.index === index)?.reason ?? null;
  }

  get hasOpen() {
    return this.#open().length > 0;
  }

  get isMovingOn() {
    return byId("move-on").checked;
  }

  async load() {
    const path = this.#path;
    const answer = await attempt(() => this.#session.api.get(`${path}/proposals`, { query: { n: ASKED } }));
    if (!answer || path !== this.#path) return;
    // In the order of time: the eye then travels through the recording once.
    this.#list = answer.proposals.sort((a, b) => a.start_s - b.start_s);
    this.#place = -1;
    this.draw();
    this.#hooks.onChange();
    if (!this.#list.length) say("Nothing is left to propose in this recording.");
  }

  /** Go to the next proposal without a label; ask for new ones when all have one. */
  async go(direction) {
    if (!this.#open().length) await this.load();
    const open = this.#open();
    if (!open.length) return;
    const at = this.#list[this.#place]?.start_s ?? -1;
    const target = direction > 0
      ? (open.find((one) => one.start_s > at) ?? open[0])
      : (open.findLast((one) => one.start_s < at) ?? open.at(-1));
    this.#show(target);
  }

  #open() {
    return this.#list.filter((one) => this.#hooks.labelOf(one.index) === null);
  }

  #show(target) {
    this.#place = this.#list.indexOf(target);
    this.draw();
    this.#hooks.onGo(target);
  }

  /** Draw the list again: after a label, or another cursor. */
  draw() {
    const { model } = this.#session;
    const nOpen = this.#open().length;
    refill(byId("proposals"), this.#list.map((one, place) => this.#row(one, place)));
    byId("proposals-empty").textContent = this.#list.length
      ? `${nOpen} of ${this.#list.length} proposals without a label. N goes to the next.`
      : `Label with ${model?.classes.map((_, n) => n + 1).join(" or ")}, or let the library propose what tells it most.`;
  }

  #row(one, place) {
    const { model, word } = this.#session;
    const label = this.#hooks.labelOf(one.index);
    const p = one.probability[model.positive];
    const text = `${clock(one.start_s, 1)} · ${word} ${one.index} · ${label ? `labelled ${label}` : `${model.positive} ${p.toFixed(2)}`}`;
    const onClick = () => {
      this.#show(one);
      byId("strip").focus(); // where the keys of the classes work
    };
    const button = make("button", { type: "button", "data-key": one.index, "aria-current": place === this.#place, onClick });
    button.append(text, make("small", { text: one.reason }));
    return make("li", {}, button);
  }
}
