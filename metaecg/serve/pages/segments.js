/** The segments of a recording, windows or beats, fetched in blocks of time as they are needed. */

const BLOCK_S = 300;
const KEPT = 48;
const PAGE = 1000;

export class Segments {
  #blocks = new Map(); // block number -> segments that start in it, in time order
  #loading = new Map();
  #stop = new AbortController();
  #fetchPage;
  #onLoaded;

  /** `fetchPage({start_s, stop_s, limit, after}, signal)` answers as /segments does. */
  constructor(fetchPage, { durationS, onLoaded }) {
    this.#fetchPage = fetchPage;
    this.#onLoaded = onLoaded;
    this.lastBlock = Math.max(0, Math.ceil(durationS / BLOCK_S) - 1);
  }

  close() {
    this.#stop.abort();
    this.#blocks.clear();
  }

  blockAt(seconds) {
    return Math.max(0, Math.min(this.lastBlock, Math.floor(seconds / BLOCK_S)));
  }

  /** Return what is loaded between two times; what isn't is fetched and told by `onLoaded`. */
  between(startS, stopS) {
    const found = [];
    // A beat may reach over the edge of its block, so one block before is looked at as well.
    for (let block = this.blockAt(startS - 2); block <= this.blockAt(stopS); block += 1) {
      const segments = this.#blocks.get(block);
      if (!segments) this.block(block).catch(() => {});
      else for (const one of segments) if (one.stop_s > startS && one.start_s < stopS) found.push(one);
    }
    return found;
  }

  /** Return the segments of a block, fetched if need be. */
  async block(number) {
    const known = this.#blocks.get(number);
    if (known) {
      this.#blocks.delete(number);
      this.#blocks.set(number, known);
      return known;
    }
    if (!this.#loading.has(number)) {
      this.#loading.set(number, this.#load(number).finally(() => this.#loading.delete(number)));
    }
    return this.#loading.get(number);
  }

  async #load(number) {
    const start_s = number * BLOCK_S;
    const stop_s = start_s + BLOCK_S;
    const segments = [];
    let after;
    do {
      const page = await this.#fetchPage({ start_s, stop_s, limit: PAGE, after }, this.#stop.signal);
      segments.push(...page.segments);
      after = page.next;
    } while (after !== null && after !== undefined);
    const own = segments.filter((one) => this.blockAt(one.start_s) === number);
    this.#blocks.set(number, own);
    while (this.#blocks.size > KEPT) this.#blocks.delete(this.#blocks.keys().next().value);
    this.#onLoaded();
    return own;
  }

  /** Return the segment at a time, else the first one after it, else the last one; null if none. */
  async at(seconds) {
    for (let block = this.blockAt(seconds); block <= this.lastBlock; block += 1) {
      const found = nearest(await this.block(block), seconds);
      if (found) return found;
    }
    return this.#lastBefore(this.blockAt(seconds));
  }

  /** Return the segment `steps` further on, or as far as there are any. */
  async step(from, steps) {
    let block = this.blockAt(from.start_s);
    let list = await this.block(block);
    let place = list.findIndex((one) => one.index === from.index) + steps;
    while (place >= list.length && block < this.lastBlock) {
      place -= list.length;
      block += 1;
      list = await this.block(block);
    }
    while (place < 0 && block > 0) {
      block -= 1;
      list = await this.block(block);
      place += list.length;
    }
    if (place < 0) return this.at(0);
    return list[place] ?? this.#lastBefore(block);
  }

  async #lastBefore(start) {
    for (let block = start; block >= 0; block -= 1) {
      const list = await this.block(block);
      if (list.length) return list.at(-1);
    }
    return null;
  }
}

/** Beats stand close and may overlap: the one whose middle is nearest is meant. */
function nearest(list, seconds) {
  const around = list.filter((one) => one.start_s <= seconds && one.stop_s > seconds);
  if (!around.length) return list.find((one) => one.start_s > seconds);
  const distance = (one) => Math.abs((one.start_s + one.stop_s) / 2 - seconds);
  return around.reduce((best, one) => (distance(one) < distance(best) ? one : best));
}
