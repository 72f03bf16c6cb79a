/** Which part of the recording is on screen, and how large a second is. */

/** Millimetres as browsers count them: 96 dots to the inch. */
export const DOTS_PER_MM = 96 / 25.4;
const FASTEST_MM_S = 200;

export class View {
  startS = 0;
  durationS = 1;
  width = 800;
  /** CSS pixels per second; 25 mm/s is the paper of an ECG. */
  scale = 25 * DOTS_PER_MM;
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  open(durationS) {
    this.durationS = durationS;
    this.startS = 0;
    this.setSpeed(25);
  }

  get spanS() {
    return this.width / this.scale;
  }

  get stopS() {
    return this.startS + this.spanS;
  }

  get speedMmS() {
    return this.scale / DOTS_PER_MM;
  }

  get leastScale() {
    return Math.min(this.width / this.durationS, 25 * DOTS_PER_MM);
  }

  xOf(seconds) {
    return (seconds - this.startS) * this.scale;
  }

  secondsAt(x) {
    return this.startS + x / this.scale;
  }

  resize(width) {
    if (width < 1 || width === this.width) return;
    this.width = width;
    this.moveTo(this.startS);
  }

  moveTo(startS) {
    this.scale = Math.max(this.scale, this.leastScale);
    this.startS = Math.max(0, Math.min(startS, this.durationS - this.spanS));
    this.#onChange();
  }

  moveBy(seconds) {
    this.moveTo(this.startS + seconds);
  }

  centre(seconds) {
    this.moveTo(seconds - this.spanS / 2);
  }

  /** Bring a span into sight, and move no further than is needed to see it with its neighbours. */
  reveal(startS, stopS) {
    const margin = Math.min((stopS - startS) * 0.75, this.spanS / 5);
    if (startS - margin < this.startS) this.moveTo(Math.min(startS - margin, this.startS));
    else if (stopS + margin > this.stopS) this.moveTo(stopS + margin - this.spanS);
    else this.#onChange();
  }

  /** Zoom so that what is at `x` stays there. */
  zoom(factor, x = this.width / 2) {
    const fixed = this.secondsAt(x);
    const most = FASTEST_MM_S * DOTS_PER_MM;
    this.scale = Math.max(this.leastScale, Math.min(most, this.scale * factor));
    this.moveTo(fixed - x / this.scale);
  }

  setSpeed(mmPerS, aroundS = this.startS + this.spanS / 2) {
    this.scale = mmPerS * DOTS_PER_MM;
    this.centre(aroundS);
  }

  showAll() {
    this.scale = this.leastScale;
    this.moveTo(0);
  }
}
