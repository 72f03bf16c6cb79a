/** Which key does what: one table for the handler and for the help. */

const KEYS = [
  [["ArrowLeft"], "previous", ["←"], "one segment back; with Shift: mark it as well"],
  [["ArrowRight"], "next", ["→"], "one segment on; with Shift: mark it as well"],
  [["PageUp"], "screen-back", ["Page up"], "one screen back"],
  [["PageDown"], "screen-on", ["Page down"], "one screen on"],
  [["Home"], "first", ["Home"], "to the start of the recording"],
  [["End"], "last", ["End"], "to its end"],
  [["Delete", "Backspace"], "unset", ["Delete"], "take the label away"],
  [["u", "ctrl+z"], "undo", ["U", "Ctrl+Z"], "undo the last labels"],
  [["shift+u", "ctrl+y", "ctrl+shift+z"], "redo", ["Shift+U", "Ctrl+Y"], "do them again"],
  [["n"], "next-proposal", ["N"], "next proposal of what to label; asks for some if there are none"],
  [["shift+n"], "previous-proposal", ["Shift+N"], "proposal before"],
  [["e"], "next-episode", ["E"], "next detected episode"],
  [["shift+e"], "previous-episode", ["Shift+E"], "detected episode before"],
  [["d"], "next-difference", ["D"], "next place where before and after differ"],
  [["shift+d"], "previous-difference", ["Shift+D"], "such a place before"],
  [["+", "="], "zoom-in", ["+"], "zoom in"],
  [["-"], "zoom-out", ["−"], "zoom out"],
  [["0"], "paper", ["0"], "25 mm/s, as on paper"],
  [["w"], "whole", ["W"], "the whole recording"],
  [["Escape"], "collapse", ["Esc"], "mark the one segment under the cursor only"],
  [["?", "h"], "help", ["?"], "this help"],
];
const TAKEN = new Set(KEYS.flatMap(([keys]) => keys));

/** Return [{name, digit, letter or null}]: a letter only where no command has it already. */
export function classKeys(classes) {
  const used = new Set(TAKEN);
  return classes.map((name, place) => {
    const letter = name[0].toLowerCase();
    const isFree = /[a-z]/.test(letter) && !used.has(letter);
    if (isFree) used.add(letter);
    return { name, digit: String(place + 1), letter: isFree ? letter : null };
  });
}

export function helpRows(classes) {
  const labels = classKeys(classes).map(({ name, digit, letter }) => [
    letter ? [digit, letter.toUpperCase()] : [digit], `label what is marked as ${name}`,
  ]);
  return [...labels, ...KEYS.map(([, , shown, what]) => [shown, what])];
}

/** Return {name, extend} or {label} of a key event; null where it means nothing here. */
export function actionOf(event, classes) {
  if (event.altKey || event.metaKey || isTyping(event.target)) return null;
  const isLetter = event.key.length === 1;
  const key = isLetter ? event.key.toLowerCase() : event.key;
  const isCapital = isLetter && event.shiftKey && /[a-z]/.test(key);
  const full = `${event.ctrlKey ? "ctrl+" : ""}${isCapital ? "shift+" : ""}${key}`;
  const found = KEYS.find(([keys]) => keys.includes(full));
  if (found) return { name: found[1], extend: event.shiftKey };
  const label = classKeys(classes).find(({ digit, letter }) => full === digit || full === letter);
  return label ? { label: label.name } : null;
}

function isTyping(target) {
  return ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName);
}
