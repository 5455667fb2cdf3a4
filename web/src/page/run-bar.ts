/** The run in one line at the foot of the window, with its controls: there from the start of a run to its end. */

import type { App } from "../app";
import { h, setText, show } from "./dom";
import * as format from "./format";
import { button } from "./parts";
import { stageName, stageTold } from "./run-section";

export interface RunBar {
  element: HTMLElement;
  /** Gives the focus to the first control that is there. */
  focus(): void;
}

export function runBar(app: App): RunBar {
  const { run } = app;
  const text = h("p", { class: "run-bar-text" });
  const meter = h("progress", { aria: { label: "Progress of the run" } });
  const pause = button("Pause", () => run.phase === "training" && app.pause());
  const resume = button("Continue", () => app.continue(), "primary");
  const stop = button("Stop and keep", () => (run.phase === "training" || run.phase === "paused") && app.stop());
  const cancel = button("Cancel", () => void app.cancelStart());
  const notify = button("Notify me", () => void askToNotify(), "quiet");
  const controls = [resume, pause, stop, cancel];
  const element = h(
    "div",
    { class: "run-bar", role: "region", aria: { label: "Run in progress" }, hidden: true },
    meter,
    h("div", { class: "run-bar-row" }, text, h("div", { class: "buttons" }, ...controls, notify)),
  );
  const askToNotify = async () => {
    await Notification.requestPermission();
    draw();
    focus();
  };
  const focus = () => controls.find((control) => !control.hidden)?.focus({ preventScroll: true });

  const line = (): string => {
    const stage = run.stages.at(-1);
    if (run.phase === "starting") return stage === undefined ? "Getting ready" : `${stageName(stage.name)}: ${stageTold(stage)}`;
    const parts = [`Step ${format.count(run.step)} of ${format.count(run.total)}`];
    if (run.last !== undefined) parts.push(`loss ${format.loss(run.smoothed.at(-1) ?? run.last.loss)}`);
    if (run.phase === "training" && Number.isFinite(run.timeLeft)) parts.push(`${format.duration(run.timeLeft)} left`);
    if (run.phase === "pausing") parts.push("pausing after this step");
    if (run.phase === "paused") parts.push("paused");
    if (run.phase === "stopping") parts.push("stopping after this step");
    return parts.join(", ");
  };
  const draw = () => {
    const had = element.contains(document.activeElement);
    show(element, run.active);
    show(cancel, run.phase === "starting");
    show(pause, run.phase === "training" || run.phase === "pausing");
    // Not `disabled`, which would drop the focus.
    pause.setAttribute("aria-disabled", String(run.phase === "pausing"));
    show(resume, run.phase === "paused");
    show(stop, run.active && run.phase !== "starting");
    stop.setAttribute("aria-disabled", String(run.phase === "stopping" || run.phase === "pausing"));
    show(notify, "Notification" in globalThis && Notification.permission === "default");
    if (!run.active) return;
    setText(text, line());
    const progress = run.stages.at(-1)?.progress;
    if (run.phase !== "starting") [meter.max, meter.value] = [Math.max(1, run.total), run.step];
    else if (progress !== undefined && progress.total > 0) [meter.max, meter.value] = [progress.total, progress.done];
    else meter.removeAttribute("value");
    // A control that goes hands the focus to the one that comes.
    if (had && (document.activeElement as HTMLElement | null)?.offsetParent === null) focus();
  };
  let asked = false;
  const drawSoon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
  app.on(["run"], draw);
  app.on(["step"], drawSoon);
  setInterval(() => run.active && draw(), 1000);
  return { element, focus };
}
