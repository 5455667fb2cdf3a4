/** The same prompt answered by the base and by adapters, side by side, and preferences between the answers. */

import type { App } from "../app";
import { failureOf } from "../engine";
import { t } from "../texts";
import type { Answer, AnswerSettings } from "../types";
import { ariaLabel, h, setText, show } from "./dom";
import { button, checkbox, field, noticePlace, select } from "./parts";
import { preferencePanel } from "./preference-panel";

/** None of them stands in the example data. */
const QUESTIONS = ["Tell me a story about a turtle and a horse.", "What is the opposite of big?", "What does a cat say?", "Who are you?"];

interface Column {
  element: HTMLElement;
  /** The directory of the adapter that answers; null is the base. */
  adapter: string | null;
  title: string;
  text: HTMLElement;
  /** Why the answer ends where it does, if that is not its own end. */
  note: HTMLElement;
  prefer: HTMLButtonElement;
  /** The whole answer, once it is there. */
  answer: string | undefined;
}

function column(title: string, adapter: string | null, onPrefer: (column: Column) => void): Column {
  const text = h("p", { class: "answer-text", aria: { live: "polite" } });
  const note = h("p", { class: "hint" });
  const prefer = button("This answer is better", () => onPrefer(made), "quiet");
  ariaLabel(prefer, `This answer is better: ${title}`);
  show(prefer, false);
  const element = h("article", { class: adapter === null ? "answer" : "answer adapted" }, h("h3", {}, title), text, note, prefer);
  const made: Column = { element, adapter, title, text, note, prefer, answer: undefined };
  return made;
}

function clear(column: Column): void {
  column.text.textContent = column.note.textContent = "";
  column.answer = undefined;
  show(column.prefer, false);
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

export interface Comparison {
  element: HTMLElement;
  ask(): Promise<void>;
}

/** `goToRun` shows where a run is started. */
export function comparison(app: App, goToRun: () => void): Comparison {
  const prompt = field("Prompt", h("textarea", { rows: 2 }));
  prompt.input.value = QUESTIONS[0] as string;
  let typed = false;
  prompt.input.oninput = () => (typed = true);
  const suggestions = h(
    "div",
    { class: "suggestions" },
    ...QUESTIONS.map((question) => button(question, () => ([prompt.input.value, typed] = [question, true]), "quiet")),
  );
  const answers = h("div", { class: "answers" });
  const notices = noticePlace();
  const length = field(
    "Maximum length",
    select(LENGTHS, () => {}),
  );
  length.input.value = "96";
  const temperature = field(
    "Sampling",
    select(SAMPLINGS, () => {}),
  );
  const raw = checkbox("Raw text, without the chat template", () => {});
  const ask = button("Compare", () => void askAll());
  const cancel = button("Stop", () => stopAsking(), "plain");
  let columns: Column[] = [];
  let asked = { prompt: "", raw: false };
  let stopped = false;
  let asking = false;
  show(cancel, false);

  const prefer = (better: Column) => {
    for (const other of columns) {
      if (other === better || better.answer === undefined || other.answer === undefined || other.answer === better.answer) continue;
      app.prefer({ ...asked, chosen: better.answer, rejected: other.answer });
    }
    for (const column of columns) show(column.prefer, false);
    setText(better.note, "Noted as the better answer.");
  };
  const stopAsking = () => {
    stopped = true;
    void app.engine.call("cancelAnswer", null);
  };
  const answer = async (column: Column, generation: AnswerSettings) => {
    const adapters = columns.map(({ adapter }) => adapter).filter((adapter) => adapter !== null);
    const request = { adapters, adapter: column.adapter, settings: app.settings, prompt: asked.prompt, generation };
    column.element.setAttribute("aria-busy", "true");
    let text = "";
    try {
      const whole = await app.engine.call("answer", request, (notice) => {
        if (notice.type !== "text") return;
        text += notice.delta;
        column.text.textContent = text.trimStart();
      });
      column.answer = whole.text;
      column.text.textContent = whole.text.trim() === "" ? t("(empty answer)") : whole.text.trim();
      setText(column.note, cutNote(whole, generation));
    } finally {
      column.element.removeAttribute("aria-busy");
    }
  };
  const askAll = async () => {
    prompt.problem(prompt.input.value.trim() === "" ? "Enter a prompt." : "");
    if (prompt.input.value.trim() === "") return;
    notices.clear();
    stopped = false;
    ask.disabled = true;
    asking = true;
    show(cancel, true);
    for (const column of columns) clear(column);
    asked = { prompt: prompt.input.value, raw: raw.input.checked };
    const generation: AnswerSettings = {
      max_tokens: Number(length.input.value),
      temperature: Number(temperature.input.value),
      seed: 0,
      raw: asked.raw,
    };
    try {
      // A run that begins ends the answers.
      for (const column of columns) if (!stopped && !app.run.active) await answer(column, generation);
      const different = new Set(columns.map(({ answer }) => answer)).size > 1;
      for (const column of columns) show(column.prefer, different && !stopped);
    } catch (error) {
      const failure = failureOf(error);
      if (failure.kind !== "canceled") notices.fail(failure);
    }
    asking = false;
    ask.disabled = app.run.active;
    show(cancel, false);
    draw();
  };
  prompt.input.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    if (!ask.disabled) void askAll();
  };
  let drawn = "";
  /** A column for the base and one for each adapter that is chosen; answers stay while these are the same. */
  const draw = () => {
    const wanted = app.comparedAdapters();
    const now = JSON.stringify([app.model?.dir, wanted]);
    if (asking || now === drawn) return;
    drawn = now;
    const only = wanted.length === 1 ? "With the adapter" : undefined;
    columns = [column("Base", null, prefer), ...wanted.map(({ dir, title }) => column(only ?? title, dir, prefer))];
    answers.replaceChildren(...columns.map(({ element }) => element));
  };
  let shownFor: string | undefined;
  app.on(["inspection", "data", "model"], () => {
    if (!typed && !app.run.hasResult) prompt.input.value = firstPrompt(app);
  });
  app.on(["run", "adapters", "saved", "model"], () => {
    if (!asking) ask.disabled = app.run.active;
    show(suggestions, app.model?.source.kind === "demo");
    draw();
    const id = app.run.hasResult ? app.run.id : undefined;
    if (shownFor === id) return;
    shownFor = id;
    for (const column of columns) clear(column);
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
    answers,
    preferencePanel(app, goToRun),
  );
  return { element, ask: askAll };
}

const LENGTHS: [string, string][] = [
  ["32", "32 tokens"],
  ["96", "96 tokens"],
  ["256", "256 tokens"],
];
const SAMPLINGS: [string, string][] = [
  ["0", "Most likely token"],
  ["0.7", "Temperature 0.7"],
  ["1", "Temperature 1"],
];
