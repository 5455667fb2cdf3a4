/** The origin's private file system: directories by path, whole files in and out. */

export interface StoredFile {
  name: string;
  bytes: number;
}

/** What makes a directory whole: it is written last and names every file with its size. */
export interface Manifest {
  files: StoredFile[];
}

const MANIFEST = "manifest.json";

function isMissing(error: unknown): boolean {
  return error instanceof DOMException && (error.name === "NotFoundError" || error.name === "TypeMismatchError");
}

export async function directory(path: string[], create: true): Promise<FileSystemDirectoryHandle>;
export async function directory(path: string[], create?: false): Promise<FileSystemDirectoryHandle | undefined>;
export async function directory(path: string[], create = false): Promise<FileSystemDirectoryHandle | undefined> {
  let at = await navigator.storage.getDirectory();
  try {
    for (const name of path) at = await at.getDirectoryHandle(name, { create });
    return at;
  } catch (error) {
    if (!create && isMissing(error)) return undefined;
    throw error;
  }
}

export async function file(dir: FileSystemDirectoryHandle, name: string): Promise<File | undefined> {
  try {
    return await (await dir.getFileHandle(name)).getFile();
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

export async function remove(dir: FileSystemDirectoryHandle, name: string): Promise<void> {
  try {
    await dir.removeEntry(name, { recursive: true });
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

/** Names of the directories in `dir`. */
export async function directories(dir: FileSystemDirectoryHandle): Promise<string[]> {
  const names: string[] = [];
  for await (const [name, handle] of dir.entries()) {
    if (handle.kind === "directory") names.push(name);
  }
  return names.sort();
}

/** Calls `use` with a file open for writing, and closes it whatever happens. */
export async function withFile<T>(
  dir: FileSystemDirectoryHandle,
  name: string,
  use: (handle: FileSystemSyncAccessHandle) => Promise<T> | T,
): Promise<T> {
  const handle = await (await dir.getFileHandle(name, { create: true })).createSyncAccessHandle();
  try {
    return await use(handle);
  } finally {
    try {
      handle.flush();
    } finally {
      handle.close();
    }
  }
}

/** Writes all of `bytes` at `at`; a full disk is an error, not a shorter file. */
export function writeAll(handle: FileSystemSyncAccessHandle, bytes: Uint8Array<ArrayBuffer>, at: number): void {
  const written = handle.write(bytes, { at });
  if (written !== bytes.byteLength) throw new DOMException("the browser's storage is full", "QuotaExceededError");
}

export async function writeFile(dir: FileSystemDirectoryHandle, name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  await withFile(dir, name, (handle) => {
    handle.truncate(0);
    writeAll(handle, bytes, 0);
  });
}

/** Writes a blob piece by piece, so that large ones never lie in memory whole. */
export async function writeBlob(
  dir: FileSystemDirectoryHandle,
  name: string,
  blob: Blob,
  onBytes: (bytes: number) => void = () => {},
): Promise<void> {
  await withFile(dir, name, async (handle) => {
    handle.truncate(0);
    let at = 0;
    const reader = blob.stream().getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      writeAll(handle, piece.value, at);
      at += piece.value.byteLength;
      onBytes(piece.value.byteLength);
    }
  });
}

export async function writeJson(dir: FileSystemDirectoryHandle, name: string, value: unknown): Promise<void> {
  await writeFile(dir, name, new TextEncoder().encode(JSON.stringify(value)));
}

/** A JSON file, or undefined where it is missing or was cut off while being written. */
export async function readJson<T>(dir: FileSystemDirectoryHandle, name: string): Promise<T | undefined> {
  const found = await file(dir, name);
  if (found === undefined) return undefined;
  try {
    return JSON.parse(await found.text()) as T;
  } catch {
    return undefined;
  }
}

export async function finish<M extends Manifest>(dir: FileSystemDirectoryHandle, manifest: M): Promise<void> {
  await writeJson(dir, MANIFEST, manifest);
}

/** The manifest and files of a directory that was written to its end; undefined of any other. */
export async function wholeDirectory<M extends Manifest>(
  dir: FileSystemDirectoryHandle,
): Promise<{ manifest: M; files: Map<string, File> } | undefined> {
  const manifest = await readJson<M>(dir, MANIFEST);
  if (manifest === undefined || !Array.isArray(manifest.files)) return undefined;
  const files = new Map<string, File>();
  for (const { name, bytes } of manifest.files) {
    const found = await file(dir, name);
    if (found === undefined || found.size !== bytes) return undefined;
    files.set(name, found);
  }
  return { manifest, files };
}
