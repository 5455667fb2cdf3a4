/** Answers of the base and of a run's adapter, from one model on the GPU. */

import type { Calls, Notice } from "../protocol";
import type { Answer } from "../types";
import { keepCache, mountCache } from "./cache";
import * as runs from "./runs";
import { loraine } from "./wasm";

type Generator = Awaited<ReturnType<typeof loraine.Generator.open>>;

const TRAINED = "trained";

let open: { key: string; generator: Generator } | undefined;

export function closeGenerator(): void {
  open?.generator.free();
  open = undefined;
}

export async function answer(request: Calls["answer"]["request"], notify: (notice: Notice) => void): Promise<Answer> {
  const { settings, run } = request;
  const key = `${settings.model} ${run}`;
  if (open?.key !== key) {
    closeGenerator();
    await mountCache();
    const storage =
      settings.method === "qlora"
        ? { quant: settings.quant, double_quant: settings["double-quant"], quantize_embedding: settings["quantize-embedding"] ?? false }
        : {};
    const loading = (done: number, total: number) => notify({ type: "progress", progress: { what: "loading the model", done, total } });
    const generator = await loraine.Generator.open(settings.model, [{ name: TRAINED, dir: runs.runDir(run) }], storage, loading);
    open = { key, generator };
    await keepCache();
  }
  const onText = (delta: string) => notify({ type: "text", delta });
  try {
    return await open.generator.answer(request.prompt, request.adapted ? TRAINED : undefined, request.generation, onText);
  } catch (error) {
    closeGenerator();
    throw error;
  }
}

export function cancelAnswer(): void {
  open?.generator.cancel();
}
