// The JavaScript side of tests/test_clone.py: answers requests on stdin, each a length, a letter and what belongs to it.
import { readSync, writeSync } from "node:fs";
import { inspect } from "node:util";
import vm from "node:vm";
import { decode, encode } from "../labkit/electron/clone.js";

globalThis.vm = vm;

function read(size) {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; ) {
    const count = readSync(0, bytes, at, size - at);
    if (!count) process.exit(0);
    at += count;
  }
  return bytes;
}

const work = {
  r: (bytes) => encode(decode(bytes)), // round trip
  s: (bytes) => encode(inspect(decode(bytes), { depth: 9 })), // as console.log shows it
  j: (bytes) => encode((0, eval)(decode(bytes))), // what a script makes
  f: (bytes) => encode((0, eval)(decode(bytes)[0])(decode(bytes)[1])), // a function applied to a value
};

for (;;) {
  const size = new DataView(read(4).buffer).getUint32(0, true);
  const [letter] = read(1);
  const bytes = read(size);
  let status = 1;
  let answer;
  try {
    answer = work[String.fromCharCode(letter)](bytes);
  } catch (why) {
    status = 0;
    answer = encode([why.name, why.message, Object.getPrototypeOf(why) === Error.prototype]);
  }
  const head = new Uint8Array(5);
  new DataView(head.buffer).setUint32(0, answer.length, true);
  head[4] = status;
  for (const part of [head, answer]) for (let at = 0; at < part.length; ) at += writeSync(1, part, at);
}
