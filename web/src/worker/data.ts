/** The data set that is open: mounted for the engine, and kept so that a run can store it. */

import type { DataSource, Notice, OpenedData } from "../protocol";
import type { Inspection, RunSettings } from "../types";
import { fetchDemo } from "./demo";
import { PageError } from "./failure";
import { plainName } from "./models";
import * as storage from "./storage";
import { loraine, mountFile, unmount } from "./wasm";

const ROOT = "/data";
const EXAMPLE = ["train.jsonl", "valid.jsonl"];

let content: Blob | undefined;
/** Told of each range of the open data that the engine reads. */
let onRead: (end: number) => void = () => {};
/** What takes longer than a moment to tokenize. */
const LONG_BYTES = 500_000;
/** Bytes of long data that are read before the whole. */
const GLIMPSE_BYTES = 200_000;
const LINE_FEED = 10;
/** Files of which a beginning is data too. */
const CUT_AT_LINES = /\.(jsonl|ndjson|csv|tsv|txt|md)$/i;
/** The page hears of progress this often, in milliseconds. */
const PROGRESS_MS = 100;

/** Does `work`, which reads the open data without a pause, and tells how far it is. */
export function reading<T>(notify: (notice: Notice) => void, work: () => T): T {
  const total = content?.size ?? 0;
  let told = performance.now();
  let furthest = 0;
  onRead = (end) => {
    const reached = furthest < total && end >= total;
    furthest = Math.max(furthest, end);
    // A text is read at once and takes its time after that.
    if (reached && total > LONG_BYTES) notify({ type: "progress", progress: { what: "tokenizing the data", done: 0, total: 0 } });
    if (furthest >= total || performance.now() - told < PROGRESS_MS) return;
    told = performance.now();
    notify({ type: "progress", progress: { what: "reading the data", done: furthest, total } });
  };
  try {
    return work();
  } finally {
    onRead = () => {};
  }
}

/** Inspects the first part of the open data, which is quick however long they are; null where that part does not stand by itself. */
export async function glimpse(settings: RunSettings, count: number): Promise<Inspection | null> {
  const path = `/glimpse/${String(settings.data).split("/").at(-1)}`;
  if (content === undefined || !CUT_AT_LINES.test(path)) return null;
  const bytes = new Uint8Array(await content.slice(0, GLIMPSE_BYTES).arrayBuffer());
  loraine.mountBytes(path, bytes.slice(0, bytes.lastIndexOf(LINE_FEED) + 1));
  try {
    const found = loraine.inspectData({ ...settings, data: path }, count);
    return found.examples.length === 0 ? null : found;
  } catch {
    // A table may be cut inside a field. The whole will tell what is wrong, if anything is.
    return null;
  } finally {
    unmount(path);
  }
}

export async function openData(source: DataSource, given: Blob | string | null): Promise<OpenedData> {
  unmount(ROOT);
  content = undefined;
  if (source.kind === "example") {
    let bytes = 0;
    for (const name of EXAMPLE) {
      const file = await fetchDemo(`data/${name}`);
      bytes += file.size;
      loraine.mountBytes(`${ROOT}/pirate/${name}`, new Uint8Array(await file.arrayBuffer()));
    }
    return { source, path: `${ROOT}/pirate`, bytes };
  }
  if (given === null) throw new PageError("file", "There is no data to open.");
  content = given instanceof Blob ? given : new Blob([given]);
  const path = `${ROOT}/${plainName(source.name)}`;
  mountFile(path, content, (end) => onRead(end));
  return { source, path, bytes: content.size };
}

/** Stores the open data in `dir` under the name of their source; an example needs no storing. */
export async function storeData(dir: FileSystemDirectoryHandle): Promise<void> {
  if (content !== undefined) await storage.writeBlob(dir, "data", content);
}

/** Opens what a run has stored. */
export async function openStored(source: DataSource, dir: FileSystemDirectoryHandle): Promise<OpenedData> {
  if (source.kind === "example") return openData(source, null);
  const stored = await storage.file(dir, "data");
  if (stored === undefined) throw new PageError("storage", "The data of this run was deleted from the browser's storage.");
  return openData(source, stored);
}
