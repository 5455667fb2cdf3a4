/** The adapter of a run as files to take along: a zip for PEFT, a GGUF file for llama.cpp. */

import { strToU8, zipSync, type Zippable } from "fflate";
import type { AdapterArchive } from "../protocol";
import { adapterFolder } from "../recipe";
import { PageError } from "./failure";
import { runDir } from "./runs";
import { loraine, unmount } from "./wasm";

const CONFIG = "adapter_config.json";
const NEEDED = [CONFIG, "adapter_model.safetensors", "README.md"];

/**
 * The files of a run in one folder: the adapter as PEFT lays it out, and what the run was made with. `base` is the name of the base for
 * others; the engine's files name the directory that the page had mounted.
 */
export function adapterZip({ run, model, base }: { run: string; model: string; base: string }): AdapterArchive {
  const out = runDir(run);
  const names = loraine
    .listFiles(out)
    .map(({ path }) => path.slice(out.length + 1))
    .filter((name) => !name.includes("/") && !name.startsWith("."));
  const missing = NEEDED.find((name) => !names.includes(name));
  if (missing !== undefined) throw new PageError("file", `The run has no ${missing} yet. Wait until the run ends, or stop it.`);
  const folder = adapterFolder(model);
  const text = (name: string) => new TextDecoder().decode(loraine.readFile(`${out}/${name}`));
  const mounted = (JSON.parse(text(CONFIG)) as { base_model_name_or_path?: string }).base_model_name_or_path;
  const renamed = (text: string) => {
    const withBase = mounted === undefined ? text : text.replaceAll(mounted, base);
    // What `loraine demo` writes stands for the page's own example.
    return withBase
      .replaceAll("/data/pirate", "loraine-demo/data")
      .replaceAll(out, folder)
      .replaceAll(/\/(models--[^/"]+\/snapshots\/[0-9a-f]{40})/g, base)
      .replaceAll(/"\/data\//g, '"');
  };
  const entry = (name: string): Zippable[string] => {
    // Weights do not shrink.
    if (name.endsWith(".safetensors")) return [loraine.readFile(`${out}/${name}`), { level: 0 }];
    if (/^(adapter_config\.json|README\.md|run\.toml)$/.test(name)) return strToU8(renamed(text(name)));
    return loraine.readFile(`${out}/${name}`);
  };
  const files: Zippable = Object.fromEntries(names.map((name) => [`${folder}/${name}`, entry(name)]));
  return { name: folder, bytes: zipSync(files) as Uint8Array<ArrayBuffer> };
}

/** The adapter of a run as a GGUF file, for llama.cpp; `dir` is where the engine has the base. */
export function adapterGguf({ run, model, dir }: { run: string; model: string; dir: string }): AdapterArchive {
  const name = adapterFolder(model);
  const path = `${runDir(run)}/${name}.gguf`;
  try {
    loraine.exportGguf(dir, runDir(run), path);
    return { name, bytes: loraine.readFile(path) as Uint8Array<ArrayBuffer> };
  } finally {
    unmount(path);
  }
}
