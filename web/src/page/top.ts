/** The head of the page: what it is, the first thing to press, the GPU that it has, and runs that wait to be gone on with. */

import type { App } from "../app";
import type { SavedRun } from "../protocol";
import { ariaLabel, h, setText, show } from "./dom";
import * as format from "./format";
import { button, noticePlace } from "./parts";
import { obstacle } from "./run-section";

export interface Ways {
  run(): void;
  result(): void;
  model(): void;
}

/** `starter` is the head as index.html has it; it is filled, not replaced, so that nothing jumps. */
export function top(app: App, starter: HTMLElement, go: Ways): void {
  const gpu = h("p", { class: "gpu", role: "status" });
  app.on(["gpu"], () => {
    gpu.dataset.status = app.gpu.status === "there" && app.gpu.adapter.software ? "slow" : app.gpu.status;
    setText(gpu, gpuTold(app));
  });
  const demo = button("Train the demo", () => app.trainDemo(), "primary");
  const watch = button("Watch the run", go.run, "primary");
  const result = button("See the result", go.result, "primary");
  const own = button("Use my own model and data", go.model);
  const hint = h("p", { class: "hint" });
  app.on(["run", "gpu", "inspection"], () => {
    const { run } = app;
    show(demo, !run.active && !run.hasResult);
    show(watch, run.active);
    show(result, run.hasResult);
    const onScreen = app.model?.source.kind === "demo" && app.data?.source.kind === "example";
    const inTheWay = onScreen ? obstacle(app) : undefined;
    demo.disabled = app.gpu.status !== "there" || (inTheWay !== undefined && !inTheWay.passing);
    const seconds = app.gpu.status === "there" && app.gpu.adapter.software ? "a few minutes on this processor" : "under a minute";
    const promise = `A tiny model learns to talk like a pirate, in ${seconds}. Nothing is downloaded.`;
    // Without a GPU, the notice below says more.
    const reason = app.gpu.status === "none" ? "" : demo.disabled ? inTheWay?.text : undefined;
    setText(hint, run.active || run.hasResult ? "" : (reason ?? promise));
  });
  starter.querySelector(".bar")?.append(gpu);
  starter.append(h("div", { class: "first" }, h("div", { class: "buttons" }, demo, watch, result, own), hint));
}

function gpuTold(app: App): string {
  switch (app.gpu.status) {
    case "asked":
      return "Looking for a GPU…";
    case "none":
      return "No GPU";
    case "there":
      return app.gpu.adapter.software ? "Software adapter: very slow" : app.gpu.adapter.name || "GPU ready";
  }
}

/** Shown where there is no WebGPU; everything but the run works all the same. */
export function noGpu(app: App): HTMLElement {
  const reason = h("p", {});
  const element = h(
    "aside",
    { class: "no-gpu notice", hidden: true, aria: { labelledby: "no-gpu-title" } },
    h("h2", { id: "no-gpu-title" }, "Training needs WebGPU, which this browser does not offer"),
    reason,
    h(
      "ul",
      {},
      h("li", {}, "Chrome or Edge 113 and newer on Windows, macOS and ChromeOS; Chrome 121 and newer on Android"),
      h("li", {}, "Safari 26 and newer on macOS, iOS and iPadOS"),
      h("li", {}, "Firefox 141 and newer on Windows, 145 and newer on Macs with Apple silicon"),
      h("li", {}, "Linux: a recent Chrome. You may have to enable chrome://flags/#enable-unsafe-webgpu"),
    ),
    h("p", {}, "Without WebGPU, this page still shows models, data and memory. In a terminal, loraine trains without a browser."),
  );
  app.on(["gpu"], () => {
    show(element, app.gpu.status === "none");
    const insecure = "The page was opened over an insecure connection. Browsers offer WebGPU on https and on localhost only.";
    const noAdapter = "The browser supports WebGPU but found no GPU. The graphics driver may be too old or blocked. WebGPU works in:";
    const unknown = "WebGPU works in:";
    setText(reason, !isSecureContext ? insecure : "gpu" in navigator ? noAdapter : unknown);
  });
  return element;
}

/** Shown where WebGPU computes on the processor: a visitor with a GPU can often do something about it. */
export function softwareGpu(app: App): HTMLElement {
  const element = h(
    "aside",
    { class: "notice software-gpu", hidden: true },
    h(
      "p",
      {},
      "This browser has no GPU to use and computes on the processor instead: very slow. The demo works; a real model takes hours. Turning on hardware acceleration in the browser’s settings, or a newer graphics driver, may help.",
    ),
  );
  app.on(["gpu", "run"], () => show(element, app.gpu.status === "there" && app.gpu.adapter.software && app.model?.source.kind !== "demo"));
  return element;
}

export function savedRuns(app: App, chooseFolder: () => void): HTMLElement {
  const list = h("ul", { class: "saved-runs" });
  const notices = noticePlace();
  const element = h(
    "aside",
    { class: "saved", hidden: true, aria: { labelledby: "saved-title" } },
    h("h2", { id: "saved-title" }, "Saved runs"),
    list,
    notices.element,
  );
  const row = (run: SavedRun) => {
    const data = run.data.kind === "example" ? "example data" : run.data.kind === "text" ? "pasted text" : run.data.name;
    const state = run.finished
      ? `finished, ${format.counted(run.step, "step")}`
      : `step ${format.count(run.step)} of ${format.count(run.steps)}`;
    const open = button(run.finished ? "Open" : "Resume", () => {
      if (run.model.kind === "folder" && run.model.copy === undefined && app.model?.name !== run.modelName) {
        notices.say(`This run’s model was too large to save. Choose the folder ${run.modelName} again below, then resume.`);
        chooseFolder();
      } else void app.goOn(run);
    });
    const discard = button("Discard", () => void app.discard(run), "quiet");
    ariaLabel(open, `${open.textContent}: ${run.modelName}, ${state}`);
    ariaLabel(discard, `Discard: ${run.modelName}, ${state}`);
    return h(
      "li",
      {},
      h(
        "div",
        {},
        h("strong", {}, run.modelName),
        h("span", {}, `${data}; ${state}`),
        h("span", { class: "hint" }, format.clock(run.started)),
      ),
      h("div", { class: "buttons" }, open, discard),
    );
  };
  app.on(["saved", "run"], () => {
    show(element, !app.run.active && (app.saved.length > 0 || app.savedFailure !== undefined));
    list.replaceChildren(...app.saved.map(row));
    if (app.savedFailure !== undefined) notices.fail(app.savedFailure);
    else notices.clear();
  });
  return element;
}
