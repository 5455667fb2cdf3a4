import type { App } from "../app";
import { h, show } from "./dom";
import { LABELS } from "./labels";
import * as format from "./format";
import { button, checkbox, choice, dropPlace, field, noticePlace, section, select } from "./parts";
import type { DataFormat } from "../types";
import { preview } from "./preview";

/** What is in a pasted text, by its first character. */
function pastedName(text: string, kind: string): string {
  const first = text.trimStart()[0];
  if (kind === "text" || (kind === "auto" && first !== "{" && first !== "[")) return "pasted.txt";
  return first === "[" ? "pasted.json" : "pasted.jsonl";
}

export function dataSection(app: App): HTMLElement {
  const openExample = () => void app.openData({ kind: "example" }, null);
  const example = h("div", {}, h("p", {}, "800 short conversations in which a pirate answers. 40 more are held out for evaluation."));
  const paste = pastePanel(app);
  const input = h("input", { type: "file", accept: ".jsonl,.json,.txt,.parquet" });
  const take = (file: File | undefined | null) => {
    if (file) void app.openData({ kind: "file", name: file.name }, file);
  };
  input.onchange = () => {
    take(input.files?.[0]);
    input.value = "";
  };
  const file = dropPlace(
    "Drop a .jsonl, .json, .parquet or .txt file here. The page reads it in this tab and sends it nowhere.",
    "Choose a file",
    input,
    (transfer) => take(transfer.files[0]),
  );
  const ways = choice(
    "Data source",
    [
      ["example", "Example", example],
      ["text", "Paste", paste],
      ["file", "File", file],
    ],
    (way) => {
      if (way === "example") openExample();
    },
  );
  const notices = noticePlace();
  const name = h("p", { class: "data-name" });
  const inputs = h("fieldset", { class: "bare" }, h("legend", { class: "visually-hidden" }, "Choose data"), ways.element, reading(app));
  const { element } = section(
    2,
    "data",
    "Data",
    "The text to learn from. The model learns the marked tokens, and reads the others as context.",
    inputs,
    notices.element,
    name,
    preview(app),
  );

  // Opens the panel only once, since the user may switch to another one meanwhile.
  let shown: App["data"];
  app.on(["data", "inspection"], () => {
    const failure = app.dataFailure ?? app.inspectionFailure;
    const refusal = app.inspection?.refusal;
    if (failure !== undefined) notices.fail(failure);
    else if (refusal) notices.fail({ kind: "setting", message: refusal });
    else notices.clear();
    if (app.data !== shown && app.data !== undefined) ways.choose(app.data.source.kind);
    shown = app.data;
    const source = app.data?.source;
    show(name, source !== undefined && source.kind !== "example");
    if (app.data !== undefined && source !== undefined && source.kind !== "example") {
      name.textContent = `${source.kind === "text" ? "Pasted text" : source.name}, ${format.bytes(app.data.bytes)}`;
    }
  });
  app.on(["run"], () => {
    inputs.disabled = app.run.active;
  });
  ways.choose("example");
  return element;
}

function pastePanel(app: App): HTMLElement {
  const area = h("textarea", {
    rows: 7,
    spellcheck: false,
    placeholder:
      '{"prompt": "…", "completion": "…"}\n{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
  });
  const text = field(
    "Text",
    area,
    "One JSON object per line (messages, prompt and completion, instruction and output, or text), a JSON list, or plain text.",
  );
  const kind = field(
    "Format",
    select(
      [
        ["auto", "Detect automatically"],
        ["json", "JSON"],
        ["text", "Plain text"],
      ],
      () => {},
    ),
  );
  const use = () => {
    const empty = area.value.trim() === "";
    text.problem(empty ? "Paste some text first." : "");
    if (!empty) void app.openData({ kind: "text", name: pastedName(area.value, kind.input.value) }, area.value);
  };
  return h(
    "div",
    {},
    text.element,
    h("div", { class: "fields paste" }, kind.element, h("div", { class: "field-button" }, button("Use this text", use))),
  );
}

/** How records become tokens: for the few data sets that need another way than the usual one. */
function reading(app: App): HTMLElement {
  const set = (change: Partial<DataFormat>) => {
    const format: DataFormat = { ...app.settings["data-format"], ...change };
    app.set({ "data-format": format });
  };
  const without = (key: "chat-template" | "train-on") => {
    const { [key]: _, ...format } = app.settings["data-format"];
    app.set({ "data-format": format });
  };
  const templates: [string, string][] = [
    ["", "The model’s own"],
    ...["chatml", "llama-2", "llama-3", "gemma", "zephyr", "plain"].map((name): [string, string] => [name, name]),
  ];
  const template = field(
    LABELS["chat-template"],
    select(templates, (value) => (value === "" ? without("chat-template") : set({ "chat-template": value }))),
  );
  const trainOn = field(
    LABELS["train-on"],
    select(
      [
        ["", "Answers"],
        ["assistant", "Every assistant turn"],
        ["completion", "The last answer only"],
        ["all", "Every token"],
      ],
      (value) => (value === "" ? without("train-on") : set({ "train-on": value as NonNullable<DataFormat["train-on"]> })),
    ),
  );
  const onLong = field(
    LABELS["on-long"],
    select(
      [
        ["refuse", "Stop with an error"],
        ["truncate", "Truncate"],
        ["drop", "Skip"],
        ["split", "Split"],
      ],
      (value) => set({ "on-long": value as DataFormat["on-long"] }),
    ),
  );
  const packing = checkbox("Pack short examples together", (checked) => set({ packing: checked }));
  app.on(["settings"], () => {
    const format = app.settings["data-format"];
    template.input.value = format["chat-template"] ?? "";
    trainOn.input.value = format["train-on"] ?? "";
    onLong.input.value = format["on-long"];
    packing.input.checked = format.packing;
  });
  return h(
    "details",
    {},
    h("summary", {}, "Data options"),
    h("div", { class: "fields" }, template.element, trainOn.element, onLong.element),
    packing.element,
  );
}
