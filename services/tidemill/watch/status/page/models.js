// Champion, challengers and baseline: which metric, by window as a chart, and over all as a table; the champion's versions.

import { PerformanceChart, modelColours } from "./charts.js";
import { attr, byId, clipped, el, keyed, svg, text } from "./dom.js";
import { ago, count, exactly, metric, signed } from "./format.js";
import { championWord } from "./promotions.js";
import { Table, parts } from "./tables.js";

/** Figures that windows tell besides the metrics, and which way is better; 0 is where nearer to zero is. */
const FURTHER = { calibration_error: -1, bias: 0 };

/** The metrics that can be chosen: { name, better } with better 1, -1 or 0. */
function choices(snapshot) {
  const found = (snapshot.metrics ?? []).map((m) => ({ name: m.name, better: m.bigger_is_better ? 1 : -1 }));
  const windows = snapshot.performance?.windows ?? [];
  for (const [name, better] of Object.entries(FURTHER)) {
    if (windows.some((w) => Object.values(w.models ?? {}).some((m) => typeof m[name] === "number")))
      found.push({ name, better });
  }
  return found;
}

/** By how much `value` is better than `other`, in the metric's own unit; below zero it is worse. */
export function gain(value, other, better) {
  if (typeof value !== "number" || typeof other !== "number") return null;
  return better === 0 ? Math.abs(other) - Math.abs(value) : better * (value - other);
}

/** Champion first, then challengers as declared, the baseline last. */
export function ranked(snapshot) {
  const rank = (name) => (name === snapshot.champion ? 0 : name === "baseline" ? 2 : 1);
  return [...(snapshot.model_names ?? [])].sort((a, b) => rank(a) - rank(b));
}

export class Models {
  constructor(onChoice) {
    this.chosen = null;
    this.onChoice = onChoice;
    this.chart = new PerformanceChart(byId("chart"), byId("chart-legend"));
    this.table = new Table({
      label: "Models",
      key: (m) => m.name,
      columns: [],
      empty: "No models declared.",
      mark: (m) => (m.champion ? "is-champion" : null),
    });
    this.versions = new Table({
      label: "The champion's versions in the last window",
      key: (v) => v.version,
      columns: [],
      tall: true,
      sort: { id: "version", direction: "descending" },
      empty: "No data yet: shown from the first window with labels on.",
    });
    byId("model-table").append(this.table.root);
    byId("version-table").append(this.versions.root);
  }

  /** Bring all of it up to date; returns the chosen metric. */
  update(snapshot) {
    const found = choices(snapshot);
    const chosen = found.find((c) => c.name === this.chosen) ?? found[0] ?? { name: "", better: 1 };
    keyed(
      byId("metric"),
      found,
      (c) => c.name,
      (c) => this.#choice(c),
      (node, c) => {
        text(node.lastChild, c.name.replaceAll("_", " "));
        node.firstChild.checked = c.name === chosen.name;
      },
    );
    const models = ranked(snapshot);
    const windows = snapshot.performance?.windows ?? [];
    byId("chart-empty").hidden = windows.length > 0;
    byId("chart-legend").hidden = windows.length === 0;
    this.chart.update({ windows, models, champion: snapshot.champion, name: chosen.name, length: snapshot.window_ms });
    this.#models(snapshot, models);
    this.#versions(snapshot, chosen);
    return chosen;
  }

  #choice(choice) {
    const input = el("input", { type: "radio", name: "metric", value: choice.name });
    input.addEventListener("change", () => {
      this.chosen = choice.name;
      this.onChoice();
    });
    return el("label", {}, input, el("span"));
  }

  #models(snapshot, order) {
    const colours = modelColours(order, snapshot.champion);
    const rows = order.map((name) => (snapshot.models ?? []).find((m) => m.name === name) ?? { name });
    const metrics = snapshot.metrics ?? [];
    const best = new Map(
      metrics.map((m) => {
        const values = rows.map((r) => r.metrics?.[m.name]).filter((x) => typeof x === "number");
        return [m.name, values.length > 1 ? (m.bigger_is_better ? Math.max(...values) : Math.min(...values)) : null];
      }),
    );
    this.table.setColumns([
      {
        id: "name",
        title: "model",
        className: "model",
        value: (m) => m.name,
        fill: (cell, m) => modelCell(cell, m, snapshot, colours),
      },
      {
        id: "version",
        title: "version",
        numeric: true,
        value: (m) => m.version,
        fill: (cell, m) => text(cell, count(m.version)),
      },
      {
        id: "examples",
        title: "examples",
        numeric: true,
        value: (m) => m.examples,
        fill: (cell, m) =>
          attr(
            text(cell, count(m.examples)),
            "title",
            m.created_at ? `newest version made ${ago(m.created_at, snapshot.now)}, ${exactly(m.created_at)}` : null,
          ),
      },
      ...metrics.map((m) => ({
        id: `metric ${m.name}`,
        title: m.name,
        numeric: true,
        first: m.bigger_is_better ? "descending" : "ascending",
        help: m.bigger_is_better ? "more is better" : "less is better",
        value: (row) => row.metrics?.[m.name],
        fill: (cell, row) => {
          const value = row.metrics?.[m.name];
          const isBest = typeof value === "number" && value === best.get(m.name);
          attr(
            attr(text(cell, metric(value)), "class", `number${isBest ? " best" : ""}`),
            "title",
            isBest ? "the best of these" : null,
          );
        },
      })),
    ]);
    this.table.update(rows);
    const made = () => el("div", {}, el("dt"), el("dd", {}, el("code"), el("p", { class: "note" })));
    keyed(
      byId("model-details"),
      rows,
      (m) => m.name,
      made,
      (node, m) => {
        const [values, artifact] = node.lastChild.children;
        text(node.firstChild, m.name);
        text(values, m.hyperparameters || "shown from the first version on");
        text(artifact, m.uri ? `artifact ${m.uri}, made ${exactly(m.created_at)}` : "");
      },
    );
  }

  #versions(snapshot, { name, better }) {
    const rows = snapshot.performance?.versions ?? [];
    const shown = name.replaceAll("_", " ");
    this.versions.setColumns([
      {
        id: "version",
        title: "version",
        numeric: true,
        value: (v) => v.version,
        fill: (cell, v) => text(cell, count(v.version)),
      },
      {
        id: `metric ${name}`,
        title: shown,
        numeric: true,
        value: (v) => v.metrics?.[name],
        fill: (cell, v) => text(cell, metric(v.metrics?.[name])),
      },
      {
        id: `gain ${name}`,
        title: "vs. previous",
        numeric: true,
        value: (v) => v.gain?.[name],
        fill: (cell, v) => {
          const by = v.gain?.[name];
          attr(
            text(cell, signed(by)),
            "class",
            // What the service calls a gain is better above 0, whichever way the metric points.
            `number${typeof by !== "number" ? "" : by < 0 ? " worse" : " better"}`,
          );
        },
      },
    ]);
    this.versions.update(rows);
  }
}

const roleOf = (name) => (name === "baseline" ? "baseline" : name.includes("~") ? "candidate" : "challenger");

function modelCell(cell, model, snapshot, colours) {
  const p = parts(cell, () => {
    const path = svg("path", { d: "M0 3H14" });
    const name = el("span", { class: "clip" });
    const role = el("span", { class: "role" });
    const line = el(
      "div",
      { class: "model-line" },
      svg("svg", { class: "swatch", viewBox: "0 0 14 6", width: 14, height: 6, "aria-hidden": "true" }, path),
      name,
    );
    return { line, role, path, name };
  });
  attr(attr(p.path, "class", colours.get(model.name)), "stroke-dasharray", model.name === "baseline" ? "4 3" : null);
  clipped(p.name, model.name);
  text(p.role, model.name === snapshot.champion ? championWord(snapshot) : roleOf(model.name));
}
