/** What the engine keeps for its next start (which kernels are the fastest here), in the browser's storage under `cache/`. */

import * as storage from "./storage";
import { loraine } from "./wasm";

const NAME = "cache";
const ROOT = `/${NAME}`;

let mounted: Promise<void> | undefined;

/** Gives the engine what earlier tabs have left, once. What cannot be read is made anew. */
export function mountCache(): Promise<void> {
  mounted ??= mount().catch(() => {});
  return mounted;
}

async function mount(): Promise<void> {
  const dir = await storage.directory([NAME]);
  if (dir === undefined) return;
  for await (const [name, handle] of dir.entries()) {
    const found = handle.kind === "file" ? await storage.file(dir, name) : undefined;
    if (found !== undefined) loraine.mountBytes(`${ROOT}/${name}`, new Uint8Array(await found.arrayBuffer()));
  }
}

/** Stores what the engine's cache holds by now. A full disk, or another tab that is at it, leaves what was there. */
export async function keepCache(): Promise<void> {
  try {
    const files = loraine.listFiles(ROOT).map(({ path }) => [path.slice(ROOT.length + 1), loraine.readFile(path)] as const);
    if (files.length === 0) return;
    const dir = await storage.directory([NAME], true);
    for (const [name, bytes] of files) await storage.writeFile(dir, name, bytes as Uint8Array<ArrayBuffer>);
  } catch {
    // It is only a cache.
  }
}
