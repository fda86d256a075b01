// Structured clone between JavaScript and Python: see clone.py, which holds the format and says what becomes what.
//
// What cannot be cloned is refused as Electron does: a plain Error, "An object could not be cloned." No check trusts a
// prototype: what comes from another realm (a frame, a vm context) is known by what only its kind can answer.

const HEADER = [0xec, 1];
const SAFE = 2 ** 53;
const NAMES = ["Error", "EvalError", "RangeError", "ReferenceError", "SyntaxError", "TypeError", "URIError"];
const TYPES = [
  "DataView", "Int8Array", "Uint8Array", "Uint8ClampedArray", "Int16Array", "Uint16Array", "Int32Array", "Uint32Array",
  "Float16Array", "Float32Array", "Float64Array", "BigInt64Array", "BigUint64Array",
];
const FLAGS = [
  ["hasIndices", "d"], ["global", "g"], ["ignoreCase", "i"], ["multiline", "m"], ["dotAll", "s"], ["unicode", "u"],
  ["unicodeSets", "v"], ["sticky", "y"],
];

// Taken now: a page may change its prototypes later.
const { defineProperty, getOwnPropertyDescriptor, getPrototypeOf, keys } = Object;
const uncurried = (f) => Function.prototype.call.bind(f);
const getter = (prototype, name) => {
  const get = getOwnPropertyDescriptor(prototype, name)?.get;
  return get && uncurried(get);
};
const hasOwn = uncurried(Object.prototype.hasOwnProperty);
const tagOf = uncurried(Object.prototype.toString);
const typeOfView = getter(getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag);
const sliceOf = uncurried(Uint8Array.prototype.slice);
const isDetached = getter(ArrayBuffer.prototype, "detached") ?? (() => false);
const sourceOf = getter(RegExp.prototype, "source");
const flagsOf = FLAGS.map(([name, letter]) => [getter(RegExp.prototype, name), letter]).filter(([get]) => get);
const pairsOf = uncurried(Map.prototype.forEach);
const valuesOf = uncurried(Set.prototype.forEach);
const clone = globalThis.structuredClone;
// Node can tell a Proxy and an `arguments` from an object. A browser tells nobody; there structuredClone is asked first.
const types = globalThis.process?.getBuiltinModule?.("node:util")?.types;

// Each answers for its own kind, of whatever realm, and throws for anything else.
const BRANDS = {
  ArrayBuffer: getter(ArrayBuffer.prototype, "byteLength"),
  Map: getter(Map.prototype, "size"),
  Set: getter(Set.prototype, "size"),
  Date: uncurried(Date.prototype.getTime),
  RegExp: sourceOf && ((value) => { if (value === RegExp.prototype) throw value; sourceOf(value); }),
  Number: uncurried(Number.prototype.valueOf),
  String: uncurried(String.prototype.valueOf),
  Boolean: uncurried(Boolean.prototype.valueOf),
  BigInt: uncurried(BigInt.prototype.valueOf),
  Error: (value) => { if (!isError(value)) throw value; },
};

function isError(value) {
  const is = Error.isError ?? types?.isNativeError ?? ((v) => tagOf(v) === "[object Error]");
  return is(value) && tagOf(value) !== "[object DOMException]";
}

function is(kind, value) {
  try {
    BRANDS[kind](value);
    return true;
  } catch {
    return false;
  }
}

function refuse() {
  throw new Error("An object could not be cloned.");
}

/** A value as bytes. `ports` are transferred with it; where one occurs in the value, its index is written. */
export function encode(value, { ports = [] } = {}) {
  try {
    // Whatever a browser's own structuredClone has made is plain: no proxies, no getters, nothing of another realm.
    const plain = !types && clone && ports.length === 0;
    return new Encoder(ports, plain).message(plain ? clone(value) : value);
  } catch (why) {
    if (why?.message === "An object could not be cloned." && getPrototypeOf(why) === Error.prototype) throw why;
    return refuse(); // also what a getter of the value has thrown
  }
}

/** The value that `encode` has made these bytes of. Throws an Error when they are no such message. */
export function decode(bytes, { ports = [] } = {}) {
  try {
    return new Decoder(bytes, ports).message();
  } catch (why) {
    throw new Error(`this is no structured clone: ${why?.message ?? why}`);
  }
}

class Encoder {
  constructor(ports, plain) {
    this.ports = new Map(ports.map((port, index) => [port, index]));
    this.plain = plain;
    this.numbers = new Map();
    this.pending = [];
    this.bytes = new Uint8Array(256);
    this.memory = new DataView(this.bytes.buffer);
    this.at = 0;
    this.text = new TextEncoder();
  }

  message(value) {
    this.raw(HEADER);
    this.mention(value);
    for (let i = 0; i < this.pending.length; i++) this.pending[i](); // grows while it is walked
    return sliceOf(this.bytes, 0, this.at);
  }

  room(size) {
    if (this.at + size <= this.bytes.length) return;
    const larger = new Uint8Array(Math.max(2 * this.bytes.length, this.at + size));
    larger.set(this.bytes.subarray(0, this.at));
    this.bytes = larger;
    this.memory = new DataView(larger.buffer);
  }

  raw(bytes) {
    this.room(bytes.length);
    this.bytes.set(bytes, this.at);
    this.at += bytes.length;
  }

  u8(value) {
    this.room(1);
    this.bytes[this.at++] = value;
  }

  tag(letter) {
    this.u8(letter.charCodeAt(0));
  }

  u32(value) {
    if (value > 0xffffffff) refuse();
    this.room(4);
    this.memory.setUint32(this.at, value, true);
    this.at += 4;
  }

  f64(value) {
    this.room(8);
    this.memory.setFloat64(this.at, value, true);
    this.at += 8;
  }

  string(value) {
    if (wellFormed(value)) {
      this.tag("s");
      if (value.length < 1024) {
        this.room(4 + 3 * value.length);
        const { written } = this.text.encodeInto(value, this.bytes.subarray(this.at + 4));
        this.u32(written);
        this.at += written;
      } else {
        const bytes = this.text.encode(value);
        this.u32(bytes.length);
        this.raw(bytes);
      }
      return;
    }
    this.tag("S");
    this.u32(2 * value.length);
    this.room(2 * value.length);
    for (let i = 0; i < value.length; i++, this.at += 2) this.memory.setUint16(this.at, value.charCodeAt(i), true);
  }

  bigint(value) {
    this.tag("g");
    this.u8(value < 0n ? 1 : 0);
    let digits = (value < 0n ? -value : value).toString(16);
    if (digits === "0") digits = "";
    if (digits.length % 2) digits = `0${digits}`;
    this.u32(digits.length / 2);
    const bytes = new Uint8Array(digits.length / 2);
    for (let i = 0, end = digits.length; end > 0; i++, end -= 2) bytes[i] = parseInt(digits.slice(end - 2, end), 16);
    this.raw(bytes);
  }

  number(value) {
    if (value === (value | 0) && !Object.is(value, -0)) {
      this.tag("i");
      this.u32(value >>> 0);
    } else {
      this.tag("d");
      this.f64(value);
    }
  }

  mention(value) {
    if (value === null) return this.tag("n");
    switch (typeof value) {
      case "string": return this.string(value);
      case "number": return this.number(value);
      case "boolean": return this.tag(value ? "t" : "f");
      case "bigint": return this.bigint(value);
      case "undefined": return value === undefined ? this.tag("_") : refuse(); // document.all says that it is undefined
      case "object": return this.object(value);
      default: return refuse(); // functions and symbols
    }
  }

  object(value) {
    const port = this.ports.get(value);
    if (port !== undefined) {
      this.tag("p");
      return this.u32(port);
    }
    const number = this.numbers.get(value);
    if (number !== undefined) {
      this.tag("#");
      return this.u32(number);
    }
    if (types?.isProxy(value)) refuse();
    if (Array.isArray(value)) return this.array(value);
    if (ArrayBuffer.isView(value)) return this.view(value);
    const tag = tagOf(value).slice(8, -1);
    const kind = tag === "Object" ? tag : hasOwn(BRANDS, tag) && is(tag, value) ? tag : this.kind(value);
    switch (kind) {
      case "ArrayBuffer": return this.buffer(value);
      case "Map": return this.container(value, "m", () => this.pairs(value));
      case "Set": return this.container(value, "e", () => this.values(value));
      case "Error": return this.error(value);
      case "Date": return this.leaf(value, "D", () => this.f64(BRANDS.Date(value)));
      case "RegExp": return this.leaf(value, "R", () => this.regexp(value));
      case "Object": return this.plainObject(value);
      default: return this.leaf(value, "x", () => this.mention(BRANDS[kind](value)));
    }
  }

  /** The kind of an object that says nothing about itself, or something unknown; a host object is refused. */
  kind(value) {
    const kind = keys(BRANDS).find((each) => is(each, value));
    if (kind) return kind;
    // An object of a class that calls itself something is an object; URL, Promise, a generator, a Blob are not.
    if (!this.plain && clone && getPrototypeOf(clone(value)) === Object.prototype) return "Object";
    return refuse();
  }

  numbered(value) {
    this.numbers.set(value, this.numbers.size);
  }

  leaf(value, tag, write) {
    this.numbered(value);
    this.tag(tag);
    write();
  }

  container(value, tag, contents) {
    this.numbered(value);
    this.tag(tag);
    this.pending.push(contents);
  }

  plainObject(value) {
    // Of what a browser has cloned, only host objects (an ImageData that hides its name) have another prototype.
    if (this.plain && getPrototypeOf(value) !== Object.prototype) refuse();
    this.container(value, "o", () => this.properties(value, keys(value)));
  }

  regexp(value) {
    this.string(sourceOf(value));
    this.string(flagsOf.map(([has, letter]) => (has(value) ? letter : "")).join(""));
  }

  buffer(value) {
    if (isDetached(value)) refuse();
    this.numbered(value);
    this.tag("b");
    this.u32(BRANDS.ArrayBuffer(value));
    this.raw(new Uint8Array(value));
  }

  view(value) {
    const name = typeOfView(value) ?? "DataView";
    const kind = TYPES.indexOf(name);
    let { buffer, byteOffset, byteLength } = value;
    // A Buffer of Node's is a piece of a pool that has nothing to do with it.
    if (globalThis.Buffer?.isBuffer(value) && byteLength < buffer.byteLength && !this.numbers.has(buffer)) {
      buffer = buffer.slice(byteOffset, byteOffset + byteLength);
      byteOffset = 0;
    }
    if (kind < 0) refuse();
    this.tag("v");
    this.u8(kind);
    this.u32(byteOffset);
    this.u32(name === "DataView" ? byteLength : value.length);
    const number = this.numbers.get(buffer);
    if (number !== undefined) {
      this.tag("#");
      this.u32(number);
    } else {
      if (!is("ArrayBuffer", buffer)) refuse(); // memory that is shared cannot be sent away
      this.buffer(buffer);
    }
    this.numbered(value);
  }

  array(value) {
    const names = keys(value);
    const { length } = value;
    if (names.length === length && (length === 0 || names[length - 1] === String(length - 1))) {
      this.container(value, "a", () => {
        this.u32(length);
        for (let i = 0; i < length; i++) this.mention(value[i]);
      });
    } else {
      this.container(value, "A", () => this.sparse(value, names, length));
    }
  }

  sparse(value, names, length) {
    const isIndex = (name) => String(name >>> 0) === name && name >>> 0 < length;
    const indices = names.filter(isIndex);
    this.u32(length);
    this.u32(indices.length);
    for (const index of indices) {
      this.u32(Number(index));
      this.mention(value[index]);
    }
    this.properties(value, names.filter((name) => !isIndex(name)));
  }

  properties(value, names) {
    this.u32(names.length);
    for (const name of names) {
      this.string(name);
      this.mention(value[name]);
    }
  }

  pairs(value) {
    const found = []; // first, since a getter in it may change the Map
    pairsOf(value, (each, key) => found.push(key, each));
    this.u32(found.length / 2);
    for (const each of found) this.mention(each);
  }

  values(value) {
    const found = [];
    valuesOf(value, (each) => found.push(each));
    this.u32(found.length);
    for (const each of found) this.mention(each);
  }

  error(value) {
    this.numbered(value);
    this.tag("E");
    this.u8(Math.max(0, NAMES.indexOf(value.name)));
    this.pending.push(() => {
      const has = ["message", "stack", "cause"].map((name) => hasOwn(value, name) && value[name] !== undefined);
      // An error of another realm may inherit its stack's getter.
      if (!has[1]) has[1] = typeof value.stack === "string";
      this.u8(has[0] + 2 * has[1] + 4 * has[2]);
      if (has[0]) this.string(String(value.message));
      if (has[1]) this.string(String(value.stack));
      if (has[2]) this.mention(value.cause);
    });
  }
}

function wellFormed(text) {
  return text.isWellFormed ? text.isWellFormed() : !/\p{Surrogate}/u.test(text);
}

class Decoder {
  constructor(bytes, ports) {
    this.bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.memory = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
    this.ports = ports;
    this.objects = [];
    this.pending = [];
    this.text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  }

  message() {
    if (this.u8() !== HEADER[0] || this.u8() !== HEADER[1]) throw new Error("it does not begin with ec 01 (version 1)");
    const value = this.value();
    for (let i = 0; i < this.pending.length; i++) this.pending[i]();
    if (this.at !== this.bytes.length) throw new Error(`it ends at byte ${this.at} of ${this.bytes.length}`);
    return value;
  }

  take(size) {
    const start = this.at;
    if (size > this.bytes.length - start) throw new Error(`${size} bytes are announced at byte ${start}`);
    this.at += size;
    return this.bytes.subarray(start, this.at);
  }

  u8() {
    return this.take(1)[0];
  }

  u32() {
    this.at += 4;
    return this.memory.getUint32(this.at - 4, true);
  }

  i32() {
    this.at += 4;
    return this.memory.getInt32(this.at - 4, true);
  }

  f64() {
    this.at += 8;
    return this.memory.getFloat64(this.at - 8, true);
  }

  /** So many of what has at least so many bytes follow. */
  count(least) {
    const count = this.u32();
    if (count * least > this.bytes.length - this.at) throw new Error(`${count} values are announced at byte ${this.at}`);
    return count;
  }

  peek() {
    return String.fromCharCode(this.bytes[this.at]);
  }

  value() {
    if (this.at >= this.bytes.length) throw new Error("it ends early");
    const tag = String.fromCharCode(this.bytes[this.at++]);
    switch (tag) {
      case "_": return undefined;
      case "n": return null;
      case "t": return true;
      case "f": return false;
      case "i": return this.i32();
      case "d": return this.f64();
      case "s": return this.text.decode(this.take(this.u32()));
      case "S": return this.utf16();
      case "g": return this.bigint();
      case "#": return this.known(this.objects, this.u32());
      case "p": return this.known(this.ports, this.u32());
      case "D": return this.numbered(new Date(this.f64()));
      case "R": return this.numbered(new RegExp(this.string(), this.string()));
      case "x": return this.boxed();
      case "b": return this.numbered(sliceOf(this.take(this.u32())).buffer);
      case "v": return this.view();
      case "o": return this.container({}, (value) => this.properties(value));
      case "a": return this.container([], (value) => this.array(value));
      case "A": return this.container([], (value) => this.sparse(value));
      case "m": return this.container(new Map(), (value) => this.pairs(value));
      case "e": return this.container(new Set(), (value) => this.values(value));
      case "E": return this.container(this.error(), (value) => this.parts(value));
      default: throw new Error(`there is no tag ${JSON.stringify(tag)}, which is at byte ${this.at - 1}`);
    }
  }

  known(list, index) {
    if (index >= list.length) throw new Error(`it names number ${index} of ${list.length}`);
    return list[index];
  }

  numbered(value) {
    this.objects.push(value);
    return value;
  }

  container(value, contents) {
    this.pending.push(() => contents(value));
    return this.numbered(value);
  }

  string() {
    if (!"sS".includes(this.peek())) throw new Error(`a string is wanted at byte ${this.at}`);
    return this.value();
  }

  utf16() {
    const bytes = this.take(this.u32());
    if (bytes.length % 2) throw new Error(`half a character at byte ${this.at}`);
    const units = new Uint16Array(sliceOf(bytes).buffer);
    let text = "";
    for (let i = 0; i < units.length; i += 8192) text += String.fromCharCode(...units.subarray(i, i + 8192));
    return text;
  }

  bigint() {
    const negative = this.u8();
    const bytes = this.take(this.u32());
    const digits = new Array(bytes.length);
    for (let i = 0; i < bytes.length; i++) digits[bytes.length - 1 - i] = bytes[i].toString(16).padStart(2, "0");
    const magnitude = bytes.length ? BigInt(`0x${digits.join("")}`) : 0n;
    return negative ? -magnitude : magnitude;
  }

  boxed() {
    if (!"tfidsSg".includes(this.peek())) throw new Error(`a primitive is wanted at byte ${this.at}`);
    return this.numbered(Object(this.value()));
  }

  view() {
    const kind = TYPES[this.u8()];
    const offset = this.u32();
    const length = this.u32();
    const make = globalThis[kind];
    const buffer = "b#".includes(this.peek()) ? this.value() : undefined;
    if (!make) throw new Error(`there is no such array here: ${kind}`);
    if (!is("ArrayBuffer", buffer)) throw new Error(`an ArrayBuffer is wanted at byte ${this.at}`);
    return this.numbered(new make(buffer, offset, length));
  }

  error() {
    const name = this.known(NAMES, this.u8());
    return new globalThis[name]();
  }

  parts(error) {
    const which = this.u8();
    const part = (name, value) => defineProperty(error, name, { value, writable: true, configurable: true });
    if (which & 1) part("message", this.string());
    part("stack", which & 2 ? this.string() : undefined);
    if (which & 4) part("cause", this.value());
  }

  array(value) {
    const count = this.count(1);
    for (let i = 0; i < count; i++) value.push(this.value());
  }

  sparse(value) {
    const length = this.u32();
    // An element far out makes V8 keep the array as a table, so that a length costs nothing.
    value[0xfffffffe] = 0;
    delete value[0xfffffffe];
    value.length = length;
    for (let i = this.count(5); i > 0; i--) {
      const index = this.u32();
      if (index >= length) throw new Error(`element ${index} of an array of ${length}`);
      value[index] = this.value();
    }
    this.properties(value);
  }

  properties(value) {
    for (let i = this.count(6); i > 0; i--) {
      const name = this.string();
      const each = this.value();
      // What a prototype has, "__proto__" above all, must become a property of its own and reach no setter.
      if (name in value) defineProperty(value, name, { value: each, writable: true, enumerable: true, configurable: true });
      else value[name] = each;
    }
  }

  pairs(value) {
    for (let i = this.count(2); i > 0; i--) {
      const key = this.value();
      value.set(key, this.value());
    }
  }

  values(value) {
    for (let i = this.count(1); i > 0; i--) value.add(this.value());
  }
}
