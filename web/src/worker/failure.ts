import type { Failure } from "../types";

/** An error of the page's own side, told as the engine tells its errors. */
export class PageError extends Error {
  readonly kind: Failure["kind"];

  constructor(kind: Failure["kind"], message: string) {
    super(message);
    this.kind = kind;
  }
}

interface EngineErrorFields {
  kind?: Failure["kind"];
  path?: string;
  field?: string;
}

export function describe(error: unknown): Failure {
  if (error instanceof WebAssembly.RuntimeError) return { kind: "crash", message: error.message };
  if (error instanceof DOMException && error.name === "QuotaExceededError") {
    const message = "The browser's storage for this page is full. Remove downloaded models or saved runs, or free disk space.";
    return { kind: "storage", message };
  }
  if (error instanceof DOMException && error.name === "AbortError") return { kind: "canceled", message: "Stopped." };
  if (error instanceof DOMException && error.name === "NoModificationAllowedError") {
    return { kind: "storage", message: "Another tab of this page is writing to this file. Wait for it, or close that tab." };
  }
  if (error instanceof DOMException && error.name === "NotReadableError") {
    return { kind: "file", message: "A file was changed or moved after it was chosen. Choose it again." };
  }
  // An entry that another tab has removed, a disk that fails: the engine itself is well.
  if (error instanceof DOMException) return { kind: "storage", message: `The browser's storage failed: ${error.message}` };
  if (error instanceof Error) {
    const { kind, path, field } = error as EngineErrorFields;
    const failure: Failure = { kind: kind ?? "crash", message: error.message };
    if (path !== undefined) failure.path = path;
    if (field !== undefined) failure.field = field;
    return failure;
  }
  return { kind: "crash", message: String(error) };
}
