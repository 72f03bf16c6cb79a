/** The dialog that uploads a recording: what must be stated is asked for, nothing is guessed. */

import { byId, megabytes, span } from "./words.js";

// What each kind of file states by itself, and what a person has to state.
const RULES = {
  wfdb: "Choose the .hea file together with its .dat files. The header states rate, unit and leads; leave those fields empty.",
  edf: "EDF states rate, unit and leads; leave those fields empty.",
  csv: "One column per lead, one row per sample; a first row may hold the names. State the sampling rate, the unit and the lead names.",
  json: "A JSON file with fs_hz, unit, lead_names and signal (one list per lead, null where not measured).",
};
const FORMAT_OF = { hea: "wfdb", dat: "wfdb", edf: "edf", csv: "csv", txt: "csv", json: "json" };

export class Upload {
  #session;
  #onUploaded;
  #stop = null;

  constructor(session, onUploaded) {
    this.#session = session;
    this.#onUploaded = onUploaded;
    byId("upload-open").addEventListener("click", () => this.#open());
    byId("upload-files").addEventListener("change", () => this.#chosen());
    byId("upload-format").addEventListener("change", () => this.#rule());
    byId("upload-cancel").addEventListener("click", () => this.#cancel());
    byId("upload-dialog").addEventListener("cancel", () => this.#stop?.abort());
    byId("upload-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#stop) this.#send();
    });
  }

  #open() {
    byId("upload-form").reset();
    this.#fail("");
    this.#rule();
    byId("upload-dialog").showModal();
    byId("upload-files").focus();
  }

  /** The name of a file tells its format; the person can still say otherwise. */
  #chosen() {
    const names = [...byId("upload-files").files].map((file) => file.name);
    const known = names.map((name) => FORMAT_OF[name.split(".").pop().toLowerCase()]).find(Boolean);
    if (known) byId("upload-format").value = known;
    this.#rule();
  }

  #rule() {
    const format = byId("upload-format").value;
    const { limits } = this.#session.model;
    const limit = ` At most ${megabytes(limits.upload_bytes)} and ${span(limits.duration_s)}.`;
    byId("upload-rule").textContent = RULES[format] + limit;
    for (const id of ["upload-fs", "upload-unit", "upload-leads"]) byId(id).required = format === "csv";
  }

  /** Say in words what is missing, and go to the first field that lacks it. */
  #problem() {
    const files = [...byId("upload-files").files];
    const format = byId("upload-format").value;
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    const most = this.#session.model.limits.upload_bytes;
    const rate = byId("upload-fs").value.trim();
    const lead = byId("upload-lead").value.trim();
    const checks = [
      ["upload-files", !files.length, "Choose at least one file."],
      ["upload-files", bytes > most, `The files have ${megabytes(bytes)}; this server takes ${megabytes(most)} at most.`],
      ["upload-files", format === "wfdb" && !files.some((f) => f.name.endsWith(".hea")), "WFDB needs the .hea file together with its .dat files."],
      ["upload-fs", format === "csv" && !rate, "A CSV file doesn't state its sampling rate: write it in hertz, e.g. 250."],
      ["upload-fs", rate && !(Number(rate.replace(",", ".")) > 0), `"${rate}" is no sampling rate: write a number of hertz, e.g. 250.`],
      ["upload-unit", format === "csv" && !byId("upload-unit").value, "A CSV file doesn't state its unit: choose mV, uV or V."],
      ["upload-leads", format === "csv" && !byId("upload-leads").value.trim(), "Write the lead names in the order of the columns, e.g. I, II."],
      ["upload-lead", lead && !/^[1-9]\d*$/.test(lead), `"${lead}" is no lead number: 1 is the first lead.`],
    ];
    return checks.find(([, isWrong]) => isWrong);
  }

  async #send() {
    const problem = this.#problem();
    if (problem) {
      this.#fail(problem[2]);
      byId(problem[0]).focus();
      return;
    }
    this.#stop = new AbortController();
    this.#busy(true);
    try {
      const recording = await this.#session.api.upload(`${this.#session.patientPath}/recordings/files`, this.#form(), {
        onProgress: (share) => this.#progress(share), signal: this.#stop.signal,
      });
      byId("upload-dialog").close();
      await this.#onUploaded(recording);
    } catch (error) {
      this.#fail(error.name === "AbortError" ? "The upload was cancelled." : error.message);
    } finally {
      this.#stop = null;
      this.#busy(false);
    }
  }

  #form() {
    const form = new FormData();
    form.append("format", byId("upload-format").value);
    for (const file of byId("upload-files").files) form.append("files", file, file.name);
    const fields = { fs_hz: "upload-fs", unit: "upload-unit", lead_names: "upload-leads", name: "upload-name" };
    for (const [name, id] of Object.entries(fields)) {
      const value = byId(id).value.trim();
      if (value) form.append(name, name === "fs_hz" ? value.replace(",", ".") : value);
    }
    const lead = byId("upload-lead").value.trim();
    if (lead) form.append("lead", String(Number(lead) - 1)); // people count from 1
    return form;
  }

  #progress(share) {
    const bar = byId("upload-progress");
    // Everything is sent: the server now reads it, and says nothing until it has.
    if (share >= 1) bar.removeAttribute("value");
    else bar.value = share;
    byId("upload-rule").textContent = share >= 1 ? "Sent. The server is reading the recording…" : `Sending: ${Math.round(share * 100)} %`;
  }

  #busy(isBusy) {
    byId("upload-progress").hidden = !isBusy;
    byId("upload-progress").value = 0;
    byId("upload-send").disabled = isBusy;
    if (isBusy) this.#fail("");
    else this.#rule();
  }

  #cancel() {
    if (this.#stop) this.#stop.abort();
    else byId("upload-dialog").close();
  }

  #fail(text) {
    byId("upload-error").textContent = text;
    byId("upload-error").hidden = !text;
  }
}
