import type { App } from "../app";
import type { Stage } from "../run-state";
import { heldOut } from "../settings";
import type { Failure } from "../types";
import { lossChart } from "./chart";
import { h, setText, show } from "./dom";
import { withLabels } from "./labels";
import * as format from "./format";
import { button, noticePlace, section } from "./parts";

/** Where a visitor can do something about what is missing. */
export type Place = "top" | "model" | "data" | "settings";

export interface RunSection {
  element: HTMLElement;
}

const STAGES: [Stage["name"], string][] = [
  ["read", "Read the data and plan the memory"],
  ["copy", "Copy the model into this browser’s storage, so that the run outlives this tab"],
  ["prepare", "Choose the GPU programs and take the memory"],
  ["load", "Load the model onto the GPU"],
  ["compile", "Compile the GPU programs"],
  ["evaluate", "Measure the validation loss"],
  ["first", "Make the first step"],
];

export const stageName = (name: Stage["name"]): string => STAGES.find(([stage]) => stage === name)?.[1] ?? name;

/** How far a stage is, and for how long it has run. */
export function stageTold({ progress, began, ended }: Stage): string {
  const seconds = format.duration(((ended ?? performance.now()) - began) / 1000);
  if (progress === undefined || progress.total === 0 || ended !== undefined) return seconds;
  const shown = progress.counted ? format.count : format.bytes;
  return `${shown(progress.done)} of ${shown(progress.total)}, ${seconds}`;
}

export function runSection(app: App, goTo: (place: Place) => void): RunSection {
  const { run } = app;
  // Data that are read once more for a changed setting do not swallow the click: the run starts with what they become.
  const startWhenRead = async () => {
    await app.settled();
    if (obstacle(app) === undefined) await app.train();
  };
  const start = button("Start training", () => void startWhenRead(), "primary");
  const goOn = button("Resume", () => void app.train(run.id), "primary");
  const status = h("p", { class: "run-status", role: "status" });
  let way: Place = "top";
  const there = button("Show me", () => goTo(way), "quiet");
  const stages = h("ol", { class: "stages" });
  const notices = noticePlace();
  const chart = lossChart(run);
  const numbers = ["Step", "Epoch", "Loss", "Tokens per second", "Time left"].map((name) => ({ name, value: h("dd", {}, "–") }));
  const stats = h("dl", { class: "stats" }, ...numbers.map(({ name, value }) => h("div", {}, h("dt", {}, name), value)));
  const watched = h("div", { class: "watched", hidden: true }, stats, chart.element);
  const { element } = section(
    4,
    "run",
    "Run",
    "Training runs on your GPU. Checkpoints are saved in this browser, so you can close the tab and resume later.",
    h("div", { class: "run-controls" }, h("div", { class: "buttons" }, goOn, start), status, there),
    stages,
    notices.element,
    watched,
  );

  const drawNumbers = () => {
    const { last } = run;
    const perEpoch = app.stepsPerEpoch;
    const values = [
      run.total === 0 ? "–" : `${format.count(run.step)} of ${format.count(run.total)}`,
      perEpoch === undefined || run.total === 0 ? "–" : `${format.epochs(run.step / perEpoch)} of ${format.epochs(run.total / perEpoch)}`,
      last === undefined ? "–" : format.loss(run.smoothed.at(-1) ?? last.loss),
      last === undefined ? "–" : format.rate(last.tokens_per_s),
      run.phase === "training" ? format.duration(run.timeLeft) : "–",
    ];
    for (const [at, { value }] of numbers.entries()) setText(value, values[at] as string);
    chart.update();
  };

  // One frame draws whatever several steps have changed.
  let asked = false;
  app.on(["step"], () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      drawNumbers();
    });
  });

  const drawStages = () => {
    show(stages, run.phase === "starting");
    if (run.phase === "starting") stages.replaceChildren(...run.stages.map(stageRow));
  };
  // The clock of the stage at hand goes on when nothing else does.
  setInterval(() => run.phase === "starting" && drawStages(), 1000);

  const drawStart = () => {
    const blocked = obstacle(app);
    // A long reading has a bar of its own, and its end is not in sight.
    const soon = blocked?.passing === true && app.reading === undefined;
    start.disabled = blocked !== undefined && !soon;
  };
  app.on(["run", "gpu", "inspection", "reading"], drawStart);

  app.on(["run", "gpu", "inspection"], () => {
    const blocked = obstacle(app);
    show(start, !run.active);
    setText(start, run.steps.length > 0 ? "New run" : "Start training");
    start.className = `button ${run.resumable || run.hasResult ? "plain" : "primary"}`;
    show(goOn, run.resumable);
    goOn.disabled = app.model === undefined || app.data === undefined;
    const quiet = !run.active && run.phase !== "done" && run.phase !== "failed";
    const text = (quiet ? blocked?.text : undefined) ?? told(app);
    setText(status, text);
    show(there, !run.active && blocked?.place !== undefined);
    way = blocked?.place ?? "top";
    drawStages();
    if (run.failure !== undefined) notices.fail(run.failure);
    else if (run.unstored !== undefined) notices.fail(unstored(run, run.unstored));
    else if (run.warnings.length > 0) notices.say(run.warnings.map(withLabels).join(" "));
    else notices.clear();
    // Before the first step there is nothing to draw.
    show(watched, run.steps.length > 0);
    drawNumbers();
  });
  return { element };
}

function stageRow(stage: Stage): HTMLElement {
  const over = stage.ended !== undefined;
  const sign = h("span", { class: "stage-sign", aria: { hidden: "true" } }, over ? "✓" : "");
  const name = h("span", {}, stageName(stage.name), over && h("span", { class: "visually-hidden" }, ", done"));
  const { progress } = stage;
  const bar = h("progress", { aria: { label: stageName(stage.name) } });
  if (progress !== undefined && progress.total > 0) [bar.max, bar.value] = [progress.total, progress.done];
  return h("li", { class: over ? "stage over" : "stage" }, sign, name, h("span", { class: "hint" }, stageTold(stage)), !over && bar);
}

interface Obstacle {
  text: string;
  place?: Place;
  /** It goes by itself. */
  passing?: true;
}

/** Why a run cannot start, and where that can be changed. */
export function obstacle(app: App): Obstacle | undefined {
  if (app.gpu.status === "asked") return { text: "Looking for a GPU…" };
  if (app.gpu.status === "none") return { text: "This browser offers no GPU. See the top of the page.", place: "top" };
  if (app.modelProgress !== undefined) return { text: "The model is not here yet.", place: "model" };
  if (app.model === undefined) {
    if (app.chosen.model === "hub")
      return { text: app.offer === undefined ? "Fetch the model first." : "Download the model first.", place: "model" };
    return { text: "Choose a model first.", place: "model" };
  }
  if (app.data === undefined) {
    if (app.chosen.data === "file") return { text: "Choose a data file first.", place: "data" };
    return { text: app.chosen.data === "text" ? "Paste a text and press “Use this text” first." : "Choose data first.", place: "data" };
  }
  if (app.inspectionFailure !== undefined || app.inspection?.refusal)
    return { text: "The data has a problem. See section 2.", place: "data" };
  if (app.inspecting || app.inspection === undefined) return { text: "Reading the data…", passing: true };
  if (app.settingsProblems.size > 0) return { text: "A setting has an invalid value. See section 3.", place: "settings" };
  if (app.estimateFailure !== undefined) return { text: "These settings do not work together. See section 3.", place: "settings" };
  return undefined;
}

/** What a visitor loses where the browser's storage has not everything, and what can be done. */
function unstored(run: App["run"], failure: Failure): Failure {
  const kept = run.savedStep === undefined ? "Nothing of this run is saved yet." : `Step ${format.count(run.savedStep)} is saved.`;
  const message = run.active
    ? `${failure.message} ${kept} Then continue, or stop and download the adapter.`
    : `The result is not saved in this browser: download the adapter before you close this tab. ${failure.message}`;
  return { ...failure, message };
}

function told(app: App): string {
  const { run } = app;
  const at = `step ${format.count(run.step)}`;
  switch (run.phase) {
    case "idle":
      return planned(app);
    case "starting":
      return "Getting ready.";
    case "training":
      return run.skipped === 0
        ? "Training."
        : `Training. ${format.counted(run.skipped, "step")} skipped, because the loss or the gradient was not finite.`;
    case "pausing":
      return "Pausing after this step…";
    case "paused":
      return run.unstored === undefined ? `Paused at ${at} and saved. You can close the tab.` : `Paused at ${at}, which is not saved.`;
    case "stopping":
      return "Stopping after this step…";
    case "done":
      return run.outcome?.interrupted
        ? `Stopped at ${at}. The adapter is below.`
        : `Finished: ${format.counted(run.step, "step")}.${validation(app)}`;
    case "failed":
      return run.resumable ? `Failed. The checkpoint of step ${format.count(run.savedStep ?? 0)} is intact.` : "Failed.";
  }
}

/** How long the run will be: steps, passes over the data, and minutes where the pace is known. */
function planned(app: App): string {
  const { totalSteps, stepsPerEpoch } = app;
  const examples = app.inspection?.report?.kept;
  if (totalSteps === undefined || stepsPerEpoch === undefined || examples === undefined) return "";
  const held = app.data?.source.kind === "example" ? 0 : heldOut(app.settings, examples);
  const validation = held > 0 ? `, ${format.count(held)} more for validation` : "";
  const epochs = format.epochs(totalSteps / stepsPerEpoch);
  const length = `${format.counted(totalSteps, "step")}: ${epochs} ${epochs === "1" ? "epoch" : "epochs"} of ${format.counted(examples - held, "example")}${validation}.`;
  const time = Number.isFinite(app.pace) ? ` About ${format.duration(app.pace * totalSteps)} at the pace of the last run.` : "";
  return length + time;
}

function validation(app: App): string {
  const first = app.run.evaluations[0];
  const last = app.run.evaluations.at(-1);
  if (first === undefined || last === undefined || first === last) return "";
  return ` Validation loss ${format.loss(first.eval_loss)} before, ${format.loss(last.eval_loss)} after.`;
}
