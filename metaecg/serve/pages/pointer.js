/** Mouse, pen and finger on the strip: a press marks, a drag marks a run, the wheel scrolls and zooms. */

const DRAG_PX = 5;
const LINE_PX = 40; // Firefox tells the wheel in lines

/** hooks: {onPress(seconds, extend), onRun(seconds)}. */
export function watchPointer(strip, view, hooks) {
  let start = null;

  const xOf = (event) => event.clientX - event.target.getBoundingClientRect().left;

  strip.addEventListener("pointerdown", (event) => {
    if (event.target.tagName !== "CANVAS" || event.button !== 0) return;
    strip.focus({ preventScroll: true });
    event.target.setPointerCapture(event.pointerId);
    start = { x: xOf(event), startS: view.startS, isTouch: event.pointerType === "touch", isDrag: false, shift: event.shiftKey };
    if (!start.isTouch) hooks.onPress(view.secondsAt(start.x), start.shift);
  });

  strip.addEventListener("pointermove", (event) => {
    if (!start) return;
    const x = xOf(event);
    if (Math.abs(x - start.x) > DRAG_PX) start.isDrag = true;
    if (!start.isDrag) return;
    // A finger moves the paper, as on every screen; a mouse has the wheel for that and marks.
    if (start.isTouch) view.moveTo(start.startS - (x - start.x) / view.scale);
    else hooks.onRun(view.secondsAt(x));
  });

  strip.addEventListener("pointerup", (event) => {
    if (start?.isTouch && !start.isDrag) hooks.onPress(view.secondsAt(xOf(event)), false);
    start = null;
  });
  strip.addEventListener("pointercancel", () => {
    start = null;
  });

  strip.addEventListener("wheel", (event) => {
    if (event.target.tagName !== "CANVAS") return;
    event.preventDefault();
    const unit = event.deltaMode === 1 ? LINE_PX : 1;
    if (event.ctrlKey) view.zoom(Math.exp((-event.deltaY * unit) / 400), xOf(event));
    else view.moveBy(((event.deltaX + event.deltaY) * unit) / view.scale);
  }, { passive: false });
}
