// Send an event to the river, and see its way: sent, valid, features, prediction, label. What it shows is read from the log.

import { byId, el, sign, text } from "./dom.js";
import { anything, place, plural } from "./format.js";
import { scored, showPrediction } from "./provenance.js";
import { ask, askForToken, problemOf } from "./token.js";

const PREDICT_MS = 30_000;
const LOOK_MS = 400; // how often the log is asked for what has become of the event
const LABEL_MS = 60_000; // how long a label may take to meet its prediction
const STAGES = ["Sent", "Valid", "Features", "Prediction", "Label"];
const SIGNS = { reached: "ok", waiting: "starting", refused: "down", later: "unknown" };

const [eventForm, labelForm] = ["event-form", "label-form"].map(byId);
let sending = 0; // which sending is shown: what comes of an earlier one is not
let took = ""; // how long its answer took

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const problem = (sentence) => text(byId("problem"), sentence);

/** Show how far it has come: stages before `at` are reached, `at` itself is in `state`, notes are a line or an element each. */
function show(at, state, notes) {
  byId("way").replaceChildren(
    ...STAGES.map((title, i) => {
      const now = i < at ? "reached" : i === at ? state : "later";
      return el("li", { class: `is-${now}` }, el("h3", {}, sign(SIGNS[now]), title), el("p", {}, notes[i] ?? ""));
    }),
  );
}

/** Ask the gateway; returns its JSON, or null where it has refused, with the problem shown. */
async function asked(path, options = {}) {
  try {
    const answer = await ask(path, options);
    const isAnswer = answer.headers.get("content-type")?.includes("json") && answer.status !== 401 && answer.status !== 403;
    const body = isAnswer ? await answer.clone().json() : {};
    if (answer.ok || body.state) return body;
    if (answer.status === 404) return null;
    problem(await problemOf(answer));
  } catch {
    problem("The gateway can't be reached. Please try again.");
  }
  return null;
}

const post = (path, body) => asked(path, { method: "POST", body, headers: { "Content-Type": "application/json" } });

async function begin() {
  problem("");
  const made = await asked("/v1/example");
  if (!made) return;
  eventForm.elements.event.value = JSON.stringify(made.event, null, 2);
  labelForm.elements.label.value = JSON.stringify(made.label, null, 2);
  byId("begin").hidden = true;
  eventForm.hidden = false;
  labelForm.hidden = true;
  byId("details").replaceChildren();
  text(byId("way-note"), "");
  show(0, "later", {});
}

async function send() {
  const mine = (sending += 1);
  problem("");
  labelForm.hidden = true;
  byId("details").replaceChildren();
  show(0, "waiting", { 0: "on its way" });
  const began = performance.now();
  const answer = await post(`/v1/predict?timeout_ms=${PREDICT_MS}`, eventForm.elements.event.value);
  took = `answered in ${Math.round(performance.now() - began)} ms`;
  if (mine !== sending) return;
  if (!answer) {
    show(0, "later", {});
    return;
  }
  text(byId("way-note"), answer.event_id ? `of ${answer.event_id}${answer.repeated ? ", whose first answer this is" : ""}` : "");
  if (answer.state !== "predicted") {
    const before = answer.service === "gateway" || answer.state === "conflict" || answer.state === "unwritten";
    show(before ? 0 : 1, answer.state === "pending" ? "waiting" : "refused", { [before ? 0 : 1]: answer.message ?? answer.state });
    return;
  }
  show(4, "waiting", { 0: took, 3: el("strong", {}, scored(answer.champion)) });
  await follow(answer.event_id, mine);
}

/** Look into the log until the event's way is known, and then until its label has met it. */
async function follow(id, mine) {
  for (const until = performance.now() + LABEL_MS; performance.now() < until; await wait(LOOK_MS)) {
    const found = await asked(`/v1/journeys/${encodeURIComponent(id)}`);
    if (mine !== sending) return;
    if (!found) continue;
    const { event, log, outcome, scores, vector } = found;
    const champion = scores.find((s) => s.role === "champion") ?? {};
    const isOver = outcome.state !== "pending";
    const label = { joined: `${anything(outcome.label)}: an example, ${place(outcome)}`, expired: "did not come in time", pending: "none yet" };
    show(isOver && outcome.state === "joined" ? 5 : 4, isOver ? "refused" : "waiting", {
      0: took,
      1: place(event),
      2: `${plural(Object.keys(vector).length, "feature")}, of the event and ${plural(found.views.length, "view")}`,
      3: [el("strong", {}, scored(champion)), ` by ${champion.model}, version ${champion.version}; ${place(log)}`],
      4: label[outcome.state],
    });
    byId("details").replaceChildren(...showPrediction(found));
    labelForm.hidden = isOver;
    if (isOver || !labelForm.dataset.sent) return;
  }
}

async function sendLabel() {
  problem("");
  const answer = await post("/v1/labels", labelForm.elements.label.value);
  if (!answer) return;
  if (answer.state !== "written") {
    problem(`The label is ${answer.state}: ${answer.message ?? ""}`);
    return;
  }
  labelForm.dataset.sent = "yes";
  await follow(answer.event_id, sending);
  delete labelForm.dataset.sent;
}

const on = (form, what) =>
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    what();
  });

byId("begin").addEventListener("click", () => askForToken("", begin));
on(eventForm, send);
on(labelForm, sendLabel);
byId("another").addEventListener("click", begin);
show(0, "later", {});
fetch("/openapi.json")
  .then((answer) => answer.json())
  .then((api) => text(byId("pipeline"), api["x-pipeline"]));
