/** The data set that is open: mounted for the engine, and kept so that a run can store it. */

import type { DataSource, OpenedData } from "../protocol";
import { fetchDemo } from "./demo";
import { PageError } from "./failure";
import { plainName } from "./models";
import * as storage from "./storage";
import { loraine, mountFile, unmount } from "./wasm";

const ROOT = "/data";
const EXAMPLE = ["train.jsonl", "valid.jsonl"];

let content: Blob | undefined;

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
  mountFile(path, content);
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
