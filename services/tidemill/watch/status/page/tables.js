// Tables that sort by keyboard and mouse, and are updated row by row, never rebuilt.

import { busy, el, keyed, attr, text } from "./dom.js";

/** Compare two values of a column; what isn't known goes last, whichever way is sorted. */
function compare(a, b, direction) {
  const missing = (x) => x === null || x === undefined || Number.isNaN(x);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order =
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return direction === "ascending" ? order : -order;
}

/**
 * One table in a box of its own, that scrolls by itself where the table is wider than the page.
 *
 * A column is { id, title, help, numeric, value, fill, first, className }: `value(row)` is what is sorted by (without it the column
 * can't be sorted), `fill(cell, row)` brings the cell up to date, `first` is the direction that the first click sorts in.
 */
export class Table {
  constructor({ label, key, columns, sort = null, empty, mark = null, tall = false }) {
    Object.assign(this, { key, sort, mark, columns: [], rows: [], order: [] });
    this.head = el("tr");
    this.body = el("tbody");
    this.table = el("table", {}, el("caption", { class: "unseen" }, label), el("thead", {}, this.head), this.body);
    this.box = el(
      "div",
      { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": label },
      this.table,
    );
    this.empty = el("p", { class: "empty" }, empty);
    this.root = el("div", { class: "table" }, this.box, this.empty);
    this.setColumns(columns);
    this.update([]);
  }

  /** Take other columns; those that stay keep their headers. Rows are made again where the columns differ. */
  setColumns(columns) {
    const shape = (of) => of.map((c) => `${c.id}\n${c.title}`).join("\n\n");
    const same = shape(columns) === shape(this.columns);
    this.columns = columns;
    if (same) return;
    keyed(this.body, [], String, null, null);
    keyed(
      this.head,
      columns,
      (c) => c.id,
      (c) => this.#header(c),
      (node, c) => {
        const button = node.querySelector(".sort > span");
        text(button ?? node, c.title);
        attr(node, "title", c.help ? `${c.title}: ${c.help}` : c.title);
      },
    );
    this.#arrows();
  }

  #header(column) {
    const className = [column.numeric ? "number" : "", column.className ?? ""].join(" ").trim();
    const node = el("th", { scope: "col", class: className || null });
    if (column.value) {
      const arrow = el("i", { class: "arrow", "aria-hidden": "true" });
      node.append(
        el(
          "button",
          { type: "button", class: "sort", on: { click: () => this.#sortBy(column) } },
          el("span", {}, column.title),
          arrow,
        ),
      );
    }
    return node;
  }

  #sortBy(column) {
    const first = column.first ?? (column.numeric ? "descending" : "ascending");
    const other = { ascending: "descending", descending: "ascending" };
    const direction = this.sort?.id === column.id ? other[this.sort.direction] : first;
    this.sort = { id: column.id, direction };
    this.#arrows();
    this.#show(true);
  }

  #arrows() {
    this.columns.forEach((column, index) => {
      if (column.value)
        attr(this.head.children[index], "aria-sort", this.sort?.id === column.id ? this.sort.direction : "none");
    });
  }

  /** Show these rows. While somebody is at the table, those that it has stay in their places. */
  update(rows, empty = null) {
    this.rows = rows;
    if (empty) text(this.empty, empty);
    this.empty.hidden = rows.length > 0;
    this.box.hidden = rows.length === 0;
    this.#show(!busy(this.body));
  }

  #show(mayMove) {
    const column = this.sort && this.columns.find((c) => c.id === this.sort.id);
    let rows = [...this.rows];
    if (column?.value) rows.sort((a, b) => compare(column.value(a), column.value(b), this.sort.direction));
    if (!mayMove) {
      const places = new Map(this.order.map((key, index) => [key, index]));
      const at = (row) => places.get(String(this.key(row))) ?? Infinity;
      rows = rows
        .map((row) => [row, at(row)])
        .sort((a, b) => (a[1] === b[1] ? 0 : a[1] - b[1]))
        .map(([row]) => row);
    }
    this.order = rows.map((row) => String(this.key(row)));
    keyed(
      this.body,
      rows,
      this.key,
      () => this.#row(),
      (node, row) => this.#fill(node, row),
    );
  }

  #row() {
    return el(
      "tr",
      {},
      this.columns.map((c, index) => {
        const className = [c.numeric ? "number" : "", c.className ?? ""].join(" ").trim();
        return el(index === 0 ? "th" : "td", { scope: index === 0 ? "row" : null, class: className || null });
      }),
    );
  }

  #fill(node, row) {
    attr(node, "data-key", this.key(row));
    if (this.mark) attr(node, "class", this.mark(row));
    this.columns.forEach((column, index) => column.fill(node.children[index], row));
  }

  /** Bring one row into sight and mark it for a moment; returns whether there is one. */
  reveal(key) {
    const node = [...this.body.children].find((row) => row.dataset.key === key);
    if (!node) return false;
    node.scrollIntoView({
      block: "center",
      behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
    });
    node.dataset.found = ""; // not a class: those are set again with each update
    setTimeout(() => delete node.dataset.found, 2500);
    return true;
  }
}

/** Parts that a cell is made of, made once: parts(cell, () => ({ bar: el(...) })). */
const made = new WeakMap();
export function parts(cell, make) {
  let found = made.get(cell);
  if (!found) {
    found = make();
    made.set(cell, found);
    cell.replaceChildren(...Object.values(found).filter((node) => node instanceof Node && !node.parentNode));
  }
  return found;
}
