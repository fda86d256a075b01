// The comparison table of all mechanisms: a click on a heading sorts, a word leaves the rows that have it. Each fact is one
// that the test suite checks both ways.

import { SvgContext, saveButtons } from "./picture.js";
import { Store, View, element, number, parse, plural, setText, widget } from "./shared.js";

const CSS = `
.labkit-facts .wide { overflow: auto; max-height: 640px; } .labkit-facts table { border-collapse: separate; border-spacing: 0; color: inherit; font-size: 13px; margin: 0; }
.labkit-facts :is(th, td) { padding: 4px 9px; border-bottom: 1px solid var(--lk-faint); text-align: left; white-space: nowrap; background: var(--lk-ground); color: inherit; font-variant-numeric: tabular-nums; }
.labkit-facts thead th { position: sticky; top: 0; z-index: 1; vertical-align: bottom; padding: 0; border-bottom: 1px solid var(--lk-line); } .labkit-facts :is(thead, tbody) th:first-child { position: sticky; left: 0; } .labkit-facts thead th:first-child { z-index: 2; }
.labkit-view.labkit-facts thead button { border: 0; background: none; padding: 6px 9px; font-weight: 600; text-align: left; white-space: normal; max-width: 9.5em; color: var(--lk-weak); }
.labkit-view.labkit-facts th[aria-sort] button { color: var(--lk-waiting); }
.labkit-facts .number { text-align: right; } .labkit-facts .no { color: var(--lk-weak); } .labkit-facts .yes { color: var(--lk-running); font-weight: 600; } .labkit-facts tbody tr:hover :is(th, td) { background: var(--lk-card); }
.labkit-facts .bar input { flex: 0 1 16em; } .labkit-facts .bar span { color: var(--lk-weak); flex: 1 1 200px; }
`;

const ORDER = { process: 0, kernel: 1, "file system": 2 };
const worth = (value) => (value === null ? Infinity : typeof value === "boolean" ? +value : (ORDER[value] ?? value));
const words = (value) => (value === true ? "yes" : value === false ? "no" : value === null ? "no limit" : typeof value === "number" ? number(value) : String(value));

class FactsView extends View {
  constructor(store, el) {
    super(el, "facts", "What is true of each mechanism", CSS);
    Object.assign(this, { store, by: null, down: false, wanted: "" });
    this.search = element("input", { type: "search", placeholder: "find, for example: kernel", "aria-label": "Show only mechanisms with this word in their row" });
    this.on(this.search, "input", () => ((this.wanted = this.search.value.trim().toLowerCase()), this.paint()));
    this.meaning = element("span", { role: "status", "aria-live": "polite" });
    this.table = element("table");
    this.root.append(element("div", { class: "bar" }, this.search, this.meaning, saveButtons(this, "facts")), element("div", { class: "wide scrolls", tabindex: "0", role: "group", "aria-label": "The table" }, this.table));
    this.heard = () => this.paint();
    store.listeners.add(this.heard);
    this.follow();
  }

  close() {
    this.store.listeners.delete(this.heard);
    super.close();
  }

  resized() {}

  /** The first click on a heading puts the greatest and yes on top, the second the least, the third restores the order. */
  sort(column) {
    if (this.by !== column) Object.assign(this, { by: column, down: true });
    else if (this.down) this.down = false;
    else this.by = null;
    this.paint();
    this.table.querySelectorAll("thead button")[column]?.focus();
  }

  get rows() {
    const { by, down, wanted } = this, rows = this.store.rows.filter((row) => !wanted || row.some((value, n) => words(value).toLowerCase().includes(wanted) || (value === true && this.heads[n].includes(wanted))));
    if (by === null) return rows;
    const compare = (a, b) => (typeof a === "string" && typeof b === "string" ? b.localeCompare(a) : a < b ? 1 : a > b ? -1 : 0);
    return [...rows].sort((a, b) => (down ? 1 : -1) * compare(worth(a[by]), worth(b[by])));
  }

  get heads() { return ["mechanism", ...this.store.columns.map((c) => c.name.replaceAll("_", " "))]; }

  paint() {
    if (this.closed || !this.store.rows.length) return setText(this.meaning, this.store.problem ?? "");
    const { by, down } = this, { columns } = this.store;
    const head = this.heads.map((name, n) => {
      const sign = n === by ? (down ? " ▾" : " ▴") : "", made = element("button", { type: "button", title: columns[n - 1]?.meaning ?? "The mechanism, as channel(kind) takes it" }, `${name}${sign}`);
      made.addEventListener("click", () => this.sort(n));
      return element("th", { scope: "col", ...(n === by ? { "aria-sort": down ? "descending" : "ascending" } : {}) }, made);
    });
    const cell = (value, n) => (n ? element("td", { class: value === true ? "yes" : value === false ? "no" : typeof value === "number" || value === null ? "number" : "" }, value === true ? "● yes" : words(value)) : element("th", { scope: "row" }, value));
    const rows = this.rows;
    this.table.replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))));
    setText(this.meaning, by ? `${this.heads[by]}: ${columns[by - 1].meaning}` : `${plural(rows.length, "mechanism")}. A heading sorts; the pointer on it tells what it means.`);
  }

  /** The table as it is sorted and searched now. */
  file() {
    const { theme, rows } = this, ctx = new SvgContext(0, 0), font = (weight) => (ctx.font = `${weight} 13px system-ui, sans-serif`);
    const table = [this.heads, ...rows.map((row) => row.map((value) => (value === true ? "● yes" : words(value))))];
    font(600);
    const wide = this.heads.map((_, n) => Math.max(...table.map((row) => ctx.measureText(row[n]).width)) + 18);
    const at = wide.map((_, n) => 8 + wide.slice(0, n).reduce((sum, w) => sum + w, 0));
    Object.assign(ctx, { width: Math.ceil(at.at(-1) + wide.at(-1)), height: 26 * table.length + 8 });
    table.forEach((row, line) => {
      ctx.fillStyle = theme.faint;
      ctx.fillRect(0, 26 * (line + 1) + 3, ctx.width, 1);
      row.forEach((text, n) => {
        const value = line ? rows[line - 1][n] : null;
        font(line && n && value !== true ? 400 : 600);
        ctx.fillStyle = !line || value === false ? theme.weak : value === true ? theme.running : theme.strong;
        ctx.fillText(text, at[n], 26 * line + 17);
      });
    });
    return ctx.text(theme.ground);
  }

  /** For tests: what is shown, read-only. */
  state() { return { view: "facts", rows: this.rows, heads: this.heads, by: this.by, down: this.down }; }
}

class FactsStore extends Store {
  constructor(model) {
    super(model);
    Object.assign(this, { columns: [], rows: [] });
  }
  unpack(buffer) { Object.assign(this, parse(buffer, "columns", "rows")); }
}

export default widget((model) => new FactsStore(model), (store, el) => new FactsView(store, el));
