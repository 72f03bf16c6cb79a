/** Put the parts of the page together. */

import { Api } from "./api.js";
import { watchTheme } from "./colours.js";
import { askForToken, showHelp, tokenAtStart } from "./dialogs.js";
import { helpRows } from "./keys.js";
import { attempt, complain, say, settle } from "./messages.js";
import { leadName, Patients, recordingName } from "./patients.js";
import { Personalize } from "./personalize.js";
import { Proposals } from "./proposals.js";
import { Reader } from "./reader.js";
import { Upload } from "./upload.js";
import { Versions } from "./versions.js";
import { byId } from "./words.js";

const KEPT_PLACE = "metaecg-place";
const LIST_LATER_MS = 1500; // the numbers in the list of patients may follow the labels a bit later

/** What all parts know of: the server, its model, and what is open. */
const session = {
  api: new Api({
    askForToken,
    onAway: (text) => complain(text, "away"),
    onBack: () => settle("away"),
  }),
  model: null,
  patient: null,
  recording: null,
  get word() {
    return this.model?.kind === "beats" ? "beat" : "window";
  },
  get patientPath() {
    return `v1/patients/${encodeURIComponent(this.patient.subject_id)}`;
  },
  get recordingPath() {
    return `${this.patientPath}/recordings/${this.recording.recording_id}`;
  },
};

let later = 0;
const showKeys = () => showHelp(helpRows(session.model?.classes ?? []));
const reader = new Reader(session, {
  onCounts: (counts, path) => {
    if (!session.patient || !path.startsWith(`${session.patientPath}/`)) return;
    personalize.drawCounts(counts);
    clearTimeout(later);
    later = setTimeout(() => attempt(() => patients.refresh()), LIST_LATER_MS);
  },
  onHelp: showKeys,
});
const proposals = new Proposals(session, {
  labelOf: (index) => reader.labels?.get(index) ?? null,
  onGo: (segment) => reader.goTo(segment),
  onChange: () => reader.paint(),
});
reader.proposals = proposals;
const versions = new Versions(session, {
  onList: (list) => reader.comparison.offer(list),
  onActivated: () => patients.refresh(),
});
const personalize = new Personalize(session, {
  // The server trains on what it has: labels on their way arrive first.
  beforeStart: () => reader.labels?.save(),
  onDone: async () => {
    await versions.load();
    await patients.refresh();
  },
});
const patients = new Patients(session, { onPatient: openPatient, onRecording: openRecording });
new Upload(session, async (recording) => {
  await patients.added(recording);
  say(`Uploaded. ${session.model.n_shots} labels per class are advised: N proposes what to label.`);
  byId("strip").focus();
});

async function openPatient(patient) {
  remember();
  reader.close();
  byId("cards").hidden = true;
  await Promise.all([personalize.open(patient), versions.load()]);
}

async function openRecording(recording) {
  remember();
  byId("reader").hidden = !recording;
  byId("cards").hidden = !recording;
  byId("nothing").hidden = Boolean(recording);
  if (!recording) {
    reader.close();
    tellWhatIsNext();
    return;
  }
  byId("reader-title").textContent = `${session.patient.subject_id} · ${recordingName(recording)}`;
  byId("lead-name").textContent = `Lead ${leadName(recording)}`;
  byId("saved-line").textContent = "";
  await reader.open(recording);
}

function tellWhatIsNext() {
  byId("nothing-text").textContent = session.patient
    ? `Choose a recording of ${session.patient.subject_id} on the left, or upload one.`
    : "Choose a patient on the left, or type the pseudonym of a new one.";
}

/** A reload comes back to the same place; nothing of it outlives the tab. */
function remember() {
  const place = { subject: session.patient?.subject_id, recording: session.recording?.recording_id };
  sessionStorage.setItem(KEPT_PLACE, JSON.stringify(place));
}

async function start() {
  watchTheme(() => reader.paint());
  session.api.token = tokenAtStart();
  session.model = await session.api.get("v1/model");
  const { model } = session;
  byId("model-line").textContent = `Base ${model.name} judges ${session.word}s: ${model.classes.join(" or ")}. metaecg ${model.metaecg_version}`;
  reader.drawClassButtons();
  personalize.drawChoices();
  const place = JSON.parse(sessionStorage.getItem(KEPT_PLACE) ?? "{}");
  await patients.load();
  if (place.subject) await backTo(place);
}

/** What was open may be gone meanwhile, deleted by somebody else; then the list is enough. */
async function backTo(place) {
  try {
    await patients.open(place.subject, place.recording);
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

byId("help-open").addEventListener("click", showKeys);
byId("token-open").addEventListener("click", async () => {
  const token = await askForToken("Another token shows another organisation's patients.", { isNeeded: false });
  if (token === null) return;
  sessionStorage.removeItem(KEPT_PLACE);
  location.reload();
});
// A new link with a token, opened in this tab, only changes the fragment.
window.addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());
window.addEventListener("beforeunload", (event) => {
  if (reader.labels?.nPending) event.preventDefault();
});

attempt(start);
