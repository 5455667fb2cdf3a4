/** A large file by several requests at once, each for a piece of it. */

import type { Progress } from "../protocol";
import type { PartFile, Range } from "./part-file";

/** Requests at a time, and what each asks for. */
const [CONNECTIONS, PIECE_BYTES] = [4, 16 << 20];
/** A write to storage for each of these, not for each network packet. */
const WRITE_BYTES = 1 << 20;

/** What pieces are asked of. */
export interface Connection {
  readonly signal: AbortSignal;
  readonly progress: (progress: Progress) => void;
  /** Asks for a file from byte `from` on, to its end or to byte `to`. */
  request(path: string, from: number, to: number | undefined, method: "GET", signal: AbortSignal): Promise<Response>;
  /** Tries again what may work the next time; attempts that brought bytes do not count. */
  patiently<T>(name: string, attempt: (moved: () => void) => Promise<T>, signal?: AbortSignal): Promise<T>;
}

/** The piece of a request that is alone. */
const WHOLE: Range = [0, Number.POSITIVE_INFINITY];

/** A server that answers a request for a range with the whole file, or with a part of another file than before. */
class OneByOne extends Error {}

/** A file that ends before what was asked for: it is another than the one whose beginning is here. */
export class Shorter extends TypeError {}

/** The name of a file without the directories before it. */
export function fileName(path: string): string {
  return path.split("/").at(-1) as string;
}

/** The size that `bytes 0-99/1234` names. */
export function totalOf(range: string | null): number {
  return Number(/\/(\d+)$/.exec(range ?? "")?.[1] ?? 0);
}

export class PartFetcher {
  /** The server has not shown yet that it gives no ranges. */
  private ranges = true;

  constructor(private readonly hub: Connection) {}

  /** Fetches what is missing of a file: by several requests at once where it is large and the server gives ranges. `size` is 0 or known. */
  async fill(path: string, part: PartFile, size: number): Promise<void> {
    const total = part.total > 0 ? part.total : size;
    if (this.ranges && total - part.arrived > PIECE_BYTES) {
      part.describe(total, part.tag);
      try {
        await this.fillAtOnce(path, part);
        return;
      } catch (error) {
        if (!(error instanceof OneByOne)) throw error;
        this.ranges = false;
        part.clear();
      }
    }
    const { signal } = this.hub;
    do await this.hub.patiently(fileName(path), (moved) => this.append(path, part, WHOLE, signal, moved));
    while (!part.isWhole);
  }

  private async fillAtOnce(path: string, part: PartFile): Promise<void> {
    const stop = new AbortController();
    const signal = AbortSignal.any([this.hub.signal, stop.signal]);
    const underWay = new Set<Range>();
    let problem: unknown;
    const fetchPieces = async () => {
      for (let piece = nextPiece(part, underWay); piece !== undefined && !signal.aborted; piece = nextPiece(part, underWay)) {
        const own = piece;
        underWay.add(own);
        try {
          await this.hub.patiently(fileName(path), (moved) => this.append(path, part, own, signal, moved), signal);
        } catch (error) {
          problem ??= error;
          stop.abort();
        } finally {
          underWay.delete(own);
        }
      }
    };
    await Promise.all(Array.from({ length: CONNECTIONS }, fetchPieces));
    if (problem !== undefined) throw problem;
    if (this.hub.signal.aborted) throw new DOMException("stopped", "AbortError");
  }

  /** Fetches what is missing of a piece of a file. */
  private async append(path: string, part: PartFile, piece: Range, signal: AbortSignal, moved: () => void): Promise<void> {
    const gap = part.gaps().find(([from, to]) => from < piece[1] && piece[0] < to);
    if (gap === undefined) return;
    let at = Math.max(gap[0], piece[0]);
    const end = Math.min(gap[1], piece[1]);
    const toEnd = part.total === 0 || end === part.total;
    const asked = this.hub.request(path, at, toEnd ? undefined : end - 1, "GET", signal);
    const response = await asked.catch((error: unknown) => {
      throw error instanceof Shorter ? startAnew(part, piece, "the file changed") : error;
    });
    const tag = response.headers.get("etag");
    if (response.status !== 206 && (at > 0 || !toEnd)) {
      await response.body?.cancel();
      throw startAnew(part, piece, "it gives no ranges");
    }
    const length = Number(response.headers.get("content-length") ?? 0);
    const told = totalOf(response.headers.get("content-range")) || (toEnd && length > 0 ? at + length : 0);
    const isOther = (told > 0 && part.total > 0 && told !== part.total) || (part.tag !== null && part.tag !== tag);
    if (isOther) {
      // Another file by now than the one whose beginning is here.
      await response.body?.cancel();
      throw startAnew(part, piece, "the file changed");
    }
    part.describe(told > 0 ? told : part.total, tag);
    const last = Math.min(end, part.total > 0 ? part.total : Number.POSITIVE_INFINITY);
    await received(response, (bytes) => {
      const fits = bytes.subarray(0, last - at);
      part.write(fits, at);
      at += fits.byteLength;
      moved();
      this.hub.progress({ what: fileName(path), done: part.arrived, total: part.total });
      return at < last;
    });
    if (at === 0) throw new TypeError("an empty answer");
    if (part.total === 0) part.describe(at, tag);
    else if (at < last) throw new TypeError(`ended after ${at} of ${part.total} bytes`);
  }
}

/** The first piece of a file that is missing and not under way. */
function nextPiece(part: PartFile, underWay: Set<Range>): Range | undefined {
  for (const [from, to] of part.gaps()) {
    let at = from;
    for (const [start, end] of [...underWay].sort((a, b) => a[0] - b[0])) {
      if (end <= at || start >= to) continue;
      if (at < start) return [at, Math.min(start, at + PIECE_BYTES)];
      at = end;
    }
    if (at < to) return [at, Math.min(to, at + PIECE_BYTES)];
  }
  return undefined;
}

/** The error after an answer that does not fit what is there: alone, a request begins the file anew; beside others, it ends them all. */
function startAnew(part: PartFile, piece: Range, reason: string): Error {
  if (piece !== WHOLE) return new OneByOne();
  part.clear();
  return new TypeError(reason);
}

/** Gives the bytes of an answer to `take` in large pieces until it wants no more, the last ones also where the connection breaks. */
async function received(response: Response, take: (bytes: Uint8Array<ArrayBuffer>) => boolean): Promise<void> {
  if (response.body === null) throw new TypeError("an empty answer");
  const reader = response.body.getReader();
  const buffer = new Uint8Array(WRITE_BYTES);
  let held = 0;
  let wanted = true;
  const flush = () => {
    const ready = buffer.subarray(0, held);
    held = 0;
    if (wanted && ready.length > 0) wanted = take(ready);
  };
  try {
    for (let piece = await reader.read(); wanted && !piece.done; piece = await reader.read()) {
      for (let rest = piece.value; rest.length > 0; ) {
        const fits = rest.subarray(0, WRITE_BYTES - held);
        buffer.set(fits, held);
        held += fits.length;
        rest = rest.subarray(fits.length);
        if (held === WRITE_BYTES) flush();
      }
    }
  } finally {
    flush();
    await reader.cancel().catch(() => {});
  }
}
