/** The data token by token, as training will see them, and how long the examples are. */

import type { App } from "../app";
import type { Inspection, ShownExample, ShownToken } from "../types";
import { h, setText, show, verbatim } from "./dom";
import * as format from "./format";
import { button } from "./parts";

/** More would make the page heavy and tell nothing new. */
const SHOWN_TOKENS = 700;
const BARS = 24;

export function preview(app: App): HTMLElement {
  let at = 0;
  const tokens = h("p", { class: "tokens", tabIndex: 0, role: "group", aria: { label: "Tokens of the example" } });
  const position = h("p", { class: "position", role: "status" });
  const move = (by: number) => {
    at += by;
    draw();
  };
  const earlier = button("Previous", () => move(-1), "quiet");
  const later = button("Next", () => move(1), "quiet");
  const legend = h("p", { class: "legend" }, h("span", { class: "token trained" }, "trained on"), h("span", { class: "token" }, "context"));
  const totals = h("p", { class: "totals" });
  const lengths = h("div", { class: "lengths" });
  const element = h(
    "div",
    { class: "preview", hidden: true },
    h("div", { class: "preview-head" }, position, legend, h("div", { class: "buttons" }, earlier, later)),
    tokens,
    h("div", { class: "preview-foot" }, totals, lengths),
  );
  const draw = () => {
    const inspection = app.glimpse ?? app.inspection;
    const example = inspection?.examples[at];
    show(element, example !== undefined);
    if (inspection === undefined || example === undefined) return;
    const whole = app.glimpse === undefined ? ` of ${format.count(inspection.lengths.length)}` : "";
    setText(position, `Example ${format.count(example.number)}${whole}`);
    earlier.disabled = at === 0;
    later.disabled = at + 1 >= inspection.examples.length;
    tokens.replaceChildren(...tokenSpans(example));
    setText(totals, app.glimpse === undefined ? told(inspection) : "The first examples. The others are being read.");
    lengths.replaceChildren(histogram(inspection.lengths));
  };
  app.on(["inspection"], () => {
    at = 0;
    draw();
    element.classList.toggle("stale", app.inspecting && app.glimpse === undefined);
  });
  return element;
}

function tokenSpans(example: ShownExample): Node[] {
  const spans: Node[] = [];
  for (const { ids, text, trained } of groups(example.tokens.slice(0, SHOWN_TOKENS))) {
    // A line break inside a token shows as a sign, and breaks the line after it.
    const shown = text.replaceAll("\n", "↵");
    const title = `${ids.length === 1 ? "token" : "tokens"} ${ids.join(" ")}`;
    spans.push(h("span", { class: trained ? "token trained" : "token", title }, verbatim(shown === "" ? "∅" : shown)));
    if (text.includes("\n")) spans.push(h("br"));
  }
  const more = example.tokens.length - SHOWN_TOKENS;
  if (more > 0) spans.push(h("span", { class: "hint" }, ` … and ${format.counted(more, "token")} more`));
  return spans;
}

/** Tokens that share a character stand as one group with their ids. */
function groups(tokens: ShownToken[]): { ids: number[]; text: string; trained: boolean }[] {
  const found: { ids: number[]; text: string; trained: boolean }[] = [];
  for (const { id, text, trained, continues } of tokens) {
    const last = found.at(-1);
    if (continues && last !== undefined) last.ids.push(id);
    else found.push({ ids: [id], text, trained });
  }
  return found;
}

function told({ report, lengths }: Inspection): string {
  if (report === undefined) return format.counted(lengths.length, "example");
  const share = Math.round((100 * report.trained_tokens) / Math.max(1, report.tokens));
  const parts = [
    format.counted(report.kept, "example"),
    `${format.counted(report.tokens, "token")}, ${share} % of them trained on`,
    `the longest has ${format.count(report.longest)}`,
  ];
  const dropped = Object.values(report.dropped).reduce((sum, { count }) => sum + count, 0);
  if (dropped > 0) parts.push(`${format.count(dropped)} skipped`);
  if (report.truncated > 0) parts.push(`${format.count(report.truncated)} truncated`);
  const unused = Object.entries(report.unused).map(([what, count]) => `${what} (${format.count(count)})`);
  if (unused.length > 0) parts.push(`not used: ${unused.join(", ")}`);
  if (report.split > 0) parts.push(`${format.count(report.split)} split`);
  return `${parts.join("; ")}.`;
}

/** How many examples have which length. */
function histogram(lengths: number[]): HTMLElement {
  const longest = lengths.reduce((a, b) => Math.max(a, b), 1);
  const width = Math.max(1, Math.ceil((longest + 1) / BARS));
  const counts = new Array<number>(Math.ceil((longest + 1) / width)).fill(0);
  for (const length of lengths) {
    const bin = Math.floor(length / width);
    counts[bin] = (counts[bin] ?? 0) + 1;
  }
  const highest = Math.max(...counts);
  const bars = counts.map((count, bin) => {
    const bar = h("span", { title: `${bin * width} to ${(bin + 1) * width - 1} tokens: ${format.counted(count, "example")}` });
    bar.style.height = `${count === 0 ? 0 : Math.max(6, (100 * count) / highest)}%`;
    return bar;
  });
  const label = `Lengths of ${format.counted(lengths.length, "example")}, up to ${format.counted(longest, "token")}`;
  return h(
    "figure",
    { class: "histogram" },
    h("div", { class: "histogram-bars", role: "img", aria: { label } }, ...bars),
    h("figcaption", {}, h("span", {}, "0"), h("span", {}, "tokens an example"), h("span", {}, format.count(longest))),
  );
}
