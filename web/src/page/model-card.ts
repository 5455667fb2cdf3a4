/** The model card of the result, README.md of the adapter: written by the page, and edited by whoever likes. */

import type { App } from "../app";
import { h } from "./dom";
import { button, field } from "./parts";

export interface ModelCard {
  element: HTMLElement;
  /** What was edited; undefined leaves the card as the page writes it. */
  text(): string | undefined;
  /** Writes the card anew, unless somebody has edited it. */
  renew(): void;
}

export function modelCard(app: App, chosen: () => { run: string; model: string; base: string }): ModelCard {
  const area = field(
    "README.md",
    h("textarea", { rows: 14, spellcheck: false }),
    "Markdown. It comes with the zip and with what is published.",
  );
  let edited = false;
  area.input.oninput = () => (edited = true);
  const write = async () => {
    edited = false;
    area.input.value = await app.engine.call("modelCard", chosen()).catch(() => "");
  };
  const anew = button("Write it anew", () => void write(), "quiet");
  const element = h("details", { class: "model-card" }, h("summary", {}, "Model card"), area.element, h("div", { class: "buttons" }, anew));
  element.ontoggle = () => {
    if (element.open && !edited) void write();
  };
  let shownFor: string | undefined;
  app.on(["run"], () => {
    if (app.run.id === shownFor) return;
    shownFor = app.run.id;
    edited = false;
    if (element.open) element.open = false;
  });
  return {
    element,
    text: () => (edited ? area.input.value : undefined),
    renew: () => {
      if (element.open && !edited) void write();
    },
  };
}
