/** Draw the ECG paper, the spans called positive, the cursor and the signal. */

import { colours, hatch, prepared } from "./colours.js";
import { DOTS_PER_MM } from "./view.js";
import { clock, span, trim } from "./words.js";

const AXIS_HEIGHT = 20;
const BAND_HEIGHT = 9;
// Fine and strong lines, seconds. The first pair is ECG paper: 1 mm and 5 mm at 25 mm/s.
const GRIDS = [[0.04, 0.2], [0.2, 1], [1, 5], [10, 60], [60, 300], [300, 3600], [3600, 21600], [21600, 86400]];
const TICKS = [0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
const LEAST_FINE_PX = 3;
const LEAST_TICK_PX = 84;
const LEAST_WORDS_PX = 100;
const LEAST_NEAR_SCALE = 24; // pixels per second; further out beats run into a band

/** scene: {view, tiles, gain, middleMv, lane, marked: {start_s, stop_s} | null}. */
export function drawSignal(canvas, scene) {
  const { pen, width, height } = prepared(canvas);
  const area = { top: AXIS_HEIGHT, height: height - AXIS_HEIGHT, width };
  pen.fillStyle = colours["ecg-paper"];
  pen.fillRect(0, 0, width, height);
  const grid = gridFor(scene.view.scale);
  drawGrid(pen, scene, area, grid);
  if (scene.lane) drawSpans(pen, scene, area);
  drawMarked(pen, scene, area);
  const milli = scene.gain * DOTS_PER_MM;
  const yOf = (mv) => area.top + area.height / 2 - (mv - scene.middleMv) * milli;
  for (const tile of scene.tiles) drawTile(pen, scene.view, tile, yOf, area);
  drawAxis(pen, scene.view, width);
  return grid;
}

/** Return [fine, strong] lines in seconds that are far enough apart to be seen. */
export function gridFor(scale) {
  return GRIDS.find(([fine]) => fine * scale >= LEAST_FINE_PX) ?? GRIDS.at(-1);
}

/** Say in words what a square of the grid is and how large the signal is drawn. */
export function scaleWords(view, gain, [fine, strong]) {
  const speed = view.speedMmS >= 1 ? `${trim(view.speedMmS, 1)} mm/s` : `${span(view.spanS)} on screen`;
  const isPaper = fine === 0.04;
  const boxes = isPaper
    ? `a small square is ${trim(fine)} s by ${trim(1 / gain)} mV, a large one ${trim(strong)} s by ${trim(5 / gain)} mV`
    : `a thin line every ${span(fine)} and a strong one every ${span(strong)}; a line across every ${trim(5 / gain)} mV`;
  return `${speed}, ${trim(gain)} mm/mV: ${boxes}.`;
}

function drawGrid(pen, { view, gain, middleMv }, area, [fine, strong]) {
  const bottom = area.top + area.height;
  const isPaper = fine === 0.04;
  for (const [step, colour] of [[fine, colours["grid-fine"]], [strong, colours["grid-strong"]]]) {
    pen.beginPath();
    for (let n = Math.ceil(view.startS / step); n * step <= view.stopS; n += 1) {
      const x = Math.round(view.xOf(n * step)) + 0.5;
      pen.moveTo(x, area.top);
      pen.lineTo(x, bottom);
    }
    // Up and down the paper stays what it is: 1 mm and 5 mm, whatever the zoom in time.
    const mm = step === fine ? 1 : 5;
    if (isPaper || mm === 5) {
      const size = mm * DOTS_PER_MM;
      const zero = area.top + area.height / 2 + middleMv * gain * DOTS_PER_MM;
      const first = Math.ceil((area.top - zero) / size);
      for (let n = first; zero + n * size <= bottom; n += 1) {
        const y = Math.round(zero + n * size) + 0.5;
        pen.moveTo(0, y);
        pen.lineTo(area.width, y);
      }
    }
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.stroke();
  }
}

/** Tint what the detector calls positive, with a hatched band on top: colour is not the only sign. */
function drawSpans(pen, { view, lane }, area) {
  for (const [from, to] of positiveSpans(lane, view)) {
    const x = view.xOf(from);
    const wide = Math.max(1.5, view.xOf(to) - x);
    pen.globalAlpha = 0.55;
    pen.fillStyle = colours["positive-soft"];
    pen.fillRect(x, area.top, wide, area.height);
    pen.globalAlpha = 1;
    pen.fillStyle = colours["positive-soft"];
    pen.fillRect(x, area.top, wide, BAND_HEIGHT);
    pen.fillStyle = hatch(pen, colours.positive);
    pen.fillRect(x, area.top, wide, BAND_HEIGHT);
  }
}

/** Return [start, stop] of the runs of positive segments on screen, joined where they are one pixel apart. */
export function positiveSpans(lane, view, startS = view.startS, stopS = view.stopS) {
  const [first, last] = lane.range(startS, stopS);
  const spans = [];
  for (let place = first; place < last; place += 1) {
    if (!lane.isPositive(place)) continue;
    const open = spans.at(-1);
    if (open && (lane.startS[place] - open[1]) * view.scale < 1) open[1] = lane.stopS[place];
    else spans.push([lane.startS[place], lane.stopS[place]]);
  }
  return spans;
}

function drawMarked(pen, { view, marked }, area) {
  if (!marked) return;
  const x = view.xOf(marked.start_s);
  const wide = Math.max(3, view.xOf(marked.stop_s) - x);
  pen.globalAlpha = 0.14;
  pen.fillStyle = colours.cursor;
  pen.fillRect(x, area.top, wide, area.height);
  pen.globalAlpha = 1;
  pen.strokeStyle = colours.cursor;
  pen.lineWidth = 2;
  pen.strokeRect(x, area.top + 1, wide, area.height - 2);
}

function drawTile(pen, view, tile, yOf, area) {
  const { offsets, low, high, startS, isEnvelope } = tile;
  pen.save();
  pen.beginPath();
  pen.rect(0, area.top, area.width, area.height);
  pen.clip();
  drawGaps(pen, view, tile, area);
  pen.beginPath();
  const from = firstAt(offsets, view.startS - startS);
  const to = Math.min(offsets.length, firstAt(offsets, view.stopS - startS) + 2);
  let isOpen = false;
  for (let n = Math.max(0, from - 1); n < to; n += 1) {
    if (Number.isNaN(low[n])) {
      isOpen = false;
      continue;
    }
    const x = view.xOf(startS + offsets[n]);
    if (isOpen) pen.lineTo(x, yOf(low[n]));
    else pen.moveTo(x, yOf(low[n]));
    if (isEnvelope) pen.lineTo(x, yOf(high[n]));
    isOpen = true;
  }
  const isNear = view.scale >= LEAST_NEAR_SCALE;
  pen.strokeStyle = isNear ? colours.trace : colours["trace-far"];
  pen.lineWidth = isNear ? 1.3 : 1;
  pen.lineJoin = "round";
  pen.stroke();
  pen.restore();
}

/** Shade what was not measured, so that a gap isn't taken for a flat line. */
function drawGaps(pen, view, { offsets, low, startS }, area) {
  pen.fillStyle = colours.gap;
  for (let n = 0; n < offsets.length; n += 1) {
    if (!Number.isNaN(low[n])) continue;
    const from = n;
    while (n + 1 < offsets.length && Number.isNaN(low[n + 1])) n += 1;
    const x = view.xOf(startS + offsets[from]);
    const stop = view.xOf(startS + offsets[Math.min(n + 1, offsets.length - 1)]);
    if (stop < 0 || x > area.width) continue;
    pen.fillRect(x, area.top, stop - x, area.height);
    const [left, right] = [Math.max(0, x), Math.min(area.width, stop)];
    if (right - left < LEAST_WORDS_PX) continue;
    pen.fillStyle = colours.soft;
    pen.textAlign = "center";
    pen.fillText("not measured", (left + right) / 2, area.top + area.height / 2);
    pen.fillStyle = colours.gap;
  }
}

function firstAt(offsets, value) {
  let low = 0;
  let high = offsets.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (offsets[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function drawAxis(pen, view, width) {
  const step = TICKS.find((one) => one * view.scale >= LEAST_TICK_PX) ?? TICKS.at(-1);
  pen.fillStyle = colours.raised;
  pen.fillRect(0, 0, width, AXIS_HEIGHT);
  pen.fillStyle = colours.axis;
  pen.strokeStyle = colours.axis;
  pen.textAlign = "left";
  pen.beginPath();
  for (let n = Math.ceil(view.startS / step); n * step <= view.stopS; n += 1) {
    const x = Math.round(view.xOf(n * step)) + 0.5;
    pen.moveTo(x, 0);
    pen.lineTo(x, AXIS_HEIGHT);
    pen.fillText(clock(n * step, step < 1 ? 1 : 0), x + 4, AXIS_HEIGHT / 2);
  }
  pen.lineWidth = 1;
  pen.stroke();
}
