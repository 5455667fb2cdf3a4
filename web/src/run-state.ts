/** Where the run of this page stands, from the events that it has sent. */

import type { Progress, RestoredRun } from "./protocol";
import type { EvaluatedEvent, Failure, Outcome, RunEvent, StepEvent } from "./types";

export type Phase = "idle" | "starting" | "training" | "pausing" | "paused" | "stopping" | "done" | "failed";

/** Steps whose pace the time left is taken from. */
const PACE_STEPS = 20;
/** Weight of a new loss in the smoothed curve. */
const SMOOTHING = 0.25;

export class RunState {
  phase: Phase = "idle";
  id: string | undefined;
  progress: Progress | undefined;
  failure: Failure | undefined;
  outcome: Outcome | undefined;
  step = 0;
  total = 0;
  last: StepEvent | undefined;
  skipped = 0;
  /** The last step of which the storage has a whole checkpoint. */
  savedStep: number | undefined;
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
    this.progress = undefined;
    this.times = [];
  }

  private clear(): void {
    this.step = 0;
    this.total = 0;
    this.last = undefined;
    this.skipped = 0;
    this.savedStep = undefined;
    for (const list of [this.steps, this.losses, this.smoothed]) list.length = 0;
    this.evaluations = [];
  }

  hear(event: RunEvent): void {
    switch (event.type) {
      case "planned":
        this.total = event.steps ?? 0;
        break;
      case "loading":
        this.progress = { what: "loading the model onto the GPU", done: event.done, total: event.total };
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

  private takeStep(event: StepEvent): void {
    if (this.phase === "starting") this.phase = "training";
    this.progress = undefined;
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

  /** Seconds, from the pace of the last steps. */
  get timeLeft(): number {
    const first = this.times[0];
    const last = this.times.at(-1);
    if (first === undefined || last === undefined || this.times.length < 2) return Number.NaN;
    return (((last - first) / (this.times.length - 1)) * (this.total - this.step)) / 1000;
  }

  end(id: string, outcome: Outcome): void {
    this.id = id;
    this.phase = "done";
    this.outcome = outcome;
    this.step = outcome.step;
    this.savedStep = outcome.step;
    this.progress = undefined;
  }

  fail(failure: Failure): void {
    this.phase = "failed";
    this.failure = failure;
    this.progress = undefined;
  }

  restore({ run, steps, evaluations }: RestoredRun): void {
    this.clear();
    this.id = run.id;
    this.step = run.step;
    this.total = run.steps;
    this.savedStep = run.step;
    this.failure = undefined;
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
    this.clear();
  }
}
