/** Numbers and names as people read them. */

/** Return h:mm:ss of seconds; with decimals only where they tell two places apart. */
export function clock(seconds, decimals = 0) {
  const factor = 10 ** decimals;
  const whole = Math.round(Math.max(0, seconds) * factor) / factor;
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = (whole % 60).toFixed(decimals).padStart(decimals ? 3 + decimals : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** Return the seconds of "h:mm:ss", "mm:ss" or "seconds"; null where it is none of them. */
export function secondsOf(text) {
  const parts = text.trim().replace(",", ".").split(":");
  if (parts.length > 3 || parts.some((part) => !/^\d+(\.\d+)?$/.test(part))) return null;
  return parts.reduce((sum, part) => sum * 60 + Number(part), 0);
}

export function span(seconds) {
  if (seconds < 90) return `${trim(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${trim(seconds / 3600, 1)} h`;
}

export function trim(number, digits = 2) {
  return String(Number(number.toFixed(digits)));
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function many(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

export function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1024)} KB` : `${(bytes / 1048576).toFixed(1)} MB`;
}

/** Return "4 va, 10 other" of {"va": 4, "other": 10}. */
export function counted(counts) {
  return Object.entries(counts).map(([name, n]) => `${n} ${name}`).join(", ");
}

export function when(isoText) {
  return new Date(isoText).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
}

/** Shorthand for document.getElementById: every id that is asked for stands in index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** Make an element. Text goes in as text, so that no name of a patient can become markup. */
export function make(tag, { text, onClick, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  if (text !== undefined) element.textContent = text;
  if (onClick) element.addEventListener("click", onClick);
  element.append(...children);
  return element;
}

/** Put new rows into a list; the focus stays on the button with the same data-key. */
export function refill(list, rows) {
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...rows);
  if (key) list.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** Fill a select with [value, text] pairs and choose one. */
export function fillSelect(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, text })));
  if (chosen !== undefined) select.value = String(chosen);
}
