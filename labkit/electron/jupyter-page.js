// What runs first in the frame of a window in a notebook: Electron's renderer side, the preload script, and stand-ins for
// what a sandboxed frame has not got. jupyter.js puts it at the head of the page and calls it with what the window is to be.
//
// Page and preload script share one realm. What the page must not get at lives in closures here, and what the page might
// replace later (prototypes) is taken before any of its scripts runs.

import { decode, encode } from "./clone.js";
import { Kind, createRenderer, worldTools } from "./electron-shim.js";

const MOST_FRAMES = 4096; // that main has not read; then sending is refused
const MOST_BYTES = 1 << 26;

const uncurried = (f) => Function.prototype.call.bind(f);
const sendOn = uncurried(MessagePort.prototype.postMessage);
const { setTimeout, parent, document } = globalThis;

/** The link to main. What is posted before the other side has given us our port waits. */
function makeLink(config, control) {
  let port = null;
  let early = [];
  let sent = 0;
  let read = 0;
  const sizes = []; // of the frames that are not read yet
  let unread = 0;
  const offset = BigInt(config.clock); // what this machine's wall clock is behind CLOCK_MONOTONIC, in nanoseconds
  const { timeOrigin } = performance;

  function put(message, transfer) {
    if (port) sendOn(port, message, transfer);
    else early.push([message, transfer]);
  }

  const link = {
    maxBytes: config.maxBytes,
    now: () => BigInt(Math.round((timeOrigin + performance.now()) * 1e6)) + offset,
    post(bytes) {
      const full = sent - read >= MOST_FRAMES || unread + bytes.length > MOST_BYTES;
      if (full && bytes[0] === Kind.CONSOLE) return; // what a page writes to its console is worth no more
      if (full && (bytes[0] <= Kind.SEND_TO_HOST || bytes[0] === Kind.PORT_MESSAGE)) {
        throw new Error(
          `main has not read the last ${sent - read} messages of this window (${unread} bytes): no more are taken until it has`,
        );
      }
      sent++;
      unread += bytes.length;
      sizes.push(bytes.length);
      const own = bytes.byteLength === bytes.buffer.byteLength ? bytes : bytes.slice();
      put(own, [own.buffer]);
    },
    put,
  };

  function receive({ data }) {
    if (data instanceof Uint8Array) {
      link.onmessage(data);
    } else if (typeof data.read === "number") {
      for (; read < data.read; read++) unread -= sizes.shift();
    } else {
      control(data);
    }
  }

  // The first message from whoever holds this frame brings the port; the page's own listeners come later and see nothing.
  addEventListener("message", function take(event) {
    if (event.source !== parent || event.data !== "labkit-port") return;
    event.stopImmediatePropagation();
    removeEventListener("message", take);
    [port] = event.ports;
    port.onmessage = receive;
    for (const [message, transfer] of early) sendOn(port, message, transfer);
    early = null;
  });
  parent.postMessage("labkit-page", "*");
  return link;
}

/** Arguments of console.log as a line of text. */
function asText(args) {
  return args.map((value) => {
    if (typeof value === "string") return value;
    if (value instanceof Error) return value.stack || String(value);
    try {
      return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
    } catch {
      return Object.prototype.toString.call(value);
    }
  }).join(" ");
}

function watchConsole(tell) {
  for (const [name, level] of Object.entries({ debug: "debug", log: "log", info: "info", warn: "warning", error: "error" })) {
    const shown = console[name].bind(console);
    console[name] = (...args) => {
      shown(...args);
      tell(level, asText(args));
    };
  }
  addEventListener("error", (event) => event.message && tell("error", asText([event.error ?? event.message])));
  addEventListener("unhandledrejection", (event) => tell("error", `Uncaught (in promise) ${asText([event.reason])}`));
}

/** alert() and notifications need rights that this frame must not have: they are shown as a note on the window. */
function standIns(link) {
  const shown = new Map();
  let last = 0;
  globalThis.alert = (text = "") => link.put({ note: String(text) });
  globalThis.confirm = (text = "") => {
    link.put({ note: `${text} (confirm() cannot ask in this window: it answers no)` });
    return false;
  };
  globalThis.prompt = (text = "") => {
    link.put({ note: `${text} (prompt() cannot ask in this window: it answers null)` });
    return null;
  };
  globalThis.Notification = class Notification extends EventTarget {
    static permission = "granted";
    static async requestPermission() { return "granted"; }
    onclick = null;
    onclose = null;
    constructor(title, { body = "", tag = "" } = {}) {
      super();
      this.title = String(title);
      this.body = String(body);
      this.tag = String(tag);
      shown.set(++last, this);
      if (shown.size > 50) shown.delete(shown.keys().next().value);
      link.put({ note: this.body, title: this.title, number: last });
    }
    close() {}
  };
  globalThis.close = () => link.put({ close: true });
  // The only way out of this frame that no Content-Security-Policy knows.
  for (const name of ["RTCPeerConnection", "webkitRTCPeerConnection"]) {
    if (name in globalThis) Object.defineProperty(globalThis, name, { value: undefined });
  }
  return (number) => {
    const notification = shown.get(number);
    if (!notification) return;
    const event = new Event("click");
    notification.onclick?.(event);
    notification.dispatchEvent(event);
  };
}

function watchWindow(link) {
  addEventListener("focus", () => link.put({ focused: true }));
  addEventListener("blur", () => link.put({ focused: false }));
  let title = null;
  const look = () => {
    if (document.title !== title) link.put({ pageTitle: (title = document.title).slice(0, 200) });
  };
  document.addEventListener("DOMContentLoaded", () => {
    look();
    new MutationObserver(look).observe(document.head, { subtree: true, childList: true, characterData: true });
  });
}

/** The place of an element in the document, as numbers of children. */
function placeOf(element) {
  const place = [];
  for (let node = element; node?.parentElement; node = node.parentElement) place.unshift([...node.parentElement.children].indexOf(node));
  return place;
}

const at = (place) => place.reduce((node, number) => node?.children[number], document.documentElement);

/** What somebody does in the page is told, so that a recording can do it again. */
function watchActs(link) {
  const tell = (event, more) => {
    if (event.isTrusted && event.target instanceof Element) link.put({ act: event.type, place: placeOf(event.target), ...more });
  };
  addEventListener("click", (event) => tell(event, {}), true);
  addEventListener("change", (event) => tell(event, { value: String(event.target.value).slice(0, 10_000), checked: event.target.checked === true }), true);
}

function actAgain({ again, place, value, checked }) {
  const element = at(place);
  if (again === "click") element?.click();
  else if (element) {
    element.value = value;
    if ("checked" in element) element.checked = checked;
    for (const type of ["input", "change"]) element.dispatchEvent(new Event(type, { bubbles: true }));
  }
}

export default function start(config) {
  let clicked = () => {};
  const link = makeLink(config, (message) => ("again" in message ? actAgain(message) : clicked(message.clicked)));

  const renderer = createRenderer(link, {
    document: config.document,
    contextIsolation: config.contextIsolation,
    mainWorld: worldTools(),
    traced: config.traced,
    report: (error) => reportError(error),
    onframe: evaluate,
  });

  async function evaluate({ kind, number, clone }) {
    if (kind !== Kind.EVALUATE) return;
    let answer;
    try {
      answer = [true, await (0, eval)(decode(clone))];
      encode(answer);
    } catch (error) {
      answer = [false, error instanceof Error ? error : String(error)];
    }
    renderer.tell(Kind.EVALUATED, answer, number);
  }

  const tell = (kind, ...value) => renderer.tell(kind, value);

  watchConsole((level, text) => tell(Kind.CONSOLE, level, text.slice(0, 10_000)));
  clicked = standIns(link);
  watchWindow(link);
  watchActs(link);
  // After the preload script these are the page's: ports made here can be sent to main.
  globalThis.MessageChannel = renderer.MessageChannel;
  globalThis.MessagePort = renderer.MessagePort;

  const process = Object.freeze({
    type: "renderer", sandboxed: true, contextIsolated: config.contextIsolation, platform: "linux", argv: [], env: {},
    versions: Object.freeze({ ...config.versions }),
  });
  function require(name) {
    if (name === "electron" || name === "electron/renderer") return renderer.electron;
    throw new Error(`module not found: ${name}`); // as in a sandboxed preload script of Electron
  }

  if (config.preload !== null) {
    const world = { require, module: { exports: {} }, process, global: globalThis };
    world.exports = world.module.exports;
    const text = `${config.preload}\n//# sourceURL=${config.preloadName}`;
    try {
      new Function(...Object.keys(world), text)(...Object.values(world));
    } catch (error) {
      tell(Kind.STATE, "preload-error", error instanceof Error ? error.stack : String(error));
    }
  }
  if (config.nodeIntegration && !config.contextIsolation) Object.assign(globalThis, { require, process });

  document.addEventListener("DOMContentLoaded", () => {
    tell(Kind.STATE, "dom-ready", null);
    setTimeout(renderer.ready); // the page's own listeners of this event come first
  });
  addEventListener("load", () => setTimeout(() => tell(Kind.STATE, "did-finish-load", null)));
}
