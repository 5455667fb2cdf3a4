/** Models opened for the engine: the built-in one, a folder of the user's, one from a hub. */

import type { CachedModel, FolderFile, HubAddress, HubOffer, ModelSource, OpenedModel, Progress } from "../protocol";
import { parseModelName } from "../recipe";
import type { RunSettings } from "../types";
import { fetchDemo } from "./demo";
import { describe, PageError } from "./failure";
import { Download, type HubManifest, hubName, hubPath } from "./hub";
import * as storage from "./storage";
import { loraine, mountFile, unmount } from "./wasm";

const DEMO_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const COPIES = ["models", "folder"];
/** Tokens of a sequence that every model takes. */
const PROBE_LENGTH = 64;
/** The library's own, where the settings name no length. */
const DEFAULT_LENGTH = 512;

/** What a folder's model is copied from, for as long as the tab is open. */
let folderFiles: FolderFile[] = [];
/** The directory that is mounted. */
let mounted: string | undefined;
let download: AbortController | undefined;

function mount(dir: string, files: Iterable<[string, Blob]>): void {
  if (mounted !== undefined) unmount(mounted);
  mounted = dir;
  for (const [name, file] of files) mountFile(`${dir}/${name}`, file);
}

function opened(source: ModelSource, dir: string, name: string): OpenedModel {
  const summary = loraine.describeModel(dir);
  return { source, dir, name, base: baseName(source, dir), summary };
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
  if (!files.some((file) => file.name === "config.json")) {
    throw new PageError(
      "file",
      `${name} holds no config.json. Choose the folder that has config.json, tokenizer.json and the .safetensors files in it.`,
    );
  }
  const dir = `/models/${plainName(name)}`;
  mount(
    dir,
    files.map(({ name, file }) => [name, file] as [string, Blob]),
  );
  folderFiles = files;
  return opened({ kind: "folder", name }, dir, name);
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
    throw new PageError("file", `The model ${name} was too large to save. Choose its folder again, then resume.`);
  }
  const dir = await storage.directory([...COPIES, copy]);
  const whole = dir && (await storage.wholeDirectory(dir));
  if (!whole) throw new PageError("storage", `The copy of ${name} was deleted from the browser's storage. Choose its folder again.`);
  const path = `/models/${plainName(name)}`;
  mount(path, whole.files);
  folderFiles = [...whole.files].map(([name, file]) => ({ name, file }));
  return opened({ kind: "folder", name, copy }, path, name);
}

/** Removes the copies that none of `used` names. */
export async function removeCopies(used: Set<string>): Promise<void> {
  const dir = await storage.directory(COPIES);
  if (dir === undefined) return;
  for (const name of await storage.directories(dir)) {
    if (!used.has(name)) await storage.remove(dir, name);
  }
}

/** Works something out of a hub's config.json alone; a model that the engine does not support is refused. */
function withConfig<T>(address: HubAddress, config: Uint8Array<ArrayBuffer>, use: (dir: string) => T): T {
  const dir = "/models/asked";
  loraine.mountBytes(`${dir}/config.json`, config);
  try {
    return use(dir);
  } catch (error) {
    const { kind, message } = describe(error);
    throw new PageError(kind === "crash" ? "crash" : "hub", `${hubName(address)}: ${message.replace(`${dir}/`, "")}`);
  } finally {
    unmount(dir);
  }
}

/** One download at a time: a new one ends the one before. */
function newDownload(address: HubAddress, token: string, progress: (progress: Progress) => void): Download {
  download?.abort();
  download = new AbortController();
  return new Download(address, token, download.signal, progress);
}

/** What a model of a hub is, and what fetching it and training it would take. */
export async function lookUp(
  address: HubAddress,
  token: string,
  settings: RunSettings,
  progress: (progress: Progress) => void,
): Promise<HubOffer> {
  const asked = newDownload(address, token, progress);
  const config = await asked.config();
  const offer = withConfig(address, config, (dir) => {
    const plain = { ...loraine.defaultSettings(), model: dir, data: "", out: "" };
    // Training a whole model trains each of its parameters.
    const parameters = loraine.estimate({ ...plain, method: "full" }, PROBE_LENGTH).trained_parameters;
    const { max_position_embeddings: context } = JSON.parse(new TextDecoder().decode(config)) as { max_position_embeddings?: number };
    const length = Math.min(settings["max-seq-len"] ?? DEFAULT_LENGTH, context ?? DEFAULT_LENGTH);
    const memory = loraine.estimate({ ...plain, method: settings.method }, length).total;
    return { address, parameters, memory };
  });
  return { ...offer, bytes: await asked.bytes() };
}

export async function openHub(address: HubAddress, token: string, progress: (progress: Progress) => void): Promise<OpenedModel> {
  const cached = await cachedHub(address);
  if (cached !== undefined) return cached;
  const check = (config: Uint8Array<ArrayBuffer>) => {
    withConfig(address, config, (dir) => loraine.estimate({ ...loraine.defaultSettings(), model: dir, data: "", out: "" }, PROBE_LENGTH));
  };
  await newDownload(address, token, progress).all(check);
  const fetched = await cachedHub(address);
  if (fetched === undefined) throw new PageError("storage", `${hubName(address)} did not stay in the browser's storage. Fetch it again.`);
  return fetched;
}

export function cancelDownload(): void {
  download?.abort();
}

/** Opens a model that has been fetched before. Files that the engine refuses are not kept. */
export async function cachedHub(address: HubAddress): Promise<OpenedModel | undefined> {
  const dir = await storage.directory(hubPath(address));
  const whole = dir && (await storage.wholeDirectory<HubManifest>(dir));
  if (!whole) return undefined;
  // The shape of huggingface_hub's cache: the engine takes the model's name from it.
  const path = `/models--${address.id.replace("/", "--")}/snapshots/${whole.manifest.commit}`;
  mount(path, whole.files);
  try {
    return opened({ kind: "hub", address }, path, hubName(address));
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
    if (/\.safetensors(\.part)?$/.test(name) && (await (handle as FileSystemFileHandle).getFile()).size > 0) return true;
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
      const at = name.lastIndexOf("@");
      const address = { base: decodeURIComponent(hub), id: name.slice(0, at).replace("--", "/"), revision: name.slice(at + 1) };
      found.push({ address, bytes, whole: whole !== undefined });
    }
  }
  return found;
}
