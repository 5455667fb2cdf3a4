/** A run in the engine, with each checkpoint carried into the browser's storage before anybody hears of it. */

import type { Notice, RestoredRun, Trained, TrainRequest } from "../protocol";
import type { EvaluatedEvent, Outcome, RunEvent, StepEvent } from "../types";
import * as adapters from "./adapters";
import { keepCache, mountCache } from "./cache";
import { reading } from "./data";
import { PageError } from "./failure";
import { closeGenerator } from "./generation";
import * as models from "./models";
import * as runs from "./runs";
import { loraine, unmount } from "./wasm";

type Notify = (notice: Notice) => void;

let active: InstanceType<typeof loraine.Run> | undefined;
const claimed = new Set<string>();

async function claim(id: string): Promise<void> {
  if (claimed.has(id)) return;
  if (!(await runs.claim(id))) throw new PageError("storage", "This run is open in another tab. Close it there first.");
  claimed.add(id);
}

export async function train(request: TrainRequest, notify: Notify): Promise<Trained> {
  if (active !== undefined) throw new PageError("setting", "Another run is active.");
  await closeGenerator();
  const id = request.resume ?? crypto.randomUUID();
  await claim(id);
  const settings = { ...request.settings, out: runs.runDir(id) };
  if (request.resume === undefined) {
    const first = settings["init-adapter"];
    const files = first === undefined ? undefined : await adapterFiles(first);
    unmount("/runs");
    // The run has a copy of the adapter that it starts from, which outlives the adapter.
    if (files !== undefined) settings["init-adapter"] = runs.mountFirst(id, files);
  } else await runs.mountSave(id);
  await mountCache();
  // Refuses what cannot work before anything is stored.
  const run = reading(notify, () => new loraine.Run(settings, request.resume !== undefined));
  active = run;
  try {
    if (request.resume === undefined) await store(id, { ...request, settings }, notify);
    notify({ type: "begun", run: id });
    const outcome = await follow(id, run, notify);
    return { id, outcome };
  } finally {
    active = undefined;
    run.free();
  }
}

async function adapterFiles(dir: string): Promise<runs.Files> {
  await adapters.provide(dir);
  return adapters.filesOf(dir);
}

async function store(id: string, request: TrainRequest, notify: Notify): Promise<void> {
  let { model } = request;
  if (model.kind === "folder" && model.copy === undefined) {
    try {
      notify({ type: "phase", phase: "copy" });
      const copy = await models.copyFolder((progress) => notify({ type: "progress", progress }));
      model = { ...model, copy };
    } catch (error) {
      // Without a copy the run can still go on after a reload: the page asks for the folder.
      if (!(error instanceof DOMException && error.name === "QuotaExceededError")) throw error;
    }
  }
  const { modelName, data, settings } = request;
  await runs.create(id, { model, modelName, data, settings, started: Date.now() });
}

async function follow(id: string, run: InstanceType<typeof loraine.Run>, notify: Notify): Promise<Outcome> {
  let steps = 0;
  let chosen = false;
  let storing: Promise<void> = Promise.resolve();
  let problem: unknown;
  const afterStoring = (then: () => Promise<void> | void) => {
    storing = storing.then(then).catch((error: unknown) => {
      problem ??= error;
    });
  };
  const listen = (event: RunEvent) => {
    if (event.type === "planned") steps = event.steps ?? 0;
    else if (!chosen) {
      // The kernels are chosen between the plan and whatever comes next.
      chosen = true;
      afterStoring(keepCache);
    }
    const step = event.type === "saved" ? /\/checkpoints\/step-(\d+)$/.exec(event.path)?.[1] : undefined;
    if (step !== undefined) {
      afterStoring(() => runs.save(id, { step: Number(step), steps, finished: false }));
      afterStoring(() => notify({ type: "run", event }));
    } else if (event.type === "paused") {
      afterStoring(() => notify({ type: "run", event }));
    } else {
      notify({ type: "run", event });
    }
  };
  const outcome = await run.train(listen);
  afterStoring(() => runs.save(id, { step: outcome.step, steps, finished: !outcome.interrupted }));
  await storing;
  if (problem !== undefined) throw problem;
  return outcome;
}

export function pause(): void {
  active?.pause();
}

export function resume(): void {
  active?.resume();
}

export function stop(): void {
  active?.stop();
}

/** Opens model, data and files of a saved run; `train` with its name goes on from there. */
export async function restore(id: string, notify: Notify): Promise<RestoredRun> {
  await claim(id);
  const run = await runs.find(id);
  if (run === undefined) throw new PageError("storage", "This run was deleted from the browser's storage.");
  const model = await openModel(run.model, notify);
  const data = await runs.openRunData(id, run.data);
  await runs.mountSave(id);
  const { steps, evaluations } = curves(`${runs.runDir(id)}/metrics.jsonl`, run.steps);
  return { run, model, data, steps, evaluations };
}

function openModel(source: TrainRequest["model"], notify: Notify): ReturnType<typeof models.openDemo> | ReturnType<typeof models.openHub> {
  switch (source.kind) {
    case "demo":
      return models.openDemo();
    case "hub":
      return models.openHub(source.address, "", (progress) => notify({ type: "progress", progress }));
    case "folder":
      return models.openCopy(source.name, source.copy);
  }
}

/** The lines that the run has logged. */
function curves(path: string, steps: number): { steps: StepEvent[]; evaluations: EvaluatedEvent[] } {
  let text = "";
  try {
    text = new TextDecoder().decode(loraine.readFile(path));
  } catch {
    // A run that has logged nothing yet has no such file.
  }
  const found: { steps: StepEvent[]; evaluations: EvaluatedEvent[] } = { steps: [], evaluations: [] };
  for (const line of text.split("\n").filter((line) => line !== "")) {
    const metrics = JSON.parse(line) as StepEvent | EvaluatedEvent | { skipped: true };
    if ("eval_loss" in metrics) found.evaluations.push({ ...metrics, type: "evaluated" });
    else if ("loss" in metrics) found.steps.push({ ...metrics, type: "step", steps });
  }
  return found;
}
