import type { App } from "../app";
import { adapterPanel } from "./adapter-panel";
import { comparison } from "./comparison";
import { h, show } from "./dom";
import { section } from "./parts";
import { takeAlong } from "./take-along";

export interface ResultSection {
  element: HTMLElement;
  heading: HTMLElement;
  /** Asks base and adapters the question in the box. */
  ask(): Promise<void>;
}

/** `goToRun` shows where the next run is set up. */
export function resultSection(app: App, goToRun: () => void): ResultSection {
  const { element: compared, ask } = comparison(app, goToRun);
  const waiting = h(
    "p",
    { class: "hint waiting" },
    "After a run, you can compare answers with and without the adapter, download or publish the adapter, and copy a link with the settings.",
  );
  const own = takeAlong(app);
  const { element, heading } = section(
    5,
    "result",
    "Result",
    "Compare the answers, and download or publish the adapter.",
    waiting,
    compared,
    adapterPanel(app),
    own,
  );
  app.on(["run", "adapters", "model"], () => {
    const toCompare = app.run.hasResult || (app.model !== undefined && app.comparedAdapters().length > 0);
    show(compared, toCompare);
    show(own, app.run.hasResult);
    show(waiting, !toCompare);
  });
  return { element, heading, ask };
}
