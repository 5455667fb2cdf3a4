import type { App } from "../app";
import { failureOf } from "../engine";
import { toFragment } from "../recipe";
import type { AnswerSettings } from "../types";
import { h, setText, show } from "./dom";
import { button, checkbox, field, noticePlace, section, select } from "./parts";

/** None of them stands in the example data. */
const QUESTIONS = ["Tell me a story about a turtle and a horse.", "What is the opposite of big?", "What does a cat say?", "Who are you?"];

export function resultSection(app: App): HTMLElement {
  const compared = comparison(app);
  const waiting = h(
    "p",
    { class: "hint waiting" },
    "After a run, you can compare answers with and without the adapter, download the adapter, and copy a link with the settings.",
  );
  const result = h("div", { class: "result", hidden: true }, compared, takeAlong(app));
  const { element } = section(5, "result", "Result", "Compare the answers, and download the adapter.", waiting, result);
  app.on(["run"], () => {
    show(result, app.run.hasResult);
    show(waiting, !app.run.hasResult);
  });
  return element;
}

interface Column {
  element: HTMLElement;
  text: HTMLElement;
}

function column(title: string, adapted: boolean): Column {
  const text = h("p", { class: "answer-text", aria: { live: "polite" } });
  return { element: h("article", { class: adapted ? "answer adapted" : "answer" }, h("h3", {}, title), text), text };
}

function comparison(app: App): HTMLElement {
  const prompt = field("Prompt", h("textarea", { rows: 2 }));
  prompt.input.value = QUESTIONS[0] as string;
  const suggestions = h(
    "div",
    { class: "suggestions" },
    ...QUESTIONS.map((question) => button(question, () => (prompt.input.value = question), "quiet")),
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
  const ask = button("Compare", () => void askBoth(), "primary");
  const cancel = button("Stop", () => stopAsking(), "plain");
  let stopped = false;
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
    show(cancel, true);
    for (const { text } of [base, adapted]) text.textContent = "";
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
    ask.disabled = app.run.active;
    show(cancel, false);
  };
  prompt.input.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    if (!ask.disabled) void askBoth();
  };
  let shownFor: string | undefined;
  app.on(["run"], () => {
    ask.disabled = app.run.active;
    show(suggestions, app.model?.source.kind === "demo");
    if (!app.run.hasResult || shownFor === app.run.id) return;
    shownFor = app.run.id;
    for (const { text } of [base, adapted]) text.textContent = "";
    raw.input.checked = app.inspection?.report?.chat_template == null;
  });
  return h(
    "div",
    { class: "comparison" },
    prompt.element,
    suggestions,
    h("div", { class: "fields asking" }, length.element, temperature.element, h("div", { class: "field-button buttons" }, ask, cancel)),
    raw.element,
    notices.element,
    h("div", { class: "answers" }, base.element, adapted.element),
  );
}

function takeAlong(app: App): HTMLElement {
  const notices = noticePlace();
  const download = button("Download the adapter", () => void save(), "primary");
  const save = async () => {
    notices.clear();
    try {
      const zip = await app.engine.call("adapterZip", app.run.id as string);
      const url = URL.createObjectURL(new Blob([zip], { type: "application/zip" }));
      const link = h("a", { href: url, download: "adapter.zip" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      notices.fail(failureOf(error));
    }
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
  const code = 'from peft import PeftModel\nmodel = PeftModel.from_pretrained(model, "adapter")   # the unpacked folder';
  return h(
    "div",
    { class: "take-along" },
    h("h3", {}, "Download"),
    h(
      "p",
      {},
      "The zip holds the adapter in PEFT’s format: adapter_config.json, adapter_model.safetensors and a README. Unpack it, then load the folder with PEFT, or with loraine in a terminal.",
    ),
    h("pre", { tabIndex: 0, aria: { label: "Loading the adapter in Python" } }, h("code", {}, code)),
    h("div", { class: "buttons" }, download),
    notices.element,
    h("div", { class: "fields link" }, address.element, h("div", { class: "field-button buttons" }, copy, copied)),
  );
}
