/** Models opened for the engine: the built-in one, a folder of the user's, one from a hub. */

import type { CachedModel, FolderFile, HubAddress, ModelSource, OpenedModel, Progress } from "../protocol";
import { fetchDemo } from "./demo";
import { describe, PageError } from "./failure";
import { Download, type HubManifest, hubName, hubPath } from "./hub";
import * as storage from "./storage";
import { loraine, mountFile, unmount } from "./wasm";

const DEMO_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const COPIES = ["models", "folder"];

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
  return { source, dir, name, summary: loraine.describeModel(dir) };
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
      progress({ what: "keeping a copy of the model, so that the run outlives this tab", done, total });
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

export async function openHub(address: HubAddress, progress: (progress: Progress) => void): Promise<OpenedModel> {
  const cached = await cachedHub(address);
  if (cached !== undefined) return cached;
  download?.abort();
  const controller = new AbortController();
  download = controller;
  const refuseUnsupported = (config: Uint8Array<ArrayBuffer>) => {
    const dir = "/models/asked";
    loraine.mountBytes(`${dir}/config.json`, config);
    try {
      loraine.estimate({ ...loraine.defaultSettings(), model: dir, data: "", out: "" }, 64);
    } catch (error) {
      const { kind, message } = describe(error);
      throw new PageError(kind === "crash" ? "crash" : "hub", `${hubName(address)}: ${message.replace(`${dir}/`, "")}`);
    } finally {
      unmount(dir);
    }
  };
  await new Download(address, controller.signal, progress).all(refuseUnsupported);
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

/** Models from hubs in the browser's storage, whole or in part. */
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
      const at = name.lastIndexOf("@");
      const address = { base: decodeURIComponent(hub), id: name.slice(0, at).replace("--", "/"), revision: name.slice(at + 1) };
      found.push({ address, bytes, whole: whole !== undefined });
    }
  }
  return found;
}
