/** Answers of the base and of adapters, from one model on the GPU. */

import type { Calls, Notice } from "../protocol";
import type { Answer } from "../types";
import { provide } from "./adapters";
import { keepCache, mountCache } from "./cache";
import { loraine } from "./wasm";

type Generator = Awaited<ReturnType<typeof loraine.Generator.open>>;

let open: { key: string; generator: Generator } | undefined;
/** The answer under way. */
let pending: Promise<Answer> | undefined;
let calledOff = false;

function release(): void {
  open?.generator.free();
  open = undefined;
}

/** Frees the model on the GPU, after ending an answer that is under way. */
export async function closeGenerator(): Promise<void> {
  calledOff = true;
  open?.generator.cancel();
  // It tells its own caller what became of it.
  await pending?.catch(() => {});
  release();
}

export function answer(request: Calls["answer"]["request"], notify: (notice: Notice) => void): Promise<Answer> {
  calledOff = false;
  pending = answerNow(request, notify);
  return pending;
}

async function answerNow(request: Calls["answer"]["request"], notify: (notice: Notice) => void): Promise<Answer> {
  const { settings, adapters } = request;
  const key = [settings.model, ...adapters].join(" ");
  if (open?.key !== key) {
    release();
    await mountCache();
    for (const dir of adapters) await provide(dir);
    const named = adapters.map((dir) => ({ name: dir, dir }));
    const storage =
      settings.method === "qlora"
        ? { quant: settings.quant, double_quant: settings["double-quant"], quantize_embedding: settings["quantize-embedding"] ?? false }
        : {};
    const loading = (done: number, total: number) => notify({ type: "progress", progress: { what: "loading the model", done, total } });
    open = { key, generator: await loraine.Generator.open(settings.model, named, storage, loading) };
    await keepCache();
  }
  if (calledOff) throw new DOMException("stopped", "AbortError");
  const onText = (delta: string) => notify({ type: "text", delta });
  try {
    return await open.generator.answer(request.prompt, request.adapter ?? undefined, request.generation, onText);
  } catch (error) {
    release();
    throw error;
  }
}

export function cancelAnswer(): void {
  open?.generator.cancel();
}
