// A window in the notebook: a title bar and a sandboxed frame whose page talks with the kernel. jupyter.py is the other end.
//
//     this page ── outer frame (ours: a policy that allows no network and no navigation) ── inner frame (the page's own)
//
// Both frames are sandbox="allow-scripts" without allow-same-origin: each has an origin of its own, "null", and a process
// of its own where the browser isolates sandboxed frames (Chromium on a desktop does). The outer one exists because a page
// may always navigate itself, and only the policy of the frame around it can forbid that. What crosses goes through one
// MessagePort, handed to the inner frame by whoever `event.source` says is its parent, and to nobody else.
//
// PAGE_SCRIPT is the text of jupyter-page.js, put before this module by jupyter.py.

import { View, button, bytes, element, gunzip, number, parse, plural, setText } from "../views/shared.js";
import { decode, encode } from "./clone.js";
import { Kind, pack, unpack } from "./electron-shim.js";

const POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; style-src 'unsafe-inline' data:; "
  + "img-src data: blob:; font-src data:; media-src data: blob:; frame-src 'none'; form-action 'none'; base-uri 'none'";

const OUTER = `<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${POLICY}">
<meta http-equiv="x-dns-prefetch-control" content="off">
<style>html, body, iframe { margin: 0; border: 0; width: 100%; height: 100%; display: block; overflow: hidden }</style>
<script>
  let frame = null, port = null, loads = 0, again = false;
  addEventListener("message", (event) => {
    if (event.source === parent) {
      frame?.remove();
      [port] = event.ports;
      loads = 0;
      again = false;
      frame = document.createElement("iframe");
      frame.sandbox = "allow-scripts";
      frame.title = event.data.title;
      frame.srcdoc = event.data.html;
      const { contentWindow } = document.body.appendChild(frame);
      frame.onload = () => loads++ && !again && parent.postMessage("labkit-left", "*");
    } else if (frame && event.source === frame.contentWindow && event.data === "labkit-page") {
      if (port) frame.contentWindow.postMessage("labkit-port", "*", [port]);
      else if (!again) parent.postMessage("labkit-again", "*");
      again = !port;
      port = null;
    }
  });
  parent.postMessage("labkit-outer", "*");
</script><body></body>`.replaceAll(/\n\s*/g, "\n");

const MOST_IN_A_MESSAGE = 256; // frames
const MOST_BYTES_IN_A_MESSAGE = 1 << 22;
const MOST_WAITING = 10_000; // frames of a page that does not keep to the limit that jupyter-page.js holds it to

const CSS = `
.labkit-view.labkit-window { width: var(--window-width, 640px); max-width: 100%; border-color: var(--lk-line); margin: 2px 0 6px; }
.labkit-window .bar { padding: 4px 4px 4px 12px; background: var(--lk-card); border-bottom: 1px solid var(--lk-line); flex-wrap: nowrap; }
.labkit-window .bar h3 { flex: 1 1 auto; min-width: 0; margin: 0; padding: 0; font: inherit; font-weight: 600; color: var(--lk-weak); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.labkit-window.focused .bar h3 { color: var(--lk-strong); } .labkit-window.focused { border-color: var(--lk-waiting); }
.labkit-window .bar .state { flex: 0 1 auto; min-width: 0; color: var(--lk-weak); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.labkit-view.labkit-window .bar button { border-color: transparent; background: none; width: 32px; padding: 0; font-size: 17px; line-height: 1; }
.labkit-view.labkit-window .bar button:hover { background: var(--lk-killed); color: var(--lk-on); }
.labkit-window .body { position: relative; height: var(--window-height, 320px); background: #fff; }
.labkit-window .body iframe { display: block; width: 100%; height: 100%; border: 0; }
.labkit-window.sizing iframe { pointer-events: none; }
.labkit-window .corner { position: absolute; right: 0; bottom: 0; width: 18px; height: 18px; cursor: nwse-resize; touch-action: none; z-index: 3;
  background: linear-gradient(135deg, transparent 55%, var(--lk-line) 55% 65%, transparent 65% 75%, var(--lk-line) 75% 85%, transparent 85%); }
.labkit-window .notes { position: absolute; right: 10px; bottom: 22px; width: min(320px, calc(100% - 20px)); display: flex; flex-direction: column; gap: 6px; z-index: 2; }
.labkit-window .notes div { display: flex; align-items: start; gap: 8px; background: var(--lk-ground); color: var(--lk-strong); border: 1px solid var(--lk-line); border-left: 4px solid var(--lk-waiting); border-radius: 6px; padding: 8px 4px 8px 10px; box-shadow: 0 2px 10px #0004; }
.labkit-window .notes p { flex: 1; margin: 0; max-height: 8em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; } .labkit-window .notes strong { display: block; }
.labkit-view.labkit-window .notes button { border: 0; background: none; min-height: 0; padding: 0 6px; font-size: 15px; line-height: 1.2; }
.labkit-window.over .bar { border-bottom: 0; }
.labkit-window .log { border-top: 1px solid var(--lk-line); padding: 5px 12px; max-height: 260px; overflow: auto; } .labkit-window .log summary { cursor: pointer; color: var(--lk-weak); }
.labkit-window .log table { border-collapse: collapse; margin: 4px 0; font-size: 12px; color: inherit; } .labkit-window .log td { padding: 1px 12px 1px 0; text-align: left; background: none; border: 0; white-space: nowrap; } .labkit-window .log td.time { text-align: right; font-variant-numeric: tabular-nums; color: var(--lk-weak); }
`;

const WORDS = { [Kind.SEND]: "send", [Kind.SEND_SYNC]: "sendSync", [Kind.INVOKE]: "invoke", [Kind.POST]: "postMessage", [Kind.SEND_TO_HOST]: "sendToHost",
  [Kind.SEND_TO_PAGE]: "send", [Kind.POST_TO_PAGE]: "postMessage", [Kind.REPLY]: "reply", [Kind.FAILED]: "reply: error", [Kind.REPLY_SYNC]: "reply",
  [Kind.EVALUATE]: "executeJavaScript", [Kind.PORT_MESSAGE]: "message of a port", [Kind.PORT_CLOSED]: "port closed" };
const LONGEST_PAUSE = 1500; // ms, where a replay would wait longer

/** Plays main for a page, from what was recorded: answers invocations as they were answered, and sends what was sent. */
class Player {
  constructor(buffer) {
    const end = 8 + Number(new DataView(buffer).getBigUint64(0, true));
    Object.assign(this, parse(buffer.slice(8, end)), { timers: [] });
    let at = end;
    this.messages = this.frames.map(([time, toPage, size]) => {
      const frame = new Uint8Array(buffer, at, size), parts = unpack(frame);
      at += size;
      return { time, toPage, size, frame, parts, channel: channelOf(parts) };
    });
    const answers = new Map(this.messages.filter((m) => m.toPage && (m.parts.kind === Kind.REPLY || m.parts.kind === Kind.FAILED)).map((m) => [m.parts.number, m]));
    this.invocations = this.messages.filter((m) => !m.toPage && m.parts.kind === Kind.INVOKE)
      .map((m) => ({ channel: m.channel, asked: String(m.parts.clone), answer: answers.get(m.parts.number), used: 0 }));
  }

  /** What main sends by itself, and what somebody did in the page: at once, or in the time that it took. */
  start(post, inTime) {
    this.stop();
    for (const each of this.invocations) each.used = 0;
    const sent = this.messages.filter((m) => m.toPage && [Kind.SEND_TO_PAGE, Kind.POST_TO_PAGE, Kind.EVALUATE, Kind.PORT_MESSAGE, Kind.PORT_CLOSED].includes(m.parts.kind)).map((m) => [m.time, () => post(m.frame.slice())]);
    const done = this.acts.map(([time, { act, ...rest }]) => [time, () => post({ again: act, ...rest })]);
    const steps = [...sent, ...done].sort((a, b) => a[0] - b[0]);
    let wait = 60, before = 0;
    for (const [time, step] of steps) {
      wait += inTime ? Math.min(time - before, LONGEST_PAUSE) : this.acts.length ? 20 : 0; // an act may need what an answer has shown
      before = time;
      this.timers.push(setTimeout(step, wait));
    }
    return wait;
  }

  stop() { for (const timer of this.timers.splice(0)) clearTimeout(timer); }

  /** The answer to a frame of the page: to an invocation what main answered to the same one, else to one like it. */
  answer(frame) {
    const { kind, number, document, clone } = unpack(frame);
    if (kind !== Kind.INVOKE) return null;
    const channel = channelOf({ kind, clone }), asked = String(clone);
    const like = this.invocations.filter((each) => each.channel === channel).sort((a, b) => (a.asked !== asked) - (b.asked !== asked) || a.used - b.used);
    if (!like.length) return pack(Kind.FAILED, encode(`Error: this is a recording, and nothing was answered on '${channel}'`), { number, document });
    like[0].used++;
    const parts = like[0].answer?.parts;
    return parts ? pack(parts.kind, parts.clone, { number, document }) : null; // never answered then, nor now
  }
}

function channelOf({ kind, clone }) {
  try {
    const named = [Kind.SEND, Kind.SEND_SYNC, Kind.INVOKE, Kind.POST, Kind.SEND_TO_HOST, Kind.SEND_TO_PAGE, Kind.POST_TO_PAGE];
    return named.includes(kind) ? String(decode(clone, { ports: Array(256).fill(null) })[0]) : "";
  } catch {
    return "";
  }
}

const owners = new WeakMap(); // the view of a model that has the page; a window has one renderer

class WindowView extends View {
  constructor(model, el) {
    super(el, "window", "Window", CSS);
    Object.assign(this, { model, port: null, out: [], outBytes: 0, sent: 0, read: 0, told: 0, acknowledged: 0, pending: false, over: "", focused: false, notes: element("div", { class: "notes", role: "status" }) });
    this.heading = element("h3", {}, model.get("title") || "Window");
    this.status = element("span", { class: "state" });
    this.shut = button("Close this window", () => this.ask(), { text: "×" });
    this.body = element("div", { class: "body" }, this.notes);
    this.corner = element("div", { class: "corner", role: "separator", tabindex: "0", "aria-label": "Size of the window: arrow keys", title: "Drag, or press arrow keys, to change the size" });
    this.root.append(element("div", { class: "bar" }, this.heading, this.status, this.shut), this.body);
    this.follow();
    this.size(model.get("width"), model.get("height"));
    const owner = owners.get(model);
    if (model.alone || !model.get("live")) this.remember();
    else if (model.get("closed")) this.finish("closed");
    else if (owner && !owner.closed) this.finish("this window is shown in another place of this page");
    else this.begin();
  }

  begin() {
    owners.set(this.model, this);
    this.body.append(this.corner);
    this.key = Math.random().toString(36).slice(2);
    this.outer = element("iframe", { sandbox: "allow-scripts", srcdoc: OUTER, title: "The page in this window" });
    this.body.prepend(this.outer);
    this.heard = (content, buffers) => this.fromKernel(content, buffers);
    this.model.on("msg:custom", this.heard);
    this.shutByKernel = () => this.model.get("closed") && this.finish("closed");
    this.model.on("change:closed", this.shutByKernel);
    this.on(window, "message", (event) => this.key && event.source === this.outer?.contentWindow && this.fromOuter(event.data));
    const status = this.model.widget_manager?.context?.sessionContext?.statusChanged; // JupyterLab
    this.kernelStatus = (_, now) => /restarting|terminating|dead/.test(now) && this.finish("its kernel has gone");
    status?.connect(this.kernelStatus);
    this.detach = () => {
      this.model.off("msg:custom", this.heard);
      this.model.off("change:closed", this.shutByKernel);
      status?.disconnect(this.kernelStatus);
    };
    this.resizable();
    setText(this.status, "starts …");
    setTimeout(() => this.port || this.over || !this.model.get("recording")?.byteLength || this.orphan(), 3000);
  }

  /** A notebook that was saved, and no kernel that knows the window: there is the recording. */
  orphan() {
    this.detach();
    this.outer.remove();
    this.outer = this.key = null;
    this.remember();
  }

  /** There is no main for the page: the recording plays it, as soon as there is one. */
  async remember() {
    setText(this.status, this.model.get("note"));
    this.shut.remove();
    this.heard = () => this.remember();
    if (!this.listening) this.model.on("change:recording", (this.listening = this.heard));
    const packed = this.model.get("recording");
    if (!packed?.byteLength) return;
    try {
      this.player = new Player(await gunzip(packed));
    } catch (reason) {
      return setText(this.status, `This recording cannot be read (${reason.message ?? reason}).`);
    }
    if (this.closed) return;
    setText(this.status, `${this.model.get("note")}${this.model.get("note") && " · "}recorded`);
    if (!this.outer) {
      this.outer = element("iframe", { sandbox: "allow-scripts", srcdoc: OUTER, title: "The page in this window" });
      this.body.prepend(this.outer);
      this.body.append(this.corner);
      this.resizable();
      this.on(window, "message", (event) => event.source === this.outer.contentWindow && event.data === "labkit-outer" && this.play(false));
      this.again = button("Play it again, in the time that it took", () => this.play(true), { picture: "play" });
      this.status.after(this.again);
      this.log = element("details", { class: "log" });
      this.root.append(this.log);
    } else this.play(false);
    this.list();
  }

  play(inTime) {
    this.load({ ...this.player.page, note: this.status.textContent });
    this.port.onmessage = ({ data }) => {
      if (!(data instanceof Uint8Array)) return this.fromShim(data);
      this.sent++;
      const answer = this.player.answer(data);
      if (answer) this.port.postMessage(answer);
      this.port.postMessage({ read: this.sent - this.before });
    };
    this.played = this.player.start((message) => this.port.postMessage(message), inTime);
  }

  list() {
    const { messages, lost } = this.player, shown = messages.filter((m) => WORDS[m.parts.kind]);
    const answered = new Map(shown.filter((m) => !m.toPage).map((m) => [m.parts.number, m.channel]));
    const rows = shown.slice(0, 500).map((m) => {
      const channel = m.channel || (/reply/.test(WORDS[m.parts.kind]) ? answered.get(m.parts.number) : "") || "";
      return element("tr", {}, element("td", { class: "time" }, `${m.time.toFixed(1)} ms`), element("td", {}, m.toPage ? "main → page" : "page → main"), element("td", {}, WORDS[m.parts.kind]), element("td", {}, channel), element("td", { class: "time" }, bytes(m.size)));
    });
    const more = lost + shown.length - rows.length;
    this.log.replaceChildren(
      element("summary", {}, plural(shown.length + lost, "message")),
      element("table", {}, element("tbody", {}, ...rows)),
      ...(more ? [element("p", { class: "note" }, `and ${number(more)} more`)] : []),
    );
  }

  size(width, height) {
    this.width = Math.max(200, Math.round(width));
    this.height = Math.max(80, Math.round(height));
    this.root.style.setProperty("--window-width", `${this.width}px`);
    this.root.style.setProperty("--window-height", `${this.height}px`);
  }

  resizable() {
    this.on(this.corner, "pointerdown", (event) => {
      event.preventDefault();
      this.corner.setPointerCapture(event.pointerId);
      this.root.classList.add("sizing");
      this.drag = { x: event.clientX - this.root.offsetWidth, y: event.clientY - this.height };
    });
    this.on(this.corner, "pointermove", (event) => this.drag && this.size(event.clientX - this.drag.x, event.clientY - this.drag.y));
    this.on(this.corner, "lostpointercapture", () => {
      this.drag = null;
      this.root.classList.remove("sizing");
    });
    this.on(this.corner, "keydown", (event) => {
      const step = { ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20] }[event.key];
      if (!step) return;
      event.preventDefault();
      this.size(this.root.offsetWidth + step[0], this.height + step[1]);
    });
  }

  // ---------------------------------------------------------------- kernel

  fromOuter(message) {
    if (message === "labkit-outer") {
      if (this.ready) this.end("its frame was taken off the page"); // and came back: a frame that moves starts anew
      this.ready = true;
      this.model.send({ kind: "hello", view: this.key });
    } else if (message === "labkit-again" && this.port) this.fromPage(pack(Kind.STATE, encode(["reload", null]), { document: this.shown }));
    else if (message === "labkit-left") this.end("its page has left: a page may not navigate here");
  }

  fromKernel(content, buffers) {
    if (content.view !== this.key) return;
    if (content.kind === "load") this.load(content);
    else if (content.kind === "over") this.finish(content.why);
    else if (content.kind === "frames") {
      if (content.read > this.acknowledged) this.port?.postMessage({ read: Math.max(0, (this.acknowledged = content.read) - this.before) });
      for (const buffer of buffers) {
        const frame = new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength).slice();
        this.port?.postMessage(frame, [frame.buffer]);
      }
      this.read += buffers.length;
      if (this.read - this.told >= 64) this.flushSoon();
    }
  }

  load({ config, html, note }) {
    this.port?.close();
    const { port1, port2 } = new MessageChannel();
    this.port = port1;
    port1.onmessage = ({ data }) => (data instanceof Uint8Array ? this.fromPage(data) : this.fromShim(data));
    this.shown = config.document;
    this.before = this.sent; // a new page counts its messages from 0
    const boot = `${PAGE_SCRIPT}(${JSON.stringify(config)})`.replaceAll(/<(?=\/script|!--)/gi, "<\\");
    const map = config.nodeIntegration && !config.contextIsolation ? IMPORT_MAP : "";
    const text = `<!doctype html><meta charset="utf-8"><script>${boot}</script>${map}${html}`;
    this.outer.contentWindow.postMessage({ html: text, title: this.heading.textContent }, "*", [port2]);
    setText(this.status, note);
  }

  fromPage(frame) {
    if (this.out.length > MOST_WAITING) return this.end("ended: it sent without end");
    this.out.push(frame);
    this.sent++;
    this.flushSoon();
  }

  /** What comes in one task goes in one message. */
  flushSoon() {
    if (this.pending) return;
    this.pending = true;
    setTimeout(() => this.flush());
  }

  flush() {
    this.pending = false;
    if (this.over) return;
    let count = 0;
    for (let size = 0; count < this.out.length && count < MOST_IN_A_MESSAGE; count++) {
      size += this.out[count].length;
      if (count && size > MOST_BYTES_IN_A_MESSAGE) break;
    }
    const frames = this.out.splice(0, count);
    this.told = this.read;
    this.model.send({ kind: "frames", view: this.key, read: this.read }, undefined, frames.map((frame) => frame.buffer));
    if (this.out.length) this.flushSoon();
  }

  /** What the frame asks of this page: a note, its title, focus, to be closed. */
  fromShim(data) {
    if (typeof data.note === "string") this.note(String(data.title ?? ""), data.note, data.number);
    if (typeof data.pageTitle === "string") setText(this.heading, data.pageTitle || this.model.get("title") || "Window");
    if (typeof data.act === "string" && !this.player && data.place?.length < 200) this.model.send({ kind: "act", view: this.key, act: data });
    if (typeof data.focused === "boolean") this.root.classList.toggle("focused", (this.focused = data.focused));
    if (data.close === true && !this.player) this.ask();
  }

  note(title, text, number) {
    const remove = () => {
      clearTimeout(timer);
      note.remove();
    };
    const timer = setTimeout(remove, 8000);
    const words = element("p", {}, ...(title ? [element("strong", {}, title)] : []), text);
    const note = element("div", {}, words, button("Dismiss", remove, { text: "×" }));
    if (number) words.addEventListener("click", () => this.port?.postMessage({ clicked: number }));
    this.notes.append(note);
    while (this.notes.children.length > 4) this.notes.firstChild.remove();
  }

  // ---------------------------------------------------------------- the end

  /** Ask main to close the window; whoever asks a second time, while main does not answer, need not wait for it. */
  ask() {
    if (Date.now() - (this.asked ?? Infinity) > 300) return this.end("closed");
    this.asked ??= Date.now();
    this.model.send({ kind: "close", view: this.key });
  }

  /** The renderer ends, and the kernel is told why. */
  end(why) {
    if (this.over || !this.key) return;
    this.model.send({ kind: "gone", view: this.key, why });
    this.finish(why);
  }

  finish(why) {
    if (this.over) return;
    this.over = why;
    this.detach?.();
    this.port?.close();
    this.outer?.remove();
    this.body.remove();
    this.shut.remove();
    this.root.classList.add("over");
    this.root.classList.remove("focused");
    setText(this.status, why);
    if (owners.get(this.model) === this) owners.delete(this.model);
  }

  close() {
    this.player?.stop();
    if (this.listening) this.model.off("change:recording", this.listening);
    this.end("closed");
    super.close();
  }

  paint() {}
  resized() {}

  /** For tests: what there is, read-only. */
  state() {
    return { view: "window", title: this.heading.textContent, over: this.over, status: this.status.textContent, notes: [...this.notes.children].map((n) => n.querySelector("p").textContent), sent: this.sent, read: this.read, played: this.played ?? null, focused: this.focused, width: this.width, height: this.height };
  }
}

// A page that is walled off from nothing may import what it may require.
const IMPORT_MAP = `<script type="importmap">{"imports": {"electron": "data:text/javascript,const e = require('electron'); export default e; export const { ipcRenderer, contextBridge } = e;"}}</script>`;

export default {
  render({ model, el }) {
    const view = new WindowView(model, el);
    return () => view.close();
  },
};
