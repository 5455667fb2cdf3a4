/** What the settings start from: the library's defaults, which the terminal has too. */

import type { OpenedModel } from "./protocol";
import type { DataReport, RunSettings } from "./types";

/** Of a run on the built-in model and its example; the terminal's demo has the same. */
const DEMO: Partial<RunSettings> = { rank: 8, alpha: 16, lr: 3e-3, steps: 120, "warmup-steps": 5, "batch-size": 8, "max-seq-len": 256 };
/** The library's own, where the settings name no length. */
const LENGTH = 512;
/** Where the settings name no share. */
const [HELD_OUT, MAX_HELD_OUT, MIN_TO_HOLD_OUT] = [0.05, 64, 20];
/** Checkpoints of a whole run, about. */
const SAVES = 10;

/** The settings that a model starts with; those of `touched` keep the values that somebody gave them. */
export function forModel(defaults: RunSettings, settings: RunSettings, touched: Set<string>, model: OpenedModel): RunSettings {
  const start: Partial<RunSettings> = model.source.kind === "demo" ? DEMO : {};
  const length = Math.min(start["max-seq-len"] ?? LENGTH, model.summary.context);
  const kept = Object.fromEntries(Object.entries(settings).filter(([key]) => touched.has(key)));
  const fresh = { ...defaults, ...start, "max-seq-len": length };
  // Epochs are given instead of steps, and steps instead of epochs.
  if (touched.has("epochs") && settings.epochs !== undefined) delete fresh.steps;
  return { ...fresh, ...kept, "data-format": settings["data-format"], data: settings.data, model: model.dir };
}

/** Steps of one pass over the data, as the library counts them; packing makes it an estimate. */
export function stepsPerEpoch(settings: RunSettings, report: DataReport, ownEvaluation: boolean): number {
  const slots = report.slots ?? report.kept;
  const held = ownEvaluation ? 0 : heldOut(settings, report.kept);
  const examples = Math.max(1, Math.round(slots * (1 - held / Math.max(1, report.kept))));
  return Math.ceil(examples / (settings["batch-size"] * settings["grad-accum"]));
}

/** Examples that are held out of `examples` for validation, as the library does it. */
export function heldOut(settings: RunSettings, examples: number): number {
  const fraction = settings["eval-fraction"];
  if (fraction === undefined) return examples < MIN_TO_HOLD_OUT ? 0 : Math.min(MAX_HELD_OUT, Math.max(1, Math.round(examples * HELD_OUT)));
  if (fraction <= 0 || examples < 2) return 0;
  return Math.min(Math.max(1, Math.round(examples * fraction)), examples - 1);
}

/** What the page decides by itself when a run starts. */
export function forRun(settings: RunSettings, steps: number): RunSettings {
  return { ...settings, "save-every": Math.max(1, Math.min(50, Math.ceil(steps / SAVES))), keep: 1, "log-every": 1 };
}

/** Whether the change shows in how the data are read. */
export function needsInspection(before: RunSettings, after: RunSettings): boolean {
  return (
    before["max-seq-len"] !== after["max-seq-len"] || before["data-format"] !== after["data-format"] || before.objective !== after.objective
  );
}
