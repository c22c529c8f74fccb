// What was looked up, step by step, and where each step came from: event, vector, scores, outcome; or an entity's features.

import { byId, el, svg } from "./dom.js";
import { anything, count, duration, exactly, figure, place } from "./format.js";

const where = (at) =>
  at?.topic ? el("p", { class: "where" }, el("span", { class: "unseen" }, "from "), el("code", {}, place(at))) : null;

const step = (title, at, ...content) =>
  el("li", { class: "provenance-step" }, el("div", { class: "provenance-head" }, el("h4", {}, title), where(at)), ...content);

/** Names and values, as many columns of them as there is room for. */
function facts(values) {
  const entries = Object.entries(values ?? {});
  if (!entries.length) return el("p", { class: "empty" }, "Nothing.");
  return el(
    "dl",
    { class: "facts" },
    entries.map(([name, value]) =>
      el(
        "div",
        { class: anything(value).length > 40 ? "long" : null },
        el("dt", { title: name }, name),
        el("dd", { title: anything(value) }, anything(value)),
      ),
    ),
  );
}

/** The elements that tell of one prediction, from its event to its outcome. */
export function showPrediction(found) {
  const head = el(
    "p",
    { class: "found" },
    "Event ",
    el("code", {}, found.event_id),
    " of entity ",
    found.entity_id ? entity(found.entity_id) : "–",
    ` at ${exactly(found.event_time)}, event time; found in the ${found.found_in ?? "log"}.`,
  );
  const event = found.event ?? {};
  const partial = found.log?.partial
    ? el("p", { class: "warning" }, "Partial: the log no longer reached back to all that the views' windows need.")
    : null;
  return [
    el("h3", {}, "Prediction"),
    head,
    el(
      "ol",
      { class: "provenance" },
      step(
        "Event",
        event,
        event.record ? facts(event.record) : el("p", { class: "empty" }, `${event.why ?? "The record is not at hand"}.`),
      ),
      step("Views, as they were read", found.log, views(found.views ?? [])),
      step("Vector, as served", found.log, partial, facts(found.vector)),
      step("Scores", found.log, scores(found.scores ?? [])),
      outcome(found.outcome ?? { state: "pending" }, found),
    ),
  ];
}

/** A table that stays as it is; a title with "#" before it is one of numbers. */
const table = (label, titles, rows) =>
  el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          titles.map((title) =>
            el("th", { scope: "col", class: title.startsWith("#") ? "number" : null }, title.replace("#", "")),
          ),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );

const named = (name) => el("th", { scope: "row" }, el("span", { class: "clip", title: name }, name));

/** Each view, whose features it was asked for, and how old what it knew was. */
function views(all) {
  if (!all.length) return el("p", { class: "empty" }, "The declaration has no feature views.");
  const known = (v) => (v.stale ? "could not be read" : v.as_of === null ? "not in the view" : exactly(v.as_of));
  return table(
    "Views, as they were read",
    ["view", "of", "#age", "as of, event time"],
    all.map((v) =>
      el(
        "tr",
        {},
        named(v.view),
        el("td", {}, v.entity_id === null ? `no ${v.entity}` : entity(v.entity_id)),
        el("td", { class: "number strong" }, duration(v.age)),
        el("td", { class: v.stale ? "warning" : v.as_of === null ? "dim" : "time" }, v.entity_id === null ? "–" : known(v)),
      ),
    ),
  );
}

/** An entity's id, as a link where this page can look it up. */
const entity = (id) => (byId("look-up") ? el("a", { href: entityLink(id) }, id) : id);
const entityLink = (id) => `#entity=${encodeURIComponent(id)}`;

function scores(all) {
  if (!all.length) return el("p", { class: "empty" }, "No model has scored it.");
  return table(
    "Scores",
    ["model", "role", "#version", "#score", "", all.some((s) => s.manifest !== undefined) ? "manifest" : ""],
    all.map((s) =>
      el(
        "tr",
        { class: s.role === "champion" ? "is-champion" : null },
        named(s.model),
        el("td", {}, s.role ?? "–"),
        el("td", { class: "number" }, count(s.version)),
        el("td", { class: "number strong" }, scored(s)),
        el("td", {}, s.answered === false ? null : share(s.score)),
        el("td", {}, probabilities(s.probabilities), manifest(s.manifest)),
      ),
    ),
  );
}

/** What a model answered; the score of one that had no answer yet is the task's neutral one. */
export const scored = (s) => (s.answered === false ? "no answer yet" : figure(s.score));

/** A score between 0 and 1 as a bar. */
function share(score) {
  if (typeof score !== "number" || score < 0 || score > 1) return null;
  return svg(
    "svg",
    { class: "score-bar", viewBox: "0 0 80 8", width: 80, height: 8, "aria-hidden": "true" },
    svg("rect", { class: "ground", width: 80, height: 8, rx: 2 }),
    svg("rect", { class: "value", width: (80 * score).toFixed(1), height: 8, rx: 2 }),
  );
}

function probabilities(values) {
  const entries = Object.entries(values ?? {}).sort((a, b) => b[1] - a[1]);
  if (!entries.length) return null;
  return el(
    "details",
    {},
    el("summary", {}, `probabilities of ${count(entries.length)} classes`),
    facts(Object.fromEntries(entries.map(([k, v]) => [k, figure(v)]))),
  );
}

function manifest(of) {
  if (of === undefined) return null; // it was not asked for
  if (!of) return el("span", { class: "dim" }, "not at hand: the version's manifest is not among the latest");
  const { uri, created_at: made, examples, river, hyperparameters, ...rest } = of;
  return el(
    "details",
    {},
    el("summary", {}, `after ${count(examples)} examples, ${exactly(made)}`),
    facts({ artifact: uri, river, hyperparameters, ...rest }),
  );
}

function outcome(of, found) {
  const late =
    typeof of.label_time === "number" && typeof found.event_time === "number"
      ? (of.label_time - found.event_time) / 1000
      : null;
  const sentence = {
    joined: [
      "The label is ",
      el("strong", {}, anything(of.label)),
      ` since ${exactly(of.label_time)}, event time${late === null ? "" : `, ${duration(late)} after the event`}. It became an example.`,
    ],
    expired: ["No label came in time: the prediction expired."],
    pending: ["No label yet."],
  }[of.state] ?? [String(of.state ?? "–")];
  return step("Outcome", of, el("p", { class: `outcome is-${of.state}` }, ...sentence));
}

const asOf = (view) =>
  `as of ${exactly(view.event_time)}, event time${typeof view.age === "number" ? `: ${duration(view.age)} before the newest event` : ""}`;

/** The elements that tell of one entity, by feature view. */
export function showEntity(found) {
  const views = found.views ?? [];
  return [
    el("h3", {}, "Entity"),
    el(
      "p",
      { class: "found" },
      "Online features of ",
      el("code", {}, found.entity_id),
      ", as the feature views have them now.",
    ),
    views.length
      ? el(
          "ol",
          { class: "provenance" },
          views.map((view) =>
            el(
              "li",
              { class: "provenance-step" },
              el(
                "div",
                { class: "provenance-head" },
                el("h4", {}, `Feature view ${view.view}`),
                el("p", { class: "where" }, el("code", {}, view.key ?? "")),
              ),
              el("p", { class: "note" }, asOf(view)),
              facts(view.features),
            ),
          ),
        )
      : el("p", { class: "empty" }, "No feature view knows it."),
  ];
}
