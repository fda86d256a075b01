// The messages of a trace as labkit/views/recording.py sends them: whole recordings, and batches while it records.
//
// A message is thirteen numbers in a row. All times are nanoseconds since the first event of the trace, Infinity while
// unknown.

import { Store, duration, number, parse, whichProcess } from "./shared.js";

/** A moment to the nanosecond: 1.234 567 890 s. */
export function exact(ns) {
  const whole = Math.round(Math.abs(ns)), s = Math.floor(whole / 1e9), rest = String(whole % 1e9).padStart(9, "0").match(/.{3}/g).join(" ");
  return `${ns < 0 ? "−" : ""}${s}.${rest} s`;
}

export const ID = 0;
export const CHANNEL = 1;
export const SENDER = 2; // pid
export const RECEIVER = 3; // pid, 0 while nobody has received it
export const SIZE = 4;
export const SENT = 5; // send begins
export const ENTERED = 6; // send ends
export const ASKED = 7; // receive begins
export const RECEIVED = 8; // receive ends
export const DROPPED = 9; // 1: send gave up
export const FIRST = 10; // and the next two: up to six of its first bytes each, -1 when they are not known
export const STRIDE = 13;
const FIRST_BYTES = 16;

const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥" };

/** How a message begins: “text…” where all of it is letters, else its bytes as 0a ff 00 …; in_words of labkit/events.py. */
export function begins(value) {
  if (!(value(FIRST) >= 0)) return "";
  const size = value(SIZE), shown = Uint8Array.from({ length: Math.min(size, FIRST_BYTES) }, (_, i) => Math.floor(value(FIRST + Math.floor(i / 6)) / 256 ** (i % 6)) % 256);
  const more = size > shown.length;
  let text = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(shown, { stream: more }).replace(/[\n\r\t]/g, (c) => SIGNS[c]);
  } catch {} // no text
  if (text && !/[\p{C}\p{Z}]/u.test(text.replace(/[ \u200d]/g, ""))) return `“${text}${more ? "…" : ""}”`;
  return Array.from(shown, (byte) => byte.toString(16).padStart(2, "0")).join(" ") + (more ? " …" : "");
}

/** How many of a sorted list are at most x. */
export function before(list, x, high = list.length) {
  let low = 0;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (list[mid] <= x) low = mid + 1;
    else high = mid;
  }
  return low;
}

export function asFloats(view) {
  const { buffer, byteOffset = 0, byteLength } = view;
  return new Float64Array(buffer ? buffer.slice(byteOffset, byteOffset + byteLength) : view.slice(0));
}

/** A recording: what is known of channels and processes, rows of messages, and moments: rows of exact totals. */
export function openRecording(buffer) {
  const length = new DataView(buffer).getUint32(0, true), meta = parse(new Uint8Array(buffer, 8, length));
  const width = 1 + 5 * meta.columns + 2 * meta.processes.filter((p) => p.seen).length;
  const table = new Float64Array(buffer, 8 + length, width * meta.moments);
  const rows = decode(new Uint8Array(buffer, 8 + length + table.byteLength), meta.rows);
  return { meta, rows, moments: Array.from({ length: meta.moments }, (_, i) => table.subarray(i * width, (i + 1) * width)) };
}

/** The columns of a recording, each as eight byte planes of int64, to rows. */
function decode(planes, count) {
  const column = (k, i) => {
    const at = k * 8 * count + i, byte = (j) => planes[at + j * count];
    const low = (byte(0) | (byte(1) << 8) | (byte(2) << 16) | (byte(3) << 24)) >>> 0;
    return (byte(4) | (byte(5) << 8) | (byte(6) << 16) | (byte(7) << 24)) * 4294967296 + low;
  };
  const rows = new Float64Array(count * STRIDE);
  let id = 0, sent = 0;
  for (let i = 0, at = 0; i < count; i++, at += STRIDE) {
    id += column(0, i);
    sent += column(6, i);
    const entered = column(7, i), received = column(8, i), rest = column(9, i), dropped = rest & 1;
    rows[at + ID] = column(1, i) * 2 ** 37 + id;
    rows[at + CHANNEL] = column(2, i);
    rows[at + SENDER] = column(3, i);
    rows[at + RECEIVER] = column(4, i);
    rows[at + SIZE] = column(5, i);
    rows[at + SENT] = sent;
    rows[at + ENTERED] = entered < 0 ? Infinity : sent + entered;
    rows[at + RECEIVED] = received < 0 ? Infinity : sent + received;
    rows[at + ASKED] = received < 0 ? Infinity : sent + received - (rest - dropped) / 2;
    rows[at + DROPPED] = dropped;
    for (let k = FIRST; k < STRIDE; k++) rows[at + k] = column(k, i);
  }
  return rows;
}

// ---------------------------------------------------------------- all messages of a trace, by time

const MOST = 60_000; // messages kept while a trace streams; the oldest are forgotten then
const BLOCK = 256;
const MOST_HELD = 20; // batches that wait for the next picture; more come while nobody looks

export const NOT_RECEIVED = 1;
export const OVERTAKEN = 2;
export const GIVEN_UP = 4;

/** Messages in columns, sorted by the time their send began, and what follows from them. */
export class Messages extends Store {
  constructor(model) {
    super(model);
    this.meta = { channels: [], processes: [], links: [], lost: 0, columns: 0, newest: 0, every: [], over: true, waits: [] };
    this.live = false;
    this.arrived = performance.now();
    this.held = [];
    this.clear();
    const detach = this.detach;
    this.detach = () => {
      detach();
      cancelAnimationFrame(this.asked);
    };
  }

  clear() {
    this.count = 0;
    this.columns = Array.from({ length: STRIDE }, () => new Float64Array(BLOCK));
    this.moments = [];
    this.places = new Map(); // id -> place, of messages on their way
    this.derive();
  }

  get streams() { return this.live && !this.meta.over && !this.orphaned; }
  /** The newest time known: it goes on while processes run and a kernel feeds us. */
  get end() {
    const passed = this.streams ? Math.min(1000, performance.now() - this.arrived) * 1e6 : 0;
    return Math.max(1, this.meta.newest + passed);
  }
  /** Of how many messages one is here, at most. */
  get sparse() { return Math.max(1, ...this.meta.every); }
  get whole() { return this.moments.length < 2 && this.sparse === 1 && !this.live; }

  unpack(buffer) {
    const { meta, rows, moments } = openRecording(buffer);
    const order = Array.from({ length: meta.rows }, (_, i) => i).sort((a, b) => rows[a * STRIDE + SENT] - rows[b * STRIDE + SENT]);
    this.count = meta.rows;
    this.columns = Array.from({ length: STRIDE }, (_, line) => Float64Array.from(order, (i) => rows[i * STRIDE + line]));
    Object.assign(this, { meta, moments: moments.map((row) => ({ row, columns: meta.columns })), live: false, arrived: performance.now() });
    this.places.clear();
    this.held = []; // it is in the recording
    this.derive();
  }

  /** Batches are taken together before the next picture: what follows from the messages is found out once for all. */
  addBatch(content, buffers) {
    if (content?.kind !== "batch") return;
    this.held.push([content, buffers]);
    if (this.held.length >= MOST_HELD) this.take();
    else this.asked ??= requestAnimationFrame(() => this.take());
  }

  take() {
    cancelAnimationFrame(this.asked);
    this.asked = undefined;
    if (!this.held.length) return;
    let added = 0;
    for (const [content, buffers] of this.held) {
      this.meta = { waits: [], ...content };
      const [matrix, checkpoint] = buffers.map(asFloats), count = matrix.length / STRIDE;
      for (let i = 0; i < count; i++) this.put((line) => matrix[line * count + i]);
      this.moments.push({ row: checkpoint, columns: content.columns });
      added += count;
    }
    Object.assign(this, { held: [], live: true, arrived: performance.now() });
    if (this.moments.length > 4000) this.moments.splice(0, 1000);
    this.sort(added);
    this.derive();
    this.tell("messages");
  }

  put(value) {
    const id = value(ID);
    let at = this.places.get(id);
    if (at === undefined) {
      at = this.count++;
      if (at >= this.columns[0].length) this.columns = this.columns.map((old) => { const grown = new Float64Array(Math.max(BLOCK, 2 * old.length)); grown.set(old); return grown; });
    }
    for (let line = 0; line < STRIDE; line++) this.columns[line][at] = value(line);
    if (value(RECEIVED) < Infinity || value(DROPPED)) this.places.delete(id);
    else this.places.set(id, at);
  }

  /** New messages nearly come in order. Beyond MOST the oldest half goes. */
  sort(added) {
    const sent = this.columns[SENT];
    let first = this.count;
    for (let i = Math.max(1, this.count - added - 4000); i < this.count; i++) if (sent[i] < sent[i - 1]) first = Math.min(first, before(sent, sent[i], i));
    const gone = this.count > MOST ? this.count >> 1 : 0;
    if (first === this.count && !gone) return;
    const order = Array.from({ length: this.count - gone }, (_, i) => i + gone).sort((a, b) => sent[a] - sent[b]);
    this.columns = this.columns.map((old) => { const made = new Float64Array(old.length); order.forEach((from, to) => (made[to] = old[from])); return made; });
    this.count = order.length;
    this.places.clear();
    for (let i = 0; i < this.count; i++) if (this.columns[RECEIVED][i] === Infinity && !this.columns[DROPPED][i]) this.places.set(this.columns[ID][i], i);
  }

  /** Rows of processes and channels by message, what went wrong with it, and until when each block of them matters. */
  derive() {
    const { count, columns, meta } = this, rows = new Map(meta?.processes.map((p, i) => [p.pid, i])), channels = new Map(meta?.channels.map((c, i) => [c.number, i]));
    Object.assign(this, { rows, from: new Int32Array(count), to: new Int32Array(count), channel: new Int32Array(count), fate: new Uint8Array(count), pair: new Int32Array(count), ends: new Float64Array(Math.ceil(count / BLOCK)).fill(-1) });
    const latest = new Map(); // receiver and channel and sender -> the earliest receipt of what was sent later
    const pairs = new Map(); // sender, receiver and channel -> a small number
    this.troubles = [];
    for (let i = count - 1; i >= 0; i--) {
      const sender = columns[SENDER][i], receiver = columns[RECEIVER][i], received = columns[RECEIVED][i], number = columns[CHANNEL][i];
      this.from[i] = rows.get(sender) ?? -1;
      this.to[i] = received < Infinity ? rows.get(receiver) ?? -1 : -1;
      this.channel[i] = channels.get(number) ?? -1;
      const together = (this.from[i] * 4096 + this.to[i] + 1) * 4096 + this.channel[i];
      if (!pairs.has(together)) pairs.set(together, pairs.size);
      this.pair[i] = pairs.get(together);
      if (received < Infinity) {
        const key = (sender * 4194304 + receiver) * 1024 + (number % 1024), first = latest.get(key);
        if (first < received) this.fate[i] = OVERTAKEN;
        if (!(first < received)) latest.set(key, received);
      } else this.fate[i] = columns[DROPPED][i] ? GIVEN_UP : NOT_RECEIVED;
      const last = received < Infinity ? received : columns[ENTERED][i] < Infinity ? columns[ENTERED][i] : columns[SENT][i], block = (i / BLOCK) | 0;
      if (last > this.ends[block]) this.ends[block] = last;
      if (this.fate[i]) this.troubles.push(i);
    }
    this.troubles.reverse();
    this.pairs = pairs.size;
    this.version = (this.version ?? 0) + 1;
  }

  /** Calls visit(i) for every message that is on its way between two times, in order of sending. */
  between(from, to, visit) {
    const sent = this.columns[SENT], high = before(sent, to, this.count);
    for (let block = 0; block * BLOCK < high; block++) {
      if (this.ends[block] < from) continue;
      for (let i = block * BLOCK, end = Math.min(high, i + BLOCK); i < end; i++) visit(i);
    }
  }

  words(i) {
    const { columns, meta } = this, name = (row, pid) => (meta.processes[row]?.name ? `${meta.processes[row].name} (${whichProcess(pid)})` : whichProcess(pid));
    const sent = columns[SENT][i], fate = this.fate[i], entered = columns[ENTERED][i], label = meta.channels[this.channel[i]]?.label ?? "?";
    const beginning = begins((line) => columns[line][i]);
    const inSend = entered < Infinity ? `, ${duration(entered - sent)} in send` : "";
    const arrival = fate & GIVEN_UP ? "given up: it never entered the channel" : fate & NOT_RECEIVED ? "not received" : `received ${duration(columns[RECEIVED][i] - sent)} later by ${name(this.to[i], columns[RECEIVER][i])}, which had waited ${duration(columns[RECEIVED][i] - columns[ASKED][i])}`;
    return [
      `Message ${number((columns[ID][i] % 2 ** 37) + 1)} of ${name(this.from[i], columns[SENDER][i])} through ${label}: ${number(columns[SIZE][i])} bytes${beginning && `, ${beginning}`},`,
      `sent at ${exact(sent)}${inSend},`,
      `${arrival}.${fate & OVERTAKEN ? " One that was sent later arrived before it." : ""}`,
    ];
  }
}
