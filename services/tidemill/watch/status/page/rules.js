// Value skew: by rule, the share of records that it refused and that it warned of, window by window.

import { drawSparkline, sparkline } from "./charts.js";
import { byId, clipped, el, text } from "./dom.js";
import { plural, share, windowName } from "./format.js";
import { Table, parts } from "./tables.js";

const last = (values) => values?.at(-1) ?? null;
const shares = (id, title, help) => [
  {
    id: `${id}-course`,
    title: `${title} by window`,
    fill: (cell, r) => {
      const { spark } = parts(cell, () => ({ spark: sparkline() }));
      const known = r[id] ?? [];
      const label = known.length ? `${title}: now ${share(last(known))}, highest ${share(Math.max(...known))}` : `nothing ${title}`;
      drawSparkline(spark, known, { label });
    },
  },
  {
    id,
    title,
    help,
    numeric: true,
    value: (r) => last(r[id]),
    fill: (cell, r) => text(cell, share(last(r[id]))),
  },
];

export class Rules {
  constructor() {
    this.table = new Table({
      label: "Broken rules",
      key: (r) => [r.reason, r.rule, r.field].join(" "),
      tall: true,
      sort: { id: "refused", direction: "descending" },
      empty: "No rule was broken in these windows.",
      columns: [
        {
          id: "reason",
          title: "reason",
          className: "key",
          value: (r) => r.reason,
          fill: (cell, r) => clipped(parts(cell, () => ({ name: el("span", { class: "clip" }) })).name, r.reason),
        },
        { id: "rule", title: "rule", value: (r) => r.rule, fill: (cell, r) => clipped(cell, r.rule) },
        { id: "field", title: "field", value: (r) => r.field, fill: (cell, r) => clipped(cell, r.field) },
        ...shares("refused", "refused", "share of the last window's records that it turned into dead letters"),
        ...shares("warned", "warned", "share of the last window's records that broke it and were only warned of"),
      ],
    });
    byId("rule-table").append(this.table.root);
  }

  update(snapshot) {
    const { rules = [], windows = [] } = snapshot.rules ?? {};
    text(
      byId("rules-note"),
      windows.length
        ? `${plural(rules.length, "kind")} of violation in ${plural(windows.length, "window")}, until ${windowName(last(windows), snapshot.window_ms)}`
        : "no data yet: shown from the first complete window on",
    );
    this.table.update(rules);
  }

  reveal(alert) {
    const [reason, rule = ""] = (alert.segment ?? "").split(":");
    return this.table.reveal([reason, rule, alert.feature].join(" "));
  }
}
