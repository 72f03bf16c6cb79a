/** Colours and hatching for the canvases, read from theme.css, so that each stands in one place. */

const NAMES = ["paper", "raised", "ink", "soft", "line", "accent", "chosen", "ecg-paper", "grid-fine", "grid-strong",
  "trace", "trace-far", "gap", "axis", "cursor", "mark", "positive", "positive-soft", "on-positive-soft",
  ...[0, 1, 2, 3].flatMap((n) => [`class-${n}`, `class-${n}-soft`, `class-${n}-ink`])];
const HATCH_STEP = 7;
const N_COLOURS = 4; // of the classes beside the positive one

export const colours = {};
let hatches = new Map();

function read() {
  const style = getComputedStyle(document.documentElement);
  for (const name of NAMES) colours[name] = style.getPropertyValue(`--${name}`).trim();
  hatches = new Map();
}

/** Read the colours now and whenever the theme changes; `onChange` then draws again. */
export function watchTheme(onChange) {
  read();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    read();
    onChange();
  });
}

/** Return a pattern of slanted lines: the sign of "positive" for those who don't see the colour. */
export function hatch(context, colour) {
  if (!hatches.has(colour)) {
    const tile = new OffscreenCanvas(HATCH_STEP, HATCH_STEP);
    const pen = tile.getContext("2d");
    pen.strokeStyle = colour;
    pen.lineWidth = 1.4;
    for (const shift of [-HATCH_STEP, 0, HATCH_STEP]) {
      pen.moveTo(shift, HATCH_STEP);
      pen.lineTo(shift + HATCH_STEP, 0);
    }
    pen.stroke();
    hatches.set(colour, context.createPattern(tile, "repeat"));
  }
  return hatches.get(colour);
}

/** Names the colours of a class in theme.css: "positive", or a number for the others. */
export function classKey(name, model) {
  if (name === model.positive) return "positive";
  const others = model.classes.filter((one) => one !== model.positive);
  return `${Math.max(0, others.indexOf(name)) % N_COLOURS}`;
}

/** Return {line, soft, ink} of a class. */
export function classColours(name, model) {
  const key = classKey(name, model);
  if (key === "positive") {
    return { line: colours.positive, soft: colours["positive-soft"], ink: colours["on-positive-soft"] };
  }
  return { line: colours[`class-${key}`], soft: colours[`class-${key}-soft`], ink: colours[`class-${key}-ink`] };
}

/** Fit a canvas to its place on screen, sharp on fine screens; return its pen and size in CSS pixels. */
export function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = "12px system-ui, 'Liberation Sans', 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  return { pen, width, height };
}
