// The head of the page: what state all is in, in words; the clocks; whether the stream lives. And the key figures below it.

import { attr, byId, el, keyed, text } from "./dom.js";
import { clock, count, duration, exactly, metric, rate, share, signed } from "./format.js";
import { capital, verdict } from "./river-model.js";

const COLOURS = { ok: "#15803d", warn: "#b45309", bad: "#dc2626", lost: "#6b7280" };
const favicon = byId("favicon");
let painted = "";
let title = "Tidemill";
let offset = null; // the server's clock minus ours: the wall clock that is shown is the server's
let connection = { name: "connecting", since: Date.now(), next: null, seen: false };

/** The tab says at a glance how things are. */
function paintTab(level) {
  document.title = connection.name === "lost" ? `Lost · ${title}` : title;
  if (painted === level) return;
  painted = level;
  const shape = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${COLOURS[level]}"/></svg>`;
  favicon.href = `data:image/svg+xml,${encodeURIComponent(shape)}`;
}

export function updateHeader(snapshot) {
  const { words, level, open } = verdict(snapshot);
  offset = typeof snapshot.now === "number" ? snapshot.now - Date.now() : offset;
  text(byId("pipeline"), snapshot.pipeline ?? "");
  text(byId("verdict-words"), words);
  attr(byId("verdict"), "class", `verdict is-${level}`);
  text(byId("event-time"), exactly(snapshot.event_time));
  const pill = byId("nav-alerts");
  text(pill, count(open));
  pill.hidden = !open;
  title = `${capital(words)} · ${snapshot.pipeline ?? ""} · Tidemill`;
  paintTab(connection.name === "lost" ? "lost" : level);
}

export function setConnection(state) {
  connection = state;
  const lost = state.name === "lost";
  const locked = state.name === "locked";
  document.body.classList.toggle("stale", lost);
  attr(byId("connection"), "class", `connection is-${state.name}`);
  text(byId("connection").lastElementChild, { live: "live", lost: "lost", connecting: "connecting", locked: "no token" }[state.name]);
  if (lost) {
    paintTab("lost");
    // Said once, for those who listen; the seconds tick beside it for those who look.
    const since = clock(state.since + (offset ?? 0));
    const message = state.seen
      ? `Connection lost at ${since} UTC. The data on this page is from then.`
      : "The status service can't be reached.";
    text(byId("lost").firstElementChild, message);
  }
  if (locked) {
    text(byId("lost").firstElementChild, "Reading needs a token here.");
    text(byId("lost").lastElementChild, "Enter the token");
  }
  byId("lost").hidden = !lost && !locked;
  tick();
}

/** Called each second, snapshot or not. */
export function tick() {
  if (offset !== null) text(byId("wall-clock"), exactly(Date.now() + offset));
  if (connection.name !== "lost") return;
  const wait = connection.next ? Math.max(0, Math.round((connection.next - Date.now()) / 1000)) : 0;
  text(byId("lost").lastElementChild, wait ? `Retry now (next try in ${wait} s)` : "Trying…");
}

const most = (services, field) =>
  services.reduce((best, s) => (typeof s[field] === "number" && (best === null || s[field] > best[field]) ? s : best), null);

/** The figures that are asked for first: one tile each, and each leads to its panel. */
function vitals(snapshot) {
  const services = snapshot.services ?? [];
  const into = (snapshot.flow ?? []).find((f) => f.to === "validator");
  const first = (snapshot.metrics ?? [])[0]?.name;
  const of = (name) => snapshot.models?.find((m) => m.name === name)?.metrics?.[first];
  const [champion, baseline] = [of(snapshot.champion), of("baseline")];
  const better = snapshot.metrics?.[0]?.bigger_is_better === false ? -1 : 1;
  const gain = typeof champion === "number" && typeof baseline === "number" ? champion - baseline : null;
  const [slow, late] = [most(services, "delay"), most(services, "lag")];
  const open = (snapshot.alerts ?? []).filter((a) => !a.acknowledged).length;
  const rejected = typeof into?.total === "number" && into.total > 0 ? (snapshot.dead_letters?.total ?? 0) / into.total : null;
  const labels = snapshot.labels ?? {};
  return [
    {
      id: "alerts",
      name: "Open alerts",
      value: count(open),
      note: open ? "look at these first" : "none open",
      href: "#alerts",
      level: open ? "bad" : "ok",
    },
    {
      id: "rate",
      name: "Records in",
      value: rate(into?.rate),
      note: typeof into?.total === "number" ? `${count(into.total)} so far` : "none counted yet",
      href: "#river",
    },
    {
      id: "lag",
      name: "Largest lag",
      value: count(late?.lag),
      note: late === null ? "none measured yet" : late.lag ? `${late.name}, records behind` : "all caught up",
      href: "#river",
    },
    {
      id: "delay",
      name: "Slowest step",
      value: duration(slow?.delay),
      note: slow ? slow.name : "none measured yet",
      href: "#river",
    },
    {
      id: "champion",
      name: `Champion's ${first ?? "metric"}`,
      value: metric(champion),
      note: [snapshot.champion_pinned ? "pinned" : "", gain === null ? "no baseline yet" : `${signed(gain)} vs. baseline`]
        .filter(Boolean)
        .join(", "),
      href: "#models",
      level: gain === null ? null : gain * better < 0 ? "bad" : null,
    },
    {
      id: "labels",
      name: "Label delay",
      value: duration(labels.delay_p50),
      note:
        typeof labels.delay_p50 === "number"
          ? `p95 ${duration(labels.delay_p95)}, coverage ${share(labels.coverage)}`
          : "no labels yet",
      href: "#drift",
    },
    {
      id: "letters",
      name: "Dead letters",
      value: count(snapshot.dead_letters?.total),
      note: rejected === null ? "none counted" : `${share(rejected)} of records read`,
      href: "#dead-letters",
    },
  ];
}

export function updateVitals(root, snapshot) {
  keyed(
    root,
    vitals(snapshot),
    (v) => v.id,
    () => el("div", {}, el("dt", {}, el("a")), el("dd", { class: "value" }), el("dd", { class: "note" })),
    (node, v) => {
      attr(node, "class", `vital${v.level ? ` is-${v.level}` : ""}`);
      attr(text(node.children[0].firstChild, v.name), "href", v.href);
      text(node.children[1], v.value);
      text(node.children[2], v.note);
    },
  );
}

export function updateStores(root, snapshot) {
  keyed(
    root,
    snapshot.dependencies ?? [],
    (d) => d.name,
    () => el("li", { class: "chip" }, el("i", { class: "dot", "aria-hidden": "true" }), el("span")),
    (node, d) => {
      attr(attr(node, "class", `chip is-${d.ok ? "ok" : "down"}`), "title", d.why || null);
      text(node.lastChild, `${capital(d.name)} ${d.ok ? "ok" : "unreachable"}`);
    },
  );
}

const STATES = { ok: "", down: "can't be reached", starting: "is not ready", behind: "is behind" };

/** The other pipelines, each with the way to its page. */
export function updatePipelines(root, snapshot) {
  const others = snapshot.pipelines ?? [];
  root.hidden = !others.length;
  keyed(
    root.firstElementChild,
    others,
    (p) => p.name,
    () => el("li", { class: "chip" }, el("i", { class: "dot", "aria-hidden": "true" }), el("a"), el("span")),
    (node, p) => {
      attr(attr(node, "class", `chip is-${p.state === "ok" ? "ok" : "down"}`), "title", p.why || null);
      attr(text(node.children[1], p.name), "href", p.url);
      text(node.lastChild, STATES[p.state] ?? p.state);
    },
  );
}
