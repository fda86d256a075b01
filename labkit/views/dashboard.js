// Several views over one trace with one timeline: the window, the cursor, the chosen message and the hidden channels are
// those of all, and the latencies are those of the window that is shown.

import { Messages, RECEIVED, SENT } from "./messages.js";
import { View, duration, element, number, widget } from "./shared.js";
import { LatencyView } from "./latency.js";
import { OccupancyView } from "./occupancy.js";
import { SequenceView } from "./sequence.js";
import { Timeline } from "./timeline.js";

const PER_DECADE = 12, POINTS = 400;
const CSS = `
.labkit-dashboard { border: 0; border-radius: 0; background: none; overflow: visible; display: grid; gap: 8px; }
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

class Dashboard extends View {
  constructor(store, el) {
    super(el, "dashboard", "A trace, seen in several ways at once", CSS);
    this.timeline = new Timeline(store);
    this.latencies = new WindowLatency(this.timeline);
    const places = [0, 1, 2].map(() => element("div"));
    this.root.append(...places);
    this.parts = [new SequenceView(store, places[0], { timeline: this.timeline }), new OccupancyView(store, places[1], { timeline: this.timeline, controls: false }), new LatencyView(this.latencies, places[2])];
    this.follow();
  }

  paint() {}

  close() {
    for (const part of this.parts) part.close();
    this.latencies.close();
    this.timeline.close();
    super.close();
  }

  /** For tests: what is shown, read-only. */
  state() { return { view: "dashboard", messages: this.parts[0].store.count, parts: this.parts.map((part) => part.state()) }; }
}

export default widget((model) => new Messages(model), (store, el) => new Dashboard(store, el));
