/** The signal in tiles of several levels, fetched as they come into sight and forgotten again. */

/** No request asks for more points than this, however long the recording is. */
export const MAX_POINTS = 2000;
const FILL = 0.95; // of MAX_POINTS in a tile, so that rounding can't turn samples into an envelope
const LEVEL_FACTOR = 4;
const KEPT = 160;
const AT_ONCE = 4;

/** Turn an answer of /signal into flat arrays, times as offsets from the start of the tile. */
function unpack(answer, startS) {
  const isEnvelope = answer.kind === "envelope";
  const numbers = (list) => Float32Array.from(list, (value) => value ?? NaN);
  return {
    startS,
    isEnvelope,
    offsets: Float32Array.from(answer.time_s, (time) => time - startS),
    low: numbers(isEnvelope ? answer.minimum_mv : answer.value_mv),
    high: isEnvelope ? numbers(answer.maximum_mv) : null,
  };
}

export class SignalTiles {
  #tiles = new Map(); // "level/number" -> tile; in order of use, for the oldest leaves first
  #waiting = [];
  #running = new Set();
  #stop = new AbortController();
  #fetchSpan;
  #onLoaded;

  /** `fetchSpan({start_s, stop_s, max_points}, signal)` answers as /signal does. */
  constructor(fetchSpan, { fsHz, durationS, onLoaded }) {
    this.#fetchSpan = fetchSpan;
    this.#onLoaded = onLoaded;
    this.durationS = durationS;
    this.fsHz = fsHz;
    const longest = (FILL * MAX_POINTS) / fsHz;
    this.leastSpanS = longest > 1 ? Math.floor(longest) : longest;
  }

  /** Forget everything: another recording is opened. */
  close() {
    this.#stop.abort();
    this.#waiting = [];
    this.#tiles.clear();
  }

  get isLoading() {
    return this.#running.size > 0;
  }

  spanOf(level) {
    return this.leastSpanS * LEVEL_FACTOR ** level;
  }

  /** Return the coarsest level that still has a point for every pixel. */
  levelFor(scale) {
    let level = 0;
    const isEnough = (next) => (FILL * MAX_POINTS) / this.spanOf(next) >= scale;
    while (this.spanOf(level) < this.durationS && isEnough(level + 1)) level += 1;
    return level;
  }

  /** Return the loaded tiles between two times, and ask for those that are missing. */
  between(startS, stopS, scale) {
    const level = this.levelFor(scale);
    const width = this.spanOf(level);
    const last = Math.ceil(this.durationS / width) - 1;
    const from = Math.max(0, Math.floor(startS / width));
    const to = Math.min(last, Math.floor(stopS / width));
    const found = [];
    const missing = [];
    for (let number = from; number <= to; number += 1) {
      const tile = this.#use(`${level}/${number}`);
      if (tile) found.push(tile);
      else missing.push([level, number]);
    }
    // The neighbours come after what is in sight, so that a slow scroll never waits.
    for (const number of [to + 1, from - 1]) {
      if (number >= 0 && number <= last && !this.#tiles.has(`${level}/${number}`)) missing.push([level, number]);
    }
    // What has left the sight meanwhile is not fetched any more: the list is made anew.
    this.#waiting = missing.filter(([l, n]) => !this.#running.has(`${l}/${n}`));
    this.#fill();
    return found;
  }

  /** Return a tile, and remember that it was used last. */
  #use(key) {
    const tile = this.#tiles.get(key);
    if (tile) {
      this.#tiles.delete(key);
      this.#tiles.set(key, tile);
    }
    return tile;
  }

  #fill() {
    while (this.#running.size < AT_ONCE && this.#waiting.length) {
      const [level, number] = this.#waiting.shift();
      this.#load(level, number);
    }
  }

  async #load(level, number) {
    const key = `${level}/${number}`;
    const signal = this.#stop.signal;
    this.#running.add(key);
    const start_s = number * this.spanOf(level);
    const stop_s = Math.min(start_s + this.spanOf(level), this.durationS);
    try {
      const answer = await this.#fetchSpan({ start_s, stop_s, max_points: MAX_POINTS }, signal);
      this.#tiles.set(key, unpack(answer, start_s));
      while (this.#tiles.size > KEPT) this.#tiles.delete(this.#tiles.keys().next().value);
    } catch (error) {
      if (error.name !== "AbortError") this.#tiles.set(key, { ...EMPTY, startS: start_s, error });
    } finally {
      this.#running.delete(key);
    }
    if (signal.aborted) return;
    this.#fill();
    this.#onLoaded(this.#tiles.get(key)?.error);
  }
}

const EMPTY = { isEnvelope: false, offsets: new Float32Array(), low: new Float32Array(), high: null };
