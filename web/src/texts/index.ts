/** The language of the page: texts are written in English where they are used, and translated where they become part of the page. */

import type { Translations } from "./en";

export const LANGUAGES = { en: "English", de: "Deutsch", es: "Español", zh: "中文" } as const;

export type Language = keyof typeof LANGUAGES;

const CHOSEN = "loraine-language";
/** Other languages than English are fetched where they are asked for. */
const LOADERS: Record<Exclude<Language, "en">, () => Promise<Translations>> = {
  de: async () => (await import("./de")).DE,
  es: async () => (await import("./es")).ES,
  zh: async () => (await import("./zh")).ZH,
};

interface Pattern {
  /** Finds the values in an English text. */
  english: RegExp;
  translation: string;
}

let chosen: Language = "en";
let exact = new Map<string, string>();
let patterns: Pattern[] = [];

const isLanguage = (name: string): name is Language => name in LANGUAGES;

function preferred(): Language {
  const kept = localStorage.getItem(CHOSEN);
  if (kept !== null && isLanguage(kept)) return kept;
  const known = navigator.languages.map((name) => name.split("-")[0] ?? "").find(isLanguage);
  return known ?? "en";
}

export function language(): Language {
  return chosen;
}

/** Takes the language that the visitor has chosen, or the first of the browser's that is known. */
export async function loadLanguage(): Promise<void> {
  const wanted = preferred();
  if (wanted !== "en") {
    const translations = await LOADERS[wanted]();
    exact = new Map(Object.entries(translations));
    const holed = Object.entries(translations).filter(([english]) => english.includes("{}"));
    // The longer a pattern, the more it says.
    holed.sort(([one], [other]) => other.length - one.length);
    patterns = holed.map(([english, translation]) => ({ english: patternOf(english), translation }));
  }
  chosen = wanted;
  document.documentElement.lang = wanted;
}

/** Opens the page anew in another language. */
export function choose(name: string): void {
  localStorage.setItem(CHOSEN, name);
  location.reload();
}

function patternOf(english: string): RegExp {
  const parts = english.split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join("(.+?)")}$`);
}

/** A text of the page in its language; what is not known stays as it is. */
export function t(text: string): string {
  if (chosen === "en" || !/[A-Za-z]/.test(text)) return text;
  const [, before = "", inner = "", after = ""] = /^(\s*)(.*?)(\s*)$/s.exec(text) ?? [];
  return before + (whole(inner) ?? bySentence(inner)) + after;
}

function whole(text: string): string | undefined {
  const found = exact.get(text);
  if (found !== undefined) return found;
  for (const { english, translation } of patterns) {
    const values = english.exec(text)?.slice(1);
    if (values === undefined) continue;
    let at = 0;
    return translation.replaceAll("{}", () => t(values[at++] ?? ""));
  }
  return undefined;
}

function bySentence(text: string): string {
  const sentences = text.split(/(?<=[.!?…]) (?=[A-Z“])/);
  if (sentences.length < 2) return text;
  const space = chosen === "zh" ? "" : " ";
  return sentences.map((sentence) => whole(sentence) ?? sentence).join(space);
}
