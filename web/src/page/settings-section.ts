import type { App } from "../app";
import { numberProblem, type NumberSetting } from "../recipe";
import type { RunSettings } from "../types";
import { h, show } from "./dom";
import { memoryPicture } from "./memory-picture";
import { type Field, field, section, select } from "./parts";

const TARGETS: [value: string, label: string][] = [
  ["all-linear", "All linear layers"],
  ["q_proj,k_proj,v_proj,o_proj", "Attention"],
  ["q_proj,v_proj", "Queries and values"],
  ["gate_proj,up_proj,down_proj", "Feed-forward"],
  ["", "Custom"],
];

export function settingsSection(app: App): HTMLElement {
  const main = h(
    "div",
    { class: "fields settings" },
    slider(app, "rank", "Rank", "Size of the adapter", [1, 2, 4, 8, 16, 32, 64, 128, 256]),
    slider(app, "max-seq-len", "Sequence length", "Tokens of the longest example", [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]),
    slider(app, "batch-size", "Batch size", "Examples per micro-batch", [1, 2, 4, 8, 16, 32, 64]),
    number(app, "alpha", "Alpha", "Strength: the adapter is scaled by alpha ÷ rank").element,
    number(app, "lr", "Learning rate", "Highest learning rate").element,
    number(app, "steps", "Steps", "Number of optimizer steps").element,
    targets(app),
  );
  const more = h(
    "details",
    {},
    h("summary", {}, "More settings"),
    h(
      "div",
      { class: "fields settings" },
      picked(app, "method", "Base weights", [
        ["qlora", "In 4 bits (QLoRA)"],
        ["lora", "As stored (LoRA)"],
      ]),
      picked(app, "schedule", "Schedule", [
        ["linear", "Linear"],
        ["cosine", "Cosine"],
        ["constant", "Constant"],
      ]),
      picked(app, "optim", "Optimizer", [
        ["adamw", "AdamW"],
        ["adamw8bit", "AdamW, moments in 8 bits"],
      ]),
      number(app, "warmup-steps", "Warm-up steps", "The learning rate rises over these steps").element,
      number(app, "grad-accum", "Gradient accumulation", "Micro-batches per step").element,
      number(app, "dropout", "Dropout", "On the adapter’s input").element,
      number(app, "weight-decay", "Weight decay", "").element,
      number(app, "seed", "Seed", "The same seed repeats a run").element,
    ),
  );
  const inputs = h("fieldset", { class: "bare" }, h("legend", { class: "visually-hidden" }, "Settings of the run"), main, more);
  app.on(["run"], () => {
    inputs.disabled = app.run.active;
  });
  return section(3, "settings", "Settings", "The main settings of a run. The bar shows the GPU memory they need.", inputs, memoryPicture(app))
    .element;
}

function number(app: App, name: NumberSetting, label: string, hint: string): Field<HTMLInputElement> {
  const input = h("input", { type: "text", inputMode: "decimal", autocomplete: "off", spellcheck: false });
  const made = field(label, input, hint);
  input.oninput = () => {
    const value = input.value.trim() === "" ? Number.NaN : Number(input.value.trim().replace(",", "."));
    const problem = numberProblem(name, value);
    made.problem(problem);
    app.setProblem(name, problem);
    if (problem === "") app.set({ [name]: value });
  };
  app.on(["settings"], () => {
    const value = app.settings[name];
    const shown = input.value.trim();
    if (value === undefined || (shown !== "" && Number(shown.replace(",", ".")) === value)) return;
    input.value = String(value);
    made.problem("");
    app.setProblem(name, "");
  });
  return made;
}

/** A number with a slider over its usual values. */
function slider(app: App, name: NumberSetting, label: string, hint: string, stops: number[]): HTMLElement {
  const range = h("input", {
    type: "range",
    min: "0",
    max: String(stops.length - 1),
    step: "1",
    aria: { label: `${label}, usual values` },
  });
  const made = number(app, name, label, hint);
  made.input.after(range);
  made.element.classList.add("with-slider");
  range.oninput = () => app.set({ [name]: stops[Number(range.value)] as number });
  app.on(["settings"], () => {
    const value = app.settings[name] ?? 0;
    const nearest = stops.reduce((best, stop, at) => (Math.abs(stop - value) < Math.abs((stops[best] as number) - value) ? at : best), 0);
    range.value = String(nearest);
    range.setAttribute("aria-valuetext", String(value));
  });
  return made.element;
}

function picked<Name extends "method" | "schedule" | "optim">(
  app: App,
  name: Name,
  label: string,
  options: [RunSettings[Name], string][],
): HTMLElement {
  const made = field(
    label,
    select(options, (value) => app.set({ [name]: value } as Partial<RunSettings>)),
  );
  app.on(["settings"], () => {
    made.input.value = app.settings[name];
  });
  return made.element;
}

function targets(app: App): HTMLElement {
  const own = field(
    "Names or regular expression",
    h("input", { type: "text", spellcheck: false, autocomplete: "off", maxLength: 200 }),
    "Names separated by commas, or a regular expression",
  );
  show(own.element, false);
  const list = select(TARGETS, (value) => {
    show(own.element, value === "");
    if (value !== "") app.set({ "target-modules": value });
    else own.input.focus();
  });
  own.input.oninput = () => {
    const value = own.input.value.trim();
    if (value !== "") app.set({ "target-modules": value });
  };
  const made = field("Target modules", list, "Layers with an adapter");
  app.on(["settings"], () => {
    const value = app.settings["target-modules"];
    const known = TARGETS.some(([name]) => name === value && name !== "");
    if (document.activeElement === own.input) return;
    list.value = known ? value : "";
    show(own.element, !known);
    if (!known) own.input.value = value;
  });
  return h("div", { class: "targets" }, made.element, own.element);
}
