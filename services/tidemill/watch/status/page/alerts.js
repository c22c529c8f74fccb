// Alerts: open ones first, those that somebody has acknowledged after them, and what was resolved lately.

import { askFor } from "./acknowledge.js";
import { attr, byId, el, keyed, sign, svg, text } from "./dom.js";
import { duration, figure, moment, NONE, plural } from "./format.js";
import { capital } from "./river-model.js";

const words = (name) => (name ?? "").replaceAll("_", " ").replace(/\b(psi|ks)\b/g, (short) => short.toUpperCase());

/** Ages and delays are told as durations, other figures as numbers. */
const inUnits = (name, value) => (/^(freshness|delay|silent)_/.test(name) ? duration(value) : figure(value));

/** What an alert is about, without the sentence's figures: those stand beside it. Names stay as they are. */
function sentence(alert) {
  const sentence = (alert.message ?? "").replace(/:\s*\S+ [-\d.e+]+, (above|below) [-\d.e+]+$/, "");
  return [alert.model, alert.feature, alert.segment].some((name) => name && sentence.startsWith(name)) ? sentence : capital(sentence);
}

/** Unacknowledged ones first, and the newest of them on top. */
const order = (a, b) => a.acknowledged - b.acknowledged || (b.opened_at ?? 0) - (a.opened_at ?? 0);

/** Show alerts; `showSubject(alert)` leads to the row that one is about, `subjectPanel(alert)` says in which panel it is. */
export function updateAlerts(snapshot, { showSubject, subjectPanel }) {
  const open = [...(snapshot.alerts ?? [])].sort(order);
  const resolved = snapshot.resolved ?? [];
  const make = () => makeAlert(showSubject);
  keyed(
    byId("alerts-open"),
    open,
    (a) => a.id,
    make,
    (node, a) => update(node, a, snapshot, subjectPanel),
  );
  keyed(byId("alerts-resolved"), resolved, (a) => `${a.id} ${a.opened_at} ${a.end}`, makeResolved, updateResolved);
  byId("alerts-none").hidden = open.length > 0;
  byId("resolved-none").hidden = resolved.length > 0;
}

function makeAlert(showSubject) {
  const node = el("li", { class: "alert" });
  const bar = svg(
    "svg",
    { class: "against", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "ground", width: 100, height: 8, rx: 1 }),
    svg("rect", { class: "value", height: 8 }),
    svg("rect", { class: "limit", width: 1, height: 8 }),
  );
  const parts = {
    kind: el("span", { class: "tag" }),
    mark: el("span", { class: "tag calm" }),
    message: el("p", { class: "message" }),
    bar,
    numbers: el("p", { class: "numbers" }),
    since: el("p", { class: "since" }),
    look: el("p", { class: "look" }, el("b", {}, "Look at "), el("span")),
    evidence: el("details", {}, el("summary", {}, "Evidence"), el("dl", { class: "evidence" })),
    show: el("button", { type: "button", class: "link", on: { click: () => showSubject(node.alert) } }),
    acknowledge: el(
      "button",
      { type: "button", class: "small", on: { click: () => askFor(node.alert, parts.acknowledge) } },
      "Acknowledge",
    ),
  };
  node.parts = parts;
  node.append(
    el("div", { class: "alert-head" }, sign("behind"), parts.kind, parts.mark),
    parts.message,
    el("div", { class: "measure" }, bar, parts.numbers),
    parts.since,
    parts.look,
    parts.evidence,
    el("div", { class: "buttons" }, parts.show, parts.acknowledge),
  );
  return node;
}

function update(node, alert, snapshot, subjectPanel) {
  const p = node.parts;
  node.alert = alert;
  attr(node, "class", `alert${alert.acknowledged ? " acknowledged" : ""}`);
  text(p.kind, words(alert.kind));
  text(p.mark, alert.acknowledged ? `acknowledged${alert.by ? ` by ${alert.by}` : ""}` : "");
  attr(p.mark, "title", alert.why || null);
  p.mark.hidden = !alert.acknowledged;
  text(p.message, sentence(alert));
  text(p.numbers, measure(alert));
  drawMeasure(p.bar, alert);
  const lasts = typeof alert.end === "number" && typeof alert.since === "number" ? (alert.end - alert.since) / 1000 : null;
  const windows = lasts && snapshot.window_ms ? Math.round((lasts * 1000) / snapshot.window_ms) : null;
  text(
    p.since,
    `since ${moment(alert.since)}, event time${windows ? `: ${plural(windows, "window")}` : lasts ? `: ${duration(lasts)}` : ""}`,
  );
  attr(p.since, "title", `opened at ${moment(alert.opened_at)} by the wall clock`);
  text(p.look.lastChild, alert.look_at ?? "");
  p.look.hidden = !alert.look_at;
  const evidence = Object.entries(alert.evidence ?? {});
  p.evidence.hidden = !evidence.length;
  keyed(
    p.evidence.lastChild,
    evidence,
    ([name]) => name,
    () => el("div", {}, el("dt"), el("dd")),
    (row, [name, value]) => {
      text(row.firstChild, words(name));
      text(row.lastChild, inUnits(name, value));
    },
  );
  const panel = subjectPanel(alert);
  text(p.show, panel ? `Show in ${panel}` : "");
  p.show.hidden = !panel;
  attr(p.acknowledge, "aria-label", `Acknowledge: ${alert.message}`);
  p.acknowledge.hidden = Boolean(alert.acknowledged);
}

function measure(alert) {
  const { figure: name, value, limit } = alert;
  if (typeof value !== "number") return "";
  if (typeof limit !== "number") return `${words(name)} ${inUnits(name, value)}`;
  const times = value > limit && limit > 0 && value / limit >= 1.1 ? ` (${(value / limit).toFixed(1)} ×)` : "";
  return `${words(name)} ${inUnits(name, value)}, ${value < limit ? "below" : "above"} ${inUnits(name, limit)}${times}`;
}

/** The value as a bar, and the limit as a line on it. */
function drawMeasure(bar, { value, limit }) {
  const usable =
    typeof value === "number" && typeof limit === "number" && value >= 0 && limit >= 0 && Math.max(value, limit) > 0;
  attr(bar, "hidden", !usable);
  if (!usable) return;
  const scale = 96 / Math.max(value, limit);
  attr(bar.children[1], "width", (value * scale).toFixed(1));
  attr(bar.children[2], "x", (limit * scale).toFixed(1));
}

function makeResolved() {
  return el(
    "li",
    { class: "alert" },
    el("div", { class: "alert-head" }, sign("ok"), el("span", { class: "tag calm" })),
    el("p", { class: "message" }),
    el("p", { class: "since" }),
  );
}

function updateResolved(node, alert) {
  const [head, message, since] = node.children;
  text(head.children[1], words(alert.kind));
  text(message, alert.message ?? "");
  text(since, `${moment(alert.since)} to ${alert.end ? moment(alert.end) : NONE}, event time`);
}
