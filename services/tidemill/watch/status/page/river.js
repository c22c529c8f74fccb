// The river as a diagram that lives: boxes and wires are made once, and brought up to date with each snapshot.

import { attr, keyed, setSign, sign, svg, text } from "./dom.js";
import { plural, rate } from "./format.js";
import { LEAST_WIDTH, layout } from "./river-layout.js";
import { figures, stateWord } from "./river-model.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");
const DASH = 14; // length of one dash with its gap, px
const FRAME_MS = 100;

export class River {
  constructor(root) {
    this.wires = svg("g", { class: "wires" });
    this.labels = svg("g", { class: "labels" });
    this.boxes = svg("g", { class: "boxes" });
    const head = svg(
      "marker",
      {
        id: "head",
        viewBox: "0 0 8 8",
        refX: 7,
        refY: 4,
        markerWidth: 8,
        markerHeight: 8,
        orient: "auto",
        markerUnits: "userSpaceOnUse",
      },
      svg("path", { d: "M1 1 7 4 1 7z" }),
    );
    this.svg = svg(
      "svg",
      { class: "diagram", "aria-hidden": "true" },
      svg("defs", {}, head),
      this.wires,
      this.labels,
      this.boxes,
    );
    root.append(this.svg);
    this.root = root;
    this.width = 0;
    this.streams = new Map(); // by wire: how fast its dashes drift, and how far they have
    this.drifted = 0;
    this.live = true;
    this.seen = true;
    new IntersectionObserver(([entry]) => (this.seen = entry.isIntersecting)).observe(this.svg);
    setInterval(() => this.#drift(), FRAME_MS);
    new ResizeObserver(() => this.river && this.update(this.river)).observe(root);
  }

  update(river) {
    this.river = river;
    const width = Math.floor(this.root.clientWidth) - 24; // its padding, into which flags stick out
    const narrow = width < LEAST_WIDTH;
    this.root.classList.toggle("narrow", narrow);
    if (narrow) return; // the list stands for the diagram there
    const plan = layout(
      width,
      [...river.nodes.keys()].filter((name) => this.#shown(river, name)),
      river.learners,
    );
    attr(this.svg, "viewBox", `0 0 ${plan.width} ${plan.height}`);
    attr(this.svg, "width", plan.width);
    attr(this.svg, "height", plan.height);

    const routed = river.wires.map((wire) => ({ wire, way: plan.route(wire) })).filter(({ way }) => way?.d);
    for (const key of this.streams.keys()) if (!routed.some(({ wire }) => wire.key === key)) this.streams.delete(key);
    keyed(
      this.wires,
      routed,
      ({ wire }) => wire.key,
      () => svg("g", {}, svg("path", { class: "bed" }), svg("path", { class: "water" })),
      (node, item) => this.#wire(node, item),
    );
    keyed(
      this.labels,
      routed.filter(({ way }) => way.label),
      ({ wire }) => wire.key,
      () => svg("g", {}),
      label,
    );
    const nodes = [...plan.boxes].map(([name, box]) => ({ node: river.nodes.get(name), box }));
    keyed(
      this.boxes,
      nodes,
      ({ node }) => node.name,
      makeBox,
      (element, item) => updateBox(element, item, river),
    );
  }

  /** What stands outside and nothing goes to or comes from is not drawn. */
  #shown(river, name) {
    return river.nodes.get(name).kind === "service" || river.wires.some((w) => w.from === name || w.to === name);
  }

  #wire(node, { wire, way }) {
    const [bed, water] = node.children;
    attr(node, "class", `wire${way.faint ? " faint" : ""}${way.tap ? " tap" : ""}`);
    const flow = wire.rate > 0 ? Math.log10(1 + wire.rate) : 0;
    for (const line of [bed, water]) attr(line, "d", way.d);
    attr(bed, "marker-end", way.faint || way.joins ? null : "url(#head)");
    attr(bed, "stroke-width", (1.5 + 0.45 * flow).toFixed(1));
    attr(water, "stroke-width", (1.5 + 0.45 * flow).toFixed(1));
    this.#flow(wire.key, water, flow);
  }

  /** Dashes drift along a wire, faster with more records; nothing jumps where the speed changes. */
  #flow(key, water, flow) {
    attr(water, "visibility", flow > 0 ? null : "hidden");
    const stream = this.streams.get(key) ?? { offset: 0 };
    this.streams.set(key, Object.assign(stream, { water, speed: flow > 0 ? 4 + 8 * flow : 0 }));
  }

  /** One clock for all wires, slower than the screen's: this page stays open all day, and water needs no more. */
  #drift() {
    const now = performance.now();
    const seconds = Math.min(0.2, (now - this.drifted) / 1000);
    this.drifted = now;
    if (!this.live || !this.seen || document.hidden || still.matches) return;
    for (const stream of this.streams.values()) {
      if (!stream.speed) continue;
      stream.offset = (stream.offset + stream.speed * seconds) % DASH;
      stream.water.style.strokeDashoffset = (-stream.offset).toFixed(1);
    }
  }

  /** Water stands still while nobody knows whether it moves. */
  setLive(live) {
    this.live = live;
  }
}

/** Topics and rate beside a wire: around it where it goes across, in a list where it goes down. */
function label(node, { wire, way }) {
  const { x, y, anchor, kind } = way.label;
  const topics = wire.topics.flatMap(({ topic }) => topic.split(/,\s*/)).filter(Boolean);
  const amount = wire.rate === null ? "" : rate(wire.rate);
  let lines;
  if (kind === "above") lines = [[`${topics.join(", ")}${amount ? `  ${amount}` : ""}`, y - 6]];
  else if (kind === "across")
    lines = [
      [topics.join(", "), y - 8],
      [amount, y + 17],
    ];
  else
    lines = [...topics.slice(0, 2), topics.length > 2 ? `and ${topics.length - 2} more` : amount].map((line, i) => [
      line,
      y + i * 13,
    ]);
  if (kind === "list" && topics.length === 2 && amount) lines[2] = [amount, y + 26];
  keyed(
    node,
    lines.filter(([line]) => line).map(([line, at], i) => ({ line, at, i })),
    ({ i }) => i,
    () => svg("text"),
    (element, { line, at }) => {
      attr(attr(attr(element, "x", x), "y", at), "text-anchor", anchor);
      text(element, line);
    },
  );
}

function makeBox() {
  return svg(
    "g",
    {},
    svg("title"),
    svg("rect", { class: "box", rx: 8 }),
    svg("rect", { class: "stripe", rx: 2, width: 4 }),
    svg("text", { class: "name" }, svg("tspan", { class: "dim" }), svg("tspan")),
    sign("unknown"),
    svg("text", { class: "state" }),
    svg("text", { class: "big" }),
    svg("text", { class: "small" }),
    svg("g", { class: "flag" }, svg("rect", { rx: 9, height: 18 }), svg("text", { "text-anchor": "middle" })),
  );
}

function updateBox(element, { node, box }, river) {
  const [title, back, stripe, name, mark, state, big, small, flag] = element.children;
  const word = stateWord(node);
  const lines = figures(node, river);
  const learner = node.model !== undefined;
  attr(
    element,
    "class",
    `node${learner ? " learner" : ""} kind-${node.kind.replace(" ", "-")} is-${node.state}${node.kind === "outside" ? " plain" : ""}`,
  );
  attr(element, "transform", `translate(${box.x} ${box.y})`);
  text(
    title,
    [
      node.name,
      [word, node.why].filter(Boolean).join(": "),
      ...lines,
      node.open ? plural(node.open, "open alert") : "",
      node.seen ? plural(node.seen, "acknowledged alert") : "",
    ]
      .filter(Boolean)
      .join("\n"),
  );
  attr(attr(back, "width", box.w), "height", box.h);
  attr(attr(attr(stripe, "x", 6), "y", 10), "height", box.h - 20);

  const [before, shown] = learner ? [node.champion ? "★ " : "", node.model || node.name] : ["", node.title];
  text(name.children[0], before);
  text(name.children[1], fitting(shown, box.w - (before ? 38 : 22)));
  attr(attr(name, "x", 18), "y", 22);
  attr(attr(mark, "x", 18), "y", 31);
  setSign(mark, node.state);
  attr(mark, "visibility", word ? null : "hidden");
  const many =
    node.instances.length > 1 ? `, ${node.instances.filter((i) => i.state === "ok").length} of ${node.instances.length}` : "";
  text(state, `${word}${many}`);
  attr(attr(state, "x", 32), "y", 40);
  const bare = node.kind !== "service";
  // A learner's box is lower: its rate stands beside its state.
  text(big, bare ? "" : lines[0]);
  attr(attr(big, "x", learner ? box.w - 10 : 18), "y", learner ? 40 : 60);
  attr(big, "text-anchor", learner ? "end" : null);
  text(small, bare ? lines.join(" ") : lines[1]);
  attr(attr(small, "x", 18), "y", bare ? (word ? 60 : 42) : learner ? 56 : 77);

  const alerts = node.open || node.seen;
  attr(flag, "visibility", alerts ? null : "hidden");
  attr(flag, "class", `flag ${node.open ? "open" : "acknowledged"}`);
  const label = node.open ? plural(node.open, "alert") : `${node.seen} acked`;
  const wide = label.length * 6.4 + 16;
  attr(attr(attr(flag.children[0], "width", wide), "x", box.w - wide + 6), "y", -10);
  attr(attr(text(flag.children[1], label), "x", box.w - wide / 2 + 6), "y", 3);
}

const pen = document.createElement("canvas").getContext("2d");
const fitted = new Map();

/** A name, cut off to fit into so many pixels: SVG does not do it by itself. */
function fitting(name, width) {
  const key = `${width} ${name}`;
  if (!fitted.has(key)) {
    pen.font = `650 13.5px ${getComputedStyle(document.body).fontFamily}`;
    let shown = name;
    while (shown.length > 1 && pen.measureText(shown).width > width) shown = `${shown.replace(/…$/, "").slice(0, -1)}…`;
    fitted.set(key, shown);
  }
  return fitted.get(key);
}
