// What the views over time have in common: a timeline (which window is shown, where the cursor is, what is chosen; one
// may steer several views) and a view that draws lanes along it, with controls, keys, zoom and pan.
//
//   window  [from, to] of the time that is shown; the whole time, or followed live, or put there by the reader
//   cursor  u: what comes after it has not happened yet; at the end of the recording everything is shown

import { ID, RECEIVED, SENT, before, exact } from "./messages.js";
import { Pen, SHAPES, View, button, calm, duration, element, fittingSpeed, moment, roundStep, setText, showPlaying, soon, speedPicker } from "./shared.js";
import { SvgContext, asSvg, legend, saveButtons, sentences, stacked } from "./picture.js";
import { shapeIcon, signIcon } from "./signs.js";

export const SHORTEST = 20; // ns in the window at most zoom
const LIVE = 5e9; // ns in the window while live
const KEYS = "Arrows move along, plus and minus zoom, 0 shows the whole time, full stop and comma go from message to message, the space bar plays.";

export class Timeline {
  constructor(store) {
    Object.assign(this, { store, from: 0, to: 1, u: Infinity, mode: "whole", playing: false, speed: 1, chosen: null, hidden: new Set(), listeners: new Set(), gutters: new Map(), used: 0 });
    this.heard = (what) => this.onStore(what);
    store.listeners.add(this.heard);
  }

  close() {
    this.store.listeners.delete(this.heard);
    this.frame?.();
  }

  get end() { return this.store.end; }
  get span() { return this.to - this.from; }
  get now() { return Math.min(this.u, this.end); }
  get atEnd() { return this.u >= this.end; }

  tell() {
    for (const listener of this.listeners) listener();
  }

  onStore(what) {
    if (what === "recording") this.chosen = null; // places have changed
    this.settle();
    this.tell();
    this.wake();
  }

  /** The window of the modes that follow what there is. */
  settle() {
    const { end } = this;
    if (this.mode === "whole" && this.store.streams) [this.from, this.to] = [Math.max(0, end - LIVE), Math.max(end, 1e6)];
    else if (this.mode === "whole") [this.from, this.to] = [-end * 0.01, end * 1.01 + 1];
  }

  whole() {
    Object.assign(this, { mode: "whole", playing: false, u: Infinity });
    this.settle();
    this.tell();
    this.wake();
  }

  /** Show a window of time, as near to the one asked for as there is. */
  show(from, to) {
    const most = this.end * 1.02 + 1, span = Math.min(most, Math.max(SHORTEST, to - from)), middle = (from + to) / 2;
    this.from = Math.min(Math.max(-this.end * 0.01, middle - span / 2), this.end * 1.01 + 1 - span);
    this.to = this.from + span;
    this.mode = span >= most * 0.999 ? "whole" : "window";
    this.tell();
    this.wake();
  }

  zoom(factor, at = this.atEnd || this.now < this.from || this.now > this.to ? (this.from + this.to) / 2 : this.now) {
    const wide = Math.max(SHORTEST / this.span, factor);
    this.show(at - (at - this.from) * wide, at + (this.to - at) * wide);
  }

  pan(ns) { this.show(this.from + ns, this.to + ns); }

  seek(u) {
    Object.assign(this, { playing: false, u, chosen: null });
    if (u < this.from || u > this.to) this.pan(u - (this.from + this.to) / 2);
    else this.tell();
  }

  toggle() {
    this.playing = !this.playing;
    if (this.playing) {
      if (this.mode === "whole") Object.assign(this, { mode: "window", from: -this.end * 0.01, to: this.end * 1.01 + 1 });
      if (this.atEnd || this.u >= this.to) this.u = this.from;
      if (!this.speeded) this.speed = fittingSpeed(this.span);
      this.chosen = null;
      this.frame?.(); // it may be a second away
      this.frame = null;
    }
    this.tell();
    this.wake();
  }

  setSpeed(speed) {
    Object.assign(this, { speed, speeded: true });
    this.tell();
  }

  /** Choose a message (its place in the store) and let the cursor stand where it has arrived. */
  choose(i) {
    const { columns } = this.store, sent = columns[SENT][i], received = columns[RECEIVED][i], ends = received < Infinity ? received : sent;
    Object.assign(this, { chosen: i, playing: false, u: ends });
    if (sent < this.from || ends > this.to) {
      const span = Math.max(this.span, (ends - sent) * 3);
      this.show((sent + ends) / 2 - span / 2, (sent + ends) / 2 + span / 2);
    } else this.tell();
  }

  /** The message after or before the chosen one, or the cursor, among those that are not filtered out. */
  step(way, wanted = () => true) {
    const { store } = this, sent = store.columns[SENT];
    let i = this.chosen ?? (way > 0 ? before(sent, this.atEnd ? this.from : this.u, store.count) - 1 : before(sent, Math.min(this.u, this.to), store.count));
    for (i += way; i >= 0 && i < store.count; i += way) if (wanted(i)) return this.choose(i);
  }

  /** Animate: a replay runs, or the end of a live recording runs away. */
  get moving() { return this.used > 0 && !document.hidden && (this.playing || (this.mode === "whole" && this.store.streams && performance.now() - this.store.arrived < 1000)); }

  wake() {
    if (this.frame || !this.moving) return;
    this.last = performance.now();
    this.nextFrame();
  }

  /** Who wants no motion sees what is live once a second. */
  nextFrame() { this.frame = soon((now) => this.tick(now), !this.playing && calm()); }

  tick(now) {
    this.frame = null;
    const passed = Math.min(0.1, Math.max(0, (now - this.last) / 1000));
    this.last = now;
    if (this.playing) {
      this.u += (passed * 1e9) / this.speed;
      const ahead = this.u - (this.from + 0.8 * this.span);
      if (this.mode === "window" && ahead > 0 && this.to < this.end) [this.from, this.to] = [this.from + ahead, this.to + ahead];
      if (this.u >= this.end) Object.assign(this, { u: Infinity, playing: false });
    }
    this.settle();
    this.tell();
    if (this.moving) this.nextFrame();
  }
}

const CSS = `
.labkit-time .stage { overflow: hidden auto; max-height: 600px; position: relative; }
.labkit-time .stage canvas { position: sticky; top: 0; width: 100%; cursor: crosshair; touch-action: pan-y; } .labkit-time .stage canvas.dragged { cursor: grabbing; }
.labkit-time .legend { display: flex; flex-wrap: wrap; gap: 5px 8px; align-items: center; padding: 8px 12px 6px; color: var(--lk-weak); max-height: 130px; overflow: auto; }
.labkit-time .legend .sign { display: inline-flex; gap: 6px; align-items: center; white-space: nowrap; margin-left: 6px; } .labkit-time .legend svg { width: 14px; height: 14px; }
.labkit-time .legend button { min-height: 26px; padding: 0 9px; display: inline-flex; gap: 6px; align-items: center; max-width: 16em; }
.labkit-time .legend button span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.labkit-time .legend button[aria-pressed] { color: var(--lk-strong); border-color: var(--lk-line); font-weight: 400; } .labkit-time .legend button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.labkit-time .legend input { min-height: 26px; width: 11em; }
.labkit-time .bar { border-top: 1px solid var(--lk-faint); padding-bottom: 4px; }
.labkit-time .slider { flex: 1 1 150px; min-width: 120px; position: relative; }
.labkit-time .strip { width: 100%; height: 18px; } .labkit-time input[type=range] { display: block; width: 100%; margin: 0; height: 16px; }
.labkit-time .clock { min-width: 9.5em; } .labkit-time .note { min-height: 2.9em; overflow-wrap: anywhere; }
@container (max-width: 780px) { .labkit-time .slider { order: -1; flex-basis: 100%; } }
@media print { .labkit-time .legend :is(input, button[aria-pressed=false]) { display: none; } }
`;

/** A view along a timeline. It says how: build(), layout() -> height, draw(), under(x, y), words(). */
export class TimeView extends View {
  constructor(store, el, name, label, { timeline = null, css = "", controls = true } = {}) {
    super(el, name, label, CSS + css);
    this.root.classList.add("labkit-time");
    Object.assign(this, { store, kind: name, own: !timeline, timeline: timeline ?? new Timeline(store), height: 100, scrolled: 0, width: 0, left: 100 });
    this.canvas = element("canvas", { role: "img", tabindex: 0, "aria-label": label, "aria-description": KEYS });
    this.spacer = element("div");
    this.stage = element("div", { class: "stage" }, this.canvas, this.spacer);
    this.legend = element("div", { class: "legend", role: "group", "aria-label": "What is shown" });
    this.note = element("div", { class: "note" });
    this.spoken = element("div", { class: "spoken", role: "status", "aria-live": "polite" });
    this.pen = new Pen(this.canvas);
    this.root.append(this.legend, this.stage);
    if (controls) this.root.append(this.bar());
    this.root.append(this.note, this.tip, this.spoken);
    this.hands();
    this.heard = () => this.ask();
    this.timeline.listeners.add(this.heard);
    this.timeline.settle();
  }

  bar() {
    const { timeline } = this, made = (label, picture, f) => button(label, f, { picture });
    this.play = made("Play", "play", () => timeline.toggle());
    this.back = made("One message back", "back", () => this.step(-1));
    this.next = made("Next message", "next", () => this.step(1));
    this.strip = element("canvas", { class: "strip", "aria-hidden": "true" });
    this.stripPen = new Pen(this.strip);
    this.slider = element("input", { type: "range", min: 0, max: 10000, step: 1, value: 10000, "aria-label": "Time in the recording" });
    this.slider.addEventListener("input", () => timeline.seek(+this.slider.value >= 10000 ? Infinity : (this.slider.value / 10000) * timeline.end));
    this.clock = element("span", { class: "clock" });
    this.pick = speedPicker((speed) => timeline.setSpeed(speed));
    const group = (...buttons) => element("div", { class: "group" }, ...buttons);
    this.whole = button("Show the whole time", () => timeline.whole(), { text: "Whole" });
    const zoom = group(button("Zoom out", () => timeline.zoom(2), { text: "−" }), button("Zoom in", () => timeline.zoom(0.5), { text: "+" }), this.whole);
    return element("div", { class: "bar", role: "group", "aria-label": "Replay and zoom" }, this.play, this.back, this.next, element("div", { class: "slider" }, this.strip, this.slider), this.clock, this.pick, zoom, saveButtons(this, this.kind));
  }

  hands() {
    const { timeline, canvas } = this;
    this.on(canvas, "wheel", (event) => this.wheel(event), { passive: false });
    this.on(canvas, "pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.drag = { x: event.offsetX, from: timeline.from, to: timeline.to, far: 0 };
    });
    this.on(canvas, "pointermove", (event) => {
      this.mouse = [event.offsetX, event.offsetY];
      if (!this.drag) return this.hover();
      const moved = event.offsetX - this.drag.x, ns = -moved / this.scale;
      this.drag.far = Math.max(this.drag.far, Math.abs(moved));
      if (this.drag.far < 4) return;
      canvas.classList.add("dragged");
      timeline.playing = false;
      timeline.show(this.drag.from + ns, this.drag.to + ns);
    });
    this.on(canvas, "pointerup", (event) => {
      if (this.drag && this.drag.far < 4) this.click(event.offsetX, event.offsetY);
      this.drag = null;
      canvas.classList.remove("dragged");
    });
    this.on(canvas, "pointerleave", () => ((this.mouse = null), this.hover()));
    this.on(canvas, "dblclick", (event) => timeline.zoom(0.25, this.time(event.offsetX)));
    this.on(this.stage, "scroll", () => this.ask());
    this.on(this.root, "keydown", (event) => this.key(event));
  }

  /** Over a view that has the focus the wheel zooms; else only with Ctrl, so that a page can be scrolled past it. */
  wheel(event) {
    const { timeline } = this, sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (!sideways && !event.ctrlKey && !event.metaKey && document.activeElement !== this.canvas) return;
    event.preventDefault();
    if (sideways) timeline.pan(((event.deltaX || event.deltaY) / (this.width - this.left)) * timeline.span);
    else timeline.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), this.time(event.offsetX));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const { timeline } = this, tenth = timeline.span / 10;
    const keys = {
      ArrowLeft: () => timeline.pan(-tenth), ArrowRight: () => timeline.pan(tenth), "+": () => timeline.zoom(0.5), "=": () => timeline.zoom(0.5), "-": () => timeline.zoom(2), 0: () => timeline.whole(),
      Home: () => timeline.show(0, timeline.span), End: () => timeline.show(timeline.end - timeline.span, timeline.end), ".": () => this.step(1), ",": () => this.step(-1), l: () => this.trouble?.(1),
    };
    const f = event.key === " " && event.target === this.canvas ? () => timeline.toggle() : keys[event.key];
    if (!f) return;
    f();
    event.preventDefault();
  }

  step(way) {
    this.timeline.step(way, (i) => this.picked(i));
    this.speak();
  }
  picked(i) { return !this.timeline.hidden.has(this.store.channel[i]); }
  click() {}
  hover() {}

  // -- time on the canvas

  get scale() { return (this.width - this.left - 10) / this.timeline.span; }
  x(t) { return this.left + (t - this.timeline.from) * this.scale; }
  time(x) { return this.timeline.from + (x - this.left) / this.scale; }

  // -- painting

  resized() { this.ask(); }
  sighted() {
    this.timeline.used += this.seen && !this.counted ? 1 : !this.seen && this.counted ? -1 : 0;
    this.counted = this.seen;
    this.timeline.wake();
    this.ask();
  }

  /** Paint before the next frame, once, however much has changed. */
  ask() {
    if (this.asked || this.closed) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.paint();
    });
  }

  close() {
    cancelAnimationFrame(this.asked);
    if (this.counted) this.timeline.used--;
    this.timeline.listeners.delete(this.heard);
    this.timeline.gutters.delete(this);
    if (this.own) this.timeline.close();
    super.close();
  }

  paint() {
    const width = this.root.clientWidth - 2;
    if (this.closed || !this.theme || width < 50) return;
    const began = performance.now();
    this.width = width;
    this.full = this.layout();
    Object.assign(this, { height: Math.min(600, this.full), scrolled: this.stage.scrollTop });
    this.spacer.style.height = `${Math.max(0, this.full - this.height)}px`;
    this.canvas.style.height = `${this.height}px`;
    this.draw();
    this.controls();
    this.cost = performance.now() - began;
  }

  draw() {
    this.pen.ctx instanceof CanvasRenderingContext2D && this.pen.begin(this.width, this.height);
    this.picture(this.pen.ctx);
    const { theme, ctx } = this.pen, x = this.x(this.timeline.now);
    if (this.timeline.atEnd || x < this.left || x > this.width) return;
    ctx.fillStyle = theme.waiting;
    ctx.fillRect(x - 0.75, 0, 1.5, this.height);
  }

  /** The picture with what its colours mean above and the words below it. */
  file() {
    const { pen, theme, width, timeline, store } = this, channels = store.meta.channels.map((c, n) => [SHAPES[n % SHAPES.length], pen.colour(n), c.label]);
    const shown = channels.filter((_, n) => !timeline.hidden.has(n));
    const screen = { height: this.height, scrolled: this.scrolled }, whole = { height: this.full, scrolled: 0 }; // what is scrolled away is in it
    const lanes = asSvg(pen, () => Object.assign(this, pen.ctx instanceof SvgContext ? whole : screen).draw(), this.full);
    return stacked([legend(shown, width, theme), lanes, sentences([this.words().filter(Boolean).join(" ")], width, theme)], theme.ground);
  }

  /** Names of lanes are left of this. */
  gutter(texts, size = 13) {
    this.pen.font(size, 600);
    const widest = Math.max(0, ...texts.slice(0, 300).map((text) => this.pen.ctx.measureText(text).width));
    this.timeline.gutters.set(this, Math.round(Math.max(70, Math.min(widest + 26, 190, this.width * 0.26))));
    const left = Math.max(...this.timeline.gutters.values()); // views of one timeline stand in line
    if (left !== this.left) for (const view of this.timeline.gutters.keys()) view.ask();
    this.left = left;
  }

  /** Moments along the top, as exact as the window asks for: from a base when zoomed far in. */
  axis(height) {
    const { pen, left, width, timeline } = this, { ctx, theme } = pen, step = roundStep(timeline.span / Math.max(2, (width - left) / 115));
    const base = timeline.span < 2e-3 * Math.abs(timeline.to) || timeline.span < 2e3 ? Math.floor(Math.max(0, timeline.from) / (step * 10)) * step * 10 : 0;
    const unit = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([size]) => step * 1.0001 >= size) ?? [1, "ns"], digits = step < unit[0] ? 1 : 0;
    const name = (t) => (Math.abs(t - base) < step / 2 ? (base ? "" : "0") : `${base && t > base ? "+" : ""}${+((t - base) / unit[0]).toFixed(digits)} ${unit[1]}`);
    pen.font(11);
    if (base) pen.text(pen.either([exact(base), ""], left - 16), left - 8, 10, theme.weak, { align: "right" });
    for (let n = Math.ceil(timeline.from / step); n * step <= timeline.to; n++) {
      const x = this.x(n * step);
      ctx.fillStyle = theme.faint;
      ctx.fillRect(x - 0.5, 18, 1, height - 18);
      if (x > left + 4 && x < width - 26) pen.text(name(n * step), x, 10, theme.weak, { align: "center" });
    }
  }

  /** A button a channel, which shows and hides what went through it; the legend at the same time. */
  chips() {
    const { timeline } = this;
    return this.store.meta.channels.map((c, index) => {
      const chip = element("button", { type: "button", "aria-pressed": String(!timeline.hidden.has(index)), title: `Show or hide the messages through ${c.label}`, "data-channel": index }, shapeIcon(SHAPES[index % SHAPES.length], this.pen.colour(index)), element("span", {}, c.label));
      chip.addEventListener("click", () => {
        timeline.hidden.has(index) ? timeline.hidden.delete(index) : timeline.hidden.add(index);
        timeline.tell();
      });
      return chip;
    });
  }

  /** The legend is made again only when `key` says that it is another one; the focus stays where it was. */
  relegend(key, parts) {
    key = JSON.stringify([this.store.meta.channels.map((c) => c.label), this.theme.ground, [...this.timeline.hidden], key]);
    if (key === this.legendKey) return;
    this.legendKey = key;
    const focused = this.legend.contains(document.activeElement) ? document.activeElement.dataset.channel : undefined;
    const chips = this.chips(), more = parts();
    this.legend.replaceChildren(...(chips.length > 12 ? [...more, ...chips] : [...chips, ...more])); // many chips scroll
    if (focused !== undefined) this.legend.querySelector(`[data-channel="${focused}"]`)?.focus();
  }

  sign(kind, colour, text) { return element("span", { class: "sign" }, signIcon(kind, colour, this.theme.ground), text); }

  /** Arrays of zeros, one number a pixel of the window. */
  emptied(arrays, count) {
    const wide = Math.ceil(this.width - this.left - 10) + 1;
    if (arrays?.length !== count || (count && arrays[0].length !== wide)) return Array.from({ length: count }, () => new Float32Array(wide));
    for (const array of arrays) array.fill(0);
    return arrays;
  }

  /** A function that adds to each pixel which share of it lies between two times, up to `now`. */
  spreader(now) {
    const { scale } = this, { from } = this.timeline, wide = Math.ceil(this.width - this.left - 10);
    return (bins, a, b, weight = 1) => {
      let x = (a - from) * scale, end = ((b < now ? b : now) - from) * scale;
      if (end <= 0 || x >= wide || end <= x) return;
      if (x < 0) x = 0;
      if (end > wide) end = wide;
      const i = x | 0, j = end | 0;
      if (i === j) return void (bins[i] += (end - x) * weight);
      bins[i] += (i + 1 - x) * weight;
      for (let k = i + 1; k < j; k++) bins[k] += weight;
      bins[j] += (end - j) * weight;
    };
  }

  /** Inside a call (role 0: send, hatched; 1: receive, framed), as much of a pixel as it was. */
  stripe(bins, top, h, role) {
    const { pen, left } = this, { ctx, theme } = pen, of = (i) => Math.min(6, Math.round(bins[i] * 6));
    ctx.lineWidth = 1;
    for (let i = 0, j; i < bins.length; i = j) {
      const level = of(i);
      for (j = i + 1; j < bins.length && of(j) === level; j++);
      if (!level) continue;
      ctx.globalAlpha = role ? 0.12 + 0.06 * level : 0.15 + 0.12 * level;
      ctx.fillStyle = ctx.strokeStyle = role ? theme.waiting : theme.blocked;
      ctx.fillRect(left + i, top, j - i, h);
      ctx.globalAlpha = 1;
      if (level < 5 || j - i < 6) continue;
      if (role) ctx.strokeRect(left + i + 0.5, top + 0.5, j - i - 1, h - 1);
      else pen.hatch(left + i, top, j - i, h, theme.ground, { gap: 5, line: 1.2 });
    }
  }

  controls() {
    const { timeline, store } = this, none = !store.count;
    if (this.play) {
      showPlaying(this.play, timeline.playing);
      for (const control of [this.play, this.back, this.next, this.slider, this.pick]) control.disabled = none;
      if (document.activeElement !== this.slider || timeline.playing) this.slider.value = Math.round((10000 * timeline.now) / timeline.end);
      const shown = none ? "" : timeline.atEnd ? `${duration(timeline.span)} shown` : moment(timeline.now, timeline.end);
      setText(this.clock, shown);
      this.slider.setAttribute("aria-valuetext", shown);
      this.pick.value = timeline.speed;
      this.overview();
    }
    setText(this.note, [store.problem, ...this.words(), store.meta.lost ? `${store.meta.lost.toLocaleString("en-US")} events could not be recorded.` : "", store.orphaned ? "The kernel has gone: this is what was known until then." : ""].filter(Boolean).join(" "));
  }

  /** When messages were sent, under the slider, and which part of that the window shows. */
  overview() {
    const { strip, stripPen: pen, timeline, store } = this, width = strip.clientWidth;
    if (!width) return;
    Object.assign(pen, { theme: this.theme });
    const ctx = pen.begin(width, 18), inset = 8, count = Math.floor((width - 2 * inset) / 3), key = `${store.version} ${count} ${this.theme.ground}`;
    if (this.binKey !== key) {
      this.bins = new Float64Array(count);
      const sent = store.columns[SENT];
      for (let i = 0; i < store.count; i++) this.bins[Math.max(0, Math.min(count - 1, Math.floor((sent[i] / timeline.end) * count)))]++;
      this.most = this.bins.reduce((a, b) => Math.max(a, b), 1);
      this.binKey = key;
    }
    const at = (t) => inset + (Math.max(0, Math.min(timeline.end, t)) / timeline.end) * (width - 2 * inset);
    ctx.fillStyle = this.theme.waitingground;
    ctx.fillRect(at(timeline.from), 0, Math.max(2, at(timeline.to) - at(timeline.from)), 18);
    ctx.fillStyle = this.theme.waiting;
    this.bins.forEach((n, i) => {
      const tall = n ? Math.max(1.5, 16 * Math.sqrt(n / this.most)) : 0.8;
      ctx.globalAlpha = n ? 0.8 : 0.3;
      ctx.fillRect(inset + i * 3, 18 - tall, 2, tall);
    });
    ctx.globalAlpha = 1;
  }

  speak() { setText(this.spoken, this.words().join(" ")); }

  /** What all of these views tell tests. */
  state() {
    const { timeline, store } = this;
    return {
      view: this.kind, from_ns: timeline.from, to_ns: timeline.to, now_ns: timeline.now, at_end: timeline.atEnd, playing: timeline.playing, speed: timeline.speed, mode: timeline.mode, live: store.live, over: store.meta.over, orphaned: store.orphaned,
      messages: store.count, chosen: timeline.chosen === null ? null : { id: store.columns[ID][timeline.chosen], sent_ns: store.columns[SENT][timeline.chosen] }, hidden: [...timeline.hidden], cost_ms: this.cost, words: this.words().join(" "), animating: !!timeline.frame,
    };
  }
}
