/** The open recording: what is on screen, where the cursor stands, and what keys and buttons do. */

import { classKey } from "./colours.js";
import { Comparison } from "./compare.js";
import { Cursor } from "./cursor.js";
import { drawLabels, drawLane } from "./draw_lanes.js";
import { drawSignal, scaleWords } from "./draw_signal.js";
import { actionOf, classKeys } from "./keys.js";
import { LabelBook } from "./labels.js";
import { attempt, complain, say, settle } from "./messages.js";
import { Overview } from "./overview.js";
import { watchPointer } from "./pointer.js";
import { Segments } from "./segments.js";
import { SignalTiles } from "./tiles.js";
import { View } from "./view.js";
import { byId, capital, clock, make, many, secondsOf } from "./words.js";

const MOST_SEGMENTS_S = 1200; // further out single segments are too narrow to be drawn
const SCREEN = 0.9;

/** Pixels of the screen per pixel of the page; beyond two nobody sees the difference. */
const finePixels = () => Math.min(2, window.devicePixelRatio || 1);

export class Reader {
  view = new View(() => this.paint());
  overview = new Overview(this.view);
  comparison;
  proposals = null; // main.js puts it in: the two need each other
  labels = null;
  #session;
  #hooks;
  #tiles = null;
  #segments = null;
  #cursor = null;
  #gain = 10;
  #frame = 0;
  #stop = new AbortController();

  /** hooks: {onCounts(counts), onHelp()}. */
  constructor(session, hooks) {
    this.#session = session;
    this.#hooks = hooks;
    this.comparison = new Comparison(session, () => this.#lanesChanged());
    const strip = byId("strip");
    watchPointer(strip, this.view, {
      onPress: (seconds, extend) => this.#move({ seconds, extend }, { isShown: true }),
      onRun: (seconds) => this.#move({ seconds, extend: true }, { isShown: true }),
    });
    byId("reader").addEventListener("keydown", (event) => this.#key(event));
    for (const button of document.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.act(button.dataset.do));
    }
    byId("gain").addEventListener("change", (event) => {
      this.#gain = Number(event.target.value);
      this.paint();
    });
    byId("go-form").addEventListener("submit", (event) => this.#goToTyped(event));
    new ResizeObserver(() => this.view.resize(byId("signal-canvas").clientWidth)).observe(byId("signal-canvas"));
    new ResizeObserver(() => this.paint()).observe(strip);
  }

  /** Draw the buttons of the model's classes, once it is known. */
  drawClassButtons() {
    const { model } = this.#session;
    const buttons = classKeys(model.classes).map(({ name, digit, letter }) => make("button", {
      type: "button", "data-label": name, class: `class-${classKey(name, model)}`, "aria-pressed": "false",
      text: `${name} (${letter ? `${digit}, ${letter.toUpperCase()}` : digit})`, onClick: () => this.#label(name),
    }, make("small", { "data-count": name })));
    const other = (text, name) => make("button", { type: "button", text, onClick: () => this.act(name) });
    byId("class-buttons").replaceChildren(...buttons, other("Unset (Del)", "unset"), other("Undo (U)", "undo"));
  }

  /** Open a recording of the session's patient. */
  async open(recording) {
    this.close();
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    const { api } = this.#session;
    const path = this.#session.recordingPath;
    const fetchSpan = (query, stop) => api.get(`${path}/signal`, { query, signal: stop });
    const durationS = recording.duration_s;
    this.#tiles = new SignalTiles(fetchSpan, {
      fsHz: recording.fs_hz, durationS, onLoaded: (error) => this.#tileLoaded(error),
    });
    this.#segments = new Segments((query, stop) => api.get(`${path}/segments`, { query, signal: stop }), {
      durationS, onLoaded: () => this.paint(),
    });
    this.#cursor = new Cursor(this.#segments);
    this.labels = this.#newLabels(api, path);
    this.view.resize(byId("signal-canvas").clientWidth);
    this.view.open(durationS);
    this.comparison.open(path);
    this.proposals.open(path);
    await Promise.all([
      attempt(() => this.overview.open(fetchSpan, durationS, signal)),
      attempt(() => this.labels.load()),
      this.#move({ seconds: 0 }),
    ]);
    this.paint();
  }

  close() {
    this.#stop.abort();
    this.#tiles?.close();
    this.#segments?.close();
    this.comparison.open(null);
    this.#tiles = this.#segments = this.#cursor = null;
  }

  #newLabels(api, path) {
    const labels = new LabelBook(api, path, {
      onChange: () => labels === this.labels && this.#lanesChanged(),
      onCounts: (counts) => this.#hooks.onCounts(counts, path),
      onSaved: (left) => {
        byId("saved-line").textContent = left ? `Saving ${many(left, "label")}…` : "All labels are saved.";
      },
      onRefused: (error) => complain(`The last labels were not saved: ${error.message}`, "labels"),
    });
    return labels;
  }

  #tileLoaded(error) {
    if (error) complain(`A part of the signal can't be shown: ${error.message}`, "signal");
    else settle("signal");
    this.paint();
  }

  // ---- what keys and buttons do ----

  #key(event) {
    const action = this.#cursor && actionOf(event, this.#session.model.classes);
    if (!action) return;
    event.preventDefault();
    if (action.label) this.#label(action.label);
    else this.act(action.name, action.extend);
  }

  act(name, extend = false) {
    const screen = SCREEN * this.view.spanS;
    const actions = {
      previous: () => this.#move({ steps: -1, extend }),
      next: () => this.#move({ steps: 1, extend }),
      "screen-back": () => this.#turn(-screen),
      "screen-on": () => this.#turn(screen),
      first: () => this.#move({ seconds: 0, extend }),
      last: () => this.#move({ seconds: this.view.durationS, extend }),
      "zoom-in": () => this.view.zoom(2, this.#zoomX()),
      "zoom-out": () => this.view.zoom(0.5, this.#zoomX()),
      paper: () => this.view.setSpeed(25, this.#cursor.head?.start_s),
      whole: () => this.view.showAll(),
      collapse: () => {
        this.#cursor.collapse();
        this.#describe();
      },
      unset: () => this.#label(null),
      undo: () => this.#history("undo"),
      redo: () => this.#history("redo"),
      "next-proposal": () => this.proposals.go(1),
      "previous-proposal": () => this.proposals.go(-1),
      "next-episode": () => this.#episode(1),
      "previous-episode": () => this.#episode(-1),
      "next-difference": () => this.#difference(1),
      "previous-difference": () => this.#difference(-1),
      help: () => this.#hooks.onHelp(),
    };
    if (this.#cursor) attempt(actions[name]);
  }

  /** Zoom around the cursor while it is in sight: what one looks at stays on screen. */
  #zoomX() {
    const head = this.#cursor.head;
    const x = head ? this.view.xOf((head.start_s + head.stop_s) / 2) : -1;
    return x >= 0 && x <= this.view.width ? x : this.view.width / 2;
  }

  async #move(where, { isShown = false } = {}) {
    const cursor = this.#cursor;
    if (!(await attempt(() => cursor.move(where))) || cursor !== this.#cursor) return;
    if (!isShown) this.view.reveal(cursor.head.start_s, cursor.head.stop_s);
    this.#describe();
  }

  /** Turn the page, and take the cursor along. */
  #turn(seconds) {
    this.view.moveBy(seconds);
    return this.#move({ seconds: this.view.startS + this.view.spanS / 2 }, { isShown: true });
  }

  /** Put the cursor on a segment that is known, and bring it to the middle. */
  goTo(segment) {
    this.#cursor.put({ index: segment.index, start_s: segment.start_s, stop_s: segment.stop_s });
    if (this.view.spanS > MOST_SEGMENTS_S) this.view.setSpeed(25, segment.start_s);
    else this.view.centre((segment.start_s + segment.stop_s) / 2);
    this.#describe();
  }

  async #label(name) {
    const indices = await this.#cursor.indices();
    if (!indices.length) return;
    const wasProposed = this.proposals.indices.has(indices[0]) && indices.length === 1;
    this.labels.set(indices, name);
    const { word } = this.#session;
    const what = indices.length === 1 ? `${word} ${indices[0]}` : many(indices.length, word);
    say(name === null ? `Label of ${what} taken away.` : `${capital(what)} labelled ${name}.`);
    this.proposals.draw();
    if (name !== null && wasProposed && this.proposals.isMovingOn && this.proposals.hasOpen) await this.proposals.go(1);
    this.#describe();
  }

  #history(direction) {
    const indices = this.labels[direction]();
    if (!indices.length) return say(direction === "undo" ? "Nothing to undo." : "Nothing to do again.");
    const label = this.labels.get(indices[0]);
    const what = indices.length === 1 ? `${this.#session.word} ${indices[0]}` : many(indices.length, this.#session.word);
    say(`${direction === "undo" ? "Undone" : "Done again"}: ${what} ${label ? `is ${label}` : "has no label"}.`);
    this.proposals.draw();
    const place = this.comparison.before.lane?.placeOf(indices[0]) ?? -1;
    if (place >= 0) this.goTo(this.comparison.before.lane.segment(place));
    else this.#describe();
    return undefined;
  }

  async #episode(direction) {
    const lane = this.comparison.main;
    if (!lane) return say("The recording has not been judged yet.");
    const from = this.#cursor.head?.start_s ?? -1;
    const found = lane.episode(from, direction);
    if (!found) return say(`No episode of ${this.#session.model.positive} ${direction > 0 ? "after" : "before"} the cursor.`);
    const segment = await this.#segments.at(found.start_s + 1e-3);
    this.goTo(segment);
    const n = lane.episodes.indexOf(found) + 1;
    return say(`Episode ${n} of ${lane.episodes.length}: ${clock(found.start_s, 1)} to ${clock(found.stop_s, 1)}, ${many(found.n_segments, this.#session.word)}, up to ${found.peak_probability.toFixed(2)}.`);
  }

  #difference(direction) {
    const { before, after } = this.comparison;
    if (!before.lane || !after.lane) return say("Two versions are needed for that: personalize first.");
    const place = after.lane.change(before.lane, this.#cursor.head?.index ?? -1, direction);
    if (place < 0) return say(`No difference ${direction > 0 ? "after" : "before"} the cursor.`);
    return this.goTo(after.lane.segment(place));
  }

  async #goToTyped(event) {
    event.preventDefault();
    const seconds = secondsOf(byId("go-time").value);
    if (seconds === null || seconds > this.view.durationS) {
      complain(`"${byId("go-time").value}" is no time of this recording. Write h:mm:ss, up to ${clock(this.view.durationS)}.`);
      return;
    }
    settle("action");
    this.view.centre(seconds);
    await this.#move({ seconds }, { isShown: true });
    byId("strip").focus();
  }

  // ---- what is shown ----

  #lanesChanged() {
    if (this.labels) byId("compare-line").textContent = this.comparison.words(this.labels);
    if (this.#cursor?.head) this.#describe();
    else this.paint();
  }

  /** Say in words where the cursor stands: the canvases mean nothing to a screen reader. */
  #describe() {
    this.paint();
    const { word, model } = this.#session;
    const head = this.#cursor?.head;
    if (!head) return;
    const label = this.labels.get(head.index);
    const marked = this.#cursor.marked;
    const parts = [`${word} ${head.index}, ${clock(head.start_s, 1)} to ${clock(head.stop_s, 1)}.`];
    if (this.#cursor.isRange) parts.push(`Marked: ${clock(marked.start_s, 1)} to ${clock(marked.stop_s, 1)}.`);
    parts.push(label ? `Label: ${label}.` : "No label.");
    for (const [name, side] of [["Before", this.comparison.before], ["After", this.comparison.after]]) {
      const place = side.lane?.placeOf(head.index) ?? -1;
      if (place >= 0) parts.push(`${name}: ${side.lane.classes[side.lane.label[place]]}, ${model.positive} ${side.lane.probability[place].toFixed(2)}.`);
    }
    const reason = this.proposals.reasonOf(head.index);
    if (reason) parts.push(`Proposed: ${reason}.`);
    byId("cursor-line").textContent = capital(parts.join(" "));
    for (const button of document.querySelectorAll("[data-label]")) {
      button.setAttribute("aria-pressed", String(button.dataset.label === label));
    }
  }

  /** Draw in the next frame, once, however often it is asked for. */
  paint() {
    if (!this.#frame) {
      this.#frame = requestAnimationFrame(() => {
        this.#frame = 0;
        if (this.#tiles) this.#draw();
      });
    }
  }

  #draw() {
    const { view } = this;
    const { model } = this.#session;
    const marked = this.#cursor.marked;
    const isNear = view.spanS <= MOST_SEGMENTS_S;
    const segments = isNear ? this.#segments.between(view.startS, view.stopS) : this.#labelledFar();
    const labelOf = (index) => this.labels.get(index);
    const grid = drawSignal(byId("signal-canvas"), {
      view, marked, tiles: this.#tiles.between(view.startS, view.stopS, view.scale * finePixels()), gain: this.#gain,
      middleMv: this.overview.middleMv, lane: this.comparison.main,
    });
    drawLabels(byId("label-canvas"), { view, segments, labelOf, marked, proposed: this.proposals.indices, model });
    drawLane(byId("before-canvas"), { view, ...this.comparison.before, marked, model });
    drawLane(byId("after-canvas"), { view, ...this.comparison.after, marked, model });
    this.overview.draw({ lane: this.comparison.main, labelled: this.#flags(), marked });
    byId("scale-line").textContent = scaleWords(view, this.#gain, grid);
  }

  /** Far out only what has a label is worth drawing, and a lane knows where it stands. */
  #labelledFar() {
    const lane = this.comparison.before.lane ?? this.comparison.after.lane;
    if (!lane) return [];
    return this.labels.indices().map((index) => lane.placeOf(index)).filter((place) => place >= 0).map((place) => lane.segment(place));
  }

  #flags() {
    const { positive } = this.#session.model;
    return this.#labelledFar().map(({ index, start_s }) => ({ start_s, isPositive: this.labels.get(index) === positive }));
  }
}
