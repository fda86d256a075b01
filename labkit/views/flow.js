// The flow view. One store a model (messages, totals), any number of views of it; each view has its own clock.
//
//   store   blocks of messages by time, checkpoints of exact totals, what is known of channels and processes
//   axis    virtual time u: real time with long silences shortened; identity while live
//   clock   u moves live at 1x a little behind the newest data, or replays at a chosen speed
//   scene   where processes and queues stand; draw() is a function of (store, scene, u, speed) and nothing else
//
// All times are nanoseconds since the first event of the trace.

import { Pen, SHAPES, Store, View, button, bytes, calm, duration, element, fittingSpeed, moment, number, plural, roundUp, setText, showPlaying, soon, speedPicker, whichProcess, widget } from "./shared.js";
import { asSvg, saveButtons, sentences, stacked } from "./picture.js";
import { ASKED, CHANNEL, DROPPED, ENTERED, ID, RECEIVED, RECEIVER, SENDER, SENT, SIZE, STRIDE, asFloats, before, begins, openRecording } from "./messages.js";

const BLOCK = 256, MOST_BLOCKS = 800; // the newest 200,000 messages
const DOTS = 300, LEG = 0.28, REST = 0.14; // dots at once; least seconds on screen of each way, and in the queue
const DELAY = 0.15; // seconds the live clock stays behind the newest data, so that it moves evenly

/** "1/500" for a replay 500 times slower than real, with three significant digits. */
function times(factor) {
  const digits = 10 ** Math.max(0, Math.floor(Math.log10(factor)) - 1);
  return factor >= 10 ? number(Math.round(factor / digits) * digits) : factor.toFixed(1);
}

// ---------------------------------------------------------------- store

class Block {
  constructor(rows = new Float64Array(BLOCK * STRIDE), count = 0) {
    this.rows = rows;
    this.count = count;
    this.measure();
  }
  measure() {
    this.first = Infinity;
    this.last = -Infinity;
    this.end = -Infinity;
    for (let i = 0, at = 0; i < this.count; i++, at += STRIDE) {
      const sent = this.rows[at + SENT], end = this.rows[at + DROPPED] ? sent : this.rows[at + RECEIVED];
      if (sent < this.first) this.first = sent;
      if (sent > this.last) this.last = sent;
      if (end > this.end) this.end = end;
    }
  }
}

/** Real time to virtual time and back: silences beyond a limit take no longer than that limit. */
class Axis {
  constructor(knots = [[0, 0]]) {
    this.knots = knots;
  }
  static shortening(moments) {
    const gaps = moments.slice(1).map((m, i) => m - moments[i]);
    if (gaps.length < 2) return new Axis();
    const usual = 10 * [...gaps].sort((a, b) => a - b)[Math.floor(gaps.length * 0.9)] + 1;
    const busy = gaps.reduce((sum, gap) => sum + Math.min(gap, usual), 0);
    const limit = Math.max(usual, busy / 25);
    const knots = [[moments[0], moments[0]]];
    let saved = 0;
    gaps.forEach((gap, i) => {
      if (gap <= 1.5 * limit) return;
      knots.push([moments[i], moments[i] - saved]);
      saved += gap - limit;
      knots.push([moments[i + 1], moments[i + 1] - saved]);
    });
    const axis = new Axis(knots);
    axis.saved = saved;
    return axis;
  }
  map(x, from, to) {
    const { knots } = this;
    if (!Number.isFinite(x)) return x;
    let low = 0, high = knots.length;
    while (high - low > 1) {
      const mid = (low + high) >> 1;
      if (knots[mid][from] <= x) low = mid;
      else high = mid;
    }
    const a = knots[low], b = knots[low + 1];
    const slope = b && x >= a[from] ? (b[to] - a[to]) / (b[from] - a[from]) : 1;
    return a[to] + (x - a[from]) * slope;
  }
  virtual(t) { return this.map(t, 0, 1); }
  real(u) { return this.map(u, 1, 0); }
}

export class FlowStore extends Store {
  constructor(model) {
    super(model);
    this.clear();
    this.meta = { channels: [], processes: [], links: [], lost: 0, columns: 0, newest: 0 };
  }

  clear() {
    this.blocks = [];
    this.waiting = new Map(); // id -> [block, place] of messages that are still on their way
    this.moments = []; // checkpoints: {u, row}
    this.axis = new Axis();
    this.whole = null; // exact sorted times, only when no message was left out
    this.every = [];
    this.version = (this.version ?? 0) + 1;
  }

  /** The newest real time known, and when it came; the live clock runs after it. */
  get end() { return this.axis.virtual(this.meta.newest); }
  get start() { return this.blocks.length ? Math.min(...this.blocks.map((b) => b.first)) : 0; }

  describe(meta) {
    this.meta = meta;
    this.every = meta.every;
    this.median = meta.median;
    this.arrived = performance.now();
    this.index = new Map(meta.channels.map((c, i) => [c.number, i]));
  }

  addBatch(content, buffers) {
    if (content?.kind !== "batch") return;
    this.whole = null;
    this.newcomer = this.end;
    this.describe(content);
    const [matrix, checkpoint] = buffers.map(asFloats);
    const count = matrix.length / STRIDE, touched = new Set();
    for (let i = 0; i < count; i++) {
      const row = Array.from({ length: STRIDE }, (_, line) => matrix[line * count + i]);
      for (const line of [SENT, ENTERED, ASKED, RECEIVED]) row[line] = this.axis.virtual(row[line]);
      touched.add(this.put(row));
    }
    for (const block of touched) block.measure();
    this.moments.push({ u: this.axis.virtual(checkpoint[0]), row: checkpoint, columns: content.columns });
    if (this.moments.length > 4000) this.moments.splice(0, 1000);
    this.tell(count ? "messages" : "news");
  }

  put(row) {
    let [block, place] = this.waiting.get(row[ID]) ?? [];
    if (!block) {
      block = this.blocks.at(-1);
      if (!block || block.count === BLOCK || block.count * STRIDE >= block.rows.length) {
        this.blocks.push((block = new Block()));
        if (this.blocks.length > MOST_BLOCKS) this.forget(this.blocks.shift());
      }
      place = block.count++;
    }
    block.rows.set(row, place * STRIDE);
    if (row[DROPPED] || (row[RECEIVED] < Infinity && row[ENTERED] < Infinity)) this.waiting.delete(row[ID]);
    else this.waiting.set(row[ID], [block, place]);
    return block;
  }

  forget(block) {
    for (let i = 0; i < block.count; i++) this.waiting.delete(block.rows[i * STRIDE + ID]);
  }

  unpack(buffer) {
    const { meta, rows, moments } = openRecording(buffer);
    this.clear();
    this.describe(meta);
    this.axis = this.shortened(rows, meta);
    for (let at = 0; at < rows.length; at += STRIDE) {
      for (const line of [SENT, ENTERED, ASKED, RECEIVED]) rows[at + line] = this.axis.virtual(rows[at + line]);
    }
    for (let i = 0; i < meta.rows; i += BLOCK) {
      const count = Math.min(BLOCK, meta.rows - i);
      this.blocks.push(new Block(rows.subarray(i * STRIDE, (i + count) * STRIDE), count));
    }
    this.findWaiting();
    for (const row of moments) this.moments.push({ u: this.axis.virtual(row[0]), row, columns: meta.columns });
    if (meta.every.every((n) => n === 1)) this.whole = new Whole(this);
  }

  shortened(rows, meta) {
    const moments = new Set([0]);
    for (let at = 0; at < rows.length; at += STRIDE) {
      moments.add(rows[at + SENT]);
      if (rows[at + RECEIVED] < Infinity) moments.add(rows[at + RECEIVED]);
    }
    moments.add(Math.max(0, meta.newest));
    return Axis.shortening(Float64Array.from(moments).sort().reduce((list, m) => (list.push(m), list), []));
  }

  findWaiting() {
    for (const block of this.blocks) {
      if (block.end < Infinity) continue;
      for (let i = 0; i < block.count; i++) {
        const at = i * STRIDE;
        if (block.rows[at + RECEIVED] === Infinity && !block.rows[at + DROPPED]) this.waiting.set(block.rows[at], [block, i]);
      }
    }
  }

  /** Calls visit(rows, at, u) for every message that is on screen at u. */
  visible(u, pace, visit) {
    const tail = (2 * LEG + REST + 0.4) * pace;
    for (const block of this.blocks) {
      if (block.first > u || block.end + tail < u) continue;
      for (let i = 0, at = 0; i < block.count; i++, at += STRIDE) {
        if (block.rows[at + SENT] <= u) visit(block.rows, at);
      }
    }
  }

  /** The row of a message, null when it is not here. */
  find(id) {
    for (const { rows, count } of this.blocks) for (let at = 0; at < count * STRIDE; at += STRIDE) if (rows[at + ID] === id) return rows.slice(at, at + STRIDE);
    return null;
  }

  /** The message after (or before) a moment, by the time its send began. */
  neighbour(u, after, direction) {
    let best = null;
    for (const block of this.blocks) {
      if (direction > 0 ? block.last < u : block.first > u) continue;
      for (let i = 0, at = 0; i < block.count; i++, at += STRIDE) {
        const here = [block.rows[at + SENT], block.rows[at + ID]];
        const beyond = direction * (here[0] - u || here[1] - after) > 0;
        if (beyond && (!best || direction * (here[0] - best.u || here[1] - best.id) < 0)) {
          best = { u: here[0], id: here[1], row: block.rows.slice(at, at + STRIDE) };
        }
      }
    }
    return best;
  }

  /** Between two checkpoints, how far: [row before, row after, share]. */
  between(u) {
    const { moments } = this;
    let low = -1, high = moments.length;
    while (high - low > 1) {
      const mid = (low + high) >> 1;
      if (moments[mid].u <= u) low = mid;
      else high = mid;
    }
    const a = moments[low], b = moments[high];
    return [a, b, a && b ? (u - a.u) / (b.u - a.u) : 0];
  }

  /** Totals of channel i at u: exact where every message or a checkpoint is at hand, interpolated in between. */
  totals(i, u) {
    const { number: channel } = this.meta.channels[i];
    if (this.whole) return this.whole.totals(channel, u);
    const [a, b, share] = this.between(u);
    const value = (m, k) => (m && channel < m.columns ? m.row[1 + 5 * channel + k] : 0);
    const at = (k) => (b ? value(a, k) + Math.floor(share * (value(b, k) - value(a, k))) : value(a, k));
    const [sent, received, dropped, bytesSent, bytesReceived] = [0, 1, 2, 3, 4].map(at);
    return { sent, received, dropped, inside: Math.max(0, sent - received), bytes: Math.max(0, bytesSent - bytesReceived) };
  }

  /** Share of the last `span` ns that a process was inside send and inside receive. */
  shares(pid, row, u, span) {
    if (this.whole) return [0, 1].map((role) => this.whole.inside(pid, role, u, span));
    const value = (x, k) => {
      const [a, b, share] = this.between(x);
      const of = (m) => (m ? (m.row[1 + 5 * m.columns + 2 * row + k] ?? 0) : 0);
      return b ? of(a) + share * (of(b) - of(a)) : of(a);
    };
    const last = this.moments.at(-1)?.u ?? 0, to = Math.min(u, last);
    return [0, 1].map((k) => (value(to, k) - value(to - span, k)) / span);
  }
}

/** Exact answers for a recording in which no message was left out. */
class Whole {
  constructor(store) {
    const channels = new Map(), spans = new Map();
    const span = (pid, role, from, to) => {
      const key = `${pid}/${role}`;
      if (!spans.has(key)) spans.set(key, []);
      if (pid) spans.get(key).push([from, to]);
    };
    for (const { number: n } of store.meta.channels) channels.set(n, { sent: [], received: [], dropped: [] });
    for (const block of store.blocks) {
      for (let at = 0; at < block.count * STRIDE; at += STRIDE) {
        const row = block.rows.subarray(at, at + STRIDE), channel = channels.get(row[CHANNEL]);
        if (!channel) continue;
        if (row[DROPPED]) channel.dropped.push([row[SENT], 0]);
        else {
          if (enters(row) < Infinity) channel.sent.push([enters(row), row[SIZE]]);
          if (row[RECEIVED] < Infinity) channel.received.push([row[RECEIVED], row[SIZE]]);
        }
        span(row[SENDER], 0, row[SENT], row[DROPPED] ? row[SENT] : row[ENTERED]);
        if (row[RECEIVED] < Infinity) span(row[RECEIVER], 1, row[ASKED], row[RECEIVED]);
      }
    }
    for (const [pid, from, to] of store.meta.waits) {
      span(pid, 1, store.axis.virtual(from), to < 0 ? Infinity : store.axis.virtual(to));
    }
    this.channels = new Map([...channels].map(([n, lists]) => [n, mapValues(lists, cumulate)]));
    this.spans = new Map([...spans].map(([key, list]) => [key, cumulateSpans(list)]));
  }
  totals(channel, u) {
    const { sent, received, dropped } = this.channels.get(channel);
    const s = before(sent.at, u), r = before(received.at, u);
    const weight = (list, n) => (n ? list.sum[n - 1] : 0);
    return {
      sent: s, received: r, dropped: before(dropped.at, u),
      inside: Math.max(0, s - r), bytes: Math.max(0, weight(sent, s) - weight(received, r)),
    };
  }
  inside(pid, role, u, span) {
    const list = this.spans.get(`${pid}/${role}`);
    if (!list) return 0;
    const until = (x) => {
      const n = before(list.from, x);
      if (!n) return 0;
      return (n > 1 ? list.sum[n - 2] : 0) + Math.min(x, list.to[n - 1]) - list.from[n - 1];
    };
    return (until(u) - until(u - span)) / span;
  }
}

const mapValues = (object, f) => Object.fromEntries(Object.entries(object).map(([k, v]) => [k, f(v)]));
const enters = (row) => Math.min(row[ENTERED], row[RECEIVED]);

function cumulate(list) {
  list.sort((a, b) => a[0] - b[0]);
  const at = Float64Array.from(list, (x) => x[0]), sum = new Float64Array(list.length);
  list.forEach((x, i) => (sum[i] = x[1] + (i ? sum[i - 1] : 0)));
  return { at, sum };
}

function cumulateSpans(list) {
  list.sort((a, b) => a[0] - b[0]);
  const sum = new Float64Array(list.length);
  list.forEach((x, i) => (sum[i] = x[1] - x[0] + (i ? sum[i - 1] : 0)));
  return { from: Float64Array.from(list, (x) => x[0]), to: Float64Array.from(list, (x) => x[1]), sum };
}

// ---------------------------------------------------------------- scene: where everything stands

/** A layered graph, left to right: processes in even columns, queues between them, one band a connected part. */
function arrange(meta, width) {
  const users = meta.channels.map((c) => [0, 1].map((role) => meta.links.filter((l) => l[0] === c.number && l[2] === role).map((l) => l[1])));
  const nodes = meta.processes.map((p, row) => ({ ...p, key: `p${p.pid}`, row, layer: 0, out: [], queues: [] }));
  const byPid = new Map(nodes.map((n) => [n.pid, n]));
  const queues = meta.channels.map((c, i) => ({ ...c, index: i, key: `c${i}`, from: [], to: [] }));
  queues.forEach((queue, i) => {
    queue.from = users[i][0].map((pid) => byPid.get(pid)).filter(Boolean);
    queue.to = users[i][1].map((pid) => byPid.get(pid)).filter(Boolean).map((node) => (queue.from.includes(node) ? ghost(node, nodes) : node));
    for (const node of queue.from) node.out.push(...queue.to);
  });
  layer(nodes);
  for (const queue of queues) {
    const ends = queue.from.length ? [...queue.from, ...queue.to] : queue.to;
    queue.column = queue.from.length ? 2 * Math.min(...ends.map((n) => n.layer)) + 1 : ends.length ? 2 * Math.min(...ends.map((n) => n.layer)) - 1 : 1;
  }
  for (const node of nodes) node.column = 2 * node.layer;
  const talking = new Set(queues.flatMap((q) => [...q.from, ...q.to])), last = Math.max(...[...talking].map((n) => n.layer), 1);
  const silent = nodes.filter((n) => !talking.has(n));
  silent.forEach((node, i) => Object.assign(node, { silent: true, column: 2 * (i % (last + 1)) })); // side by side, below
  return place(nodes, queues, silent, width);
}

/** A process that receives its own messages stands on the right a second time. */
function ghost(node, nodes) {
  const key = `${node.key}'`;
  let twin = nodes.find((n) => n.key === key);
  if (!twin) nodes.push((twin = { ...node, key, ghost: true, layer: 1, out: [], queues: [] }));
  return twin;
}

/** Longest path from the sources; an edge that closes a circle does not count. */
function layer(nodes) {
  const state = new Map(), order = [];
  const visit = (node) => {
    state.set(node, 1);
    node.ahead = node.out.filter((next) => state.get(next) !== 1);
    for (const next of node.ahead) if (!state.has(next)) visit(next);
    state.set(node, 2);
    order.unshift(node);
  };
  const incoming = new Set(nodes.flatMap((n) => n.out));
  for (const node of [...nodes.filter((n) => !incoming.has(n)), ...nodes]) if (!state.has(node)) visit(node);
  for (const node of order) for (const next of node.ahead) next.layer = Math.max(next.layer, node.layer + 1);
  // A process that only receives stands right of its queue, also when nobody has sent yet.
}

function place(nodes, queues, silent, width) {
  const neighbours = new Map([...nodes, ...queues].map((item) => [item, []]));
  for (const queue of queues) {
    for (const node of [...queue.from, ...queue.to]) {
      neighbours.get(queue).push(node);
      neighbours.get(node).push(queue);
    }
  }
  for (const node of silent.slice(1)) {
    neighbours.get(silent[0]).push(node);
    neighbours.get(node).push(silent[0]);
  }
  const shift = queues.some((q) => q.column < 0) ? -2 : 0; // processes stay in even columns
  for (const item of neighbours.keys()) item.column -= shift;
  const parts = components(neighbours);
  const used = [...neighbours.keys()].map((item) => item.column), first = Math.min(...used), last = Math.max(...used);
  const narrow = width < 560, pad = narrow ? 6 : 20, gaps = Math.max(0, last - first);
  let nodeWidth = narrow ? Math.max(72, Math.min(110, width * 0.28)) : Math.min(168, width * 0.21);
  let queueWidth = narrow ? Math.max(66, Math.min(110, width * 0.26)) : Math.min(190, width * 0.22);
  const before = (column) => Math.ceil(column / 2) * nodeWidth + Math.floor(column / 2) * queueWidth; // widths left of it
  const taken = () => (used.length ? before(last + 1) - before(first) : 0);
  const share = narrow ? 1 : Math.max(80 / nodeWidth, Math.min(1, (width - 2 * pad - 24 * gaps) / taken())); // a long line is drawn smaller before it scrolls
  const small = narrow || share < 0.7;
  [nodeWidth, queueWidth] = [nodeWidth * share, queueWidth * share];
  const boxes = taken();
  const gap = gaps ? Math.max(narrow ? 14 : share < 1 ? 24 : 44, Math.min(230, (width - 2 * pad - boxes) / gaps)) : 0;
  const total = boxes + gap * gaps;
  const left = Math.max(pad, (width - total) / 2);
  const lines = parts.reduce((sum, part) => sum + part.lines, 0);
  const rowHeight = lines > 16 ? 82 : lines > 8 ? 92 : 104; // name, box and two lines take 80
  const x = (column) => left + before(column) - before(first) + (column - first) * gap;
  let top = 10;
  for (const part of parts) {
    const height = part.lines * rowHeight;
    for (const list of part.columns.filter(Boolean)) {
      list.forEach((item, i) => {
        const wide = item.column % 2 ? queueWidth : nodeWidth;
        item.x = x(item.column) + wide / 2;
        item.y = top + (height * (i + 0.5)) / (item.silent ? part.lines : list.length);
        item.w = wide;
        item.h = item.column % 2 ? 26 : small ? 56 : 60;
      });
    }
    top += height;
  }
  return { nodes, queues, small, gap, width: Math.max(width, total + 2 * pad), height: Math.max(120, top + (rowHeight < 104 ? 8 : 14)), tight: rowHeight < 104, empty: !queues.length && !nodes.length };
}

/** Connected parts, each with its columns in an order that crosses few edges. */
function components(neighbours) {
  const parts = [], seen = new Set();
  for (const item of neighbours.keys()) {
    if (seen.has(item)) continue;
    const members = [item];
    seen.add(item);
    for (const member of members) {
      for (const next of neighbours.get(member)) if (!seen.has(next)) seen.add(next), members.push(next);
    }
    const columns = [];
    for (const member of members) (columns[member.column] ??= []).push(member);
    const rank = (list) => list?.forEach((m, i) => (m.rank = (i + 0.5) / list.length));
    columns.forEach((list) => list.sort((a, b) => (a.index ?? a.row) - (b.index ?? b.row)));
    columns.forEach(rank);
    for (let sweep = 0; sweep < 4; sweep++) {
      for (const list of sweep % 2 ? [...columns].reverse() : columns) {
        if (!list) continue;
        const mean = (m) => neighbours.get(m).reduce((sum, n) => sum + n.rank, 0) / (neighbours.get(m).length || 1);
        const means = new Map(list.map((m) => [m, neighbours.get(m).length ? mean(m) : m.rank]));
        list.sort((a, b) => means.get(a) - means.get(b));
        rank(list);
      }
    }
    const first = Math.min(...members.map((m) => m.index ?? Infinity));
    parts.push({ first, columns, lines: Math.max(...columns.filter(Boolean).map((list) => list.length)) });
  }
  return parts.sort((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0));
}

const LEFT = -1, RIGHT = 1;
const port = (item, side) => [item.x + (side * item.w) / 2, item.y];

/** From a process into a queue, or from a queue to a process: a curve with level ends. */
function curve(a, b) {
  const [from, to] = a.x <= b.x ? [port(a, RIGHT), port(b, LEFT)] : [port(a, LEFT), port(b, RIGHT)];
  const bend = (to[0] - from[0]) / 2;
  return [from, [from[0] + bend, from[1]], [to[0] - bend, to[1]], to];
}

function along([a, b, c, d], f) {
  const g = 1 - f, w = [g * g * g, 3 * g * g * f, 3 * g * f * f, f * f * f];
  return [0, 1].map((k) => w[0] * a[k] + w[1] * b[k] + w[2] * c[k] + w[3] * d[k]);
}

// ---------------------------------------------------------------- where a message is

/** Moments of a message on screen: each way lasts at least LEG seconds there, whatever it took. */
function flight(row, pace) {
  const enters = Math.min(row[ENTERED], row[RECEIVED]);
  const arrives = row[SENT] + Math.max(enters - row[SENT], LEG * pace);
  const leaves = Math.max(enters, Math.min(row[ASKED], row[RECEIVED]));
  const departs = Math.max(leaves, arrives + REST * pace);
  return { enters, arrives, departs, ends: departs + Math.max(row[RECEIVED] - leaves, LEG * pace) };
}

const ease = (f) => f * f * (3 - 2 * f);

/** {x, y, fade} of a message at u, null when it is not on screen. */
function position(row, u, pace, scene, store) {
  const queue = scene.queues[store.index.get(row[CHANNEL])];
  const sender = queue?.from.find((n) => n.pid === row[SENDER]);
  if (!sender) return null;
  const { enters, arrives, departs, ends } = flight(row, pace);
  const forward = sender.x <= queue.x ? 1 : -1;
  if (row[DROPPED]) {
    const age = (u - row[SENT]) / (LEG * pace), fall = age - 1;
    if (fall > 1) return null;
    const [x, y] = along(curve(sender, queue), ease(Math.min(1, age)) * (sender.wall ? 0.12 : 0.96));
    return fall > 0 ? { x, y: y + 22 * fall * fall, fade: 1 - fall, lost: true } : { x, y, fade: 1 };
  }
  if (u < arrives) {
    const f = enters === Infinity ? Math.min(0.97, (u - row[SENT]) / (LEG * pace)) : (u - row[SENT]) / (arrives - row[SENT]);
    const [x, y] = along(curve(sender, queue), ease(Math.min(1, f)));
    return { x, y, fade: 1, phase: "send" };
  }
  if (!(u >= departs)) {
    const age = u - arrives;
    // How long it will wait is not known before it is received: as long as the others, as a guess.
    const f = departs === Infinity ? Math.min(0.94, age / Math.max(store.median ?? 0, pace)) : age / (departs - arrives);
    const inner = queue.w / 2 - 7;
    return { x: queue.x + forward * inner * (2 * f - 1), y: queue.y, fade: 1, phase: "queue" };
  }
  const receiver = queue.to.find((n) => n.pid === row[RECEIVER]);
  if (u > ends || !receiver) return null;
  const [x, y] = along(curve(queue, receiver), ease((u - departs) / (ends - departs)));
  return { x, y, fade: 1, phase: "receive" };
}

/** Of how many messages one is drawn, by channel: so many that the busiest moment has at most DOTS dots. */
function thinning(store, pace, moments) {
  const most = new Map();
  for (const u of moments) {
    const now = new Map();
    store.visible(u, pace, (row, at) => {
      const r = row.subarray(at, at + STRIDE);
      if (flight(r, pace).ends < u) return;
      now.set(r[CHANNEL], (now.get(r[CHANNEL]) ?? 0) + 1);
    });
    for (const [channel, n] of now) most.set(channel, Math.max(most.get(channel) ?? 0, n));
  }
  const share = DOTS / Math.max(1, most.size);
  return new Map([...most].map(([channel, n]) => [channel, roundUp(n / share)]));
}

// ---------------------------------------------------------------- drawing

const STATES = {
  running: { glyph: "play", text: "running", short: "running" },
  waiting: { glyph: "ring", text: "waiting in receive", short: "waiting" },
  blocked: { glyph: "bar", text: "blocked in send", short: "blocked" },
  ended: { glyph: "check", text: "ended", short: "ended" },
  killed: { glyph: "cross", text: "killed", short: "killed" },
  unknown: { glyph: "ring", text: "not heard of any more", short: "unknown" },
  quiet: { glyph: "ring", text: "not heard of yet", short: "silent" },
};

/** What a process is doing at u, from how it spent the last moments. */
function stateOf(node, u, store, span) {
  const over = node.ended && u >= store.axis.virtual(node.seen ? node.seen[1] : 0);
  if (over) {
    const clean = /exited 0\b/.test(node.ended);
    return { name: clean ? "ended" : "killed", text: node.ended, short: node.ended.replace("killed by ", "") };
  }
  if (!node.seen || u < store.axis.virtual(node.seen[0])) return { name: "quiet", ...STATES.quiet };
  if (store.orphaned && u >= store.end - span) return { name: "unknown", ...STATES.unknown };
  const [send, receive] = store.shares(node.pid, node.row, u, span);
  const name = send > 0.5 && send >= receive ? "blocked" : receive > 0.5 ? "waiting" : "running";
  return { name, ...STATES[name] };
}

class Painter extends Pen {
  draw(view) {
    const { theme } = this, { scene, store, u, pace } = view, ctx = this.begin(scene.width, scene.height);
    Object.assign(this.canvas.style, { width: `${scene.width}px`, height: `${scene.height}px` });
    if (scene.empty) {
      this.font(14);
      this.text("No channel yet: channel(kind, trace=trace) adds one.", scene.width / 2, scene.height / 2, theme.weak, { align: "center", width: scene.width - 20 });
      return [];
    }
    for (const queue of scene.queues) this.edges(queue);
    const dots = this.gather(view);
    for (const queue of scene.queues) this.queue(queue, store.totals(queue.index, u), view);
    for (const dot of dots) this.dot(dot, view);
    const states = new Map();
    for (const node of scene.nodes) {
      const state = stateOf(node, u, store, Math.max(1, 0.2 * pace));
      states.set(node.pid, state);
      this.node(node, state, scene.small);
    }
    view.states = states;
    return dots;
  }

  edges(queue) {
    const { ctx } = this;
    ctx.lineWidth = 1.5;
    ctx.strokeStyle = this.theme.line;
    if (!queue.from.length) this.stub(queue, LEFT);
    if (!queue.to.length) this.stub(queue, RIGHT);
    for (const [a, b] of [...queue.from.map((n) => [n, queue]), ...queue.to.map((n) => [queue, n])]) {
      const [p, q, r, s] = curve(a, b);
      ctx.beginPath();
      ctx.moveTo(...p);
      ctx.bezierCurveTo(...q, ...r, ...s);
      ctx.stroke();
      this.arrow(s, Math.sign(s[0] - r[0]) || 1);
    }
  }

  /** An end that nobody has used yet. */
  stub({ x, y, w }, side) {
    const { ctx } = this, from = x + (side * w) / 2;
    ctx.setLineDash([3, 4]);
    ctx.beginPath();
    ctx.moveTo(from, y);
    ctx.lineTo(from + side * 34, y);
    ctx.stroke();
    ctx.setLineDash([]);
  }

  arrow([x, y], way) {
    const { ctx } = this;
    ctx.fillStyle = this.theme.line;
    ctx.beginPath();
    ctx.moveTo(x, y);
    ctx.lineTo(x - way * 8, y - 4.5);
    ctx.lineTo(x - way * 8, y + 4.5);
    ctx.fill();
  }

  queue(queue, totals, view) {
    const { ctx, theme } = this, { x, y, w, h } = queue, small = view.scene.small;
    const colour = this.colour(queue.index), left = x - w / 2;
    const full = queue.capacity ? Math.min(1, held(queue, totals) / queue.capacity) : 0;
    ctx.beginPath();
    ctx.roundRect(left, y - h / 2, w, h, 7);
    ctx.fillStyle = theme.ground;
    ctx.fill();
    ctx.save();
    ctx.clip();
    ctx.globalAlpha = 0.3;
    ctx.fillStyle = colour;
    const backward = queue.from.length && queue.from.every((n) => n.x > x);
    ctx.fillRect(backward ? left : left + w * (1 - full), y - h / 2, w * full, h);
    ctx.restore();
    ctx.lineWidth = full > 0.95 ? 2.5 : 1.5;
    ctx.strokeStyle = colour;
    ctx.stroke();

    const room = w + Math.min(120, view.scene.gap - 10), size = small ? 11 : 12;
    this.font(small ? 12 : 13, 600);
    const name = this.fitting(queue.label, room - 18), wide = ctx.measureText(name).width;
    this.font(size);
    const kind = queue.label.startsWith(queue.kind) || small ? "" : this.fitting(queue.kind, Math.max(0, room - wide - 26));
    const tail = kind ? ctx.measureText(kind).width + 7 : 0, from = x - (wide + 16 + tail) / 2;
    this.shape(SHAPES[queue.index % SHAPES.length], from + 5, y - h / 2 - 12, 4.5);
    ctx.fillStyle = colour;
    ctx.fill();
    if (kind) this.text(kind, from + 16 + wide + 7, y - h / 2 - 12, theme.weak);
    this.font(small ? 12 : 13, 600);
    this.text(name, from + 16, y - h / 2 - 12, theme.strong);

    this.font(size);
    let line = y + h / 2 + (small ? 11 : 12);
    this.text(this.either(fullness(queue, totals), room), x, line, theme.strong, { align: "center", width: room });
    line += small ? 14 : 15;
    const over = view.finished(queue);
    const lost = totals.dropped ? ` · ${number(totals.dropped)} dropped` : over && totals.inside ? ` · ${number(totals.inside)} unread` : "";
    const dense = view.density(queue), dots = dense > 1 ? `1 dot = ${number(dense)}` : "";
    const arrow = `${number(totals.sent)} → ${number(totals.received)}${lost}`;
    const counts = view.scene.tight && dots ? [`${arrow} · ${dots}`] : [`${number(totals.sent)} sent · ${number(totals.received)} received${lost}`, arrow];
    this.text(this.either(counts, room), x, line, lost ? theme.blocked : theme.weak, { align: "center", width: room });
    if (view.scene.tight || !dots) return;
    line += small ? 14 : 15;
    this.text(this.either([`${dots} messages`, dots], room), x, line, theme.weak, { align: "center", width: room });
  }

  /** The namespaces around a process. */
  wall({ x, y, w, h, wall }, small) {
    const { ctx, theme } = this, d = small ? 5 : 8;
    ctx.beginPath();
    ctx.roundRect(x - w / 2 - d, y - h / 2 - d, w + 2 * d, h + 2 * d, 3);
    ctx.lineWidth = 5;
    ctx.strokeStyle = theme.weak;
    ctx.setLineDash([13, 2]); // bricks
    ctx.stroke();
    ctx.setLineDash([]);
    this.font(small ? 10.5 : 11.5);
    this.text(this.either([`namespaces: ${wall}`, wall], w + 2 * d), x, y + h / 2 + d + 10, theme.weak, { align: "center", width: w + 2 * d });
  }

  node(node, state, small) {
    const { ctx, theme } = this, { x, y, w, h } = node, left = x - w / 2, top = y - h / 2;
    if (node.wall) this.wall(node, small);
    const colour = theme[state.name] ?? theme.weak, gone = state.name === "ended" || state.name === "killed";
    ctx.beginPath();
    ctx.roundRect(left, top, w, h, 9);
    ctx.fillStyle = theme.card;
    ctx.fill();
    if (state.name === "blocked") {
      ctx.save();
      ctx.clip(); // round corners
      ctx.globalAlpha = 0.13;
      this.hatch(left, top, w, h, colour, { gap: 11, line: 4 });
      ctx.restore();
    }
    ctx.beginPath();
    ctx.roundRect(left, top, w, h, 9);
    ctx.lineWidth = state.name === "blocked" || state.name === "killed" ? 2.2 : 1.4;
    ctx.strokeStyle = gone && state.name === "ended" ? theme.line : colour;
    ctx.setLineDash(state.name === "killed" || node.ghost ? [5, 4] : []);
    ctx.stroke();
    ctx.setLineDash([]);
    const pad = small ? 6 : 12, inner = w - 2 * pad;
    this.font(small ? 12 : 14, 600);
    this.text(node.name || `process ${node.pid}`, left + pad, top + h * 0.24, gone ? theme.weak : theme.strong, { width: inner });
    this.font(small ? 10.5 : 11.5);
    this.text(node.ghost ? `the same process` : whichProcess(node.pid), left + pad, top + h * 0.52, theme.weak, { width: inner });
    this.glyph(STATES[state.name].glyph, left + pad + 4, top + h * 0.79, small ? 3.6 : 4.2, colour);
    this.font(small ? 11 : 12, 500);
    const wording = this.either([state.text, state.short], inner - 14);
    this.text(wording, left + pad + 14, top + h * 0.79, colour, { width: inner - 14 });
  }

  /** The dots of this frame: {x, y, r, row}. Every n-th message of each sender, whichever frame it is. */
  gather(view) {
    const { scene, store, u, pace, thin } = view, dots = [];
    store.visible(u, pace, (rows, at) => {
      const channel = rows[at + CHANNEL], every = store.every[channel] ?? 1;
      if (view.hides(channel)) return;
      const picked = Math.floor((rows[at + ID] % 2 ** 37) / every) % (thin.get(channel) ?? 1) === 0;
      if (!picked && rows[at + ID] !== view.selected?.id) return;
      const row = rows.subarray(at, at + STRIDE), place = position(row, u, pace, scene, store);
      if (!place) return;
      const was = place.phase === "queue" ? place : position(row, Math.max(row[SENT], u - 0.05 * pace), pace, scene, store) ?? place;
      dots.push({ ...place, was, row, r: 3.6 + Math.min(3.4, Math.log2(1 + row[SIZE]) / 4) });
    });
    return dots.length > 4 * DOTS ? dots.slice(-4 * DOTS) : dots;
  }

  dot({ x, y, r, row, fade, lost, was }, view) {
    const { ctx, theme } = this, index = view.store.index.get(row[CHANNEL]);
    ctx.globalAlpha = fade;
    if (lost) this.glyph("cross", x, y, r + 1, theme.blocked);
    else {
      if (Math.hypot(x - was.x, y - was.y) > r) this.tail(was, { x, y }, r, this.colour(index));
      this.shape(SHAPES[index % SHAPES.length], x, y, r);
      ctx.fillStyle = this.colour(index);
      ctx.fill();
      ctx.lineWidth = 1;
      ctx.strokeStyle = theme.ground;
      ctx.stroke();
    }
    if (row[ID] === view.selected?.id) {
      ctx.beginPath();
      ctx.arc(x, y, r + 5, 0, 7);
      ctx.lineWidth = 2;
      ctx.strokeStyle = theme.strong;
      ctx.stroke();
    }
    ctx.globalAlpha = 1;
  }

  tail(from, to, r, colour) {
    const { ctx } = this;
    const fade = ctx.createLinearGradient(from.x, from.y, to.x, to.y);
    fade.addColorStop(0, `${colour}00`);
    fade.addColorStop(1, `${colour}70`);
    ctx.strokeStyle = fade;
    ctx.lineWidth = r;
    ctx.lineCap = "round";
    ctx.beginPath();
    ctx.moveTo(from.x, from.y);
    ctx.lineTo(to.x, to.y);
    ctx.stroke();
  }

  /** How much was sent over time, under the slider. */
  strip(canvas, view) {
    const ratio = this.ratio, width = canvas.clientWidth, height = canvas.clientHeight, ctx = canvas.getContext("2d");
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    const inset = 8, bins = view.histogram(Math.floor((width - 2 * inset) / 3)), most = Math.max(1, ...bins);
    const played = view.share() * bins.length;
    bins.forEach((n, i) => {
      const tall = n ? Math.max(1.5, (height - 2) * Math.sqrt(n / most)) : 0.8;
      ctx.fillStyle = i < played ? this.theme.waiting : this.theme.line;
      ctx.fillRect(inset + i * 3, height - tall, 2, tall);
    });
  }
}

/** How much is inside, longest wording first. Bytes are those of the messages; what the kernel adds is not counted. */
/** What is inside, in the unit in which the channel fills up: a message costs more than its payload. */
function held(queue, totals) {
  return queue.unit === "bytes" ? totals.bytes + totals.inside * (queue.overhead ?? 0) : totals.inside;
}

function fullness(queue, totals) {
  const { inside } = totals, n = number(inside), used = bytes(Math.min(held(queue, totals), queue.capacity));
  if (queue.unit !== "bytes") return [`${n} of ${number(queue.capacity)} messages inside`, `${n} of ${number(queue.capacity)}`];
  const share = `${used} of ${bytes(queue.capacity)}`;
  return [`${plural(inside, "message")} inside · ${share}`, `${n} inside · ${share}`, `${n} · ${used}`, n];
}

// ---------------------------------------------------------------- one view

const CSS = `
.labkit-flow .stage { overflow: auto; max-height: 820px; position: relative; }
.labkit-flow .bar { padding-bottom: 4px; border-top: 1px solid var(--lk-faint); }
.labkit-flow .time { flex: 1 1 180px; min-width: 150px; position: relative; }
.labkit-flow .strip { width: 100%; height: 20px; }
.labkit-flow input[type=range] { display: block; width: 100%; margin: 0; height: 16px; }
.labkit-flow button[aria-pressed=true] { border-color: var(--lk-running); color: var(--lk-running); }
.labkit-flow .clock { min-width: 13.5em; }
.labkit-flow .note { min-height: 1.45em; }
.labkit-flow .tip { white-space: pre; }
@container (max-width: 780px) { .labkit-flow .time { order: -1; flex-basis: 100%; } .labkit-flow .clock { flex: 1 1 auto; min-width: 0; } }
@media print { .labkit-flow .note { padding-top: 8px; border-top: 1px solid var(--lk-faint); } .labkit-flow .stage canvas { max-width: 100%; height: auto !important; } } /* paper is narrower than what it was drawn for */
`;

export class FlowView extends View {
  constructor(store, el) {
    super(el, "flow", "Flow of messages", CSS);
    Object.assign(this, { store, u: 0, mode: "live", playing: true, speed: 1, touched: false, thin: new Map(), states: new Map(), dots: [] });
    this.build();
    this.pen = new Painter(this.canvas);
    this.heard = (what) => this.onStore(what);
    store.listeners.add(this.heard);
    this.resized();
    this.follow();
    if (store.blocks.length) this.onStore("recording");
  }

  get pace() { return 1e9 / this.speed; } // ns of virtual time in a second on screen

  // -- building

  build() {
    this.canvas = element("canvas", { role: "img", "aria-label": "Processes and the channels between them" });
    this.play = button("Play", () => this.toggle(), { picture: "play" });
    this.back = button("One message back", () => this.step(-1), { picture: "back" });
    this.next = button("Next message", () => this.step(1), { picture: "next" });
    this.stripe = element("canvas", { class: "strip", "aria-hidden": "true" });
    this.slider = element("input", { type: "range", min: 0, max: 10000, step: 1, value: 0, "aria-label": "Time in the recording" });
    this.slider.addEventListener("input", () => this.seek((this.slider.value / 10000) * this.length() + this.store.start));
    this.pick = speedPicker((speed) => this.setSpeed(speed));
    this.newest = element("button", { type: "button", title: "Follow the newest messages", "aria-pressed": "true" }, "Live");
    this.newest.addEventListener("click", () => this.goLive());
    this.clock = element("span", { class: "clock" });
    this.note = element("div", { class: "note" });
    this.spoken = element("div", { class: "spoken", role: "status", "aria-live": "polite" });
    this.stage = element("div", { class: "stage scrolls", tabindex: 0, role: "group", "aria-label": "The picture" }, this.canvas);
    this.bar = element("div", { class: "bar", role: "group", "aria-label": "Replay" }, this.play, this.back, this.next, element("div", { class: "time" }, this.stripe, this.slider), this.clock, this.pick, this.newest, saveButtons(this, "flow"));
    this.root.append(this.stage, this.bar, this.note, this.tip, this.spoken);
    this.on(this.canvas, "pointermove", (event) => this.hover(event));
    this.on(this.canvas, "pointerleave", () => this.hover(null));
  }

  close() {
    this.store.listeners.delete(this.heard);
    this.callOff();
    super.close();
  }

  resized() {
    this.scene = arrange(this.store.meta, Math.max(200, Math.floor(this.root.clientWidth)));
    this.sceneKey = this.key();
    this.paint();
  }

  sighted() {
    if (this.seen) this.firstSight();
    this.wake();
  }

  key() {
    const { channels, processes, links } = this.store.meta;
    return JSON.stringify([channels, processes.map((p) => [p.pid, p.name, p.ended, !!p.seen]), links]);
  }

  // -- news from the store

  onStore(what) {
    this.bins = null;
    if (this.key() !== this.sceneKey) this.resized();
    else this.refreshNodes();
    if (what === "recording") this.onRecording();
    else if (what === "messages") {
      this.fresh ??= this.store.newcomer;
      this.everLive = true;
      if (!this.touched && this.mode === "replay") this.goLive(false);
    }
    this.wake();
  }

  /** The same nodes with newer facts (when they were last heard of). */
  refreshNodes() {
    const byPid = new Map(this.store.meta.processes.map((p) => [p.pid, p]));
    for (const node of this.scene.nodes) Object.assign(node, { ended: byPid.get(node.pid)?.ended, seen: byPid.get(node.pid)?.seen, row: this.rowOf(node.pid) });
  }

  rowOf(pid) { return this.store.meta.processes.findIndex((p) => p.pid === pid); }

  /** Everything is at hand now. When all processes have ended, or no kernel is there to say more, live is over as soon as the last dot has arrived. */
  onRecording() {
    this.u = this.store.axis.virtual(this.time ?? 0); // the silences left out may have changed
    this.selected = null;
    this.setMoments();
    this.over = (this.store.meta.over || this.store.alone) && this.store.blocks.length > 0;
    if (!this.touched && this.over && !(this.everLive && this.moving())) this.rest();
    else this.rethin();
    this.paint();
  }

  /** From live to replay; what was over too soon to be followed is shown again, slowly, unless the reader has taken over. */
  rest() {
    const from = this.fresh ?? this.store.start, length = this.store.end - from;
    Object.assign(this, { mode: "replay", playing: false, over: false, fresh: null, speed: fittingSpeed(length), u: this.store.end });
    this.rethin();
    this.u += this.tail();
    this.again = length < 3e9 || !this.everLive ? from : null;
    if (this.seen) this.firstSight();
  }

  firstSight() {
    const still = calm() || matchMedia("print").matches;
    if (this.mode !== "replay" || this.touched || this.again == null || still) return;
    this.u = this.again;
    this.again = null;
    this.playing = true;
    this.wake();
  }

  length() { return Math.max(1, this.store.end - this.store.start); }
  tail() { return (2 * LEG + REST + 0.1) * this.pace; }
  share() { return !this.store.blocks.length ? 0 : Math.min(1, Math.max(0, (this.u - this.store.start) / this.length())); }

  setMoments() {
    const { start } = this.store, length = this.length();
    this.moments = Array.from({ length: 160 }, (_, i) => start + (length * (i + 0.5)) / 160);
  }

  rethin() {
    this.thin = thinning(this.store, this.pace, this.mode === "live" ? [this.u] : (this.moments ?? []));
  }

  // -- the reader's hands

  take() {
    this.callOff();
    this.touched = true;
    this.onPaper = false;
    if (this.mode === "live") {
      this.mode = "replay";
      this.u = Math.min(this.u, this.store.end);
      this.setMoments();
      this.rethin();
    }
  }

  toggle() {
    const go = !this.playing;
    this.take();
    this.playing = go;
    this.selected = null;
    if (go && this.u >= this.store.end) this.u = this.store.start;
    this.wake();
    this.paint();
    this.speak(true);
  }

  seek(u) {
    this.take();
    this.playing = false;
    this.selected = null;
    this.u = u;
    this.paint();
  }

  step(direction) {
    this.take();
    this.playing = false;
    const found = this.store.neighbour(this.u, this.selected?.id ?? (direction > 0 ? -1 : Infinity), direction);
    if (found) {
      this.selected = found;
      this.u = found.u;
    }
    this.paint();
    this.speak(true);
  }

  setSpeed(speed) {
    this.take();
    this.speed = speed;
    this.rethin();
    if (this.playing) this.wake();
    this.paint();
  }

  goLive(byHand = true) {
    this.callOff();
    this.mode = "live";
    this.touched = false;
    this.everLive = this.everLive || !byHand;
    this.playing = true;
    this.speed = 1;
    this.selected = null;
    this.u = Math.max(this.u, this.store.end - 0.3e9);
    if (byHand) this.u = this.store.end;
    this.rethin();
    this.wake();
    this.paint();
  }

  /** The picture for paper: how it ended, with all that was sent counted. */
  still() {
    if (this.mode === "live" || !this.store.blocks.length) return;
    Object.assign(this, { playing: false, selected: null, onPaper: true, u: this.store.end + this.tail() });
    this.paint();
  }

  // -- the clock

  wake() {
    if (this.frame || this.closed) return;
    if (this.moving()) {
      this.last = performance.now();
      this.nextFrame();
    } else this.paint();
  }

  /** The next picture; who wants no motion sees what is live once a second. */
  nextFrame() { this.frame = soon((now) => this.tick(now), this.mode === "live" && calm()); }

  /** What was asked for before the reader's hand moves nothing after it. */
  callOff() {
    this.frame?.();
    this.frame = null;
  }

  moving() {
    if (!this.seen || document.hidden || !this.playing) return false;
    if (this.mode === "live") return this.u < this.store.end + this.tail() && this.store.moments.length > 0;
    return this.u < this.store.end + this.tail();
  }

  tick(now) {
    this.frame = null;
    if (!this.playing) return; // asked for before it was stopped
    const passed = Math.min(0.1, Math.max(0, (now - this.last) / 1000));
    this.last = now;
    if (this.mode === "live") this.chase(passed, now);
    else this.u += passed * this.pace;
    if (this.mode === "replay" && this.u >= this.store.end + this.tail()) {
      this.u = this.store.end + this.tail();
      this.playing = false;
      this.speak(true);
    }
    this.paint();
    if (this.moving()) this.nextFrame();
    else if (this.mode === "live" && this.over) this.rest();
  }

  /** Follow the newest data at an even pace, a little behind; jump when left far behind. */
  chase(passed, now) {
    const age = (now - (this.store.arrived ?? now)) / 1000, target = this.store.end + (age - DELAY) * 1e9;
    if (target - this.u > 1.5e9 || this.u - target > 1e9 || calm()) this.u = target;
    else this.u += passed * 1e9 * Math.max(0.5, Math.min(2, 1 + (target - this.u) / 1e9));
    const wanted = thinning(this.store, this.pace, [this.u]);
    for (const [channel, n] of wanted) {
      const old = this.thin.get(channel) ?? 1;
      if (n > old || n * 10 <= old) this.thin.set(channel, n);
    }
  }

  // -- what is shown

  draw() { this.dots = this.pen.draw(this); }

  file() {
    const { pen, theme, scene, clock, note } = this, main = asSvg(pen, () => this.draw());
    const said = [clock.textContent && `${clock.textContent}.`, note.textContent].filter(Boolean).join(" ");
    return stacked([main, sentences([said], scene.width, theme)], theme.ground);
  }

  paint() {
    if (this.closed || !this.theme) return;
    this.time = this.store.axis.real(this.u);
    this.draw();
    this.pen.strip(this.stripe, this);
    showPlaying(this.play, this.playing);
    const none = !this.store.blocks.length;
    for (const control of [this.back, this.next, this.slider, this.pick, this.play]) control.disabled = none;
    this.newest.hidden = !this.everLive;
    this.newest.setAttribute("aria-pressed", String(this.mode === "live"));
    if (document.activeElement !== this.slider || this.playing) this.slider.value = Math.round(10000 * this.share());
    const time = Math.min(this.store.axis.real(this.u), this.store.meta.newest), whole = this.store.meta.newest;
    const shown = none ? "" : `${moment(Math.max(0, time), whole)} of ${moment(whole, whole)}`;
    setText(this.clock, shown);
    this.slider.setAttribute("aria-valuetext", shown);
    this.pick.value = this.speed;
    this.explain();
    this.pointed();
    if (performance.now() - (this.spokenAt ?? 0) > 5000) this.speak();
  }

  /** The line that says how the picture differs from what happened. */
  explain() {
    const { store } = this, parts = [];
    if (store.problem) parts.push(store.problem);
    else if (!store.blocks.length) parts.push("Nothing has been sent yet.");
    else if (this.selected) parts.push(...this.words(this.selected.row));
    else {
      if (this.onPaper) parts.push(`The end of a recording of ${duration(store.meta.newest)}.`);
      else parts.push(this.mode === "live" ? "Live." : this.speed === 1 ? "Replay in real time." : `Replay, ${number(this.speed)}× slower.`);
      if (store.median && this.onPaper) parts.push(`A message took ${duration(store.median)} (median).`);
      else if (store.median) {
        const drawn = Math.max(store.median / this.pace, 2 * LEG + REST), factor = (drawn * 1e9) / store.median;
        parts.push(factor > 1.5 ? `A message takes ${duration(store.median)} (median); it is shown ${times(factor)}× slower.` : `A message takes ${duration(store.median)} (median).`);
      }
      if (store.axis.saved && this.mode === "replay") parts.push(`${duration(store.axis.saved)} of silence left out.`);
    }
    if (store.orphaned) parts.push("The kernel has gone: this is what was known until then.");
    if (store.meta.lost) parts.push(`${plural(store.meta.lost, "event")} could not be recorded.`);
    setText(this.note, parts.join(" "));
  }

  /** Whether the reader has switched a channel off. */
  hides() { return false; }

  /** Of how many messages one dot is shown. */
  density(queue) { return (this.store.every[queue.number] ?? 1) * (this.thin.get(queue.number) ?? 1); }

  words(row) {
    const real = (u) => this.store.axis.real(u), sent = real(row[SENT]);
    const queue = this.scene.queues[this.store.index.get(row[CHANNEL])];
    const count = row[ID] % 2 ** 37;
    const fate = row[DROPPED] ? "dropped: it never entered the channel" : row[RECEIVED] < Infinity ? `received ${duration(real(row[RECEIVED]) - sent)} later` : "not received";
    const beginning = begins((line) => row[line]);
    return [`Message ${number(count + 1)} through ${queue?.label ?? "?"}:`, `${number(row[SIZE])} bytes,`, ...(beginning ? [`${beginning},`] : []), `sent at ${moment(sent, this.store.meta.newest)},`, `${fate}.`];
  }

  hover(event) {
    this.mouse = event && [event.offsetX, event.offsetY];
    this.pointed();
  }

  pointed() {
    if (this.mouse) this.showTip(this.under(...this.mouse), this.mouse[0] - this.stage.scrollLeft, this.mouse[1] - this.stage.scrollTop);
    else this.showTip(null);
  }

  near(x, y) {
    let best = null, nearest = 11;
    for (const dot of this.dots) {
      const far = Math.hypot(dot.x - x, dot.y - y);
      if (far < nearest) [best, nearest] = [dot, far];
    }
    return best;
  }

  under(x, y) {
    const best = this.near(x, y);
    if (best) return this.words(best.row).join("\n");
    const inside = (item) => Math.abs(item.x - x) < item.w / 2 && Math.abs(item.y - y) < item.h / 2;
    const node = this.scene.nodes.find(inside);
    if (node) return `${node.name || "process"}\n${whichProcess(node.pid)}\n${this.states.get(node.pid)?.text ?? ""}`;
    const queue = this.scene.queues.find(inside);
    if (!queue) return null;
    const size = queue.unit === "bytes" ? bytes(queue.capacity) : plural(queue.capacity, "message");
    return `${queue.label} (${queue.kind})\nholds up to ${size}\n${fullness(queue, this.store.totals(queue.index, this.u))[0]}`;
  }

  speak(now = false) {
    if (!now && this.playing && this.mode === "replay") return;
    this.spokenAt = performance.now();
    const parts = this.scene.queues.map((queue) => {
      const t = this.store.totals(queue.index, this.u);
      return `${queue.label}: ${plural(t.sent, "message")} sent, ${number(t.received)} received, ${number(t.inside)} inside${t.dropped ? `, ${number(t.dropped)} dropped` : ""}.`;
    });
    const doing = this.scene.nodes.filter((n) => !n.ghost).map((n) => `${n.name || n.pid} ${this.states.get(n.pid)?.text ?? ""}.`);
    setText(this.spoken, [...parts, ...doing].slice(0, 20).join(" "));
  }

  /** Whether nobody will receive from a queue any more, as far as is known at u. */
  finished(queue) {
    return queue.to.length > 0 && queue.to.every((n) => ["ended", "killed"].includes(this.states.get(n.pid)?.name));
  }

  histogram(count) {
    if (this.bins?.length === count) return this.bins;
    const bins = new Array(Math.max(1, count)).fill(0), { start } = this.store, length = this.length();
    for (const block of this.store.blocks) {
      for (let at = 0; at < block.count * STRIDE; at += STRIDE) {
        const weight = this.store.every[block.rows[at + CHANNEL]] ?? 1;
        bins[Math.min(count - 1, Math.max(0, Math.floor(((block.rows[at + SENT] - start) / length) * count)))] += weight;
      }
    }
    return (this.bins = bins);
  }

  /** For tests: what is shown, read-only. Times in ns since the first event. */
  state() {
    const { store } = this;
    return {
      mode: this.mode, playing: this.playing, speed: this.speed, time_ns: store.axis.real(this.u), share: this.share(),
      start_ns: store.axis.real(store.start), end_ns: store.meta.newest, messages: store.blocks.reduce((n, b) => n + b.count, 0),
      dots: this.dots.length, density: this.scene.queues.map((q) => this.density(q)), median_ns: store.median, animating: !!this.frame,
      channels: this.scene.queues.map((q) => ({ label: q.label, ...store.totals(q.index, this.u), x: q.x, y: q.y, w: q.w })),
      processes: this.scene.nodes.map((n) => ({ pid: n.pid, name: n.name, state: this.states.get(n.pid)?.name, x: n.x, y: n.y, w: n.w, h: n.h })),
      selected: this.selected && { count: this.selected.id % 2 ** 37, sent_ns: store.axis.real(this.selected.u) },
    };
  }
}

// ---------------------------------------------------------------- anywidget

export default widget((model) => new FlowStore(model), (store, el) => new FlowView(store, el));
