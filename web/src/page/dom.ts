/** Elements made from plain values. Text is only ever set as text, in the language of the page. */

import { t } from "../texts";

type Child = Node | string | null | undefined | false;
type Props<E> = { [K in keyof E]?: E[K] } & {
  class?: string;
  aria?: Record<string, string>;
  data?: Record<string, string>;
  role?: string;
  for?: string;
};

export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  props: Props<HTMLElementTagNameMap[Tag]> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined) continue;
    if (key === "class") element.className = String(value);
    else if (key === "for") element.setAttribute("for", String(value));
    else if (key === "role") element.setAttribute("role", String(value));
    else if (key === "aria") {
      for (const [name, text] of Object.entries(value as Record<string, string>)) {
        element.setAttribute(`aria-${name}`, name === "label" ? t(text) : text);
      }
    } else if (key === "placeholder") Reflect.set(element, key, t(String(value)));
    else if (key === "data") Object.assign(element.dataset, value);
    else Reflect.set(element, key, value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined && child !== false) element.append(typeof child === "string" ? t(child) : child);
  }
  return element;
}

let lastId = 0;

export function newId(what: string): string {
  lastId += 1;
  return `${what}-${lastId}`;
}

export function show(element: HTMLElement, visible: boolean): void {
  element.hidden = !visible;
}

/** Text that is no text of the page's own, such as a visitor's data or a model's answer. */
export function verbatim(text: string): Text {
  return document.createTextNode(text);
}

/** Sets text where it differs, so that a screen reader hears of changes alone. */
export function setText(element: HTMLElement, text: string): void {
  const told = t(text);
  if (element.textContent !== told) element.textContent = told;
}

/** Names an element for those who do not see it. */
export function ariaLabel(element: HTMLElement, text: string): void {
  element.setAttribute("aria-label", t(text));
}
