// Several views over one trace with one timeline: the window, the cursor, the chosen message and the hidden channels are
// those of all, and the latencies are those of the window that is shown.

import { ID, Messages, RECEIVED, SENT } from "./messages.js";
import { FlowStore, FlowView } from "./flow.js";
import { View, duration, element, number, widget } from "./shared.js";
import { LatencyView } from "./latency.js";
import { asSvg, saveButtons, stacked } from "./picture.js";
import { OccupancyView } from "./occupancy.js";
import { SequenceView } from "./sequence.js";
import { Timeline } from "./timeline.js";

const PER_DECADE = 12, POINTS = 400, GAP = 14; // pixels between two parts in a file
const CSS = `
.labkit-view.labkit-dashboard { border: 0; border-radius: 0; background: none; overflow: visible; display: grid; gap: 8px; }
.labkit-dashboard .all { justify-self: end; }
`;

/** The latencies of the messages that were received in the window of a timeline, as curve() of labkit/views/latency.py. */
class WindowLatency {
  constructor(timeline) {
    Object.assign(this, { timeline, store: timeline.store, listeners: new Set(), floors: timeline.store.floors ?? [], series: [], key: "" });
    this.heard = () => this.later();
    timeline.listeners.add(this.heard);
    this.measure();
  }

  /** Sorting takes longer than a frame: when the window rests, and twice a second while it moves. */
  later() {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      if (this.measure()) for (const listener of this.listeners) listener();
    }, 300);
  }

  measure() {
    const { store, timeline } = this, { columns } = store, from = Math.max(0, timeline.from), to = Math.min(timeline.to, timeline.now), key = `${store.version} ${from} ${to}`;
    if (key === this.key) return false;
    const found = store.meta.channels.map(() => []), lost = store.meta.channels.map(() => 0);
    store.between(from, to, (i) => {
      const channel = store.channel[i], received = columns[RECEIVED][i];
      if (channel < 0 || columns[SENT][i] < from) return;
      if (received < Infinity) found[channel].push(received - columns[SENT][i]);
      else lost[channel]++;
    });
    this.series = store.meta.channels.map((c, n) => curve(c.label, Float64Array.from(found[n]).sort(), lost[n]));
    Object.assign(this, { key, problem: store.problem, floors: store.meta.floors ?? [], note: `Of the messages sent in the ${duration(to - from)} that are shown above.${store.sparse > 1 ? ` One of ${number(store.sparse)} is here.` : ""}` });
    return true;
  }

  close() {
    clearTimeout(this.timer);
    this.timeline.listeners.delete(this.heard);
  }
}

function curve(label, sorted, lost) {
  const n = sorted.length, at = (share) => sorted[Math.min(n - 1, Math.floor(share * n))], log = (ns) => Math.floor(Math.log10(Math.max(1, ns)) * PER_DECADE);
  if (!n) return { label, n, lost, points: [], bars: [], first: 0, figures: {} };
  const step = Math.max(1, n / POINTS), places = new Set([n - 1]), first = log(sorted[0]), bars = [];
  for (let k = 0; k < n; k += step) places.add(Math.floor(k));
  for (let k = n; k > 1; k /= 1.1) places.add(n - Math.floor(k)); // the tail in more detail
  for (const ns of sorted) bars[log(ns) - first] = (bars[log(ns) - first] ?? 0) + 1;
  return {
    label, n, lost, first, bars: Array.from(bars, (count) => count ?? 0), points: [...places].sort((a, b) => a - b).map((k) => [sorted[k], (k + 1) / n]),
    figures: { p50: at(0.5), p90: at(0.9), p99: at(0.99), "p99.9": at(0.999), longest: sorted[n - 1] },
  };
}

const BEHIND = 0.15e9; // ns that dots stay behind the newest news, so that they move evenly

/** The flow of messages at the cursor of a timeline, with the message that is chosen there. */
class FlowAlong extends FlowView {
  constructor(store, el, timeline) {
    super(store, el);
    Object.assign(this, { timeline, mode: "replay", playing: false });
    for (const part of [this.bar, this.note, this.spoken]) part.remove();
    this.told = () => this.ask();
    timeline.listeners.add(this.told);
    this.on(this.canvas, "click", (event) => this.choose(this.near(event.offsetX, event.offsetY)));
    this.ask();
  }

  close() {
    this.timeline.listeners.delete(this.told);
    cancelAnimationFrame(this.asked);
    super.close();
  }

  // The timeline is its clock.
  wake() {}
  sighted() {}
  still() {}

  onStore() {
    if (this.key() !== this.sceneKey) this.resized();
    else this.refreshNodes();
    this.setMoments();
    this.was = null;
    this.ask();
  }

  ask() {
    if (this.asked || this.closed || !this.timeline) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.align();
    });
  }

  /** Stand where the timeline stands; painted only when that is another moment, or another choice. */
  align() {
    const { timeline, store } = this, all = timeline.store, live = all.streams && timeline.atEnd;
    const { chosen, speed, hidden } = timeline, id = chosen === null ? null : all.columns[ID][chosen];
    const now = live ? timeline.end - BEHIND : timeline.now, key = [now, speed, id, ...hidden].join();
    if (key === this.was) return;
    if (speed !== this.speed || this.was === null) {
      this.speed = speed;
      this.rethin();
    }
    this.was = key;
    if (id !== this.selected?.id) this.selected = id === null ? null : { id, row: store.find(id) };
    this.u = store.axis.virtual(Math.max(0, now)) + (timeline.atEnd && !live ? this.tail() : 0);
    this.paint();
  }

  /** What is said of the moment is said below the chart. */
  file() { return asSvg(this.pen, () => this.draw()).svg; }

  hides(channel) { return this.timeline?.hidden.has(this.store.index.get(channel)); }

  choose(dot) {
    const { timeline } = this, chosen = dot ? timeline.store.columns[ID].subarray(0, timeline.store.count).indexOf(dot.row[ID]) : -1;
    if (chosen < 0) return;
    Object.assign(timeline, { chosen, playing: false });
    timeline.tell();
  }
}

/** The messages of a trace, once by time and once as they flow. */
class Both extends Messages {
  constructor(model) {
    super(model);
    this.flow = new FlowStore(model);
    const detach = this.detach;
    this.detach = () => {
      detach();
      this.flow.detach();
    };
  }
}

class Dashboard extends View {
  constructor(store, el) {
    super(el, "dashboard", "A trace, seen in several ways at once", CSS);
    this.timeline = new Timeline(store);
    this.latencies = new WindowLatency(this.timeline);
    const places = [0, 1, 2, 3].map(() => element("div"));
    const save = element("div", { class: "all" }, saveButtons(this, "dashboard", "the whole dashboard", "All as "));
    this.root.append(places[3], ...places.slice(0, 3), save);
    this.parts = [new SequenceView(store, places[0], { timeline: this.timeline }), new OccupancyView(store, places[1], { timeline: this.timeline, controls: false }), new LatencyView(this.latencies, places[2]), new FlowAlong(store.flow, places[3], this.timeline)];
    this.follow();
  }

  paint() {}

  /** All parts, as they stand one below the other. */
  file() {
    const [sequence, occupancy, latency, flow] = this.parts;
    const pictures = [flow, sequence, occupancy, latency].map((part) => {
      const svg = part.file(), [, width, height] = /width="([\d.]+)" height="([\d.]+)"/.exec(svg);
      return { svg, width: +width, height: +height + GAP };
    });
    return stacked(pictures, this.theme.ground);
  }

  close() {
    for (const part of this.parts) part.close();
    this.latencies.close();
    this.timeline.close();
    super.close();
  }

  /** For tests: what is shown, read-only. */
  state() { return { view: "dashboard", messages: this.parts[0].store.count, parts: this.parts.map((part) => part.state()) }; }
}

export default widget((model) => new Both(model), (store, el) => new Dashboard(store, el));
