// What runs in a page of a Chromium: the renderer's side of IPC in the preload script's world, and a bridge between worlds.
//
// The worlds are real ones (isolated worlds of the browser): nothing of one can be touched from the other. What they share is
// the document, and events of it reach both at once. So a bridge passes texts in events whose name only it knows.
// chromium.py puts clone.js, electron-shim.js and this file into one script for each world.

import { decode, encode } from "./clone.js";
import {
  createRenderer, deepFreeze, EventEmitter, isError, isPlain, isPlatform, Kind, messageOf, MOST_NESTED, tag, TOO_DEEP,
} from "./electron-shim.js";

// Taken before any script of the page runs, which might put others in their place.
const { CustomEvent, MouseEvent, XMLHttpRequest, atob, btoa, String: Text, Uint8Array: Bytes } = globalThis;
const dispatch = Function.prototype.call.bind(EventTarget.prototype.dispatchEvent);
const listen = Function.prototype.call.bind(EventTarget.prototype.addEventListener);

export function toText(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += Text.fromCharCode.apply(null, bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function toBytes(text) {
  const binary = atob(text);
  const bytes = new Bytes(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** One world's end of the bridge. `answer(what, value)` is what it does when the other one asks. */
function makeSide(secret, me, other, answer) {
  const functions = []; // ours, that the other world has proxies of
  const numbers = new Map();
  const foreign = new WeakMap(); // proxies of the other world's, and their numbers there
  const promises = new Map(); // the other world's: how to settle what stands for them here
  let nodes = []; // of the document, on their way to us
  let said = null;
  let nextPromise = 0;

  const tell = (type, detail) => dispatch(document, new CustomEvent(`${secret}:${type}`, { detail }));
  listen(document, `${secret}:${me}:node`, (event) => nodes.push(event.relatedTarget ?? document));
  listen(document, `${secret}:${me}:answer`, (event) => (said = event.detail));
  listen(document, `${secret}:${me}:ask`, (event) => {
    let given;
    try {
      given = pack(["ok", react(unpack(event.detail))]);
    } catch (error) {
      given = pack(["error", messageOf(error)]);
    }
    tell(`${other}:answer`, given);
  });

  /** Have the other world do something, at once. */
  function ask(...what) {
    const text = pack(what);
    said = null;
    tell(`${other}:ask`, text);
    const [how, value] = unpack(said);
    if (how === "error") throw new Error(value);
    return value;
  }

  function react([what, ...rest]) {
    if (what === "call") return functions[rest[0]](...rest[1]);
    if (what === "settle") {
      const [number, how, value] = rest;
      promises.get(number)?.[how](value);
      promises.delete(number);
      return undefined;
    }
    return answer(what, ...rest);
  }

  /** A value as text: a copy of it, in which what cannot be copied is told by number. */
  function pack(value) {
    const holders = [];
    const told = [];
    const hold = (what) => {
      const holder = {};
      holders.push(holder);
      told.push(what);
      return holder;
    };
    const cache = new Map();
    const copy = (value, depth) => {
      if (depth >= MOST_NESTED) throw new TypeError(TOO_DEEP);
      if (typeof value === "symbol") return hold(["symbol", value.description]);
      if (value === null || (typeof value !== "object" && typeof value !== "function")) return value;
      if (cache.has(value)) return cache.get(value);
      const keep = (made) => (cache.set(value, made), made);
      if (typeof value === "function") return keep(hold(nameOf(value)));
      const kind = tag(value);
      if (kind === "Promise") return keep(hold(["promise", promised(value)]));
      if (isError(value)) return hold(["failure", messageOf(value)]);
      if (isPlatform(value) && kind !== "Blob" && kind !== "File") {
        dispatch(document, new MouseEvent(`${secret}:${other}:node`, { relatedTarget: value === document ? null : value }));
        return keep(hold(["node"]));
      }
      if (Array.isArray(value)) {
        const made = keep([]);
        for (let i = 0; i < value.length; i++) made[i] = copy(value[i], depth + 1);
        return made;
      }
      if (value === hidden.ipcRenderer) return keep({});
      if (isPlain(value)) {
        const made = keep({});
        for (const key of Object.keys(value)) {
          const each = copy(value[key], depth + 1);
          Object.defineProperty(made, key, { value: each, writable: true, enumerable: true, configurable: true });
        }
        return made;
      }
      return keep(value);
    };
    const copied = value.map((each) => copy(each, 0));
    return `${toText(encode(told))} ${toText(encode(copied, { ports: holders }))}`;
  }

  function unpack(text) {
    const [told, copied] = text.split(" ").map(toBytes);
    const arrived = nodes;
    nodes = [];
    const ports = decode(told).map(([what, ...rest]) => make(what, rest, arrived));
    return decode(copied, { ports });
  }

  function make(what, [first], arrived) {
    if (what === "symbol") return Symbol(first);
    if (what === "failure") return new Error(first);
    if (what === "node") return arrived.shift();
    if (what === "back") return functions[first];
    if (what === "promise") return new Promise((resolve, reject) => promises.set(first, { resolve, reject }));
    const known = proxies.get(first)?.deref();
    if (known) return known;
    const proxy = function (...args) { return ask("call", first, args); };
    foreign.set(proxy, first);
    proxies.set(first, new WeakRef(proxy));
    return proxy;
  }
  const proxies = new Map();

  function nameOf(value) {
    if (foreign.has(value)) return ["back", foreign.get(value)];
    if (!numbers.has(value)) numbers.set(value, functions.push(value) - 1);
    return ["function", numbers.get(value)];
  }

  function promised(promise) {
    const number = nextPromise++;
    const settle = (how) => (value) => {
      try {
        ask("settle", number, how, value);
      } catch {
        // what cannot be passed never settles
      }
    };
    promise.then(settle("resolve"), settle("reject"));
    return number;
  }

  const hidden = { ipcRenderer: null };
  return { ask, hide: (ipcRenderer) => (hidden.ipcRenderer = ipcRenderer) };
}

/** In the page's world, when the preload script has another: what is exposed arrives here. */
export function mainWorld({ secret }) {
  makeSide(secret, "page", "preload", (what, key, value) => {
    if (key in window) throw new Error("Cannot bind an API on top of an existing property on the window object");
    deepFreeze(value);
    Object.defineProperty(window, key, { value, writable: false, enumerable: true, configurable: false });
  });
}

/** For main's scripts: a value, or what was thrown, as a clone in text. The first of all: it tells that the page is there. */
export function helper({ here, helper }) {
  globalThis[here]("");
  delete globalThis[here];
  const hidden = (value) => ({ value, writable: false, enumerable: false, configurable: true });
  Object.defineProperty(globalThis, helper, hidden((done, value) => {
    try {
      return toText(encode([done, value]));
    } catch (error) {
      return toText(encode([false, error]));
    }
  }));
}

/** In the preload script's world, which without contextIsolation is the page's. Returns what starts the preload script. */
export function preloadWorld(config) {
  const post = globalThis[config.binding];
  delete globalThis[config.binding];
  const link = {
    post: (bytes) => post(toText(bytes)),
    postSync(bytes) {
      post(toText(bytes));
      const request = new XMLHttpRequest();
      const number = new DataView(bytes.buffer, bytes.byteOffset).getUint32(8, true);
      request.open("GET", `https://${config.secret}.invalid/?${number}`, false);
      request.send();
      return toBytes(request.responseText);
    },
    maxBytes: config.maxBytes,
  };
  let side = null;
  if (config.contextIsolation) side = makeSide(config.secret, "preload", "page", () => undefined);
  const renderer = createRenderer(link, {
    document: config.document,
    contextIsolation: config.contextIsolation,
    expose: side && ((key, value) => void side.ask("expose", key, value)),
    traced: config.traced,
  });
  side?.hide(renderer.electron.ipcRenderer);
  for (const name of ["MessageChannel", "MessagePort"]) {
    Object.defineProperty(globalThis, name, { value: renderer[name], writable: true, configurable: true });
  }
  const receive = { value: (text) => link.onmessage(toBytes(text)), enumerable: false, configurable: true };
  Object.defineProperty(globalThis, config.receive, receive);

  const few = {
    electron: renderer.electron,
    events: Object.assign(EventEmitter, { EventEmitter, default: EventEmitter }),
    timers: { setTimeout, setInterval, clearTimeout, clearInterval },
    url: { URL, URLSearchParams },
  };
  const require = (name) => {
    const plain = Text(name).replace(/^node:/, "").replace(/^electron\/(renderer|common)$/, "electron");
    if (Object.hasOwn(few, plain)) return few[plain];
    throw new Error(`module not found: ${name}`);
  };
  const process = Object.freeze({ ...config.process, on() {}, once() {} });
  if (!config.contextIsolation && config.nodeIntegration) {
    for (const [name, value] of Object.entries({ require, process, global: globalThis })) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
  }
  document.addEventListener("DOMContentLoaded", () => {
    renderer.tell(Kind.STATE, ["dom-ready", null]);
    renderer.ready();
  });
  window.addEventListener("load", () => setTimeout(() => renderer.tell(Kind.STATE, ["did-finish-load", null])));
  window.addEventListener("pagehide", () => renderer.release());
  Object.defineProperty(globalThis, config.start, {
    configurable: true,
    value(script, file, folder) {
      delete globalThis[config.start];
      const module = { exports: {} };
      try {
        script.call(module.exports, module.exports, require, module, file, folder, process, globalThis);
      } catch (error) {
        renderer.tell(Kind.STATE, ["preload-error", Text(error?.stack ?? error)]);
      }
    },
  });
}
