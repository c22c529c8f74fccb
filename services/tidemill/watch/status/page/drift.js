// Drift: how far each feature, the scores and the labels are from the reference, by PSI over the windows.

import { drawSparkline, sparkline } from "./charts.js";
import { attr, byId, clipped, el, text } from "./dom.js";
import { figure, metric, plural, psi, share, windowName } from "./format.js";
import { Table, parts } from "./tables.js";

const QUANTILES = ["p05", "p25", "p50", "p75", "p95"];
const last = (values) => values?.at(-1) ?? null;
const number = (x) => typeof x === "number";

/** How near to its limit a feature is: above 1 it is beyond. Without a limit, its PSI against the usual 0.25. */
function nearness(row) {
  const now = last(row.psi);
  return number(now) ? now / (row.limit || 0.25) : null;
}

const psiColumns = [
  {
    id: "course",
    title: "PSI by window",
    fill: (cell, row) => {
      const { spark } = parts(cell, () => ({ spark: sparkline() }));
      const known = (row.psi ?? []).filter(number);
      const label = known.length
        ? `PSI over ${plural(row.psi.length, "window")}, now ${psi(last(row.psi))}, highest ${psi(Math.max(...known))}`
        : "no PSI yet";
      drawSparkline(spark, row.psi ?? [], { limit: row.limit, label });
    },
  },
  {
    id: "psi",
    title: "PSI",
    help: "population stability index against the reference; sorts by PSI over limit",
    numeric: true,
    value: nearness,
    fill: (cell, row) => {
      const beyond = (nearness(row) ?? 0) > 1;
      attr(text(cell, psi(last(row.psi))), "class", `number strong${beyond ? " worse" : ""}`);
    },
  },
  { id: "limit", title: "limit", numeric: true, value: (row) => row.limit, fill: (cell, row) => text(cell, figure(row.limit)) },
];

export class Drift {
  constructor() {
    this.features = new Table({
      label: "Drift by feature",
      key: (f) => f.name,
      tall: true,
      sort: { id: "psi", direction: "descending" },
      empty: "No data yet: shown from the first complete window on.",
      mark: (f) => (f.alert ? "is-alert" : null),
      columns: [
        {
          id: "name",
          title: "feature",
          className: "key",
          value: (f) => f.name,
          fill: (cell, f) => {
            const p = parts(cell, () => ({
              name: el("span", { class: "clip" }),
              kind: el("span", { class: "role" }),
              alert: el("span", { class: "tag" }, "alert"),
            }));
            clipped(p.name, f.name);
            text(p.kind, f.kind ?? "");
            p.alert.hidden = !f.alert;
          },
        },
        ...psiColumns,
        {
          id: "usual",
          title: "usual",
          help: "its range in the windows of the reference",
          numeric: true,
          fill: (cell, f) => text(cell, f.usual ? `${psi(f.usual[0])} to ${psi(f.usual[1])}` : "–"),
        },
        {
          id: "missing",
          title: "missing",
          help: "share of vectors without it",
          numeric: true,
          value: (f) => f.missing,
          fill: (cell, f) => text(cell, share(f.missing)),
        },
        {
          id: "unseen",
          title: "unseen",
          help: "share of values that are not in the training data",
          numeric: true,
          value: (f) => f.unseen,
          fill: (cell, f) => text(cell, share(f.unseen)),
        },
        ...QUANTILES.map((q) => ({
          id: q,
          title: q,
          numeric: true,
          className: q === "p50" ? "strong" : "",
          fill: (cell, f) => text(cell, figure(f.quantiles?.[q])),
        })),
      ],
    });
    this.outputs = new Table({
      label: "Drift of scores and labels",
      key: (o) => o.key,
      empty: "No data yet: scores are shown from the first complete window on, labels from the first with labels.",
      mark: (o) => (o.alert ? "is-alert" : null),
      columns: [
        {
          id: "name",
          title: "of",
          className: "key",
          fill: (cell, o) => clipped(parts(cell, () => ({ name: el("span", { class: "clip" }) })).name, o.name),
        },
        ...psiColumns,
        {
          id: "mean",
          title: "mean by window",
          fill: (cell, o) => {
            const p = parts(cell, () => ({ spark: sparkline() }));
            attr(p.spark, "visibility", o.mean ? null : "hidden");
            if (o.mean) drawSparkline(p.spark, o.mean, { least: null, label: `mean, now ${metric(last(o.mean))}` });
          },
        },
        { id: "now", title: "mean", numeric: true, fill: (cell, o) => text(cell, o.mean ? metric(last(o.mean)) : "–") },
      ],
    });
    byId("feature-table").append(this.features.root);
    byId("output-table").append(this.outputs.root);
  }

  update(snapshot) {
    const drift = snapshot.drift ?? {};
    const features = drift.features ?? [];
    const beyond = features.filter((f) => (nearness(f) ?? 0) > 1).length;
    const until = last(drift.windows);
    text(
      byId("drift-note"),
      drift.compared
        ? `against the reference, until ${windowName(until, snapshot.window_ms)}; ${beyond ? `${plural(beyond, "feature")} beyond the limit` : "no feature beyond its limit"}`
        : features.length
          ? "not compared yet: the reference is not complete"
          : "",
    );
    this.features.update(features);
    this.outputs.update(outputs(snapshot, drift));
  }

  reveal(feature) {
    return this.features.reveal(feature);
  }

  revealOutput(key) {
    return this.outputs.reveal(key);
  }
}

function outputs(snapshot, drift) {
  const kinds = (kind, model) =>
    (snapshot.alerts ?? []).some((a) => a.kind === kind && (model === undefined || a.model === model));
  // The baseline may have no scores to tell the drift of.
  const scored = (drift.scores ?? []).filter((s) => (s.psi ?? []).some(number) || s.model !== "baseline");
  const rows = scored.map((s) => ({
    ...s,
    key: `scores ${s.model}`,
    name: `scores of ${s.model}`,
    alert: kinds("prediction_drift", s.model),
  }));
  const labels = drift.labels ?? {};
  if (labels.mean?.length || labels.psi?.length) {
    rows.push({
      key: "labels",
      name: "labels",
      psi: labels.psi ?? [],
      mean: labels.mean ?? null,
      limit: labels.limit ?? null,
      alert: kinds("label_drift"),
    });
  }
  return rows;
}
