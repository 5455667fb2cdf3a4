import type { App } from "../app";
import { failureOf } from "../engine";
import type { AdapterArchive } from "../protocol";
import { adapterFolder, toFragment } from "../recipe";
import type { Answer, AnswerSettings } from "../types";
import { h, setText, show } from "./dom";
import { button, checkbox, field, noticePlace, section, select } from "./parts";

/** None of them stands in the example data. */
const QUESTIONS = ["Tell me a story about a turtle and a horse.", "What is the opposite of big?", "What does a cat say?", "Who are you?"];

export interface ResultSection {
  element: HTMLElement;
  heading: HTMLElement;
  /** Asks base and adapter the question in the box. */
  ask(): Promise<void>;
}

export function resultSection(app: App): ResultSection {
  const { element: compared, ask } = comparison(app);
  const waiting = h(
    "p",
    { class: "hint waiting" },
    "After a run, you can compare answers with and without the adapter, download the adapter, and copy a link with the settings.",
  );
  const result = h("div", { class: "result", hidden: true }, compared, takeAlong(app));
  const { element, heading } = section(5, "result", "Result", "Compare the answers, and download the adapter.", waiting, result);
  app.on(["run"], () => {
    show(result, app.run.hasResult);
    show(waiting, !app.run.hasResult);
  });
  return { element, heading, ask };
}

interface Column {
  element: HTMLElement;
  text: HTMLElement;
  /** Why the answer ends where it does, if that is not its own end. */
  note: HTMLElement;
}

function column(title: string, adapted: boolean): Column {
  const text = h("p", { class: "answer-text", aria: { live: "polite" } });
  const note = h("p", { class: "hint" });
  return { element: h("article", { class: adapted ? "answer adapted" : "answer" }, h("h3", {}, title), text, note), text, note };
}

/** Why an answer ended before its time, or "". */
function cutNote({ stop }: Answer, { max_tokens }: AnswerSettings): string {
  if (stop === "max_tokens") return `Cut at ${max_tokens} tokens.`;
  if (stop === "context") return "Cut where the memory for this answer ended.";
  return stop === "canceled" ? "Stopped." : "";
}

/** The question that is asked first: of the data on screen, where they are a visitor's own. */
function firstPrompt(app: App): string {
  const own = app.model?.source.kind !== "demo" || app.data?.source.kind !== "example";
  return (own ? app.inspection?.question : undefined) ?? (QUESTIONS[0] as string);
}

function comparison(app: App): { element: HTMLElement; ask(): Promise<void> } {
  const prompt = field("Prompt", h("textarea", { rows: 2 }));
  prompt.input.value = QUESTIONS[0] as string;
  let typed = false;
  prompt.input.oninput = () => (typed = true);
  const suggestions = h(
    "div",
    { class: "suggestions" },
    ...QUESTIONS.map((question) => button(question, () => ([prompt.input.value, typed] = [question, true]), "quiet")),
  );
  const base = column("Base", false);
  const adapted = column("With the adapter", true);
  const notices = noticePlace();
  const length = field(
    "Maximum length",
    select(
      [
        ["32", "32 tokens"],
        ["96", "96 tokens"],
        ["256", "256 tokens"],
      ],
      () => {},
    ),
  );
  length.input.value = "96";
  const temperature = field(
    "Sampling",
    select(
      [
        ["0", "Most likely token"],
        ["0.7", "Temperature 0.7"],
        ["1", "Temperature 1"],
      ],
      () => {},
    ),
  );
  const raw = checkbox("Raw text, without the chat template", () => {});
  const ask = button("Compare", () => void askBoth());
  const cancel = button("Stop", () => stopAsking(), "plain");
  let stopped = false;
  let asking = false;
  show(cancel, false);

  const stopAsking = () => {
    stopped = true;
    void app.engine.call("cancelAnswer", null);
  };
  const answer = async (column: Column, asAdapted: boolean, generation: AnswerSettings) => {
    const request = { adapted: asAdapted, run: app.run.id as string, settings: app.settings, prompt: prompt.input.value, generation };
    column.element.setAttribute("aria-busy", "true");
    let text = "";
    try {
      const whole = await app.engine.call("answer", request, (notice) => {
        if (notice.type !== "text") return;
        text += notice.delta;
        column.text.textContent = text.trimStart();
      });
      column.text.textContent = whole.text.trim() === "" ? "(empty answer)" : whole.text.trim();
      column.note.textContent = cutNote(whole, generation);
    } finally {
      column.element.removeAttribute("aria-busy");
    }
  };
  const askBoth = async () => {
    prompt.problem(prompt.input.value.trim() === "" ? "Enter a prompt." : "");
    if (prompt.input.value.trim() === "") return;
    notices.clear();
    stopped = false;
    ask.disabled = true;
    asking = true;
    show(cancel, true);
    for (const { text, note } of [base, adapted]) text.textContent = note.textContent = "";
    const generation: AnswerSettings = {
      max_tokens: Number(length.input.value),
      temperature: Number(temperature.input.value),
      seed: 0,
      raw: raw.input.checked,
    };
    try {
      await answer(base, false, generation);
      if (!stopped) await answer(adapted, true, generation);
    } catch (error) {
      notices.fail(failureOf(error));
    }
    asking = false;
    ask.disabled = app.run.active;
    show(cancel, false);
  };
  prompt.input.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    if (!ask.disabled) void askBoth();
  };
  let shownFor: string | undefined;
  app.on(["inspection", "data", "model"], () => {
    if (!typed && !app.run.hasResult) prompt.input.value = firstPrompt(app);
  });
  app.on(["run"], () => {
    if (!asking) ask.disabled = app.run.active;
    show(suggestions, app.model?.source.kind === "demo");
    if (!app.run.hasResult || shownFor === app.run.id) return;
    shownFor = app.run.id;
    for (const { text, note } of [base, adapted]) text.textContent = note.textContent = "";
    raw.input.checked = app.inspection?.report?.chat_template == null;
  });
  const element = h(
    "div",
    { class: "comparison" },
    prompt.element,
    suggestions,
    h("div", { class: "fields asking" }, length.element, temperature.element, h("div", { class: "field-button buttons" }, ask, cancel)),
    raw.element,
    notices.element,
    h("div", { class: "answers" }, base.element, adapted.element),
  );
  return { element, ask: askBoth };
}

function takeAlong(app: App): HTMLElement {
  const notices = noticePlace();
  const download = button("Download the adapter", () => void saveZip(), "primary");
  const gguf = button("Download for llama.cpp", () => void saveGguf());
  const base = field(
    "Base model",
    h("input", { type: "text", autocomplete: "off", spellcheck: false, maxLength: 200 }),
    "The adapter’s files name it: owner/name on a hub, or a folder that stands beside the adapter’s.",
  );
  const save = async (ending: "zip" | "gguf", made: () => Promise<AdapterArchive>) => {
    notices.clear();
    try {
      const { name, bytes } = await made();
      const url = URL.createObjectURL(new Blob([bytes], { type: ending === "zip" ? "application/zip" : "application/octet-stream" }));
      h("a", { href: url, download: `${name}.${ending}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      notices.fail(failureOf(error));
    }
  };
  const saveZip = async () => {
    base.problem(base.input.value.trim() === "" ? "Enter a name." : "");
    if (base.input.value.trim() === "") return;
    const request = { run: app.run.id as string, model: trained, base: base.input.value.trim() };
    await save("zip", () => app.engine.call("adapterZip", request));
  };
  const saveGguf = () => {
    const request = { run: app.run.id as string, model: trained, dir: app.settings.model };
    return save("gguf", () => app.engine.call("adapterGguf", request));
  };
  const address = field(
    "Link to these settings",
    h("input", { type: "text", readOnly: true }),
    "It contains the model address and the settings, and no data, prompts or file names.",
  );
  address.input.onfocus = () => address.input.select();
  const copied = h("span", { class: "hint", role: "status" });
  const copy = button("Copy link", () => {
    void navigator.clipboard.writeText(address.input.value).then(
      () => setText(copied, "Copied."),
      () => address.input.select(),
    );
  });
  const update = () => {
    const fragment = toFragment(app.settings, app.model?.source, app.data?.source.kind === "example");
    address.input.value = new URL(fragment, location.href.replace(/#.*$/, "")).href;
    setText(copied, "");
  };
  app.on(["settings", "model", "data", "run"], update);
  const code = h("code", {});
  const explain = () => {
    const { gguf: file = false, dir = "" } = app.model ?? {};
    const model = file ? dir.split("/").at(-1) : base.input.value.trim();
    const quant = app.settings.method === "qlora" ? " --quant nf4" : "";
    const folder = adapterFolder(trained);
    const lines = [
      "from peft import AutoPeftModelForCausalLM",
      `model = AutoPeftModelForCausalLM.from_pretrained("${folder}")`,
      "",
      "# in a terminal",
      `loraine chat --model ${model} --adapter ${folder}${quant}`,
      `llama-cli -m ${file ? model : "MODEL.gguf"} --lora ${folder}.gguf`,
    ];
    setText(code, lines.join("\n"));
  };
  base.input.oninput = explain;
  /** The name of the model that the result is of. */
  let trained = "";
  let shownFor: string | undefined;
  app.on(["run"], () => {
    if (!app.run.hasResult || shownFor === app.run.id || app.model === undefined) return;
    shownFor = app.run.id;
    trained = app.model.name;
    base.input.value = app.model.base;
    explain();
  });
  const original = h(
    "p",
    { class: "hint" },
    "PEFT needs the original model, not its GGUF file. Enter its name on the hub as the base model, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
  );
  app.on(["model", "run"], () => show(original, app.model?.gguf === true));
  const demo = h("p", { class: "hint" }, "The built-in model is written to loraine-demo/model by the command “loraine demo”.");
  app.on(["model", "run"], () => show(demo, app.model?.source.kind === "demo"));
  return h(
    "div",
    { class: "take-along" },
    h("h3", {}, "Download"),
    h(
      "p",
      {},
      "The zip holds one folder: the adapter in PEFT’s format, the settings (run.toml), the metrics and the picture of the loss. For llama.cpp, the adapter is one GGUF file.",
    ),
    h("div", { class: "fields link" }, base.element, h("div", { class: "field-button buttons" }, download, gguf)),
    original,
    h("pre", { tabIndex: 0, aria: { label: "How the adapter is loaded" } }, code),
    demo,
    notices.element,
    h("div", { class: "fields link" }, address.element, h("div", { class: "field-button buttons" }, copy, copied)),
  );
}
