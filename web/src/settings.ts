/** What the settings start from, by model. */

import type { OpenedModel } from "./protocol";
import type { RunSettings } from "./types";

/** Of a run on the built-in model and its example; the terminal's demo has the same. */
const DEMO: Partial<RunSettings> = { rank: 8, alpha: 16, lr: 3e-3, steps: 120, "warmup-steps": 5, "batch-size": 8, "max-seq-len": 256 };
const OTHER: Partial<RunSettings> = { rank: 16, alpha: 32, lr: 2e-4, steps: 100, "warmup-steps": 5, "batch-size": 2, "max-seq-len": 512 };
/** Checkpoints of a whole run, about. */
const SAVES = 10;

export function forModel(settings: RunSettings, model: OpenedModel): RunSettings {
  const start = model.source.kind === "demo" ? DEMO : OTHER;
  const length = Math.min(start["max-seq-len"] ?? 512, model.summary.context);
  return { ...settings, ...start, "max-seq-len": length };
}

/** What the page decides by itself when a run starts. */
export function forRun(settings: RunSettings): RunSettings {
  const steps = settings.steps ?? 100;
  return { ...settings, "save-every": Math.max(1, Math.min(50, Math.ceil(steps / SAVES))), keep: 1, "log-every": 1 };
}

/** Whether the change shows in how the data are read. */
export function needsInspection(before: RunSettings, after: RunSettings): boolean {
  return before["max-seq-len"] !== after["max-seq-len"] || before["data-format"] !== after["data-format"];
}
