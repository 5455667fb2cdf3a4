import type { App } from "../app";
import { numberProblem, type NumberSetting } from "../recipe";
import type { RunSettings } from "../types";
import { h, show } from "./dom";
import * as format from "./format";
import { LABELS } from "./labels";
import { memoryPicture } from "./memory-picture";
import { checkbox, type Field, field, section, select } from "./parts";

const TARGETS: [value: string, label: string][] = [
  ["all-linear", "All linear layers"],
  ["q_proj,k_proj,v_proj,o_proj", "Attention"],
  ["q_proj,v_proj", "Queries and values"],
  ["gate_proj,up_proj,down_proj", "Feed-forward"],
  ["", "Custom"],
];

export interface SettingsSection {
  element: HTMLElement;
  focus(): void;
}

export function settingsSection(app: App): SettingsSection {
  const main = h(
    "div",
    { class: "settings-groups" },
    h(
      "div",
      { class: "fields settings three" },
      slider(app, "rank", "Size of the adapter", [1, 2, 4, 8, 16, 32, 64, 128, 256]),
      slider(app, "max-seq-len", "Tokens of the longest example", [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]),
      slider(app, "batch-size", "Examples per micro-batch", [1, 2, 4, 8, 16, 32, 64]),
    ),
    h(
      "div",
      { class: "fields settings four" },
      number(app, "alpha", "The adapter counts alpha ÷ rank").element,
      number(app, "lr", "").element,
      runLength(app, "epochs", "Passes over the data"),
      runLength(app, "steps", ""),
    ),
    h("div", { class: "fields settings two" }, targets(app)),
  );
  const more = h(
    "details",
    {},
    h("summary", {}, "More settings"),
    h(
      "div",
      { class: "fields settings" },
      picked(app, "method", [
        ["qlora", "In 4 bits (QLoRA)"],
        ["lora", "As stored (LoRA)"],
      ]),
      picked(app, "objective", [
        ["sft", "Answers (SFT)"],
        ["dpo", "Preferences (DPO)"],
        ["orpo", "Preferences (ORPO)"],
        ["kto", "Liked and disliked answers (KTO)"],
      ]),
      firstAdapter(app),
      picked(app, "schedule", [
        ["linear", "Linear"],
        ["cosine", "Cosine"],
        ["warmup-stable-decay", "Constant, then decay (WSD)"],
        ["constant", "Constant"],
      ]),
      picked(app, "optim", [
        ["adamw", "AdamW"],
        ["adamw8bit", "AdamW, moments in 8 bits"],
      ]),
      number(app, "warmup-steps", "").element,
      number(app, "grad-accum", "Micro-batches per step").element,
      number(app, "dropout", "").element,
      number(app, "weight-decay", "").element,
      number(app, "eval-fraction", "Of your own data; the example has its own", "5 %, at most 64").element,
      number(app, "seed", "The same seed repeats a run").element,
    ),
    embedding(app),
  );
  const inputs = h("fieldset", { class: "bare" }, h("legend", { class: "visually-hidden" }, "Settings of the run"), main, more);
  const { element, fold } = section(
    3,
    "settings",
    "Settings",
    "The main settings of a run. The bar shows the GPU memory they need.",
    inputs,
    memoryPicture(app),
  );
  app.on(["run", "estimate"], () => {
    inputs.disabled = app.run.active;
    const { rank, lr } = app.settings;
    const memory = app.estimate === undefined ? "" : `, ${format.bytes(app.estimate.total)} on the GPU`;
    fold(app.run.active ? `Rank ${rank}, learning rate ${lr}${memory}` : undefined);
  });
  const focus = () => element.querySelector<HTMLElement>('[aria-invalid="true"], input')?.focus();
  return { element, focus };
}

/** Epochs and steps, two views of one setting: what is typed into one shows in the other. */
function runLength(app: App, name: "epochs" | "steps", hint: string): HTMLElement {
  const input = h("input", { type: "text", inputMode: "decimal", autocomplete: "off", spellcheck: false });
  const made = field(LABELS[name], input, hint);
  input.oninput = () => {
    const value = input.value.trim() === "" ? Number.NaN : Number(input.value.trim().replace(",", "."));
    const problem = numberProblem(name, value);
    made.problem(problem);
    app.setProblem(name, problem);
    if (problem === "") app.setLength(name === "steps" ? { steps: value } : { epochs: value });
  };
  const shown = (): number | undefined => {
    if (name === "steps") return app.totalSteps;
    const { steps, epochs } = app.settings;
    if (steps === undefined) return epochs ?? 1;
    const passes = app.stepsPerEpoch && steps / app.stepsPerEpoch;
    return passes && Number(passes.toFixed(passes < 10 ? 2 : 1));
  };
  app.on(["settings", "inspection"], () => {
    const value = shown();
    if (value !== undefined && Number(input.value.trim().replace(",", ".")) === value && input.value.trim() !== "") return;
    // A value that somebody is typing stays as it is typed.
    if (document.activeElement === input && app.settingsProblems.has(name)) return;
    input.value = value === undefined ? "" : String(value);
    made.problem("");
    app.setProblem(name, "");
  });
  return made.element;
}

/** A field for a number; with `usual`, which says what the library takes by itself, it may be left empty. */
function number(app: App, name: NumberSetting, hint: string, usual?: string): Field<HTMLInputElement> {
  const input = h("input", { type: "text", inputMode: "decimal", autocomplete: "off", spellcheck: false, placeholder: usual ?? "" });
  const made = field(LABELS[name], input, hint);
  input.oninput = () => {
    if (usual !== undefined && input.value.trim() === "") {
      made.problem("");
      app.setProblem(name, "");
      app.unset(name);
      return;
    }
    const value = input.value.trim() === "" ? Number.NaN : Number(input.value.trim().replace(",", "."));
    const problem = numberProblem(name, value);
    made.problem(problem);
    app.setProblem(name, problem);
    if (problem === "") app.set({ [name]: value });
  };
  app.on(["settings"], () => {
    const value = app.settings[name];
    const shown = input.value.trim();
    if (value === undefined && usual !== undefined && !app.settingsProblems.has(name)) input.value = "";
    if (value === undefined || (shown !== "" && Number(shown.replace(",", ".")) === value)) return;
    input.value = String(value);
    made.problem("");
    app.setProblem(name, "");
  });
  return made;
}

/** A number with a slider over its usual values. */
function slider(app: App, name: NumberSetting, hint: string, stops: number[]): HTMLElement {
  const range = h("input", {
    type: "range",
    min: "0",
    max: String(stops.length - 1),
    step: "1",
    aria: { label: `${LABELS[name]}, usual values` },
  });
  const made = number(app, name, hint);
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

/** A new adapter, or one that is there already. */
function firstAdapter(app: App): HTMLElement {
  const list = select([], (value) => {
    if (value === "") app.unset("init-adapter");
    else app.set({ "init-adapter": value });
  });
  const made = field(LABELS["init-adapter"], list);
  app.on(["settings", "adapters", "saved", "run", "model"], () => {
    const known = app.knownAdapters();
    const value = app.settings["init-adapter"] ?? "";
    const missing = value !== "" && !known.some(({ dir }) => dir === value);
    list.replaceChildren(
      h("option", { value: "" }, "A new adapter"),
      ...known.map(({ dir, title }) => h("option", { value: dir }, title)),
      ...(missing ? [h("option", { value }, "An earlier adapter")] : []),
    );
    list.value = value;
  });
  return made.element;
}

/** The choice to have the whole base in 4 bits, which is for bases in 4 bits. */
function embedding(app: App): HTMLElement {
  const made = checkbox(LABELS["quantize-embedding"], (checked) => app.set({ "quantize-embedding": checked }));
  app.on(["settings"], () => {
    const is4Bit = app.settings.method === "qlora";
    made.input.disabled = !is4Bit;
    made.input.checked = is4Bit && app.settings["quantize-embedding"] === true;
    if (!is4Bit && app.settings["quantize-embedding"] === true) app.set({ "quantize-embedding": false });
  });
  return made.element;
}

function picked<Name extends "method" | "objective" | "schedule" | "optim">(
  app: App,
  name: Name,
  options: [RunSettings[Name], string][],
): HTMLElement {
  const made = field(
    LABELS[name],
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
    "Names separated by commas",
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
  const made = field(LABELS["target-modules"], list);
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
