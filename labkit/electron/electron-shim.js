// The renderer's side of Electron's IPC: what require("electron") gives a page or preload script, whatever the transport.
//
//     const renderer = createRenderer(link, { document: 1, contextIsolation: true, mainWorld });
//     const { ipcRenderer, contextBridge } = renderer.electron;
//     renderer.ready();                             // the page's scripts have run: what has waited is delivered
//
// link: { post(bytes), onmessage, [postSync(bytes) -> bytes], [now() -> BigInt nanoseconds], [maxBytes] }. The shim sets
// link.onmessage. A renderer without postSync cannot wait, so that sendSync is an error there. Frames: see frames.py.

import { decode, encode } from "./clone.js";

export const Kind = Object.freeze({
  SEND: 1, SEND_SYNC: 2, INVOKE: 3, POST: 4, SEND_TO_HOST: 5, STATE: 6, CONSOLE: 7, EVALUATED: 8, RECEIVED: 9,
  SEND_TO_PAGE: 32, POST_TO_PAGE: 33, REPLY: 34, FAILED: 35, REPLY_SYNC: 36, EVALUATE: 37, LOAD: 38,
  PORT_MESSAGE: 64, PORT_CLOSED: 65, PORT_RETURNED: 66, PORT_MOVED: 67,
});

const HEADER = 24;
const NOTHING = new Uint8Array(0);

/** A frame as bytes. */
export function pack(kind, clone = NOTHING, { number = 0, document = 0, ports = [], time = 0n, took = 0 } = {}) {
  const start = HEADER + 4 * ports.length;
  const bytes = new Uint8Array(start + clone.length);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, kind);
  view.setUint16(2, ports.length, true);
  view.setUint32(4, document, true);
  view.setUint32(8, number, true);
  if (time) view.setBigUint64(12, time, true);
  if (took) view.setUint32(20, took, true);
  for (let i = 0; i < ports.length; i++) view.setUint32(HEADER + 4 * i, ports[i], true);
  bytes.set(clone, start);
  return bytes;
}

/** A frame taken apart; its clone is not decoded yet. */
export function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = view.getUint16(2, true);
  const ports = [];
  for (let i = 0; i < count; i++) ports.push(view.getUint32(HEADER + 4 * i, true));
  return {
    kind: view.getUint8(0),
    document: view.getUint32(4, true),
    number: view.getUint32(8, true),
    ports,
    clone: bytes.subarray(HEADER + 4 * count),
  };
}

const CLONE_ERROR = "An object could not be cloned.";

export const tooLarge = (size, most) => `This message is too large: ${size} bytes, and ${most} can be sent`;

/** encode, whose errors are Electron's: a plain Error with the fixed text, also when a getter throws. */
function serialize(value, ports) {
  try {
    return encode(value, { ports });
  } catch {
    throw new Error(CLONE_ERROR);
  }
}

// --------------------------------------------------------------------------------------------------------------------
// Node's EventEmitter, as far as ipcRenderer has it

export class EventEmitter {
  #events = new Map(); // by name, entries { listener, once }

  #add(name, listener, once, first = false) {
    if (typeof listener !== "function") {
      const found = listener === null || listener === undefined ? String(listener) : `type ${typeof listener}`;
      throw new TypeError(`The "listener" argument must be of type function. Received ${found}`);
    }
    const entries = this.#events.get(name) ?? [];
    const entry = { listener, once };
    this.#events.set(name, first ? [entry, ...entries] : [...entries, entry]); // emit goes on with the list it began with
    return this;
  }

  #keep(name, entries) {
    if (entries.length) this.#events.set(name, entries);
    else this.#events.delete(name);
  }

  on(name, listener) { return this.#add(name, listener, false); }
  addListener(name, listener) { return this.#add(name, listener, false); }
  once(name, listener) { return this.#add(name, listener, true); }
  prependListener(name, listener) { return this.#add(name, listener, false, true); }
  prependOnceListener(name, listener) { return this.#add(name, listener, true, true); }

  removeListener(name, listener) {
    const entries = this.#events.get(name) ?? [];
    const last = entries.findLastIndex((entry) => entry.listener === listener);
    if (last >= 0) this.#keep(name, entries.filter((_, index) => index !== last));
    return this;
  }
  off(name, listener) { return this.removeListener(name, listener); }

  removeAllListeners(...names) {
    if (names.length) this.#events.delete(names[0]);
    else this.#events.clear();
    return this;
  }

  emit(name, ...args) {
    const entries = this.#events.get(name);
    if (!entries) {
      if (name !== "error") return false;
      if (args[0] instanceof Error) throw args[0];
      throw new Error("Unhandled error.");
    }
    for (const entry of entries) {
      if (entry.once) {
        if (entry.done) continue;
        entry.done = true;
        this.#keep(name, (this.#events.get(name) ?? []).filter((other) => other !== entry));
      }
      entry.listener.apply(this, args);
    }
    return true;
  }

  listenerCount(name) { return (this.#events.get(name) ?? []).length; }
  listeners(name) { return (this.#events.get(name) ?? []).map((entry) => entry.listener); }
  rawListeners(name) { return this.listeners(name); }
  eventNames() { return [...this.#events.keys()]; }
  setMaxListeners() { return this; }
  getMaxListeners() { return Infinity; }
}

// --------------------------------------------------------------------------------------------------------------------
// Message ports

/** Some tasks later, in order. A browser's own MessageChannel gives a task; a microtask would starve timers. */
function makeSchedule() {
  if (typeof globalThis.setImmediate === "function") return (task) => globalThis.setImmediate(task);
  if (typeof globalThis.MessageChannel !== "function") return (task) => Promise.resolve().then(task);
  const { port1, port2 } = new globalThis.MessageChannel();
  const tasks = [];
  port1.onmessage = () => tasks.shift()();
  return (task) => {
    tasks.push(task);
    port2.postMessage(0);
  };
}

function makePorts(link, context) {
  const { fit } = context;
  const schedule = context.schedule ?? makeSchedule();
  const table = new Map(); // by number, the ends that live here and whose peers are behind main
  const alive = new Set(); // started ports live as long as their peer may post
  const collected = new FinalizationRegistry((end) => !end.started && end.close());
  let next = 1; // ours are odd

  const send = (kind, number, clone, ports) => {
    const time = kind === Kind.PORT_MESSAGE ? context.now() : 0n;
    if (!context.released) link.post(pack(kind, clone, { number, ports, time, document: context.document }));
  };

  /** One end of a channel. It outlives the MessagePort objects that stand for it one after another. */
  class End {
    peer = null; // an End that lives here too, or
    number = 0; // of an end whose peer is behind main
    queue = []; // { clone, ends } from here, { clone, numbers } from main
    started = false;
    closed = false;
    port = null; // WeakRef of the MessagePort; null while it travels

    deliver(entry) {
      this.queue.push(entry);
      if (this.started) schedule(() => this.pump());
    }

    pump() {
      const port = this.port?.deref();
      if (!port || !this.started) return;
      const entry = this.queue.shift();
      if (entry) {
        const ports = (entry.ends ?? entry.numbers.map(arrive)).map((end) => new MessagePort(end, KEY));
        try {
          const data = decode(entry.clone, { ports });
          port[FIRE]("message", { data, ports, origin: "", lastEventId: "", source: null });
        } catch (error) {
          context.report(error);
        }
      }
      if (this.peerClosed && !this.queue.length) this.gone();
    }

    post(clone, ends) {
      if (this.closed) return ends.forEach((end) => end.close());
      if (this.peer) this.peer.deliver({ clone, ends });
      else if (this.number) depart(ends, (numbers) => send(Kind.PORT_MESSAGE, this.number, clone, numbers));
    }

    close() {
      if (this.closed) return;
      this.closed = true;
      const { peer, number } = this;
      this.detach();
      if (peer) schedule(() => peer.hangUp());
      else if (number && table.get(number) === this) {
        table.delete(number);
        send(Kind.PORT_CLOSED, number);
      }
      for (const entry of this.queue) entry.ends?.forEach((end) => end.close());
    }

    /** The other end has been closed. What is queued comes first, also when the port is not started yet. */
    hangUp() {
      if (this.closed || this.peerClosed) return;
      this.peerClosed = true;
      if (!this.queue.length) this.gone();
      else if (this.started) schedule(() => this.pump());
    }

    gone() {
      if (this.closed) return;
      const port = this.port?.deref();
      if (!port) return; // travelling: whoever receives it is told
      this.closed = true;
      table.delete(this.number);
      this.detach();
      port[FIRE]("close", {});
    }

    detach() {
      const port = this.port?.deref();
      if (port) alive.delete(port);
    }
  }

  /** The end that main has given this number to. */
  function arrive(number) {
    const end = new End();
    end.number = number;
    table.set(number, end);
    return end;
  }

  /** Hand ends to main: `post` sends the frame that carries their numbers, and what they had queued follows. */
  function depart(ends, post) {
    const later = [];
    const numbers = ends.map((end) => {
      if (end.number && table.get(end.number) === end) {
        const { number, queue } = end;
        table.delete(number); // what still comes for it is sent back, see receive
        for (const { clone, numbers } of queue) later.push(() => send(Kind.PORT_RETURNED, number, clone, numbers));
        return number;
      }
      const number = next;
      next += 2;
      const { peer, queue } = end;
      if (peer && !peer.closed) {
        peer.peer = null;
        peer.number = number;
        table.set(number, peer);
      }
      for (const { clone, ends } of queue) {
        later.push(() => {
          try {
            fit(clone, ends);
          } catch (error) {
            ends.forEach((end) => end.close());
            return context.report(error);
          }
          depart(ends, (numbers) => send(Kind.PORT_MESSAGE, number, clone, numbers));
        });
      }
      if (!peer || peer.closed) later.push(() => send(Kind.PORT_CLOSED, number));
      return number;
    });
    post(numbers);
    later.forEach((task) => task());
  }

  const KEY = Symbol("only the shim makes ports");
  const FIRE = Symbol("fire");

  let is, isNeutered, take; // for us, not for those who hold a port
  class MessagePort {
    #end;
    #listeners = new Map();
    #onmessage = null;

    constructor(end, key) {
      if (key !== KEY) throw new TypeError("Illegal constructor");
      this.#end = end;
      end.port = new WeakRef(this);
      end.started = false;
      collected.register(this, end, this);
      if (end.peerClosed && !end.queue.length) schedule(() => end.gone());
      // Neither enumerable nor an own field: a page that looks at a port sees what it sees in Electron.
      for (const name of ["onclose", "onmessageerror"]) {
        Object.defineProperty(this, name, { value: null, writable: true, enumerable: false });
      }
    }

    get [Symbol.toStringTag]() { return "MessagePort"; }

    static {
      is = (value) => typeof value === "object" && value !== null && #end in value;
      isNeutered = (port) => port.#end === null;
      take = (port) => {
        const end = port.#end; // somebody else's from now on
        collected.unregister(port);
        alive.delete(port);
        port.#end = null;
        end.port = null;
        end.started = false;
        return end;
      };
    }

    postMessage(message, transfer) {
      if (!arguments.length) {
        throw new TypeError("Failed to execute 'postMessage' on 'MessagePort': 1 argument required, but only 0 present.");
      }
      const list = [...(Array.isArray(transfer) ? transfer : (transfer?.transfer ?? []))];
      const refuse = (text) => {
        throw domException(`Failed to execute 'postMessage' on 'MessagePort': ${text}`, "DataCloneError");
      };
      const ports = list.filter(is);
      for (const [index, value] of list.entries()) {
        if (!is(value) && !(value instanceof ArrayBuffer)) {
          throw new TypeError(
            `Failed to execute 'postMessage' on 'MessagePort': Value at index ${index} does not have a transferable type.`,
          );
        }
        if (value === this) refuse(`Port at index ${index} contains the source port.`);
        if (list.indexOf(value) !== index) refuse(`Port at index ${index} is a duplicate.`);
        if (is(value) && isNeutered(value)) refuse(`Port at index ${index} is already neutered.`);
      }
      let clone;
      try {
        clone = encode(message, { ports });
      } catch {
        refuse(CLONE_ERROR);
      }
      if (this.#end?.number) fit(clone, ports); // while the ports are still the page's
      for (const value of list) if (value instanceof ArrayBuffer) value.transfer?.();
      const ends = ports.map(take);
      if (this.#end) this.#end.post(clone, ends);
      else ends.forEach((end) => end.close());
    }

    start() {
      const end = this.#end;
      if (!end || end.started || end.closed) return;
      end.started = true;
      alive.add(this);
      for (let waiting = end.queue.length; waiting > 0; waiting--) schedule(() => end.pump());
    }

    close() {
      this.#end?.close();
    }

    get onmessage() { return this.#onmessage; }
    set onmessage(listener) {
      this.#onmessage = typeof listener === "function" ? listener : null;
      if (this.#onmessage) this.start();
    }

    addEventListener(type, listener, options) {
      if (!listener) return;
      const entries = this.#listeners.get(type) ?? [];
      if (entries.some((entry) => entry.listener === listener)) return;
      this.#listeners.set(type, [...entries, { listener, once: Boolean(options?.once) }]);
    }
    removeEventListener(type, listener) {
      this.#listeners.set(type, (this.#listeners.get(type) ?? []).filter((entry) => entry.listener !== listener));
    }
    dispatchEvent(event) {
      this[FIRE](event.type, event);
      return true;
    }

    [FIRE](type, fields) {
      const event = { type, target: this, currentTarget: this, ...fields };
      const handler = type === "message" ? this.#onmessage : this[`on${type}`];
      const call = (listener) => {
        try {
          if (typeof listener === "function") listener.call(this, event);
          else listener.handleEvent(event);
        } catch (error) {
          context.report(error);
        }
      };
      if (typeof handler === "function") call(handler);
      for (const entry of this.#listeners.get(type) ?? []) {
        if (entry.once) this.removeEventListener(type, entry.listener);
        call(entry.listener);
      }
    }
  }

  class MessageChannel {
    constructor() {
      const one = new End();
      const two = new End();
      one.peer = two;
      two.peer = one;
      this.port1 = new MessagePort(one, KEY);
      this.port2 = new MessagePort(two, KEY);
    }
  }

  /** A frame about a port. */
  function receive({ kind, number, clone, ports }) {
    const end = table.get(number);
    if (kind === Kind.PORT_MESSAGE) {
      if (end) end.deliver({ clone: clone.slice(), numbers: ports });
      else send(Kind.PORT_RETURNED, number, clone, ports); // we have given it away meanwhile
    } else if (kind === Kind.PORT_CLOSED) {
      end?.hangUp();
    } else if (kind === Kind.PORT_MOVED) {
      send(Kind.PORT_MOVED, number);
    }
  }

  /** The ports of a frame, for whoever gets it. */
  const open = (numbers) => numbers.map((number) => new MessagePort(arrive(number), KEY));
  return { MessageChannel, MessagePort, receive, open, depart, is, take, isNeutered };
}

/** A MessageChannel for a world whose ports never leave it. */
export const localPorts = (report, schedule) => makePorts({ post() {} }, { report, schedule, fit() {}, now: () => 0n });

function domException(message, name) {
  if (typeof DOMException === "function") return new DOMException(message, name);
  return Object.assign(new Error(message), { name });
}

// --------------------------------------------------------------------------------------------------------------------
// contextBridge

/**
 * What the bridge needs of a world: things made there, with that world's own prototypes. Run it in each world.
 *
 * No function, no error and no array of one world may come into the hands of a script of the other: it would lead to that
 * world's Function, which makes code there. So only that world itself calls its functions and listens to its promises, and
 * clones cross as text.
 */
export function worldTools() {
  const { Object: object, Error: error, TypeError: typeError, Promise: promise, Array: array, Uint8Array: bytes } = globalThis;
  const { apply } = globalThis.Reflect;
  const { then } = promise.prototype;
  const { fromCharCode } = String;
  const { charCodeAt } = String.prototype;
  return {
    global: globalThis,
    object: () => new object(),
    array: () => new array(),
    error: (message) => new error(message),
    typeError: (message) => new typeError(message),
    promise: (executor) => new promise(executor),
    /** `call` gives { value } or { failed }; that it throws itself happens only where the stack is full. */
    proxy: (call) => function (...args) {
      let told;
      try {
        told = call(args);
      } catch {
        throw new error(NOT_AN_ERROR);
      }
      if (told.failed) throw told.failed;
      return told.value;
    },
    call: (callee, args) => apply(callee, undefined, args),
    then(value, resolved, rejected) {
      const safely = (call) => (result) => {
        try {
          call(result);
        } catch {
          // what cannot be passed never settles
        }
      };
      apply(then, value, [safely(resolved), safely(rejected)]);
    },
    decode(text) {
      const clone = new bytes(text.length);
      for (let i = 0; i < text.length; i++) clone[i] = apply(charCodeAt, text, [i]);
      return decode(clone);
    },
    encode(value) {
      const clone = serialize(value);
      let text = "";
      for (let i = 0; i < clone.length; i += 0x8000) text += apply(fromCharCode, null, clone.subarray(i, i + 0x8000));
      return text;
    },
  };
}

export const MOST_NESTED = 1000;
export const TOO_DEEP =
  "Electron contextBridge recursion depth exceeded.  Nested objects deeper than 1000 are not supported.";
const NOT_AN_ERROR =
  "An unknown exception occurred in the isolated context, an error occurred but a valid exception was not thrown.";

export const tag = (value) => Object.prototype.toString.call(value).slice(8, -1);
export const isError = (value) => value instanceof Error || (typeof value === "object" && value !== null && tag(value) === "Error");

/** Passed by reference: what belongs to the document, and blobs. */
export const isPlatform = (value) =>
  /^(HTML|SVG)?\w*(Element|Document)$|^(Node|Text|Blob|File)$/.test(tag(value)) && tag(value) !== "Object";

export function isPlain(value) {
  const kind = tag(value);
  if (/^(Arguments|Date|RegExp|Map|Set|WeakMap|WeakSet|Promise|ArrayBuffer|SharedArrayBuffer|DataView)$/.test(kind)) return false;
  if (/Array$|^(Number|String|Boolean|Symbol|BigInt|Generator|Module)$|Iterator$/.test(kind)) return false;
  return true;
}

/** The message of what was thrown or is an error, whatever it does when it is looked at. */
export function messageOf(error) {
  try {
    const message = isError(error) ? error.message : undefined;
    return typeof message === "string" ? message : NOT_AN_ERROR;
  } catch {
    return NOT_AN_ERROR;
  }
}

/** Pass values from one world to another, as Electron does: copied, functions and promises by proxy. */
function makeBridge(here, there, originals, proxies, hidden) {
  const worlds = new Map([[here, there], [there, here]]);
  const refusals = new WeakSet(); // errors of ours, made in the world that gets them

  function refuse(error) {
    refusals.add(error);
    throw error;
  }

  function pass(value, from, depth, cache, errorsIn) {
    const to = worlds.get(from);
    if (depth >= MOST_NESTED) refuse(errorsIn.typeError(TOO_DEEP));
    if (value === null || (typeof value !== "object" && typeof value !== "function")) return value;
    if (cache.has(value)) return cache.get(value);
    if (typeof value === "function") return passFunction(value, from, cache);
    if (hidden.has(value)) return to.object();
    const kind = tag(value);
    if (kind === "Promise") {
      const passed = to.promise((resolve, reject) => {
        const passing = (settle) => (result) => settle(pass(result, from, 0, new Map(), from));
        from.then(value, passing(resolve), passing(reject));
      });
      cache.set(value, passed);
      return passed;
    }
    if (isError(value)) return to.error(messageOf(value));
    if (Array.isArray(value)) {
      const copy = to.array();
      cache.set(value, copy);
      for (let i = 0; i < value.length; i++) copy[i] = pass(value[i], from, depth + 1, cache, errorsIn);
      return copy;
    }
    if (isPlatform(value)) return value;
    if (isPlain(value)) {
      const copy = to.object();
      cache.set(value, copy);
      for (const key of Object.keys(value)) {
        const passed = pass(value[key], from, depth + 1, cache, errorsIn);
        Object.defineProperty(copy, key, { value: passed, writable: true, enumerable: true, configurable: true });
      }
      return copy;
    }
    let text;
    try {
      text = from.encode(value);
    } catch {
      refuse(errorsIn.error(CLONE_ERROR));
    }
    const copy = to.decode(text);
    cache.set(value, copy);
    return copy;
  }

  function passFunction(value, from, cache) {
    const to = worlds.get(from);
    if (originals.has(value)) return originals.get(value);
    if (proxies.has(value)) return proxies.get(value);
    const proxy = to.proxy((args) => {
      const cache = new Map();
      try {
        const passed = from.array();
        for (let i = 0; i < args.length; i++) passed[i] = pass(args[i], to, 0, cache, to);
        return { value: pass(from.call(value, passed), from, 0, cache, to) };
      } catch (error) {
        return { failed: refusals.has(error) ? error : to.error(messageOf(error)) };
      }
    });
    originals.set(proxy, value);
    proxies.set(value, proxy);
    cache.set(value, proxy);
    return proxy;
  }

  return (value) => pass(value, here, 0, new Map(), here);
}

export function deepFreeze(value, seen = new Set()) {
  if (value === null || (typeof value !== "object" && typeof value !== "function")) return;
  if (ArrayBuffer.isView(value) || isPlatform(value) || seen.has(value)) return;
  seen.add(value);
  for (const key of Reflect.ownKeys(value)) {
    const descriptor = Object.getOwnPropertyDescriptor(value, key);
    if (descriptor && "value" in descriptor) deepFreeze(descriptor.value, seen);
  }
  Object.freeze(value);
}

function makeContextBridge(options, hidden) {
  const isolated = options.contextIsolation && (options.mainWorld || options.expose);
  const here = options.mainWorld && worldTools();
  const pass = here && makeBridge(here, options.mainWorld, new WeakMap(), new WeakMap(), hidden);
  return Object.freeze({
    exposeInMainWorld(key, api) {
      if (!isolated) throw new Error("contextBridge API can only be used when contextIsolation is enabled");
      if (typeof key !== "string") throw new TypeError(conversionFailure(0, key));
      if (options.expose) {
        options.expose(key, api);
        return;
      }
      const window = options.mainWorld.global;
      if (key in window) {
        throw new Error("Cannot bind an API on top of an existing property on the window object");
      }
      const passed = pass(api);
      deepFreeze(passed);
      Object.defineProperty(window, key, { value: passed, writable: false, enumerable: true, configurable: false });
    },
  });
}

// --------------------------------------------------------------------------------------------------------------------
// ipcRenderer

/** As Electron words it: what it cannot show as text it leaves out. */
const conversionFailure = (index, value) =>
  `Error processing argument at index ${index}, conversion failure from ${value === null || value === undefined ? value : ""}`;

/**
 * The renderer's side of one document.
 *
 * options:
 *   document          which load of the window this is; frames carry it
 *   contextIsolation  whether the page is in another world than the preload script
 *   mainWorld         worldTools() as the page's world has made them before any of its scripts ran
 *   expose(key, api)  in its place, where no object of that world can be touched: hands an API over by other means
 *   report(error)     called with what a listener throws; thrown in a task of its own unless given
 *   schedule(task)    runs a task a little later, in order
 *   traced            whether frames tell when they were sent, and main is told when one arrives
 */
export function createRenderer(link, options = {}) {
  const context = {
    document: options.document ?? 0,
    released: false,
    report: options.report ?? ((error) => setTimeout(() => { throw error; })),
    schedule: options.schedule,
    /** Refuses what is too large for main. */
    fit(clone, ports = []) {
      const size = HEADER + 4 * ports.length + clone.length;
      if (link.maxBytes && size > link.maxBytes) throw new Error(tooLarge(size, link.maxBytes));
    },
    now: link.now && options.traced ? () => link.now() : () => 0n,
  };
  const ports = makePorts(link, context);
  const { now, fit } = context;
  const waiting = new Map(); // invocations by number
  let number = 0;
  let held = []; // frames that have come before the page's scripts have run

  const since = (time) => (time ? Math.min(Number(now() - time), 0xffffffff) : 0);
  const nextNumber = () => (number = (number % 0xffffffff) + 1);

  function frame(kind, clone, fields) {
    fit(clone, fields.ports);
    return pack(kind, clone, { ...fields, document: context.document });
  }

  function mustBeHere() {
    if (context.released) throw new Error("IPC method called after context was released");
  }

  function message(kind, channel, args, fields) {
    const time = now();
    if (typeof channel !== "string") throw new TypeError(conversionFailure(kind === Kind.SEND_TO_HOST ? 0 : 1, channel));
    mustBeHere();
    const clone = serialize([channel, ...args]);
    return frame(kind, clone, { time, took: since(time), number: nextNumber(), ...fields });
  }

  class IpcRenderer extends EventEmitter {
    send(channel, ...args) {
      link.post(message(Kind.SEND, channel, args));
    }

    sendSync(channel, ...args) {
      const bytes = message(Kind.SEND_SYNC, channel, args);
      if (!link.postSync) {
        throw new Error(
          "ipcRenderer.sendSync() does not exist in this window: its renderer cannot wait for main. Use ipcRenderer.invoke()",
        );
      }
      const answer = unpack(link.postSync(bytes));
      received(answer);
      try {
        return decode(answer.clone);
      } catch {
        throw new Error(CLONE_ERROR); // main's language knows it, this one does not
      }
    }

    async invoke(channel, ...args) {
      const bytes = message(Kind.INVOKE, channel, args);
      const { number } = unpack(bytes);
      const answer = new Promise((resolve, reject) => waiting.set(number, { channel, resolve, reject }));
      try {
        link.post(bytes);
      } catch (error) {
        waiting.delete(number);
        throw error;
      }
      return answer;
    }

    postMessage(channel, message, transfer) {
      const time = now();
      if (typeof channel !== "string") throw new TypeError(conversionFailure(0, channel));
      mustBeHere();
      const list = Array.isArray(transfer) ? [...transfer] : [];
      const clone = serialize([channel, message], list.filter(ports.is));
      const invalid =
        (transfer !== undefined && !Array.isArray(transfer)) ||
        list.some((port, index) => !ports.is(port) || ports.isNeutered(port) || list.indexOf(port) !== index);
      if (invalid) throw new TypeError("Invalid value for transfer");
      fit(clone, list); // while the ports are still the page's
      const took = since(time);
      ports.depart(list.map(ports.take), (numbers) => {
        link.post(frame(Kind.POST, clone, { ports: numbers, time, took, number: nextNumber() }));
      });
    }

    sendToHost(channel, ...args) {
      link.post(message(Kind.SEND_TO_HOST, channel, args));
    }
  }
  const ipcRenderer = new IpcRenderer();

  function emit(channel, ports, args) {
    try {
      ipcRenderer.emit(channel, { sender: ipcRenderer, ports }, ...args);
    } catch (error) {
      context.report(error);
    }
  }

  /** Tells main when a message has come, if it wants to know. */
  function received({ kind, number }) {
    if (options.traced && kind !== Kind.EVALUATE && kind <= Kind.PORT_MESSAGE) {
      link.post(pack(Kind.RECEIVED, new Uint8Array([kind]), { number, document: context.document, time: now() }));
    }
  }

  function receive(bytes) {
    try {
      deliver(bytes);
    } catch (error) {
      context.report(error); // and go on with what comes next
    }
  }

  function deliver(bytes) {
    const parts = unpack(bytes);
    if (context.released || parts.document !== context.document) return;
    const { kind, number, clone } = parts;
    // A script that awaits an answer while the page is loading gets it, but not before what was sent before the answer.
    const isAnswer = kind === Kind.REPLY || kind === Kind.FAILED;
    if (held && !(isAnswer && (renderer.preloading || !held.length))) {
      held.push(bytes.slice());
      return;
    }
    received(parts);
    if (kind === Kind.SEND_TO_PAGE) {
      const [channel, ...args] = decode(clone);
      emit(channel, [], args);
    } else if (kind === Kind.POST_TO_PAGE) {
      const opened = ports.open(parts.ports);
      const [channel, value] = decode(clone, { ports: opened });
      emit(channel, opened, [value]);
    } else if (kind === Kind.REPLY || kind === Kind.FAILED) {
      const invocation = waiting.get(number);
      if (!invocation) return;
      waiting.delete(number);
      const fail = (text) => invocation.reject(new Error(`Error invoking remote method '${invocation.channel}': ${text}`));
      let value;
      try {
        value = decode(clone);
      } catch {
        return fail(`Error: ${CLONE_ERROR}`); // main's language knows it, this one does not: a pattern of Python's re
      }
      // Electron asks whether the text of the error is true: an empty one counts as success.
      if (kind === Kind.REPLY) invocation.resolve(value);
      else if (!value) invocation.resolve(undefined);
      else fail(value);
    } else if (kind >= Kind.PORT_MESSAGE) {
      ports.receive(parts);
    } else {
      options.onframe?.(parts);
    }
  }
  link.onmessage = receive;

  const contextBridge = makeContextBridge(options, new Set([ipcRenderer]));
  const renderer = {
    electron: { ipcRenderer, contextBridge },
    /** While the page waits for its preload script, which may await an answer. */
    preloading: false,
    MessageChannel: ports.MessageChannel,
    MessagePort: ports.MessagePort,
    /** The page's scripts have run, or wait for something: deliver what has come meanwhile, and from now on at once. */
    ready() {
      const come = held ?? [];
      held = null;
      come.forEach(receive);
    },
    /** Tell main something: a frame of a kind that holds a value. */
    tell(kind, value, number = 0) {
      if (context.released) return;
      let clone = encode(value);
      try {
        fit(clone);
      } catch (error) {
        clone = encode([false, error.message]); // of a script, the only thing here that can be large
      }
      link.post(pack(kind, clone, { number, document: context.document }));
    },
    /** The document is gone: whoever still holds ipcRenderer is told so, and nothing is delivered any more. */
    release() {
      context.released = true;
      waiting.clear();
    },
  };
  return renderer;
}
