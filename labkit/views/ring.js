// The ring view: a queue slot by slot, as its memory was at one moment of a history that can be stepped and replayed.
//
//   table   what labkit/views/ring.py has recorded: where the words are, who the owners are, and the snapshots (frames)
//           unit: how much a position grows from slot to slot: more than 1 where positions count bytes
//   at      the number of the frame that is shown; the newest while it is followed
//
// A slot is [state, lap, owner, times, text]; owner -1: somebody whom the memory does not name, null: nobody.

import { Pen, Store, View, button, darkPage, drawn, duration, element, gunzip, number, parse, setText, showPlaying, widget } from "./shared.js";
import { SvgContext, broken, saveButtons, sentences, stacked } from "./picture.js";

const STATE = 0, LAP = 1, OWNER = 2, TIMES = 3, TEXT = 4;
const LINE = 64, MOST_LINES = 14; // bytes of a cache line; lines of slots that are drawn
const OUT = 150, IN = 84; // radii of the circle of slots

const CSS = `
.labkit-ring .legend { display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 8px 12px 2px; color: var(--lk-weak); }
.labkit-ring .legend b { color: var(--lk-strong); font-weight: 600; }
.labkit-ring .legend span { display: inline-flex; align-items: center; gap: 5px; } .labkit-ring .legend svg { width: 22px; height: 14px; flex: none; }
.labkit-ring .badge { display: inline-block; min-width: 18px; padding: 0 4px; border-radius: 9px; text-align: center; font-weight: 700; font-size: 11px; line-height: 18px; color: var(--lk-on); background: var(--c); }
.labkit-ring .dead .badge { background: none; color: var(--lk-killed); outline: 2px dashed var(--lk-killed); outline-offset: -2px; } .labkit-ring .dead { color: var(--lk-killed); }
.labkit-ring .parts { display: flex; flex-wrap: wrap; gap: 6px 18px; padding: 4px 12px; align-items: center; }
.labkit-ring .circle { flex: 1 1 300px; max-width: 430px; margin: 0 auto; min-width: 0; } .labkit-ring .circle svg { display: block; width: 100%; font: inherit; }
.labkit-ring .memory { flex: 1 1 330px; min-width: 0; }
.labkit-ring .memory h4 { margin: 0 0 4px; font-size: 12px; font-weight: 400; color: var(--lk-weak); }
.labkit-ring .row { display: grid; grid-template-columns: 5.4em minmax(150px, 232px) minmax(70px, 1fr); align-items: center; gap: 1px 8px; padding: 2px 0; }
.labkit-ring .row .at { white-space: nowrap; text-align: right; color: var(--lk-weak); font-size: 11px; font-variant-numeric: tabular-nums; }
.labkit-ring .row .cells { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); border: 1px solid var(--lk-line); border-radius: 4px; overflow: hidden; }
.labkit-ring .row.shared .cells { border: 2px solid var(--lk-killed); }
.labkit-ring .row .what { min-width: 0; font-size: 11px; color: var(--lk-weak); overflow-wrap: anywhere; line-height: 1.25; } .labkit-ring .row .what b { color: var(--lk-killed); font-weight: 600; }
@container (max-width: 420px) { .labkit-ring .row .what { grid-column: 2 / -1; } }
.labkit-ring .octet { height: 22px; font-size: 11px; line-height: 22px; text-align: center; overflow: hidden; white-space: nowrap; border-left: 1px solid var(--lk-faint); color: var(--lk-strong); font-variant-numeric: tabular-nums; background: var(--lk-card); }
.labkit-ring .octet:first-child { border-left: 0; }
.labkit-ring .octet.word { background: var(--c); color: var(--lk-on); font-weight: 600; }
.labkit-ring .octet.full { background: var(--full); color: var(--lk-on); } .labkit-ring .octet.poison { color: var(--lk-killed); background: var(--lk-killedground); font-weight: 700; }
.labkit-ring .octet.filling, .labkit-ring .octet.taking { background: repeating-linear-gradient(var(--angle), var(--c) 0 2px, var(--lk-card) 2px 6px); text-shadow: 0 0 3px var(--lk-card), 0 0 3px var(--lk-card); font-weight: 700; }
.labkit-ring .octet.changed { box-shadow: inset 0 0 0 2px var(--lk-strong); }
.labkit-ring .bar input { flex: 1 1 140px; min-width: 90px; } .labkit-ring .clock { color: var(--lk-weak); }
.labkit-ring .verdict { min-height: 4em; } .labkit-ring .verdict p { margin: 0; } .labkit-ring .verdict p + p { font-weight: 400; color: var(--lk-strong); }
.labkit-ring .verdict .label { font-weight: 600; }
`;

// ---------------------------------------------------------------- words

const letter = (owner) => (owner == null ? "–" : owner < 0 ? "?" : String.fromCharCode(65 + (owner % 26)));

/** An element of SVG with others in it. */
function group(...children) {
  const made = drawn("g");
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- table

const EMPTY = { title: "", capacity: 0, slots: 0, stride: 8, unit: 1, fields: [], owners: [], frames: [], left_out: 0 };

/** What has happened between two frames, in words. */
function changes(table, before, now) {
  const who = (owner) => (owner == null ? "nobody" : owner < 0 ? "somebody" : `${letter(owner)} ${table.owners[owner] ?? ""}`.trim());
  const said = now.dead.filter((owner) => !before.dead.includes(owner)).map((owner) => `${who(owner)} is dead`);
  now.slots.forEach((slot, i) => {
    const old = before.slots[i], [from, to] = [old[STATE], slot[STATE]], laps = slot[LAP] - old[LAP], here = `slot ${i}`;
    if (from === to && laps === 0 && old[OWNER] === slot[OWNER] && old[TIMES] === slot[TIMES]) return;
    if (laps === 0 && to === "filling") said.push(`${who(slot[OWNER])} claims ${here}`);
    else if (laps === 0 && from === "filling" && to === "full") said.push(`${who(old[OWNER])} publishes ${here}`);
    else if (laps === 0 && to === "full") said.push(`${here} was filled and published`);
    else if (laps === 0 && to === "poison") said.push(from === "filling" && before.slots[i][OWNER] >= 0 && now.dead.includes(old[OWNER]) ? `${here} is poison: ${who(old[OWNER])}, who was filling it, is dead` : `${here} is poison: it was given up`);
    else if (laps === 0 && to === "taking" && slot[OWNER] == null) said.push(`${who(old[OWNER])} does not have ${here} any more: its message will be taken again`);
    else if (laps === 0 && to === "taking") said.push(`${who(slot[OWNER])} takes ${here}${slot[TIMES] ? `, which was taken ${slot[TIMES] === 1 ? "once" : `${slot[TIMES]} times`} before` : ""}`);
    else if (laps === 1 && to === "free") said.push(from === "poison" ? `${here} is passed over, and free for lap ${slot[LAP]}` : from === "taking" ? `${here} is released, for lap ${slot[LAP]}` : `${here} was received, and is free for lap ${slot[LAP]}`);
    else said.push(`${here} is ${to} in lap ${slot[LAP]}`);
  });
  table.fields.forEach(([name], i) => before.values[i] !== now.values[i] && said.push(`${name} ${number(before.values[i])} → ${number(now.values[i])}`));
  return said;
}

// ---------------------------------------------------------------- view

let views = 0; // each widget loads a module of its own: only with the key of its model is a number one of a kind

class RingView extends View {
  constructor(store, el) {
    super(el, "ring", "A queue in shared memory, slot by slot", CSS);
    Object.assign(this, { store, at: 0, follows: true, id: `ring-${store.key}-${++views}`, changed: [], shared: [] });
    this.build();
    this.heard = () => this.onStore();
    store.listeners.add(this.heard);
    this.follow();
    this.onStore();
  }

  get table() { return this.store.table; }
  get frame() { return this.table.frames[this.at]; }
  get last() { return Math.max(0, this.table.frames.length - 1); }

  build() {
    this.legend = element("div", { class: "legend" });
    this.svg = drawn("svg", { role: "img", viewBox: "-203 -203 406 406" });
    this.rows = element("div");
    const memory = element("div", { class: "memory", role: "group", "aria-label": "Cache lines" }, element("h4", {}, "The same in memory: a row is a cache line of 64 bytes"), this.rows);
    this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Snapshot" });
    this.on(this.slider, "input", () => this.put(+this.slider.value));
    this.playing = button("Play", () => this.toggle(), { picture: "play" });
    this.back = button("One snapshot back", () => this.put(this.at - 1), { picture: "back" });
    this.forth = button("One snapshot on", () => this.put(this.at + 1), { picture: "next" });
    this.newest = button("Now", () => this.put(null));
    this.newest.title = "Follow the newest snapshot";
    this.speed = element("select", { "aria-label": "Speed", title: "Snapshots a second" }, ...[1, 2, 5, 20].map((n) => element("option", { value: n }, `${n}/s`)));
    this.speed.value = "2";
    this.clock = element("span", { class: "clock" });
    const bar = element("div", { class: "bar", role: "group", "aria-label": "History" }, this.playing, this.back, this.forth, this.slider, this.clock, this.speed, this.newest, saveButtons(this, "ring"));
    this.label = element("p", { class: "label" });
    this.words = element("p");
    this.says = element("div", { class: "verdict", role: "status", "aria-live": "polite" }, this.label, this.words);
    this.note = element("div", { class: "note" });
    this.root.append(this.legend, element("div", { class: "parts" }, element("div", { class: "circle" }, this.svg), memory), bar, this.says, this.note);
  }

  close() {
    this.stop();
    this.store.listeners.delete(this.heard);
    super.close();
  }

  resized() {}
  get producer() { return this.theme.colours[1]; }
  get consumer() { return this.theme.colours[2]; }
  get full() { return this.theme.colours[0]; }
  colour(owner) { return owner == null || owner < 0 ? this.theme.weak : this.theme.colours[[3, 5, 4, 2, 1, 0][owner % 6]]; }

  // -- history

  onStore() {
    if (this.follows) this.at = this.last;
    this.paint();
  }

  /** Show a snapshot; null: the newest, and those that come. */
  put(at, byHand = true) {
    if (byHand) this.stop();
    this.follows = at == null;
    this.at = at == null ? this.last : Math.max(0, Math.min(this.last, at));
    this.paint();
  }

  toggle() {
    if (this.timer) return this.stop(), this.paint();
    if (this.at >= this.last) this.put(0);
    const beat = () => {
      this.put(this.at + 1, false);
      this.timer = this.at < this.last ? setTimeout(beat, 1000 / this.speed.value) : 0;
      this.paintBar();
    };
    this.timer = setTimeout(beat, 1000 / this.speed.value);
    this.paintBar();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = 0;
  }

  // -- drawing

  paint() {
    if (!this.theme) return;
    this.root.style.setProperty("--full", this.full);
    const before = this.table.frames[this.at - 1];
    this.changed = this.frame && before ? changes(this.table, before, this.frame) : [];
    this.paintLegend();
    this.paintCircle();
    this.paintLines(before);
    this.paintBar();
    this.tell();
  }

  /** The circle, the same in memory, and below it who is who and what is said of this snapshot. */
  file() {
    const { table, theme } = this, width = 640, circle = { svg: this.svg, width: 430, height: 430, x: (width - 430) / 2 };
    const people = table.owners.map((name, owner) => `${letter(owner)}: ${name}${this.frame?.dead.includes(owner) ? ", dead" : ""}`).join(", ");
    const said = sentences([table.title, people, this.label.textContent, this.words.textContent], width, theme);
    return stacked([circle, this.memoryPicture(width), said], theme.ground);
  }

  paintLegend() {
    const { owners } = this.table, dead = this.frame?.dead ?? [];
    const key = JSON.stringify([this.table.title, owners, dead, this.theme.ground]);
    if (key === this.legendKey) return;
    this.legendKey = key;
    const states = [["free", "free"], ["filling", "claimed, being filled"], ["full", "published"], ["taking", "being read"], ["poison", "poison"]].map(([state, words]) => {
      const sample = drawn("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" });
      sample.append(this.patterns(`${this.id}-l`, [-1]), drawn("rect", { x: 1, y: 1, width: 20, height: 12, rx: 2, ...this.paintOf([state, 0, -1], `${this.id}-l`) }));
      if (state === "poison") sample.append(drawn("text", { x: 11, y: 11.5, "text-anchor": "middle", "font-size": 11, "font-weight": 700, fill: this.theme.killed }, "✕"));
      return element("span", {}, sample, words);
    });
    const people = owners.map((name, owner) => {
      const badge = element("i", { class: "badge", style: "font-style: normal" }, letter(owner));
      badge.style.setProperty("--c", this.colour(owner));
      return element("span", dead.includes(owner) ? { class: "dead" } : {}, badge, dead.includes(owner) ? `${name} ✕ dead` : name);
    });
    this.legend.replaceChildren(element("b", {}, this.table.title), ...states, ...people);
  }

  /** Hatchings, one to the right for filling and one to the left for taking, in the colour of each owner. */
  patterns(id, owners) {
    const defs = drawn("defs");
    for (const owner of owners) for (const [name, angle] of [["filling", 45], ["taking", -45]]) {
      const pattern = drawn("pattern", { id: `${id}-${name}-${owner}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${angle})` });
      pattern.append(drawn("rect", { width: 6, height: 6, fill: this.theme.card }), drawn("rect", { width: 2.4, height: 6, fill: this.colour(owner) }));
      defs.append(pattern);
    }
    return defs;
  }

  paintOf(slot, id) {
    const { theme } = this, owner = slot[OWNER] ?? -1;
    if (slot[STATE] === "full") return { fill: this.full, stroke: this.full };
    if (slot[STATE] === "poison") return { fill: theme.killedground, stroke: theme.killed, "stroke-width": 1.5 };
    if (slot[STATE] === "filling" || slot[STATE] === "taking") return { fill: `url(#${id}-${slot[STATE]}-${owner})`, stroke: this.colour(slot[OWNER]), "stroke-width": 1.5 };
    return { fill: theme.card, stroke: theme.line };
  }

  paintCircle() {
    const { svg, table, frame, theme } = this, n = table.capacity, unit = table.unit ?? 1;
    svg.replaceChildren();
    if (!frame) return svg.setAttribute("aria-label", "No snapshot has been taken yet.");
    const owners = [...new Set(frame.slots.map((slot) => slot[OWNER] ?? -1))];
    svg.append(this.patterns(this.id, owners));
    frame.slots.forEach((slot, i) => svg.append(this.slot(slot, i, n)));
    const [write, read] = ["write_position", "read_position"].map((name) => frame.values[table.fields.findIndex(([field]) => field === name)]);
    svg.append(this.hand(write / unit, n, true), this.hand(read / unit, n, false));
    const middle = (y, text, more) => drawn("text", { x: 0, y, "text-anchor": "middle", "font-size": 12, fill: theme.weak, ...more }, text);
    const place = (position) => `lap ${number(Math.floor(position / unit / n))}, slot ${Math.floor(position / unit) % n}`;
    svg.append(
      middle(-36, "write_position", { fill: this.producer, "font-size": 10.5 }), middle(-19, number(write), { "font-size": 17, "font-weight": 700, fill: this.producer }), middle(-6, place(write), { "font-size": 10 }),
      middle(14, "read_position", { fill: this.consumer, "font-size": 10.5 }), middle(31, number(read), { "font-size": 17, "font-weight": 700, fill: this.consumer }), middle(44, place(read), { "font-size": 10 }),
    );
    const said = frame.slots.map((slot, i) => `slot ${i}: ${this.inWords(slot)}`);
    svg.setAttribute("aria-label", `${table.title}. write_position ${write}, read_position ${read}. ${said.join("; ")}.`);
  }

  inWords([state, lap, owner, times, text]) {
    const who = owner == null ? (state === "taking" ? " by nobody" : "") : owner < 0 ? " by somebody unknown" : ` by ${letter(owner)}, ${this.table.owners[owner]}${this.frame.dead.includes(owner) ? ", who is dead" : ""}`;
    return `${state}${who}, lap ${lap}${text ? `, ${text}` : ""}${times ? `, taken before: ${times}` : ""}`;
  }

  slot(slot, i, n) {
    const { theme } = this, [state, lap, owner, times, text] = slot, gap = n > 1 ? 0.5 / n : 0.0001;
    const [a, b] = [i + gap / 8, i + 1 - gap / 8].map((turn) => (turn / n) * 2 * Math.PI - Math.PI / 2), middle = (a + b) / 2;
    const p = (r, angle) => `${(r * Math.cos(angle)).toFixed(2)},${(r * Math.sin(angle)).toFixed(2)}`, large = b - a > Math.PI ? 1 : 0;
    const dead = owner != null && owner >= 0 && this.frame.dead.includes(owner);
    const path = drawn("path", { d: `M${p(OUT, a)} A${OUT},${OUT} 0 ${large} 1 ${p(OUT, b)} L${p(IN, b)} A${IN},${IN} 0 ${large} 0 ${p(IN, a)} Z`, ...this.paintOf(slot, this.id), ...(dead ? { stroke: theme.killed, "stroke-width": 3, "stroke-dasharray": "6 3" } : {}) });
    const made = group(path, drawn("title", {}, `slot ${i}: ${this.inWords(slot)}`));
    const write = (r, words, size, fill, more = {}) => made.append(drawn("text", { x: r * Math.cos(middle), y: r * Math.sin(middle), "text-anchor": "middle", "dominant-baseline": "central", "font-size": size, fill, ...more }, words));
    if (n <= 32 || i % 8 === 0) write(OUT + 11, String(i), 10, theme.weak);
    const wide = ((OUT + IN) / 2) * (b - a), most = Math.floor(Math.min(wide, 66) / 6.4);
    const shown = text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text;
    if (state === "poison") write((OUT + IN) / 2, "✕", Math.min(20, wide * 0.7), theme.killed, { "font-weight": 700 });
    if (state === "full" && most >= 2) write((OUT + IN) / 2 + (n <= 16 ? 13 : 0), shown, 11, theme.on, { "font-weight": 600 });
    if (state === "filling" || state === "taking") {
      const r = Math.min(10, wide / 2.4), [x, y] = [((OUT + IN) / 2 + 8) * Math.cos(middle), ((OUT + IN) / 2 + 8) * Math.sin(middle)];
      made.append(drawn("circle", { cx: x, cy: y, r, fill: dead ? theme.ground : this.colour(owner), stroke: dead ? theme.killed : theme.ground, "stroke-width": 1.5 }));
      made.append(drawn("text", { x, y, "text-anchor": "middle", "dominant-baseline": "central", "font-size": r * 1.2, "font-weight": 700, fill: dead ? theme.killed : theme.on }, letter(owner)));
    }
    if (n <= 16) write(IN + 17, `lap ${lap}`, 9, state === "full" ? theme.on : theme.weak, state === "filling" || state === "taking" ? { stroke: theme.card, "stroke-width": 3, "paint-order": "stroke" } : {});
    return made;
  }

  /** Where a position points: from outside who writes, from inside who reads. */
  hand(position, n, writes) {
    const { theme } = this, angle = ((Math.floor(position % n) + 0.5) / n) * 360 - 90, colour = writes ? this.producer : this.consumer;
    const r = writes ? OUT + 20 : IN - 4, tip = writes ? -1 : 1;
    const arrow = drawn("path", { transform: `rotate(${angle})`, d: writes ? `M${r},0 l11,-6 l0,12 z` : `M${r},0 l-11,-6 l0,12 z`, fill: colour });
    const at = r - tip * (writes ? 22 : 19), radians = (angle * Math.PI) / 180;
    return group(arrow, drawn("text", { x: at * Math.cos(radians), y: at * Math.sin(radians), "text-anchor": "middle", "dominant-baseline": "central", "font-size": 11, "font-weight": 700, fill: colour }, writes ? "W" : "R"));
  }

  // -- memory

  paintLines(before) {
    const lines = this.frame ? this.lines(before) : [];
    this.drawnLines = lines;
    this.shared = lines.map((line) => line.shared).filter(Boolean);
    this.rows.replaceChildren(...lines.map((line) => this.row(line)));
  }

  /** The cache lines that are drawn: {at, what, shared, cells}, a cell for each eight bytes. */
  lines(before) {
    const { table, frame } = this, words = new Map(); // offset of a word -> what it is
    table.fields.forEach(([name, at, writer], i) => words.set(at, { name, writer, text: String(frame.values[i]), changed: before && before.values[i] !== frame.values[i] }));
    frame.slots.forEach((slot, i) => {
      const changed = before && JSON.stringify(before.slots[i]) !== JSON.stringify(slot);
      for (let at = 0; at < table.stride; at += 8) words.set(table.slots + i * table.stride + at, { slot, index: i, first: at === 0, changed: changed && at === 0 });
    });
    const lines = [...new Set([...words.keys()].map((at) => Math.floor(at / LINE)))].sort((a, b) => a - b);
    const slotsFrom = Math.floor(table.slots / LINE), positions = lines.filter((line) => line < slotsFrom), rest = lines.filter((line) => line >= slotsFrom);
    const shown = [...positions, ...rest.slice(0, MOST_LINES)].map((line) => this.line(line, words));
    if (rest.length > MOST_LINES) shown.push({ at: "", what: `and ${rest.length - MOST_LINES} more lines of slots`, shared: "", cells: [] });
    return shown;
  }

  line(line, words) {
    const here = Array.from({ length: 8 }, (_, i) => words.get(line * LINE + 8 * i));
    const fields = here.filter((word) => word?.name), slots = [...new Map(here.filter((word) => word?.slot).map((word) => [word.index, word])).values()];
    const writers = [...new Set(fields.map((word) => word.writer))], busy = [...new Set(slots.filter(({ slot }) => slot[STATE] === "filling" || slot[STATE] === "taking").map(({ slot }) => slot[OWNER]))];
    const parts = fields.map((word) => `${word.name} (${word.writer})`);
    if (slots.length) parts.push(slots.length > 1 ? `slots ${slots[0].index} to ${slots.at(-1).index}` : `slot ${slots[0].index}`);
    let shared = "";
    if (writers.length > 1) shared = `${writers.join(" and ")} both write this line: false sharing`;
    else if (writers.length && slots.length) shared = "a position and slots in one line: false sharing";
    else if (busy.length > 1) shared = `${busy.map(letter).join(" and ")} are both in this line now`;
    return { at: `byte ${number(line * LINE)}`, what: parts.join(", "), shared, cells: here.map((word) => this.cell(word)) };
  }

  /** {kind, colour, text, title, changed} of eight bytes. */
  cell(word) {
    if (!word) return { kind: "free", text: "" };
    const { changed } = word;
    if (word.name) return { kind: "word", colour: this[word.writer], text: word.text, title: `${word.name} = ${word.text}, written by the ${word.writer}`, changed };
    const [state, , owner, , text] = word.slot, title = `slot ${word.index}: ${this.inWords(word.slot)}`;
    const sign = state === "poison" ? "✕" : state === "filling" || state === "taking" ? letter(owner) : state === "full" && this.table.stride === 8 ? text : "";
    return { kind: state, colour: this.colour(owner), text: word.first ? sign : "", title, changed };
  }

  row({ at, what, shared, cells }) {
    const words = element("span", { class: "what" }, what);
    if (shared) words.append(what ? ". " : "", element("b", {}, `⚠ ${shared}`));
    const octets = cells.map(({ kind, colour, text, title, changed }) => {
      const octet = element("div", { class: `octet ${kind}${changed ? " changed" : ""}`, ...(title && { title }) }, text);
      if (colour) octet.style.setProperty("--c", colour);
      octet.style.setProperty("--angle", kind === "filling" ? "135deg" : "45deg");
      return octet;
    });
    return element("div", { class: shared ? "row shared" : "row" }, element("span", { class: "at" }, at), ...(cells.length ? [element("div", { class: "cells" }, ...octets)] : []), words);
  }

  /** The cache lines once more, for a file. */
  memoryPicture(width) {
    const { theme } = this, ctx = new SvgContext(width, 0), left = 84, wide = 30, high = 22, right = left + 8 * wide + 12;
    let y = 8;
    const say = (text, x, colour, font, align = "left") => {
      Object.assign(ctx, { font: `${font}px system-ui, sans-serif`, fillStyle: colour, textAlign: align });
      ctx.fillText(text, x, y + high / 2);
    };
    for (const { at, what, shared, cells } of this.drawnLines ?? []) {
      say(at, left - 10, theme.weak, "11", "right");
      cells.forEach((cell, i) => this.octet(ctx, cell, left + i * wide, y, wide, high, say));
      if (cells.length) Object.assign(ctx, { strokeStyle: shared ? theme.killed : theme.line, lineWidth: shared ? 2 : 1 }).strokeRect(left, y, 8 * wide, high);
      ctx.font = "11px system-ui, sans-serif";
      for (const text of broken(ctx, [what, shared && `⚠ ${shared}`].filter(Boolean).join(". "), width - right - 10)) {
        say(text, right, shared ? theme.killed : theme.weak, "11");
        y += 14;
      }
      y += high - 14 + 4;
    }
    ctx.height = y + 4;
    return { svg: ctx.text(theme.ground), width, height: ctx.height };
  }

  /** Eight bytes in a file: as .octet of the page. */
  octet(ctx, { kind, colour, text, changed }, x, y, w, h, say) {
    const { theme } = this, hatched = kind === "filling" || kind === "taking";
    ctx.fillStyle = { word: colour, full: this.full, poison: theme.killedground }[kind] ?? theme.card;
    ctx.fillRect(x, y, w, h);
    if (hatched) Pen.prototype.hatch.call({ ctx }, x, y, w, h, colour);
    const fitting = text.length > 4 ? `${text.slice(0, 3)}…` : text;
    say(fitting, x + w / 2, kind === "word" || kind === "full" ? theme.on : kind === "poison" ? theme.killed : theme.strong, "600 11", "center");
    Object.assign(ctx, { strokeStyle: changed ? theme.strong : theme.faint, lineWidth: changed ? 2 : 1 }).strokeRect(x + 1, y + 1, w - 2, h - 2);
  }

  // -- words

  paintBar() {
    const { table, at } = this, { frames } = table;
    this.slider.max = this.last;
    this.slider.value = at;
    const clock = frames.length ? `${number(at + 1)} of ${number(frames.length)}, ${duration(this.frame.time - frames[0].time)}` : "";
    setText(this.clock, clock);
    this.slider.setAttribute("aria-valuetext", clock);
    showPlaying(this.playing, !!this.timer);
    this.newest.setAttribute("aria-pressed", String(this.follows));
    this.back.disabled = at <= 0;
    this.forth.disabled = at >= this.last;
    for (const control of [this.slider, this.playing, this.newest, this.speed]) control.disabled = frames.length < 2;
  }

  tell() {
    const { table, frame } = this;
    setText(this.label, frame?.label || (frame ? "" : "No snapshot has been taken yet."));
    const said = this.changed.length > 6 ? [...this.changed.slice(0, 6), `and ${this.changed.length - 6} more changes`] : this.changed;
    setText(this.words, said.length ? `${said.join("; ")}.` : frame && this.at ? "Nothing has changed." : "");
    this.says.className = `verdict${frame?.slots.some((slot) => slot[STATE] === "poison" || (slot[OWNER] >= 0 && frame.dead.includes(slot[OWNER]))) ? " wrong" : ""}`;
    const left = table.left_out ? `${number(table.left_out)} later snapshots were left out: the history is full.` : "";
    setText(this.note, this.store.problem ?? left);
    this.note.hidden = !this.note.textContent;
  }

  /** For tests: what is shown, read-only. */
  state() {
    const { table, frame } = this;
    return {
      view: "ring", at: this.at, frames: table.frames.length, follows: this.follows, playing: !!this.timer, title: table.title, label: frame?.label ?? "",
      slots: frame?.slots.map((slot) => slot[STATE]) ?? [], laps: frame?.slots.map((slot) => slot[LAP]) ?? [], owners: frame?.slots.map((slot) => (slot[OWNER] == null ? "" : letter(slot[OWNER]))) ?? [],
      dead: frame?.dead.map(letter) ?? [], people: table.owners, values: Object.fromEntries(table.fields.map(([name], i) => [name, frame?.values[i]])), said: this.changed, shared: this.shared ?? [], dark: darkPage(),
    };
  }
}

// ---------------------------------------------------------------- anywidget

class RingStore extends Store {
  constructor(model) {
    super(model);
    Object.assign(this, { table: EMPTY, order: Promise.resolve() });
  }

  /** One after the other: unpacking takes time, and what came first is to be there first. */
  then(step) {
    this.order = this.order.then(step);
    return this.order;
  }

  load(packed) { return this.then(() => super.load(packed)); }

  unpack(buffer) {
    const table = parse(buffer, "fields", "owners", "frames");
    if (table.frames.length >= this.table.frames.length) this.table = table;
  }

  addBatch(content, buffers) { content?.kind === "ring" && this.then(() => this.add(buffers[0])); }

  async add(packed) {
    for (const line of new TextDecoder().decode(await gunzip(packed)).trim().split("\n")) {
      const { from, owners, frames } = JSON.parse(line), { table } = this;
      if (from > table.frames.length) return; // we were not there from the beginning: the recording will bring it all
      this.table = { ...table, owners, frames: [...table.frames.slice(0, from), ...frames, ...table.frames.slice(from + frames.length)] };
    }
    this.tell("news");
  }
}

export default widget((model) => new RingStore(model), (store, el) => new RingView(store, el));
