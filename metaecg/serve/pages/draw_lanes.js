/** Draw the lanes below the ECG: what a person said, and what two versions of the detector say. */

import { classColours, colours, hatch, prepared } from "./colours.js";

const LEAST_BOX_PX = 5; // narrower segments are drawn as columns of pixels
const LEAST_NUMBER_PX = 30;
const LEAST_NAME_PX = 58;

function markColumns(pen, view, marked, height) {
  if (!marked) return;
  const x = view.xOf(marked.start_s);
  pen.strokeStyle = colours.cursor;
  pen.lineWidth = 2;
  pen.strokeRect(x, -2, Math.max(3, view.xOf(marked.stop_s) - x), height + 4);
}

/** scene: {view, segments, labelOf(index), marked, proposed: Set of indices, model}. */
export function drawLabels(canvas, scene) {
  const { pen, width, height } = prepared(canvas);
  const { view, model } = scene;
  pen.fillStyle = colours.paper;
  pen.fillRect(0, 0, width, height);
  for (const segment of scene.segments) {
    const x = view.xOf(segment.start_s);
    const wide = view.xOf(segment.stop_s) - x;
    pen.fillStyle = colours.line;
    if (wide >= LEAST_BOX_PX) pen.fillRect(Math.round(x), height - 6, 1, 6);
    const label = scene.labelOf(segment.index);
    if (label) drawLabel(pen, label, x, wide, height, model);
    else if (scene.proposed.has(segment.index)) drawQuestion(pen, x, wide, height);
  }
  markColumns(pen, view, scene.marked, height);
}

function drawLabel(pen, label, x, wide, height, model) {
  const { line, soft, ink } = classColours(label, model);
  const left = x + Math.min(1, wide / 8);
  const size = Math.max(2, wide - Math.min(2, wide / 4));
  pen.fillStyle = wide < LEAST_BOX_PX ? line : soft;
  pen.fillRect(left, 2, size, height - 4);
  if (wide < LEAST_BOX_PX) return;
  if (label === model.positive) {
    pen.fillStyle = hatch(pen, line);
    pen.fillRect(left, height - 8, size, 6);
  }
  pen.strokeStyle = line;
  pen.lineWidth = 1.5;
  pen.strokeRect(left, 2, size, height - 4);
  if (wide > 12) boxText(pen, fitting(pen, label, wide), x + wide / 2, height / 2, ink, soft);
}

/** A name that doesn't fit is cut to its first letter, never squeezed. */
function fitting(pen, text, wide) {
  return pen.measureText(text).width + 8 <= wide ? text : text[0];
}

function boxText(pen, text, x, y, ink, back) {
  pen.textAlign = "center";
  pen.font = `600 ${pen.font.replace(/^600 /, "")}`;
  const half = pen.measureText(text).width / 2 + 3;
  pen.fillStyle = back; // behind the letters, so that no hatching runs through them
  pen.fillRect(x - half, y - 7, 2 * half, 14);
  pen.fillStyle = ink;
  pen.fillText(text, x, y + 0.5);
  pen.font = pen.font.replace(/^600 /, "");
}

function drawQuestion(pen, x, wide, height) {
  pen.strokeStyle = colours.accent;
  pen.lineWidth = 1.5;
  pen.setLineDash([4, 3]);
  pen.strokeRect(x + 2, 3, Math.max(2, wide - 4), height - 6);
  pen.setLineDash([]);
  if (wide < 12) return;
  pen.fillStyle = colours.accent;
  pen.textAlign = "center";
  pen.fillText("?", x + wide / 2, height / 2);
}

/** scene: {view, lane, note, marked, model}; without a lane the note says why. */
export function drawLane(canvas, scene) {
  const { pen, width, height } = prepared(canvas);
  const { view, lane } = scene;
  pen.fillStyle = colours.paper;
  pen.fillRect(0, 0, width, height);
  if (!lane) {
    pen.fillStyle = colours.soft;
    pen.textAlign = "left";
    pen.fillText(scene.note, 10, height / 2);
    return;
  }
  const [first, last] = lane.range(view.startS, view.stopS);
  const meanWidth = last > first ? (lane.stopS[first] - lane.startS[first]) * view.scale : 0;
  const isNear = meanWidth >= LEAST_BOX_PX;
  if (isNear) drawBoxes(pen, scene, first, last, height);
  else drawColumns(pen, scene, first, last, width, height);
  drawThreshold(pen, lane.threshold, width, height);
  if (isNear) drawNumbers(pen, scene, first, last, height);
  markColumns(pen, view, scene.marked, height);
}

function drawThreshold(pen, threshold, width, height) {
  const y = Math.round(height * (1 - threshold)) + 0.5;
  pen.strokeStyle = colours.axis;
  pen.lineWidth = 1;
  pen.setLineDash([3, 4]);
  pen.beginPath();
  pen.moveTo(0, y);
  pen.lineTo(width, y);
  pen.stroke();
  pen.setLineDash([]);
}

function drawBoxes(pen, { view, lane, model }, first, last, height) {
  for (let place = first; place < last; place += 1) {
    const x = view.xOf(lane.startS[place]);
    const wide = view.xOf(lane.stopS[place]) - x;
    const { line, soft } = classColours(lane.classes[lane.label[place]], model);
    const tall = height * lane.probability[place];
    const [left, size] = [x + 1, Math.max(2, wide - 2)];
    pen.fillStyle = soft;
    pen.fillRect(left, 0, size, height);
    if (lane.isPositive(place)) {
      pen.fillStyle = hatch(pen, line);
      pen.fillRect(left, height - tall, size, tall);
    }
    pen.fillStyle = line;
    pen.fillRect(left, Math.min(height - 2, height - tall), size, 2);
  }
}

function drawNumbers(pen, { view, lane, model }, first, last, height) {
  for (let place = first; place < last; place += 1) {
    const x = view.xOf(lane.startS[place]);
    const wide = view.xOf(lane.stopS[place]) - x;
    if (wide < LEAST_NUMBER_PX) continue;
    const name = lane.classes[lane.label[place]];
    const { soft, ink } = classColours(name, model);
    const number = lane.probability[place].toFixed(2);
    const text = wide >= LEAST_NAME_PX ? `${name} ${number}` : number;
    boxText(pen, pen.measureText(text).width + 10 < wide ? text : number, x + wide / 2, height / 2, ink, soft);
  }
}

/** Far out: per pixel the mean probability, and whether anything in it is called positive. A single
 * positive segment of a day is still a hatched line from top to bottom. */
function drawColumns(pen, { view, lane }, first, last, width, height) {
  const sum = new Float32Array(Math.ceil(width) + 1);
  const count = new Uint16Array(sum.length);
  const isPositive = new Uint8Array(sum.length);
  for (let place = first; place < last; place += 1) {
    const from = Math.max(0, Math.floor(view.xOf(lane.startS[place])));
    const to = Math.min(sum.length - 1, Math.max(from, Math.ceil(view.xOf(lane.stopS[place])) - 1));
    for (let x = from; x <= to; x += 1) {
      sum[x] += lane.probability[place];
      count[x] += 1;
      isPositive[x] |= lane.isPositive(place) ? 1 : 0;
    }
  }
  for (let x = 0; x < sum.length; x += 1) {
    if (!count[x]) continue;
    const tall = (height * sum[x]) / count[x];
    if (isPositive[x]) {
      pen.fillStyle = colours["positive-soft"];
      pen.fillRect(x, 0, 1, height);
      pen.fillStyle = hatch(pen, colours.positive);
      pen.fillRect(x, 0, 1, height);
    }
    pen.fillStyle = isPositive[x] ? colours.positive : colours["trace-far"];
    pen.fillRect(x, height - tall, 1, tall);
  }
}
