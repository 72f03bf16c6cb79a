/** Where the cursor stands, and the run of segments that is marked with it. */

const MOST_MARKED = 5000;

export class Cursor {
  head = null; // the segment under the cursor
  #anchor = null; // the other end of what is marked; null: the head alone
  #segments;
  #turn = 0;
  #queue = Promise.resolve();

  constructor(segments) {
    this.#segments = segments;
  }

  /** The marked span of time, or null before there is a cursor. */
  get marked() {
    if (!this.head) return null;
    const other = this.#anchor ?? this.head;
    return {
      start_s: Math.min(this.head.start_s, other.start_s),
      stop_s: Math.max(this.head.stop_s, other.stop_s),
    };
  }

  get isRange() {
    return this.#anchor !== null && this.#anchor.index !== this.head.index;
  }

  /** Put the cursor on a segment; `extend` keeps the other end of what is marked. */
  put(segment, { extend = false } = {}) {
    if (!segment) return;
    this.#anchor = extend ? (this.#anchor ?? this.head) : null;
    this.head = segment;
  }

  /** Move by segments or to a time. Keys may come faster than blocks load, so moves wait for each
   * other: three arrows are three steps, and a drag starts where the press was. */
  move(where) {
    const turn = ++this.#turn;
    const moved = this.#queue.then(() => this.#moveNow(where, turn));
    this.#queue = moved.catch(() => {});
    return moved;
  }

  async #moveNow({ steps, seconds, extend = false }, turn) {
    // Of a drag's many places only the last one counts.
    if (extend && seconds !== undefined && turn !== this.#turn) return false;
    const isStep = steps !== undefined && this.head;
    const target = isStep ? await this.#segments.step(this.head, steps) : await this.#segments.at(seconds ?? 0);
    if (!target) return false;
    this.put(target, { extend });
    return true;
  }

  collapse() {
    this.#anchor = null;
  }

  /** Return the marked segments' indices. */
  async indices() {
    if (!this.head) return [];
    if (!this.isRange) return [this.head.index];
    const { start_s, stop_s } = this.marked;
    const found = [];
    const last = this.#segments.blockAt(stop_s);
    for (let block = this.#segments.blockAt(start_s); block <= last && found.length < MOST_MARKED; block += 1) {
      for (const one of await this.#segments.block(block)) {
        if (one.start_s >= start_s - 1e-9 && one.stop_s <= stop_s + 1e-9) found.push(one.index);
      }
    }
    return found;
  }
}
