// The message sequence chart: a lifeline a process, time to the right, an arrow a message from the beginning of its send
// to the end of its receive, so that its slope is its latency. A lifeline is thick while its process is inside send or
// receive. What is denser than the screen is drawn as far as it can be told apart, and the rest is counted in words.

import { ASKED, CHANNEL, ENTERED, GIVEN_UP, ID, Messages, NOT_RECEIVED, OVERTAKEN, RECEIVED, RECEIVER, SENDER, SENT, before } from "./messages.js";
import { SHAPES, button, duration, element, number, plural, setText, whichProcess, widget } from "./shared.js";
import { SHORTEST, TimeView } from "./timeline.js";

const SEGMENTS = 5000; // arrows in a picture
const SINGLE = 400; // up to so many have heads and shapes of their own
const AT_ONCE = 40_000; // messages looked at one by one in a picture
const TOP = 24; // the axis

const CSS = `.labkit-sequence .legend button.trouble { margin-left: auto; max-width: none; color: var(--lk-killed); border-color: var(--lk-killed); white-space: nowrap; }`;

export class SequenceView extends TimeView {
  constructor(store, el, options = {}) {
    super(store, el, "sequence", "Message sequence chart", { css: CSS, ...options });
    Object.assign(this, { drawn: [], filter: "", order: [], shown: 0 });
    this.search = element("input", { type: "search", placeholder: "find a process", "aria-label": "Show only processes whose name or pid contains this, and whom they talk to" });
    this.search.addEventListener("input", () => ((this.filter = this.search.value.trim().toLowerCase()), (this.lanesKey = ""), this.ask()));
    this.jump = button("Go to the next one that was lost or overtaken", () => this.trouble(1), { text: "" });
    this.jump.classList.add("trouble");
    this.follow();
  }

  // -- what there is to see

  /** One lane a process, those who talk to each other side by side; filtered by the reader. */
  layout() {
    const { store, timeline } = this, { processes, channels } = store.meta;
    const key = `${store.version} ${processes.length} ${channels.length} ${this.filter}`;
    if (key !== this.lanesKey) {
      const rows = this.neighbours();
      const peers = this.filter ? this.peers() : null;
      this.order = peers ? rows.filter((row) => peers.has(row)) : rows;
      this.lanes = new Int32Array(processes.length).fill(-1);
      this.order.forEach((row, lane) => (this.lanes[row] = lane));
      this.lanesKey = key;
    }
    this.paintLegend();
    this.gutter(this.order.map((row) => this.name(row)));
    const n = this.order.length;
    this.pitch = n <= 2 ? 130 : n <= 4 ? 92 : n <= 8 ? 64 : n <= 16 ? 46 : 34;
    return Math.max(110, TOP + Math.max(1, n) * this.pitch + 6);
  }

  neighbours() {
    const { processes, channels, links } = this.store.meta, rows = new Set();
    for (const { number: channel } of channels) for (const role of [0, 1]) for (const [of, pid, r] of links) if (of === channel && r === role && this.store.rows.has(pid)) rows.add(this.store.rows.get(pid));
    processes.forEach((_, row) => rows.add(row));
    return [...rows];
  }

  /** The processes that are looked for, and those that they exchange messages with. */
  peers() {
    const { store } = this, found = new Set(), also = new Set();
    store.meta.processes.forEach((p, row) => `${p.name} ${p.pid}`.toLowerCase().includes(this.filter) && found.add(row));
    for (let i = 0; i < store.count; i++) {
      const a = store.from[i], b = store.to[i];
      if (found.has(a) && b >= 0) also.add(b);
      if (found.has(b) && a >= 0) also.add(a);
    }
    this.found = found;
    return new Set([...found, ...also]);
  }

  name(row) {
    const { name, pid } = this.store.meta.processes[row];
    return name || `process ${pid}`;
  }

  picked(i) {
    const { store } = this;
    if (this.timeline.hidden.has(store.channel[i]) || store.channel[i] < 0) return false;
    return !this.filter || this.found.has(store.from[i]) || this.found.has(store.to[i]);
  }

  /** Where a lane is on the canvas. */
  y(row) { return TOP + (this.lanes[row] + 0.55) * this.pitch - this.scrolled; }

  // -- drawing

  picture(ctx) {
    const { pen, timeline, store, height } = this, { theme } = pen;
    if (!store.meta.processes.length) {
      this.drawn = [];
      return pen.text("Nobody has sent anything yet.", this.width / 2, height / 2, theme.weak, { align: "center", size: 14, width: this.width - 20 });
    }
    this.axis(height);
    this.lifelines(ctx);
    const picked = this.gather();
    ctx.save();
    ctx.beginPath();
    ctx.rect(this.left, TOP - 4, this.width - this.left, height);
    ctx.clip();
    this.calls();
    this.arrows(ctx, picked);
    ctx.restore();
  }

  lifelines(ctx) {
    const { pen, left, width, height } = this, { theme } = pen, { processes } = this.store.meta;
    for (const row of this.order) {
      const y = this.y(row), { pid, seen, ended } = processes[row], killed = ended && !/exited 0\b/.test(ended);
      if (y < TOP - 30 || y > height + 30) continue;
      const last = ended && seen ? Math.min(width - 10, this.x(seen[1])) : width - 10, first = seen ? Math.max(left, this.x(seen[0])) : left;
      ctx.strokeStyle = theme.line;
      ctx.lineWidth = 1.2;
      ctx.setLineDash(seen ? [] : [2, 5]);
      if (last > first) this.line(ctx, first, y, seen ? last : width - 10, y);
      ctx.setLineDash([]);
      if (ended && seen && this.x(seen[1]) < width - 6 && this.x(seen[1]) >= left) pen.glyph(killed ? "cross" : "check", this.x(seen[1]) + 5, y, 4, killed ? theme.killed : theme.ended);
      const tall = this.pitch >= 40, note = !seen ? "silent" : killed ? ended : whichProcess(pid);
      pen.text(this.name(row), 12, tall ? y - 8 : y, theme.strong, { size: 13, weight: 600, width: left - 22 });
      if (tall) pen.text(note, 12, y + 8, killed ? theme.killed : theme.weak, { size: 11, width: left - 22 });
    }
  }

  line(ctx, x0, y0, x1, y1) {
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
  }

  /** Go over the messages of the window once: which arrows can be told apart, and who is inside a call when. */
  gather() {
    const { store, timeline, scale } = this, { columns, fate, from, to } = store, [sent, entered, asked, received] = [SENT, ENTERED, ASKED, RECEIVED].map((k) => columns[k]);
    const now = timeline.now, begin = timeline.from, until = Math.min(timeline.to, now), all = timeline.hidden.size === 0 && !this.filter;
    this.covers = this.emptied(this.covers, 2 * this.order.length);
    const spread = this.spreader(now), pixel = 1 / scale, low = before(sent, begin, store.count), inside = before(sent, until, store.count) - low;
    // Of very many every n-th, by a hash of its place, stands for n; calls as long as a pixel and lost messages are always seen.
    const nth = all ? Math.max(1, Math.ceil(inside / AT_ONCE)) : 1;
    const last = new Float64Array(store.pairs), kept = [], troubled = [], wide = 65536;
    let shown = all ? inside : 0;
    const visit = (grain) => (i) => {
      const early = i < low, picked = nth === 1 || early || (Math.imul(i, 0x9e3779b1) >>> 8) % nth === 0, gone = fate[i];
      const inSend = gone & GIVEN_UP ? 0 : entered[i] - sent[i], inReceive = received[i] - asked[i];
      if (!picked && !gone && inSend < pixel && inReceive < pixel) return;
      const a = from[i] < 0 ? -1 : this.lanes[from[i]], b = to[i] < 0 ? -1 : this.lanes[to[i]];
      if (grain === 1) {
        if (a >= 0 && (picked || inSend >= pixel)) spread(this.covers[2 * a], sent[i], sent[i] + inSend, inSend < pixel && !early ? nth : 1);
        if (b >= 0 && asked[i] <= now && (picked || inReceive >= pixel)) spread(this.covers[2 * b + 1], asked[i], received[i], inReceive < pixel && !early ? nth : 1);
      }
      if (a < 0 || !(all || this.picked(i))) return;
      if ((received[i] < Infinity ? received[i] : sent[i]) < begin) return;
      if (grain === 1 && (!all || early)) shown++;
      if (gone) return void (grain === 1 && troubled.push(i));
      // two arrows between the same pixels look like one
      const place = Math.floor(((sent[i] - begin) * scale) / grain) * wide + Math.floor(((Math.min(received[i], until + timeline.span) - begin) * scale) / grain);
      if (last[store.pair[i]] === place) return;
      last[store.pair[i]] = place;
      kept.push(i);
    };
    for (let grain = 1; grain <= 64; grain *= 2) {
      last.fill(NaN);
      kept.length = 0;
      store.between(begin, until, visit(grain));
      if (kept.length <= SEGMENTS) break;
    }
    for (const [pid, a, b] of store.meta.waits ?? []) {
      const row = store.rows.get(pid), lane = row === undefined ? -1 : this.lanes[row];
      if (lane >= 0 && a <= until) spread(this.covers[2 * lane + 1], a, b < 0 ? (store.meta.over ? a : now) : b);
    }
    this.shown = shown;
    const step = Math.ceil(troubled.length / 1500); // of those in trouble at least every so many is drawn
    return [...kept, ...troubled.filter((_, n) => n % step === 0)];
  }

  /** The thick parts of a lifeline: above it inside send, below it inside receive, as much of a pixel as it was. */
  calls() {
    const h = this.pitch < 40 ? 4 : 6;
    for (const row of this.order) {
      const y = this.y(row), lane = this.lanes[row];
      if (y < TOP - 20 || y > this.height + 20) continue;
      for (const role of [0, 1]) {
        const bins = this.covers[2 * lane + role], top = role ? y + 0.6 : y - h - 0.6;
        this.stripe(bins, top, h, role);
      }
    }
  }

  arrows(ctx, picked) {
    const { store, pen, timeline } = this, { theme } = pen, now = timeline.now, single = picked.length <= SINGLE;
    this.drawn = [];
    const byChannel = new Map();
    for (const i of picked) {
      const arrow = this.arrow(i, now);
      if (!arrow) continue;
      this.drawn.push(arrow);
      const { channel } = arrow;
      if (arrow.fate) continue;
      if (!byChannel.has(channel)) byChannel.set(channel, []);
      byChannel.get(channel).push(arrow);
    }
    for (const [channel, list] of byChannel) {
      ctx.strokeStyle = ctx.fillStyle = pen.colour(channel);
      ctx.lineWidth = single ? 1.4 : 1;
      ctx.globalAlpha = 0.5;
      const sloping = single ? list : this.upright(ctx, list);
      ctx.globalAlpha = list.length > 2000 ? 0.55 : 0.9;
      for (let at = 0; at < sloping.length; at += 200) {
        ctx.beginPath();
        for (const { points } of sloping.slice(at, at + 200)) points.forEach(([x, y], n) => (n ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
        ctx.stroke();
      }
      ctx.globalAlpha = 1;
      if (single) for (const arrow of list) this.ends(ctx, arrow, pen.colour(channel));
    }
    for (const arrow of this.drawn) if (arrow.fate) this.troubled(ctx, arrow, single);
    const chosen = this.drawn.find((a) => a.i === timeline.chosen) ?? (timeline.chosen !== null && this.picked(timeline.chosen) && this.arrow(timeline.chosen, Infinity));
    if (chosen) this.highlight(ctx, chosen);
  }

  /** Dense arrows that are upright to the eye are drawn as bars, many in one; returns the others. */
  upright(ctx, list) {
    const columns = new Map();
    const sloping = list.filter(({ points }) => {
      const [[x0, y0], [x1, y1]] = [points[0], points.at(-1)];
      if (points.length > 2 || x1 - x0 > 2) return true;
      const key = `${y0} ${y1}`;
      if (!columns.has(key)) columns.set(key, []);
      columns.get(key).push(Math.floor(x0));
      return false;
    });
    for (const [key, xs] of columns) {
      const [y0, y1] = key.split(" ").map(Number), top = Math.min(y0, y1);
      for (let n = 0, begin = 0; n < xs.length; n++) {
        if (n + 1 < xs.length && xs[n + 1] <= xs[n] + 1) continue;
        ctx.fillRect(xs[begin], top, xs[n] + 1 - xs[begin], Math.abs(y1 - y0));
        begin = n + 1;
      }
    }
    return sloping;
  }

  /** Where a message is drawn when the cursor is at `now`; null when nothing of it is to be seen. */
  arrow(i, now) {
    const { store } = this, { columns, fate } = store, from = store.from[i], to = store.to[i];
    if (from < 0 || this.lanes[from] < 0) return null;
    const sent = columns[SENT][i], received = columns[RECEIVED][i], x0 = this.x(sent), y0 = this.y(from), channel = store.channel[i];
    if (fate[i] & (GIVEN_UP | NOT_RECEIVED) || this.lanes[to] < 0) {
      const towards = this.towards(i), reach = fate[i] & GIVEN_UP ? 0.28 : 0.55, y1 = y0 + towards * this.pitch * reach;
      const waits = fate[i] & NOT_RECEIVED && !store.meta.over; // it may still come
      return { i, channel, fate: waits ? 0 : fate[i], open: waits, points: [[x0, y0], [x0 + this.pitch * 0.16, y1]], done: true };
    }
    const x1 = this.x(received), y1 = this.y(to), far = now < received ? Math.max(0, (now - sent) / (received - sent)) : 1;
    if (from === to) return { i, channel, fate: fate[i], points: [[x0, y0], [x0 + (x1 - x0) * 0.5, y0 - this.pitch * 0.4], [x1, y1 - 1]], done: far === 1 };
    return { i, channel, fate: fate[i], points: [[x0, y0], [x0 + (x1 - x0) * far, y0 + (y1 - y0) * far]], done: far === 1 };
  }

  /** Up or down to somebody who receives from the same channel. */
  towards(i) {
    const { store } = this, number = store.columns[CHANNEL][i], link = store.meta.links.find(([channel, , role]) => channel === number && role === 1);
    const row = link && store.rows.get(link[1]), lane = this.lanes[store.from[i]];
    return row !== undefined && this.lanes[row] >= 0 ? Math.sign(this.lanes[row] - lane) || -1 : lane ? -1 : 1;
  }

  ends(ctx, { points, done, channel }, colour) {
    const [x0, y0] = points.at(-2), [x, y] = points.at(-1), long = Math.hypot(x - x0, y - y0) || 1, u = (x - x0) / long, v = (y - y0) / long;
    ctx.fillStyle = colour;
    this.pen.shape(SHAPES[channel % SHAPES.length], points[0][0], points[0][1], 3.2);
    ctx.fill();
    if (!done) {
      this.pen.shape(SHAPES[channel % SHAPES.length], x, y, 4.5);
      return ctx.fill();
    }
    ctx.beginPath();
    ctx.moveTo(x, y);
    ctx.lineTo(x - 8 * u + 3.4 * v, y - 8 * v - 3.4 * u);
    ctx.lineTo(x - 8 * u - 3.4 * v, y - 8 * v + 3.4 * u);
    ctx.fill();
  }

  /** Lost ones end in a cross, overtaken ones are dashed and end in a diamond, however dense the picture is. */
  troubled(ctx, arrow, single) {
    const { pen } = this, { theme } = pen, [x, y] = arrow.points.at(-1), overtaken = arrow.fate & OVERTAKEN;
    ctx.strokeStyle = overtaken ? theme.strong : theme.killed;
    ctx.lineWidth = single ? 2 : 1.2;
    ctx.setLineDash(overtaken ? [6, 3] : []);
    ctx.beginPath();
    arrow.points.forEach(([px, py], n) => (n ? ctx.lineTo(px, py) : ctx.moveTo(px, py)));
    ctx.stroke();
    ctx.setLineDash([]);
    if (!overtaken) pen.glyph("cross", x, y, single ? 5 : 3.5, theme.killed);
    else if (arrow.done) {
      pen.shape("diamond", x, y, single ? 4.6 : 3.4);
      ctx.fillStyle = theme.ground;
      ctx.fill();
      ctx.strokeStyle = theme.strong;
      ctx.lineWidth = 1.6;
      ctx.stroke();
    }
  }

  highlight(ctx, { points, channel, fate }) {
    const { pen } = this;
    for (const [colour, width] of [[pen.theme.ground, 6], [pen.theme.strong, 3]]) {
      ctx.strokeStyle = colour;
      ctx.lineWidth = width;
      ctx.beginPath();
      points.forEach(([x, y], n) => (n ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
      ctx.stroke();
    }
    this.ends(ctx, { points, channel, done: !(fate & (NOT_RECEIVED | GIVEN_UP)) }, pen.theme.strong);
  }

  // -- legend, words, the reader's hands

  paintLegend() {
    const { store, theme } = this, lost = store.troubles.filter((i) => !(store.fate[i] & OVERTAKEN)).length, overtaken = store.troubles.length - lost;
    const found = [lost ? `${number(lost)} not received` : "", overtaken ? `${number(overtaken)} overtaken` : ""].filter(Boolean).join(", ");
    const many = store.meta.processes.length > 3;
    this.relegend([found, many], () => {
      setText(this.jump, `${found} ›`);
      this.jump.hidden = !found;
      const signs = [["hatch", theme.blocked, "inside send"], ["frame", theme.waiting, "inside receive"], ["cross", theme.killed, "not received"], ["diamond", theme.strong, "overtaken"]];
      return [...signs.map((sign) => this.sign(...sign)), ...(many ? [this.search] : []), this.jump];
    });
  }

  trouble(way) {
    const { store, timeline } = this, from = timeline.chosen ?? -1, list = store.troubles.filter((i) => this.picked(i));
    const next = list.find((i) => i > from) ?? list[0];
    if (next !== undefined) timeline.choose(next);
    this.speak();
  }

  words() {
    const { store, timeline } = this;
    if (timeline.chosen !== null && timeline.chosen < store.count) return store.words(timeline.chosen);
    if (!store.count) return [store.meta.processes.length ? "No message has been sent yet." : ""];
    const seconds = timeline.playing ? `Replay${timeline.speed === 1 ? " in real time" : `, ${number(timeline.speed)}× slower`}.` : store.streams && timeline.mode === "whole" ? "Live." : "";
    const sparse = store.sparse > 1 ? ` One message of ${number(store.sparse)} is here.` : "";
    const thin = this.shown > this.drawn.length ? ` ${number(this.drawn.length)} arrows stand for them${timeline.span > SHORTEST ? ": zoom in to tell them apart" : ", sent and received at the same time"}.` : "";
    return [seconds, `${duration(timeline.span)} are shown with ${plural(this.shown, "message")}.${thin}${sparse}`, this.shown > 0 && !thin && this.drawn.length < 40 ? "The flatter an arrow, the longer its message took." : ""];
  }

  near(x, y, within = 7) {
    let best = null, least = within;
    for (const arrow of this.drawn) {
      for (let n = 1; n < arrow.points.length; n++) {
        const [[ax, ay], [bx, by]] = [arrow.points[n - 1], arrow.points[n]], long = (bx - ax) ** 2 + (by - ay) ** 2 || 1;
        const f = Math.max(0, Math.min(1, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / long)), far = Math.hypot(x - ax - f * (bx - ax), y - ay - f * (by - ay));
        if (far < least) [best, least] = [arrow, far];
      }
    }
    return best;
  }

  hover() {
    if (!this.mouse || this.drag?.far >= 4) return this.showTip(null);
    const [x, y] = this.mouse, found = x > this.left && this.near(x, y), lane = x <= this.left && this.order.find((row) => Math.abs(this.y(row) - y) < this.pitch / 2);
    const text = found ? this.store.words(found.i).join("\n") : lane !== undefined && lane !== false ? this.about(lane) : null;
    this.showTip(text, x + this.stage.offsetLeft, y + this.stage.offsetTop);
  }

  about(row) {
    const { pid, seen, ended } = this.store.meta.processes[row];
    return `${this.name(row)}\n${whichProcess(pid)}\n${!seen ? "has neither sent nor received" : (ended ?? (this.store.orphaned ? "not heard of any more" : "running when this was last heard of"))}`;
  }

  click(x, y) {
    const { timeline } = this, found = x > this.left && this.near(x, y);
    if (found) Object.assign(timeline, { chosen: found.i, playing: false });
    else if (x > this.left) return timeline.seek(this.time(x) >= timeline.end ? Infinity : Math.max(0, this.time(x)));
    timeline.tell();
    this.speak();
  }

  /** For tests: what is shown, read-only. Times in ns since the first event. */
  state() {
    const { store } = this;
    return {
      ...super.state(), shown: this.shown, arrows: this.drawn.length, lanes: this.order.map((row) => this.name(row)),
      lost: store.troubles.filter((i) => !(store.fate[i] & OVERTAKEN)).length, overtaken: store.troubles.filter((i) => store.fate[i] & OVERTAKEN).length,
      hits: this.drawn.slice(0, 200).map(({ i, points }) => ({ id: store.columns[ID][i], x0: points[0][0], y0: points[0][1], x1: points.at(-1)[0], y1: points.at(-1)[1], sent_ns: store.columns[SENT][i], received_ns: store.columns[RECEIVED][i], sender: store.columns[SENDER][i], receiver: store.columns[RECEIVER][i] })),
    };
  }
}

export default widget((model) => new Messages(model), (store, el) => new SequenceView(store, el));
