// What a page finds in a Node renderer: a window with timers, events, and as much of a document as scripts ask for.
//
// There is no layout, no style and no parser: innerHTML is text. Every world (the page's, the preload script's) has objects
// of its own; what elements hold is in the host, so that both worlds see it, as in Electron.

/** host: what node-host.js gives. Only functions of this world call its functions, and no object of it is shown. */
export function install(host, { MessageChannel, MessagePort, clone }) {
  const window = globalThis;
  const define = (name, value) => Object.defineProperty(window, name, { value, writable: true, configurable: true });
  const reading = (prototype, getters) => {
    for (const [name, get] of Object.entries(getters)) Object.defineProperty(prototype, name, { get, configurable: true });
  };

  // ----------------------------------------------------------------------------------------------------------------
  // Events

  class Event {
    #stopped = false;
    #stoppedNow = false;
    defaultPrevented = false;
    target = null;
    currentTarget = null;
    constructor(type, init = {}) {
      this.type = String(type);
      this.bubbles = Boolean(init.bubbles);
      this.cancelable = Boolean(init.cancelable);
      this.timeStamp = host.now();
      for (const [name, value] of Object.entries(init)) if (!(name in this)) this[name] = value;
    }
    preventDefault() { if (this.cancelable) this.defaultPrevented = true; }
    stopPropagation() { this.#stopped = true; }
    stopImmediatePropagation() { this.#stopped = this.#stoppedNow = true; }
    static stopped(event) { return event.#stopped; }
    static stoppedNow(event) { return event.#stoppedNow; }
  }
  const { stopped, stoppedNow } = Event;
  delete Event.stopped;
  delete Event.stoppedNow;
  class CustomEvent extends Event {
    constructor(type, init = {}) {
      super(type, init);
      this.detail = init.detail ?? null;
    }
  }

  const listeners = new WeakMap(); // by target, by type: entries { listener, once }
  const entriesOf = (target, type) => listeners.get(target)?.get(type) ?? [];
  const targetOf = (it) => it ?? window;

  class EventTarget {
    addEventListener(type, listener, options) {
      const target = targetOf(this);
      if (!listener || entriesOf(target, type).some((entry) => entry.listener === listener)) return;
      if (!listeners.has(target)) listeners.set(target, new Map());
      listeners.get(target).set(type, [...entriesOf(target, type), { listener, once: Boolean(options?.once) }]);
    }
    removeEventListener(type, listener) {
      const target = targetOf(this);
      listeners.get(target)?.set(type, entriesOf(target, type).filter((entry) => entry.listener !== listener));
    }
    dispatchEvent(event) {
      const target = targetOf(this);
      event.target = target;
      const path = [target];
      if (event.bubbles) for (let at = target; (at = parentOf(at)); ) path.push(at);
      for (const each of path) {
        if (stopped(event)) break;
        event.currentTarget = each;
        const on = each[`on${event.type}`];
        const called = typeof on === "function" ? [{ listener: on }] : [];
        for (const { listener, once } of [...called, ...entriesOf(each, event.type)]) {
          if (stoppedNow(event)) break;
          if (once) each.removeEventListener(event.type, listener);
          try {
            if (typeof listener === "function") listener.call(each, event);
            else listener.handleEvent(event);
          } catch (error) {
            host.report(error);
          }
        }
      }
      event.currentTarget = null;
      return !event.defaultPrevented;
    }
  }
  for (const name of ["addEventListener", "removeEventListener", "dispatchEvent"]) {
    define(name, EventTarget.prototype[name]);
  }

  // ----------------------------------------------------------------------------------------------------------------
  // The document. What a node is, its host knows by number.

  const nodes = new Map();
  const classes = { body: "HTMLBodyElement", button: "HTMLButtonElement", input: "HTMLInputElement", div: "HTMLDivElement" };

  class Element extends EventTarget {
    #number;
    style = {};
    constructor(number) {
      super();
      this.#number = number;
      Object.defineProperty(this, "style", { enumerable: false });
    }
    static numberOf(element) { return element.#number; }
    get [Symbol.toStringTag]() { return classes[host.tag(this.#number)] ?? "HTMLElement"; }

    get tagName() { return host.tag(this.#number).toUpperCase(); }
    get textContent() { return host.text(this.#number); }
    set textContent(text) { host.setText(this.#number, String(text)); }
    get parentNode() { return node(host.parent(this.#number)); }
    get children() { return host.children(this.#number).split(" ").filter(Boolean).map((each) => node(Number(each))); }

    getAttribute(name) { return host.attribute(this.#number, String(name)); }
    setAttribute(name, value) { host.setAttribute(this.#number, String(name), String(value)); }
    hasAttribute(name) { return this.getAttribute(name) !== null; }
    removeAttribute(name) { host.setAttribute(this.#number, String(name), null); }
    toggleAttribute(name, on = !this.hasAttribute(name)) {
      if (on) this.setAttribute(name, "");
      else this.removeAttribute(name);
      return on;
    }

    append(...added) {
      for (const each of added) {
        const child = each instanceof Element ? each : document.createTextNode(each);
        host.insert(this.#number, numberOf(child), -1);
      }
    }
    prepend(...added) {
      for (const each of added.reverse()) {
        const child = each instanceof Element ? each : document.createTextNode(each);
        host.insert(this.#number, numberOf(child), 0);
      }
    }
    appendChild(child) {
      this.append(child);
      return child;
    }
    insertBefore(child, before) {
      host.insert(this.#number, numberOf(child), before ? this.children.indexOf(before) : -1);
      return child;
    }
    removeChild(child) {
      host.insert(-1, numberOf(child), -1);
      return child;
    }
    remove() { host.insert(-1, this.#number, -1); }
    replaceChildren(...added) {
      host.setText(this.#number, "");
      this.append(...added);
    }
    insertAdjacentHTML(_, text) { this.append(text); }
    insertAdjacentText(_, text) { this.append(text); }

    querySelectorAll(selector) { return find(String(selector), this); }
    querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
    matches(selector) { return find(String(selector), document).includes(this); }
    closest(selector) {
      for (let at = this; at instanceof Element; at = at.parentNode) if (at.matches(selector)) return at;
      return null;
    }
    contains(other) {
      for (let at = other; at; at = at.parentNode) if (at === this) return true;
      return false;
    }

    /** As when a person clicks: listeners of both worlds are called. */
    click() { if (!this.disabled) host.fire(this.#number, "click"); }
    focus() {}
    blur() {}

    get classList() {
      const names = () => (this.getAttribute("class") ?? "").split(/\s+/).filter(Boolean);
      const set = (list) => this.setAttribute("class", [...new Set(list)].join(" "));
      return {
        add: (...added) => set([...names(), ...added]),
        remove: (...gone) => set(names().filter((name) => !gone.includes(name))),
        contains: (name) => names().includes(name),
        toggle: (name, on = !names().includes(name)) => {
          set(on ? [...names(), name] : names().filter((other) => other !== name));
          return on;
        },
      };
    }
    get dataset() {
      const attribute = (name) => `data-${String(name).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
      return new Proxy({}, {
        get: (_, name) => this.getAttribute(attribute(name)) ?? undefined,
        set: (_, name, value) => (this.setAttribute(attribute(name), value), true),
        has: (_, name) => this.hasAttribute(attribute(name)),
      });
    }
  }
  const { numberOf } = Element;
  delete Element.numberOf;
  for (const [name, same] of Object.entries({ innerText: "textContent", innerHTML: "textContent", nodeValue: "textContent" })) {
    Object.defineProperty(Element.prototype, name, Object.getOwnPropertyDescriptor(Element.prototype, same));
  }
  reading(Element.prototype, {
    nodeName() { return this.tagName; },
    localName() { return this.tagName.toLowerCase(); },
    nodeType: () => 1,
    parentElement() { return this.parentNode instanceof Element ? this.parentNode : null; },
    childNodes() { return this.children; },
    firstChild() { return this.children[0] ?? null; },
    firstElementChild() { return this.children[0] ?? null; },
    lastChild() { return this.children.at(-1) ?? null; },
    lastElementChild() { return this.children.at(-1) ?? null; },
    childElementCount() { return this.children.length; },
    ownerDocument: () => document,
    isConnected() { return document.documentElement.contains(this); },
  });
  for (const [name, attribute] of Object.entries({ id: "id", className: "class", name: "name", type: "type", src: "src",
    href: "href", value: "value", placeholder: "placeholder", title: "title" })) {
    Object.defineProperty(Element.prototype, name, {
      get() { return this.getAttribute(attribute) ?? ""; },
      set(value) { this.setAttribute(attribute, value); },
      configurable: true,
    });
  }
  for (const name of ["disabled", "checked", "hidden", "selected", "readOnly"]) {
    Object.defineProperty(Element.prototype, name, {
      get() { return this.hasAttribute(name.toLowerCase()); },
      set(on) { this.toggleAttribute(name.toLowerCase(), Boolean(on)); },
      configurable: true,
    });
  }

  function node(number) {
    if (number < 0) return null;
    if (!nodes.has(number)) nodes.set(number, new Element(number));
    return nodes.get(number);
  }
  const parentOf = (target) =>
    target instanceof Element ? (target.parentNode ?? (target === document.documentElement ? document : null))
      : target === document ? window : null;

  class Document extends EventTarget {
    get [Symbol.toStringTag]() { return "HTMLDocument"; }
    get readyState() { return host.readyState(); }
    get title() { return this.querySelector("title")?.textContent ?? ""; }
    set title(text) {
      let title = this.querySelector("title");
      if (!title) this.head.append((title = this.createElement("title")));
      title.textContent = text;
    }
    get documentElement() { return node(host.root("html")); }
    get head() { return node(host.root("head")); }
    get body() { return node(host.root("body")); }
    get children() { return [this.documentElement]; }
    get defaultView() { return window; }
    get URL() { return host.url; }
    get location() { return window.location; }
    getElementById(id) { return node(host.byId(String(id))); }
    getElementsByTagName(name) { return this.querySelectorAll(name); }
    getElementsByClassName(name) { return this.querySelectorAll(`.${name}`); }
    querySelectorAll(selector) { return find(String(selector), this); }
    querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
    createElement(tag) { return node(host.create(String(tag).toLowerCase(), "")); }
    createTextNode(text) { return node(host.create("#text", String(text))); }
    createDocumentFragment() { return this.createElement("div"); }
    hasFocus() { return true; }
  }
  const document = new Document();

  /** Elements in their order that fit "div.note > #text [name=x], button". */
  function find(selector, within) {
    const every = [];
    const walk = (element) => {
      for (const child of element.children) {
        if (child.tagName !== "#TEXT") every.push(child);
        walk(child);
      }
    };
    walk(within);
    const fits = (element, simple) =>
      [...simple.matchAll(/([#.]?)([\w-]+|\*)|\[([\w-]+)(?:=["']?([^\]"']*)["']?)?\]/g)].every(([, mark, name, key, value]) => {
        if (key) return value === undefined ? element.hasAttribute(key) : element.getAttribute(key) === value;
        if (mark === "#") return element.id === name;
        if (mark === ".") return element.classList.contains(name);
        return name === "*" || element.localName === name.toLowerCase();
      });
    const chain = (element, parts) => {
      const last = parts.at(-1);
      if (!element || element === document || !fits(element, last)) return false;
      if (parts.length === 1) return true;
      const direct = parts.at(-2) === ">";
      const rest = parts.slice(0, direct ? -2 : -1);
      for (let at = element.parentNode; at; at = at.parentNode) {
        if (chain(at, rest)) return true;
        if (direct) return false;
      }
      return false;
    };
    const alternatives = selector.split(",").map((each) => each.replace(/>/g, " > ").trim().split(/\s+/));
    return every.filter((element) => alternatives.some((parts) => chain(element, parts)));
  }

  // ----------------------------------------------------------------------------------------------------------------
  // The window

  const url = new host.URL(host.url);
  const location = Object.create({ get [Symbol.toStringTag]() { return "Location"; } });
  for (const name of ["href", "protocol", "host", "hostname", "port", "pathname", "search", "hash"]) location[name] = url[name];
  location.origin = url.protocol === "file:" ? "file://" : "null";
  location.reload = () => host.reload();
  location.toString = () => url.href;

  for (const name of ["window", "self", "frames", "parent", "top"]) define(name, window);
  Object.defineProperty(window, Symbol.toStringTag, { value: "Window", configurable: true });
  define("document", document);
  define("location", location);
  define("origin", location.origin);
  define("navigator", { userAgent: host.userAgent, language: "en", languages: ["en"], platform: "Linux", onLine: false });
  define("console", {});
  for (const [name, level] of Object.entries({ log: "log", info: "info", warn: "warning", error: "error", debug: "debug",
    trace: "debug", dir: "log", table: "log" })) {
    window.console[name] = (...args) => host.console(level, args);
  }
  window.console.assert = (holds, ...args) => holds || host.console("error", ["Assertion failed:", ...args]);
  for (const name of ["group", "groupEnd", "groupCollapsed", "time", "timeEnd", "count", "clear"]) window.console[name] = () => {};

  const run = (callback, args) => (typeof callback === "function" ? () => callback(...args) : () => (0, eval)(String(callback)));
  define("setTimeout", (callback, ms, ...args) => host.timer(run(callback, args), Number(ms) || 0, false));
  define("setInterval", (callback, ms, ...args) => host.timer(run(callback, args), Number(ms) || 0, true));
  define("requestAnimationFrame", (callback) => host.timer(() => callback(host.now()), 16, false));
  define("requestIdleCallback", (callback) => host.timer(() => callback({ didTimeout: false, timeRemaining: () => 10 }), 1, false));
  for (const name of ["clearTimeout", "clearInterval", "cancelAnimationFrame", "cancelIdleCallback"]) {
    define(name, (number) => host.stop(number));
  }
  define("queueMicrotask", (callback) => { Promise.resolve().then(callback); });
  define("performance", { now: () => host.now(), timeOrigin: host.timeOrigin, mark() {}, measure() {} });
  define("structuredClone", (value) => {
    try {
      return clone(value);
    } catch {
      throw new host.DOMException("Failed to execute 'structuredClone': An object could not be cloned.", "DataCloneError");
    }
  });
  for (const name of ["alert", "confirm", "prompt"]) define(name, (text) => void host.console("log", [`${name}: ${text}`]));
  for (const name of ["scrollTo", "focus", "blur", "print"]) define(name, () => {});

  define("open", () => null);
  define("close", () => host.close());

  class Notification extends EventTarget {
    static permission = "granted";
    static requestPermission() { return Promise.resolve("granted"); }
    constructor(title, options = {}) {
      super();
      Object.assign(this, { title: String(title), body: options.body ?? "" });
      host.console("log", [`notification: ${this.title}${this.body ? `: ${this.body}` : ""}`]);
    }
    close() {}
  }
  class ImageData {
    constructor(width, height) { Object.assign(this, { width, height, data: new Uint8ClampedArray(4 * width * height) }); }
    get [Symbol.toStringTag]() { return "ImageData"; }
  }
  class DOMMatrix {
    get [Symbol.toStringTag]() { return "DOMMatrix"; }
  }
  class Storage {
    #items = new Map();
    get length() { return this.#items.size; }
    getItem(name) { return this.#items.get(String(name)) ?? null; }
    setItem(name, value) { this.#items.set(String(name), String(value)); }
    removeItem(name) { this.#items.delete(String(name)); }
    clear() { this.#items.clear(); }
  }
  define("localStorage", new Storage());
  define("sessionStorage", new Storage());
  const made = { Event, CustomEvent, EventTarget, Element, HTMLElement: Element, Node: Element, Document, MessageChannel, MessagePort,
    ImageData, DOMMatrix, Storage, Notification };
  for (const [name, value] of Object.entries(made)) define(name, value);
  for (const name of ["MouseEvent", "KeyboardEvent", "InputEvent", "MessageEvent", "ErrorEvent", "SubmitEvent"]) {
    define(name, class extends Event {});
  }
  for (const name of host.names) define(name, host[name]);
  delete window.SharedArrayBuffer; // as in a page that is not isolated from other origins

  return {
    /** Something has happened to an element, or with -1 and -2 to the document and the window. */
    fire(number, type) {
      const target = number === -2 ? window : number === -1 ? document : node(number);
      target.dispatchEvent(new Event(type, { bubbles: type !== "load", cancelable: true }));
    },
  };
}
