/**
 * The files of an adapter sent to a repository on a hub, by Hugging Face's interface: the repository is made, large files go to the file
 * server that the hub names (git-lfs's batch interface), and one commit has them all. The token goes to the hub alone.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import type { Progress, PublishRequest } from "../protocol";
import { PageError } from "./failure";
import { adapterFiles } from "./take-along";

const REVISION = "main";
const SUMMARY = "Upload a LoRA adapter trained with loraine";
/** What the hub looks at to tell texts from others. */
const SAMPLE_BYTES = 512;
/** Characters of base64 are made from so many bytes at a time, a multiple of 3. */
const BASE64_BYTES = 3 << 12;

interface LfsObject {
  oid: string;
  size: number;
}

interface LfsAction {
  href: string;
  header?: Record<string, string>;
}

let current: AbortController | undefined;

export function cancelPublish(): void {
  current?.abort();
}

export async function publish(request: PublishRequest, progress: (progress: Progress) => void): Promise<{ address: string }> {
  current?.abort();
  const stop = new AbortController();
  current = stop;
  const upload = new Upload(request, stop.signal, progress);
  await upload.all(adapterFiles(request));
  return { address: `${request.hub}/${request.id}` };
}

class Upload {
  constructor(
    private readonly to: PublishRequest,
    private readonly signal: AbortSignal,
    private readonly progress: (progress: Progress) => void,
  ) {}

  async all(files: Map<string, Uint8Array<ArrayBuffer>>): Promise<void> {
    this.progress({ what: "making the repository", done: 0, total: 0 });
    await this.create();
    const large = await this.largeOf(files);
    const objects = new Map([...large].map((name) => [name, objectOf(files.get(name) as Uint8Array<ArrayBuffer>)]));
    if (objects.size > 0) await this.sendLarge(files, objects);
    this.progress({ what: "making the commit", done: 0, total: 0 });
    const lines: unknown[] = [{ key: "header", value: { summary: SUMMARY, description: "" } }];
    for (const [path, bytes] of files) {
      const object = objects.get(path);
      if (object === undefined) lines.push({ key: "file", value: { path, content: base64(bytes), encoding: "base64" } });
      else lines.push({ key: "lfsFile", value: { path, algo: "sha256", ...object } });
    }
    const body = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
    await this.ask("the commit", `api/models/${this.to.id}/commit/${REVISION}`, body, "application/x-ndjson");
  }

  /** Makes the repository, unless it is there. */
  private async create(): Promise<void> {
    const [organization, name] = this.to.id.split("/") as [string, string];
    const body = JSON.stringify({ type: "model", organization, name, private: this.to.hidden });
    await this.ask("the repository", "api/repos/create", body, "application/json", [409]);
  }

  /** The files that do not go into the commit itself. */
  private async largeOf(files: Map<string, Uint8Array<ArrayBuffer>>): Promise<Set<string>> {
    const asked = [...files].map(([path, bytes]) => ({ path, size: bytes.length, sample: base64(bytes.subarray(0, SAMPLE_BYTES)) }));
    const response = await this.ask(
      "the list of files",
      `api/models/${this.to.id}/preupload/${REVISION}`,
      JSON.stringify({ files: asked }),
      "application/json",
    );
    const answer = (await response.json()) as { files?: { path?: unknown; uploadMode?: unknown; shouldIgnore?: unknown }[] };
    const ways = new Map((answer.files ?? []).map((file) => [file.path, file.uploadMode]));
    return new Set([...files.keys()].filter((path) => ways.get(path) === "lfs" || path.endsWith(".safetensors")));
  }

  private async sendLarge(files: Map<string, Uint8Array<ArrayBuffer>>, objects: Map<string, LfsObject>): Promise<void> {
    const body = JSON.stringify({
      operation: "upload",
      transfers: ["basic"],
      hash_algo: "sha_256",
      objects: [...objects.values()],
      ref: { name: `refs/heads/${REVISION}` },
    });
    const response = await this.ask("the weights", `${this.to.id}.git/info/lfs/objects/batch`, body, "application/vnd.git-lfs+json");
    const answer = (await response.json()) as {
      objects?: { oid: string; error?: { message?: string }; actions?: { upload?: LfsAction; verify?: LfsAction } }[];
    };
    for (const [path, object] of objects) {
      const told = answer.objects?.find(({ oid }) => oid === object.oid);
      if (told === undefined || told.error !== undefined) {
        throw new PageError("hub", `${this.to.hub} does not take ${path}: ${told?.error?.message ?? "it names no place for it"}.`);
      }
      const { upload, verify } = told.actions ?? {};
      // What the hub has already needs no upload.
      if (upload !== undefined) await this.send(path, files.get(path) as Uint8Array<ArrayBuffer>, upload);
      if (verify !== undefined) await this.verify(verify, object);
    }
  }

  /** Sends a file to the address that the hub has signed, which needs no token. */
  private async send(path: string, bytes: Uint8Array<ArrayBuffer>, { href, header = {} }: LfsAction): Promise<void> {
    this.progress({ what: `sending ${path}`, done: 0, total: bytes.length });
    const { authorization: _, Authorization: __, ...headers } = header;
    const response = await this.fetch(href, { method: "PUT", headers, body: bytes });
    if (!response.ok) throw new PageError("hub", `The file server of ${this.to.hub} answered ${response.status} for ${path}.`);
    this.progress({ what: `sending ${path}`, done: bytes.length, total: bytes.length });
  }

  private async verify({ href }: LfsAction, object: LfsObject): Promise<void> {
    // The hub's own address, or else one that must not have the token.
    const own = new URL(href).origin === new URL(this.to.hub).origin;
    const headers: Record<string, string> = { "content-type": "application/vnd.git-lfs+json", ...(own ? this.authorization() : {}) };
    const response = await this.fetch(href, { method: "POST", headers, body: JSON.stringify(object) });
    if (!response.ok) throw new PageError("hub", `${new URL(href).origin} answered ${response.status} where the upload is checked.`);
  }

  private authorization(): Record<string, string> {
    return { authorization: `Bearer ${this.to.token}` };
  }

  /** Asks the hub itself for what `what` says; an answer of `allowed` is as good as one that is well. */
  private async ask(what: string, path: string, body: string, type: string, allowed: number[] = []): Promise<Response> {
    const headers = { "content-type": type, accept: type.includes("lfs") ? type : "application/json", ...this.authorization() };
    const response = await this.fetch(`${this.to.hub}/${path}`, { method: "POST", headers, body });
    if (response.ok || allowed.includes(response.status)) return response;
    const { status } = response;
    const said = await response.text().then(problemOf);
    if (status === 401 || status === 403) {
      const more = said === "" ? "" : ` It says: ${said}`;
      throw new PageError("hub", `${this.to.hub} does not let this token write to ${this.to.id} (${status}).${more}`);
    }
    throw new PageError("hub", `${this.to.hub} answered ${status} for ${what}${said === "" ? "" : `: ${said}`}.`);
  }

  private async fetch(address: string, init: RequestInit): Promise<Response> {
    try {
      // A redirect could lead the token elsewhere.
      return await fetch(address, {
        ...init,
        signal: this.signal,
        redirect: "error",
        credentials: "omit",
        referrerPolicy: "no-referrer",
        cache: "no-store",
      });
    } catch (error) {
      if (this.signal.aborted) throw new DOMException("stopped", "AbortError");
      const reasons = "no connection, a redirect, or a server that does not let other pages write to it (CORS)";
      throw new PageError("hub", `${new URL(address).origin} cannot be reached (${(error as Error).message}): ${reasons}.`);
    }
  }
}

function objectOf(bytes: Uint8Array<ArrayBuffer>): LfsObject {
  return { oid: bytesToHex(sha256(bytes)), size: bytes.length };
}

function base64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += BASE64_BYTES) text += btoa(String.fromCharCode(...bytes.subarray(at, at + BASE64_BYTES)));
  return text;
}

/** What a hub's answer says is wrong. */
function problemOf(text: string): string {
  try {
    const { error } = JSON.parse(text) as { error?: unknown };
    return typeof error === "string" ? error.slice(0, 300) : "";
  } catch {
    return "";
  }
}
