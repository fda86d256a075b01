// The locks view: one lane a process, solid where it holds a lock, hatched where it waits for one, and beside it who
// waits for whom at the chosen moment. A circle in that is a deadlock, which labkit/locks.py has found and named.
//
//   table   what labkit/views/locks.py record() made: locks, actors (threads of processes), spans, deadlocks
//   moment  the time under the cursor: the newest while live, else where the reader has put it
//
// All times are nanoseconds since the first wait.

import { Pen, SHAPES, Store, View, button, calm, drawn, duration, element, moment, number, parse, roundStep, setText, widget } from "./shared.js";
import { SvgContext, asSvg, legend, saveButtons, sentences, stacked } from "./picture.js";
import { shapeIcon } from "./signs.js";

const GOT = 0, IN_VAIN = 1, HELD = 2, GIVEN = 3; // kinds of span
const ACTOR = 0, LOCK = 1, KIND = 2, BEGIN = 3, END = 4; // a span
const ROW = 17, FRAME = 50; // pixels of a lock in a lane; ms between two pictures while live
const MOST_HIGH = 600, AXIS = 22; // pixels of all lanes before they scroll, and of the times below them
const MOST_NODES = 12; // of who waits for whom

const CSS = `
.labkit-locks .legend { display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 8px 12px 4px; color: var(--lk-weak); }
.labkit-locks .legend span { display: inline-flex; align-items: center; gap: 6px; }
.labkit-locks .legend i { width: 22px; height: 12px; border-radius: 3px; background: currentColor; } .labkit-locks .legend svg { width: 14px; height: 14px; }
.labkit-locks .legend i.waits { border: 1px solid; background: repeating-linear-gradient(135deg, currentColor 0 2px, transparent 2px 6px); }
.labkit-locks .lanes { position: relative; margin: 0 12px; overflow: hidden auto; max-height: 600px; } .labkit-locks canvas { position: sticky; top: 0; width: 100%; cursor: crosshair; }
.labkit-locks .bar { padding: 6px 12px; } .labkit-locks .bar input { flex: 1 1 160px; min-width: 100px; }
.labkit-locks button { min-width: 30px; } .labkit-locks .clock { color: var(--lk-weak); }
.labkit-locks .graph { padding: 0 12px; } .labkit-locks .graph svg { display: block; width: 100%; font: inherit; }
.labkit-locks .verdict { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; }
.labkit-locks .verdict p { margin: 0; flex: 1 1 300px; }
`;

// ---------------------------------------------------------------- table

const EMPTY = { locks: [], actors: [], spans: [], every: 0, deadlocks: [], newest: 0, now: 0, over: true, lost: 0 };
const until = (span) => (span[END] < 0 ? Infinity : span[END]);
const dead = (actor) => actor.end >= 0 && !!actor.ended;
const killed = (actor) => dead(actor) && actor.ended.startsWith("killed");

/** What there is at a moment: open waits and holds, and the deadlock. */
function situation(table, t) {
  const open = table.spans.filter((s) => s[KIND] !== GIVEN && s[BEGIN] <= t && until(s) > t);
  const gone = (s) => dead(table.actors[s[ACTOR]]) && table.actors[s[ACTOR]].end <= t;
  const holds = open.filter((s) => s[KIND] === HELD), waits = open.filter((s) => s[KIND] !== HELD && !gone(s));
  const deadlock = table.deadlocks.find((d) => d.begin <= t && (d.end < 0 || d.end > t)) ?? null;
  const abandoned = waits.flatMap((w) => holds.filter((h) => h[LOCK] === w[LOCK] && gone(h)).map((h) => [w, h]));
  return { waits, holds, deadlock, abandoned, gone };
}

// ---------------------------------------------------------------- view

class LocksView extends View {
  constructor(store, el) {
    super(el, "locks", "Who holds and awaits which lock", CSS);
    Object.assign(this, { store, cursor: null, from: 0, to: null, hits: [], scrolled: 0 });
    this.build();
    this.pen = new Pen(this.canvas);
    this.heard = () => this.onStore();
    store.listeners.add(this.heard);
    this.follow();
  }

  build() {
    this.legend = element("div", { class: "legend" });
    this.canvas = element("canvas", { role: "img" });
    this.spacer = element("div");
    this.lanes = element("div", { class: "lanes scrolls", role: "group", "aria-label": "Lanes" }, this.canvas, this.spacer);
    this.slider = element("input", { type: "range", min: 0, max: 10000, value: 10000, "aria-label": "Moment" });
    this.clock = element("span", { class: "clock" });
    this.live = button("Now", () => this.put(null));
    this.live.title = "Follow what happens now";
    this.less = button("Zoom out", () => this.zoom(3), { text: "−" });
    this.more = button("Zoom in", () => this.zoom(1 / 3), { text: "+" });
    this.more.title = "Zoom in at the chosen moment";
    this.whole = button("Whole", () => this.zoom(Infinity));
    this.whole.title = "Show the whole time";
    this.bar = element("div", { class: "bar", role: "group", "aria-label": "Moment and zoom" }, this.slider, this.clock, this.live, this.less, this.more, this.whole, saveButtons(this, "locks"));
    this.svg = drawn("svg", { role: "img" });
    this.graph = element("div", { class: "graph" }, this.svg);
    this.words = element("p");
    this.jump = button("Show the deadlock", () => this.put(this.best()));
    this.jump.hidden = true;
    this.verdict = element("div", { class: "verdict", role: "status" }, this.words, this.jump);
    this.note = element("div", { class: "note" });
    this.root.append(this.legend, this.lanes, this.bar, this.graph, this.verdict, this.note, this.tip);
    this.on(this.slider, "input", () => this.put(this.from + (this.right() - this.from) * (this.slider.value / 10000)));
    this.on(this.canvas, "pointermove", (event) => this.hover(event));
    this.on(this.canvas, "pointerleave", () => this.showTip(null));
    this.on(this.lanes, "scroll", () => this.paint());
    this.on(this.canvas, "click", (event) => event.offsetX >= this.left && this.put(this.time(event.offsetX)));
  }

  close() {
    this.store.listeners.delete(this.heard);
    clearTimeout(this.timer);
    super.close();
  }

  sighted() { this.wake(); }

  get table() { return this.store.table; }
  colour(lock) { return this.pen.colour(lock); }

  // -- time

  /** The newest time there is: it goes on while processes run and a kernel feeds us. */
  end() {
    const { table, store } = this;
    if (table.over) return Math.max(1, table.newest * 1.03);
    const passed = store.live ? (performance.now() - store.arrived) * 1e6 : 0;
    return Math.max(1, table.newest, table.now) + Math.min(passed, 60e9);
  }
  right() { return this.to ?? this.end(); }
  now() { return this.cursor ?? (this.table.over ? this.table.newest : this.end()); }
  x(t) { return this.left + ((t - this.from) / (this.right() - this.from)) * (this.width - this.left - 6); }
  time(x) { return Math.min(this.right(), Math.max(this.from, this.from + ((x - this.left) / (this.width - this.left - 6)) * (this.right() - this.from))); }

  /** Where there is most to see: in the middle of the last deadlock, or of a wait for what a dead process held. */
  best() {
    const { table } = this, middle = ({ begin, end }) => (begin + (end < 0 ? this.end() : end)) / 2;
    if (table.deadlocks.length) return middle(table.deadlocks.at(-1));
    const vain = table.spans.filter((s) => s[KIND] === IN_VAIN).slice(-50).reverse().map((s) => middle({ begin: s[BEGIN], end: s[END] }));
    return vain.find((t) => situation(table, t).abandoned.length) ?? null;
  }

  put(t) {
    this.touched = true;
    this.cursor = t;
    if (t == null) this.to = null;
    else if (t < this.from || t > this.right()) [this.from, this.to] = [0, null];
    this.paint();
    this.wake();
  }

  zoom(factor) {
    const whole = this.end(), wide = Math.min(whole, Math.max(1000, (this.right() - this.from) * factor)), middle = this.now();
    if (wide >= whole) [this.from, this.to] = [0, null];
    else {
      this.from = Math.min(Math.max(0, middle - wide / 2), whole - wide);
      this.to = this.from + wide;
    }
    this.paint();
  }

  onStore() {
    if (!this.touched) this.cursor = this.table.over ? this.best() : null;
    this.paint();
    this.wake();
  }

  wake() {
    if (this.timer || this.closed || !this.seen || this.table.over || !this.store.live || document.hidden) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.paint();
      this.wake();
    }, calm() ? 1000 : FRAME);
  }

  // -- drawing

  paint() {
    if (this.closed || !this.theme || !this.root.clientWidth) return;
    this.lanes.hidden = this.bar.hidden = !this.table.actors.length;
    this.scrolled = this.lanes.scrollTop;
    this.here = situation(this.table, this.now());
    this.paintLegend();
    this.paintLanes();
    this.paintGraph();
    this.tell();
  }

  /** The lanes, who waits for whom, and the sentence below them. */
  file() {
    const { width, theme, table } = this, [, , , tall] = this.svg.getAttribute("viewBox").split(" ").map(Number);
    const keys = legend(table.locks.map(({ label }, lock) => [SHAPES[lock % SHAPES.length], this.colour(lock), label]), width, theme);
    const whole = { most: Infinity, scrolled: 0 }, screen = { most: MOST_HIGH, scrolled: this.scrolled }; // what is scrolled away is in it
    const lanes = { ...asSvg(this.pen, () => Object.assign(this, this.pen.ctx instanceof SvgContext ? whole : screen).paintLanes(), this.full), x: 12 }, graph = { svg: this.svg, width, height: tall };
    return stacked([keys, lanes, graph, sentences([`At ${moment(this.now(), this.end())}: ${this.sentence()[0]}`], width, theme)], theme.ground);
  }

  paintLegend() {
    const key = JSON.stringify([this.table.locks, this.theme.ground]);
    if (key === this.legendKey) return;
    this.legendKey = key;
    const chips = this.table.locks.map(({ label }, lock) => element("span", {}, shapeIcon(SHAPES[lock % SHAPES.length], this.colour(lock)), label));
    const sign = (mark, text) => element("span", {}, mark, text);
    this.legend.replaceChildren(...chips, sign(element("i"), "holds"), sign(element("i", { class: "waits" }), "waits"), sign("▲", " releases what others take"), sign("✕", " killed"));
  }

  status(actor) {
    const { waits, holds, gone } = this.here, { table } = this, who = table.actors[actor];
    const of = (list) => [...new Set(list.filter((s) => s[ACTOR] === actor).map((s) => table.locks[s[LOCK]].label))].join(", ");
    const held = of(holds), waited = of(waits), at = this.now();
    if (dead(who) && who.end <= at) return killed(who) ? `${who.ended}${held ? `, held ${held}` : ""}` : who.ended;
    return [held && `holds ${held}`, waited && `waits for ${waited}`].filter(Boolean).join(", ") || (gone ? "" : "");
  }

  paintLanes() {
    const { canvas, table, theme, most = MOST_HIGH } = this;
    this.width = canvas.clientWidth || this.root.clientWidth - 24;
    this.left = Math.round(Math.min(190, Math.max(84, this.width * 0.24)));
    if (this.sorted !== table) {
      this.spans = table.actors.map(() => []);
      for (const span of table.spans) this.spans[span[ACTOR]].push(span);
      this.sorted = table;
    }
    let top = 6 - this.scrolled;
    const places = this.spans.map((spans) => {
      const locks = [...new Set(spans.map((s) => s[LOCK]))].sort((a, b) => a - b);
      const row = locks.length > 6 ? 9 : ROW, height = Math.max(38, locks.length * (row + 2) + 8), place = { top, height, row, locks };
      top += height + 6;
      return place;
    });
    this.full = Math.max(90, top + this.scrolled + AXIS);
    this.height = Math.min(most, this.full);
    canvas.style.height = `${this.height}px`;
    this.spacer.style.height = `${this.full - this.height}px`;
    this.full > this.height ? (this.lanes.tabIndex = 0) : this.lanes.removeAttribute("tabindex");
    if (this.pen.ctx instanceof CanvasRenderingContext2D) this.pen.begin(this.width, this.height);
    const ctx = (this.ctx = this.pen.ctx), bottom = this.height - AXIS;
    this.hits = [];
    ctx.save();
    ctx.beginPath();
    ctx.rect(0, 0, this.width, bottom);
    ctx.clip();
    places.forEach((place, actor) => place.top < bottom && place.top + place.height > 0 && this.lane(place, actor));
    this.band(places);
    const at = this.x(this.now());
    if (at >= this.left - 1 && at <= this.width) {
      ctx.fillStyle = theme.waiting;
      ctx.fillRect(at - 1, 2, 2, Math.min(top - 4, bottom));
    }
    ctx.restore();
    this.axis(bottom);
    const said = table.actors.map((a, i) => `${a.name}: ${this.status(i) || "neither holds nor waits"}.`).join(" ");
    canvas.setAttribute("aria-label", `Who held and awaited which lock over time. At ${moment(this.now(), this.end())}: ${said}`);
  }

  text(text, x, y, colour, options = {}) { this.pen.text(text, x, y, colour, { size: 12, ...options }); }

  lane({ top, height, row, locks }, actor) {
    const { ctx, table, theme, left } = this, who = table.actors[actor], middle = top + height / 2;
    const caught = this.here.deadlock?.actors.includes(actor);
    ctx.fillStyle = theme.card;
    ctx.fillRect(left, top, this.width - left - 6, height);
    this.text(who.name, 0, middle - 8, caught ? theme.killed : theme.strong, { weight: 600, size: 13, width: left - 8 });
    this.text(this.status(actor), 0, middle + 9, caught ? theme.killed : theme.weak, { size: 11, width: left - 8 });
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, this.width - left - 6, height);
    ctx.clip();
    const first = top + (height - locks.length * (row + 2)) / 2, from = this.from, to = this.right();
    for (const span of this.spans[actor]) {
      if (span[BEGIN] > to || until(span) < from) continue;
      this.span(span, first + locks.indexOf(span[LOCK]) * (row + 2), row);
    }
    if (who.end >= 0) {
      const x = this.x(who.end);
      ctx.fillStyle = theme.ground;
      ctx.globalAlpha = 0.6;
      ctx.fillRect(x, top, this.width, height);
      ctx.globalAlpha = 1;
      ctx.fillStyle = killed(who) ? theme.killed : theme.weak;
      ctx.fillRect(x - 1, top, 2, height);
      this.text(killed(who) ? "✕" : "", x + 5, middle, theme.killed, { weight: 700, size: 15 });
      this.hits.push({ x: x - 4, y: top, w: killed(who) ? 20 : 8, h: height, text: `${who.name} (pid ${who.pid}) ${who.ended}\nat ${moment(who.end, this.end())}` });
    }
    ctx.restore();
  }

  span(span, y, h) {
    const { ctx, theme, table } = this, colour = this.colour(span[LOCK]), { label } = table.locks[span[LOCK]];
    const x = Math.max(this.left - 2, this.x(span[BEGIN])), end = until(span);
    const w = Math.max(1.5, Math.min(this.width, end === Infinity ? this.width : this.x(end)) - x), name = table.actors[span[ACTOR]].name;
    const lasts = end === Infinity ? `since ${moment(span[BEGIN], this.end())}` : `for ${duration(end - span[BEGIN])}, from ${moment(span[BEGIN], this.end())}`;
    ctx.fillStyle = ctx.strokeStyle = colour;
    if (span[KIND] === GIVEN) {
      ctx.beginPath();
      ctx.moveTo(x, y + 2);
      ctx.lineTo(x + 5, y + h - 2);
      ctx.lineTo(x - 5, y + h - 2);
      ctx.fill();
      this.hits.push({ x: x - 5, y, w: 10, h, text: `${name} releases ${label}\nat ${moment(span[BEGIN], this.end())}` });
      return;
    }
    if (span[KIND] === HELD) {
      ctx.fillRect(x, y, w, h);
      if (w > 12 && h > 12) this.shape(span[LOCK], x + 8, y + h / 2, theme.on);
      if (w > 46 && h > 12) this.text(label, x + 17, y + h / 2 + 0.5, theme.on, { size: 11, weight: 600, width: w - 20 });
    } else {
      this.pen.hatch(x, y, w, h, colour);
      ctx.lineWidth = 2;
      ctx.strokeRect(x + 1, y + 1, Math.max(0, w - 2), h - 2);
      if (w > 60 && h > 12) this.label(`waits for ${label}`, x + 6, y + h / 2 + 0.5, w - 12);
      else if (w > 16 && h > 12) {
        ctx.fillStyle = theme.card;
        ctx.fillRect(x + 3, y + 3, 11, h - 6);
        this.shape(span[LOCK], x + 8.5, y + h / 2, colour);
      }
      if (span[KIND] === IN_VAIN && end < Infinity && w > 6) ctx.fillRect(x + w - 2, y - 1, 2, h + 2);
    }
    const fate = span[KIND] === IN_VAIN && end < Infinity ? "\nin vain" : "";
    this.hits.push({ x, y, w: Math.max(w, 4), h, text: `${name} ${span[KIND] === HELD ? "holds" : "waits for"} ${label}\n${lasts}${fate}` });
  }

  /** The sign of a lock, for who cannot tell its colour. */
  shape(lock, x, y, colour) {
    this.pen.shape(SHAPES[lock % SHAPES.length], x, y, 3.4);
    this.ctx.fillStyle = colour;
    this.ctx.fill();
  }

  label(text, x, y, width) {
    const { ctx, theme } = this;
    this.pen.font(11);
    const wide = Math.min(width, ctx.measureText(text).width);
    ctx.fillStyle = theme.card;
    ctx.fillRect(x - 3, y - 7, wide + 6, 13);
    this.text(text, x, y, theme.strong, { size: 11, width });
  }

  /** Deadlocks: a red frame around the lanes that are caught. */
  band(places) {
    const { ctx, theme } = this;
    for (const { begin, end, actors } of this.table.deadlocks) {
      const x = Math.max(this.left, this.x(begin)), w = (end < 0 ? this.width - 6 : Math.min(this.width - 6, this.x(end))) - x;
      if (w < 0 || x > this.width) continue;
      ctx.strokeStyle = theme.killed;
      ctx.lineWidth = 2;
      ctx.setLineDash([6, 3]);
      for (const actor of actors) if (places[actor]) ctx.strokeRect(x, places[actor].top, Math.max(2, w), places[actor].height);
      ctx.setLineDash([]);
    }
  }

  axis(y) {
    const { ctx, theme, left, width } = this, long = this.right() - this.from;
    const step = Math.max(1, roundStep(long / Math.max(2, (width - left) / 110)));
    for (let t = Math.ceil(this.from / step) * step; t <= this.right(); t += step) {
      const x = this.x(t);
      ctx.fillStyle = theme.line;
      ctx.fillRect(x, y - 4, 1, 5);
      if (x < width - 50) this.text(t === 0 ? "0" : duration(t).replace(/\.0+ /, " "), x, y + 10, theme.weak, { size: 11 });
    }
  }

  // -- who waits for whom

  paintGraph() {
    const { table, theme, svg } = this, { waits, holds, deadlock } = this.here;
    const edges = [...waits.map((s) => [`a${s[ACTOR]}`, `l${s[LOCK]}`, true]), ...holds.map((s) => [`l${s[LOCK]}`, `a${s[ACTOR]}`, false])];
    const circle = deadlock ? deadlock.actors.flatMap((actor, i) => [`a${actor}`, `l${deadlock.locks[i]}`]) : [];
    const after = (key) => circle[(circle.indexOf(key) + 1) % circle.length];
    circle.forEach((key) => {
      if (key[0] === "l" && !edges.some(([from, to]) => from === key && to === after(key))) edges.push([key, after(key), "owes"]);
    });
    const all = [...new Map(edges.map((edge) => [edge.slice(0, 2).join(), edge])).values()];
    all.sort((one, other) => (one[2] === true) - (other[2] === true)); // who holds something comes first
    const names = [...new Set([...circle, ...all.flat().filter((name) => typeof name === "string" && name !== "owes")])], kept = new Set(names.slice(0, MOST_NODES));
    const unique = all.filter(([from, to]) => kept.has(from) && kept.has(to)), more = names.length - kept.size;
    const key = JSON.stringify([unique, more, circle, this.width, theme.ground, table.locks, table.actors.map((a) => a.name)]);
    if (key === this.graphKey) return;
    this.graphKey = key;
    const spots = this.spots(unique, circle), height = spots.height;
    svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    svg.style.height = `${height}px`;
    svg.replaceChildren(...this.arrowheads(), ...unique.map((edge) => this.edge(edge, spots, circle.includes(edge[0]) && after(edge[0]) === edge[1])));
    for (const [name, spot] of spots) svg.append(this.node(name, spot, circle.includes(name)));
    if (more) svg.append(drawn("text", { x: 0, y: height - 6, "font-size": 12, fill: theme.weak }, `${number(more)} more are not drawn here.`));
    const label = (name) => (name[0] === "a" ? table.actors[name.slice(1)].name : table.locks[name.slice(1)].label);
    const said = unique.map(([from, to, how]) => (how === true ? `${label(from)} waits for ${label(to)}` : how === "owes" ? `${label(to)} has not released ${label(from)}` : `${label(to)} holds ${label(from)}`));
    svg.setAttribute("aria-label", unique.length ? `Who waits for whom: ${said.join("; ")}.` : "Nobody holds a lock or waits for one.");
  }

  /** Where everything stands: the circle in the middle, all others around it. */
  spots(edges, circle) {
    const spots = new Map(), names = [...new Set(edges.flatMap(([from, to]) => [from, to]))];
    const rest = names.filter((name) => !circle.includes(name)), w = this.width;
    const order = [], neighbours = (name) => edges.flatMap(([from, to]) => (from === name ? [to] : to === name ? [from] : []));
    const visit = (name) => {
      if (order.includes(name)) return;
      order.push(name);
      neighbours(name).forEach(visit);
    };
    if (!circle.length) rest.forEach(visit);
    const ring = circle.length ? circle : order, outer = circle.length ? rest : [];
    spots.height = ring.length ? Math.min(380, Math.max(64, ring.length < 3 ? 64 : 110 + 22 * ring.length)) + (outer.length ? 70 : 0) : 26;
    const rx = Math.min(w * (outer.length ? 0.26 : 0.36), 60 + 42 * ring.length), ry = spots.height / 2 - 24 - (outer.length ? 45 : 0);
    ring.forEach((name, i) => {
      const angle = ring.length < 3 ? Math.PI * (1 - i) : Math.PI + (2 * Math.PI * i) / ring.length;
      spots.set(name, [w / 2 + rx * Math.cos(angle), spots.height / 2 + ry * Math.sin(angle)]);
    });
    outer.forEach((name, i) => {
      const near = neighbours(name).find((n) => spots.has(n)), spot = near ? spots.get(near) : [w / 2, spots.height / 2];
      const angle = Math.atan2((spot[1] - spots.height / 2) / (ry || 1), (spot[0] - w / 2) / (rx || 1)) + 0.35 * (i % 2 ? 1 : -1);
      spots.set(name, [w / 2 + Math.min(w * 0.42, rx + 150) * Math.cos(angle), spots.height / 2 + (spots.height / 2 - 20) * Math.sin(angle)]);
    });
    return spots;
  }

  arrowheads() {
    const defs = drawn("defs");
    for (const [id, colour] of [["plain", this.theme.weak], ["wrong", this.theme.killed]]) {
      const head = drawn("marker", { id: `${this.store.key}-${id}`, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 8, markerHeight: 8, orient: "auto", markerUnits: "userSpaceOnUse" });
      head.append(drawn("path", { d: "M0,0 L10,5 L0,10 z", fill: colour }));
      defs.append(head);
    }
    return [defs];
  }

  edge([from, to, how], spots, wrong) {
    const [a, b] = [spots.get(from), spots.get(to)], long = Math.hypot(b[0] - a[0], b[1] - a[1]) || 1;
    const edge = (name) => (Math.abs(b[0] - a[0]) / long > 0.8 ? this.half(name) + 4 : 22);
    const [u, v] = [(b[0] - a[0]) / long, (b[1] - a[1]) / long], [p, q] = [edge(from), edge(to)];
    const line = { x1: a[0] + u * p, y1: a[1] + v * p, x2: b[0] - u * q, y2: b[1] - v * q, stroke: wrong ? this.theme.killed : this.theme.weak, "stroke-width": wrong ? 3 : 1.6, "marker-end": `url(#${this.store.key}-${wrong ? "wrong" : "plain"})` };
    if (how) line["stroke-dasharray"] = how === "owes" ? "2 4" : "7 4";
    const group = drawn("g"), words = how === true ? "waits for" : how === "owes" ? "not released by" : "held by";
    group.append(drawn("line", line));
    const label = drawn("text", { x: (line.x1 + line.x2) / 2, y: (line.y1 + line.y2) / 2 - 5, "text-anchor": "middle", "font-size": 11, fill: wrong ? this.theme.killed : this.theme.weak, stroke: this.theme.ground, "stroke-width": 4, "paint-order": "stroke" }, words);
    if (long - p - q > 40) group.append(label);
    return group;
  }

  named(name) { return name[0] === "a" ? this.table.actors[name.slice(1)].name : this.table.locks[name.slice(1)].label; }
  half(name) {
    this.pen.font(13, 600);
    return Math.max(26, Math.min(90, this.pen.ctx.measureText(this.named(name)).width / 2 + 12));
  }

  node(name, [x, y], wrong) {
    const { theme } = this, group = drawn("g"), process = name[0] === "a", half = this.half(name), colour = process ? theme.card : this.colour(+name.slice(1));
    const gone = process && dead(this.table.actors[name.slice(1)]) && this.table.actors[name.slice(1)].end <= this.now();
    group.append(drawn("rect", { x: x - half, y: y - 15, width: 2 * half, height: 30, rx: process ? 4 : 15, fill: colour, stroke: wrong ? theme.killed : process ? theme.weak : colour, "stroke-width": wrong ? 3 : 1.4, ...(gone ? { "stroke-dasharray": "4 3" } : {}) }));
    this.pen.font(13, 600);
    const text = this.named(name), short = this.pen.fitting(text, 2 * half - 20);
    group.append(drawn("text", { x, y: y + 4.5, "text-anchor": "middle", "font-size": 13, "font-weight": 600, fill: process ? theme.strong : theme.on }, `${gone ? "✕ " : ""}${short}`));
    group.append(drawn("title", {}, process ? `${text}, pid ${this.table.actors[name.slice(1)].pid}` : text));
    return group;
  }

  // -- words

  sentence() {
    const { table } = this, { deadlock, abandoned, waits } = this.here, label = (s) => table.locks[s[LOCK]].label, name = (s) => table.actors[s[ACTOR]].name;
    if (deadlock) {
      const lasted = deadlock.end < 0 ? "" : ` It lasted ${duration(deadlock.end - deadlock.begin)}, until one of them gave up or was ended.`;
      return [`Deadlock: ${deadlock.sentence}.${lasted}`, true];
    }
    if (abandoned.length) return [abandoned.map(([w, h]) => `${name(w)} waits for ${label(w)}, which ${name(h)} held when it was ${killed(table.actors[h[ACTOR]]) ? "killed" : "ended"}: it will not give it back.`).join(" "), true];
    if (!table.actors.length) return ["No lock has been used yet.", false];
    const times = table.deadlocks.length;
    const past = times ? ` ${times === 1 ? "There was a deadlock" : `There were ${times} deadlocks`} at another time.` : "";
    return [`No deadlock at this moment${waits.length ? "" : ": nobody waits"}.${past}`, false];
  }

  tell() {
    const [sentence, wrong] = this.sentence(), { table } = this, whole = this.right() - this.from;
    setText(this.words, sentence);
    this.verdict.className = `verdict${wrong ? " wrong" : ""}`;
    this.jump.hidden = !table.deadlocks.length || !!this.here.deadlock;
    this.live.hidden = table.over;
    this.live.setAttribute("aria-pressed", String(this.cursor == null));
    const value = Math.round((10000 * (Math.min(this.now(), this.right()) - this.from)) / whole);
    if (document.activeElement !== this.slider || this.cursor == null) this.slider.value = value;
    const clock = table.actors.length ? `${moment(this.now(), this.end())}` : "";
    setText(this.clock, clock);
    this.slider.setAttribute("aria-valuetext", clock);
    for (const control of [this.slider, this.less, this.more, this.whole]) control.disabled = !table.actors.length;
    const shown = table.spans.length < table.every ? `${number(table.spans.length)} of ${number(table.every)} waits and holds are drawn, the longest. ` : "";
    const lost = table.lost ? `${number(table.lost)} events could not be recorded. ` : "";
    setText(this.note, this.store.problem ?? shown + lost);
    this.note.hidden = !this.note.textContent;
  }

  hover({ offsetX: x, offsetY: y }) {
    const found = this.hits.findLast((hit) => x >= hit.x && x <= hit.x + hit.w && y >= hit.y && y <= hit.y + hit.h);
    this.showTip(found?.text, this.lanes.offsetLeft + 10 + x, this.lanes.offsetTop + y);
  }

  /** For tests: what is shown, read-only. Times in ns since the first event. */
  state() {
    this.here ??= situation(this.table, this.now()); // it may be asked before it has room to be painted in
    const { table } = this, [sentence, wrong] = this.sentence();
    return {
      view: "locks", now_ns: this.now(), from_ns: this.from, to_ns: this.right(), over: table.over, spans: table.spans.length, sentence, wrong,
      locks: table.locks.map((l) => l.label), deadlocks: table.deadlocks.map((d) => d.sentence),
      lanes: table.actors.map((a, i) => ({ name: a.name, status: this.status(i) })), ticking: !!this.timer,
      hits: (this.hits ?? []).map(({ x, y, w, h, text }) => ({ x, y, w, h, text })),
    };
  }
}

// ---------------------------------------------------------------- anywidget

class LocksStore extends Store {
  constructor(model) {
    super(model);
    Object.assign(this, { table: EMPTY, live: false, arrived: performance.now() });
  }

  addBatch(content, buffers) { content?.kind === "locks" && this.load(buffers[0], true); }

  unpack(buffer, live = false) { Object.assign(this, { table: parse(buffer, "locks", "actors", "spans", "deadlocks"), live: this.live || live, arrived: performance.now() }); }
}

export default widget((model) => new LocksStore(model), (store, el) => new LocksView(store, el));
