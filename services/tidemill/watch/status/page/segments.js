// Per segment: the chosen metric of each model, and how much better than the baseline the champion is there.

import { attr, byId, clipped, svg, text } from "./dom.js";
import { metric, signed } from "./format.js";
import { gain, ranked } from "./models.js";
import { Table, parts } from "./tables.js";

export class Segments {
  constructor() {
    this.table = new Table({
      label: "Segments",
      key: (s) => s.segment,
      columns: [],
      tall: true,
      sort: { id: "gain", direction: "ascending" },
      empty: "No data yet: shown from the first complete window with labels on, if segments are declared.",
      mark: (s) => (s.alert ? "is-alert" : null),
    });
    byId("segment-table").append(this.table.root);
  }

  update(snapshot, chosen) {
    const segments = snapshot.performance?.segments ?? [];
    // Some figures are told by window only; then the first metric stands here.
    const told = segments.some((s) => Object.values(s.models ?? {}).some((m) => typeof m[chosen.name] === "number"));
    const first = (snapshot.metrics ?? [])[0];
    const shown = told || !first ? chosen : { name: first.name, better: first.bigger_is_better ? 1 : -1 };
    const name = shown.name.replaceAll("_", " ");
    const direction = shown.better === 0 ? "nearer to 0 is better" : shown.better > 0 ? "more is better" : "less is better";
    text(byId("segments-note"), segments.length ? `${name} in the last window, ${direction}` : "");

    const models = ranked(snapshot);
    const of = (row, model) => row.models?.[model]?.[shown.name];
    const alarmed = new Set((snapshot.alerts ?? []).map((a) => a.segment).filter(Boolean));
    const rows = segments.map((s) => ({
      ...s,
      gain: gain(of(s, snapshot.champion), of(s, "baseline"), shown.better),
      alert: alarmed.has(s.segment),
    }));
    const most = Math.max(...rows.map((r) => Math.abs(r.gain ?? 0)), 1e-9);
    this.table.setColumns([
      {
        id: "segment",
        title: "segment",
        className: "key",
        value: (s) => s.segment,
        fill: (cell, s) => clipped(parts(cell, clip).span, s.segment),
      },
      {
        id: "gain",
        title: "vs. baseline",
        help: "how much better (right) or worse (left) than the baseline the champion is",
        className: "gain",
        value: (s) => s.gain,
        fill: (cell, s) => gainCell(cell, s, of(s, snapshot.champion), of(s, "baseline"), most),
      },
      ...models.map((model) => ({
        id: `model ${model}`,
        title: model,
        numeric: true,
        className: model === snapshot.champion ? "strong" : "",
        first: shown.better < 0 ? "ascending" : "descending",
        value: (s) => of(s, model),
        fill: (cell, s) => text(cell, metric(of(s, model))),
      })),
    ]);
    this.table.update(rows);
  }

  reveal(segment) {
    return this.table.reveal(segment);
  }
}

const clip = () => {
  const span = document.createElement("span");
  span.className = "clip";
  return { span };
};

/** A bar from the middle: to the right where the champion is better, to the left where it is worse. */
function gainCell(cell, row, champion, baseline, most) {
  const p = parts(cell, () => {
    const line = svg("line", { x1: 40, x2: 40, y1: 0, y2: 12 });
    const rect = svg("rect", { y: 2, height: 8, rx: 1 });
    const bar = svg(
      "svg",
      { class: "gain-bar", viewBox: "0 0 80 12", width: 80, height: 12, "aria-hidden": "true" },
      rect,
      line,
    );
    const gain = document.createElement("span");
    return { gain, bar, rect };
  });
  const known = row.gain !== null;
  const width = known ? (Math.abs(row.gain) / most) * 38 : 0;
  text(p.gain, known ? signed(champion - baseline) : "–");
  attr(p.gain, "class", `amount${known ? (row.gain < 0 ? " worse" : " better") : ""}`);
  attr(attr(p.rect, "width", width.toFixed(1)), "x", (row.gain < 0 ? 40 - width : 40).toFixed(1));
  attr(p.rect, "class", row.gain < 0 ? "worse" : "better");
}
