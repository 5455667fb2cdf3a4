/** Models opened for the engine: the built-in one, files of the user's, one from a hub. */

import type { CachedModel, FolderFile, HubAddress, HubChoice, HubOffer, ModelSource, OpenedModel, Progress } from "../protocol";
import { isGguf, modelName, parseModelName } from "../recipe";
import type { RunSettings } from "../types";
import { fetchDemo } from "./demo";
import { describe, PageError } from "./failure";
import { fileName } from "./fetch-parts";
import { Download, type HubManifest, hubAddress, hubPath, Missing, partsOf } from "./hub";
import * as storage from "./storage";
import { loraine, mountFile, unmount } from "./wasm";

const DEMO_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const COPIES = ["models", "folder"];
/** Tokens of a sequence that every model takes. */
const PROBE_LENGTH = 64;
/** The library's own, where the settings name no length. */
const DEFAULT_LENGTH = 512;
/** The beginning of a GGUF file, which has its keys: what is asked for first, and the most that is. */
const [BEGINNING_BYTES, MOST_BEGINNING_BYTES] = [1 << 20, 256 << 20];

/** What a folder's model is copied from, for as long as the tab is open. */
let folderFiles: FolderFile[] = [];
/** The directory that is mounted. */
let mounted: string | undefined;
let current: { download: Download; stop: AbortController } | undefined;

function mount(dir: string, files: Iterable<[string, Blob]>): void {
  if (mounted !== undefined) unmount(mounted);
  mounted = dir;
  for (const [name, file] of files) mountFile(`${dir}/${name}`, file);
}

/** Opens a directory of the engine, or a GGUF file in one. */
function opened(source: ModelSource, dir: string, name: string): OpenedModel {
  const summary = loraine.describeModel(dir);
  return { source, dir, gguf: isGguf(dir), name, base: baseName(source, dir), summary };
}

/** Where the engine opens these files: their directory, or the GGUF file among them. */
function modelPath(dir: string, name: string, files: string[]): string {
  const ggufs = files.filter(isGguf).sort();
  if (files.some((file) => file.endsWith(".safetensors")) || ggufs.length === 0) {
    if (files.includes("config.json")) return dir;
    const wanted = "config.json, tokenizer.json and the .safetensors files in it, or a GGUF file";
    throw new PageError("file", `${name} holds no config.json. Choose the folder that has ${wanted}.`);
  }
  const first = ggufs[0] as string;
  const model = (file: string) => file.replace(/-\d{5}-of-\d{5}(?=\.gguf$)/i, "");
  const other = ggufs.find((file) => model(file) !== model(first));
  if (other !== undefined) throw new PageError("file", `${name} holds several GGUF models: ${first}, ${other}. Choose the file of one.`);
  return `${dir}/${first}`;
}

/** The name of a base that others can find: on a hub, or in a folder that the reader of an adapter has too. */
function baseName(source: ModelSource, dir: string): string {
  switch (source.kind) {
    case "demo":
      // Where `loraine demo` writes the built-in model.
      return "loraine-demo/model";
    case "hub":
      return source.address.id;
    case "folder": {
      // A GGUF file does not say which model it was made from.
      if (isGguf(dir)) return source.name;
      const config = JSON.parse(new TextDecoder().decode(loraine.readFile(`${dir}/config.json`))) as { _name_or_path?: unknown };
      const origin = config._name_or_path;
      // A path says where somebody's disk had it.
      return typeof origin === "string" && parseModelName(origin) !== undefined ? origin : source.name;
    }
  }
}

export async function openDemo(): Promise<OpenedModel> {
  const files = await Promise.all(DEMO_FILES.map(async (name) => [name, await fetchDemo(`model/${name}`)] as [string, Blob]));
  mount("/models/demo", files);
  return opened({ kind: "demo" }, "/models/demo", "demo");
}

/** A name that can stand in a path of the engine. */
export function plainName(name: string): string {
  return name.replace(/[^A-Za-z0-9._-]/g, "_").replace(/^\.+/, "") || "model";
}

export function openFolder(name: string, files: FolderFile[]): OpenedModel {
  const dir = `/models/${plainName(name)}`;
  const path = modelPath(
    dir,
    name,
    files.map((file) => file.name),
  );
  mount(
    dir,
    files.map(({ name, file }) => [name, file] as [string, Blob]),
  );
  folderFiles = files;
  return opened({ kind: "folder", name }, path, name);
}

/** Copies the opened folder into the browser's storage, once, and answers with the copy's name. */
export async function copyFolder(progress: (progress: Progress) => void): Promise<string> {
  const key = await fingerprint(folderFiles);
  const dir = await storage.directory([...COPIES, key], true);
  if ((await storage.wholeDirectory(dir)) !== undefined) return key;
  const total = folderFiles.reduce((sum, { file }) => sum + file.size, 0);
  let done = 0;
  for (const { name, file } of folderFiles) {
    await storage.writeBlob(dir, name, file, (bytes) => {
      done += bytes;
      progress({ what: "", done, total });
    });
  }
  await storage.finish(dir, { files: folderFiles.map(({ name, file }) => ({ name, bytes: file.size })) });
  return key;
}

async function fingerprint(files: FolderFile[]): Promise<string> {
  const lines = files.map(({ name, file }) => `${name} ${file.size} ${file.lastModified}`).sort();
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(lines.join("\n")));
  return [...new Uint8Array(digest)]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("")
    .slice(0, 32);
}

/** The copy of a folder that an earlier run kept, or where there was no room for one, the folder as it is open now. */
export async function openCopy(name: string, copy: string | undefined): Promise<OpenedModel> {
  if (copy === undefined) {
    if (mounted === `/models/${plainName(name)}`) return openFolder(name, folderFiles);
    throw new PageError("file", `The model ${name} was too large to save. Choose its files again, then resume.`);
  }
  const dir = await storage.directory([...COPIES, copy]);
  const whole = dir && (await storage.wholeDirectory(dir));
  if (!whole) throw new PageError("storage", `The copy of ${name} was deleted from the browser's storage. Choose its files again.`);
  const path = `/models/${plainName(name)}`;
  mount(path, whole.files);
  folderFiles = [...whole.files].map(([name, file]) => ({ name, file }));
  return opened({ kind: "folder", name, copy }, modelPath(path, name, [...whole.files.keys()]), name);
}

/** Removes the copies that none of `used` names. */
export async function removeCopies(used: Set<string>): Promise<void> {
  const dir = await storage.directory(COPIES);
  if (dir === undefined) return;
  for (const name of await storage.directories(dir)) {
    if (!used.has(name)) await storage.remove(dir, name);
  }
}

/** Works something out of what has been mounted of a hub's model; a model that the engine does not support is refused. */
function asked<T>(address: HubAddress, name: string, use: (path: string) => T): T {
  const dir = "/models/asked";
  try {
    return use(name === "" ? dir : `${dir}/${name}`);
  } catch (error) {
    const { kind, message } = describe(error);
    throw new PageError(kind === "crash" ? "crash" : "hub", `${modelName(address)}: ${message.replace(`${dir}/`, "")}`);
  } finally {
    unmount(dir);
  }
}

/** As `asked`, of a hub's config.json alone. */
function withConfig<T>(address: HubAddress, config: Uint8Array<ArrayBuffer>, use: (path: string) => T): T {
  loraine.mountBytes("/models/asked/config.json", config);
  return asked(address, "", use);
}

/** As `asked`, of the keys at the beginning of a GGUF file, or of all files of a split model. */
async function withBeginning<T>(address: HubAddress, download: Download, use: (path: string) => T): Promise<T> {
  const paths = partsOf(address.file as string);
  for (let length = BEGINNING_BYTES; ; length *= 4) {
    let short = false;
    let whole = true;
    for (const path of paths) {
      const { bytes, total } = await download.beginning(path, length);
      whole &&= bytes.length === total;
      const read = (offset: number, length: number): Uint8Array => {
        short ||= offset + length > bytes.length;
        if (short) throw new Error("only the beginning of the file is here");
        return bytes.subarray(offset, offset + length);
      };
      loraine.mountReader(`/models/asked/${plainName(fileName(path))}`, total, read);
    }
    try {
      return asked(address, plainName(fileName(address.file as string)), use);
    } catch (error) {
      if (!short || whole || length >= MOST_BEGINNING_BYTES) throw error;
    }
  }
}

/** One download at a time: a new one ends the one before, and goes on where that one was. */
function newDownload(address: HubAddress, token: string, progress: (progress: Progress) => void): Download {
  current?.stop.abort();
  const stop = new AbortController();
  const download = new Download(address, token, stop.signal, progress);
  if (current !== undefined) download.goOnFrom(current.download);
  current = { download, stop };
  return download;
}

/** The settings with which a model is asked for its sizes. */
const probe = (model: string): RunSettings => ({ ...(loraine.defaultSettings() as RunSettings), model, data: "", out: "" });

/** A model of a hub, with the bytes that fetching and training it would take; or the GGUF files of which one is to be named. */
export async function lookUp(
  address: HubAddress,
  token: string,
  settings: RunSettings,
  progress: (progress: Progress) => void,
): Promise<HubOffer | HubChoice> {
  const download = newDownload(address, token, progress);
  const sizes = (path: string, context: number | undefined) => {
    // Training a whole model trains each of its parameters.
    const parameters = loraine.estimate({ ...probe(path), method: "full" }, PROBE_LENGTH).trained_parameters;
    const length = Math.min(settings["max-seq-len"] ?? DEFAULT_LENGTH, context ?? DEFAULT_LENGTH);
    const memory = loraine.estimate({ ...probe(path), method: settings.method }, length).total;
    return { address, parameters, memory };
  };
  if (address.file !== undefined) {
    const offer = await withBeginning(address, download, (path) => sizes(path, undefined));
    const parts = await Promise.all(partsOf(address.file).map((path) => download.beginning(path, 0)));
    const bytes = parts.reduce((sum, { total }) => sum + total, 0);
    return { ...offer, bytes, room: await download.room(bytes) };
  }
  try {
    const config = await download.config();
    const offer = withConfig(address, config, (path) => {
      const { max_position_embeddings: context } = JSON.parse(new TextDecoder().decode(config)) as { max_position_embeddings?: number };
      return sizes(path, context);
    });
    const bytes = await download.bytes();
    return { ...offer, bytes, room: await download.room(bytes) };
  } catch (error) {
    // Repositories of GGUF files hold no other weights, and often no config.json.
    if (!(error instanceof Missing)) throw error;
    const files = await download.ggufFiles();
    if (files.length === 0) throw error;
    return { address, files };
  }
}

export async function openHub(address: HubAddress, token: string, progress: (progress: Progress) => void): Promise<OpenedModel> {
  const cached = await cachedHub(address);
  if (cached !== undefined) return cached;
  const download = newDownload(address, token, progress);
  const check = (path: string) => loraine.estimate(probe(path), PROBE_LENGTH);
  let config: Uint8Array<ArrayBuffer> | undefined;
  if (address.file === undefined) {
    config = await download.config();
    withConfig(address, config, check);
  } else {
    await withBeginning(address, download, check);
  }
  await download.all(config);
  const fetched = await cachedHub(address);
  if (fetched === undefined) throw new PageError("storage", `${modelName(address)} did not stay in the browser's storage. Fetch it again.`);
  return fetched;
}

export function cancelDownload(): void {
  current?.stop.abort();
}

/** Opens a model that has been fetched before. Files that the engine refuses are not kept. */
export async function cachedHub(address: HubAddress): Promise<OpenedModel | undefined> {
  const dir = await storage.directory(hubPath(address));
  const whole = dir && (await storage.wholeDirectory<HubManifest>(dir));
  if (!whole) return undefined;
  // The shape of huggingface_hub's cache: the engine takes the model's name from it.
  const path = `/models--${address.id.replace("/", "--")}/snapshots/${whole.manifest.commit}`;
  mount(path, whole.files);
  const file = address.file === undefined ? "" : `/${fileName(address.file)}`;
  try {
    return opened({ kind: "hub", address }, path + file, modelName(address));
  } catch (error) {
    unmount(path);
    await forget(address);
    throw error;
  }
}

export async function forget(address: HubAddress): Promise<void> {
  const path = hubPath(address);
  const parent = await storage.directory(path.slice(0, -1));
  if (parent !== undefined) await storage.remove(parent, path[path.length - 1] as string);
}

async function hasWeights(dir: FileSystemDirectoryHandle): Promise<boolean> {
  for await (const [name, handle] of dir.entries()) {
    if (/\.(safetensors|gguf)(\.part)?$/i.test(name) && (await (handle as FileSystemFileHandle).getFile()).size > 0) return true;
  }
  return false;
}

/** Models from hubs in the browser's storage, whole or in part. Those of which no weights came are removed. */
export async function cachedModels(): Promise<CachedModel[]> {
  const root = await storage.directory(["models", "hub"]);
  if (root === undefined) return [];
  const found: CachedModel[] = [];
  for (const hub of await storage.directories(root)) {
    const models = await root.getDirectoryHandle(hub);
    for (const name of await storage.directories(models)) {
      const dir = await models.getDirectoryHandle(name);
      const whole = await storage.wholeDirectory<HubManifest>(dir);
      let bytes = 0;
      for await (const handle of dir.values()) {
        if (handle.kind === "file") bytes += (await (handle as FileSystemFileHandle).getFile()).size;
      }
      // Nothing of its weights has arrived: there is nothing to go on with.
      if (whole === undefined && !(await hasWeights(dir))) {
        await storage.remove(models, name);
        continue;
      }
      found.push({ address: hubAddress(hub, name), bytes, whole: whole !== undefined });
    }
  }
  return found;
}
