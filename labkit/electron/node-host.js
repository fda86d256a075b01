// Runs a window's page and preload script in this Node process: see node.py, which starts it.
//
//     node --experimental-vm-modules ... node-host.js IN OUT ANSWERS     descriptors of sockets
//
// Each world, the page's and the preload script's, is a vm context. Main's world, this file, may not make code from strings
// (--disallow-code-generation-from-strings) and its prototypes cannot be changed (--frozen-intrinsics), so that a page that
// gets hold of a function of it gains little. But a vm context is no wall: Node says so, and whoever wants one runs the page
// in a browser.

import buffer from "node:buffer";
import fs from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import util from "node:util";
import vm from "node:vm";

import { decode, encode } from "./clone.js";
import { Kind, pack, unpack } from "./electron-shim.js";

const [IN, OUT, ANSWERS] = process.argv.slice(2).map(Number);
if (!vm.constants?.DONT_CONTEXTIFY) {
  process.stderr.write(`Node ${process.version} is too old for a window: it takes 20.18 or newer\n`);
  process.exit(1);
}

// ------------------------------------------------------------------------------------------------------------------
// The link

/** Waits while main does not read: a page that floods main is slowed down to main's pace. */
function write(bytes) {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bytes.length);
  let parts = [length, bytes];
  try {
    for (let left = 4 + bytes.length; left > 0; ) {
      const written = fs.writevSync(OUT, parts);
      left -= written;
      if (left) parts = [Buffer.concat(parts).subarray(written)];
    }
  } catch {
    process.exit(0); // main has gone
  }
}

function readExactly(size) {
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; ) {
    const read = fs.readSync(ANSWERS, bytes, at, size - at);
    if (read === 0) process.exit(0);
    at += read;
  }
  return bytes;
}

/** Send a frame and wait for the answer in read(2); nothing else happens in this process meanwhile. */
function writeAndWait(bytes) {
  write(bytes);
  return readExactly(readExactly(4).readUInt32LE());
}

let coming = Buffer.alloc(0);
let chunks = [];
let missing = 4;
const socket = new net.Socket({ fd: IN, readable: true, writable: false });
socket.on("data", (chunk) => {
  chunks.push(chunk);
  missing -= chunk.length;
  if (missing > 0) return;
  coming = chunks.length === 1 ? chunk : Buffer.concat([coming, ...chunks].filter((each) => each.length));
  chunks = [];
  let at = 0;
  while (coming.length - at >= 4) {
    const size = coming.readUInt32LE(at);
    if (coming.length - at < 4 + size) break;
    const frame = new Uint8Array(coming.subarray(at + 4, at + 4 + size));
    at += 4 + size;
    receive(frame);
  }
  coming = coming.subarray(at);
  missing = (coming.length >= 4 ? 4 + coming.readUInt32LE(0) : 4) - coming.length;
  if (coming.length) chunks = [coming];
  coming = Buffer.alloc(0);
});
socket.on("end", () => process.exit(0));
socket.on("error", () => process.exit(0));

let current = null;

function receive(bytes) {
  if (bytes[0] !== Kind.LOAD) {
    current?.link.onmessage(bytes);
    return;
  }
  current?.release();
  current = new Document(decode(unpack(bytes).clone));
  current.load().catch((error) => current.report(error));
}

process.on("uncaughtException", (error) => current?.report(error));
process.on("unhandledRejection", (error) => current?.report(error, " (in promise)"));

// ------------------------------------------------------------------------------------------------------------------
// Worlds

const here = path.dirname(fileURLToPath(import.meta.url));
const SOURCES = new Map(
  ["clone.js", "electron-shim.js", "node-page.js"].map((name) => [name, fs.readFileSync(path.join(here, name), "utf8")]),
);
const TYPES = {
  types: Object.fromEntries(["isProxy", "isArgumentsObject", "isNativeError"].map((name) => [name, util.types[name]])),
};

/** A vm context with the library's modules in it, made there: their objects are that world's own. */
class World {
  static async make(name) {
    const world = new World();
    world.global = vm.createContext(vm.constants.DONT_CONTEXTIFY, { name });
    const { global } = world;
    // The codec asks Node what is a Proxy, once; scripts do not find it.
    global.process = { getBuiltinModule: () => TYPES };
    Object.assign(global, { TextEncoder, TextDecoder });
    const modules = new Map();
    const load = (name) => {
      if (!modules.has(name)) {
        modules.set(name, new vm.SourceTextModule(SOURCES.get(name), { context: global, identifier: `labkit:${name}` }));
      }
      return modules.get(name);
    };
    for (const each of SOURCES.keys()) {
      await load(each).link((specifier) => load(specifier.slice(2)));
      await load(each).evaluate();
    }
    delete global.process;
    const [clone, shim, page] = [...SOURCES.keys()].map((each) => modules.get(each).namespace);
    return Object.assign(world, { clone, shim, page });
  }
}

const HOST_NAMES = ["URL", "URLSearchParams", "TextEncoder", "TextDecoder", "Blob", "File", "AbortController", "AbortSignal",
  "DOMException", "atob", "btoa"];
const host_values = { URL, URLSearchParams, TextEncoder, TextDecoder, Blob, File: buffer.File, AbortController, AbortSignal,
  DOMException, atob, btoa };

const textOf = (error) =>
  util.types.isNativeError(error) ? (error.stack ?? String(error)) : util.inspect(error, { customInspect: false });

/** Text of what is the page's, which may throw when it is looked at. */
function shown(make) {
  try {
    return String(make());
  } catch {
    return "something that cannot be shown";
  }
}

class Document {
  constructor(options) {
    this.options = options;
    this.elements = options.elements.map((each) => ({ ...each, attributes: { ...each.attributes }, children: [] }));
    this.elements.forEach((each, number) => this.elements[each.parent]?.children.push(number));
    for (const tag of ["html", "head", "body"]) this.root(tag);
    this.timers = new Map();
    this.lastTimer = 0;
    this.readyState = "loading";
    this.released = false;
    this.worlds = [];
    const now = () => process.hrtime.bigint();
    const early = []; // what comes before there is anybody to receive it
    this.link = { post: write, postSync: writeAndWait, now, maxBytes: options.maxBytes, onmessage: (bytes) => early.push(bytes) };
    this.early = early;
  }

  // The document's tree

  root(tag) {
    const found = this.elements.findIndex((each) => each.tag === tag);
    if (found >= 0) return found;
    const number = this.create(tag, "");
    const html = tag === "html" ? -1 : this.root("html");
    if (tag === "html") {
      for (const [other, each] of this.elements.entries()) if (each.parent === -1 && other !== number) this.insert(number, other, -1);
    } else {
      this.insert(html, number, tag === "head" ? 0 : -1);
      if (tag === "body") {
        for (const child of [...this.elements[html].children]) {
          if (!["head", "body"].includes(this.elements[child].tag)) this.insert(number, child, -1);
        }
      }
    }
    return number;
  }
  create(tag, text) {
    return this.elements.push({ tag, text, attributes: {}, children: [], parent: -1 }) - 1;
  }
  insert(parent, number, at) {
    for (let above = parent; above >= 0; above = this.elements[above].parent) if (above === number) return;
    const siblings = this.elements[this.elements[number].parent]?.children;
    siblings?.splice(siblings.indexOf(number), 1);
    this.elements[number].parent = parent;
    const children = this.elements[parent]?.children;
    children?.splice(at < 0 ? children.length : at, 0, number);
  }
  text(number) {
    const { text, children } = this.elements[number];
    return text + children.map((child) => this.text(child)).join("");
  }
  setText(number, text) {
    for (const child of [...this.elements[number].children]) this.insert(-1, child, -1);
    this.elements[number].text = text;
  }
  fire(number, type) {
    for (const each of this.worlds) each.fire(number, type);
  }

  // What a world is given

  host(world) {
    const document = this;
    const { elements } = this;
    const attribute = (number, name) => (Object.hasOwn(elements[number].attributes, name) ? elements[number].attributes[name] : null);
    return {
      ...host_values,
      names: HOST_NAMES,
      url: this.options.url,
      userAgent: `Mozilla/5.0 (Linux) Node/${process.versions.node}`,
      timeOrigin: performance.timeOrigin,
      now: () => performance.now(),
      report: (error) => this.report(error),
      readyState: () => this.readyState,
      reload: () => this.tell(Kind.STATE, ["reload", null]),
      close: () => this.tell(Kind.STATE, ["close", null]),
      console(level, args) {
        document.console(level, shown(() => util.formatWithOptions({ customInspect: false }, ...args)));
      },
      timer(callback, ms, repeat) {
        const number = ++document.lastTimer;
        const fire = () => {
          if (!repeat) document.timers.delete(number);
          callback();
        };
        if (!document.released) document.timers.set(number, repeat ? setInterval(fire, ms) : setTimeout(fire, ms));
        return number;
      },
      stop(number) {
        clearTimeout(document.timers.get(number)); // of an interval as well
        document.timers.delete(number);
      },
      tag: (number) => elements[number].tag,
      text: (number) => this.text(number),
      setText: (number, text) => this.setText(number, text),
      parent: (number) => elements[number].parent,
      children: (number) => elements[number].children.join(" "),
      attribute,
      setAttribute(number, name, value) {
        if (value === null) delete elements[number].attributes[name];
        else elements[number].attributes[name] = value;
      },
      insert: (parent, number, at) => this.insert(parent, number, at),
      create: (tag, text) => this.create(tag, text),
      root: (tag) => this.root(tag),
      byId: (id) => elements.findIndex((each, number) => attribute(number, "id") === id && this.isConnected(number)),
      fire: (number, type) => this.fire(number, type),
    };
  }
  isConnected(number) {
    return number === this.root("html") || (number >= 0 && this.isConnected(this.elements[number].parent));
  }

  // Telling main

  tell(kind, value, number = 0) {
    if (!this.released) write(pack(kind, encode(value), { number, document: this.options.document }));
  }
  console(level, text) {
    this.tell(Kind.CONSOLE, [level, text.length > 1e5 ? `${text.slice(0, 1e5)}...` : text]);
  }
  report(error, how = "") {
    this.console("error", `Uncaught${how} ${shown(() => textOf(error))}`);
  }
  release() {
    this.released = true;
    this.shim?.release();
    for (const timer of this.timers.values()) clearTimeout(timer);
    this.timers.clear();
  }

  // Loading

  async load() {
    const { options } = this;
    const preloadWorld = await World.make("preload");
    const pageWorld = options.contextIsolation ? await World.make("page") : preloadWorld;
    const { createRenderer } = preloadWorld.shim;
    this.shim = createRenderer(this.link, {
      document: options.document,
      contextIsolation: options.contextIsolation,
      mainWorld: options.contextIsolation ? pageWorld.shim.worldTools() : null,
      report: (error) => this.report(error),
      schedule: (task) => setImmediate(() => this.released || task()),
      traced: options.traced,
      onframe: (frame) => frame.kind === Kind.EVALUATE && this.evaluate(pageWorld, frame),
    });
    this.early.forEach((bytes) => this.link.onmessage(bytes));
    for (const world of new Set([preloadWorld, pageWorld])) {
      const clone = (value) => world.clone.decode(world.clone.encode(value));
      // A page that is walled off has ports of its own: by another world's it would get at that world.
      const { MessageChannel, MessagePort } = world === preloadWorld ? this.shim
        : world.shim.localPorts((error) => this.report(error), (task) => setImmediate(() => this.released || task()));
      this.worlds.push(world.page.install(this.host(world), { MessageChannel, MessagePort, clone }));
    }
    this.emitters = new Map([preloadWorld, pageWorld].map((world) => [world.global, world.shim]));
    if (options.nodeIntegration && !options.contextIsolation) this.giveNode(pageWorld.global, this.file(options.url));
    this.shim.preloading = true;
    if (options.preload) await this.preload(preloadWorld);
    this.shim.preloading = false;
    await this.scripts(pageWorld);
  }

  file(url) {
    return url.startsWith("file:") ? fileURLToPath(url) : path.join(process.cwd(), "page.js");
  }

  async preload(world) {
    const file = this.options.preload;
    try {
      const source = fs.readFileSync(file, "utf8");
      if (file.endsWith(".mjs")) {
        this.giveNode(world.global, file);
        delete world.global.require;
        await this.module(world, source, file);
      } else {
        const names = ["exports", "require", "module", "__filename", "__dirname", "process", "Buffer", "global"];
        const module = { exports: {} };
        const run = vm.compileFunction(source, names, {
          filename: file,
          parsingContext: world.global,
          importModuleDynamically: (specifier) => this.imported(world, specifier, file),
        });
        const give = [module.exports, this.require(world.global, file), module, file, path.dirname(file)];
        run.call(module.exports, ...give, this.process(), Buffer, world.global);
      }
    } catch (error) {
      this.tell(Kind.STATE, ["preload-error", shown(() => (util.types.isNativeError(error) ? error.stack ?? error : error))]);
    }
  }

  giveNode(global, file) {
    const values = { require: this.require(global, file), process: this.process(), Buffer, global };
    for (const [name, value] of Object.entries(values)) {
      Object.defineProperty(global, name, { value, writable: true, configurable: true });
    }
  }

  /** What a renderer is told about its process; nothing that it could do something with. */
  process() {
    const { platform, arch, pid, versions } = process;
    const { sandbox, contextIsolation } = this.options;
    const told = { type: "renderer", platform, arch, pid, sandboxed: sandbox, contextIsolated: contextIsolation, env: {}, argv: [] };
    const nothing = { on() { return this; }, once() { return this; }, cwd: () => path.dirname(this.file(this.options.url)) };
    const electron = { node: versions.node, chrome: versions.v8, v8: versions.v8, electron: "labkit" };
    return { ...told, ...nothing, versions: electron, nextTick: (task, ...args) => queueMicrotask(() => task(...args)) };
  }

  require(global, file) {
    const { EventEmitter } = this.emitters.get(global);
    const few = {
      electron: this.shim.electron,
      events: Object.assign(EventEmitter, { EventEmitter, default: EventEmitter }),
      timers: { setTimeout: global.setTimeout, setInterval: global.setInterval, clearTimeout: global.clearTimeout },
      url: { URL, URLSearchParams },
    };
    return (name) => {
      const plain = String(name).replace(/^node:/, "").replace(/^electron\/(renderer|common)$/, "electron");
      if (Object.hasOwn(few, plain)) return few[plain];
      if (this.options.sandbox) throw new Error(`module not found: ${name}`);
      const found = createRequire(file).resolve(name);
      if (!path.isAbsolute(found) || found.endsWith(".node") || found.includes("node_modules")) return createRequire(file)(name);
      return this.commonJs(global, found);
    };
  }

  commonJs(global, file) {
    this.loaded ??= new Map();
    if (!this.loaded.has(file)) {
      const source = fs.readFileSync(file, "utf8");
      const module = { exports: file.endsWith(".json") ? JSON.parse(source) : {} };
      this.loaded.set(file, module);
      if (!file.endsWith(".json")) {
        const names = ["exports", "require", "module", "__filename", "__dirname"];
        const run = vm.compileFunction(source, names, { filename: file, parsingContext: global });
        run.call(module.exports, module.exports, this.require(global, file), module, file, path.dirname(file));
      }
    }
    return this.loaded.get(file).exports;
  }

  // Modules

  async module(world, source, file) {
    const module = this.sourceModule(world, source, file);
    await module.link((specifier) => this.found(world, specifier, file));
    await module.evaluate();
    return module;
  }
  sourceModule(world, source, file) {
    return new vm.SourceTextModule(source, {
      context: world.global,
      identifier: file,
      initializeImportMeta: (meta) => (meta.url = pathToFileURL(file).href),
      importModuleDynamically: (specifier) => this.imported(world, specifier, file),
    });
  }
  async imported(world, specifier, file) {
    const module = await this.found(world, specifier, file);
    if (module.status === "unlinked") await module.link((each) => this.found(world, each, file));
    if (module.status === "linked") await module.evaluate();
    return module;
  }

  /** What `import ... from specifier` in a file means. */
  async found(world, specifier, file) {
    const electron = /^electron(\/renderer|\/common)?$/.test(specifier);
    const relative = /^(\.{0,2}\/|file:)/.test(specifier);
    if (!relative) {
      const allowed = electron && (this.options.preload === file || this.options.nodeIntegration);
      const values = allowed ? { ...this.shim.electron, default: this.shim.electron } : this.builtin(world, specifier, file);
      const names = Object.keys(values);
      return new vm.SyntheticModule(names, function () {
        for (const name of names) this.setExport(name, values[name]);
      }, { context: world.global, identifier: specifier });
    }
    if (!this.options.url.startsWith("file:") && [this.file(this.options.url), "data:"].includes(file)) {
      throw new TypeError(`Failed to fetch dynamically imported module: ${specifier}`); // that page is no file of this machine
    }
    world.modules ??= new Map(); // a module of the preload script is none of the page's
    const target = specifier.startsWith("file:") ? fileURLToPath(specifier) : path.resolve(path.dirname(file), specifier);
    if (!world.modules.has(target)) {
      const module = this.sourceModule(world, fs.readFileSync(target, "utf8"), target);
      world.modules.set(target, module);
      await module.link((each) => this.found(world, each, target));
    }
    return world.modules.get(target);
  }
  builtin(world, specifier, file) {
    if (!this.options.nodeIntegration && this.options.preload !== file) {
      throw new TypeError(`Failed to resolve module specifier "${specifier}". Relative references must start with either "/", "./", or "../".`);
    }
    const value = this.require(world.global, file)(specifier);
    return { ...value, default: value };
  }

  // The page

  async scripts(world) {
    const all = this.elements.filter((each) => each.tag === "script");
    const isModule = ({ attributes }) => attributes.type === "module";
    const isClassic = ({ attributes }) => !attributes.type || /^(text|application)\/(javascript|ecmascript)$/.test(attributes.type);
    const late = (each) => isModule(each) || ("defer" in each.attributes && "src" in each.attributes);
    for (const each of all) if (isClassic(each) && !late(each)) this.classic(world, each);
    this.readyState = "interactive";
    const running = [];
    for (const each of all.filter(late)) {
      if (isModule(each)) running.push(this.moduleScript(world, each));
      else if (isClassic(each)) this.classic(world, each);
    }
    await Promise.race([Promise.all(running), new Promise((go) => setTimeout(go, running.length && 50))]);
    this.fire(-1, "DOMContentLoaded");
    this.tell(Kind.STATE, ["dom-ready", null]);
    this.readyState = "complete";
    this.fire(-2, "load");
    this.shim.ready();
    this.tell(Kind.STATE, ["did-finish-load", null]);
  }

  /** The text of a script and the name that its errors go by, or null. */
  source(element) {
    if (!("src" in element.attributes)) return [element.text, this.file(this.options.url)];
    const { src } = element.attributes;
    try {
      const url = new URL(src, this.options.url);
      if (url.protocol === "data:") {
        const [head, ...body] = url.pathname.split(",");
        const text = body.join(",");
        return [head.endsWith(";base64") ? atob(text) : decodeURIComponent(text), "data:"];
      }
      if (url.protocol !== "file:" || !this.options.url.startsWith("file:")) throw new Error("net::ERR_BLOCKED_BY_CLIENT");
      const file = fileURLToPath(url);
      return [fs.readFileSync(file, "utf8"), file];
    } catch (error) {
      const why = error.code === "ENOENT" ? "net::ERR_FILE_NOT_FOUND" : error.message;
      this.console("error", `Failed to load resource: ${why} ${src}`);
      return null;
    }
  }

  classic(world, element) {
    const found = this.source(element);
    if (!found) return;
    const [text, filename] = found;
    try {
      const importModuleDynamically = (specifier) => this.imported(world, specifier, filename);
      new vm.Script(text, { filename, importModuleDynamically }).runInContext(world.global, { displayErrors: false });
    } catch (error) {
      this.report(error);
    }
  }

  async moduleScript(world, element) {
    const found = this.source(element);
    if (!found) return;
    try {
      await this.module(world, ...found);
    } catch (error) {
      this.report(error);
    }
  }

  async evaluate(world, { clone, number }) {
    const { decode, encode } = world.clone;
    let answer;
    try {
      const script = new vm.Script(decode(clone), {
        filename: "executeJavaScript",
        importModuleDynamically: (specifier) => this.imported(world, specifier, this.file(this.options.url)),
      });
      answer = encode([true, await script.runInContext(world.global, { displayErrors: false })]);
    } catch (error) {
      try {
        answer = encode([false, error]);
      } catch {
        answer = encode([false, "An object could not be cloned."]);
      }
    }
    const { document, maxBytes } = this.options;
    if (answer.length > maxBytes - 100) answer = encode([false, world.shim.tooLarge(answer.length, maxBytes)]);
    if (!this.released) write(pack(Kind.EVALUATED, answer, { number, document }));
  }
}
