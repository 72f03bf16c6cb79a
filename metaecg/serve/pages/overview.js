/** The whole recording in one line: its envelope, what is positive, what is labelled, and the view. */

import { colours, prepared } from "./colours.js";
import { MAX_POINTS } from "./tiles.js";
import { byId, clock } from "./words.js";

const BAND = 10;

export class Overview {
  envelope = null;
  #canvas = byId("overview");
  #view;
  #grip = null;

  constructor(view) {
    this.#view = view;
    this.#canvas.addEventListener("pointerdown", (event) => this.#grab(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.#canvas.addEventListener(end, () => {
        this.#grip = null;
      });
    }
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Load the envelope of the whole recording: one request, whatever its length. */
  async open(fetchSpan, durationS, signal) {
    this.envelope = null;
    this.#canvas.setAttribute("aria-valuemax", durationS.toFixed(1));
    const answer = await fetchSpan({ start_s: 0, stop_s: durationS, max_points: MAX_POINTS }, signal);
    const low = answer.minimum_mv ?? answer.value_mv;
    const high = answer.maximum_mv ?? answer.value_mv;
    const middle = quantile(low.flatMap((v, n) => (v === null ? [] : [(v + high[n]) / 2])), 0.5) ?? 0;
    const reach = low.flatMap((v, n) => (v === null ? [] : [Math.max(high[n] - middle, middle - v)]));
    // Artefacts of some volts would flatten all else, so the largest two per cent are cut off.
    const most = Math.max(0.5, quantile(reach, 0.98) ?? 1);
    this.envelope = { time: answer.time_s, low, high, middle, most };
  }

  /** The middle of the recording's values in mV: where the strip puts its middle. */
  get middleMv() {
    return this.envelope?.middle ?? 0;
  }

  #secondsAt(event) {
    const box = this.#canvas.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * this.#view.durationS;
  }

  /** Hold the view where it was grabbed; a press beside it brings it there first. */
  #grab(event) {
    const seconds = this.#secondsAt(event);
    this.#canvas.setPointerCapture(event.pointerId);
    const { startS, stopS, spanS } = this.#view;
    this.#grip = seconds >= startS && seconds <= stopS ? seconds - startS : spanS / 2;
    this.#drag(event);
  }

  #drag(event) {
    if (this.#grip !== null) this.#view.moveTo(this.#secondsAt(event) - this.#grip);
  }

  #key(event) {
    const step = { ArrowLeft: -0.25, ArrowRight: 0.25, PageUp: -1, PageDown: 1, ArrowDown: -0.25, ArrowUp: 0.25 }[event.key];
    if (step) this.#view.moveBy(step * this.#view.spanS);
    else if (event.key === "Home") this.#view.moveTo(0);
    else if (event.key === "End") this.#view.moveTo(this.#view.durationS);
    else return;
    event.preventDefault();
    event.stopPropagation(); // the strip around it has other plans for arrows
  }

  /** scene: {lane, labelled: [{start_s, isPositive}], marked}. */
  draw({ lane, labelled, marked }) {
    const { pen, width, height } = prepared(this.#canvas);
    const scale = width / this.#view.durationS;
    pen.fillStyle = colours.paper;
    pen.fillRect(0, 0, width, height);
    this.#drawEnvelope(pen, scale, height);
    if (lane) drawPositives(pen, lane, scale, height);
    for (const { start_s, isPositive } of labelled) drawFlag(pen, start_s * scale, isPositive);
    this.#drawView(pen, scale, height, width);
    if (marked) {
      pen.fillStyle = colours.cursor;
      pen.fillRect(marked.start_s * scale - 1, 0, 2, height);
    }
    this.#describe();
  }

  #drawEnvelope(pen, scale, height) {
    if (!this.envelope) return;
    const { time, low, high, middle, most } = this.envelope;
    const room = (height - 2 * BAND) / 2;
    const yOf = (mv) => BAND + room - Math.max(-1, Math.min(1, (mv - middle) / most)) * room;
    pen.beginPath();
    for (let n = 0; n < time.length; n += 1) {
      if (low[n] === null) continue;
      const x = time[n] * scale;
      pen.moveTo(x, yOf(low[n]) + 0.5);
      pen.lineTo(x, yOf(high[n]) - 0.5);
    }
    pen.strokeStyle = colours["trace-far"];
    pen.lineWidth = 1;
    pen.stroke();
  }

  #drawView(pen, scale, height, width) {
    const { startS, spanS } = this.#view;
    const x = startS * scale;
    const wide = Math.max(6, Math.min(spanS * scale, width - x));
    pen.globalAlpha = 0.16;
    pen.fillStyle = colours.accent;
    pen.fillRect(x, 0, wide, height);
    pen.globalAlpha = 1;
    pen.strokeStyle = colours.accent;
    pen.lineWidth = 2;
    pen.strokeRect(Math.max(1, Math.min(x, width - wide - 1)), 1, Math.min(wide, width - 2), height - 2);
  }

  #describe() {
    const { startS, stopS, durationS } = this.#view;
    const text = `${clock(startS)} to ${clock(Math.min(stopS, durationS))} of ${clock(durationS)}`;
    this.#canvas.setAttribute("aria-valuenow", startS.toFixed(1));
    this.#canvas.setAttribute("aria-valuetext", text);
  }
}

/** Return the value below which a share of the values lies; undefined of none. */
function quantile(values, share) {
  return [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) * share)];
}

function drawPositives(pen, lane, scale, height) {
  pen.fillStyle = colours.positive;
  for (const { start_s, stop_s } of lane.episodes) {
    pen.fillRect(start_s * scale, height - BAND + 1, Math.max(1.5, (stop_s - start_s) * scale), BAND - 2);
  }
}

/** Labels hang from the upper edge: a filled triangle for the positive class, a hollow one for others. */
function drawFlag(pen, x, isPositive) {
  pen.beginPath();
  pen.moveTo(x - 4, 1);
  pen.lineTo(x + 4, 1);
  pen.lineTo(x, BAND);
  pen.closePath();
  pen.lineWidth = 1.2;
  pen.strokeStyle = isPositive ? colours.positive : colours["class-0"];
  pen.fillStyle = isPositive ? colours.positive : colours.paper;
  pen.fill();
  pen.stroke();
}
