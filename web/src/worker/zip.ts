import { zipSync, type Zippable } from "fflate";
import { PageError } from "./failure";
import { runDir } from "./runs";
import { loraine } from "./wasm";

const FILES = ["adapter_config.json", "adapter_model.safetensors", "README.md"];

/** The adapter as PEFT lays it out, its files at the top. */
export function adapterZip(run: string): Uint8Array<ArrayBuffer> {
  const out = runDir(run);
  const there = new Set(loraine.listFiles(out).map(({ path }) => path));
  const missing = FILES.find((name) => !there.has(`${out}/${name}`));
  if (missing !== undefined) throw new PageError("file", `The run has no ${missing} yet. Wait until the run ends, or stop it.`);
  // Weights do not shrink.
  const entry = (name: string): [Uint8Array, { level: 0 | 6 }] => [
    loraine.readFile(`${out}/${name}`),
    { level: name.endsWith(".safetensors") ? 0 : 6 },
  ];
  const files: Zippable = Object.fromEntries(FILES.map((name) => [name, entry(name)]));
  return zipSync(files) as Uint8Array<ArrayBuffer>;
}
