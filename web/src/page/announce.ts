/** What a visitor sees of the run who looks at another tab: the title, and at the end a notification. */

import type { App } from "../app";
import { t } from "../texts";
import * as format from "./format";

export function announce(app: App): void {
  const usual = document.title;
  const { run } = app;
  const title = (): string => {
    switch (run.phase) {
      case "idle":
        return usual;
      case "starting":
        return "Starting… loraine";
      case "done":
        return run.outcome?.interrupted ? "Stopped: loraine" : "Done: loraine";
      case "failed":
        return "Failed: loraine";
      default: {
        const share = run.total === 0 ? 0 : Math.floor((100 * run.step) / run.total);
        const loss = run.smoothed.at(-1);
        return `${share} %${loss === undefined ? "" : `, loss ${format.loss(loss)}`}: loraine`;
      }
    }
  };
  let wasActive = false;
  const draw = () => {
    const text = t(title());
    if (document.title !== text) document.title = text;
    const ended = wasActive && !run.active && (run.phase === "done" || run.phase === "failed");
    wasActive = run.active;
    if (ended) notify();
  };
  const notify = () => {
    // Permission was asked for by a click, or not at all.
    if (!("Notification" in globalThis) || Notification.permission !== "granted" || document.hasFocus()) return;
    const loss = run.smoothed.at(-1);
    const body =
      run.phase === "failed"
        ? t("The run failed.")
        : `${format.counted(run.step, "step")}${loss === undefined ? "" : `, loss ${format.loss(loss)}`}`;
    try {
      const notice = new Notification(t("loraine: the run has ended"), { body, tag: "loraine-run" });
      notice.onclick = () => window.focus();
    } catch {
      // Phones want notifications from a service worker; there the title has to do.
    }
  };
  app.on(["run", "step"], draw);
}
