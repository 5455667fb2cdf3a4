/** The parts of the lesson's figures: a frame, bars, and tables with the numbers behind each picture. */

import { ariaLabel, h, setText, verbatim } from "./dom";
import { digits } from "./format";
import { type NoticePlace, noticePlace } from "./parts";

const SVG = "http://www.w3.org/2000/svg";
/** Room for the numbers beside an axis. */
export const MARGIN = 52;
const PADDING = 8;

export function svg(tag: string, attributes: Record<string, string | number>, ...children: (Node | string)[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** A part of the lesson: what it is about, its formula, and a body that is hidden where there is nothing to draw. */
export interface Figure {
  element: HTMLElement;
  body: HTMLElement;
  notices: NoticePlace;
}

export function figure(title: string, text: string, formula: string, ...body: Node[]): Figure {
  const notices = noticePlace();
  const content = h("div", { class: "lesson-body", hidden: true }, ...body);
  const head = [h("h3", {}, title), h("p", {}, text), h("p", { class: "formula" }, verbatim(formula))];
  return { element: h("article", { class: "lesson-figure" }, ...head, notices.element, content), body: content, notices };
}

/** A picture as wide as its place, drawn anew where that changes. */
export interface Picture {
  element: HTMLElement;
  draw(label: string, make: (width: number) => SVGElement[]): void;
}

export function picture(height: number): Picture {
  const element = h("div", { class: "lesson-picture", role: "img" });
  let making: ((width: number) => SVGElement[]) | undefined;
  let drawn = 0;
  const paint = () => {
    const width = element.clientWidth;
    if (making === undefined || width === 0) return;
    drawn = width;
    element.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...making(width)));
  };
  new ResizeObserver(() => element.clientWidth !== drawn && paint()).observe(element);
  const draw = (label: string, make: (width: number) => SVGElement[]) => {
    ariaLabel(element, label);
    making = make;
    paint();
  };
  return { element, draw };
}

/** A number beside the axis. */
export function tick(y: number, value: number): SVGElement {
  return svg("text", { class: "tick", x: MARGIN - 6, y: y + 4, "text-anchor": "end" }, digits(value));
}

/** Bars from 0 on, those of several series side by side. */
export function bars(width: number, height: number, series: { values: number[]; kind: string }[]): SVGElement[] {
  const all = series.flatMap(({ values }) => values);
  const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
  const y = (value: number) => PADDING + ((high - value) / (high - low || 1)) * (height - 2 * PADDING);
  const count = Math.max(1, ...series.map(({ values }) => values.length));
  const step = (width - MARGIN) / count;
  // A few bars are no wider than many.
  const bar = Math.min(24, (step * 0.8) / series.length);
  const rects = series.flatMap(({ values, kind }, at) =>
    values.map((value, i) => {
      const x = MARGIN + step * (i + 0.5) + bar * (at - series.length / 2);
      const [top, bottom] = [y(Math.max(0, value)), y(Math.min(0, value))];
      return svg("rect", { class: `bar-${kind}`, x, y: top, width: Math.max(1, bar - 0.5), height: Math.max(0.5, bottom - top) });
    }),
  );
  const axis = svg("line", { class: "axis", x1: MARGIN, x2: width, y1: y(0), y2: y(0) });
  // The ends of the axis, and 0 where it does not lie at an end.
  const ticks = [low, high].filter((value) => value !== 0).map((value) => tick(y(value), value));
  return [...rects, axis, tick(y(0), 0), ...ticks];
}

/** Signs and what they mean; a formula comes as a node, since it is not translated. */
export function legend(entries: [kind: string, text: string | Node][]): HTMLElement {
  const entry = ([kind, text]: [string, string | Node]) => h("li", {}, h("span", { class: `key ${kind}`, aria: { hidden: "true" } }), text);
  return h("ul", { class: "chart-legend" }, ...entries.map(entry));
}

/** Names and values; values are numbers and names of the model. */
export interface FactList {
  element: HTMLElement;
  set(pairs: [name: string, value: string][]): void;
}

export function factList(): FactList {
  const element = h("dl", { class: "facts" });
  const set = (pairs: [string, string][]) =>
    element.replaceChildren(...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, verbatim(value)))));
  return { element, set };
}

/** A number as people read it, with all its digits for programs. */
export function dataOf(value: number, shown = digits(value)): HTMLElement {
  return h("data", { value: String(value) }, verbatim(shown));
}

/** The numbers behind a picture, a line for each weight or output. */
export interface NumberTable {
  element: HTMLElement;
  set(rows: number[][]): void;
}

export function numberTable(title: string, heads: (string | Node)[]): NumberTable {
  const body = h("tbody", {});
  const head = h("tr", {}, ...heads.map((name) => h("th", { scope: "col" }, name)));
  const table = h("table", {}, h("thead", {}, head), body);
  const scrolled = h("div", { class: "lesson-table", tabIndex: 0, role: "region", aria: { label: `Numbers: ${title}` } }, table);
  const set = (rows: number[][]) =>
    body.replaceChildren(
      ...rows.map((row, at) =>
        h("tr", {}, h("th", { scope: "row" }, verbatim(String(at + 1))), ...row.map((value) => h("td", {}, dataOf(value)))),
      ),
    );
  return { element: h("details", {}, h("summary", {}, "Numbers"), scrolled), set };
}

/** A caption above a picture. */
export function caption(): { element: HTMLElement; set(text: string): void } {
  const element = h("p", { class: "hint" });
  return { element, set: (text) => setText(element, text) };
}
