// Small pictures for legends: the same shapes and hatching as on the canvas.

import { Pen, drawn } from "./shared.js";
import { SvgContext } from "./picture.js";

/** A channel's shape in its colour. */
export function shapeIcon(kind, colour) {
  const context = new SvgContext(14, 14);
  Pen.prototype.shape.call({ ctx: context }, kind, 7, 7, 4.6);
  const svg = drawn("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
  svg.append(drawn("path", { d: context.path, fill: colour }));
  return svg;
}

/** What else is drawn: inside a call (hatch, frame), a message that was lost (cross) or overtaken (diamond). */
export function signIcon(kind, colour, ground) {
  const svg = drawn("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }), line = (d, width = 1.8) => drawn("path", { d, stroke: colour, "stroke-width": width, fill: "none" });
  if (kind === "hatch") svg.append(drawn("rect", { x: 0, y: 3, width: 14, height: 8, fill: colour }), drawn("path", { d: "M1 11l8-8M7 11l8-8", stroke: ground, "stroke-width": 1.4 }));
  else if (kind === "frame") svg.append(drawn("rect", { x: 0.7, y: 3.5, width: 12.6, height: 7, fill: colour, "fill-opacity": 0.35, stroke: colour }));
  else if (kind === "diamond") svg.append(line("M7 1.5l4.5 5.5L7 12.5 2.5 7z"));
  else svg.append(line("M3 3l8 8M11 3l-8 8"));
  return svg;
}
