/** A run in one tab, shown in every other tab of this page. */

import type { App } from "../app";
import { h, setText, show } from "./dom";
import * as format from "./format";

interface Told {
  kind: "run";
  tab: string;
  active: boolean;
  model: string;
  starting: boolean;
  step: number;
  total: number;
  loss: number | null;
  seconds: number | null;
}

type Message = Told | { kind: "ask" };

const CHANNEL = "loraine-run";
/** A tab tells of its run this often, so that one that was closed is missed soon. */
const TELL_MS = 1000;
const SILENT_MS = 4 * TELL_MS;

export function otherTab(app: App): HTMLElement {
  const text = h("p", { role: "status" });
  const element = h(
    "aside",
    { class: "notice other-tab", hidden: true, aria: { labelledby: "other-tab-title" } },
    h("h2", { id: "other-tab-title" }, "A run in another tab"),
    text,
    h("p", { class: "hint" }, "It is paused and stopped there. A second run at the same time would share the GPU."),
  );
  if (!("BroadcastChannel" in globalThis)) return element;
  const channel = new BroadcastChannel(CHANNEL);
  const tab = crypto.randomUUID();
  const runs = new Map<string, { told: Told; at: number }>();
  const draw = () => {
    for (const [name, { at }] of runs) if (performance.now() - at > SILENT_MS) runs.delete(name);
    const { told } = [...runs.values()][0] ?? {};
    show(element, told !== undefined);
    if (told === undefined) return;
    const step = told.starting ? "getting ready" : `step ${format.count(told.step)} of ${format.count(told.total)}`;
    const loss = told.loss === null ? "" : `, loss ${format.loss(told.loss)}`;
    const left = told.seconds === null ? "" : `, ${format.duration(told.seconds)} left`;
    setText(text, `${told.model}: ${step}${loss}${left}.`);
  };
  const tell = () => {
    const { run } = app;
    const loss = run.smoothed.at(-1) ?? null;
    const seconds = run.phase === "training" && Number.isFinite(run.timeLeft) ? run.timeLeft : null;
    const { active, step, total } = run;
    const told: Told = {
      kind: "run",
      tab,
      active,
      model: app.model?.name ?? "",
      starting: run.phase === "starting",
      step,
      total,
      loss,
      seconds,
    };
    channel.postMessage(told satisfies Message);
  };
  channel.onmessage = ({ data }: MessageEvent<Message>) => {
    if (data.kind === "ask") {
      if (app.run.active) tell();
      return;
    }
    if (data.active) runs.set(data.tab, { told: data, at: performance.now() });
    // What it has saved can be opened here by now.
    else if (runs.delete(data.tab)) void app.listSaved();
    draw();
  };
  let wasActive = false;
  app.on(["run"], () => {
    if (app.run.active !== wasActive) tell();
    wasActive = app.run.active;
  });
  setInterval(() => {
    if (app.run.active) tell();
    draw();
  }, TELL_MS);
  channel.postMessage({ kind: "ask" } satisfies Message);
  return element;
}
