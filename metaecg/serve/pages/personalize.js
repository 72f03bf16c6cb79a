/** Labels so far, and the personalization as a job: start, watch, cancel, result in words. */

import { pause } from "./api.js";
import { classKey } from "./colours.js";
import { attempt, say } from "./messages.js";
import { byId, counted, fillSelect, make, trim } from "./words.js";

const FIRST_LOOK_S = 0.15;
const LATER_LOOK_S = 0.6;
const METHOD_WORDS = {
  lora: "lora (low rank)", full: "full (every weight)", head: "head (last layer)", bias: "bias (and last layer)",
};
const RHYTHM_WORDS = { none: "don't count", causal: "earlier ones count", offline: "earlier and later count" };
const ENDED = new Set(["done", "failed", "cancelled"]);

export class Personalize {
  #session;
  #hooks;
  #jobId = null;
  #watched = null;

  /** hooks: {onDone(result)}: a new version is there. */
  constructor(session, hooks) {
    this.#session = session;
    this.#hooks = hooks;
    byId("personalize-form").addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.#start());
    });
    byId("job-cancel").addEventListener("click", () => attempt(() => this.#cancel()));
  }

  /** Fill the choices, once the model is known. */
  drawChoices() {
    const { model } = this.#session;
    fillSelect(byId("method"), model.methods.map((name) => [name, METHOD_WORDS[name] ?? name]), model.default_method);
    fillSelect(byId("rhythm"), model.rhythms.map((name) => [name, RHYTHM_WORDS[name] ?? name]), model.default_rhythm);
    fillSelect(byId("shots"), [["", "all of them"], ["5", "first 5 per class"], [String(model.n_shots), `first ${model.n_shots} per class`]], "");
  }

  /** Another patient: show the labels so far, and take up a job that still runs. */
  async open(patient) {
    this.#watched?.abort();
    this.#jobId = null;
    this.#show(null);
    byId("job-result").hidden = true;
    if (!patient) return;
    const path = this.#session.patientPath;
    this.drawCounts(await this.#session.api.get(`${path}/labels/counts`));
    const { jobs } = await this.#session.api.get(`${path}/jobs`);
    const running = jobs.find((job) => !ENDED.has(job.state));
    if (running) this.#watch(running);
  }

  drawCounts({ n_shots: wanted, counts }) {
    const { model } = this.#session;
    byId("counts").replaceChildren(...model.classes.map((name) => make("li", {
      class: `class-${classKey(name, model)}`, text: `${counts[name] ?? 0} of ${wanted} ${name}${(counts[name] ?? 0) >= wanted ? " ✓" : ""}`,
    })));
    for (const element of document.querySelectorAll("[data-count]")) {
      element.textContent = `${counts[element.dataset.count] ?? 0} of ${wanted}`;
    }
    const missing = model.classes.filter((name) => !counts[name]);
    const few = model.classes.filter((name) => (counts[name] ?? 0) < wanted);
    byId("personalize-start").disabled = missing.length > 0 || this.#jobId !== null;
    byId("personalize-hint").textContent = missing.length
      ? `Every class needs a label first; none yet of: ${missing.join(", ")}.`
      : few.length
        ? `${wanted} per class are advised; fewer work, with less to learn from. Few so far: ${few.join(", ")}.`
        : "Enough labels of every class. Personalizing makes a new version; the old ones stay.";
  }

  async #start() {
    const shots = byId("shots").value;
    byId("personalize-start").disabled = true;
    byId("job-result").hidden = true;
    try {
      await this.#hooks.beforeStart();
      const job = await this.#session.api.post(`${this.#session.patientPath}/personalizations`, {
        method: byId("method").value, rhythm: byId("rhythm").value, n_shots: shots ? Number(shots) : null,
      });
      await this.#watch(job);
    } finally {
      byId("personalize-start").disabled = false;
    }
  }

  async #cancel() {
    if (!this.#jobId) return;
    byId("job-text").textContent = "Cancelling…";
    await this.#session.api.delete(`v1/jobs/${this.#jobId}`);
  }

  /** Look at a job until it ends. Another patient's page stops the watching, never the job. */
  async #watch(job) {
    this.#watched?.abort();
    const stop = new AbortController();
    this.#watched = stop;
    this.#jobId = job.job_id;
    byId("job-cancel").focus();
    let current = job;
    try {
      for (let wait = FIRST_LOOK_S; !ENDED.has(current.state); wait = Math.min(LATER_LOOK_S, wait * 1.5)) {
        this.#show(current);
        await pause(wait, stop.signal);
        current = await this.#session.api.get(`v1/jobs/${job.job_id}`, { signal: stop.signal });
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      throw error;
    } finally {
      if (this.#watched === stop) {
        this.#jobId = null;
        this.#show(null);
      }
    }
    await this.#finish(current);
  }

  #show(job) {
    const hadFocus = document.activeElement === byId("job-cancel");
    byId("job").hidden = !job;
    if (!job) {
      byId("personalize-start").disabled = false;
      if (hadFocus) byId("personalize-start").focus(); // hiding the button would lose the focus
      return;
    }
    byId("personalize-start").disabled = true;
    byId("job-progress").value = job.progress;
    byId("job-text").textContent = job.state === "queued" ? "Waiting for its turn" : `Training: ${Math.round(job.progress * 100)} %`;
  }

  async #finish(job) {
    const words = { done: () => doneWords(job.result), cancelled: () => "Cancelled. The detector in use is unchanged.",
      failed: () => `It failed: ${job.error?.message ?? "the server doesn't say why."}` };
    const text = words[job.state]();
    byId("job-result").textContent = text;
    byId("job-result").hidden = false;
    say(text);
    if (job.state === "done") await this.#hooks.onDone(job.result);
  }
}

function doneWords(result) {
  const { version, n_support: support, fit_seconds: seconds, support: errors, refused, reasons } = result;
  const made = `Version ${version}: trained in ${trim(seconds)} s on ${counted(support)}.`;
  const judged = ` On these ${errors.n} labels the base errs ${errors.errors_base} times, version ${version} ${errors.errors_personal} times.`;
  if (refused) return `${made}${judged} It is stored but not in use: ${reasons.join(" ")}`;
  return `${made}${judged} It is in use now.`;
}
