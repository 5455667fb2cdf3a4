/** A run in the engine, with each checkpoint carried into the browser's storage before anybody hears of it. */

import type { Notice, RestoredRun, Trained, TrainRequest } from "../protocol";
import type { EvaluatedEvent, Failure, RunEvent, StepEvent } from "../types";
import * as adapters from "./adapters";
import { keepCache, mountCache } from "./cache";
import { reading } from "./data";
import { describe, PageError } from "./failure";
import { closeGenerator } from "./generation";
import * as models from "./models";
import * as runs from "./runs";
import { loraine, unmount } from "./wasm";

type Notify = (notice: Notice) => void;

let active: InstanceType<typeof loraine.Run> | undefined;
let storeAgain: () => void = () => {};
/** The run that this tab keeps from others, until it turns to another. */
let claimed: { id: string; release: () => void } | undefined;

async function claim(id: string): Promise<void> {
  if (claimed?.id === id) return;
  const release = await runs.claim(id);
  if (release === undefined) throw new PageError("storage", "This run is open in another tab. Close it there first.");
  claimed?.release();
  claimed = { id, release };
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
    return { id, ...(await follow(id, run, notify)) };
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

async function follow(id: string, run: InstanceType<typeof loraine.Run>, notify: Notify): Promise<Omit<Trained, "id">> {
  let steps = 0;
  let chosen = false;
  let storing: Promise<void> = Promise.resolve();
  let unstored: Failure | undefined;
  const afterStoring = (then: () => Promise<void> | void) => {
    storing = storing.then(then);
  };
  /** Stores the run as it is, and pauses it at the first checkpoint that has no room. */
  const keep = async (step: number, finished: boolean): Promise<void> => {
    try {
      await runs.save(id, { step, steps, finished });
      unstored = undefined;
    } catch (error) {
      const failure = describe(error);
      if (unstored === undefined) run.pause();
      unstored = failure;
      notify({ type: "unstored", failure });
    }
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
      const store = async () => {
        await keep(Number(step), false);
        if (unstored === undefined) notify({ type: "run", event });
      };
      storeAgain = () => unstored !== undefined && afterStoring(store);
      afterStoring(store);
    } else if (event.type === "paused") {
      afterStoring(() => notify({ type: "run", event }));
    } else if (event.type !== "saved") {
      // The files of the result are stored after the run.
      notify({ type: "run", event });
    }
  };
  try {
    const outcome = await run.train(listen);
    afterStoring(() => keep(outcome.step, !outcome.interrupted));
    await storing;
    return { outcome, ...(unstored && { unstored }) };
  } finally {
    storeAgain = () => {};
    // The page hears of each checkpoint before it hears of the end.
    await storing;
  }
}

export function pause(): void {
  active?.pause();
}

/** Goes on with a paused run. A checkpoint that had no room may have it by now. */
export function resume(): void {
  storeAgain();
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
