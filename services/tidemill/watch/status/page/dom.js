// Small helpers to make and update elements. Data only ever becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Make an HTML element: el("p", { class: "note", on: { click } }, "text", child). */
export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Set a node's text, only where it differs, and in the text node that is there: a selection in it survives. */
export function text(node, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  const first = node.firstChild;
  if (first && first === node.lastChild && first.nodeType === Node.TEXT_NODE) {
    if (first.data !== wanted) first.data = wanted;
  } else if (node.textContent !== wanted) {
    node.textContent = wanted;
  }
  return node;
}

/** Set an attribute, only where it differs; null, undefined and false take it away. */
export function attr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else {
    const wanted = value === true ? "" : String(value);
    if (node.getAttribute(name) !== wanted) node.setAttribute(name, wanted);
  }
  return node;
}

/** Set text that may not fit: what is cut off can be read as a tooltip. */
export function clipped(node, value) {
  const shown = value === null || value === undefined || value === "" ? "–" : value;
  return attr(text(node, shown), "title", shown === "–" ? null : shown);
}

const kept = new WeakMap();

/**
 * Make the children of `parent` those of `items`, in their order: kept by key, updated in place, moved only where they must.
 *
 * `make(item)` returns the element of a new item; `update(element, item)` brings any of them up to date.
 */
export function keyed(parent, items, keyOf, make, update) {
  const before = kept.get(parent) ?? new Map();
  const wanted = new Map();
  for (const item of items) {
    let key = String(keyOf(item));
    while (wanted.has(key)) key += "'"; // what comes twice is shown twice
    wanted.set(key, item);
  }
  const focused = document.activeElement;
  for (const [key, node] of before) if (!wanted.has(key)) node.remove();
  const now = new Map();
  let cursor = parent.firstElementChild;
  for (const [key, item] of wanted) {
    const node = before.get(key) ?? make(item);
    now.set(key, node);
    update(node, item);
    if (node === cursor) cursor = cursor.nextElementSibling;
    else parent.insertBefore(node, cursor);
  }
  kept.set(parent, now);
  // To move an element takes the focus away from it.
  if (focused && focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

/** Whether somebody points at, is in, or has marked something of this element: then its rows had better stay where they are. */
export function busy(node) {
  if (node.matches(":hover") || node.contains(document.activeElement)) return true;
  const selection = document.getSelection();
  return Boolean(selection && !selection.isCollapsed && node.contains(selection.anchorNode));
}

const SHAPES = {
  ok: "M6 1a5 5 0 1 0 .01 0z",
  starting: "M6 1a5 5 0 1 0 .01 0zM6 3v6a3 3 0 0 0 0-6z",
  behind: "M6 .8 11.6 11H.4z",
  down: "M1 1h10v10H1z",
  unknown: "M6 1a5 5 0 1 0 .01 0zM6 3a3 3 0 1 1-.01 0z",
};

/** The sign of a state: each has its own shape, for those who don't see its colour. */
export function sign(state) {
  const path = svg("path", { "fill-rule": "evenodd" });
  return setSign(svg("svg", { viewBox: "0 0 12 12", width: 10, height: 10, "aria-hidden": "true" }, path), state);
}

export function setSign(node, state) {
  attr(node, "class", `sign is-${state}`);
  attr(node.firstChild, "d", SHAPES[state] ?? SHAPES.unknown);
  return node;
}
