// Freshness: by feature view, how old the features were when they were served, in event time, and how often there were none.

import { drawSparkline, sparkline } from "./charts.js";
import { attr, byId, clipped, el, sign, text } from "./dom.js";
import { duration, plural, share, windowName } from "./format.js";
import { Table, parts } from "./tables.js";

const last = (values) => values?.at(-1) ?? null;
const number = (x) => typeof x === "number";

/** Whether the features of a view are older than it declares; null where it declares nothing, or nothing is known. */
const isBeyond = (view) => (number(view.objective) && number(last(view.p99)) ? last(view.p99) > view.objective : null);
const isStale = (view) => number(view.stale_limit) && (last(view.stale) ?? 0) > view.stale_limit;

const labelOf = (view) => {
  const known = (view.p99 ?? []).filter(number);
  if (!known.length) return "no ages yet";
  return `p99 of the age over ${plural(view.p99.length, "window")}, now ${duration(last(view.p99))}, highest ${duration(Math.max(...known))}`;
};

/** A figure of the last window; `fill` shows it. */
const latest = (id, help, show, more = {}) => ({
  id,
  title: id,
  help,
  numeric: true,
  value: (view) => last(view[id]),
  fill: (cell, view) => text(cell, show(last(view[id]))),
  ...more,
});

/** Beside an age that is beyond its objective: for all who don't see the colour. */
function beyondSign() {
  const mark = attr(sign("behind"), "aria-hidden", null);
  return attr(attr(mark, "role", "img"), "aria-label", "beyond the objective");
}

export class Freshness {
  constructor() {
    this.table = new Table({
      label: "Freshness by view",
      key: (v) => v.view,
      tall: true,
      empty: "The declaration has no feature views.",
      mark: (v) => (v.alert ? "is-alert" : null),
      columns: [
        {
          id: "view",
          title: "view",
          className: "key",
          value: (v) => v.view,
          fill: (cell, v) => {
            const p = parts(cell, () => ({
              name: el("span", { class: "clip" }),
              alert: el("span", { class: "tag" }, "alert"),
            }));
            clipped(p.name, v.view);
            p.alert.hidden = !v.alert;
          },
        },
        {
          id: "entity",
          title: "entity",
          help: "the event field with the id of its entity",
          value: (v) => v.entity,
          fill: (cell, v) => text(cell, v.entity),
        },
        {
          id: "source",
          title: "source",
          help: "the topic it is computed from: events, or examples (which have labels)",
          value: (v) => v.source,
          fill: (cell, v) => text(cell, v.source),
        },
        {
          id: "course",
          title: "p99 by window",
          fill: (cell, v) => {
            const { spark } = parts(cell, () => ({ spark: sparkline() }));
            drawSparkline(spark, v.p99 ?? [], { limit: v.objective, label: labelOf(v) });
          },
        },
        latest("p50", "median age of the features served", duration),
        latest("p99", "99 in 100 of the features that were served were younger", duration, {
          fill: (cell, v) => {
            const beyond = isBeyond(v) === true;
            const p = parts(cell, () => ({ mark: beyondSign(), age: el("span") }));
            text(p.age, duration(last(v.p99)));
            attr(p.mark, "display", beyond ? null : "none");
            attr(cell, "class", `number strong aged${beyond ? " worse" : ""}`);
          },
        }),
        {
          id: "objective",
          title: "objective",
          help: "the declared maximum age; a p99 beyond it in several windows opens an alert",
          numeric: true,
          value: (v) => v.objective,
          fill: (cell, v) => text(cell, duration(v.objective)),
        },
        latest("stale", "share of vectors in which the view could not be read", share, {
          fill: (cell, v) => attr(text(cell, share(last(v.stale))), "class", `number${isStale(v) ? " worse" : ""}`),
        }),
        latest("unknown", "share of vectors whose entity is not in the view, or that have no such entity", share),
      ],
    });
    byId("freshness-table").append(this.table.root);
  }

  update(snapshot) {
    const { views = [], windows = [] } = snapshot.freshness ?? {};
    const beyond = views.filter(isBeyond).length;
    const held = views.filter((v) => isBeyond(v) !== null).length;
    const objectives = beyond
      ? `${plural(beyond, "view")} beyond the objective`
      : held
        ? "all within their objectives"
        : "no objectives declared";
    text(
      byId("freshness-note"),
      windows.length
        ? `age in event time when served, until ${windowName(last(windows), snapshot.window_ms)}; ${objectives}`
        : views.length
          ? "no data yet: shown from the first complete window on"
          : "",
    );
    this.table.update(views);
  }

  reveal(view) {
    return this.table.reveal(view);
  }
}
