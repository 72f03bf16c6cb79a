/** The two lanes of predictions, before and after: which versions they show and what they say. */

import { Lane } from "./predictions.js";
import { byId, fillSelect, many } from "./words.js";

const KEPT = 6;

export function versionName(version) {
  return version === 0 ? "the base" : `version ${version}`;
}

export class Comparison {
  before = { lane: null, note: "" };
  after = { lane: null, note: "" };
  #kept = new Map();
  #detectors = { active_version: 0, detectors: [] };
  #path = null;
  #stop = new AbortController();
  #session;
  #onChange;

  constructor(session, onChange) {
    this.#session = session;
    this.#onChange = onChange;
    for (const side of ["before", "after"]) {
      byId(`${side}-version`).addEventListener("change", () => this.#show());
    }
  }

  /** The lane that is tinted behind the ECG and whose episodes are jumped to. */
  get main() {
    return this.after.lane ?? this.before.lane;
  }

  open(recordingPath) {
    this.#stop.abort();
    this.#kept.clear();
    this.#path = recordingPath;
    this.before = { lane: null, note: "" };
    this.after = { lane: null, note: "" };
    if (recordingPath) this.#show();
  }

  /** Offer the versions of a patient; the one in use is compared with the base. */
  offer(detectors) {
    this.#detectors = detectors;
    const versions = detectors.detectors.map((one) => [one.version, versionName(one.version)]);
    const active = detectors.active_version;
    const newest = detectors.detectors.at(-1)?.version ?? "";
    fillSelect(byId("before-version"), [[0, "the base"], ...versions], 0);
    fillSelect(byId("after-version"), [["", "nothing"], ...versions], active || newest);
    if (this.#path) this.#show();
  }

  /** A version of the patient's own knows its neighbours; the base is asked with the same ones, for
   * otherwise two things would differ between the lanes. */
  #rhythmOf(version) {
    const own = (one) => this.#detectors.detectors.find((d) => d.version === Number(one))?.rhythm;
    const other = ["after", "before"].map((side) => own(byId(`${side}-version`).value)).find(Boolean);
    return own(version) ?? other ?? this.#session.model.default_rhythm;
  }

  async #show() {
    this.#stop.abort();
    this.#stop = new AbortController();
    await Promise.all(["before", "after"].map((side) => this.#load(side, this.#stop.signal)));
  }

  async #load(side, signal) {
    const version = byId(`${side}-version`).value;
    const word = side === "before" ? "Before" : "After";
    byId(`${side}-name`).textContent = version === "" ? word : `${word}: ${versionName(Number(version))}`;
    if (version === "") {
      return this.#set(side, null, "No version of this patient's own yet: label, then personalize.");
    }
    this.#set(side, null, "Judging the recording…");
    try {
      const lane = await this.#lane(version, this.#rhythmOf(version), signal);
      return signal.aborted ? undefined : this.#set(side, lane, "");
    } catch (error) {
      return error.name === "AbortError" ? undefined : this.#set(side, null, `Can't be shown: ${error.message}`);
    }
  }

  #set(side, lane, note) {
    this[side] = { lane, note };
    for (const element of document.querySelectorAll(".compare-only")) {
      element.disabled = !(this.before.lane && this.after.lane);
    }
    this.#onChange();
  }

  async #lane(version, rhythm, signal) {
    const key = `${version}/${rhythm}`;
    const known = this.#kept.get(key);
    if (known) return known;
    const answer = await this.#session.api.get(`${this.#path}/predictions`, { query: { version, rhythm }, signal });
    const lane = new Lane(answer, this.#session.model.positive);
    this.#kept.set(key, lane);
    while (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
    return lane;
  }

  /** Say what both lanes found, and where they differ; `labels` is the LabelBook. */
  words(labels) {
    const { positive } = this.#session.model;
    const word = this.#session.word;
    const told = (lane) => `${many(lane.episodes.length, "episode")} of ${positive}, ${many(lane.nPositive, word)}`;
    const lines = [];
    if (this.before.lane) lines.push(`Before: ${told(this.before.lane)}.`);
    if (this.after.lane) lines.push(`After: ${told(this.after.lane)}.`);
    if (this.before.lane && this.after.lane) {
      lines.push(`They differ on ${many(this.after.lane.changes(this.before.lane), word)}.`);
      const labelled = labels.indices();
      const wrong = [this.before.lane, this.after.lane].map((lane) => nWrong(lane, labels, labelled));
      if (labelled.length) lines.push(`Against your ${many(labelled.length, "label")} here: ${wrong[0]} wrong before, ${wrong[1]} after.`);
    }
    return lines.join(" ");
  }
}

function nWrong(lane, labels, indices) {
  return indices.filter((index) => {
    const place = lane.placeOf(index);
    return place >= 0 && lane.classes[lane.label[place]] !== labels.get(index);
  }).length;
}
