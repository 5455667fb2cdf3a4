/** The few components that the page is made of. */

import type { Failure } from "../types";
import * as format from "./format";
import { ariaLabel, h, newId, setText, show } from "./dom";
import { withLabels } from "./labels";
import type { Progress } from "../protocol";

export function button(label: string, onclick: () => unknown, kind: "primary" | "plain" | "quiet" = "plain"): HTMLButtonElement {
  return h("button", { type: "button", class: `button ${kind}`, onclick }, label);
}

/** A numbered part of the page: its title at the left, its content at the right. */
export interface Section {
  element: HTMLElement;
  body: HTMLElement;
  heading: HTMLElement;
  /** Reduces the section to a line of text, which a button opens again; without a text, the section is as usual. */
  fold(line: string | undefined): void;
}

export function section(number: number, name: string, title: string, hint: string, ...body: Node[]): Section {
  const id = `${name}-title`;
  const content = h("div", { class: "section-body", id: `${name}-body` }, ...body);
  // It takes the focus when the page scrolls to the section.
  const heading = h("h2", { id, tabIndex: -1 }, title);
  const folded = h("span", {});
  const toggle = button("Show", () => open(content.hidden === true), "quiet");
  toggle.setAttribute("aria-controls", content.id);
  const line = h("div", { class: "section-line", hidden: true }, folded, toggle);
  const element = h(
    "section",
    { id: name, class: "section", aria: { labelledby: id } },
    h(
      "header",
      { class: "section-head" },
      h("p", { class: "section-number", aria: { hidden: "true" } }, String(number)),
      heading,
      h("p", { class: "hint" }, hint),
    ),
    line,
    content,
  );
  const open = (shown: boolean) => {
    show(content, shown);
    setText(toggle, shown ? "Hide" : "Show");
    ariaLabel(toggle, `${shown ? "Hide" : "Show"}: ${title}`);
    toggle.setAttribute("aria-expanded", String(shown));
  };
  const fold = (text: string | undefined) => {
    const was = !line.hidden;
    show(line, text !== undefined);
    element.classList.toggle("folded", text !== undefined);
    if (text !== undefined) setText(folded, text);
    if (was !== (text !== undefined)) open(text === undefined);
  };
  return { element, body: content, heading, fold };
}

/** Scrolls to an element, and gives it the focus where it can have it. */
export function goTo(element: HTMLElement, focus = true): void {
  element.scrollIntoView({ block: "start" });
  if (focus) element.focus({ preventScroll: true });
}

export interface Field<Input extends HTMLElement> {
  element: HTMLElement;
  input: Input;
  problem(message: string): void;
}

/** A control with its label above and a hint or problem below. */
export function field<Input extends HTMLElement>(label: string, input: Input, hint = "", ...more: Node[]): Field<Input> {
  const id = newId("field");
  input.id = id;
  const help = h("p", { id: `${id}-help`, class: "field-help" }, hint);
  input.setAttribute("aria-describedby", help.id);
  show(help, hint !== "");
  const element = h("div", { class: "field" }, h("label", { for: id }, label), input, ...more, help);
  const problem = (message: string) => {
    setText(help, message === "" ? hint : message);
    show(help, help.textContent !== "");
    help.classList.toggle("wrong", message !== "");
    input.setAttribute("aria-invalid", String(message !== ""));
  };
  return { element, input, problem };
}

export function select(options: [value: string, label: string][], onchange: (value: string) => void): HTMLSelectElement {
  const element = h("select", {}, ...options.map(([value, label]) => h("option", { value }, label)));
  element.onchange = () => onchange(element.value);
  return element;
}

export function checkbox(label: string, onchange: (checked: boolean) => void): { element: HTMLElement; input: HTMLInputElement } {
  const input = h("input", { type: "checkbox" });
  input.onchange = () => onchange(input.checked);
  return { element: h("label", { class: "checkbox" }, input, h("span", {}, label)), input };
}

/** One of a few ways: radio buttons that look like one bar, each with a panel. */
export interface Choice {
  element: HTMLElement;
  chosen(): string;
  choose(name: string): void;
  focus(): void;
}

export function choice(
  legend: string,
  ways: [name: string, label: string, panel: HTMLElement][],
  onchange: (name: string) => void,
): Choice {
  const group = newId("choice");
  const inputs = new Map<string, HTMLInputElement>();
  const showPanel = (name: string) => {
    for (const [other, , panel] of ways) show(panel, other === name);
  };
  const labels = ways.map(([name, label]) => {
    const input = h("input", { type: "radio", name: group, value: name });
    input.onchange = () => {
      showPanel(name);
      onchange(name);
    };
    inputs.set(name, input);
    return h("label", {}, input, h("span", {}, label));
  });
  const bar = h("fieldset", { class: "choice" }, h("legend", { class: "visually-hidden" }, legend), ...labels);
  const element = h("div", { class: "choice-group" }, bar, ...ways.map(([, , panel]) => panel));
  const chosen = () => [...inputs].find(([, input]) => input.checked)?.[0] ?? "";
  const choose = (name: string) => {
    const input = inputs.get(name);
    if (input === undefined) return;
    input.checked = true;
    showPanel(name);
  };
  return { element, chosen, choose, focus: () => inputs.get(chosen())?.focus() };
}

/** A place for what went wrong, where it belongs. Empty, it takes no room. */
export interface NoticePlace {
  element: HTMLElement;
  fail(failure: Failure, ...actions: Node[]): void;
  say(text: string, ...actions: Node[]): void;
  clear(): void;
}

export function noticePlace(): NoticePlace {
  const element = h("div", { class: "notices", role: "status" });
  const put = (kind: string, text: string, actions: Node[]) => {
    element.replaceChildren(
      h("div", { class: `notice ${kind}` }, h("p", {}, text), actions.length > 0 && h("div", { class: "buttons" }, ...actions)),
    );
  };
  return {
    element,
    fail: (failure, ...actions) => put("error", readable(failure), actions),
    say: (text, ...actions) => put("plain", text, actions),
    clear: () => element.replaceChildren(),
  };
}

/** A failure as a sentence of the page: with its labels, without the directories of the engine's own file system. */
export function readable(failure: Failure): string {
  const text = withLabels(failure.message)
    .replace(/\/(models|data|runs)\/(?:[^\s/:]+\/)?(?=[^\s/:]+)/g, "")
    .replace(/\/models--[^/\s]+\/snapshots\/[0-9a-f]{40}\//g, "");
  // A sentence begins large, a file's name stays as it is.
  const first = /^[a-z]+ /.test(text) ? text.slice(0, 1).toUpperCase() + text.slice(1) : text;
  const advice = failure.kind === "out-of-memory" ? " Try a smaller batch size, shorter sequences or a smaller rank." : "";
  return (/[.!?]$/.test(first) ? first : `${first}.`) + advice;
}

export interface ProgressBar {
  element: HTMLElement;
  set(progress: Progress): void;
}

export function progressBar(label: string): ProgressBar {
  const bar = h("progress", { aria: { label } });
  const text = h("p", { class: "progress-text" });
  const element = h("div", { class: "progress", hidden: true }, bar, text);
  const set = ({ what, done, total, counted }: Progress) => {
    const shown = counted ? format.count : format.bytes;
    show(element, true);
    if (total > 0) {
      bar.max = total;
      bar.value = done;
      setText(text, `${what}: ${shown(done)} of ${shown(total)}`);
    } else {
      bar.removeAttribute("value");
      setText(text, done > 0 ? `${what}: ${shown(done)}` : what);
    }
  };
  return { element, set };
}

/** Where files may be dropped, or chosen by one of a few buttons, each with its input; answers with the first button too. */
export function dropPlace(
  text: string,
  ways: [label: string, input: HTMLInputElement][],
  onDrop: (transfer: DataTransfer) => void,
): { element: HTMLElement; button: HTMLButtonElement } {
  const buttons = ways.map(([label, input]) => {
    input.classList.add("visually-hidden");
    input.tabIndex = -1;
    input.setAttribute("aria-hidden", "true");
    return button(label, () => input.click());
  });
  const inputs = ways.map(([, input]) => input);
  const element = h("div", { class: "drop" }, h("p", {}, text), h("div", { class: "buttons" }, ...buttons), ...inputs);
  const over = (on: boolean) => (event: DragEvent) => {
    event.preventDefault();
    element.classList.toggle("over", on);
  };
  element.ondragenter = element.ondragover = over(true);
  element.ondragleave = over(false);
  element.ondrop = (event) => {
    over(false)(event);
    if (event.dataTransfer !== null) onDrop(event.dataTransfer);
  };
  return { element, button: buttons[0] as HTMLButtonElement };
}

/** A list of names and values. */
export function facts(pairs: [name: string, value: string][]): HTMLElement {
  return h("dl", { class: "facts" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
