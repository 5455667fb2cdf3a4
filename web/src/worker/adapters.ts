/** Adapters that answers can be asked of: those of saved runs, and those that were opened from files or from a hub. */

import { unzipSync } from "fflate";
import type { FolderFile, HubAddress, OpenedAdapter, Progress } from "../protocol";
import { modelName } from "../recipe";
import { PageError } from "./failure";
import { Download } from "./hub";
import * as runs from "./runs";
import * as storage from "./storage";
import { loraine, mountHeld } from "./wasm";

const ROOT = "adapters";
const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
/** Files of an adapter beside its configuration and its weights: how texts are written for it. */
const SIDE_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"];
const NAMES = new Set([CONFIG, WEIGHTS, ...SIDE_FILES, "README.md"]);
/** More is no adapter of a model that a tab can hold. */
const MOST_BYTES = 2e9;

interface AdapterManifest extends storage.Manifest {
  title: string;
  base: string;
}

type Files = Map<string, Uint8Array<ArrayBuffer>>;

const dirOf = (id: string): string => `/${ROOT}/${id}`;
const idOf = (dir: string): string => dir.split("/").at(-1) as string;

/** The files of an adapter from a zip: those of the only folder in it that holds one, or those at its top. */
function unpacked(zip: Uint8Array, name: string): Files {
  let total = 0;
  const wanted = ({ name, originalSize }: { name: string; originalSize: number }) => {
    if (!NAMES.has(name.split("/").at(-1) as string) || name.split("/").length > 2) return false;
    total += originalSize;
    return total <= MOST_BYTES;
  };
  let files: Record<string, Uint8Array>;
  try {
    files = unzipSync(zip, { filter: wanted });
  } catch {
    throw new PageError("file", `${name} is not a zip file that can be read.`);
  }
  if (total > MOST_BYTES) throw new PageError("file", `${name} holds more than ${MOST_BYTES / 1e9} GB.`);
  const folders = Object.keys(files).filter((path) => path.split("/").at(-1) === CONFIG);
  if (folders.length !== 1) {
    throw new PageError(
      "file",
      `${name} holds ${folders.length === 0 ? "no" : "several files"} ${CONFIG}; a zip of one PEFT adapter is wanted.`,
    );
  }
  const folder = (folders[0] as string).slice(0, -CONFIG.length);
  const own = Object.entries(files).filter(([path]) => path.startsWith(folder));
  return new Map(own.map(([path, bytes]) => [path.slice(folder.length), bytes as Uint8Array<ArrayBuffer>]));
}

/** The base that an adapter's configuration names; files that are no adapter are refused. */
function baseOf(files: Files, name: string): string {
  for (const file of [CONFIG, WEIGHTS]) {
    if (!files.has(file)) throw new PageError("file", `${name} holds no ${file}; a PEFT adapter has ${CONFIG} and ${WEIGHTS}.`);
  }
  try {
    const config = JSON.parse(new TextDecoder().decode(files.get(CONFIG))) as { base_model_name_or_path?: unknown };
    return typeof config.base_model_name_or_path === "string" ? config.base_model_name_or_path : "";
  } catch {
    throw new PageError("file", `${CONFIG} of ${name} is not JSON.`);
  }
}

/** Keeps an adapter in the browser's storage and gives it to the engine. */
async function keep(title: string, files: Files): Promise<OpenedAdapter> {
  const base = baseOf(files, title);
  const id = crypto.randomUUID();
  const dir = await storage.directory([ROOT, id], true);
  for (const [name, bytes] of files) await storage.writeFile(dir, name, bytes);
  const listed = [...files].map(([name, bytes]) => ({ name, bytes: bytes.byteLength }));
  await storage.finish(dir, { title, base, files: listed } satisfies AdapterManifest);
  mount(id, files);
  return { dir: dirOf(id), title, base };
}

function mount(id: string, files: Files): void {
  for (const [name, bytes] of files) mountHeld(`${dirOf(id)}/${name}`, bytes);
}

/** Opens the files of a folder, or a zip of one. */
export async function openAdapter(name: string, given: FolderFile[]): Promise<OpenedAdapter> {
  const zip = given.find((file) => /\.zip$/i.test(file.name));
  if (zip !== undefined) return keep(name, unpacked(new Uint8Array(await zip.file.arrayBuffer()), zip.name));
  const files: Files = new Map();
  for (const { name, file } of given.filter(({ name }) => NAMES.has(name))) files.set(name, new Uint8Array(await file.arrayBuffer()));
  return keep(name, files);
}

/** Fetches an adapter from a hub. */
export async function fetchAdapter(address: HubAddress, token: string, progress: (progress: Progress) => void): Promise<OpenedAdapter> {
  const { signal } = new AbortController();
  const files: Files = new Map();
  const download = new Download(address, token, signal, progress);
  for (const [name, bytes] of await download.adapter([CONFIG, WEIGHTS], SIDE_FILES)) files.set(name, bytes);
  return keep(modelName(address), files);
}

/** Adapters that were opened, with the base of each. */
export async function openedAdapters(): Promise<OpenedAdapter[]> {
  const root = await storage.directory([ROOT]);
  const found: OpenedAdapter[] = [];
  for (const id of root === undefined ? [] : await storage.directories(root)) {
    const whole = await storage.wholeDirectory<AdapterManifest>(await (root as FileSystemDirectoryHandle).getDirectoryHandle(id));
    if (whole !== undefined) found.push({ dir: dirOf(id), title: whole.manifest.title, base: whole.manifest.base });
    // What was cut off while it was written.
    else await storage.remove(root as FileSystemDirectoryHandle, id);
  }
  return found;
}

export async function forgetAdapter(dir: string): Promise<void> {
  const root = await storage.directory([ROOT]);
  if (root !== undefined) await storage.remove(root, idOf(dir));
  loraine.unmount(dir);
}

/** Gives the engine the files of an adapter's directory, unless it has them. */
export async function provide(dir: string): Promise<void> {
  if (loraine.listFiles(dir).some(({ path }) => path === `${dir}/${CONFIG}`)) return;
  if (!dir.startsWith(`/${ROOT}/`)) {
    await runs.mountResult(idOf(dir));
    return;
  }
  const kept = await storage.directory([ROOT, idOf(dir)]);
  const whole = kept && (await storage.wholeDirectory<AdapterManifest>(kept));
  if (!whole) throw new PageError("storage", "This adapter was deleted from the browser's storage. Open it again.");
  for (const [name, file] of whole.files) mountHeld(`${dir}/${name}`, new Uint8Array(await file.arrayBuffer()));
}

/** Copies of the files of an adapter in the engine, outside the engine's memory. */
export function filesOf(dir: string): Files {
  const names = loraine.listFiles(dir).map(({ path }) => path.slice(dir.length + 1));
  const own = names.filter((name) => NAMES.has(name));
  return new Map(own.map((name) => [name, loraine.readFile(`${dir}/${name}`) as Uint8Array<ArrayBuffer>]));
}
