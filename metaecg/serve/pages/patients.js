/** The left column: patients and their recordings. */

import { confirmed } from "./dialogs.js";
import { attempt, say } from "./messages.js";
import { byId, make, many, refill, span, trim } from "./words.js";

const PAGE = 100;

export class Patients {
  #session;
  #hooks;
  #next = null;
  #shown = new Map(); // subject_id -> patient
  #recordings = [];

  /** hooks: {onPatient(patient), onRecording(recording or null)}. */
  constructor(session, hooks) {
    this.#session = session;
    this.#hooks = hooks;
    byId("patient-form").addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.#openOrCreate(byId("patient-id").value.trim()));
    });
    byId("patients-more").addEventListener("click", () => attempt(() => this.#more()));
    byId("patient-delete").addEventListener("click", () => attempt(() => this.#deletePatient()));
    byId("recording-delete").addEventListener("click", () => attempt(() => this.#deleteRecording()));
  }

  async load() {
    this.#shown.clear();
    this.#next = null;
    await this.#more();
  }

  async #more() {
    const answer = await this.#session.api.get("v1/patients", { query: { limit: PAGE, after: this.#next } });
    for (const patient of answer.patients) this.#shown.set(patient.subject_id, patient);
    this.#next = answer.next;
    this.#drawPatients();
  }

  #drawPatients() {
    const patients = [...this.#shown.values()];
    refill(byId("patients"), patients.map((patient) => this.#patientRow(patient)));
    byId("patients-empty").hidden = patients.length > 0;
    byId("patients-more").hidden = !this.#next;
  }

  #patientRow(patient) {
    const isOpen = patient.subject_id === this.#session.patient?.subject_id;
    const version = patient.active_version ? `version ${patient.active_version}` : "base";
    const facts = `${many(patient.n_recordings, "recording")}, ${many(patient.n_labels, "label")}, ${version}`;
    const onClick = () => attempt(() => this.#read(this.open(patient.subject_id)));
    const button = make("button", { type: "button", "data-key": patient.subject_id, "aria-current": isOpen, onClick });
    button.append(patient.subject_id, make("small", { text: facts }));
    return make("li", {}, button);
  }

  /** A known pseudonym opens its patient, a new one makes it: nobody has to know which it is. */
  async #openOrCreate(subjectId) {
    if (!subjectId) return;
    try {
      await this.#session.api.post("v1/patients", { subject_id: subjectId });
      say(`Patient ${subjectId} is created. Upload a recording next.`);
    } catch (error) {
      if (error.status !== 409) throw error;
      say(`Patient ${subjectId} is there already and now open.`);
    }
    byId("patient-id").value = "";
    await this.open(subjectId);
    byId("upload-open").focus();
  }

  /** Open a patient, and the recording with that id, else the only one. */
  async open(subjectId, recordingId = null) {
    const patient = await this.#session.api.get(`v1/patients/${encodeURIComponent(subjectId)}`);
    this.#session.patient = patient;
    this.#session.recording = null;
    this.#shown.set(subjectId, patient);
    this.#drawPatients();
    byId("recordings-part").hidden = false;
    await this.#hooks.onPatient(patient);
    await this.loadRecordings();
    const wanted = this.#recordings.find((one) => one.recording_id === recordingId);
    const only = this.#recordings.length === 1 ? this.#recordings[0] : null;
    await this.openRecording(wanted ?? only);
  }

  /** Fetch the open patient's numbers again: labels and versions change them. */
  async refresh() {
    const subjectId = this.#session.patient?.subject_id;
    if (!subjectId) return;
    const patient = await this.#session.api.get(`v1/patients/${encodeURIComponent(subjectId)}`);
    this.#shown.set(subjectId, patient);
    if (this.#session.patient?.subject_id === subjectId) this.#session.patient = patient;
    this.#drawPatients();
  }

  async loadRecordings() {
    const { recordings } = await this.#session.api.get(`${this.#session.patientPath}/recordings`);
    this.#recordings = recordings;
    this.#drawRecordings();
  }

  #drawRecordings() {
    refill(byId("recordings"), this.#recordings.map((one) => this.#recordingRow(one)));
    byId("recordings-empty").hidden = this.#recordings.length > 0;
    byId("recording-delete").hidden = !this.#session.recording;
  }

  #recordingRow(recording) {
    const isOpen = recording.recording_id === this.#session.recording?.recording_id;
    const facts = `${span(recording.duration_s)}, ${trim(recording.fs_hz)} Hz, lead ${leadName(recording)}`;
    const onClick = () => attempt(() => this.#read(this.openRecording(recording)));
    const button = make("button", { type: "button", "data-key": recording.recording_id, "aria-current": isOpen, onClick });
    button.append(recordingName(recording), make("small", { text: facts }));
    return make("li", {}, button);
  }

  /** Who opens a recording wants to read it: the keys work at once. */
  async #read(opening) {
    await opening;
    if (this.#session.recording) byId("strip").focus();
  }

  async openRecording(recording) {
    this.#session.recording = recording;
    this.#drawRecordings();
    await this.#hooks.onRecording(recording);
  }

  /** Show a recording that was just uploaded. */
  async added(recording) {
    await this.loadRecordings();
    await this.openRecording(recording);
    await this.refresh();
  }

  async #deletePatient() {
    const { subject_id: name, n_recordings: n, n_labels: labels } = this.#session.patient;
    const text = `${many(n, "recording")}, ${many(labels, "label")} and every version of the detector go with the patient. This can't be undone.`;
    if (!(await confirmed({ title: `Delete patient ${name}?`, text, yes: `Delete ${name}` }))) return;
    await this.#session.api.delete(this.#session.patientPath);
    this.#shown.delete(name);
    this.#session.patient = null;
    this.#session.recording = null;
    this.#drawPatients();
    byId("recordings-part").hidden = true;
    await this.#hooks.onPatient(null);
    await this.#hooks.onRecording(null);
    say(`Patient ${name} is deleted.`);
    byId("patient-id").focus();
  }

  async #deleteRecording() {
    const { recording } = this.#session;
    const text = "Its signal and its labels go with it. Versions of the detector that learnt from it stay. This can't be undone.";
    if (!(await confirmed({ title: `Delete recording ${recordingName(recording)}?`, text, yes: "Delete the recording" }))) return;
    await this.#session.api.delete(this.#session.recordingPath);
    await this.loadRecordings();
    await this.openRecording(null);
    await this.refresh();
    say("The recording is deleted.");
    byId("upload-open").focus();
  }
}

export function recordingName(recording) {
  return recording.name || `recording ${recording.recording_id.slice(0, 8)}`;
}

export function leadName(recording) {
  return recording.lead_names[recording.lead] ?? `${recording.lead + 1}`;
}
