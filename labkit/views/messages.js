// The messages of a trace as labkit/views/recording.py sends them: whole recordings, and batches while it records.
//
// A message is ten numbers in a row. All times are nanoseconds since the first event of the trace, Infinity while unknown.

import { parse } from "./shared.js";

export const ID = 0;
export const CHANNEL = 1;
export const SENDER = 2; // pid
export const RECEIVER = 3; // pid, 0 while nobody has received it
export const SIZE = 4;
export const SENT = 5; // send begins
export const ENTERED = 6; // send ends
export const ASKED = 7; // receive begins
export const RECEIVED = 8; // receive ends
export const DROPPED = 9; // 1: send gave up
export const STRIDE = 10;

/** How many of a sorted list are at most x. */
export function before(list, x, high = list.length) {
  let low = 0;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (list[mid] <= x) low = mid + 1;
    else high = mid;
  }
  return low;
}

export function asFloats(view) {
  const { buffer, byteOffset = 0, byteLength } = view;
  return new Float64Array(buffer ? buffer.slice(byteOffset, byteOffset + byteLength) : view.slice(0));
}

/** A recording: what is known of channels and processes, rows of messages, and moments: rows of exact totals. */
export function openRecording(buffer) {
  const length = new DataView(buffer).getUint32(0, true), meta = parse(new Uint8Array(buffer, 8, length));
  const width = 1 + 5 * meta.columns + 2 * meta.processes.filter((p) => p.seen).length;
  const table = new Float64Array(buffer, 8 + length, width * meta.moments);
  const rows = decode(new Uint8Array(buffer, 8 + length + table.byteLength), meta.rows);
  return { meta, rows, moments: Array.from({ length: meta.moments }, (_, i) => table.subarray(i * width, (i + 1) * width)) };
}

/** The ten columns of a recording, each as eight byte planes of int64, to rows. */
function decode(planes, count) {
  const column = (k, i) => {
    const at = k * 8 * count + i, byte = (j) => planes[at + j * count];
    const low = (byte(0) | (byte(1) << 8) | (byte(2) << 16) | (byte(3) << 24)) >>> 0;
    return (byte(4) | (byte(5) << 8) | (byte(6) << 16) | (byte(7) << 24)) * 4294967296 + low;
  };
  const rows = new Float64Array(count * STRIDE);
  let id = 0, sent = 0;
  for (let i = 0, at = 0; i < count; i++, at += STRIDE) {
    id += column(0, i);
    sent += column(6, i);
    const entered = column(7, i), received = column(8, i), rest = column(9, i), dropped = rest & 1;
    rows[at + ID] = column(1, i) * 2 ** 37 + id;
    rows[at + CHANNEL] = column(2, i);
    rows[at + SENDER] = column(3, i);
    rows[at + RECEIVER] = column(4, i);
    rows[at + SIZE] = column(5, i);
    rows[at + SENT] = sent;
    rows[at + ENTERED] = entered < 0 ? Infinity : sent + entered;
    rows[at + RECEIVED] = received < 0 ? Infinity : sent + received;
    rows[at + ASKED] = received < 0 ? Infinity : sent + received - (rest - dropped) / 2;
    rows[at + DROPPED] = dropped;
  }
  return rows;
}
