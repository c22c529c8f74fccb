// Dead letters, by reason, and the latest of them.

import { attr, byId, clipped, el, svg, text } from "./dom.js";
import { ago, anything, count, exactly, NONE, place, plural } from "./format.js";
import { Table, parts } from "./tables.js";
import { ask, problemOf } from "./token.js";

const clip = () => ({ span: el("span", { class: "clip" }) });
const words = (id, title, value, className = "") => ({
  id,
  title,
  className,
  value,
  fill: (cell, row) => clipped(parts(cell, clip).span, value(row)),
});
const AGAIN_MS = 5000; // the letters of a chosen reason are asked for at most this often

export class Letters {
  constructor() {
    this.chosen = null;
    this.now = null;
    this.asked = { reason: null, count: -1, at: 0, letters: [] };
    this.reasons = new Table({
      label: "Dead letters by reason",
      key: (r) => [r.reason, r.rule, r.field].join(" "),
      tall: true,
      sort: { id: "count", direction: "descending" },
      empty: "No dead letters yet. Records that can't be used are kept here, with the reason and the original bytes.",
      mark: (r) => (r.reason === this.chosen ? "is-chosen" : null),
      columns: [
        { id: "reason", title: "reason", className: "key", value: (r) => r.reason, fill: (cell, r) => this.#reason(cell, r) },
        {
          id: "count",
          title: "count",
          numeric: true,
          className: "counted",
          value: (r) => r.count,
          fill: (cell, r) => this.#count(cell, r),
        },
        {
          id: "last",
          title: "last",
          numeric: true,
          value: (r) => r.last_at,
          fill: (cell, r) => attr(text(cell, ago(r.last_at, this.now)), "title", exactly(r.last_at)),
        },
        { id: "message", title: "last message", className: "wide", fill: (cell, r) => text(cell, r.last_message || NONE) },
      ],
    });
    this.latest = new Table({
      label: "The latest dead letters",
      key: (l) => `${l.topic} ${l.partition} ${l.offset} ${l.at}`,
      tall: true,
      empty: "None.",
      columns: [
        {
          id: "at",
          title: "time",
          className: "time",
          value: (l) => l.at,
          first: "descending",
          fill: (cell, l) => text(cell, exactly(l.at)),
        },
        words("stage", "stage", (l) => l.stage),
        words("reason", "reason", (l) => l.reason),
        words("field", "field", (l) => l.field),
        {
          id: "value",
          title: "value",
          className: "code",
          value: (l) => l.value,
          fill: (cell, l) => clipped(parts(cell, clip).span, anything(l.value)),
        },
        {
          id: "place",
          title: "topic, partition, offset",
          className: "code",
          value: (l) => place(l),
          fill: (cell, l) => text(cell, place(l)),
        },
        { id: "key", title: "key", className: "code", fill: (cell, l) => clipped(parts(cell, clip).span, l.key) },
        { id: "size", title: "bytes", numeric: true, value: (l) => l.size, fill: (cell, l) => text(cell, count(l.size)) },
      ],
    });
    byId("reason-table").append(this.reasons.root);
    byId("letter-table").append(this.latest.root);
  }

  update(snapshot) {
    const letters = snapshot.dead_letters ?? {};
    this.snapshot = snapshot;
    this.now = snapshot.now;
    text(
      byId("letters-note"),
      letters.total
        ? `${plural(letters.total, "dead letter")} of ${plural((letters.by_reason ?? []).length, "kind")}; select a reason to filter the list below`
        : "",
    );
    this.most = Math.max(1, ...(letters.by_reason ?? []).map((r) => r.count));
    this.reasons.update(letters.by_reason ?? []);
    if (this.chosen === null) {
      text(byId("latest-title"), "Latest");
      this.latest.update(letters.latest ?? [], "None yet.");
    } else {
      this.#follow(letters);
    }
  }

  #reason(cell, row) {
    const p = parts(cell, () => {
      const button = el("button", { type: "button", class: "link clip" });
      button.addEventListener("click", () => this.choose(this.chosen === button.reason ? null : button.reason));
      return { button, detail: el("span", { class: "role" }) };
    });
    p.button.reason = row.reason;
    attr(clipped(p.button, row.reason), "aria-pressed", String(this.chosen === row.reason));
    text(p.detail, [row.field, row.rule].filter(Boolean).join(", "));
  }

  #count(cell, row) {
    const p = parts(cell, () => {
      const rect = svg("rect", { height: 8, rx: 1 });
      return {
        total: el("span"),
        bar: svg("svg", { class: "count-bar", viewBox: "0 0 80 8", width: 80, height: 8, "aria-hidden": "true" }, rect),
        rect,
      };
    });
    text(p.total, count(row.count));
    attr(p.rect, "width", ((80 * row.count) / this.most).toFixed(1));
  }

  choose(reason) {
    this.chosen = reason;
    this.asked = {
      reason,
      count: -1,
      at: 0,
      letters: (this.snapshot?.dead_letters?.latest ?? []).filter((l) => l.reason === reason),
    };
    if (this.snapshot) this.update(this.snapshot);
  }

  /** Show the letters of the chosen reason, and ask for them again where there are more. */
  #follow(letters) {
    const reason = this.chosen;
    const amount = (letters.by_reason ?? []).filter((r) => r.reason === reason).reduce((sum, r) => sum + r.count, 0);
    text(byId("latest-title"), `Latest: ${reason}`);
    this.latest.update(this.asked.letters, this.asked.problem ?? "Loading…");
    if (amount === this.asked.count || Date.now() - this.asked.at < AGAIN_MS) return;
    this.asked.at = Date.now();
    ask(`/api/dead-letters?reason=${encodeURIComponent(reason)}&limit=100`)
      .then(async (answer) => {
        if (this.asked.reason !== reason) return;
        if (!answer.ok) {
          this.asked.problem = await problemOf(answer);
          return;
        }
        const found = await answer.json();
        this.asked = {
          reason,
          count: amount,
          at: Date.now(),
          letters: Array.isArray(found) ? found : (found.latest ?? []),
          problem: "No longer kept.",
        };
      })
      .catch(() => {
        this.asked.problem = "The server can't be reached; retrying.";
      });
  }

  reveal(alert) {
    const about = [alert.segment, alert.feature, alert.figure, alert.message].join(" ");
    const row = (this.snapshot?.dead_letters?.by_reason ?? []).find((r) => r.reason && about.includes(r.reason));
    return row ? this.reasons.reveal([row.reason, row.rule, row.field].join(" ")) : false;
  }
}
