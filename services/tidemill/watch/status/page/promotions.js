// Who serves, since when, by whose word: every decision, the evidence of the chosen one, and what waits for a person.

import { attr, byId, clipped, el, keyed, svg, text } from "./dom.js";
import { count, exactly, metric, moment, NONE, plural, share, signed } from "./format.js";
import { Table, parts } from "./tables.js";

const KINDS = {
  promoted: ["promoted", "good"],
  proposed: ["proposed", "open"],
  refused: ["refused", ""],
  rolled_back: ["rolled back", "bad"],
  kept: ["kept", "good"],
  pinned: ["pinned", "open"],
  unpinned: ["unpinned", ""],
  training: ["training begun", ""],
  reset: ["another life begun", ""],
  unchanged: ["unchanged", ""],
  declared: ["declared", ""],
};
const kindOf = (row) => (KINDS[row.kind] ?? [row.kind.replaceAll("_", " ")])[0];
const keyOf = (row) => row.decision?.id ?? "declared";
const modelRef = (row) => (row.model ? `${row.model}${row.version ? `@${row.version}` : ""}` : "none");
const modelRefOf = (ref) => modelRef(ref ?? {});

/** What the champion is called beside its name: pinned, or at which version it serves. */
export function championWord(snapshot) {
  if (!snapshot.champion_version) return "champion";
  return `champion, ${snapshot.champion_pinned ? "pinned" : "fixed"} at ${count(snapshot.champion_version)}`;
}

/** Proposals that nobody has acted on: the latest word on somebody, since the champion last changed. */
export function proposals(rows) {
  const spoken = new Set();
  const found = [];
  for (const row of rows) {
    const { decision } = row;
    if (!decision || modelRefOf(decision.champion) !== modelRefOf(decision.before)) break;
    if (row.kind === "proposed" && !spoken.has(modelRef(row))) found.push(row);
    spoken.add(modelRef(row));
  }
  return found;
}

export class Promotions {
  constructor() {
    this.chosen = null;
    this.open = new Set();
    this.table = new Table({
      label: "Promotions",
      key: keyOf,
      tall: true,
      empty: "No promotions yet. The declared champion serves.",
      mark: (row) => [keyOf(row) === this.shown ? "is-chosen" : "", this.open.has(keyOf(row)) ? "is-open" : ""].join(" ").trim(),
      columns: [
        { id: "kind", title: "decision", className: "key", value: kindOf, fill: (cell, row) => this.#kind(cell, row) },
        {
          id: "model",
          title: "about",
          value: modelRef,
          fill: (cell, row) => clipped(parts(cell, clip).span, modelRef(row)),
        },
        {
          id: "at",
          title: "time",
          className: "time",
          value: (row) => row.at,
          first: "descending",
          fill: (cell, row) => attr(text(cell, moment(row.at)), "title", exactly(row.at)),
        },
        { id: "by", title: "by", value: (row) => row.by, fill: (cell, row) => clipped(parts(cell, clip).span, row.by) },
        { id: "why", title: "why", className: "wide", fill: (cell, row) => clipped(parts(cell, lines).why, row.why || NONE) },
      ],
    });
    this.segments = new Table({
      label: "The evidence by segment",
      key: (line) => line.segment,
      columns: [],
      tall: true,
      sort: { id: "difference", direction: "ascending" },
      empty: "No segments declared.",
      mark: (line) => (this.#tooBad(line) ? "is-alert" : null),
    });
    byId("promotion-table").append(this.table.root);
    byId("evidence-table").append(this.segments.root);
  }

  update(snapshot) {
    const rows = snapshot.promotions ?? [];
    const open = proposals(rows);
    this.snapshot = snapshot;
    this.open = new Set(open.map(keyOf));
    // Until somebody chooses one: what waits, else the latest that has evidence.
    const first = open[0] ?? rows.find((row) => row.decision?.evidence?.length) ?? rows[0];
    const row = rows.find((r) => keyOf(r) === this.chosen) ?? first;
    this.shown = row && keyOf(row);
    text(byId("promotions-note"), serves(snapshot));
    const pill = byId("nav-proposals");
    text(pill, count(open.length));
    pill.hidden = !open.length;
    keyed(
      byId("proposals"),
      open,
      keyOf,
      () => el("li", {}, el("strong"), el("span"), el("code")),
      (node, r) => {
        const [head, why, command] = node.children;
        text(head, `${modelRef(r)} is proposed as champion.`);
        text(why, r.why);
        text(command, `tidemill models promote ${snapshot.pipeline} ${modelRef(r)} --why "…"`);
      },
    );
    byId("proposals").hidden = !open.length;
    this.table.update(rows);
    this.#evidence(row);
  }

  #kind(cell, row) {
    const p = parts(cell, () => {
      const button = el("button", { type: "button", class: "link" });
      button.addEventListener("click", () => {
        this.chosen = button.row;
        this.update(this.snapshot);
      });
      return { button, tag: el("span", { class: "tag" }) };
    });
    p.button.row = keyOf(row);
    attr(text(p.button, kindOf(row)), "aria-pressed", String(this.shown === keyOf(row)));
    attr(p.button, "class", `link kind ${KINDS[row.kind]?.[1] ?? ""}`);
    text(p.tag, this.open.has(keyOf(row)) ? "to decide" : "");
    p.tag.hidden = !this.open.has(keyOf(row));
  }

  #tooBad(line) {
    const gate = this.snapshot?.gate;
    return Boolean(gate && line.questions >= gate.least && line.difference < -gate.worse);
  }

  /** The evidence of a decision: all questions as words and as an interval on a line, the segments as a table. */
  #evidence(row) {
    const decision = row?.decision;
    const [all, ...segments] = decision?.evidence ?? [];
    byId("evidence").hidden = !row;
    byId("evidence-body").hidden = !all;
    const [served, other] = row?.compared ?? [];
    text(byId("evidence-title"), all ? `${other} against ${served}, which served` : row ? `${kindOf(row)}: ${modelRef(row)}` : "");
    text(byId("evidence-why"), row?.why);
    text(byId("evidence-none"), all ? "" : row?.kind === "declared" ? "A declaration needs no evidence." : "No evidence.");
    byId("evidence-none").hidden = Boolean(all);
    if (!all) return;
    keyed(
      byId("evidence-facts"),
      facts(decision, all, served, other),
      ([name]) => name,
      () => el("div", {}, el("dt"), el("dd")),
      (node, [name, value]) => {
        text(node.firstChild, name);
        text(node.lastChild, value);
      },
    );
    drawInterval(byId("evidence-interval"), all);
    const bad = segments.filter((line) => this.#tooBad(line)).length;
    const worse = segments.filter((line) => line.difference < 0).length;
    text(
      byId("evidence-note"),
      segments.length
        ? `${other} is worse in ${count(worse)} of ${plural(segments.length, "segment")}` +
            (this.snapshot.gate ? `, beyond the gate's limit in ${bad ? count(bad) : "none"}` : "")
        : "",
    );
    const most = Math.max(...segments.map((line) => Math.abs(line.difference)), 1e-9);
    this.segments.setColumns([
      {
        id: "segment",
        title: "segment",
        className: "key",
        value: (line) => line.segment,
        fill: (cell, line) => clipped(parts(cell, clip).span, line.segment),
      },
      {
        id: "difference",
        title: "difference",
        help: `how much lower the loss of ${other} is; below 0 it is worse`,
        className: "gain",
        value: (line) => line.difference,
        fill: (cell, line) => differenceCell(cell, line, most),
      },
      {
        id: "questions",
        title: "questions",
        numeric: true,
        value: (line) => line.questions,
        fill: (cell, line) => text(cell, count(line.questions)),
      },
      loss("champion", served),
      loss("challenger", other),
    ]);
    this.segments.update(segments);
  }
}

const clip = () => ({ span: el("span", { class: "clip" }) });
const lines = () => ({ why: el("span", { class: "two-lines" }) });

function serves(snapshot) {
  const at = snapshot.champion_version ? `@${snapshot.champion_version}` : "";
  return `${snapshot.champion ?? NONE}${at} serves${snapshot.champion_pinned ? ", pinned: the gate decides nothing" : ""}`;
}

const loss = (id, who) => ({
  id,
  title: who,
  numeric: true,
  help: "mean loss of a prediction; less is better",
  value: (line) => line[id],
  fill: (cell, line) => text(cell, metric(line[id])),
});

/** A difference of losses: with more digits than a metric, for it is small. */
function fine(x) {
  if (typeof x !== "number") return NONE;
  return Math.abs(x) >= 1 ? signed(x) : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(4)}`;
}

function facts(decision, all, served, other) {
  const known = typeof all.low === "number" && typeof all.high === "number";
  const found = [
    ["questions", `${count(all.questions)}, up to example ${count(decision.examples)}`],
    [`mean ${decision.loss}`, `${served} ${metric(all.champion)}, ${other} ${metric(all.challenger)}`],
    ["difference", `${fine(all.difference)}${known ? `, from ${fine(all.low)} to ${fine(all.high)}` : ", too few questions for an interval"}`],
  ];
  if (known) found.push(["probability of error", `at most ${share(decision.rate)}, over all looks`]);
  const { champion, challenger } = decision.metrics ?? {};
  if (typeof champion === "number") found.push(["metric", `${served} ${metric(champion)}, ${other} ${metric(challenger)}`]);
  return found;
}

/** The difference and its interval on a line, with 0 marked: all of it right of 0 is better, left of it worse. */
function drawInterval(root, { difference, low, high }) {
  const known = typeof low === "number" && typeof high === "number";
  const [from, to] = known ? [low, high] : [difference, difference];
  const reach = Math.max(Math.abs(from), Math.abs(to), 1e-9) * 1.12;
  const x = (value) => (150 + (140 * value) / reach).toFixed(1);
  const level = from > 0 ? "better" : to < 0 ? "worse" : "open";
  if (!root.firstChild) {
    const picture = svg("svg", { viewBox: "0 0 300 26", class: "interval", "aria-hidden": "true" });
    picture.append(svg("line", { class: "base" }), svg("line", { class: "zero" }), svg("line"), svg("circle", { r: 4.5 }));
    root.append(picture, el("p", { class: "note ends" }, el("span", {}, "worse"), el("span", {}, "0"), el("span", {}, "better")));
  }
  const [ground, zero, bar, dot] = root.firstChild.children;
  line(ground, 0, 300, 13, 13);
  line(zero, 150, 150, 3, 23);
  attr(line(bar, x(from), x(to), 13, 13), "class", `bar ${level}`);
  attr(attr(attr(dot, "cx", x(difference)), "cy", 13), "class", level);
}

const line = (node, x1, x2, y1, y2) => attr(attr(attr(attr(node, "x1", x1), "x2", x2), "y1", y1), "y2", y2);

/** A bar from the middle: to the right where the challenger is better, to the left where it is worse. */
function differenceCell(cell, row, most) {
  const p = parts(cell, () => {
    const middle = svg("line", { x1: 40, x2: 40, y1: 0, y2: 12 });
    const rect = svg("rect", { y: 2, height: 8, rx: 1 });
    const bar = svg("svg", { class: "gain-bar", viewBox: "0 0 80 12", width: 80, height: 12, "aria-hidden": "true" }, rect, middle);
    return { difference: el("span"), bar, rect };
  });
  const level = row.difference < 0 ? "worse" : "better";
  const width = (Math.abs(row.difference) / most) * 38;
  attr(text(p.difference, fine(row.difference)), "class", `amount ${level}`);
  attr(attr(attr(p.rect, "width", width.toFixed(1)), "x", (row.difference < 0 ? 40 - width : 40).toFixed(1)), "class", level);
}
