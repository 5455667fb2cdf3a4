/** The adapter of a run as files to take along: a folder for PEFT, also as a zip, and a GGUF file for llama.cpp. */

import { strToU8, zipSync, type Zippable } from "fflate";
import type { AdapterArchive, Progress } from "../protocol";
import { adapterFolder } from "../recipe";
import { trainingPart } from "./card";
import { PageError } from "./failure";
import { filesOf, provide } from "./adapters";
import { closeGenerator } from "./generation";
import { runDir } from "./runs";
import * as storage from "./storage";
import { loraine, mountHeld, unmount } from "./wasm";

const CONFIG = "adapter_config.json";
const CARD = "README.md";
const NEEDED = [CONFIG, "adapter_model.safetensors", CARD];

interface Asked {
  run: string;
  model: string;
  /** The name of the base for others; the engine's files name the directory that the page had mounted. */
  base: string;
}

/** A text of the engine with the names that its readers know, in place of the page's directories. */
function renamer({ run, model, base }: Asked): (text: string) => string {
  const out = runDir(run);
  const config = new TextDecoder().decode(loraine.readFile(`${out}/${CONFIG}`));
  const mounted = (JSON.parse(config) as { base_model_name_or_path?: string }).base_model_name_or_path;
  return (text) => {
    const withBase = mounted === undefined ? text : text.replaceAll(mounted, base);
    // What `loraine demo` writes stands for the page's own example.
    return withBase
      .replaceAll("/data/pirate", "loraine-demo/data")
      .replaceAll(out, adapterFolder(model))
      .replaceAll(/"\/first\/[^"]*"/g, '"first-adapter"')
      .replaceAll(/\/(models--[^/"]+\/snapshots\/[0-9a-f]{40})/g, base)
      .replaceAll(/"\/data\//g, '"');
  };
}

function namesOf(out: string): string[] {
  const names = loraine.listFiles(out).map(({ path }) => path.slice(out.length + 1));
  const own = names.filter((name) => !name.includes("/") && !name.startsWith("."));
  const missing = NEEDED.find((name) => !own.includes(name));
  if (missing !== undefined) throw new PageError("file", `The run has no ${missing} yet. Wait until the run ends, or stop it.`);
  return own;
}

/** The model card: what the engine has written, and how the adapter was trained. */
export function modelCard(asked: Asked): string {
  const out = runDir(asked.run);
  namesOf(out);
  const text = (name: string) => new TextDecoder().decode(loraine.readFile(`${out}/${name}`));
  const named = new Set(loraine.listFiles(out).map(({ path }) => path));
  const logs = named.has(`${out}/metrics.jsonl`) ? text("metrics.jsonl") : "";
  const settings = named.has(`${out}/run.toml`) ? text("run.toml") : "";
  return renamer(asked)(text(CARD).trimEnd()) + trainingPart(logs, settings);
}

/** The files of a run: the adapter as PEFT lays it out, and what the run was made with. */
export function adapterFiles(asked: Asked & { card: string | undefined }): Map<string, Uint8Array<ArrayBuffer>> {
  const out = runDir(asked.run);
  const renamed = renamer(asked);
  const bytes = (name: string): Uint8Array => {
    if (name === CARD) return strToU8(asked.card ?? modelCard(asked));
    const whole = loraine.readFile(`${out}/${name}`);
    return /^(adapter_config\.json|run\.toml)$/.test(name) ? strToU8(renamed(new TextDecoder().decode(whole))) : whole;
  };
  return new Map(namesOf(out).map((name) => [name, bytes(name) as Uint8Array<ArrayBuffer>]));
}

/** These files in a zip with one folder. */
export function adapterZip(asked: Asked & { card: string | undefined }): AdapterArchive {
  const folder = adapterFolder(asked.model);
  // Weights do not shrink.
  const entry = ([name, bytes]: [string, Uint8Array]): [string, Zippable[string]] => [
    `${folder}/${name}`,
    name.endsWith(".safetensors") ? [bytes, { level: 0 }] : bytes,
  ];
  const files: Zippable = Object.fromEntries([...adapterFiles(asked)].map(entry));
  return { name: folder, bytes: zipSync(files) as Uint8Array<ArrayBuffer> };
}

/** The adapter of a run as a GGUF file, for llama.cpp; `dir` is where the engine has the base. */
export function adapterGguf({ run, model, dir }: { run: string; model: string; dir: string }): AdapterArchive {
  const name = adapterFolder(model);
  const path = `${runDir(run)}/${name}.gguf`;
  const pieces: Uint8Array[] = [];
  // The engine writes from front to back.
  loraine.mountWriter(path, (_, bytes) => pieces.push(bytes));
  try {
    loraine.exportGguf(dir, runDir(run), path);
  } finally {
    loraine.unmountWriter(path);
  }
  const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return { name, bytes };
}

/** Where merged models lie on their way to the visitor's disk. */
const EXPORTS = "exports";

/** The base, a GGUF file, with the adapter merged into it, written to the browser's storage tensor by tensor. */
export async function mergedGguf(
  { run, model, dir }: { run: string; model: string; dir: string },
  progress: (progress: Progress) => void,
): Promise<{ name: string; file: File }> {
  await closeGenerator();
  await provide(runDir(run));
  await forgetExports();
  const name = `${adapterFolder(model).replace(/-adapter$/, "")}-merged.gguf`;
  const place = await storage.directory([EXPORTS], true);
  const path = `/${EXPORTS}/${name}`;
  // The file names its adapter by the directory.
  const adapter = `/${EXPORTS}/${adapterFolder(model)}`;
  for (const [name, bytes] of filesOf(runDir(run))) mountHeld(`${adapter}/${name}`, bytes);
  await storage.withFile(place, name, async (handle) => {
    loraine.mountWriter(path, (at, bytes) => storage.writeAll(handle, bytes as Uint8Array<ArrayBuffer>, at));
    try {
      const told = (done: number, total: number) => progress({ what: "merging", done, total, counted: true });
      await loraine.mergeGguf(dir, adapter, path, told);
    } finally {
      loraine.unmountWriter(path);
      unmount(`/${EXPORTS}`);
    }
  });
  return { name, file: (await storage.file(place, name)) as File };
}

/** Removes what was merged before; a download that goes on has it no longer. */
export async function forgetExports(): Promise<void> {
  const root = await navigator.storage.getDirectory();
  await storage.remove(root, EXPORTS);
}
