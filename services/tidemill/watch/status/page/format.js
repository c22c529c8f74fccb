// Numbers, durations and times as people read them. Times are UTC. What isn't known is a dash.

export const NONE = "–";
const THIN = "\u202f";
const MINUS = "−";
const known = (x) => typeof x === "number" && Number.isFinite(x);

function grouped(x, least, most) {
  const parts = new Intl.NumberFormat("en", { minimumFractionDigits: least, maximumFractionDigits: most }).formatToParts(x);
  return parts.map((p) => (p.type === "group" ? THIN : p.type === "minusSign" ? MINUS : p.value)).join("");
}

/** A whole number: 27 104. */
export const count = (x) => (known(x) ? grouped(x, 0, 0) : NONE);

/** Records a second: 450/s, 9.7/s, 0.04/s. */
export function rate(x) {
  if (!known(x)) return NONE;
  const digits = x === 0 || x >= 100 ? 0 : x >= 1 ? 1 : 2;
  return x > 0 && x < 0.01 ? "<0.01/s" : `${grouped(x, 0, digits)}/s`;
}

/** A figure of any size, to three digits or so. */
export function figure(x) {
  if (!known(x)) return NONE;
  const size = Math.abs(x);
  if (size === 0) return "0";
  if (size >= 1000) return grouped(x, 0, 0);
  if (size < 0.0005) return grouped(x, 0, 6);
  return grouped(x, 0, size >= 100 ? 1 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** A model's metric, always with as many digits, so that columns line up: 0.771. */
export function metric(x) {
  if (!known(x)) return NONE;
  const digits = Math.abs(x) >= 1000 ? 0 : Math.abs(x) >= 100 ? 1 : Math.abs(x) >= 10 ? 2 : 3;
  return grouped(x, digits, digits);
}

/** A difference, with its sign: +0.013. */
export function signed(x) {
  if (!known(x)) return NONE;
  const digits = metric(Math.abs(x));
  return /[1-9]/.test(digits) ? `${x < 0 ? MINUS : "+"}${digits}` : `±${digits}`;
}

/** A PSI: 0.021, 4.10. */
export const psi = (x) => (known(x) ? grouped(x, x < 1 ? 3 : 2, x < 1 ? 3 : 2) : NONE);

/** A share of one as per cent. */
export function share(x) {
  if (!known(x)) return NONE;
  const percent = x * 100;
  if (percent === 0) return `0${THIN}%`;
  if (percent < 0.1) return `<0.1${THIN}%`;
  return `${grouped(percent, 0, percent >= 99.95 || Number.isInteger(percent) ? 0 : 1)}${THIN}%`;
}

/** A duration given in seconds: 41 ms, 2.3 s, 4.1 min, 2.8 h, 3.1 d. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const x = Math.abs(seconds);
  const [value, unit] =
    x < 0.9995
      ? [x * 1000, "ms"]
      : x < 99.95
        ? [x, "s"]
        : x < 5400
          ? [x / 60, "min"]
          : x < 172800
            ? [x / 3600, "h"]
            : [x / 86400, "d"];
  const digits = unit === "ms" ? (value < 1 && value > 0 ? 1 : 0) : value >= 100 ? 0 : 1;
  return `${seconds < 0 ? MINUS : ""}${grouped(value, 0, digits)}${THIN}${unit}`;
}

const formats = new Map();
function inUtc(ms, options) {
  const key = JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", hourCycle: "h23", ...options }));
  return formats.get(key).format(ms);
}
const CLOCK = { hour: "2-digit", minute: "2-digit" };
const DAY = { day: "numeric", month: "short" };

/** 14:03:22 */
export const clock = (ms) => (known(ms) ? inUtc(ms, { ...CLOCK, second: "2-digit" }) : NONE);

/** 7 Jan 2013, 14:03 */
export const moment = (ms) => (known(ms) ? inUtc(ms, { ...DAY, year: "numeric", ...CLOCK }) : NONE);

/** 7 Jan 2013, 14:03:22 */
export const exactly = (ms) => (known(ms) ? inUtc(ms, { ...DAY, year: "numeric", ...CLOCK, second: "2-digit" }) : NONE);

/** 7 Jan, or 7 Jan, 14:00 where windows are shorter than a day. */
export const windowName = (ms, length) =>
  known(ms) ? inUtc(ms, length && length % 86400000 === 0 ? DAY : { ...DAY, ...CLOCK }) : NONE;

/** How long before `now`: "just now", "4 min ago". */
export function ago(ms, now) {
  if (!known(ms) || !known(now)) return NONE;
  const seconds = (now - ms) / 1000;
  return seconds < 5 ? "just now" : `${duration(Math.round(seconds))} ago`;
}

/** "1 alert", "3 alerts" */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Any value of a record or a vector as text: what isn't a number stays as it is. */
export function anything(value) {
  if (value === null || value === undefined) return NONE;
  if (typeof value === "number") {
    if (!Number.isInteger(value)) return String(Number(value.toPrecision(7)));
    return String(value); // ids and hours are whole numbers too: no separators
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** A place in Kafka: flights.events[2] @ 812. */
export const place = (at) => (at && at.topic ? `${at.topic} [${at.partition ?? "?"}] @ ${at.offset ?? "?"}` : NONE);
