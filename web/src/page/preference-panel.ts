/** The preferences that were collected: as a file, or as the data of the next run. */

import type { App } from "../app";
import { toJsonl } from "../preferences";
import { ariaLabel, h, setText, show } from "./dom";
import * as format from "./format";
import { button } from "./parts";
import { saveFile } from "./save-file";

export function preferencePanel(app: App, goToRun: () => void): HTMLElement {
  const text = h("p", { role: "status" });
  const download = button("Download as JSONL", () => saveFile("preferences.jsonl", [toJsonl(app.preferences)], "application/jsonl"));
  const train = button("Train on them", () => void app.trainOnPreferences().then(goToRun));
  const discard = button("Discard", () => app.forgetPreferences(), "quiet");
  ariaLabel(discard, "Discard the preferences");
  const element = h(
    "div",
    { class: "preferences", hidden: true },
    text,
    h("div", { class: "buttons" }, download, train, discard),
    h("p", { class: "hint" }, "“Train on them” takes them as the data of a run with DPO that starts from the adapter of the result."),
  );
  app.on(["preferences", "run"], () => {
    show(element, app.preferences.length > 0);
    setText(text, `${format.counted(app.preferences.length, "preference")} collected, in this tab alone.`);
    train.disabled = app.run.active;
  });
  return element;
}
