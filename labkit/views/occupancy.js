// How full each channel was over time, and below it when its producers were inside send and its consumers inside receive:
// a channel at its line and hatched producers are back-pressure, an empty one and framed consumers are starvation.

import { ASKED, ENTERED, GIVEN_UP, Messages, RECEIVED, SENT, SIZE, before } from "./messages.js";
import { SHAPES, bytes, duration, number, plural, widget } from "./shared.js";
import { TimeView } from "./timeline.js";

const TOP = 24, STRIPE = 8;
const FULL = 0.95; // from here on a channel counts as full

export class OccupancyView extends TimeView {
  constructor(store, el, options = {}) {
    super(store, el, "occupancy", "How full each channel was", options);
    Object.assign(this, { depths: [], shown: [] }); // it may be asked before it has room to be painted in
    this.follow();
  }

  // -- what there is to see

  layout() {
    const { store, timeline } = this, { channels } = store.meta;
    if (this.version !== store.version) {
      this.depths = channels.map((c, index) => (store.whole ? exactDepth(store, c, index) : talliedDepth(store, c)));
      this.version = store.version;
    }
    this.shown = channels.map((_, index) => index).filter((index) => !timeline.hidden.has(index));
    this.relegend(0, () => [this.sign("hatch", this.theme.blocked, "producers inside send"), this.sign("frame", this.theme.waiting, "consumers inside receive")]);
    this.gutter(["at most 99 KiB", ...channels.map((c) => `    ${c.label}`)]);
    this.rowHeight = this.shown.length > 6 ? 76 : this.shown.length > 2 ? 96 : 128;
    return Math.max(110, TOP + this.shown.length * this.rowHeight + 4);
  }

  y(n) { return TOP + n * this.rowHeight - this.scrolled; }

  // -- drawing

  picture(ctx) {
    const { pen, store, width, height, left } = this, { theme } = pen;
    if (!this.shown.length) return pen.text(store.meta.channels.length ? "All channels are hidden." : "No channel yet: channel(kind, trace=trace) adds one.", width / 2, height / 2, theme.weak, { align: "center", size: 14, width: width - 20 });
    this.axis(height);
    this.cover();
    this.shown.forEach((index, n) => {
      const y = this.y(n), c = store.meta.channels[index], depth = this.depths[index], chart = this.rowHeight - 2 * STRIPE - 20;
      if (y > height || y + this.rowHeight < TOP) return;
      pen.shape(SHAPES[index % SHAPES.length], 17, y + 14, 4.6);
      ctx.fillStyle = pen.colour(index);
      ctx.fill();
      pen.text(c.label, 28, y + 14, theme.strong, { size: 13, weight: 600, width: left - 34 });
      const most = depth.most, said = c.unit === "bytes" ? `at most ${bytes(most)}` : `at most ${number(most)}`;
      pen.text(said, 12, y + 31, theme.weak, { size: 11, width: left - 18 });
      pen.text(`of ${c.unit === "bytes" ? bytes(c.capacity) : number(c.capacity)}`, 12, y + 46, theme.weak, { size: 11, width: left - 18 });
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, y, width - left - 10, this.rowHeight);
      ctx.clip();
      this.chart(ctx, depth, c, index, y + 4, chart);
      ctx.restore();
      for (const role of [0, 1]) this.stripe(this.covers[2 * index + role], y + chart + 9 + role * (STRIPE + 2), STRIPE, role);
    });
  }

  /** The most and the least that was inside during each pixel: the line is the most, the dark part was never less. */
  chart(ctx, depth, c, index, top, tall) {
    const { pen, left, timeline, scale } = this, { theme } = pen, wide = Math.ceil(this.width - left - 10), now = timeline.now;
    const lineShown = c.capacity && depth.most > 0.2 * c.capacity, highest = lineShown ? Math.max(c.capacity, depth.most) * 1.06 : Math.max(1, depth.most) * 1.15;
    const y = (value) => top + tall * (1 - value / highest), { at, value } = depth, first = before(at, timeline.from);
    const most = new Float32Array(wide).fill(-1), least = new Float32Array(wide);
    let level = first ? value[first - 1] : 0, x = 0;
    const until = Math.min(wide, Math.floor((now - timeline.from) * scale) + 1);
    for (let k = first; x < until; k++) {
      const next = k < at.length ? Math.floor((at[k] - timeline.from) * scale) : until;
      for (; x < Math.min(next, until); x++) {
        if (most[x] < 0) most[x] = least[x] = level;
        else [most[x], least[x]] = [Math.max(most[x], level), Math.min(least[x], level)];
      }
      if (k >= at.length) break;
      if (x < until && most[x] < 0) most[x] = least[x] = level;
      level = value[k];
      if (x < until) [most[x], least[x]] = [Math.max(most[x], level), Math.min(least[x], level)];
    }
    const bars = (list, draw) => {
      for (let i = 0, j; i < until; i = j) {
        for (j = i + 1; j < until && list[j] === list[i]; j++);
        draw(left + i, j - i, y(Math.max(0, list[i])), i ? y(Math.max(0, list[i - 1])) : y(0));
      }
    };
    ctx.fillStyle = theme.card;
    ctx.fillRect(left, top, wide, tall);
    ctx.fillStyle = pen.colour(index);
    ctx.globalAlpha = 0.28;
    for (const list of [most, least]) bars(list, (at, w, high) => ctx.fillRect(at, high, w, y(0) - high));
    ctx.globalAlpha = 1;
    bars(most, (at, w, high, old) => {
      ctx.fillRect(at, high - 0.7, w, 1.4);
      if (Math.abs(old - high) > 1.4) ctx.fillRect(at, Math.min(old, high), 1, Math.abs(old - high));
    });
    if (!lineShown) return;
    ctx.strokeStyle = theme.weak;
    ctx.lineWidth = 1;
    ctx.setLineDash([4, 3]);
    ctx.beginPath();
    ctx.moveTo(left, y(c.capacity));
    ctx.lineTo(left + wide, y(c.capacity));
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.fillStyle = theme.blocked; // full: the thick line
    for (let i = 0; i < until; i++) if (most[i] >= FULL * c.capacity) ctx.fillRect(left + i, y(c.capacity) - 1.5, 1, 3);
  }

  /** Which share of each pixel the producers and the consumers of a channel were inside their calls. */
  cover() {
    const { store, timeline } = this, { columns, meta } = store, now = timeline.now, spread = this.spreader(now);
    this.covers = this.emptied(this.covers, 2 * meta.channels.length);
    store.between(timeline.from, Math.min(timeline.to, now), (i) => {
      const index = store.channel[i];
      if (index < 0) return;
      if (!(store.fate[i] & GIVEN_UP)) spread(this.covers[2 * index], columns[SENT][i], columns[ENTERED][i]);
      if (columns[RECEIVED][i] < Infinity) spread(this.covers[2 * index + 1], columns[ASKED][i], columns[RECEIVED][i]);
    });
    for (const [pid, a, b] of meta.waits ?? []) {
      const of = meta.links.filter(([, p, role]) => p === pid && role === 1);
      if (of.length === 1) spread(this.covers[2 * meta.channels.findIndex((c) => c.number === of[0][0]) + 1], a, b < 0 ? (meta.over ? a : now) : b);
    }
    meta.channels.forEach((c, index) => [0, 1].forEach((role) => {
      const people = Math.max(1, meta.links.filter(([of, , r]) => of === c.number && r === role).length), every = meta.every[c.number] ?? 1, bins = this.covers[2 * index + role];
      if (every !== people) for (let i = 0; i < bins.length; i++) bins[i] = (bins[i] * every) / people;
    }));
  }

  // -- words and hands

  words() {
    const { store, timeline } = this, { channels } = store.meta;
    if (!channels.length) return [];
    const at = timeline.atEnd ? timeline.end : timeline.now, parts = this.shown.slice(0, 6).map((index) => `${channels[index].label} ${this.amount(index, at)}${this.fullFor(index)}`);
    return [`At ${duration(at)}: ${parts.join("; ")}${this.shown.length > 6 ? "; …" : ""}.`, store.whole ? "" : "Between two counts the line is straight."];
  }

  amount(index, t) {
    const c = this.store.meta.channels[index], { at, value } = this.depths[index] ?? { at: [], value: [] }, n = before(at, t), inside = n ? value[n - 1] : 0;
    return c.unit === "bytes" ? `holds ${bytes(inside)}` : `holds ${plural(inside, "message")}`;
  }

  fullFor(index) {
    const { fullFor } = this.depths[index] ?? {};
    return fullFor ? ` (full for ${duration(fullFor)} in all)` : "";
  }

  hover() {
    if (!this.mouse || this.drag?.far >= 4) return this.showTip(null);
    const [x, y] = this.mouse, n = Math.floor((y - TOP + this.scrolled) / this.rowHeight), index = this.shown[n];
    if (index === undefined || y < TOP) return this.showTip(null);
    const { channels } = this.store.meta, t = Math.max(0, Math.min(this.timeline.end, this.time(x))), share = (role) => `${Math.round(100 * Math.min(1, this.covers[2 * index + role][Math.round(x - this.left)] ?? 0))} %`;
    const text = x < this.left ? `${channels[index].label} (${channels[index].kind})\nholds up to ${channels[index].unit === "bytes" ? bytes(channels[index].capacity) : plural(channels[index].capacity, "message")}` : `${duration(t)}: ${channels[index].label} ${this.amount(index, t)}\nproducers inside send ${share(0)}\nconsumers inside receive ${share(1)}`;
    this.showTip(text, x + this.stage.offsetLeft, y + this.stage.offsetTop);
  }

  click(x) { if (x > this.left) this.timeline.seek(this.time(x) >= this.timeline.end ? Infinity : Math.max(0, this.time(x))); }

  /** For tests: what is shown, read-only. Times in ns since the first event. */
  state() {
    const { timeline } = this, at = timeline.atEnd ? timeline.end : timeline.now;
    return {
      ...super.state(), whole: this.store.whole,
      channels: this.shown.map((index) => {
        const { at: times, value, most, fullFor } = this.depths[index], n = before(times, at);
        return { label: this.store.meta.channels[index].label, inside: n ? value[n - 1] : 0, most, full_ns: fullFor };
      }),
    };
  }
}

// ---------------------------------------------------------------- depth

/** A message counts until its receive has returned, a moment longer than the kernel holds it: never more than there is room for. */
function measured(at, value, c, end) {
  let most = 0, fullFor = 0;
  for (let i = 0; i < at.length; i++) {
    if (c.capacity && value[i] > c.capacity) value[i] = c.capacity;
    if (value[i] > most) most = value[i];
    if (c.capacity && value[i] >= FULL * c.capacity) fullFor += (at[i + 1] ?? end) - at[i];
  }
  return { at, value, most, fullFor };
}

/** Every step of what was inside a channel, in its own unit. */
function exactDepth(store, c, index) {
  const { columns, count } = store, [entered, received] = [ENTERED, RECEIVED].map((k) => columns[k]), into = [], out = [];
  const enters = (i) => Math.min(entered[i], received[i]), weight = (i) => (c.unit === "bytes" ? columns[SIZE][i] + (c.overhead ?? 0) : 1);
  for (let i = 0; i < count; i++) {
    if (store.channel[i] !== index || store.fate[i] & GIVEN_UP || enters(i) === Infinity) continue;
    into.push(i);
    if (received[i] < Infinity) out.push(i);
  }
  into.sort((a, b) => enters(a) - enters(b));
  out.sort((a, b) => received[a] - received[b]);
  const at = new Float64Array(into.length + out.length), value = new Float64Array(at.length);
  for (let n = 0, a = 0, b = 0, inside = 0; n < at.length; n++) {
    const enter = a < into.length && (b >= out.length || enters(into[a]) <= received[out[b]]);
    at[n] = enter ? enters(into[a]) : received[out[b]];
    value[n] = inside += enter ? weight(into[a++]) : -weight(out[b++]);
  }
  return measured(at, value, c, store.end);
}

/** What was inside at each count of the totals, where not every message is at hand. */
function talliedDepth(store, c) {
  const k = 1 + 5 * c.number, rows = store.moments.filter(({ columns }) => c.number < columns).map(({ row }) => row);
  const inside = (row) => Math.max(0, row[k] - row[k + 1]), held = (row) => (c.unit === "bytes" ? Math.max(0, row[k + 3] - row[k + 4]) + inside(row) * (c.overhead ?? 0) : inside(row));
  return measured(Float64Array.from(rows, (row) => row[0]), Float64Array.from(rows, held), c, store.end);
}

export default widget((model) => new Messages(model), (store, el) => new OccupancyView(store, el));
