// What the river's diagram shows, made of a snapshot: boxes with their health, and the wires between them.
// The diagram, its list for small screens and the words in the header all start from here.

import { count, duration, rate } from "./format.js";

const WORST_FIRST = ["down", "behind", "starting", "unknown", "ok"];
export const worst = (states) => WORST_FIRST.find((state) => states.includes(state)) ?? "unknown";

const OUTSIDE = { producers: "Producers", consumers: "Consumers", "dead letters": "Dead letters", redis: "Redis" };
const ALIASES = {
  dlq: "dead letters",
  "dead-letters": "dead letters",
  dead_letters: "dead letters",
  learners: "learner",
  store: "redis",
};
const TRUNK = ["producers", "validator", "featurizer", "scorer", "joiner"];

/** Wires that every pipeline has whose services it runs (materializer, gate and notifier are not always among them); the snapshot's flow says how much goes through those that it counts. */
const WIRES = [
  ["producers", "validator", "events, labels"],
  ["validator", "featurizer", "events.valid"],
  ["validator", "joiner", "labels.valid"],
  ["validator", "dead letters", "dlq"],
  ["featurizer", "redis", "views"],
  ["featurizer", "materializer", "updates"],
  ["joiner", "materializer", "updates"],
  ["materializer", "redis", "views"],
  ["featurizer", "scorer", "features"],
  ["scorer", "consumers", "predictions"],
  ["scorer", "joiner", "prediction-log"],
  ["joiner", "learner", "examples"],
  ["learner", "scorer", "models"],
  ["joiner", "gate", "examples"],
  ["gate", "scorer", "promotions"],
  ["monitor", "notifier", "alerts"],
];

/** In which box one looks first for what raised an alert. */
const PLACES = {
  drift: "featurizer",
  missing: "featurizer",
  unseen: "featurizer",
  prediction_drift: "scorer",
  calibration: "scorer",
  delay: "scorer",
  rejected: "dead letters",
  warned: "validator",
  label_drift: "joiner",
  label_coverage: "joiner",
};
function placeOf(alert, snapshot) {
  if (alert.kind === "performance") return alert.model ? `learner-${alert.model}` : "scorer";
  if (alert.kind === "freshness" || alert.kind === "stale")
    return snapshot.freshness?.views?.find((v) => v.view === alert.feature)?.kept_by ?? "featurizer";
  return PLACES[alert.kind];
}

const known = (values) => values.filter((x) => typeof x === "number");
const sum = (values) => (known(values).length ? known(values).reduce((a, b) => a + b, 0) : null);
const most = (values) => (known(values).length ? Math.max(...known(values)) : null);
/** A candidate, slow~12000, is learned beside the model that it is a copy of, in that one's learner. */
const declaredAs = (name) => (name ?? "").split("~")[0];
const boxName = (name) => ALIASES[name] ?? name;
const isLearner = (name) => name === "learner" || name.startsWith("learner-");

/** Return { nodes: Map by name, wires } of a snapshot. */
export function river(snapshot) {
  const nodes = new Map();
  const put = (name, of) =>
    nodes.set(name, { name, title: name, kind: "service", state: "unknown", why: "", instances: [], open: 0, seen: 0, ...of });

  for (const [name, instances] of byName(snapshot.services ?? [])) {
    const state = worst(instances.map((i) => i.state));
    put(name, {
      state,
      instances,
      why: instances.find((i) => i.state === state)?.why ?? "",
      rate: sum(instances.map((i) => i.rate)),
      lag: sum(instances.map((i) => i.lag)),
      delay: most(instances.map((i) => i.delay)),
    });
  }
  const learners = [...nodes.keys()].filter(isLearner);
  for (const name of TRUNK.slice(1)) if (!nodes.has(name)) put(name, { why: "has not answered yet" });
  if (!learners.length) {
    const expected = (snapshot.model_names ?? []).filter((model) => model !== "baseline" && !model.includes("~")).map((model) => `learner-${model}`);
    learners.push(...(expected.length ? expected : ["learner"]));
    for (const name of learners) put(name, { why: "has not answered yet" });
  }
  const redis = (snapshot.dependencies ?? []).find((d) => d.name === "redis");
  for (const [name, title] of Object.entries(OUTSIDE)) put(name, { title, kind: name === "redis" ? "store" : "outside" });
  Object.assign(nodes.get("redis"), redis ? { state: redis.ok ? "ok" : "down", why: redis.why ?? "" } : {});
  nodes.get("dead letters").total = snapshot.dead_letters?.total ?? null;
  for (const name of learners) {
    const model = name.slice("learner-".length);
    Object.assign(nodes.get(name), { model, champion: model === declaredAs(snapshot.champion) });
  }

  for (const alert of snapshot.alerts ?? []) {
    const node = nodes.get(placeOf(alert, snapshot)) ?? nodes.get("scorer");
    if (alert.acknowledged) node.seen += 1;
    else node.open += 1;
  }
  return { nodes, learners, wires: wires(snapshot, nodes, learners) };
}

function wires(snapshot, nodes, learners) {
  const prefix = `${snapshot.pipeline ?? ""}.`;
  const found = new Map();
  const ends = (name) => (name === "learner" && !nodes.has(name) ? learners : [name]);
  const add = (from, to, topic, rate, total) => {
    const key = `${from} > ${to}`;
    const wire = found.get(key) ?? { key, from, to, topics: [], rate: null, total: null };
    if (topic && !wire.topics.some((t) => t.topic === topic)) wire.topics.push({ topic, rate });
    wire.rate = sum([wire.rate, rate]);
    wire.total = sum([wire.total, total]);
    found.set(key, wire);
  };
  for (const edge of snapshot.flow ?? []) {
    const [from, to] = [boxName(edge.from), boxName(edge.to)];
    for (const name of [from, to]) {
      if (!nodes.has(name) && !isLearner(name)) {
        nodes.set(name, { name, title: name, kind: "outside", state: "unknown", why: "", instances: [], open: 0, seen: 0 });
      }
    }
    const topic = (edge.topic ?? "").replaceAll(prefix, "");
    for (const a of ends(from)) for (const b of ends(to)) add(a, b, topic, edge.rate ?? null, edge.total ?? null);
  }
  for (const [from, to, topic] of WIRES) {
    for (const a of ends(from)) for (const b of ends(to)) if (nodes.has(a) && nodes.has(b) && !found.has(`${a} > ${b}`)) add(a, b, topic, null, null);
  }
  return [...found.values()];
}

function byName(services) {
  const found = new Map();
  for (const service of services) found.set(service.name, [...(found.get(service.name) ?? []), service]);
  return found;
}

/** Return what is wrong in few words, and how bad it is: { words, level: "ok" | "warn" | "bad", open, seen }. */
export function verdict(snapshot) {
  const { nodes } = river(snapshot);
  const open = (snapshot.alerts ?? []).filter((a) => !a.acknowledged).length;
  const seen = (snapshot.alerts ?? []).length - open;
  const words = [];
  if (open) words.push(`${open} ${open === 1 ? "alert" : "alerts"}`);
  else if (seen) words.push(`${seen} acknowledged ${seen === 1 ? "alert" : "alerts"}`);
  const unreachable = (snapshot.dependencies ?? []).filter((d) => !d.ok).map((d) => capital(d.name));
  words.push(...unreachable.map((name) => `${name} unreachable`));
  const at = (state) => [...nodes.values()].filter((n) => n.kind === "service" && n.state === state).map((n) => n.name);
  const states = ["down", "behind", "starting"].map((state) => [state, at(state)]).filter(([, names]) => names.length);
  // One or two are named; of more only the number is shown.
  const many = states.flatMap(([, names]) => names).length > 2;
  states.forEach(([state, names], i) => {
    const services = i ? "" : names.length === 1 ? "service " : "services ";
    words.push(many ? `${names.length} ${services}${state}` : `${names.join(" and ")} ${state}`);
  });
  if (!(snapshot.services ?? []).length) words.push("no service has answered yet");
  const level = unreachable.length || at("down").length || open ? "bad" : words.length ? "warn" : "ok";
  return { words: words.length ? words.join(", ") : "all well", level, open, seen };
}

export const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

const WORDS = { ok: "ok", starting: "starting", behind: "behind", down: "down", unknown: "unknown" };

/** Words for a node's state: what has no health of its own has none. */
export function stateWord(node) {
  if (node.kind === "outside") return "";
  if (node.kind === "store") return { ok: "ok", down: "unreachable" }[node.state] ?? "unknown";
  return WORDS[node.state] ?? node.state;
}

/** The figures of a box, a line each. */
export function figures(node, river) {
  if (node.name === "dead letters") return [node.total === null ? "none yet" : `${count(node.total)} in total`];
  if (node.kind === "outside" || node.kind === "store") {
    const total = sum(river.wires.filter((w) => w.from === node.name || w.to === node.name).map((w) => w.total));
    return total === null ? [] : [`${count(total)} so far`];
  }
  return [rate(node.rate), `lag ${count(node.lag)} · ${duration(node.delay)}`];
}
