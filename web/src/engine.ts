/** The page's end of the worker: calls become promises, and a worker that dies is replaced. */

import workerUrl from "./worker/worker.ts?worker&url";
import type { CallMessage, CallName, Calls, Notice, WorkerMessage } from "./protocol";
import { trustedScriptUrl } from "./trusted";
import type { Failure } from "./types";

export class EngineError extends Error {
  readonly failure: Failure;

  constructor(failure: Failure) {
    super(failure.message);
    this.failure = failure;
  }
}

export function failureOf(error: unknown): Failure {
  if (error instanceof EngineError) return error.failure;
  return { kind: "crash", message: error instanceof Error ? error.message : String(error) };
}

interface Pending {
  resolve: (answer: never) => void;
  reject: (error: EngineError) => void;
  listen: ((notice: Notice) => void) | undefined;
}

export class Engine {
  private worker: Worker;
  private pending = new Map<number, Pending>();
  private nextCall = 1;
  /** Told that a new worker stands in for one that died; models and data must be opened again. */
  onRestart: () => void = () => {};

  constructor() {
    this.worker = this.spawn();
  }

  private spawn(): Worker {
    const worker = new Worker(trustedScriptUrl(workerUrl) as unknown as string, { type: "module", name: "engine" });
    worker.onmessage = (event: MessageEvent<WorkerMessage>) => this.receive(event.data);
    worker.onerror = (event) => {
      event.preventDefault();
      this.replace(event.message || "its program could not be loaded");
    };
    return worker;
  }

  private replace(reason: string): void {
    const message = `The engine stopped unexpectedly (${reason}). It has been started again. Saved runs are kept.`;
    this.spawnAnew({ kind: "crash", message });
    this.onRestart();
  }

  /** Ends whatever the engine is at, also where it listens to nobody. The caller opens model and data again. */
  cancel(): void {
    this.spawnAnew({ kind: "canceled", message: "Canceled." });
  }

  /** Every call that still waits fails, and the next ones go to a new worker. */
  private spawnAnew(failure: Failure): void {
    this.worker.terminate();
    const waiting = [...this.pending.values()];
    this.pending.clear();
    this.worker = this.spawn();
    for (const call of waiting) call.reject(new EngineError(failure));
  }

  call<Name extends CallName>(
    name: Name,
    request: Calls[Name]["request"],
    listen?: (notice: Notice) => void,
  ): Promise<Calls[Name]["answer"]> {
    return new Promise((resolve, reject) => {
      const call = this.nextCall++;
      this.pending.set(call, { resolve, reject, listen });
      const message: CallMessage = { call, name, request };
      this.worker.postMessage(message);
    });
  }

  private receive(message: WorkerMessage): void {
    const pending = this.pending.get(message.call);
    if (pending === undefined) return;
    if ("notice" in message) {
      pending.listen?.(message.notice);
      return;
    }
    this.pending.delete(message.call);
    if ("answer" in message) {
      pending.resolve(message.answer as never);
    } else if (message.failure.kind === "crash") {
      pending.reject(new EngineError(message.failure));
      this.replace(message.failure.message);
    } else {
      pending.reject(new EngineError(message.failure));
    }
  }
}
