/** The labels of one recording: set at once on screen, saved behind it, undone in order. */

const UNDO_DEPTH = 500;

export class LabelBook {
  #labels = new Map(); // segment index -> class name
  #done = [];
  #undone = [];
  #pending = new Map(); // not yet acknowledged by the server; null removes
  #saving = null;
  #api;
  #path;
  #hooks;

  /** hooks: onChange(), onCounts(counts), onSaved(nPending), onRefused(error). */
  constructor(api, recordingPath, hooks) {
    this.#api = api;
    this.#path = `${recordingPath}/labels`;
    this.#hooks = hooks;
  }

  async load() {
    const { labels } = await this.#api.get(this.#path);
    this.#labels = new Map(Object.entries(labels).map(([index, label]) => [Number(index), label]));
    for (const [index, label] of this.#pending) this.#write(index, label);
    this.#hooks.onChange();
  }

  get(index) {
    return this.#labels.get(index) ?? null;
  }

  /** Return the indices that have a label, in no order. */
  indices() {
    return [...this.#labels.keys()];
  }

  get nPending() {
    return this.#pending.size;
  }

  /** Give all of `indices` one label, or take it away with null; one step for undo. */
  set(indices, label) {
    const step = indices.map((index) => ({ index, before: this.get(index), after: label }));
    const changed = step.filter(({ before, after }) => before !== after);
    if (!changed.length) return;
    this.#done.push(changed);
    if (this.#done.length > UNDO_DEPTH) this.#done.shift();
    this.#undone = [];
    this.#apply(changed.map(({ index, after }) => [index, after]));
  }

  /** Take the last step back; return its segments' indices, empty where there is none. */
  undo() {
    const step = this.#done.pop() ?? [];
    if (step.length) this.#undone.push(step);
    this.#apply(step.map(({ index, before }) => [index, before]));
    return step.map(({ index }) => index);
  }

  redo() {
    const step = this.#undone.pop() ?? [];
    if (step.length) this.#done.push(step);
    this.#apply(step.map(({ index, after }) => [index, after]));
    return step.map(({ index }) => index);
  }

  #write(index, label) {
    if (label === null) this.#labels.delete(index);
    else this.#labels.set(index, label);
  }

  #apply(changes) {
    if (!changes.length) return;
    for (const [index, label] of changes) {
      this.#write(index, label);
      this.#pending.set(index, label);
    }
    this.#hooks.onChange();
    this.#hooks.onSaved(this.#pending.size);
    this.save();
  }

  /** Resolve when everything has been acknowledged. Steps made meanwhile go out in the next request. */
  save() {
    this.#saving ??= this.#send().finally(() => {
      this.#saving = null;
    });
    return this.#saving;
  }

  async #send() {
    while (this.#pending.size) {
      const sent = new Map(this.#pending);
      try {
        const counts = await this.#api.put(this.#path, { labels: Object.fromEntries(sent) });
        this.#forget(sent);
        this.#hooks.onCounts(counts);
        this.#hooks.onSaved(this.#pending.size);
      } catch (error) {
        // The server refused them: show what it has instead of what it doesn't.
        this.#forget(sent);
        this.#hooks.onRefused(error);
        await this.load().catch(() => {});
      }
    }
  }

  #forget(sent) {
    for (const [index, label] of sent) {
      if (this.#pending.get(index) === label) this.#pending.delete(index);
    }
  }
}
