// Ties the live stream to the panels. Each panel is brought up to date with each snapshot, and none can take the others down.

import { updateAlerts } from "./alerts.js";
import { byId } from "./dom.js";
import { Drift } from "./drift.js";
import { Freshness } from "./freshness.js";
import { setConnection, tick, updateHeader, updatePipelines, updateStores, updateVitals } from "./header.js";
import { Letters } from "./letters.js";
import { follow } from "./live.js";
import { intoSight, startLookup } from "./lookup.js";
import { Models } from "./models.js";
import { Promotions } from "./promotions.js";
import { explainStates, processTable, updateList, updateTroubles } from "./river-list.js";
import { river } from "./river-model.js";
import { River } from "./river.js";
import { Rules } from "./rules.js";
import { Segments } from "./segments.js";
import { askForToken } from "./token.js";

let snapshot = null;
const diagram = new River(byId("diagram"));
const processes = processTable();
byId("processes").append(processes.root);
explainStates(byId("states"));
const models = new Models(() => show());
const segments = new Segments();
const drift = new Drift();
const freshness = new Freshness();
const rules = new Rules();
const letters = new Letters();
const promotions = new Promotions();

/** Where the thing that an alert is about is shown: the panel's name, and how to get to its row. */
function subjectOf(alert) {
  if (alert.kind === "rejected") return ["dead letters", "dead-letters", () => letters.reveal(alert)];
  if (alert.kind === "warned") return ["rules", "rules", () => rules.reveal(alert)];
  if (alert.kind === "freshness" || alert.kind === "stale")
    return ["freshness", "freshness", () => freshness.reveal(alert.feature)];
  if (alert.segment) return ["segments", "segments", () => segments.reveal(alert.segment)];
  if (alert.feature) return ["drift", "drift", () => drift.reveal(alert.feature)];
  switch (alert.kind) {
    case "prediction_drift":
      return ["scores and labels", "outputs", () => drift.revealOutput(`scores ${alert.model}`)];
    case "label_drift":
      return ["scores and labels", "outputs", () => drift.revealOutput("labels")];
    case "performance":
    case "calibration":
      return ["models", "models", () => models.table.reveal(alert.model)];
    case "delay":
      return ["the river", "river", () => false];
    default:
      return null;
  }
}

function showSubject(alert) {
  const [, panel, reveal] = subjectOf(alert) ?? [];
  if (panel && !reveal()) byId(panel).scrollIntoView({ block: "start" });
}

const panels = [
  () => updateHeader(snapshot),
  () => updatePipelines(byId("pipelines"), snapshot),
  () => updateVitals(byId("vitals"), snapshot),
  () => {
    const drawn = river(snapshot);
    updateStores(byId("stores"), snapshot);
    updateTroubles(byId("troubles"), snapshot);
    diagram.update(drawn);
    updateList(byId("flow"), drawn);
    processes.update(snapshot.services ?? []);
  },
  () => updateAlerts(snapshot, { showSubject, subjectPanel: (alert) => subjectOf(alert)?.[0] }),
  () => segments.update(snapshot, models.update(snapshot)),
  () => drift.update(snapshot),
  () => freshness.update(snapshot),
  () => rules.update(snapshot),
  () => letters.update(snapshot),
  () => promotions.update(snapshot),
];

function show() {
  if (!snapshot || document.hidden) return; // nobody looks: it is shown when somebody does
  for (const panel of panels) {
    try {
      panel();
    } catch (error) {
      console.error(error);
    }
  }
}

const again = follow(
  "/api/live",
  (data) => {
    const first = snapshot === null;
    snapshot = data;
    show();
    if (first) intoSight();
  },
  (state) => {
    setConnection(state);
    diagram.setLive(state.name === "live");
    if (state.name === "locked") askForToken(state.problem, again);
  },
);

document.addEventListener("visibilitychange", show);
byId("lost").querySelector("button").addEventListener("click", again);
byId("theme").addEventListener("click", () => document.dispatchEvent(new CustomEvent("theme-wanted")));
setInterval(tick, 1000);
startLookup();
