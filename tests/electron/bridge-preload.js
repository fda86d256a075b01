const { contextBridge, ipcRenderer } = require("electron");

class A {
  constructor() { this.q = 1; }
  method() {}
}
let counter = 5;
contextBridge.exposeInMainWorld("api", {
  n: 123,
  arr: [1, { a: 1 }],
  obj: { x: { y: 1 } },
  fn: (a, b) => a + b,
  getArgs: (...args) => args.map((value) => Object.prototype.toString.call(value)),
  thrower: () => { throw new TypeError("oh no"); },
  throw123: () => { throw 123; },
  prom: () => Promise.resolve("ok"),
  rej: () => Promise.reject(new RangeError("i-rejected")),
  cb: (callback) => callback(1),
  klass: A,
  date: new Date(0),
  sym: Symbol("s"),
  ret: (value) => value,
  retClass: () => new A(),
  get getter() { return counter++; },
  invoke: (...args) => ipcRenderer.invoke(...args),
  map: new Map([[1, 2]]),
  undef: undefined,
  nul: null,
});

const results = {};
const attempt = (name, call) => {
  try {
    results[name] = String(call());
  } catch (error) {
    results[name] = `THROW ${error}`;
  }
};
const expose = (name, value) => contextBridge.exposeInMainWorld(name, value);
attempt("again", () => expose("api", {}));
attempt("overwindow", () => expose("document", {}));
attempt("rawipc", () => expose("raw", ipcRenderer));
attempt("rawipc2", () => expose("raw2", { ipcRenderer }));
const cyc = {};
cyc.o = cyc;
attempt("cyc", () => expose("cyc", cyc));
let deep = {};
for (let i = 0; i < 2000; i++) deep = { deep };
attempt("deep", () => expose("deep", deep));
attempt("weak", () => expose("weak", new WeakMap()));
expose("preloadResults", results);
