// A view's picture as a file: PNG from a canvas, SVG from the same drawing made once more on a context that writes it down.

import { button } from "./shared.js";

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const round = (n) => Math.round(n * 100) / 100;

/** What the views use of a canvas's context, written as SVG. Text is measured by a real canvas. */
export class SvgContext {
  constructor(width, height) {
    Object.assign(this, { width, height, parts: [], path: "", clips: 0, stack: [], open: 0, ruler: document.createElement("canvas").getContext("2d") });
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
    this.parts.push(`<clipPath id="c${++this.clips}"><path d="${this.path}"/></clipPath><g clip-path="url(#c${this.clips})">`);
    this.open++;
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
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}"><rect width="100%" height="100%" fill="${ground}"/>${this.parts.join("")}${"</g>".repeat(this.open)}</svg>`;
  }
}

/** The same drawing as SVG: `draw` is called with the pen on another context. */
export function asSvg(pen, draw) {
  const { ctx, width, height } = pen;
  pen.ctx = new SvgContext(width, height);
  try {
    draw();
    return pen.ctx.text(pen.theme.ground);
  } finally {
    pen.ctx = ctx;
    draw();
  }
}

/** The canvas on the ground of the page: a PNG with a transparent ground is unreadable on another one. */
export function asPng(pen) {
  const copy = document.createElement("canvas");
  Object.assign(copy, { width: pen.canvas.width, height: pen.canvas.height });
  const ctx = copy.getContext("2d");
  ctx.fillStyle = pen.theme.ground;
  ctx.fillRect(0, 0, copy.width, copy.height);
  ctx.drawImage(pen.canvas, 0, 0);
  return new Promise((done) => copy.toBlob(done, "image/png"));
}

function download(blob, name) {
  const link = document.createElement("a"), url = URL.createObjectURL(blob);
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Two buttons that save what a view shows; a view has a pen, draw() and a name. */
export function saveButtons(view, name) {
  return [
    button("Save this picture as PNG", async () => download(await asPng(view.pen), `${name}.png`), { text: "PNG" }),
    button("Save this picture as SVG", () => download(new Blob([asSvg(view.pen, () => view.draw())], { type: "image/svg+xml" }), `${name}.svg`), { text: "SVG" }),
  ];
}
