/** How LoRA works, at the end of the page. The figures are a part of the program that is fetched when they are asked for. */

import type { App } from "../app";
import { failureOf } from "../engine";
import { h } from "./dom";
import { noticePlace } from "./parts";

export function lessonSection(app: App): HTMLElement {
  const place = h("div", { class: "lesson" });
  const notices = noticePlace();
  const details = h("details", {}, h("summary", {}, "Show the figures"), notices.element, place);
  let follow: (() => void) | undefined;
  details.ontoggle = async () => {
    if (!details.open) return;
    notices.clear();
    try {
      const { lesson } = await import("./lesson");
      follow ??= lesson(app, place);
      follow();
    } catch (error) {
      notices.fail(failureOf(error));
    }
  };
  app.on(["run", "model"], () => details.open && follow?.());
  return h(
    "section",
    { id: "lesson", class: "section", aria: { labelledby: "lesson-title" } },
    h(
      "header",
      { class: "section-head" },
      h("h2", { id: "lesson-title" }, "How it works"),
      h("p", { class: "hint" }, "The mathematics of LoRA and of 4-bit weights, in numbers of this model and of your run."),
    ),
    h("div", { class: "section-body" }, details),
  );
}
