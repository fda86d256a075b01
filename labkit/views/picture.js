// A view's picture as a file: SVG from the same drawing, made once more on a context that writes it down, and PNG from that.

import { Pen, button, element } from "./shared.js";

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const round = (n) => Math.round(n * 100) / 100;

let contexts = 0; // several may end up in one file, where names must differ

/** What the views use of a canvas's context, written as SVG. Text is measured by a real canvas. */
export class SvgContext {
  constructor(width, height) {
    Object.assign(this, { width, height, id: ++contexts, parts: [], path: "", clips: 0, fades: [], stack: [], open: 0, ruler: document.createElement("canvas").getContext("2d") });
    Object.assign(this, { fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, lineCap: "butt", lineJoin: "miter", globalAlpha: 1, font: "12px sans-serif", textAlign: "left", textBaseline: "middle", dash: [] });
  }
  setTransform() {}
  clearRect() {}
  setLineDash(dash) { this.dash = dash; }
  measureText(text) { this.ruler.font = this.font; return this.ruler.measureText(text); }
  save() {
    const { fillStyle, strokeStyle, lineWidth, lineCap, lineJoin, globalAlpha, font, textAlign, textBaseline, dash, open } = this;
    this.stack.push({ fillStyle, strokeStyle, lineWidth, lineCap, lineJoin, globalAlpha, font, textAlign, textBaseline, dash, open });
  }
  restore() {
    const old = this.stack.pop();
    for (; this.open > old.open; this.open--) this.parts.push("</g>");
    Object.assign(this, old);
  }
  clip() {
    const id = `c${this.id}-${++this.clips}`;
    this.parts.push(`<clipPath id="${id}"><path d="${this.path}"/></clipPath><g clip-path="url(#${id})">`);
    this.open++;
  }
  /** A gradient, as much of it as the views use: it becomes the colour url(#…) when it is written into an attribute. */
  createLinearGradient(x1, y1, x2, y2) {
    const id = `f${this.id}-${this.fades.length + 1}`, fade = { id, line: `x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}"`, stops: [] };
    this.fades.push(fade);
    return { toString: () => `url(#${id})`, addColorStop: (at, colour) => fade.stops.push(`<stop offset="${at}" stop-color="${colour.slice(0, 7)}" stop-opacity="${round(parseInt(colour.slice(7) || "ff", 16) / 255)}"/>`) };
  }
  beginPath() { this.path = ""; }
  moveTo(x, y) { this.path += `M${round(x)} ${round(y)}`; }
  lineTo(x, y) { this.path += `${this.path ? "L" : "M"}${round(x)} ${round(y)}`; }
  quadraticCurveTo(a, b, x, y) { this.path += `Q${round(a)} ${round(b)} ${round(x)} ${round(y)}`; }
  bezierCurveTo(...p) { this.path += `C${p.map(round).join(" ")}`; }
  closePath() { this.path += "Z"; }
  rect(x, y, w, h) { this.path += `M${round(x)} ${round(y)}h${round(w)}v${round(h)}h${round(-w)}Z`; }
  roundRect(x, y, w, h) { this.rect(x, y, w, h); }
  arc(x, y, r) { this.path += `M${round(x + r)} ${round(y)}a${round(r)} ${round(r)} 0 1 0 ${round(-2 * r)} 0a${round(r)} ${round(r)} 0 1 0 ${round(2 * r)} 0Z`; }
  fill() { this.parts.push(`<path d="${this.path}" fill="${this.fillStyle}"${this.alpha()}/>`); }
  stroke() { this.parts.push(`<path d="${this.path}" fill="none"${this.line()}/>`); }
  fillRect(x, y, w, h) { this.parts.push(`<rect x="${round(x)}" y="${round(y)}" width="${round(Math.max(0, w))}" height="${round(Math.max(0, h))}" fill="${this.fillStyle}"${this.alpha()}/>`); }
  strokeRect(x, y, w, h) { this.parts.push(`<rect x="${round(x)}" y="${round(y)}" width="${round(Math.max(0, w))}" height="${round(Math.max(0, h))}" fill="none"${this.line()}/>`); }
  fillText(text, x, y) {
    const [, weight, size, family] = /^(\d+ )?([\d.]+)px (.*)$/.exec(this.font) ?? [, "", "12", "sans-serif"], anchor = { center: "middle", right: "end" }[this.textAlign] ?? "start";
    this.parts.push(`<text x="${round(x)}" y="${round(y)}" dominant-baseline="central" text-anchor="${anchor}" font-size="${size}" font-weight="${(weight ?? "400").trim()}" font-family="${escaped(family)}" fill="${this.fillStyle}"${this.alpha()}>${escaped(text)}</text>`);
  }
  alpha() { return this.globalAlpha < 1 ? ` opacity="${round(this.globalAlpha)}"` : ""; }
  line() {
    const dash = this.dash.length ? ` stroke-dasharray="${this.dash.join(" ")}"` : "", cap = this.lineCap === "butt" ? "" : ` stroke-linecap="${this.lineCap}"`;
    return ` stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"${dash}${cap}${this.alpha()}`;
  }
  text(ground) {
    const fades = this.fades.map(({ id, line, stops }) => `<linearGradient id="${id}" gradientUnits="userSpaceOnUse" ${line}>${stops.join("")}</linearGradient>`);
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}"><rect width="100%" height="100%" fill="${ground}"/>${fades.join("")}${this.parts.join("")}${"</g>".repeat(this.open)}</svg>`;
  }
}

/** The same drawing as SVG, a part of a file: `draw` is called with the pen on another context, then as it was. */
export function asSvg(pen, draw, height = pen.height) {
  const { ctx, width } = pen;
  pen.ctx = new SvgContext(width, height);
  try {
    draw();
    return { svg: pen.ctx.text(pen.theme.ground), width, height };
  } finally {
    pen.ctx = ctx;
    draw();
  }
}

function download(blob, name) {
  const link = document.createElement("a"), url = URL.createObjectURL(blob);
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** An SVG as a PNG of twice as many pixels, or as many as a browser's canvas has. */
async function rasterised(svg) {
  const picture = element("img"), canvas = element("canvas");
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await picture.decode();
  const times = Math.min(2, 16_000 / Math.max(picture.width, picture.height));
  Object.assign(canvas, { width: Math.round(times * picture.width), height: Math.round(times * picture.height) });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** XML has no place for most control characters, nor for half a pair of surrogates; names may have both. */
const legal = (text) => text.toWellFormed().replace(/[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd");

/** Two buttons that save what a view shows; view.file() is its picture as SVG. */
export function saveButtons(view, name, what = "this picture", before = "") {
  const made = [
    button(`Save ${what} as PNG`, async () => download(await rasterised(legal(view.file())), `${name}.png`), { text: `${before}PNG` }),
    button(`Save ${what} as SVG`, () => download(new Blob([legal(view.file())], { type: "image/svg+xml" }), `${name}.svg`), { text: `${before}SVG` }),
  ];
  return element("div", { class: "group", role: "group", "aria-label": "Save" }, ...made);
}

/** Pictures one below the other: [{ svg: an element or a text, width, height, perhaps x }]. */
export function stacked(parts, ground) {
  const width = Math.max(...parts.map(({ x = 0, width: wide }) => x + wide)), height = parts.reduce((sum, part) => sum + part.height, 0);
  let y = 0;
  const placed = parts.map(({ svg, height: tall, width: wide, x = 0 }) => {
    const text = typeof svg === "string" ? svg : new XMLSerializer().serializeToString(svg), own = /viewBox="[^"]*"/.exec(text)[0];
    const at = `<svg xmlns="http://www.w3.org/2000/svg" x="${x}" y="${y}" width="${wide}" height="${tall}" ${own}>${text.replace(/^<svg[^>]*>/, "")}`;
    y += tall;
    return at;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="${ground}"/>${placed.join("")}</svg>`;
}

/** What the colours mean: [shape, colour, word] each. */
export function legend(entries, width, theme) {
  const ctx = new SvgContext(width, 0);
  let x = 12, y = 14;
  ctx.font = "13px system-ui, sans-serif";
  for (const [shape, colour, word] of entries) {
    const wide = ctx.measureText(word).width + 34;
    if (x > 12 && x + wide > width) [x, y] = [12, y + 20];
    Pen.prototype.shape.call({ ctx }, shape, x, y, 5);
    ctx.fillStyle = colour;
    ctx.fill();
    ctx.fillStyle = theme.strong;
    ctx.fillText(word, x + 12, y);
    x += wide;
  }
  ctx.height = entries.length ? y + 14 : 0;
  return { svg: ctx.text(theme.ground), width, height: ctx.height };
}

/** A text in lines that are no wider, in the context's font. */
export function broken(ctx, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (lines.at(-1) && ctx.measureText(longer).width > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

/** Sentences as a picture of their own, broken into lines. */
export function sentences(texts, width, theme) {
  const ctx = new SvgContext(width, 0);
  Object.assign(ctx, { font: "13px system-ui, sans-serif", fillStyle: theme.strong });
  const lines = texts.filter(Boolean).flatMap((text) => broken(ctx, text, width - 20));
  lines.forEach((line, n) => ctx.fillText(line, 10, 14 + 19 * n));
  ctx.height = 10 + 19 * lines.length;
  return { svg: ctx.text(theme.ground), width, height: ctx.height };
}
