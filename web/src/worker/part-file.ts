/** A file that arrives in pieces, in any order: the bytes lie in `NAME.part`, and `NAME.part.json` says which of them are there. */

import * as storage from "./storage";

/** Bytes `from` up to, but not including, `to`. */
export type Range = [from: number, to: number];

/** The kind of record of which a single write replaces the one before. */
const RECORD_BYTES = 1024;

interface PartRecord {
  /** Bytes of the whole file; 0 where the hub does not say. */
  total: number;
  /** The hub's name for this version of the file. */
  tag: string | null;
  /** What has arrived, in order; without it everything up to the file's end, as earlier versions of the page wrote it. */
  have?: Range[];
}

const partName = (name: string): string => `${name}.part`;
const recordName = (name: string): string => `${name}.part.json`;

export class PartFile {
  total = 0;
  tag: string | null = null;
  private have: Range[] = [];

  private constructor(
    private readonly bytes: FileSystemSyncAccessHandle,
    private readonly record: FileSystemSyncAccessHandle,
  ) {}

  /** Calls `use` with the part of `name` in `dir`, open for writing. */
  static async open<T>(dir: FileSystemDirectoryHandle, name: string, use: (part: PartFile) => Promise<T>): Promise<T> {
    const known = await storage.readJson<PartRecord>(dir, recordName(name));
    return storage.withFile(dir, partName(name), (bytes) =>
      storage.withFile(dir, recordName(name), (record) => {
        const part = new PartFile(bytes, record);
        part.recall(known);
        return use(part);
      }),
    );
  }

  /** Bytes of `name` that have arrived. */
  static async arrived(dir: FileSystemDirectoryHandle, name: string): Promise<number> {
    const known = await storage.readJson<PartRecord>(dir, recordName(name));
    const file = await storage.file(dir, partName(name));
    if (known === undefined || file === undefined) return 0;
    return sum(known.have ?? [[0, file.size]]);
  }

  /** Removes what has arrived. */
  static async remove(dir: FileSystemDirectoryHandle, name: string): Promise<void> {
    await storage.remove(dir, partName(name));
    await storage.remove(dir, recordName(name));
  }

  /** Gives the whole file its name. */
  static async finish(dir: FileSystemDirectoryHandle, name: string): Promise<void> {
    const handle = (await dir.getFileHandle(partName(name))) as FileSystemFileHandle & { move(name: string): Promise<void> };
    await handle.move(name);
    await storage.remove(dir, recordName(name));
  }

  private recall(known: PartRecord | undefined): void {
    const size = this.bytes.getSize();
    const have = known?.have ?? [[0, size]];
    // A record that says more than there is was not written by this page.
    if (known === undefined || !Number.isSafeInteger(known.total) || !have.every(([from, to]) => from <= to && to <= size)) {
      this.bytes.truncate(0);
      return;
    }
    [this.total, this.tag] = [known.total, known.tag];
    this.have = have.filter(([from, to]) => from < to);
  }

  /** Bytes that have arrived. */
  get arrived(): number {
    return sum(this.have);
  }

  get isWhole(): boolean {
    return this.total > 0 && this.gaps().length === 0;
  }

  /** What is missing, in order; of a file of unknown size up to infinity. */
  gaps(): Range[] {
    const end = this.total > 0 ? this.total : Number.POSITIVE_INFINITY;
    const gaps: Range[] = [];
    let at = 0;
    for (const [from, to] of this.have) {
      if (at < from) gaps.push([at, from]);
      at = to;
    }
    if (at < end) gaps.push([at, end]);
    return gaps;
  }

  /** Says what is known of the whole file. */
  describe(total: number, tag: string | null): void {
    [this.total, this.tag] = [total, tag];
    this.save();
  }

  /** Forgets everything that has arrived. */
  clear(): void {
    this.have = [];
    [this.total, this.tag] = [0, null];
    this.bytes.truncate(0);
    this.save();
  }

  write(bytes: Uint8Array<ArrayBuffer>, at: number): void {
    storage.writeAll(this.bytes, bytes, at);
    this.add([at, at + bytes.byteLength]);
    this.save();
  }

  private add(added: Range): void {
    const merged: Range[] = [];
    for (const range of [...this.have, added].sort((a, b) => a[0] - b[0])) {
      const last = merged.at(-1);
      if (last !== undefined && range[0] <= last[1]) last[1] = Math.max(last[1], range[1]);
      else merged.push([...range]);
    }
    this.have = merged;
  }

  private save(): void {
    const { total, tag, have } = this;
    const text = JSON.stringify({ total, tag, have } satisfies PartRecord).padEnd(RECORD_BYTES);
    const bytes = new TextEncoder().encode(text) as Uint8Array<ArrayBuffer>;
    storage.writeAll(this.record, bytes, 0);
    this.record.truncate(bytes.byteLength);
  }
}

function sum(ranges: Range[]): number {
  return ranges.reduce((sum, [from, to]) => sum + to - from, 0);
}
