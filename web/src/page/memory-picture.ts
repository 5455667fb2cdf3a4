/** What the run takes on the GPU, by category: the same colors as the terminal's picture. */

import type { App } from "../app";
import { ariaLabel, h, setText, show } from "./dom";
import * as format from "./format";
import { noticePlace } from "./parts";

export function memoryPicture(app: App): HTMLElement {
  const total = h("p", { class: "memory-total" });
  const bar = h("div", { class: "memory-bar", role: "img" });
  const legend = h("ul", { class: "memory-legend" });
  const note = h("p", { class: "hint" });
  const notices = noticePlace();
  const picture = h("div", {}, total, bar, legend, note);
  const element = h("div", { class: "memory", hidden: true }, h("h3", {}, "Memory on the GPU"), notices.element, picture);
  app.on(["estimate"], () => {
    const { estimate, estimateFailure } = app;
    show(element, estimate !== undefined || estimateFailure !== undefined);
    show(picture, estimateFailure === undefined);
    if (estimateFailure === undefined) notices.clear();
    else notices.fail(estimateFailure);
    if (estimate === undefined) return;
    const parts = estimate.categories.filter(({ bytes }) => bytes > 0);
    const label = parts.map(({ label, bytes }) => `${label} ${format.bytes(bytes)}`).join(", ");
    ariaLabel(bar, `${format.bytes(estimate.total)}: ${label}`);
    setText(total, format.bytes(estimate.total));
    bar.replaceChildren(
      ...parts.map(({ name, label, bytes }) => {
        const part = h("span", { class: `category ${name}`, title: `${label}: ${format.bytes(bytes)}` });
        part.style.flexGrow = String(bytes);
        return part;
      }),
    );
    legend.replaceChildren(
      ...parts.map(({ name, label, bytes }) =>
        h(
          "li",
          {},
          h("span", { class: `swatch category ${name}`, aria: { hidden: "true" } }),
          h("span", {}, label),
          h("span", { class: "bytes" }, format.bytes(bytes)),
        ),
      ),
    );
    const kept =
      estimate.kept_layers < estimate.layers
        ? ` ${estimate.kept_layers} of ${estimate.layers} layers keep their activations. The others recompute them.`
        : "";
    setText(
      note,
      `${format.parameters(estimate.trained_parameters)} trained parameters; sequences of up to ${format.count(app.sequenceLength)} tokens.${kept}`,
    );
  });
  return element;
}
