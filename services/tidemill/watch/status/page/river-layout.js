// Where boxes and wires of the river's diagram go, in pixels. Pure geometry: no elements, no data but names.
//
//   producers ──── validator ──── featurizer ──── scorer ──── consumers
//                  │   └────────────│───│────────┐   │  ↑
//               ┌──┘        ┌───────┴───│────┐   │   │  │
//   dead letters    materializer ──── Redis      joiner ──── learners
//                     ┌┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┤
//                  archiver                      monitor
//
// A notifier stands below the monitor. Without a materializer the dead letters' wire goes straight down. Where there is a gate, it stands below the joiner, whose examples it
// reads, and the monitor to its left; its promotions go up between Redis and the joiner, and into the scorer from the left.

const COLUMNS = 5;
const BOX = 88; // heights
const LEARNER = 66;
const ABOVE = 14; // room for flags that stick out
const LANES = 84; // between the first and the second row: two lanes of wires, and labels
const UPDATES = 26; // more of it where there is a materializer, whose wires take the second lane, above the labels
const TAPS = 54; // between the second and the third row, and the third and the fourth: labels
const CORNER = 8;

const PLACES = {
  producers: [0, 0],
  validator: [1, 0],
  featurizer: [2, 0],
  scorer: [3, 0],
  consumers: [4, 0],
  "dead letters": [0, 1],
  materializer: [1, 1],
  redis: [2, 1],
  joiner: [3, 1],
  monitor: [3, 2],
  archiver: [1, 2],
  notifier: [3, 3],
};
const WITH_GATE = { ...PLACES, gate: [3, 2], monitor: [2, 2], notifier: [2, 3] };
const SPARE = [
  [2, 2],
  [0, 2],
  [1, 1],
]; // for what this page has never heard of
const LEAST_GAP = 84; // for the names of topics
const WIDER = 26; // the last column: learners have long names
const TAPPED = new Set(["monitor", "archiver"]);

/** The least width that the diagram can be read at. */
export const LEAST_WIDTH = COLUMNS * 112 + (COLUMNS - 1) * LEAST_GAP + WIDER;

/** Return { width, height, boxes: Map by name of {x, y, w, h}, route(wire) }. */
export function layout(width, names, learners) {
  const w = Math.min(156, Math.floor((width - (COLUMNS - 1) * LEAST_GAP - WIDER - 2) / COLUMNS));
  const gap = (width - 2 - COLUMNS * w - WIDER) / (COLUMNS - 1);
  const column = (i) => 1 + i * (w + gap);
  const lanes = LANES + (names.includes("materializer") ? UPDATES : 0);
  const rows = [ABOVE, ABOVE + BOX + lanes, ABOVE + 2 * BOX + lanes + TAPS, ABOVE + 3 * BOX + lanes + 2 * TAPS];
  const boxes = new Map();
  const places = names.includes("gate") ? WITH_GATE : PLACES;
  const spare = SPARE.filter(([i, j]) => !names.some((name) => places[name]?.[0] === i && places[name]?.[1] === j));
  for (const name of names) {
    if (learners.includes(name)) continue;
    const [i, j] = places[name] ?? spare.shift() ?? [0, 2];
    boxes.set(name, { x: column(i), y: rows[j], w: i === COLUMNS - 1 ? w + WIDER : w, h: BOX });
  }
  // Learners stand under each other, closer where there are many.
  const pitch = LEARNER + 12;
  learners.forEach((name, k) => boxes.set(name, { x: column(4), y: rows[1] + k * pitch, w: w + WIDER, h: LEARNER }));
  const bottom = Math.max(...[...boxes.values()].map((b) => b.y + b.h));
  return { width, height: bottom + 4, boxes, route: (wire) => route(wire, boxes, { learners, gap, lane: rows[0] + BOX }) };
}

const right = (b) => b.x + b.w;
const bottom = (b) => b.y + b.h;
const along = (b, share) => b.x + share * b.w;
const middle = (b) => b.y + b.h / 2;

/**
 * Return { d, label: { x, y, anchor, kind: "across" | "above" | "list" }, faint, tap, joins } of a wire.
 *
 * One that joins another has no head.
 */
function route(wire, boxes, { learners, gap, lane }) {
  const [a, b] = [boxes.get(wire.from), boxes.get(wire.to)];
  if (!a || !b) return null;
  const [upper, lower] = [lane + 30, lane + 58];
  const name = `${wire.from}>${wire.to}`;

  if (TAPPED.has(wire.to)) {
    // They read the log beside the river: from between the joiner and what is around it.
    const [x, from] = [along(b, 0.14), boxes.get("joiner") ?? b];
    // Where another is tapped on the way, it begins where that one turned off, so that no two lie upon each other.
    const nearer = [...TAPPED].map((other) => boxes.get(other)).find((box) => box && box.x > b.x && box.x < from.x);
    const [start, turn] = [along(nearer ?? from, 0.14), b.y - TAPS + 9];
    if (nearer) {
      const points = [
        [start, turn],
        [x, turn],
        [x, b.y],
      ];
      return { d: path(points), label: tapLabel(x, b), tap: true };
    }
    const points =
      Math.abs(x - start) < 1
        ? [
            [x, bottom(from)],
            [x, b.y],
          ]
        : [
            [start, bottom(from)],
            [start, turn],
            [x, turn],
            [x, b.y],
          ];
    return { d: path(points), label: tapLabel(x, b), tap: true };
  }
  if (name === "gate>scorer") {
    const [x, y] = [a.x - 0.22 * gap, b.y + 0.83 * b.h];
    const points = [
      [a.x, middle(a)],
      [x, middle(a)],
      [x, y],
      [b.x, y],
    ];
    return { d: path(points), label: { x: x - 7, y: a.y - 18, anchor: "end", kind: "list" } };
  }
  if (learners.includes(wire.to) && wire.from === "joiner") {
    const first = boxes.get(learners[0]);
    const bus = right(a) + gap * 0.74;
    const [y, end] = [middle(first), middle(b)];
    // Each branch begins where the one above it turned off, so that no two lie upon each other.
    const above = boxes.get(learners[learners.indexOf(wire.to) - 1]);
    const points = above
      ? [
          [bus, middle(above)],
          [bus, end],
          [b.x, end],
        ]
      : [
          [right(a), y],
          [b.x, y],
        ];
    const label = wire.to === learners[0] ? { x: right(a) + gap * 0.37, y, anchor: "middle", kind: "across" } : null;
    return { d: path(points), label };
  }
  if (learners.includes(wire.from) && wire.to === "scorer") {
    if (wire.from !== learners[0]) return { d: "", label: null }; // all versions take one way
    const [x1, x2] = [along(a, 0.3), along(b, 0.8)];
    return {
      d: path([
        [x1, a.y],
        [x1, upper],
        [x2, upper],
        [x2, bottom(b)],
      ]),
      label: { x: right(b) + 8, y: upper, anchor: "start", kind: "above" },
    };
  }
  if (name === "validator>joiner") {
    const [x1, x2] = [along(a, 0.75), along(b, 0.2)];
    return {
      d: path([
        [x1, bottom(a)],
        [x1, upper],
        [x2, upper],
        [x2, b.y],
      ]),
      label: { x: x1 + 12, y: upper, anchor: "start", kind: "above" },
    };
  }
  if (wire.to === "materializer" && boxes.has("featurizer")) {
    // Both write to one topic: the joiner's wire runs into the featurizer's.
    const [x, meet] = [along(b, 0.4), along(boxes.get("featurizer"), 0.2)]; // flags stick out on the right
    if (wire.from === "featurizer")
      return {
        d: path([
          [meet, bottom(a)],
          [meet, lower],
          [x, lower],
          [x, b.y],
        ]),
        label: { x: x + 12, y: lower, anchor: "start", kind: "above" },
      };
    return {
      d: path([
        [along(a, 0.08), a.y],
        [along(a, 0.08), lower],
        [meet, lower],
      ]),
      label: null,
      joins: true,
    };
  }
  if (wire.to === "dead letters") {
    const trunk = boxes.get("validator") ?? a;
    const x = along(trunk, 0.25);
    const beside = boxes.has("materializer") ? [right(b) + 0.6 * gap, lower] : [x, middle(b)];
    const end = [[x, beside[1]], ...(beside[0] === x ? [] : [beside, [beside[0], middle(b)]]), [right(b), middle(b)]];
    if (wire.from === "validator")
      return { d: path([[x, bottom(a)], ...end]), label: { x: right(b) + 12, y: middle(b), anchor: "start", kind: "above" } };
    const from = wire.from === "joiner" ? [along(a, 0.08), a.y] : [along(a, 0.28), bottom(a)];
    return { d: path([from, [from[0], lower], [x, lower]]), label: null, faint: true };
  }
  if (Math.abs(a.x - b.x) < 1) {
    const x = along(a, 0.5);
    const down = a.y < b.y;
    const label = { x: x + 8, y: Math.max(a.y, b.y) - 33, anchor: "start", kind: "list" };
    return {
      d: path(
        down
          ? [
              [x, bottom(a)],
              [x, b.y],
            ]
          : [
              [x, a.y],
              [x, bottom(b)],
            ],
      ),
      label,
    };
  }
  if (Math.abs(a.y - b.y) < 1 && a.x < b.x) {
    const y = middle(a);
    return {
      d: path([
        [right(a), y],
        [b.x, y],
      ]),
      label: { x: (right(a) + b.x) / 2, y, anchor: "middle", kind: "across" },
    };
  }
  // What nobody drew before: a plain curve.
  const [x1, x2] = a.x < b.x ? [right(a), b.x] : [a.x, right(b)];
  const half = (x1 + x2) / 2;
  return {
    d: `M${x1} ${middle(a)}C${half} ${middle(a)} ${half} ${middle(b)} ${x2} ${middle(b)}`,
    label: { x: half, y: (middle(a) + middle(b)) / 2, anchor: "middle", kind: "above" },
    faint: true,
  };
}

const tapLabel = (x, b) => ({ x: x + 8, y: b.y - TAPS + 23, anchor: "start", kind: "list" });

/** A line through points, with rounded corners. */
function path(points) {
  let d = `M${points[0].join(" ")}`;
  for (let i = 1; i < points.length - 1; i += 1) {
    const [before, at, after] = [points[i - 1], points[i], points[i + 1]];
    const near = towards(at, before);
    const far = towards(at, after);
    d += `L${near.join(" ")}Q${at.join(" ")} ${far.join(" ")}`;
  }
  return `${d}L${points.at(-1).join(" ")}`;
}

function towards(from, to) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const step = Math.min(CORNER, length / 2) / (length || 1);
  return [from[0] + (to[0] - from[0]) * step, from[1] + (to[1] - from[1]) * step];
}
