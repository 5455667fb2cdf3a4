import type { App } from "../app";
import { lossChart } from "./chart";
import { h, setText, show } from "./dom";
import * as format from "./format";
import { button, noticePlace, progressBar, section } from "./parts";

export function runSection(app: App): HTMLElement {
  const { run } = app;
  const start = button("Start training", () => void app.train(), "primary");
  const goOn = button("Resume", () => void app.train(run.id), "primary");
  const pause = button("Pause", () => app.pause());
  const resume = button("Continue", () => app.continue(), "primary");
  const stop = button("Stop and keep", () => app.stop());
  const status = h("p", { class: "run-status", role: "status" });
  const progress = progressBar("Getting ready");
  const notices = noticePlace();
  const chart = lossChart(run);
  const numbers = ["Step", "Loss", "Tokens per second", "Time left"].map((name) => ({ name, value: h("dd", {}, "–") }));
  const stats = h("dl", { class: "stats" }, ...numbers.map(({ name, value }) => h("div", {}, h("dt", {}, name), value)));
  const watched = h("div", { class: "watched", hidden: true }, stats, chart.element);
  const { element } = section(
    4,
    "run",
    "Run",
    "Training runs on your GPU. Checkpoints are saved in this browser, so you can close the tab and resume later.",
    h("div", { class: "run-controls" }, h("div", { class: "buttons" }, goOn, start, resume, pause, stop), status),
    progress.element,
    notices.element,
    watched,
  );

  const drawNumbers = () => {
    const { last } = run;
    const values = [
      run.total === 0 ? "–" : `${format.count(run.step)} of ${format.count(run.total)}`,
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

  app.on(["run", "gpu"], () => {
    const blocked = obstacle(app);
    show(start, !run.active);
    setText(start, run.steps.length > 0 ? "New run" : "Start training");
    start.className = `button ${run.resumable ? "plain" : "primary"}`;
    start.disabled = blocked !== "";
    show(goOn, run.resumable);
    show(pause, run.phase === "training" || run.phase === "pausing");
    pause.disabled = run.phase === "pausing";
    show(resume, run.phase === "paused");
    show(stop, run.active && run.phase !== "starting");
    stop.disabled = run.phase === "stopping" || run.phase === "pausing";
    setText(status, run.active || run.phase === "done" || run.phase === "failed" ? told(app) : blocked || told(app));
    show(progress.element, run.progress !== undefined);
    if (run.progress !== undefined) progress.set(run.progress);
    if (run.failure === undefined) notices.clear();
    else notices.fail(run.failure);
    show(watched, run.steps.length > 0 || run.active);
    drawNumbers();
  });
  return element;
}

/** Why a run cannot start, or "". */
function obstacle(app: App): string {
  if (app.gpu.status === "asked") return "Looking for a GPU…";
  if (app.gpu.status === "none") return "This browser offers no GPU. See the top of the page.";
  if (app.model === undefined) return "Choose a model first.";
  if (app.data === undefined) return "Choose data first.";
  if (app.inspectionFailure !== undefined || app.inspection?.refusal) return "The data has a problem. See section 2.";
  if (app.inspecting || app.inspection === undefined) return "Reading the data…";
  if (app.settingsProblems.size > 0) return "A setting has an invalid value. See section 3.";
  if (app.estimateFailure !== undefined) return "These settings do not work together. See section 3.";
  return "";
}

function told(app: App): string {
  const { run } = app;
  const at = `step ${format.count(run.step)}`;
  switch (run.phase) {
    case "idle": {
      const examples = app.inspection?.report?.kept;
      return examples === undefined
        ? ""
        : `${format.counted(app.settings.steps ?? 0, "step")} over ${format.counted(examples, "example")}.`;
    }
    case "starting":
      return "Getting ready: loading the model and compiling the GPU programs. The first step takes the longest.";
    case "training":
      return run.skipped === 0
        ? "Training."
        : `Training. ${format.counted(run.skipped, "step")} skipped, because the loss or the gradient was not finite.`;
    case "pausing":
      return "Pausing after this step…";
    case "paused":
      return `Paused at ${at} and saved. You can close the tab.`;
    case "stopping":
      return "Stopping after this step…";
    case "done":
      return run.outcome?.interrupted
        ? `Stopped at ${at}. The adapter is below.`
        : `Finished: ${format.counted(run.step, "step")}.${heldOut(app)}`;
    case "failed":
      return run.resumable ? `Failed. The checkpoint of step ${format.count(run.savedStep ?? 0)} is intact.` : "Failed.";
  }
}

function heldOut(app: App): string {
  const first = app.run.evaluations[0];
  const last = app.run.evaluations.at(-1);
  if (first === undefined || last === undefined || first === last) return "";
  return ` Held-out loss ${format.loss(first.eval_loss)} before, ${format.loss(last.eval_loss)} after.`;
}
