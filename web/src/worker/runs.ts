/** Runs in the browser's storage: settings and data at the start, and after each checkpoint a whole copy of the run's files. */

import type { DataSource, ModelSource, SavedRun } from "../protocol";
import type { RunSettings } from "../types";
import { openStored, storeData } from "./data";
import { PageError } from "./failure";
import { removeCopies } from "./models";
import * as storage from "./storage";
import { loraine, mountFile, mountHeld, unmount } from "./wasm";

const RECORD = "run.json";
const SAVES = "saves";
/** The adapter that the run started from, where it did not start with a new one. */
const FIRST = "first";

/** Files by their names. */
export type Files = Map<string, Uint8Array<ArrayBuffer>>;

/** What is stored once, when a run starts. */
interface RunRecord {
  model: ModelSource;
  modelName: string;
  data: DataSource;
  settings: RunSettings;
  started: number;
}

interface SaveManifest extends storage.Manifest {
  step: number;
  steps: number;
  finished: boolean;
}

export interface Progressed {
  step: number;
  steps: number;
  finished: boolean;
}

const path = (id: string): string[] => ["runs", id];
const LOCKS = "loraine-run-";
const lockName = (id: string): string => LOCKS + id;

/** The run's directory in the engine. */
export const runDir = (id: string): string => `/runs/${id}`;

/** Stores what a run begins with, or nothing where there is no room. */
export async function create(id: string, record: RunRecord): Promise<void> {
  try {
    const dir = await storage.directory(path(id), true);
    if (record.settings["init-adapter"] !== undefined) await storeFirst(id);
    await storeData(dir);
    await storage.writeJson(dir, RECORD, record);
  } catch (error) {
    await removeRun(id).catch(() => {});
    throw error;
  }
}

async function removeRun(id: string): Promise<void> {
  const root = await storage.directory(["runs"]);
  if (root !== undefined) await storage.remove(root, id);
}

const firstDir = (id: string): string => `/${FIRST}/${id}`;

/** Gives the engine the adapter that a run starts from, and answers with its directory. */
export function mountFirst(id: string, files: Files): string {
  unmount(`/${FIRST}`);
  for (const [name, bytes] of files) mountHeld(`${firstDir(id)}/${name}`, bytes);
  return firstDir(id);
}

async function storeFirst(id: string): Promise<void> {
  const dir = await storage.directory([...path(id), FIRST], true);
  for (const { path } of loraine.listFiles(firstDir(id))) {
    await storage.writeFile(dir, path.slice(firstDir(id).length + 1), bytesOf(path));
  }
}

async function restoreFirst(id: string): Promise<void> {
  const dir = await storage.directory([...path(id), FIRST]);
  if (dir === undefined) return;
  const files: Files = new Map();
  for await (const [name, handle] of dir.entries()) {
    const found = handle.kind === "file" ? await storage.file(dir, name) : undefined;
    if (found !== undefined) files.set(name, new Uint8Array(await found.arrayBuffer()));
  }
  mountFirst(id, files);
}

/** Copies the engine's files of the run, in the order that leaves an earlier copy whole until this one is. */
export async function save(id: string, progressed: Progressed): Promise<void> {
  const out = runDir(id);
  // Read before anything is awaited: the run may go on meanwhile.
  const contents = loraine
    .listFiles(out)
    .map(({ path }) => ({ name: encodeURIComponent(path.slice(out.length + 1)), bytes: bytesOf(path) }));
  const saves = await storage.directory([...path(id), SAVES], true);
  const earlier = await storage.directories(saves);
  let name = `${progressed.step}${progressed.finished ? "-end" : ""}`;
  while (earlier.includes(name)) name += "+";
  const files = contents.map(({ name, bytes }) => ({ name, bytes: bytes.byteLength }));
  const dir = await saves.getDirectoryHandle(name, { create: true });
  try {
    for (const { name, bytes } of contents) await storage.writeFile(dir, name, bytes);
    await storage.finish(dir, { files, ...progressed } satisfies SaveManifest);
  } catch (error) {
    // Half a copy is of no use and takes room.
    await storage.remove(saves, name).catch(() => {});
    throw error;
  }
  await mountCheckpoints(out, dir, files);
  // The new copy is whole, whatever becomes of the old ones.
  for (const other of earlier) await storage.remove(saves, other).catch(() => {});
}

/** Gives the engine the stored files of its checkpoints in place of those that lie in memory. A checkpoint never changes. */
async function mountCheckpoints(out: string, dir: FileSystemDirectoryHandle, files: storage.StoredFile[]): Promise<void> {
  for (const { name, bytes } of files.filter(({ name }) => ofCheckpoint(name))) {
    const file = await storage.file(dir, name);
    const path = `${out}/${decodeURIComponent(name)}`;
    // The run goes on meanwhile, and may have removed the checkpoint.
    if (file !== undefined && loraine.listFiles(out).some((own) => own.path === path && own.bytes === bytes)) mountFile(path, file);
  }
}

const ofCheckpoint = (name: string): boolean => decodeURIComponent(name).startsWith("checkpoints/");

function bytesOf(path: string): Uint8Array<ArrayBuffer> {
  return loraine.readFile(path) as Uint8Array<ArrayBuffer>;
}

/** The newest whole copy. */
async function newestSave(id: string): Promise<{ manifest: SaveManifest; files: Map<string, File> } | undefined> {
  const saves = await storage.directory([...path(id), SAVES]);
  if (saves === undefined) return undefined;
  let newest: { manifest: SaveManifest; files: Map<string, File> } | undefined;
  for (const name of await storage.directories(saves)) {
    const whole = await storage.wholeDirectory<SaveManifest>(await saves.getDirectoryHandle(name));
    if (whole === undefined) continue;
    const { step, finished } = whole.manifest;
    const before = newest?.manifest;
    const later = before === undefined || step > before.step || (step === before.step && (finished || !before.finished));
    if (later) newest = whole;
  }
  return newest;
}

/** Every run that can be gone on with, the newest first. Runs that never saved are removed. */
export async function savedRuns(): Promise<SavedRun[]> {
  const root = await storage.directory(["runs"]);
  if (root === undefined) return [];
  const held = new Set((await navigator.locks.query()).held?.map((lock) => lock.name));
  const runs: SavedRun[] = [];
  const copies = new Set<string>();
  for (const id of await storage.directories(root)) {
    const dir = await root.getDirectoryHandle(id);
    const record = await storage.readJson<RunRecord>(dir, RECORD);
    const busy = held.has(lockName(id));
    if (record?.model.kind === "folder" && record.model.copy !== undefined) copies.add(record.model.copy);
    const save = record && (await newestSave(id));
    if (record !== undefined && save !== undefined) {
      const { step, steps, finished } = save.manifest;
      runs.push({ id, ...record, step, steps, finished, busy });
    } else if (!busy) {
      await storage.remove(root, id);
    }
  }
  // A run that is about to begin copies its folder before it has a record.
  if (![...held].some((name) => name?.startsWith(LOCKS))) await removeCopies(copies);
  return runs.sort((a, b) => b.started - a.started);
}

export async function find(id: string): Promise<SavedRun | undefined> {
  return (await savedRuns()).find((run) => run.id === id);
}

export async function discard(id: string): Promise<void> {
  await removeRun(id);
  await savedRuns();
}

/** Gives the engine the files of the newest copy, where the run had them. */
export async function mountSave(id: string): Promise<void> {
  const save = await newestSave(id);
  if (save === undefined) return;
  loraine.unmount(runDir(id));
  await restoreFirst(id);
  for (const [name, file] of save.files) {
    const path = `${runDir(id)}/${decodeURIComponent(name)}`;
    if (ofCheckpoint(name)) {
      mountFile(path, file);
      continue;
    }
    const bytes = new Uint8Array(await file.arrayBuffer());
    // The engine adds to its logs; weights it only reads, or writes anew.
    if (name.endsWith(".safetensors")) mountHeld(path, bytes);
    else loraine.mountBytes(path, bytes);
  }
}

/** Gives the engine the files of a run's adapter alone, to answer with. */
export async function mountResult(id: string): Promise<void> {
  const save = await newestSave(id);
  if (save === undefined) throw new PageError("storage", "This run was deleted from the browser's storage.");
  for (const [name, file] of save.files) {
    if (!decodeURIComponent(name).includes("/"))
      mountHeld(`${runDir(id)}/${decodeURIComponent(name)}`, new Uint8Array(await file.arrayBuffer()));
  }
}

export async function openRunData(id: string, source: DataSource): ReturnType<typeof openStored> {
  return openStored(source, await storage.directory(path(id), true));
}

/** Keeps other tabs from going on with the run until what it answers with is called, or this one ends. Nothing where another tab has it. */
export function claim(id: string): Promise<(() => void) | undefined> {
  return new Promise((answer) => {
    void navigator.locks.request(lockName(id), { ifAvailable: true }, (lock) => {
      if (lock === null) return answer(undefined);
      return new Promise<void>((release) => answer(release));
    });
  });
}
