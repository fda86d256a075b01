// How long messages took: the share of messages that took at most so long (ECDF) above a histogram over the same
// logarithmic time, the figures below, and what this machine needs at least drawn in.
//
//   series  {label, n, lost, points: [[ns, share]], first, bars, figures}: see curve() in labkit/views/latency.py

import { Pen, SHAPES, Store, View, duration, element, number, parse, setText, widget } from "./shared.js";
import { asSvg, legend, saveButtons, sentences, stacked } from "./picture.js";
import { shapeIcon } from "./signs.js";

const PER_DECADE = 12; // bars
const LOW = 16, MOST_SHAPES = 12; // pixels that a row of bars needs; curves that can be told apart by their shapes
const FIGURES = ["p50", "p90", "p99", "p99.9", "longest"];
const NAMES = { p50: "half within", p90: "90 %", p99: "99 %", "p99.9": "99.9 %", longest: "longest" };
const FLOOR_DASHES = [[1, 3], [5, 3]];
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];

const CSS = `
.labkit-latency canvas { width: 100%; cursor: crosshair; }
.labkit-latency .legend { display: flex; flex-wrap: wrap; gap: 5px 8px; align-items: center; padding: 8px 12px 6px; max-height: 133px; overflow: auto; }
.labkit-latency .legend button { min-height: 26px; padding: 0 9px; display: inline-flex; gap: 6px; align-items: center; font-weight: 400; color: var(--lk-strong); border-color: var(--lk-line); }
.labkit-latency .legend button[aria-pressed=false] { opacity: .45; text-decoration: line-through; } .labkit-latency .legend .group { margin-left: auto; }
.labkit-latency .legend .group button { border-color: var(--lk-line); }
.labkit-latency .figures { overflow: auto; max-height: 330px; margin: 0 12px 6px; } .labkit-latency table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; color: inherit; font-size: 13px; }
.labkit-latency :is(th, td) { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--lk-faint); white-space: nowrap; background: none; color: inherit; } .labkit-latency :is(th, td):first-child { text-align: left; }
.labkit-latency thead th { position: sticky; top: 0; background: var(--lk-ground); white-space: normal; vertical-align: bottom; color: var(--lk-weak); font-weight: 400; } .labkit-latency tbody th { font-weight: 600; } .labkit-latency td svg, .labkit-latency th svg { width: 12px; height: 12px; display: inline-block; margin-right: 6px; vertical-align: -1px; }
`;

export class LatencyView extends View {
  /** `source` has series, floors and listeners; perhaps problem and note. */
  constructor(source, el) {
    super(el, "latency", "How long messages took", CSS);
    Object.assign(this, { source, hidden: new Set() });
    this.canvas = element("canvas", { role: "img" });
    this.pen = new Pen(this.canvas);
    this.chips = element("div", { class: "legend", role: "group", "aria-label": "What is shown" });
    this.figures = element("div", { class: "figures scrolls", tabindex: 0, role: "group", "aria-label": "Figures" });
    this.note = element("div", { class: "note" });
    this.root.append(this.chips, this.canvas, this.figures, this.note, this.tip);
    this.on(this.canvas, "pointermove", (event) => this.hover(event.offsetX, event.offsetY));
    this.on(this.canvas, "pointerleave", () => this.showTip(null));
    this.heard = () => this.paint();
    source.listeners.add(this.heard);
    this.follow();
  }

  close() {
    this.source.listeners.delete(this.heard);
    super.close();
  }

  get shown() { return this.source.series.map((s, index) => ({ ...s, index })).filter((s) => s.n && !this.hidden.has(s.label)); }

  paint() {
    const width = this.root.clientWidth - 2;
    if (this.closed || !this.theme || width < 50) return;
    this.width = width;
    this.wide = width >= 760; // side by side, else one above the other
    const none = this.source.series.every((s) => !s.n);
    this.height = none ? 0 : this.wide ? 290 : 460;
    this.canvas.style.height = `${this.height}px`;
    this.paintChips();
    this.paintFigures();
    this.draw();
    const { source } = this;
    this.figures.hidden = !source.series.length;
    setText(this.note, [source.problem, none ? "No message has been received yet." : "", source.note, source.lost ? `${number(source.lost)} events could not be recorded.` : "", source.orphaned ? "The kernel has gone: this is what was known until then." : ""].filter(Boolean).join(" "));
    const said = this.shown.map((s) => `${s.label}: half within ${duration(s.figures.p50)}, 99 % within ${duration(s.figures.p99)}.`);
    this.canvas.setAttribute("aria-label", `Latency, as a curve and as a histogram. ${said.join(" ")}`);
  }

  paintChips() {
    const { source, theme } = this, key = JSON.stringify([source.series.map((s) => s.label), theme.ground, [...this.hidden]]);
    if (key === this.chipsKey) return;
    this.chipsKey = key;
    const chips = source.series.map(({ label }, index) => {
      const chip = element("button", { type: "button", "aria-pressed": String(!this.hidden.has(label)), title: `Show or hide ${label}`, "data-at": index }, shapeIcon(SHAPES[index % SHAPES.length], this.pen.colour(index)), element("span", {}, label));
      chip.addEventListener("click", () => {
        this.hidden.has(label) ? this.hidden.delete(label) : this.hidden.add(label);
        this.paint();
        this.chips.querySelector(`[data-at="${index}"]`)?.focus();
      });
      return chip;
    });
    const save = saveButtons(this, "latency");
    this.chips.replaceChildren(...(chips.length > MOST_SHAPES ? [save, ...chips] : [...chips, save])); // many chips scroll
  }

  paintFigures() {
    const { source, theme } = this, key = JSON.stringify([source.series.map((s) => [s.label, s.n, s.lost, s.figures]), theme.ground]);
    if (key === this.figuresKey) return;
    this.figuresKey = key;
    const row = (tag, cells) => element("tr", {}, ...cells.map((cell, n) => element(n ? tag : "th", { ...(tag === "th" || !n ? { scope: n ? "col" : "row" } : {}) }, ...[cell].flat())));
    const head = row("th", ["", "messages", ...FIGURES.map((name) => NAMES[name]), "not received"]);
    const body = source.series.map((s, index) => row("td", [[shapeIcon(SHAPES[index % SHAPES.length], this.pen.colour(index)), s.label], number(s.n), ...FIGURES.map((name) => (s.n ? duration(s.figures[name]) : "–")), number(s.lost)]));
    this.figures.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  }

  // -- drawing

  draw() {
    const { pen, width, height } = this;
    if (pen.ctx instanceof CanvasRenderingContext2D) pen.begin(width, height);
    const { shown } = this, floors = this.source.floors;
    if (!shown.length) return pen.text(this.source.series.some((s) => s.n) ? "All curves are hidden." : "No message has been received yet.", width / 2, height / 2, this.theme.weak, { align: "center", size: 14, width: width - 20 });
    const least = Math.min(...shown.map((s) => s.points[0][0]), ...floors.map(([, ns]) => ns)), most = Math.max(...shown.map((s) => s.figures.longest), ...floors.map(([, ns]) => ns));
    this.range = [Math.log10(Math.max(1, least)) - 0.1, Math.log10(Math.max(10, most, least * 2)) + 0.1];
    const half = this.wide ? { w: width / 2, h: height } : { w: width, h: height / 2 };
    this.areas = [{ left: 46, top: 42, w: half.w - 62, h: half.h - 68 }, this.wide ? { left: half.w + 40, top: 42, w: half.w - 56, h: half.h - 68 } : { left: 46, top: half.h + 42, w: half.w - 62, h: half.h - 68 }];
    this.curves(this.areas[0], shown);
    this.bars(this.areas[1], shown);
  }

  file() {
    const { pen, theme, width } = this, keys = this.shown.map((s) => [SHAPES[s.index % SHAPES.length], pen.colour(s.index), s.label]);
    return stacked([legend(keys, width, theme), asSvg(pen, () => this.draw()), sentences([this.note.textContent], width, theme)], theme.ground);
  }

  x(area, ns) { return area.left + ((Math.log10(Math.max(1, ns)) - this.range[0]) / (this.range[1] - this.range[0])) * area.w; }

  frame(area, title, labels) {
    const { pen, theme } = this, { ctx } = pen, { left, top, w, h } = area;
    ctx.fillStyle = theme.card;
    ctx.fillRect(left, top, w, h);
    pen.text(title, left, top - 31, theme.weak, { size: 12, width: w });
    const decades = this.range[1] - this.range[0], every = Math.max(1, Math.ceil((decades * 62) / w));
    for (let d = Math.ceil(this.range[0]); d <= this.range[1]; d++) {
      const x = this.x(area, 10 ** d);
      ctx.fillStyle = theme.faint;
      ctx.fillRect(x - 0.5, top, 1, h);
      if (d % every === 0) pen.text(duration(10 ** d).replace(/\.0+ /, " "), x, top + h + 13, theme.weak, { align: "center", size: 11 });
    }
    for (const [y, text] of labels) {
      ctx.fillStyle = theme.faint;
      ctx.fillRect(left, y - 0.5, w, 1);
      pen.text(text, left - 6, y, theme.weak, { align: "right", size: 11 });
    }
  }

  floorNames(area) {
    const { pen, theme, source } = this, { ctx } = pen;
    let x = area.left;
    source.floors.forEach(([name, ns], n) => {
      const text = `${name}: ${duration(ns)}`, y = area.top - 13;
      ctx.strokeStyle = theme.strong;
      ctx.lineWidth = 1.2;
      ctx.setLineDash(FLOOR_DASHES[n % 2]);
      ctx.beginPath();
      ctx.moveTo(x, y);
      ctx.lineTo(x + 20, y);
      ctx.stroke();
      ctx.setLineDash([]);
      pen.text(text, x + 25, y, theme.weak, { size: 11, width: this.width - x - 30 });
      x += 25 + ctx.measureText(text).width + 16;
    });
  }

  /** What the machine needs at least: nothing that takes this way can be left of these lines. */
  floorLines(area) {
    const { pen, theme, source } = this, { ctx } = pen;
    source.floors.forEach(([name, ns], n) => {
      const x = this.x(area, ns);
      ctx.strokeStyle = theme.strong;
      ctx.lineWidth = 1.2;
      ctx.setLineDash(FLOOR_DASHES[n % 2]);
      ctx.beginPath();
      ctx.moveTo(x, area.top);
      ctx.lineTo(x, area.top + area.h);
      ctx.stroke();
      ctx.setLineDash([]);
    });
  }

  curves(area, shown) {
    const { pen } = this, { ctx } = pen, y = (share) => area.top + area.h * (1 - share);
    this.floorNames(area);
    this.frame(area, "share of messages that took at most so long", [0, 0.25, 0.5, 0.75, 1].map((share) => [y(share), `${share * 100} %`]));
    this.floorLines(area);
    for (const s of shown) {
      const colour = pen.colour(s.index);
      ctx.strokeStyle = ctx.fillStyle = colour;
      ctx.lineWidth = 2;
      ctx.setLineDash(DASHES[Math.floor(s.index / 6) % DASHES.length]);
      ctx.beginPath();
      let last = 0;
      s.points.forEach(([ns, share], n) => {
        const x = this.x(area, ns);
        n ? ctx.lineTo(x, y(last)) : ctx.moveTo(x, y(0));
        ctx.lineTo(x, y((last = share)));
      });
      ctx.lineTo(area.left + area.w, y(1));
      ctx.stroke();
      ctx.setLineDash([]);
      for (const [name, share] of shown.length > MOST_SHAPES ? [] : [["p50", 0.5], ["p90", 0.9], ["p99", 0.99]]) {
        pen.shape(SHAPES[s.index % SHAPES.length], this.x(area, s.figures[name]), y(share), 4);
        ctx.fill();
      }
    }
  }

  /** A row a curve: bars, or, where there is no room for them, the fuller the colour the more. */
  bars(area, shown) {
    const { pen, theme } = this, { ctx } = pen, row = area.h / shown.length, low = row < LOW;
    this.frame(area, "how many took about so long (each curve to its own scale)", []);
    this.floorLines(area);
    shown.forEach((s, k) => {
      const base = area.top + row * (k + 1) - 1, own = Math.max(...s.bars);
      ctx.fillStyle = pen.colour(s.index);
      s.bars.forEach((n, i) => {
        if (!n) return;
        const x0 = this.x(area, 10 ** ((s.first + i) / PER_DECADE)), x1 = this.x(area, 10 ** ((s.first + i + 1) / PER_DECADE)), tall = low ? row - (row > 3) : Math.max(1, (row - 8) * (n / own));
        if (low) ctx.globalAlpha = 0.12 + 0.88 * (n / own);
        ctx.fillRect(x0 + 0.5, base - tall, Math.max(1, x1 - x0 - 1), tall);
      });
      ctx.globalAlpha = 1;
      if (low) return;
      ctx.fillStyle = theme.line;
      ctx.fillRect(area.left, base, area.w, 1);
      pen.shape(SHAPES[s.index % SHAPES.length], area.left - 12, base - 8, 4.4);
      ctx.fillStyle = pen.colour(s.index);
      ctx.fill();
    });
  }

  hover(x, y) {
    const area = this.areas?.find((a) => x >= a.left && x <= a.left + a.w && y >= a.top && y <= a.top + a.h);
    if (!area || !this.shown.length) return this.showTip(null);
    const ns = 10 ** (this.range[0] + ((x - area.left) / area.w) * (this.range[1] - this.range[0]));
    const lines = this.shown.slice(0, 12).map((s) => `${s.label}: ${(100 * (s.points.findLast(([t]) => t <= ns)?.[1] ?? 0)).toFixed(1)} %`);
    this.showTip(`took at most ${duration(ns)}\n${lines.join("\n")}`, x + this.canvas.offsetLeft, y + this.canvas.offsetTop);
  }

  /** For tests: what is shown, read-only. */
  state() {
    return { view: "latency", series: this.source.series, shown: this.shown.map((s) => s.label), floors: this.source.floors, orphaned: !!this.source.orphaned, words: this.note.textContent };
  }
}

class LatencyStore extends Store {
  constructor(model) {
    super(model);
    Object.assign(this, { series: [], floors: [], lost: 0 });
  }
  addBatch(content, buffers) { content?.kind === "latency" && this.load(buffers[0]); }
  unpack(buffer) { Object.assign(this, parse(buffer, "series", "floors")); }
}

export default widget((model) => new LatencyStore(model), (store, el) => new LatencyView(store, el));
