/** What one version of the detector says about a whole recording. */

/** Arrays instead of objects: a day has more than forty thousand windows. */
export class Lane {
  constructor(answer, positive) {
    this.version = answer.version;
    this.threshold = answer.threshold;
    this.rhythm = answer.rhythm;
    this.classes = answer.classes;
    this.episodes = answer.episodes;
    this.index = Int32Array.from(answer.index);
    this.startS = Float64Array.from(answer.start_s);
    this.stopS = Float64Array.from(answer.stop_s);
    this.probability = Float32Array.from(answer.probability);
    this.label = Uint8Array.from(answer.label, (name) => answer.classes.indexOf(name));
    this.positive = answer.classes.indexOf(positive);
  }

  get length() {
    return this.index.length;
  }

  get nPositive() {
    return this.label.reduce((sum, label) => sum + (label === this.positive ? 1 : 0), 0);
  }

  isPositive(place) {
    return this.label[place] === this.positive;
  }

  /** Return the places [first, last) of the segments that reach into a span of time. */
  range(startS, stopS) {
    const first = lowerBound(this.stopS, startS + 1e-9); // one that ends there reaches no further
    return [first, Math.max(first, lowerBound(this.startS, stopS))];
  }

  /** Return the place of a segment by its index, or -1. */
  placeOf(index) {
    const place = lowerBound(this.index, index);
    return this.index[place] === index ? place : -1;
  }

  segment(place) {
    return { index: this.index[place], start_s: this.startS[place], stop_s: this.stopS[place] };
  }

  /** Return the next episode that starts after a time, or the one before; null where there is none. */
  episode(fromS, direction) {
    if (direction > 0) return this.episodes.find((one) => one.start_s > fromS + 1e-6) ?? null;
    return this.episodes.findLast((one) => one.start_s < fromS - 1e-6) ?? null;
  }

  /** Return the next place after `index` where another lane decides otherwise; -1 where none is. */
  change(other, index, direction) {
    let place = lowerBound(this.index, direction > 0 ? index + 1 : index) + (direction > 0 ? 0 : -1);
    for (; place >= 0 && place < this.length; place += direction) {
      const there = other.placeOf(this.index[place]);
      if (there >= 0 && other.label[there] !== this.label[place]) return place;
    }
    return -1;
  }

  /** Count the segments on which two lanes decide otherwise. */
  changes(other) {
    let count = 0;
    for (let place = 0; place < this.length; place += 1) {
      const there = other.placeOf(this.index[place]);
      if (there >= 0 && other.label[there] !== this.label[place]) count += 1;
    }
    return count;
  }
}

/** Return the first place whose value is at least `value`; the array rises. */
function lowerBound(array, value) {
  let low = 0;
  let high = array.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (array[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
