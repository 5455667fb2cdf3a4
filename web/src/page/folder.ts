/** The files of a folder that was chosen or dropped: those at its top that a model is made of. Or GGUF files by themselves. */

import type { FolderFile } from "../protocol";
import { isGguf } from "../recipe";

export interface Folder {
  name: string;
  files: FolderFile[];
}

const belongs = (name: string): boolean => /\.(json|safetensors|jinja|model|txt)$/.test(name) || isGguf(name);

/** Files of an adapter: a zip of them, or the files themselves. */
export const isAdapterFile = (name: string): boolean => /\.(zip|json|safetensors|jinja)$/i.test(name) || name === "README.md";

/** From an input of a whole folder: paths there begin with the folder's own name. */
export function chosenFolder(list: FileList): Folder | undefined {
  const files: FolderFile[] = [];
  let name = "";
  for (const file of list) {
    const [folder = "", inside = "", ...deeper] = file.webkitRelativePath.split("/");
    name = folder;
    if (deeper.length === 0 && belongs(inside)) files.push({ name: inside, file });
  }
  return name === "" ? undefined : { name, files };
}

/** Files that were chosen or dropped by themselves: a GGUF file names the model. */
export function looseFiles(list: Iterable<File>, isOne = belongs): Folder | undefined {
  const files = [...list].filter((file) => isOne(file.name)).map((file) => ({ name: file.name, file }));
  const naming = files.find(({ name }) => isGguf(name)) ?? files.find(({ name }) => /\.zip$/i.test(name));
  return files.length === 0 ? undefined : { name: naming?.name.replace(/\.zip$/i, "") ?? (isOne === belongs ? "model" : "adapter"), files };
}

/** From a drop: a folder, or the files themselves. */
export async function droppedFolder(transfer: DataTransfer, isOne = belongs): Promise<Folder | undefined> {
  // The transfer is emptied after the event: everything is taken from it before anything is awaited.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const loose = [...transfer.files];
  const folder = entries.find((entry) => entry.isDirectory) as FileSystemDirectoryEntry | undefined;
  if (folder === undefined) return looseFiles(loose, isOne);
  const inside = (await allEntries(folder)).filter((entry) => entry.isFile && isOne(entry.name)) as FileSystemFileEntry[];
  const open = (entry: FileSystemFileEntry) => new Promise<File>((resolve, reject) => entry.file(resolve, reject));
  const files = await Promise.all(inside.map(async (entry) => ({ name: entry.name, file: await open(entry) })));
  return { name: folder.name, files };
}

/** A reader gives a hundred at most, until it gives none. */
async function allEntries(folder: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = folder.createReader();
  const all: FileSystemEntry[] = [];
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return all;
    all.push(...some);
  }
}
