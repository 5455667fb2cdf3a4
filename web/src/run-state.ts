/** Where the run of this page stands, from the events that it has sent. */

import type { Progress, RestoredRun, StartPhase, Trained } from "./protocol";
import type { EvaluatedEvent, Failure, Outcome, PhaseEvent, RunEvent, StepEvent } from "./types";

export type Phase = "idle" | "starting" | "training" | "pausing" | "paused" | "stopping" | "done" | "failed";

/** A stage of the start, with its times in milliseconds. */
export interface Stage {
  name: StartPhase;
  began: number;
  ended: number | undefined;
  progress: Progress | undefined;
}

/** Steps whose pace the time left is taken from. */
const PACE_STEPS = 20;
/** The engine's phases, as stages of the start. */
const STAGES: Record<string, StartPhase> = { preparing: "prepare", compiling: "compile", evaluating: "evaluate", step: "first" };
/** Weight of a new loss in the smoothed curve. */
const SMOOTHING = 0.25;

export class RunState {
  phase: Phase = "idle";
  id: string | undefined;
  failure: Failure | undefined;
  outcome: Outcome | undefined;
  stages: Stage[] = [];
  step = 0;
  total = 0;
  last: StepEvent | undefined;
  skipped = 0;
  /** What seems to go wrong, as sentences with placeholders of settings. */
  warnings: string[] = [];
  /** The last step of which the storage has a whole checkpoint. */
  savedStep: number | undefined;
  /** Why the storage does not have the newest checkpoint, or the result. */
  unstored: Failure | undefined;
  readonly steps: number[] = [];
  readonly losses: number[] = [];
  readonly smoothed: number[] = [];
  evaluations: EvaluatedEvent[] = [];
  private times: number[] = [];

  /** Whether the engine is at it: nothing that the run stands on may change. */
  get active(): boolean {
    return ["starting", "training", "pausing", "paused", "stopping"].includes(this.phase);
  }

  /** A run that broke off, and that can be gone on with. */
  get resumable(): boolean {
    const broken = this.phase === "failed" || (this.phase === "done" && this.outcome?.interrupted === true);
    return broken && this.id !== undefined && this.savedStep !== undefined;
  }

  get hasResult(): boolean {
    return this.phase === "done" && this.id !== undefined;
  }

  begin(resume: string | undefined): void {
    if (resume === undefined) this.clear();
    this.id = resume;
    this.phase = "starting";
    this.failure = undefined;
    this.outcome = undefined;
    this.stages = [];
    this.times = [];
  }

  private clear(): void {
    this.step = 0;
    this.total = 0;
    this.last = undefined;
    this.skipped = 0;
    this.warnings = [];
    this.savedStep = undefined;
    this.unstored = undefined;
    for (const list of [this.steps, this.losses, this.smoothed]) list.length = 0;
    this.evaluations = [];
  }

  /** The start has come to `name`; what was before is over. */
  enter(name: StartPhase): void {
    const now = performance.now();
    const current = this.stages.at(-1);
    if (current?.name === name) return;
    if (current !== undefined) current.ended ??= now;
    this.stages.push({ name, began: now, ended: undefined, progress: undefined });
  }

  /** How far the stage at hand is. */
  tell(progress: Progress): void {
    const current = this.stages.at(-1);
    if (current !== undefined) current.progress = progress;
  }

  hear(event: RunEvent): void {
    switch (event.type) {
      case "planned":
        this.total = event.steps ?? 0;
        break;
      case "phase":
        this.hearPhase(event);
        break;
      case "warning":
        this.warnings.push(event.message);
        break;
      case "loading":
        this.enter("load");
        this.tell({ what: "", done: event.done, total: event.total });
        break;
      case "device_lost":
        // Without a checkpoint the run starts anew and does not say which step it resumes after.
        this.forgetAfter(event.resumes ? event.step : 0);
        this.warnings.push(`The GPU was lost after step ${event.step} (${event.reason}). The run goes on by itself.`);
        this.times = [];
        break;
      case "resumed":
        this.forgetAfter(event.step);
        this.step = event.step;
        break;
      case "step":
        this.takeStep(event);
        break;
      case "skipped":
        this.skipped += 1;
        break;
      case "evaluated":
        this.evaluations.push(event);
        break;
      case "saved":
        this.savedStep = Number(/step-(\d+)$/.exec(event.path)?.[1] ?? this.step);
        this.unstored = undefined;
        break;
      case "paused":
        this.phase = "paused";
        break;
      case "continued":
        if (this.phase !== "stopping") this.phase = "training";
        this.times = [];
        break;
    }
  }

  /** The start shows its stages; later the steps speak for themselves. */
  private hearPhase({ phase, done, total }: PhaseEvent): void {
    const stage = STAGES[phase];
    if (this.phase !== "starting" || stage === undefined) return;
    this.enter(stage);
    if (done !== undefined && total !== undefined) this.tell({ what: "", done, total, counted: true });
  }

  private takeStep(event: StepEvent): void {
    if (this.phase === "starting") this.phase = "training";
    const current = this.stages.at(-1);
    if (current !== undefined) current.ended ??= performance.now();
    this.step = event.step;
    this.total = event.steps;
    this.last = event;
    this.add(event);
    this.times.push(performance.now());
    if (this.times.length > PACE_STEPS) this.times.shift();
  }

  private add({ step, loss }: StepEvent): void {
    const before = this.smoothed.at(-1) ?? loss;
    this.steps.push(step);
    this.losses.push(loss);
    this.smoothed.push(before + SMOOTHING * (loss - before));
  }

  /** A run that goes on from a checkpoint makes the later steps again. */
  private forgetAfter(step: number): void {
    const kept = this.steps.findLastIndex((s) => s <= step) + 1;
    for (const list of [this.steps, this.losses, this.smoothed]) list.length = kept;
    this.evaluations = this.evaluations.filter((evaluation) => evaluation.step <= step);
  }

  /** Seconds a step takes by the last ones; not a number before there are two. */
  get pace(): number {
    const first = this.times[0];
    const last = this.times.at(-1);
    if (first === undefined || last === undefined || this.times.length < 2) return Number.NaN;
    return (last - first) / (this.times.length - 1) / 1000;
  }

  /** Seconds, from the pace of the last steps. */
  get timeLeft(): number {
    return this.pace * (this.total - this.step);
  }

  /** A checkpoint found no room. */
  miss(failure: Failure): void {
    this.unstored = failure;
  }

  end({ id, outcome, unstored }: Trained): void {
    this.id = id;
    this.phase = "done";
    this.outcome = outcome;
    this.warnings = outcome.warnings?.map(({ message }) => message) ?? [];
    this.step = outcome.step;
    this.unstored = unstored;
    if (unstored === undefined) this.savedStep = outcome.step;
  }

  fail(failure: Failure): void {
    this.phase = "failed";
    this.failure = failure;
  }

  /** A start that was called off; a run that had been saved before can still be gone on with. */
  callOff(): void {
    const kept = this.id !== undefined && this.savedStep !== undefined;
    if (!kept) this.clear();
    this.phase = kept ? "done" : "idle";
    this.outcome = kept ? { step: this.savedStep ?? 0, interrupted: true, first_eval: undefined, last_eval: undefined } : undefined;
    if (!kept) this.id = undefined;
    this.stages = [];
  }

  restore({ run, steps, evaluations }: RestoredRun): void {
    this.clear();
    this.id = run.id;
    this.step = run.step;
    this.total = run.steps;
    this.savedStep = run.step;
    this.failure = undefined;
    this.stages = [];
    for (const event of steps) this.add(event);
    this.last = steps.at(-1);
    this.evaluations = evaluations;
    this.phase = run.finished ? "done" : "idle";
    this.outcome = run.finished
      ? { step: run.step, interrupted: false, first_eval: evaluations[0], last_eval: evaluations.at(-1) }
      : undefined;
  }

  /** Another model is open: answers of the last run's adapter are no longer to be had. */
  forgetResult(): void {
    if (this.active || this.phase === "idle") return;
    this.phase = "idle";
    this.id = undefined;
    this.outcome = undefined;
    this.failure = undefined;
    this.stages = [];
    this.clear();
  }
}
