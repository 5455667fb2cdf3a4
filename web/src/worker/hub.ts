/** A model fetched from a hub, file by file, into the browser's storage: resumed where it broke off, whole or not there. */

import type { HubAddress, Progress } from "../protocol";
import { PageError } from "./failure";
import * as storage from "./storage";

const SIDE_FILES = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
const CONFIG = "config.json";
const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 250;
/** A write to storage for each of these, not for each network packet. */
const WRITE_BYTES = 1 << 20;

export interface HubManifest extends storage.Manifest {
  address: HubAddress;
  commit: string;
}

/** What is known of a file of which a part has arrived. */
interface PartRecord {
  total: number;
  tag: string | null;
}

export function hubName(address: HubAddress): string {
  return address.revision === "main" ? address.id : `${address.id}@${address.revision}`;
}

export function hubPath(address: HubAddress): string[] {
  return ["models", "hub", encodeURIComponent(address.base), `${address.id.replace("/", "--")}@${address.revision}`];
}

class Missing extends PageError {}

export class Download {
  private readonly address: HubAddress;
  private readonly token: string;
  private readonly signal: AbortSignal;
  private readonly progress: (progress: Progress) => void;
  private revision: string;
  private commit: string | undefined;

  constructor(address: HubAddress, token: string, signal: AbortSignal, progress: (progress: Progress) => void) {
    this.address = address;
    this.token = token;
    this.signal = signal;
    this.progress = progress;
    this.revision = address.revision;
  }

  /** The size of the weights, where the hub names it. */
  async bytes(): Promise<number | undefined> {
    const index = await this.optional(INDEX);
    const weights = index === undefined ? [SINGLE] : shards(index, hubName(this.address));
    const sizes = await Promise.all(weights.map((name) => this.patiently(name, () => this.sizeOf(name))));
    const known = sizes.filter((size) => size !== undefined);
    return known.length === sizes.length ? known.reduce((sum, size) => sum + size, 0) : undefined;
  }

  private async sizeOf(name: string): Promise<number | undefined> {
    const response = await this.request(name, 0, "HEAD");
    const length = response.headers.get("x-linked-size") ?? response.headers.get("content-length");
    return length === null ? undefined : Number(length);
  }

  /** The configuration. From here on every file is of its commit, whatever happens to the branch. */
  async config(): Promise<Uint8Array<ArrayBuffer>> {
    const config = await this.small(CONFIG);
    if (this.commit !== undefined) this.revision = this.commit;
    return config;
  }

  /** Fetches everything; `checkConfig` may refuse the model before anything of it is stored. */
  async all(checkConfig: (config: Uint8Array<ArrayBuffer>) => void): Promise<void> {
    const config = await this.config();
    checkConfig(config);
    const dir = await storage.directory(hubPath(this.address), true);
    const files: storage.StoredFile[] = [];
    const keep = async (name: string, bytes: Uint8Array<ArrayBuffer>) => {
      await storage.writeFile(dir, name, bytes);
      files.push({ name, bytes: bytes.byteLength });
    };
    await keep(CONFIG, config);
    for (const name of SIDE_FILES) {
      const bytes = await this.optional(name);
      if (bytes !== undefined) await keep(name, bytes);
    }
    const index = await this.optional(INDEX);
    let weights = [SINGLE];
    if (index !== undefined) {
      await keep(INDEX, index);
      weights = shards(index, hubName(this.address));
    }
    for (const name of weights) files.push({ name, bytes: await this.large(dir, name) });
    const commit = this.commit ?? (await stableCommit(this.address));
    const manifest: HubManifest = { address: this.address, commit, files };
    await storage.finish(dir, manifest);
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
      const commit = response.headers.get("x-repo-commit");
      if (commit !== null && /^[0-9a-f]{40}$/.test(commit)) this.commit = commit;
      return new Uint8Array(await response.arrayBuffer());
    });
  }

  /** A file of weights, appended to what an earlier attempt left; answers with its size. */
  private async large(dir: FileSystemDirectoryHandle, name: string): Promise<number> {
    const finished = await storage.file(dir, name);
    if (finished !== undefined) return finished.size;
    const part = `${name}.part`;
    await this.patiently(name, async (moved) => {
      const record = await storage.readJson<PartRecord>(dir, `${part}.json`);
      await storage.withFile(dir, part, async (handle) => {
        if (record === undefined) handle.truncate(0);
        if (record !== undefined && handle.getSize() === record.total) return;
        await this.append(dir, name, handle, record, moved);
      });
    });
    await ((await dir.getFileHandle(part)) as FileSystemFileHandle & { move(name: string): Promise<void> }).move(name);
    await storage.remove(dir, `${part}.json`);
    return (await storage.file(dir, name))?.size ?? 0;
  }

  private async append(
    dir: FileSystemDirectoryHandle,
    name: string,
    handle: FileSystemSyncAccessHandle,
    record: PartRecord | undefined,
    moved: () => void,
  ): Promise<void> {
    let at = handle.getSize();
    const response = await this.request(name, at);
    const tag = response.headers.get("etag");
    if (response.status !== 206) at = 0;
    const length = Number(response.headers.get("content-length") ?? 0);
    const total = length === 0 ? 0 : at + length;
    if (at > 0 && record !== undefined && (record.total !== total || record.tag !== tag)) {
      // Another file by now than the one whose beginning is here.
      await response.body?.cancel();
      handle.truncate(0);
      throw new TypeError("the file changed");
    }
    handle.truncate(at);
    await requireSpace(total - at, name);
    await storage.writeJson(dir, `${name}.part.json`, { total, tag } satisfies PartRecord);
    if (response.body === null) throw new TypeError("an empty answer");
    const reader = response.body.getReader();
    let gathered: Uint8Array<ArrayBuffer>[] = [];
    let waiting = 0;
    const flush = () => {
      for (const piece of gathered) {
        storage.writeAll(handle, piece, at);
        at += piece.byteLength;
      }
      if (waiting > 0) moved();
      gathered = [];
      waiting = 0;
      this.progress({ what: name, done: at, total });
    };
    try {
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        gathered.push(piece.value);
        waiting += piece.value.byteLength;
        if (waiting >= WRITE_BYTES) flush();
      }
    } finally {
      flush();
    }
    if (at < total) throw new TypeError(`ended after ${at} of ${total} bytes`);
  }

  private async request(name: string, from: number, method: "GET" | "HEAD" = "GET"): Promise<Response> {
    const headers: Record<string, string> = from > 0 ? { range: `bytes=${from}-` } : {};
    if (this.token !== "") headers.authorization = `Bearer ${this.token}`;
    const response = await fetch(this.url(name), {
      method,
      headers,
      signal: this.signal,
      credentials: "omit",
      referrerPolicy: "no-referrer",
      cache: "no-store",
    });
    if (response.ok) return response;
    const model = hubName(this.address);
    const where = `${model} at ${this.address.base}`;
    await response.body?.cancel();
    switch (response.status) {
      case 404: {
        const hint = "check the spelling of the name and the revision";
        const message = name === CONFIG ? `There is no ${where} (404 for ${name}): ${hint}.` : `${where} has no ${name} (404).`;
        throw new Missing("hub", message);
      }
      case 401:
      case 403:
        throw new PageError("hub", `${where} is gated, private or not there (${response.status}). ${this.wayIn(response.status)}`);
      case 416:
        throw new TypeError("the file changed");
      default:
        if (response.status >= 500 || response.status === 429) throw new TypeError(`it answered ${response.status}`);
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
  private async patiently<T>(name: string, attempt: (moved: () => void) => Promise<T>): Promise<T> {
    let pause = FIRST_PAUSE_MS;
    for (let failed = 0; ; ) {
      let progressed = false;
      try {
        return await attempt(() => (progressed = true));
      } catch (error) {
        if (this.signal.aborted) throw new DOMException("stopped", "AbortError");
        // A broken connection is a TypeError in every browser.
        if (!(error instanceof TypeError)) throw error;
        if (progressed) [failed, pause] = [0, FIRST_PAUSE_MS];
        failed += 1;
        if (failed === ATTEMPTS) {
          const reasons = "no connection, a wrong address, or a server that does not let other pages read it (CORS)";
          throw new PageError(
            "hub",
            `${name} does not arrive from ${this.address.base} (${error.message}): ${reasons}. What has arrived is kept; fetch again to go on.`,
          );
        }
        await new Promise((resume) => setTimeout(resume, pause));
        pause *= 2;
      }
    }
  }
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

async function requireSpace(bytes: number, name: string): Promise<void> {
  const { quota, usage } = await navigator.storage.estimate();
  if (quota === undefined || usage === undefined || bytes <= quota - usage) return;
  const gigabytes = (n: number) => `${(n / 1e9).toFixed(1)} GB`;
  throw new PageError(
    "storage",
    `${name} needs ${gigabytes(bytes)} more, and the browser grants this page ${gigabytes(quota - usage)}. Free disk space, or remove kept models.`,
  );
}

/** Where a hub names no commit: forty digits that stand for the address. */
async function stableCommit(address: HubAddress): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`${address.base} ${hubName(address)}`));
  return [...new Uint8Array(digest)]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("")
    .slice(0, 40);
}
