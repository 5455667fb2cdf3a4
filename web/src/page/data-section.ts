import type { App } from "../app";
import { h, show } from "./dom";
import { LABELS } from "./labels";
import * as format from "./format";
import { button, checkbox, choice, dropPlace, field, noticePlace, progressBar, section, select } from "./parts";
import type { DataSource } from "../protocol";
import { t } from "../texts";
import type { DataFormat } from "../types";
import { preview } from "./preview";

/** A longer text does not go into the box, which would take seconds to lay it out. */
const BOX_CHARACTERS = 500_000;

/** What is in a pasted text, by its first character. */
function pastedName(text: string, kind: string): string {
  const first = text.trimStart()[0];
  const table = tableKind(text);
  if (kind === "csv" || (kind === "auto" && table !== undefined)) return `pasted.${table ?? "csv"}`;
  if (kind === "text" || (kind === "auto" && first !== "{" && first !== "[")) return "pasted.txt";
  return first === "[" ? "pasted.json" : "pasted.jsonl";
}

/** A table begins with a line of short names, and its next line has as many separators or more. */
function tableKind(text: string): "csv" | "tsv" | undefined {
  const [head = "", next = ""] = text.slice(0, 10_000).trimStart().split(/\r?\n/);
  const names = (separator: string) => head.split(separator).map((name) => name.trim().replace(/^"(.*)"$/, "$1"));
  for (const [separator, kind] of [
    ["\t", "tsv"],
    [",", "csv"],
  ] as const) {
    const columns = names(separator);
    const plain = columns.length > 1 && columns.every((name) => /^[A-Za-z_][\w-]{0,30}$/.test(name));
    if (plain && (next.split(separator).length >= columns.length || next.startsWith('"'))) return kind;
  }
  return undefined;
}

export interface DataSection {
  element: HTMLElement;
  /** Gives the focus to what opens data. */
  focus(): void;
}

export function dataSection(app: App): DataSection {
  const example = h("div", {}, h("p", {}, "800 short conversations in which a pirate answers. 40 more are kept for validation."));
  const { element: paste, area } = pastePanel(app);
  const input = h("input", { type: "file", accept: ".jsonl,.ndjson,.json,.csv,.tsv,.txt,.md,.gz,.zst" });
  const take = (file: File | undefined | null) => {
    if (file) void app.openData({ kind: "file", name: file.name }, file);
  };
  input.onchange = () => {
    take(input.files?.[0]);
    input.value = "";
  };
  const { element: file, button: chooseFile } = dropPlace(
    "Drop a .jsonl, .json, .csv, .tsv or .txt file here, also packed as .gz or .zst. The page reads it in this tab and sends it nowhere.",
    [["Choose a file", input]],
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
      app.chooseData(way as DataSource["kind"]);
      if (way === "example" && app.data === undefined) void app.openData({ kind: "example" }, null);
    },
  );
  const notices = noticePlace();
  const progress = progressBar("Progress of the data");
  const stop = button("Stop", () => void app.stopReading(), "quiet");
  const loading = h("div", { class: "loading", hidden: true }, progress.element, stop);
  const name = h("p", { class: "data-name" });
  const inputs = h("fieldset", { class: "bare" }, h("legend", { class: "visually-hidden" }, "Choose data"), ways.element, reading(app));
  const { element, fold } = section(
    2,
    "data",
    "Data",
    "The text to learn from. The model learns the marked tokens, and reads the others as context.",
    inputs,
    loading,
    notices.element,
    name,
    preview(app),
  );

  app.on(["reading"], () => {
    show(loading, app.reading !== undefined);
    if (app.reading !== undefined) progress.set(app.reading);
  });
  app.on(["data", "inspection"], () => {
    const failure = app.dataFailure ?? app.inspectionFailure;
    const refusal = app.inspection?.refusal;
    if (failure !== undefined) notices.fail(failure);
    else if (refusal) notices.fail({ kind: "setting", message: refusal });
    else notices.clear();
    ways.choose(app.chosen.data);
    const source = app.data?.source;
    show(name, source !== undefined && source.kind !== "example");
    if (app.data !== undefined && source !== undefined && source.kind !== "example") {
      name.textContent = `${source.kind === "text" ? t("Pasted text") : source.name}, ${format.bytes(app.data.bytes)}`;
    }
  });
  app.on(["run"], () => {
    inputs.disabled = app.run.active;
    fold(app.run.active ? line(app) : undefined);
  });
  ways.choose("example");
  return {
    element,
    focus: () => {
      if (app.chosen.data === "text") area.focus();
      else if (app.chosen.data === "file") chooseFile.focus();
      else ways.focus();
    },
  };
}

/** The data in a few words. */
function line(app: App): string | undefined {
  const source = app.data?.source;
  if (source === undefined) return undefined;
  const examples = app.inspection?.report?.kept;
  const name = source.kind === "example" ? "The example" : source.kind === "text" ? "Pasted text" : source.name;
  return examples === undefined ? name : `${name}, ${format.counted(examples, "example")}`;
}

function pastePanel(app: App): { element: HTMLElement; area: HTMLTextAreaElement } {
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
        ["csv", "CSV or TSV"],
        ["text", "Plain text"],
      ],
      () => {},
    ),
  );
  const take = (value: string) => {
    const empty = value.trim() === "";
    text.problem(empty ? "Paste some text first." : "");
    if (!empty) void app.openData({ kind: "text", name: pastedName(value, kind.input.value) }, new Blob([value]));
  };
  area.onpaste = (event) => {
    const pasted = event.clipboardData?.getData("text/plain") ?? "";
    if (pasted.length <= BOX_CHARACTERS) return;
    event.preventDefault();
    area.value = "";
    take(pasted);
  };
  area.oninput = () => {
    const { value } = area;
    if (value.length <= BOX_CHARACTERS) {
      app.chooseData("text", true);
      return;
    }
    area.value = "";
    take(value);
  };
  kind.input.onchange = () => area.value !== "" && app.chooseData("text", true);
  const use = button("Use this text", () => take(area.value));
  const element = h("div", {}, text.element, h("div", { class: "fields paste" }, kind.element, h("div", { class: "field-button" }, use)));
  return { element, area };
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
        ["auto", "Skip if under 1 %"],
        ["refuse", "Stop with an error"],
        ["truncate", "Truncate"],
        ["drop", "Skip"],
        ["split", "Split"],
      ],
      (value) => set({ "on-long": value as DataFormat["on-long"] }),
    ),
  );
  const skipBad = checkbox("Skip records that cannot be trained on", (checked) => set({ "on-bad": checked ? "drop" : "refuse" }));
  const packing = checkbox("Pack short examples together", (checked) => set({ packing: checked }));
  app.on(["settings"], () => {
    const format = app.settings["data-format"];
    template.input.value = format["chat-template"] ?? "";
    trainOn.input.value = format["train-on"] ?? "";
    onLong.input.value = format["on-long"];
    skipBad.input.checked = format["on-bad"] === "drop";
    packing.input.checked = format.packing;
  });
  return h(
    "details",
    {},
    h("summary", {}, "Data options"),
    h("div", { class: "fields" }, template.element, trainOn.element, onLong.element),
    packing.element,
    skipBad.element,
  );
}
