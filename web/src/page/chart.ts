/** The loss as it falls. Drawn at most a few times a second, whatever the pace of the steps. */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { RunState } from "../run-state";
import { ariaLabel, h, show } from "./dom";
import * as format from "./format";

const REDRAW_MS = 200;
const HEIGHT = 280;

export interface Chart {
  element: HTMLElement;
  update(): void;
}

function color(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function lossChart(run: RunState): Chart {
  const place = h("div", { class: "chart-place", role: "img" });
  const key = (name: string, text: string) => h("li", {}, h("span", { class: `key ${name}`, aria: { hidden: "true" } }), text);
  const heldOut = key("held-out", "validation");
  const legend = h("ul", { class: "chart-legend" }, key("loss", "each step"), key("smoothed", "moving average"), heldOut);
  const element = h("figure", { class: "chart" }, legend, place);
  let plot: uPlot | undefined;
  let drawn = 0;
  let asked = false;

  const make = () => {
    plot?.destroy();
    const width = Math.max(200, place.clientWidth);
    plot = new uPlot(options(width), data(run), place);
  };
  const draw = () => {
    asked = false;
    drawn = performance.now();
    const first = run.losses[0];
    const last = run.smoothed.at(-1);
    const told =
      first === undefined || last === undefined
        ? "No loss yet"
        : `Loss over ${format.counted(run.steps.length, "step")}: from ${format.loss(first)} to ${format.loss(last)}`;
    ariaLabel(place, told);
    show(heldOut, run.evaluations.length > 0);
    if (plot === undefined) make();
    else plot.setData(data(run));
  };
  const update = () => {
    if (asked || place.clientWidth === 0) return;
    asked = true;
    const wait = Math.max(0, REDRAW_MS - (performance.now() - drawn));
    setTimeout(() => requestAnimationFrame(draw), wait);
  };
  new ResizeObserver(() => {
    if (plot === undefined || place.clientWidth === 0) update();
    else plot.setSize({ width: place.clientWidth, height: HEIGHT });
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot !== undefined && make());
  return { element, update };
}

/** Columns over the steps; held-out losses stand where the run has measured them. */
function data(run: RunState): uPlot.AlignedData {
  if (run.evaluations.length === 0) return [run.steps, run.losses, run.smoothed, run.steps.map(() => null)];
  const evaluations = new Map(run.evaluations.map(({ step, eval_loss }) => [step, eval_loss]));
  const steps = [...new Set([...run.steps, ...evaluations.keys()])].sort((a, b) => a - b);
  const index = new Map(run.steps.map((step, at) => [step, at]));
  const at = (values: number[]) => steps.map((step) => values[index.get(step) ?? -1] ?? null);
  return [steps, at(run.losses), at(run.smoothed), steps.map((step) => evaluations.get(step) ?? null)];
}

/** Numbers of an axis with as many decimals as the finest of them needs. */
function evenly(values: number[]): string[] {
  const decimals = values.map((value) => (/\.(\d+)$/.exec(String(Number(value.toFixed(4))))?.[1] ?? "").length);
  return values.map((value) => value.toFixed(Math.max(0, ...decimals)));
}

function options(width: number): uPlot.Options {
  const ink = color("ink-soft");
  const line = color("line");
  const font = "12px system-ui, sans-serif";
  const axis = { stroke: ink, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    select: { show: false, left: 0, top: 0, width: 0, height: 0 },
    scales: {
      x: { time: false, range: (_, min, max) => [min - 0.012 * (max - min), max + 0.012 * (max - min)] },
      y: { range: (_, min, max) => [Math.max(0, min - 0.08 * (max - min || 1)), max + 0.08 * (max - min || 1)] },
    },
    axes: [
      {
        ...axis,
        label: "step",
        labelFont: font,
        labelSize: 20,
        size: 32,
        space: 60,
        incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 100_000],
      },
      { ...axis, label: "loss", labelFont: font, labelSize: 20, size: 48, values: (_, splits) => evenly(splits) },
    ],
    series: [
      {},
      { stroke: color("chart-loss"), width: 1, points: { show: false } },
      { stroke: color("accent"), width: 2.5, points: { show: false } },
      {
        stroke: "transparent",
        width: 0,
        points: { show: true, size: 11, fill: color("chart-held-out"), stroke: color("paper"), width: 1.5 },
      },
    ],
  };
}
