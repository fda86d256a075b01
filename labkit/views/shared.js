// What the views have in common: words, colours and theme, elements and controls, drawing on a canvas, and the life of a
// view and of the store that feeds it. labkit/views/esm.py joins it with each view into one module.
//
// Text reaches the page as text, never as HTML.

// ---------------------------------------------------------------- words

export const number = (n) => Math.round(n).toLocaleString("en-US");
export const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

/** Linux has no pid above 2 ** 22 (proc(5), pid_max); a frame, whose pid the browser tells nobody, is numbered from there. */
export const whichProcess = (pid) => (pid > 2 ** 22 ? "in the browser" : `pid ${pid}`);

export function duration(ns) {
  const size = Math.abs(ns);
  if (!Number.isFinite(ns)) return "?";
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (size >= unit) return `${(ns / unit).toFixed(size >= 100 * unit ? 0 : size >= 10 * unit ? 1 : 2)} ${name}`;
  }
  return `${Math.round(ns)} ns`;
}

/** A moment with as many digits as the length of the recording asks for. */
export function moment(ns, whole) {
  const [unit, name] = whole >= 2e9 ? [1e9, "s"] : whole >= 2e6 ? [1e6, "ms"] : [1e3, "µs"];
  return `${(ns / unit).toFixed(3)} ${name}`;
}

export function bytes(n) {
  for (const [unit, name] of [[1 << 30, "GiB"], [1 << 20, "MiB"], [1 << 10, "KiB"]]) {
    if (n >= unit) return `${+(n / unit).toFixed(n >= 10 * unit ? 0 : 1)} ${name}`;
  }
  return `${Math.round(n)} B`;
}

/** The next of 1, 2, 10, 20, 100, 200 …: each divides the next, so a thinner sample is part of a denser one. */
export function roundUp(factor) {
  let step = 1;
  while (step < factor) step *= String(step)[0] === "1" ? 2 : 5;
  return step;
}

/** The next of 1, 2, 5, 10, 20, 50 … ns: what a time axis counts in. */
export function roundStep(about) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1e-3, about)));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= about * 0.9999);
}

// ---------------------------------------------------------------- colours and theme

// Okabe and Ito's palette, which colour-blind readers can tell apart; lightened on a dark page. Every colour has a second
// cue beside it: a shape, hatching, a sign or a word.
const THEMES = {
  light: {
    colours: ["#0072b2", "#c2570c", "#00805c", "#b0528d", "#8a6a00", "#4a5fc1"],
    ground: "#ffffff", card: "#f7f8fa", line: "#c9ced6", strong: "#1c2128", weak: "#5b6470", faint: "#e7eaef", on: "#ffffff",
    running: "#00805c", waiting: "#0067a3", blocked: "#b84a00", killed: "#a3263a", ended: "#6b7480",
    runningground: "#edf8f3", waitingground: "#e3f0fa", killedground: "#fdf1f2",
  },
  dark: {
    colours: ["#56b4e9", "#f0983e", "#2fc79b", "#e59cc7", "#e8d44d", "#9fb0ff"],
    ground: "#14171c", card: "#1e232b", line: "#414a57", strong: "#eef1f5", weak: "#a3adba", faint: "#2a303a", on: "#14171c",
    running: "#2fc79b", waiting: "#6fbdf0", blocked: "#ff9d5c", killed: "#ff8d9c", ended: "#929ca9",
    runningground: "#12291f", waitingground: "#1c3347", killedground: "#2b1a1e",
  },
};
export const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "pentagon"];

/** Whether the page is dark: JupyterLab and VS Code say so, else the reader's system does. */
export function darkPage() {
  const { body } = document, root = document.documentElement;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (/vscode-(dark|high-contrast(?!-light))/.test(body.className)) return true;
  if (body.classList.contains("vscode-light")) return false;
  if (root.dataset.theme) return root.dataset.theme === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

const CSS = `
.labkit-view { font: 13px/1.45 var(--jp-ui-font-family, system-ui, -apple-system, "Segoe UI", sans-serif); color: var(--lk-strong); background: var(--lk-ground);
  border: 1px solid var(--lk-faint); border-radius: 10px; position: relative; box-sizing: border-box; width: 100%; min-width: 0; overflow: hidden; container-type: inline-size; }
.labkit-view * { box-sizing: border-box; } .labkit-view [hidden] { display: none !important; }
.labkit-view canvas { display: block; }
.labkit-view .bar { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 8px; padding: 8px 12px; }
.labkit-view :is(button, select, input[type=search]) { font: inherit; color: inherit; background: var(--lk-card); border: 1px solid var(--lk-line); border-radius: 6px; min-height: 30px; padding: 2px 10px; }
.labkit-view :is(button, select) { cursor: pointer; } .labkit-view select { width: auto; max-width: 12em; padding: 0 4px; }
.labkit-view button.icon { width: 34px; height: 30px; padding: 0; display: inline-grid; place-items: center; }
.labkit-view button svg { width: 14px; height: 14px; fill: currentColor; display: block; }
.labkit-view :is(button, select):hover:enabled { border-color: var(--lk-weak); }
.labkit-view :is(button, select):disabled { opacity: .5; cursor: default; }
.labkit-view button[aria-pressed=true] { border-color: var(--lk-waiting); color: var(--lk-waiting); font-weight: 600; }
.labkit-view :is(button, select, input, canvas, [tabindex]):focus-visible { outline: 2px solid var(--lk-waiting); outline-offset: 1px; }
.labkit-view :is(canvas, .scrolls):focus-visible { outline-offset: -2px; }
.labkit-view input[type=range] { accent-color: var(--lk-waiting); }
.labkit-view .group { display: inline-flex; } .labkit-view .group button { border-radius: 0; margin-left: -1px; padding: 0 9px; } .labkit-view .group button:first-child { border-radius: 6px 0 0 6px; margin: 0; } .labkit-view .group button:last-child { border-radius: 0 6px 6px 0; }
.labkit-view .clock { font-variant-numeric: tabular-nums; white-space: nowrap; }
.labkit-view .note { padding: 0 12px 9px; color: var(--lk-weak); }
.labkit-view .tip { position: absolute; z-index: 2; pointer-events: none; background: var(--lk-strong); color: var(--lk-ground); border-radius: 6px; padding: 5px 9px; font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; max-width: min(95%, 420px); }
.labkit-view .verdict { padding: 9px 12px; border-top: 1px solid var(--lk-faint); border-left: 5px solid var(--lk-line); overflow-wrap: anywhere; }
.labkit-view .verdict.wrong { border-left-color: var(--lk-killed); background: var(--lk-killedground); color: var(--lk-killed); font-weight: 600; }
.labkit-view .verdict.right { border-left-color: var(--lk-running); background: var(--lk-runningground); color: var(--lk-running); font-weight: 600; }
.labkit-view .spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media print { .labkit-view :is(.bar, .tip) { display: none; } .labkit-view { break-inside: avoid; } }
`;

// ---------------------------------------------------------------- elements

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name === "class" ? (node.className = value) : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function drawn(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text != null) node.textContent = text;
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const ICONS = {
  play: "M3 1.5v11l9.5-5.5z",
  pause: "M2.5 1.5h3.2v11H2.5zM8.3 1.5h3.2v11H8.3z",
  back: "M2 1.5h2.2v11H2zM12 1.5v11L5 7z",
  next: "M9.8 1.5H12v11H9.8zM2 1.5v11L9 7z",
};

function icon(name) {
  const svg = drawn("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
  svg.append(drawn("path", { d: ICONS[name] }));
  return svg;
}

/** A button with a picture (a name of ICONS) or a word on it. */
export function button(label, f, { picture = null, text = label } = {}) {
  const made = element("button", { type: "button", title: label, "aria-label": label, ...(picture && { class: "icon" }) }, picture ? icon(picture) : text);
  made.addEventListener("click", f);
  return made;
}

/** Play becomes pause and back. */
export function showPlaying(made, playing) {
  const name = playing ? "Pause" : "Play";
  if (made.title === name) return;
  made.title = name;
  made.setAttribute("aria-label", name);
  made.replaceChildren(icon(playing ? "pause" : "play"));
}

const SPEEDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];
/** A speed at which so many ns take some ten seconds. */
export const fittingSpeed = (length) => SPEEDS.find((s) => (length * s) / 1e9 >= 9) ?? SPEEDS.at(-1);

export function speedPicker(f) {
  const pick = element("select", { "aria-label": "Speed of the replay", title: "Speed of the replay" });
  for (const s of SPEEDS) pick.append(element("option", { value: s }, s === 1 ? "real time" : `${number(s)}× slower`));
  pick.addEventListener("change", () => f(+pick.value));
  return pick;
}

// ---------------------------------------------------------------- motion

/** Whether the reader wants no motion but what is asked for. */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Call f(now) in the next frame, or rarely: in a second. Returns what calls it off. */
export function soon(f, rarely) {
  if (rarely) {
    const timer = setTimeout(() => f(performance.now()), 1000);
    return () => clearTimeout(timer);
  }
  const frame = requestAnimationFrame(f);
  return () => cancelAnimationFrame(frame);
}

// ---------------------------------------------------------------- drawing

/** A canvas that is as sharp as the screen, and what is drawn on it more than once. */
export class Pen {
  constructor(canvas) {
    this.canvas = canvas;
    this.ctx = canvas.getContext("2d");
    this.widths = new Map();
  }

  /** Ready for a new picture of so many pixels. */
  begin(width, height) {
    const ratio = Math.min(3, window.devicePixelRatio || 1), [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    Object.assign(this, { width, height, ratio });
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.ctx.clearRect(0, 0, width, height);
    return this.ctx;
  }

  colour(index) { return this.theme.colours[index % this.theme.colours.length]; }

  font(size, weight = 400) { this.ctx.font = `${weight} ${size}px ${this.family}`; }

  fitting(text, width) {
    const { ctx } = this, key = `${ctx.font}|${width}|${text}`;
    if (this.widths.has(key)) return this.widths.get(key);
    let fit = text;
    while (fit.length > 1 && ctx.measureText(fit).width > width) fit = `${fit.replace(/…$/, "").slice(0, -1)}…`;
    if (this.widths.size > 2000) this.widths.clear();
    this.widths.set(key, fit);
    return fit;
  }

  text(text, x, y, colour, { align = "left", width = 1e4, size = null, weight = 400 } = {}) {
    if (size) this.font(size, weight);
    Object.assign(this.ctx, { fillStyle: colour, textAlign: align, textBaseline: "middle" });
    this.ctx.fillText(this.fitting(text, width), x, y);
  }

  /** The first of several wordings that fits. */
  either(wordings, width) {
    return wordings.find((w) => this.ctx.measureText(w).width <= width) ?? wordings.at(-1);
  }

  shape(kind, x, y, r) {
    const { ctx } = this;
    ctx.beginPath();
    if (kind === "square") ctx.rect(x - r * 0.88, y - r * 0.88, r * 1.76, r * 1.76);
    else if (kind === "cross") {
      const a = r * 0.4, b = r * 1.1;
      for (const [i, [dx, dy]] of [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]].entries()) {
        i ? ctx.lineTo(x + dx, y + dy) : ctx.moveTo(x + dx, y + dy);
      }
      ctx.closePath();
    } else if (kind === "circle") ctx.arc(x, y, r, 0, 7);
    else {
      const corners = { triangle: 3, diamond: 4, pentagon: 5 }[kind];
      for (let i = 0; i < corners; i++) {
        const angle = (2 * Math.PI * i) / corners - Math.PI / 2;
        ctx.lineTo(x + 1.2 * r * Math.cos(angle), y + 1.2 * r * Math.sin(angle));
      }
      ctx.closePath();
    }
  }

  /** The sign of a state: readable without colour. */
  glyph(kind, x, y, r, colour) {
    const { ctx } = this;
    ctx.save();
    ctx.fillStyle = ctx.strokeStyle = colour;
    ctx.lineWidth = 1.8;
    ctx.lineCap = "round";
    ctx.beginPath();
    if (kind === "play") {
      ctx.moveTo(x - r * 0.7, y - r);
      ctx.lineTo(x + r, y);
      ctx.lineTo(x - r * 0.7, y + r);
      ctx.fill();
    } else if (kind === "ring") {
      ctx.arc(x, y, r * 0.85, 0, 7);
      ctx.stroke();
    } else if (kind === "bar") {
      ctx.fillRect(x - r * 0.9, y - r, r * 0.65, 2 * r);
      ctx.fillRect(x + r * 0.25, y - r, r * 0.65, 2 * r);
    } else if (kind === "check") {
      ctx.moveTo(x - r, y);
      ctx.lineTo(x - r * 0.2, y + r * 0.8);
      ctx.lineTo(x + r, y - r * 0.8);
      ctx.stroke();
    } else {
      ctx.moveTo(x - r * 0.8, y - r * 0.8);
      ctx.lineTo(x + r * 0.8, y + r * 0.8);
      ctx.moveTo(x + r * 0.8, y - r * 0.8);
      ctx.lineTo(x - r * 0.8, y + r * 0.8);
      ctx.stroke();
    }
    ctx.restore();
  }

  /** Stripes over a rectangle; they stay where they are while it grows to the right. */
  hatch(x, y, w, h, colour, { gap = 6, line = 1.6 } = {}) {
    const { ctx } = this;
    ctx.save();
    ctx.beginPath();
    ctx.rect(x, y, w, h);
    ctx.clip();
    ctx.strokeStyle = colour;
    ctx.lineWidth = line;
    ctx.beginPath();
    for (let at = Math.floor((x - h) / gap) * gap; at < x + w; at += gap) {
      ctx.moveTo(at, y + h);
      ctx.lineTo(at + h, y);
    }
    ctx.stroke();
    ctx.restore();
  }
}

// ---------------------------------------------------------------- a view

/** One place in the page: its root, theme, size and sight, and their end. A view says how it looks: paint(). */
export class View {
  constructor(el, name, label, css) {
    Object.assign(this, { el, seen: false, closed: false, observers: [], quit: new AbortController() });
    this.tip = element("div", { class: "tip", hidden: "" });
    this.root = element("section", { class: `labkit-view labkit-${name}`, "aria-label": label, "data-lm-suppress-shortcuts": "true" }, element("style", {}, CSS + css));
    this.on(this.root, "keydown", (event) => event.stopPropagation()); // else JupyterLab takes arrows and d d for its cells
    el.replaceChildren(this.root);
    el.labkitView = { state: () => this.state() };
  }

  /** Hear of an event until the view is closed. */
  on(target, type, f, options = {}) { target.addEventListener(type, f, { signal: this.quit.signal, ...options }); }

  /** From now on follow the page: its theme, its width, whether the view can be seen, paper. */
  follow() {
    const themes = new MutationObserver(() => this.restyle());
    for (const node of [document.body, document.documentElement]) themes.observe(node, { attributes: true, attributeFilter: ["data-jp-theme-light", "class", "data-theme"] });
    this.on(matchMedia("(prefers-color-scheme: dark)"), "change", () => this.restyle());
    const sizes = new ResizeObserver(() => this.resized());
    sizes.observe(this.root);
    const sight = new IntersectionObserver((entries) => {
      this.seen = entries.at(-1).isIntersecting;
      this.sighted();
    });
    sight.observe(this.root);
    this.observers.push(themes, sizes, sight);
    this.on(document, "visibilitychange", () => this.sighted());
    this.on(window, "beforeprint", () => this.still());
    this.on(matchMedia("print"), "change", ({ matches }) => matches && this.still());
    this.restyle();
  }

  restyle() {
    const name = darkPage() ? "dark" : "light";
    this.theme = THEMES[name];
    for (const [key, value] of Object.entries(this.theme)) if (typeof value === "string") this.root.style.setProperty(`--lk-${key}`, value);
    this.root.style.colorScheme = name;
    const family = getComputedStyle(this.root).fontFamily || "system-ui, sans-serif"; // none while not in the page
    if (this.pen) Object.assign(this.pen, { theme: this.theme, family });
    this.paint();
  }

  resized() { this.paint(); }
  sighted() {}
  /** The picture for paper. */
  still() {}

  close() {
    this.quit.abort();
    for (const observer of this.observers) observer.disconnect();
    this.closed = true;
    delete this.el.labkitView;
    this.root.remove();
  }

  /** A few words beside a point of the root; none when there is no text. */
  showTip(text, x = 0, y = 0) {
    this.tip.hidden = !text;
    if (!text) return;
    setText(this.tip, text);
    this.tip.style.left = `${Math.max(4, Math.min(x + 14, this.root.clientWidth - this.tip.offsetWidth - 6))}px`;
    this.tip.style.top = `${Math.max(4, y + 18 + this.tip.offsetHeight > this.root.clientHeight ? y - this.tip.offsetHeight - 8 : y + 18)}px`;
  }
}

// ---------------------------------------------------------------- what feeds it

/**
 * gzip as Python packs it, to an ArrayBuffer. Without a Blob, whose bytes come from another process: a page that is
 * printed at once would have empty views.
 */
export async function gunzip(packed) {
  const { readable, writable } = new DecompressionStream("gzip");
  const writer = writable.getWriter(), reader = readable.getReader(), parts = [];
  const written = Promise.all([writer.write(packed), writer.close()]);
  written.catch(() => {}); // what is wrong with it, reading tells
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) parts.push(value);
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) whole.set(part, at), (at += part.length);
  return whole.buffer;
}

/** JSON that has these names in it. */
export function parse(buffer, ...names) {
  const found = JSON.parse(new TextDecoder().decode(buffer));
  for (const name of names) if (found[name] === undefined) throw new Error(`it has no ${name}`);
  return found;
}

/** What all views of one model share: hears of batches and of recordings, in order, and of a kernel that has gone. */
export class Store {
  constructor(model) {
    Object.assign(this, { key: model.get("key"), listeners: new Set(), orphaned: false, alone: !!model.alone });
    const heard = {
      "msg:custom": (content, buffers) => (this.behind ? this.behind.push([content, buffers]) : this.addBatch(content, buffers)),
      "change:recording": () => this.load(model.get("recording")),
    };
    for (const [event, f] of Object.entries(heard)) model.on(event, f);
    const status = model.widget_manager?.context?.sessionContext?.statusChanged; // JupyterLab; elsewhere it stays unknown
    const ended = (_, now) => {
      if (this.orphaned || !/restarting|terminating|dead/.test(now)) return;
      this.orphaned = true;
      this.tell("news");
    };
    status?.connect(ended);
    this.detach = () => {
      for (const [event, f] of Object.entries(heard)) model.off(event, f);
      status?.disconnect(ended);
    };
    queueMicrotask(heard["change:recording"]); // when the store is made
  }

  tell(what) {
    for (const listener of this.listeners) listener(what);
  }

  addBatch() {}

  /** Unpack a recording; of two on their way the later counts. It holds what was sent before it; the rest waits behind it. */
  async load(packed, ...rest) {
    if (!packed || !packed.byteLength) return;
    const behind = (this.behind = []);
    try {
      const buffer = await gunzip(packed);
      if (behind !== this.behind) return;
      this.problem = null;
      this.unpack(buffer, ...rest);
    } catch (reason) {
      if (behind !== this.behind) return;
      this.problem = `This recording cannot be read (${reason.message ?? reason}).`;
    }
    this.behind = null;
    this.tell("recording");
    for (const batch of behind) this.addBatch(...batch);
  }
}

/** What anywidget wants of a module: one store a model, any number of views of it. */
export function widget(makeStore, makeView) {
  const stores = new Map();
  const storeOf = (model) => {
    const key = model.get("key");
    if (!stores.has(key)) stores.set(key, makeStore(model));
    return stores.get(key);
  };
  return {
    initialize({ model }) {
      const store = storeOf(model);
      return () => {
        store.detach();
        stores.delete(store.key);
      };
    },
    render({ model, el }) {
      const view = makeView(storeOf(model), el);
      return () => view.close();
    },
  };
}
