// Charts: lines by window with uPlot, and sparklines small enough to be drawn as plain SVG.

import uPlot from "./vendor/uPlot.esm.js";
import { attr, el, keyed, svg, text } from "./dom.js";
import { count, metric, windowName } from "./format.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const CHALLENGERS = ["series-2", "series-3", "series-4", "series-5", "series-6"];

/** The colour of each model, by the names: a model keeps its colour whatever is shown. */
export function modelColours(names, champion) {
  const others = names.filter((name) => name !== champion && name !== "baseline");
  const of = (name) =>
    name === champion ? "series-1" : name === "baseline" ? "series-0" : CHALLENGERS[others.indexOf(name) % CHALLENGERS.length];
  return new Map(names.map((name) => [name, of(name)]));
}

/** Champion, challengers and baseline by window, of one metric. */
export class PerformanceChart {
  constructor(root, legend) {
    Object.assign(this, { root, legend, plot: null, shape: "", seen: "", data: null });
    new ResizeObserver(() => this.plot && this.#fits() && this.plot.setSize(this.#size())).observe(root);
    document.addEventListener("theme", () => this.plot?.redraw(false, true));
  }

  update({ windows, models, champion, name, length }) {
    Object.assign(this, { windows, models, length });
    const colours = modelColours(models, champion);
    const shape = JSON.stringify([models, champion, length]);
    const data = [windows.map((w) => w.start / 1000), ...models.map((m) => windows.map((w) => w.models?.[m]?.[name] ?? null))];
    const seen = JSON.stringify([name, data, windows.map((w) => w.interrupted)]);
    if (shape !== this.shape) {
      this.plot?.destroy();
      this.plot = null;
      Object.assign(this, { shape, colours, champion });
    }
    if (!windows.length || !this.#fits()) {
      this.root.hidden = !windows.length;
      return this.#legend(null);
    }
    this.root.hidden = false;
    if (!this.plot) this.plot = new uPlot(this.#options(), data, this.root);
    else if (seen !== this.seen) this.plot.setData(data);
    this.seen = seen;
    this.data = data;
    return this.#legend(this.plot.cursor.idx ?? null);
  }

  #fits() {
    return this.root.clientWidth > 40 || this.root.hidden;
  }

  #size() {
    return { width: Math.max(200, this.root.clientWidth), height: innerWidth < 700 ? 220 : innerWidth < 1000 ? 300 : 390 };
  }

  #options() {
    const axis = {
      stroke: () => colour("ink-2"),
      grid: { stroke: () => colour("line"), width: 1 },
      ticks: { show: false },
      font: "11.5px system-ui, sans-serif",
    };
    return {
      ...this.#size(),
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      padding: [10, 14, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 } },
      scales: { x: { range: (u, first, last) => this.#span(first, last) }, y: { range: (u, least, most) => spread(least, most) } },
      axes: [
        { ...axis, size: 34, space: 70, values: (u, ticks) => this.#names(ticks) },
        { ...axis, size: 54, space: 36, values: (u, ticks) => ticks.map((t) => metric(t)) },
      ],
      series: [{}, ...this.models.map((name) => this.#line(name))],
      hooks: { drawAxes: [(u) => this.#bands(u)], setCursor: [(u) => this.#legend(u.cursor.idx ?? null)] },
    };
  }

  /** What the x axis shows: around a single window there is one on each side, and no years. */
  #span(first, last) {
    const around = first === last && first !== null ? (this.length ?? 3_600_000) / 1000 : 0;
    return around ? [first - around, last + around] : [first, last];
  }

  /** What the ticks are called: of several within one window, the first alone. */
  #names(ticks) {
    const names = ticks.map((t) => windowName(t * 1000, this.length));
    return names.map((name, at) => (name === names[at - 1] ? "" : name));
  }

  #line(name) {
    const baseline = name === "baseline";
    return {
      label: name,
      stroke: () => colour(this.colours.get(name)),
      width: name === this.champion ? 2.5 : 1.5,
      dash: baseline ? [6, 5] : undefined,
      points: { show: (u) => u.data[0].length < 3, size: 6 },
    };
  }

  /** Windows that the monitor saw only a part of are hatched: their figures are of fewer rows than usual. */
  #bands(u) {
    const { ctx, bbox } = u;
    const half = (this.length ?? 0) / 2000;
    ctx.save();
    ctx.beginPath();
    for (const w of this.windows) {
      if (!w.interrupted) continue;
      const from = Math.max(bbox.left, u.valToPos(w.start / 1000 - half, "x", true));
      const to = Math.min(bbox.left + bbox.width, u.valToPos(w.start / 1000 + half, "x", true));
      if (to > from) ctx.rect(from, bbox.top, to - from, bbox.height);
    }
    ctx.fillStyle = colour("band");
    ctx.fill();
    ctx.clip();
    ctx.beginPath();
    const step = 7 * devicePixelRatio;
    for (let x = bbox.left - bbox.height; x < bbox.left + bbox.width; x += step) {
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x + bbox.height, bbox.top);
    }
    ctx.strokeStyle = colour("band-line");
    ctx.lineWidth = devicePixelRatio;
    ctx.stroke();
    ctx.restore();
  }

  /** The legend tells the values of the window under the pointer, else of the last one. */
  #legend(index) {
    const at = index ?? (this.data ? this.data[0].length - 1 : -1);
    const of = this.windows?.[at];
    const items = this.models.map((name, i) => ({ name, value: of ? (this.data?.[i + 1]?.[at] ?? null) : null }));
    keyed(
      this.legend,
      [{ window: of }, ...items],
      (x) => x.name ?? "",
      (x) => (x.name === undefined ? el("span", { class: "legend-window" }) : legendEntry()),
      (node, x) => {
        if (x.name === undefined) {
          text(
            node,
            x.window
              ? `${index === null ? "last window, " : ""}${windowName(x.window.start, this.length)} · ${count(x.window.rows)} rows${x.window.interrupted ? " · incomplete: the monitor was interrupted" : ""}`
              : "",
          );
          return;
        }
        attr(node, "class", `legend-entry${x.name === this.champion ? " champion" : ""}`);
        attr(node.firstChild.firstChild, "class", this.colours.get(x.name));
        attr(node.firstChild.firstChild, "stroke-dasharray", x.name === "baseline" ? "5 4" : null);
        attr(text(node.children[1], x.name), "title", x.name);
        text(node.children[2], metric(x.value));
      },
    );
  }
}

function legendEntry() {
  return el(
    "span",
    {},
    svg("svg", { viewBox: "0 0 18 6", width: 18, height: 6, "aria-hidden": "true" }, svg("path", { d: "M0 3H18" })),
    el("span", { class: "legend-name" }),
    el("b"),
  );
}

/** A scale with some air above and below; one value alone still gets a scale. */
function spread(least, most) {
  if (least === null || most === null) return [0, 1];
  const air = (most - least || Math.abs(most) || 1) * 0.08;
  return [least - air, most + air];
}

const [WIDE, HIGH] = [104, 22];

/** A sparkline with its limit: made empty, then drawn into. */
export function sparkline() {
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDE} ${HIGH}`, width: WIDE, height: HIGH, role: "img" },
    svg("line", { class: "limit", x1: 0, x2: WIDE }),
    svg("path", { class: "course" }),
    svg("circle", { class: "end", r: 2.2 }),
  );
}

export function drawSparkline(node, values, { limit = null, least = 0, label }) {
  const [line, path, end] = node.children;
  const known = values.filter((v) => typeof v === "number");
  attr(node, "aria-label", label);
  const bottom = least ?? Math.min(...known);
  const top = Math.max(...known, typeof limit === "number" ? limit * 1.25 : -Infinity);
  const span = top - bottom || 1;
  const x = (i) => (values.length < 2 ? WIDE - 4 : 2 + (i * (WIDE - 8)) / (values.length - 1));
  const y = (v) => HIGH - 3 - ((v - bottom) / span) * (HIGH - 6);
  let d = "";
  let pen = "M";
  values.forEach((value, i) => {
    if (typeof value !== "number") {
      pen = "M"; // a window without a figure leaves a gap
      return;
    }
    d += `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  attr(path, "d", d || null);
  const last = values.at(-1);
  const shown = typeof last === "number";
  attr(end, "visibility", shown ? null : "hidden");
  if (shown) attr(attr(end, "cx", x(values.length - 1).toFixed(1)), "cy", y(last).toFixed(1));
  const limited = typeof limit === "number" && known.length > 0;
  attr(line, "visibility", limited ? null : "hidden");
  if (limited) for (const side of ["y1", "y2"]) attr(line, side, y(limit).toFixed(1));
  attr(node, "class", `spark${shown && limited && last > limit ? " beyond" : ""}`);
}
