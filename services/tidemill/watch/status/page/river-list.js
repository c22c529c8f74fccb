// The river for small screens, as a list from the source down; and all processes as a table, for details on any screen.

import { attr, el, keyed, setSign, sign, text } from "./dom.js";
import { count, duration, plural, rate } from "./format.js";
import { capital, figures, stateWord } from "./river-model.js";
import { Table, parts } from "./tables.js";

const ORDER = ["producers", "validator", "featurizer", "scorer", "joiner"];

/** Bring the list up to date: the trunk from producers to learners first, what hangs on it after that. */
export function updateList(root, river) {
  const trunk = [...ORDER, ...river.learners].filter((name) => river.nodes.has(name));
  const beside = [...river.nodes.keys()].filter(
    (name) => !trunk.includes(name) && (river.nodes.get(name).kind === "service" || used(river, name)),
  );
  const steps = [...trunk, ...beside].map((name) => ({
    node: river.nodes.get(name),
    first: name === beside[0],
    // Learners read side by side, and not from each other.
    together: river.learners.indexOf(name) > 0,
    into: river.learners.indexOf(name) > 0 ? [] : river.wires.filter((w) => w.to === name && !river.learners.includes(w.from)),
    before: river.learners.includes(name) ? "joiner" : trunk[trunk.indexOf(name) - 1],
    river,
  }));
  keyed(root, steps, ({ node }) => node.name, makeStep, updateStep);
}

const used = (river, name) => river.wires.some((w) => w.from === name || w.to === name);

function makeStep() {
  return el(
    "li",
    {},
    el("p", { class: "into" }),
    el(
      "div",
      { class: "step" },
      el(
        "p",
        { class: "step-head" },
        el("strong"),
        el("span", { class: "state" }, sign("unknown"), el("span")),
        el("span", { class: "flag" }),
      ),
      el("p", { class: "step-figures" }),
      el("p", { class: "why" }),
    ),
  );
}

function updateStep(element, { node, first, together, into, before, river }) {
  const [wires, step] = element.children;
  const [head, numbers, why] = step.children;
  const word = stateWord(node);
  attr(
    element,
    "class",
    `is-${node.state}${first ? " beside" : ""}${together ? " together" : ""}${node.kind === "outside" ? " plain" : ""}`,
  );
  text(wires, incoming(into, before));
  wires.hidden = !into.length;
  text(head.children[0], `${node.champion ? "★ " : ""}${node.title}`);
  setSign(head.children[1].children[0], node.state);
  text(head.children[1].children[1], word);
  head.children[1].hidden = !word;
  text(head.children[2], node.open ? plural(node.open, "alert") : node.seen ? `${node.seen} acked` : "");
  attr(head.children[2], "class", `flag ${node.open ? "open" : "acknowledged"}`);
  head.children[2].hidden = !(node.open || node.seen);
  text(numbers, figures(node, river).join(" · "));
  text(why, node.state === "ok" ? "" : node.why);
  why.hidden = node.state === "ok" || !node.why;
}

/** What comes in, and from where; what several write to one topic is read, and counted, together. */
function incoming(wires, before) {
  const told = new Map();
  for (const w of wires) {
    const what = `${w.topics.map((t) => t.topic).join(", ")}${w.rate === null ? "" : ` ${rate(w.rate)}`}`;
    const shared = w.to === "materializer" ? what : `${what} ${w.from}`;
    told.set(shared, { what, from: [...(told.get(shared)?.from ?? []), w.from] });
  }
  return [...told.values()]
    .map(({ what, from }) => (from.length === 1 && from[0] === before ? what : `from ${from.join(" and ")}: ${what}`))
    .join(" · ");
}

/** The sentences below the diagram: what is not well, and why. */
export function updateTroubles(root, snapshot) {
  const problems = [];
  for (const d of snapshot.dependencies ?? [])
    if (!d.ok) problems.push({ key: `store ${d.name}`, state: "down", who: capital(d.name), word: "unreachable", why: d.why });
  for (const s of snapshot.services ?? []) {
    if (s.state === "ok") continue;
    const alone = snapshot.services.filter((other) => other.name === s.name).length === 1;
    problems.push({
      key: `${s.name} ${s.instance}`,
      state: s.state,
      who: alone ? s.name : `${s.name} ${s.instance}`,
      word: s.state,
      why: s.why,
    });
  }
  const [refused, ...others] = snapshot.refused ?? [];
  if (refused)
    problems.push({
      key: "refused",
      state: "behind",
      who: `${count(others.length + 1)}${others.length >= 99 ? " or more" : ""} signed ${others.length ? "records" : "record"}`,
      word: "refused",
      why: `${refused.topic} at ${count(refused.offset)}: ${refused.why}`,
    });
  root.hidden = !problems.length;
  keyed(
    root,
    problems,
    (x) => x.key,
    () => el("li", {}, sign("down"), el("strong"), el("span")),
    (node, x) => {
      attr(node, "class", `is-${x.state}`);
      setSign(node.children[0], x.state);
      text(node.children[1], `${x.who} ${x.word}`);
      text(node.children[2], x.why || "");
    },
  );
}

/** What the signs stand for. */
export function explainStates(root) {
  for (const state of ["ok", "starting", "behind", "down"]) root.append(el("span", {}, sign(state), ` ${state}`));
  root.append(el("span", {}, "lag: records behind · delay: mean of the last seconds"));
}

export function processTable() {
  const number = (id, title, show, help) => ({
    id,
    title,
    help,
    numeric: true,
    value: (s) => s[id],
    fill: (cell, s) => text(cell, show(s[id])),
  });
  return new Table({
    label: "All processes",
    key: (s) => `${s.name} ${s.instance}`,
    empty: "No process has answered yet. Each is asked once a second.",
    columns: [
      { id: "name", title: "service", value: (s) => s.name, fill: (cell, s) => text(cell, s.name) },
      { id: "instance", title: "instance", value: (s) => s.instance, fill: (cell, s) => text(cell, s.instance) },
      {
        id: "state",
        title: "state",
        value: (s) => s.state,
        fill: (cell, s) => {
          const p = parts(cell, () => ({ sign: sign(s.state), word: el("span") }));
          setSign(p.sign, s.state);
          text(p.word, ` ${s.state}`);
        },
      },
      number("rate", "rate", rate, "records a second, over the last seconds"),
      number("lag", "lag", count, "records behind the end of the topics that it reads"),
      number("delay", "delay", duration, "from a record's arrival in Kafka to the end of its batch"),
      number("records", "records", count, "since the process started"),
      number("retries", "retries", count, "since the process started"),
      number(
        "heartbeat_age",
        "heartbeat",
        (x) => (x === null ? "–" : `${duration(x)} ago`),
        "time since the last turn of its loop",
      ),
      { id: "why", title: "why", className: "wide", fill: (cell, s) => text(cell, s.why || "–") },
    ],
  });
}
