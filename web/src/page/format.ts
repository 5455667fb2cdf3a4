/** Numbers as people read them. */

import { language } from "../texts";

const LOCALES = { en: "en-GB", de: "de", es: "es", zh: "zh" } as const;

export function count(n: number): string {
  return new Intl.NumberFormat(LOCALES[language()]).format(Math.round(n));
}

/** With the decimal sign of the language. */
function decimal(text: string): string {
  return language() === "de" || language() === "es" ? text.replace(".", ",") : text;
}

/** A number of any size in three digits. */
export function digits(n: number): string {
  return decimal(String(Number(n.toPrecision(3))));
}

/** `1 example`, `2 examples`. */
export function counted(n: number, noun: string): string {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

function scaled(n: number, units: [number, string][], digits: (value: number) => number): string | undefined {
  const unit = units.find(([size]) => n >= size);
  if (unit === undefined) return undefined;
  const value = n / unit[0];
  return `${decimal(value.toFixed(digits(value)))} ${unit[1]}`;
}

/** Decimal units, as disks and cards are sold. */
export function bytes(n: number): string {
  const units: [number, string][] = [
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
  ];
  return scaled(n, units, (value) => (value < 10 ? 2 : value < 100 ? 1 : 0)) ?? `${Math.round(n)} B`;
}

export function parameters(n: number): string {
  return (
    scaled(
      n,
      [
        [1e9, "billion"],
        [1e6, "million"],
      ],
      (value) => (value < 100 ? 2 : 0),
    ) ?? count(n)
  );
}

export function loss(n: number): string {
  return Number.isFinite(n) ? decimal(n.toFixed(n < 10 ? 4 : 2)) : "not finite";
}

export function rate(n: number): string {
  return n < 10 ? decimal(n.toFixed(1)) : count(n);
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** Passes over the data, in two digits where they are few. */
export function epochs(n: number): string {
  return decimal(String(n < 10 ? Number(n.toFixed(2)) : Number(n.toFixed(1))));
}

export function clock(time: number): string {
  return new Intl.DateTimeFormat(language() === "en" ? undefined : language(), { dateStyle: "medium", timeStyle: "short" }).format(time);
}
