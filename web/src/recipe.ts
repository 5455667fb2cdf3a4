/** A recipe in the address of the page: the settings and, of the model, its address. Never data, never a file's name. */

import type { HubAddress, ModelSource } from "./protocol";
import type { DataFormat, RunSettings } from "./types";

export interface Recipe {
  model: { kind: "demo" } | { kind: "folder" } | { kind: "hub"; address: HubAddress } | undefined;
  example: boolean;
  settings: Partial<Omit<RunSettings, "data-format">> & { "data-format"?: Partial<DataFormat> };
}

interface Range {
  min: number;
  max: number;
  whole: boolean;
}

export const RANGES = {
  rank: { min: 1, max: 256, whole: true },
  alpha: { min: 0.001, max: 4096, whole: false },
  lr: { min: 1e-8, max: 1, whole: false },
  steps: { min: 1, max: 1_000_000, whole: true },
  epochs: { min: 0.001, max: 10_000, whole: false },
  "max-seq-len": { min: 2, max: 131_072, whole: true },
  "batch-size": { min: 1, max: 256, whole: true },
  "grad-accum": { min: 1, max: 1024, whole: true },
  "warmup-steps": { min: 0, max: 1_000_000, whole: true },
  dropout: { min: 0, max: 0.9, whole: false },
  "weight-decay": { min: 0, max: 1, whole: false },
  "eval-fraction": { min: 0, max: 0.9, whole: false },
  seed: { min: 0, max: 2 ** 31, whole: true },
} satisfies Record<string, Range>;

export type NumberSetting = keyof typeof RANGES;

export const DEFAULT_HUB = "https://huggingface.co";

const METHODS = ["qlora", "lora"] as const;
const OBJECTIVES = ["sft", "dpo", "orpo", "kto"] as const;
const OPTIMIZERS = ["adamw", "adamw8bit"] as const;
const SCHEDULES = ["constant", "linear", "cosine", "warmup-stable-decay"] as const;
const TRAIN_ON = ["completion", "assistant", "all"] as const;
const ON_LONG = ["auto", "refuse", "truncate", "drop", "split"] as const;
const LONGEST_TEXT = 200;
/** Names of modules, or a regular expression over them. */
const TARGETS = /^[A-Za-z0-9_.,|()[\]{}*+?^$\\-]+$/;

/** What is wrong with `value` as this setting, or "". */
export function numberProblem(name: NumberSetting, value: number): string {
  const { min, max, whole } = RANGES[name];
  if (!Number.isFinite(value)) return "Enter a number.";
  if (value < min || value > max) return `Enter a value from ${min} to ${max}.`;
  return whole && !Number.isInteger(value) ? "Enter a whole number." : "";
}

/** The thing on a hub that a text names: a model, and of a repository with GGUF files one of them. */
export interface ModelName {
  id: string;
  revision: string;
  /** Path of a GGUF file in the repository. */
  file?: string;
}

const plainPart = (part: string): boolean => /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/.test(part);
const plainFile = (path: string): boolean => isGguf(path) && path.split("/").every(plainPart);

export const isGguf = (name: string): boolean => /\.gguf$/i.test(name);

/** `owner/name` or `owner/name@revision`, as hubs name models, with `:file.gguf` where one file of it is meant. */
export function parseModelName(text: string): ModelName | undefined {
  const [model = "", file, ...more] = text.trim().split(":");
  const [id = "", revision = "main", ...rest] = model.split("@");
  const parts = id.split("/");
  const names = parts.length === 2 && parts.every((part) => plainPart(part) && !part.includes("--"));
  if (more.length > 0 || rest.length > 0 || !names || !plainPart(revision)) return undefined;
  if (file === undefined) return { id, revision };
  return plainFile(file) ? { id, revision, file } : undefined;
}

/** The name of a model on its hub, as `parseModelName` reads it. */
export function modelName({ id, revision, file }: ModelName): string {
  return `${id}${revision === "main" ? "" : `@${revision}`}${file === undefined ? "" : `:${file}`}`;
}

/** A model's name, or the address of its page on a hub, which also says which hub it is. */
export function parseModelAddress(text: string): ({ base?: string } & ModelName) | undefined {
  const given = text.trim();
  const address = /^https?:/i.test(given) ? given : /^(www\.)?(huggingface\.co|hf\.co)\//i.test(given) ? `https://${given}` : undefined;
  if (address === undefined) return parseModelName(given);
  let url: URL;
  try {
    url = new URL(address);
  } catch {
    return undefined;
  }
  // https://hub/owner/name, perhaps with what its pages of files add: /tree/main, /blob/main/config.json, /resolve/…
  const [owner = "", name = "", kind = "", revision = "", ...path] = url.pathname.split("/").filter((part) => part !== "");
  const onPage = ["tree", "blob", "resolve", "commit"].includes(kind) && revision !== "";
  const file = onPage && isGguf(path.at(-1) ?? "") ? `:${path.join("/")}` : "";
  const model = parseModelName(`${owner}/${name}${onPage ? `@${decodeURIComponent(revision)}` : ""}${file}`);
  const short = ["www.huggingface.co", "hf.co", "www.hf.co"].includes(url.hostname);
  const base = short ? DEFAULT_HUB : parseHubBase(url.origin);
  return model === undefined || base === undefined ? undefined : { base, ...model };
}

/** A name for the folder of an adapter of `model`. */
export function adapterFolder(model: string): string {
  const name =
    (model.split("@")[0] ?? "")
      .split(/[/:]/)
      .at(-1)
      ?.replace(/\.gguf$/i, "") ?? "";
  return `${name.replace(/[^A-Za-z0-9._-]/g, "_") || "model"}-adapter`;
}

/** The address of a hub without what does not belong to it; undefined for what the page may not or cannot ask. */
export function parseHubBase(text: string): string | undefined {
  let url: URL;
  try {
    url = new URL(text.trim());
  } catch {
    return undefined;
  }
  const local = url.protocol === "http:" && ["localhost", "127.0.0.1"].includes(url.hostname);
  if (url.protocol !== "https:" && !local) return undefined;
  if (url.username !== "" || url.password !== "") return undefined;
  return url.origin + url.pathname.replace(/\/+$/, "");
}

export function toFragment(settings: RunSettings, model: ModelSource | undefined, example: boolean): string {
  const fragment = new URLSearchParams();
  if (model !== undefined) fragment.set("model", model.kind);
  if (model?.kind === "hub") {
    fragment.set("hub", model.address.base);
    fragment.set("name", modelName(model.address));
  }
  if (example) fragment.set("data", "example");
  fragment.set("method", settings.method);
  fragment.set("targets", settings["target-modules"]);
  if (settings["quantize-embedding"] === true) fragment.set("quantize-embedding", "yes");
  if (settings.objective !== "sft") fragment.set("objective", settings.objective);
  fragment.set("schedule", settings.schedule);
  fragment.set("optim", settings.optim);
  for (const name of Object.keys(RANGES) as NumberSetting[]) {
    const value = settings[name];
    if (value !== undefined) fragment.set(name, String(value));
  }
  const format = settings["data-format"];
  if (format["chat-template"] !== undefined) fragment.set("template", format["chat-template"]);
  if (format["train-on"] !== undefined) fragment.set("train-on", format["train-on"]);
  if (format["on-long"] !== "auto") fragment.set("on-long", format["on-long"]);
  if (format["on-bad"] !== "refuse") fragment.set("on-bad", format["on-bad"]);
  if (format.packing) fragment.set("packing", "yes");
  return `#${fragment}`;
}

/** Reads a fragment; what is not a setting, or has no possible value, is left out. */
export function fromFragment(fragment: string): Recipe | undefined {
  const found = new URLSearchParams(fragment.replace(/^#/, ""));
  if ([...found.keys()].length === 0) return undefined;
  const one = <T extends string>(name: string, among: readonly T[]): T | undefined => among.find((value) => value === found.get(name));
  const short = (name: string) => {
    const text = found.get(name);
    return text !== null && text !== "" && text.length <= LONGEST_TEXT ? text : undefined;
  };
  const settings: Recipe["settings"] = {};
  for (const name of Object.keys(RANGES) as NumberSetting[]) {
    const text = found.get(name);
    if (text !== null && text !== "" && numberProblem(name, Number(text)) === "") settings[name] = Number(text);
  }
  const method = one("method", METHODS);
  if (method !== undefined) settings.method = method;
  if (found.get("quantize-embedding") === "yes" && settings.method !== "lora") settings["quantize-embedding"] = true;
  const objective = one("objective", OBJECTIVES);
  if (objective !== undefined) settings.objective = objective;
  const schedule = one("schedule", SCHEDULES);
  if (schedule !== undefined) settings.schedule = schedule;
  const optim = one("optim", OPTIMIZERS);
  if (optim !== undefined) settings.optim = optim;
  const targets = short("targets");
  if (targets !== undefined && TARGETS.test(targets)) settings["target-modules"] = targets;
  const format: Partial<DataFormat> = {};
  const template = short("template");
  if (template !== undefined) format["chat-template"] = template;
  const trainOn = one("train-on", TRAIN_ON);
  if (trainOn !== undefined) format["train-on"] = trainOn;
  const onLong = one("on-long", ON_LONG);
  if (onLong !== undefined) format["on-long"] = onLong;
  if (found.get("on-bad") === "drop") format["on-bad"] = "drop";
  if (found.get("packing") === "yes") format.packing = true;
  if (Object.keys(format).length > 0) settings["data-format"] = format;
  return { model: recipeModel(found), example: found.get("data") === "example", settings };
}

function recipeModel(found: URLSearchParams): Recipe["model"] {
  const kind = found.get("model");
  if (kind === "demo" || kind === "folder") return { kind };
  const base = parseHubBase(found.get("hub") ?? "");
  const name = parseModelName(found.get("name") ?? "");
  if (kind !== "hub" || base === undefined || name === undefined) return undefined;
  return { kind, address: { base, ...name } };
}
