/**
 * A model fetched from a hub, file by file, into the browser's storage: resumed where it broke off, held against the hub's checksums, whole
 * or not there.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import type { HubAddress, HubFile, Progress } from "../protocol";
import { isGguf, modelName } from "../recipe";
import { PageError } from "./failure";
import { type Connection, fileName, PartFetcher, Shorter, totalOf } from "./fetch-parts";
import { PartFile } from "./part-file";
import * as storage from "./storage";

const SIDE_FILES = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
const CONFIG = "config.json";
const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
/** Attempts at a hub of which nothing has arrived, and at one that has answered already: some two minutes. */
const [ATTEMPTS, PATIENT_ATTEMPTS] = [5, 13];
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [250, 15_000];
/** No hub is waited for longer at a time, whatever it asks for. */
const LONGEST_WAIT_MS = 120_000;
const READ_BYTES = 4 << 20;
/** Limit for what is not weights and for the list of files; tokenizers have some 35 MB. */
const MOST_SMALL_BYTES = 128 << 20;
/** The name of a file of a split model: what stands before its number, the number, and how many files there are. */
const SPLIT = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/i;
/** More files of one model are not believed. */
const MOST_FILES = 1000;

export interface HubManifest extends storage.Manifest {
  address: HubAddress;
  commit: string;
}

/** A file as the hub lists it. */
interface ListedFile extends HubFile {
  /** SHA-256 of its bytes, where the hub names it. */
  sha256: string | undefined;
}

/** The beginning of a file, and what is known of the whole. */
export interface Beginning {
  bytes: Uint8Array<ArrayBuffer>;
  total: number;
  tag: string | null;
}

/** The directory of a model in the browser's storage. */
export function hubPath({ base, id, revision, file }: HubAddress): string[] {
  const name = `${id.replace("/", "--")}@${revision}`;
  return ["models", "hub", encodeURIComponent(base), file === undefined ? name : `${name}@${encodeURIComponent(file)}`];
}

/** The address of a directory that `hubPath` has named. */
export function hubAddress(hub: string, directory: string): HubAddress {
  const [id = "", revision = "", file] = directory.split("@");
  const address = { base: decodeURIComponent(hub), id: id.replace("--", "/"), revision };
  return file === undefined ? address : { ...address, file: decodeURIComponent(file) };
}

/** The files of a split GGUF model, of which `file` is the first; else `file` alone. */
export function partsOf(file: string): string[] {
  const [, stem, number, count] = SPLIT.exec(file) ?? [];
  const files = Number(count ?? 1);
  if (Number(number) !== 1 || files < 2 || files > MOST_FILES) return [file];
  return Array.from({ length: files }, (_, at) => `${stem}-${String(at + 1).padStart(5, "0")}-of-${count}${file.slice(-5)}`);
}

export class Missing extends PageError {}

export class Download implements Connection {
  private readonly address: HubAddress;
  private readonly token: string;
  readonly signal: AbortSignal;
  readonly progress: (progress: Progress) => void;
  private revision: string;
  private commit: string | undefined;
  private listed: Map<string, ListedFile> | undefined;
  private begun = new Map<string, Beginning>();
  private named: string[] | undefined;
  /** Something has arrived: the hub is there, and the page may ask it. */
  private arrived = false;

  constructor(address: HubAddress, token: string, signal: AbortSignal, progress: (progress: Progress) => void) {
    this.address = address;
    this.token = token;
    this.signal = signal;
    this.progress = progress;
    this.revision = address.revision;
  }

  /** The size of the weights, where the hub names it. */
  async bytes(): Promise<number | undefined> {
    const weights = await this.weights();
    const sizes = await Promise.all(
      weights.map(async (name) => this.listed?.get(name)?.bytes ?? this.patiently(name, () => this.sizeOf(name))),
    );
    const known = sizes.filter((size) => size !== undefined);
    return known.length === sizes.length ? known.reduce((sum, size) => sum + size, 0) : undefined;
  }

  /** Bytes of `bytes` that are still to be stored, and bytes that the browser would store for this page. */
  async room(bytes: number | undefined): Promise<{ needed: number; granted: number } | undefined> {
    const { quota, usage } = await navigator.storage.estimate();
    if (quota === undefined || usage === undefined || bytes === undefined) return undefined;
    const dir = await storage.directory(hubPath(this.address));
    let there = 0;
    for (const name of dir === undefined ? [] : await this.weights()) {
      const own = dir && (await storage.file(dir, fileName(name)));
      there += own?.size ?? (dir ? await PartFile.arrived(dir, fileName(name)) : 0);
    }
    return { needed: Math.max(0, bytes - there), granted: Math.max(0, quota - usage) };
  }

  /** Paths of the files with weights. */
  private async weights(): Promise<string[]> {
    if (this.address.file !== undefined) return partsOf(this.address.file);
    if (this.named === undefined) {
      const index = await this.optional(INDEX);
      this.named = index === undefined ? [SINGLE] : shards(index, modelName(this.address));
    }
    return this.named;
  }

  /**
   * The GGUF files of a repository that has no weights of another kind; none where the hub lists no files. A split model stands there by
   * the name of its first file, with the bytes of all.
   */
  async ggufFiles(): Promise<HubFile[]> {
    const listed = (await this.list()) ?? new Map<string, ListedFile>();
    const paths = [...listed.keys()];
    if (paths.some((path) => path.endsWith(".safetensors"))) return [];
    // The parts that see and hear in a model of several modalities are no models by themselves.
    const models = paths.filter((path) => isGguf(path) && !/(^|\/)mmproj/i.test(path) && Number(SPLIT.exec(path)?.[2] ?? 1) === 1);
    const bytes = (path: string) => partsOf(path).reduce((sum, part) => sum + (listed.get(part)?.bytes ?? 0), 0);
    return models.map((path) => ({ path, bytes: bytes(path) })).sort((a, b) => a.bytes - b.bytes);
  }

  /** The hub's list of files with sizes and checksums, asked for once. Hubs that have none are used without. */
  private async list(): Promise<Map<string, ListedFile> | undefined> {
    const address = `${this.address.base}/api/models/${this.address.id}/tree/${encodeURIComponent(this.revision)}?recursive=true`;
    for (let tries = 0; this.listed === undefined && tries < 2; tries++) {
      try {
        const response = await this.fetch(address);
        if (isBusy(response)) throw new Busy(response);
        const rows: unknown = response.ok ? JSON.parse(new TextDecoder().decode(await wholeBody(response, "its list of files"))) : [];
        const files = Array.isArray(rows) ? rows.map(listedFile).filter((file) => file !== undefined) : [];
        this.listed = new Map(files.map((file) => [file.path, file]));
      } catch (error) {
        if (this.signal.aborted) throw error;
        if (error instanceof Busy) await sleep(Math.max(FIRST_PAUSE_MS, error.wait), this.signal);
      }
    }
    return this.listed;
  }

  /** The first bytes of a file, where the keys of GGUF are: `length` of them, or all. The download goes on after them. */
  async beginning(name: string, length: number): Promise<Beginning> {
    for (;;) {
      const begun = this.begun.get(name);
      if (begun !== undefined && begun.bytes.length >= Math.min(length, begun.total)) return begun;
      await this.patiently(name, (moved) => this.begin(name, length, moved));
    }
  }

  private async begin(name: string, length: number, moved: () => void): Promise<void> {
    const before = this.begun.get(name);
    const have = before?.bytes ?? new Uint8Array();
    const response = await this.request(name, have.length, length - 1).catch((error: unknown) => {
      if (error instanceof Shorter) this.begun.delete(name);
      throw error;
    });
    this.notice(response);
    if (this.commit !== undefined) this.revision = this.commit;
    const whole = response.status !== 206;
    const told = whole ? Number(response.headers.get("content-length")) : totalOf(response.headers.get("content-range"));
    // A file server may keep the size from pages of other origins; the hub's list has it too.
    const total = told > 0 ? told : ((await this.list())?.get(name)?.bytes ?? 0);
    if (total === 0) throw new PageError("hub", `${this.address.base} does not say how large ${name} is.`);
    const tag = response.headers.get("etag");
    if (before !== undefined && (before.total !== total || before.tag !== tag)) {
      this.begun.delete(name);
      await response.body?.cancel();
      throw new TypeError("the file changed");
    }
    const bytes = new Uint8Array(Math.min(length, total));
    let at = whole ? 0 : have.length;
    bytes.set(have.subarray(0, at));
    const reader = response.body?.getReader();
    try {
      while (reader !== undefined && at < bytes.length) {
        const piece = await reader.read();
        if (piece.done) throw new TypeError(`ended after ${at} bytes`);
        bytes.set(piece.value.subarray(0, bytes.length - at), at);
        at = Math.min(at + piece.value.length, bytes.length);
        moved();
        this.progress({ what: `the beginning of ${fileName(name)}`, done: at, total: bytes.length });
      }
    } finally {
      this.begun.set(name, { bytes: bytes.subarray(0, at), total, tag });
    }
    // A hub that gives no ranges sends everything.
    await reader?.cancel();
  }

  /** Takes over what `other` knows of the same file. */
  goOnFrom(other: Download): void {
    if (other.address.base !== this.address.base || modelName(other.address) !== modelName(this.address)) return;
    this.begun = other.begun;
    this.commit = other.commit;
    this.revision = other.revision;
  }

  private async sizeOf(name: string): Promise<number | undefined> {
    const response = await this.request(name, 0, undefined, "HEAD");
    const length = response.headers.get("x-linked-size") ?? response.headers.get("content-length");
    return length === null ? undefined : Number(length);
  }

  /** The configuration. From here on every file is of its commit, whatever happens to the branch. */
  async config(): Promise<Uint8Array<ArrayBuffer>> {
    const config = await this.small(CONFIG);
    if (this.commit !== undefined) this.revision = this.commit;
    return config;
  }

  /** Fetches everything. What may refuse the model has been asked by now: nothing of it is stored before. */
  async all(config: Uint8Array<ArrayBuffer> | undefined): Promise<void> {
    await this.list();
    const bytes = await this.bytes();
    const room = await this.room(bytes);
    if (room !== undefined && room.needed > room.granted) throw noRoom(modelName(this.address), room);
    const dir = await storage.directory(hubPath(this.address), true);
    const files: storage.StoredFile[] = [];
    const keep = async (name: string, bytes: Uint8Array<ArrayBuffer>) => {
      await storage.writeFile(dir, name, bytes);
      files.push({ name, bytes: bytes.byteLength });
    };
    if (config !== undefined) {
      await keep(CONFIG, config);
      for (const name of [...SIDE_FILES, INDEX]) {
        const bytes = await this.optional(name);
        if (bytes !== undefined) await keep(name, bytes);
      }
    }
    for (const name of await this.weights()) files.push({ name: fileName(name), bytes: await this.large(dir, name) });
    const commit = this.commit ?? (await stableCommit(this.address));
    const manifest: HubManifest = { address: this.address, commit, files };
    await storage.finish(dir, manifest);
  }

  /** The files of an adapter by their names: those that it must have, and those of the others that are there. */
  async adapter(needed: string[], others: string[]): Promise<Map<string, Uint8Array<ArrayBuffer>>> {
    const files = new Map<string, Uint8Array<ArrayBuffer>>();
    for (const name of needed) {
      files.set(name, await this.small(name));
      // The next files are of the same commit, whatever happens to the branch.
      if (this.commit !== undefined) this.revision = this.commit;
    }
    for (const name of others) {
      const bytes = await this.optional(name);
      if (bytes !== undefined) files.set(name, bytes);
    }
    return files;
  }

  private url(name: string): string {
    const encoded = [this.address.id, "resolve", encodeURIComponent(this.revision), name].join("/");
    return `${this.address.base}/${encoded}`;
  }

  private async optional(name: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
    try {
      return await this.small(name);
    } catch (error) {
      if (error instanceof Missing) return undefined;
      throw error;
    }
  }

  private small(name: string): Promise<Uint8Array<ArrayBuffer>> {
    return this.patiently(name, async () => {
      this.progress({ what: name, done: 0, total: 0 });
      const response = await this.request(name, 0);
      this.notice(response);
      return wholeBody(response, name);
    });
  }

  /** Takes the commit that the hub says its answer is of. */
  private notice(response: Response): void {
    const commit = response.headers.get("x-repo-commit");
    if (commit !== null && /^[0-9a-f]{40}$/.test(commit)) this.commit = commit;
  }

  /** A file of weights, added to what an earlier attempt left; answers with its size. */
  private async large(dir: FileSystemDirectoryHandle, path: string): Promise<number> {
    const name = fileName(path);
    const finished = await storage.file(dir, name);
    if (finished !== undefined) return finished.size;
    const fetcher = new PartFetcher(this);
    const fetched = () =>
      PartFile.open(dir, name, async (part) => {
        const begun = this.begun.get(path);
        if (begun !== undefined && part.arrived === 0) {
          part.describe(begun.total, begun.tag);
          part.write(begun.bytes, 0);
        }
        if (!part.isWhole) await fetcher.fill(path, part, this.listed?.get(path)?.bytes ?? 0);
      });
    await fetched();
    const wanted = this.listed?.get(path)?.sha256;
    for (let again = 0; wanted !== undefined && (await this.digest(dir, `${name}.part`)) !== wanted; again++) {
      await PartFile.remove(dir, name);
      this.begun.delete(path);
      if (again === 1)
        throw new PageError("hub", `${name} arrived twice with another checksum than ${this.address.base} names. Nothing of it is kept.`);
      await fetched();
    }
    await PartFile.finish(dir, name);
    return (await storage.file(dir, name))?.size ?? 0;
  }

  /** SHA-256 of a stored file. */
  private async digest(dir: FileSystemDirectoryHandle, name: string): Promise<string> {
    const content = await storage.file(dir, name);
    const total = content?.size ?? 0;
    const hash = sha256.create();
    for (let at = 0; content !== undefined && at < total; at += READ_BYTES) {
      hash.update(new Uint8Array(await content.slice(at, at + READ_BYTES).arrayBuffer()));
      this.progress({ what: `checking ${name.replace(/\.part$/, "")}`, done: Math.min(at + READ_BYTES, total), total });
      if (this.signal.aborted) throw new DOMException("stopped", "AbortError");
    }
    return bytesToHex(hash.digest());
  }

  private async fetch(
    address: string,
    method: "GET" | "HEAD" = "GET",
    headers: Record<string, string> = {},
    signal = this.signal,
  ): Promise<Response> {
    if (this.token !== "") headers.authorization = `Bearer ${this.token}`;
    const response = await fetch(address, {
      method,
      headers,
      signal,
      credentials: "omit",
      referrerPolicy: "no-referrer",
      cache: "no-store",
    });
    this.arrived = true;
    return response;
  }

  /** Asks for a file from byte `from` on, to its end or to byte `to`. */
  async request(name: string, from: number, to?: number, method: "GET" | "HEAD" = "GET", signal = this.signal): Promise<Response> {
    const headers: Record<string, string> = from > 0 || to !== undefined ? { range: `bytes=${from}-${to ?? ""}` } : {};
    const response = await this.fetch(this.url(name), method, headers, signal);
    if (response.ok) return response;
    const { file, ...repository } = this.address;
    const where = `${modelName(repository)} at ${this.address.base}`;
    await response.body?.cancel();
    switch (response.status) {
      case 404: {
        const hint = "check the spelling of the name and the revision";
        const message =
          name === CONFIG && file === undefined ? `There is no ${where} (404 for ${name}): ${hint}.` : `${where} has no ${name} (404).`;
        throw new Missing("hub", message);
      }
      case 401:
      case 403:
        throw new PageError("hub", `${where} is gated, private or not there (${response.status}). ${this.wayIn(response.status)}`);
      case 416:
        throw new Shorter("the file changed");
      default:
        if (isBusy(response)) throw new Busy(response);
        throw new PageError("hub", `${where}: the server answered ${response.status} for ${name}.`);
    }
  }

  /** What to do where a hub lets nobody or not everybody in. */
  private wayIn(status: number): string {
    const page = `${this.address.base}/${this.address.id}`;
    if (this.token === "") return `Accept its terms on ${page}, then enter an access token under “Gated models”.`;
    if (status === 401) return "The hub does not accept this access token.";
    return `The access token may not read it. Accept its terms on ${page} with the account of the token.`;
  }

  /** Tries again what may work the next time; attempts that brought bytes do not count. */
  async patiently<T>(name: string, attempt: (moved: () => void) => Promise<T>, signal = this.signal): Promise<T> {
    let pause = FIRST_PAUSE_MS;
    for (let failed = 0; ; ) {
      let progressed = false;
      try {
        return await attempt(() => (progressed = true));
      } catch (error) {
        if (signal.aborted) throw new DOMException("stopped", "AbortError");
        // A broken connection is a TypeError in every browser.
        if (!(error instanceof TypeError)) throw error;
        if (progressed) [failed, pause] = [0, FIRST_PAUSE_MS];
        failed += 1;
        if (failed === (this.arrived ? PATIENT_ATTEMPTS : ATTEMPTS)) {
          const reasons = "no connection, a wrong address, or a server that does not let other pages read it (CORS)";
          throw new PageError(
            "hub",
            `${name} does not arrive from ${this.address.base} (${error.message}): ${reasons}. What has arrived is kept; fetch again to go on.`,
          );
        }
        const what = navigator.onLine ? this.address.base : "a connection";
        if (failed > 2 || !navigator.onLine)
          this.progress({ what: `waiting for ${what}, then ${fileName(name)} goes on`, done: 0, total: 0 });
        await sleep(Math.max(pause, error instanceof Busy ? error.wait : 0), signal);
        pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
      }
    }
  }
}

const isBusy = (response: Response): boolean => response.status >= 500 || response.status === 429;

/** An answer of a hub that may do better the next time, and the milliseconds after which it wants to be asked, where it says so. */
class Busy extends TypeError {
  readonly wait: number;

  constructor(response: Response) {
    super(`it answered ${response.status}`);
    const after = response.headers.get("retry-after") ?? "";
    const ms = /^\d+$/.test(after) ? 1000 * Number(after) : Date.parse(after) - Date.now();
    this.wait = Number.isFinite(ms) ? Math.min(Math.max(ms, 0), LONGEST_WAIT_MS) : 0;
  }
}

/** Waits `ms`, and while the browser is offline until it is back. */
async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  for (let waited = 0; waited < ms || !navigator.onLine; waited += FIRST_PAUSE_MS) {
    await new Promise((resume) => setTimeout(resume, FIRST_PAUSE_MS));
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
  }
}

/** A row of the hub's list; undefined for directories, and for what is no row. */
function listedFile(row: unknown): ListedFile | undefined {
  const { type, path, size, lfs } = (row ?? {}) as { type?: unknown; path?: unknown; size?: unknown; lfs?: { oid?: unknown } };
  if (type !== "file" || typeof path !== "string" || typeof size !== "number") return undefined;
  const oid = lfs?.oid;
  return { path, bytes: size, sha256: typeof oid === "string" && /^[0-9a-f]{64}$/.test(oid) ? oid : undefined };
}

/** The bytes of an answer, which lie in memory. A hub that sends too many of them is not listened to. */
async function wholeBody(response: Response, name: string): Promise<Uint8Array<ArrayBuffer>> {
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  const reader = response.body?.getReader();
  for (let piece = await reader?.read(); piece?.value !== undefined; piece = await reader?.read()) {
    pieces.push(piece.value);
    length += piece.value.length;
    if (length > MOST_SMALL_BYTES) {
      await reader?.cancel();
      throw new PageError("hub", `${name} has more than ${MOST_SMALL_BYTES >> 20} MiB, which no model's file of this kind has.`);
    }
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

/** The files that an index of shards names. */
function shards(index: Uint8Array<ArrayBuffer>, model: string): string[] {
  const wrong = (problem: string) => new PageError("hub", `${model}: ${INDEX} ${problem}.`);
  let parsed: { weight_map?: Record<string, unknown> };
  try {
    parsed = JSON.parse(new TextDecoder().decode(index)) as typeof parsed;
  } catch {
    throw wrong("is not JSON");
  }
  const names = [...new Set(Object.values(parsed.weight_map ?? {}))];
  const plain = (name: unknown): name is string => typeof name === "string" && /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/.test(name);
  if (names.length === 0 || !names.every(plain)) throw wrong("names no plain files");
  return names.sort();
}

function noRoom(name: string, { needed, granted }: { needed: number; granted: number }): PageError {
  const gigabytes = (n: number) => `${(n / 1e9).toFixed(1)} GB`;
  return new PageError(
    "storage",
    `${name} needs ${gigabytes(needed)} more, and the browser grants this page ${gigabytes(granted)}. Free disk space, or remove kept models.`,
  );
}

/** Where a hub names no commit: forty digits that stand for the address. */
async function stableCommit(address: HubAddress): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`${address.base} ${modelName(address)}`));
  return [...new Uint8Array(digest)]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("")
    .slice(0, 40);
}
