/** The numbers of the lesson, from the engine. */

import type { Calls, ModelMemory } from "../protocol";
import { provide } from "./adapters";
import { loraine, unmount } from "./wasm";

interface Shape {
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_key_value_heads: number;
  vocab_size: number;
  max_position_embeddings: number;
  tie_word_embeddings: boolean;
}

/** Models of 3, 7 and 13 billion parameters, as their config.json has them. The engine's own list of shapes is not in its module for browsers. */
const MODELS: Record<string, Shape> = {
  "llama-3.2-3b": {
    hidden_size: 3072,
    intermediate_size: 8192,
    num_hidden_layers: 28,
    num_attention_heads: 24,
    num_key_value_heads: 8,
    vocab_size: 128_256,
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
  },
  "llama-2-7b": {
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    vocab_size: 32_000,
    max_position_embeddings: 4096,
    tie_word_embeddings: false,
  },
  "llama-2-13b": {
    hidden_size: 5120,
    intermediate_size: 13_824,
    num_hidden_layers: 40,
    num_attention_heads: 40,
    num_key_value_heads: 40,
    vocab_size: 32_000,
    max_position_embeddings: 4096,
    tie_word_embeddings: false,
  },
};

export function lessonBlock({ model, matrix, block }: Calls["lessonBlock"]["request"]): Calls["lessonBlock"]["answer"] {
  return loraine.weightBlock(model, matrix, block);
}

export async function lessonUpdate(request: Calls["lessonUpdate"]["request"]): Promise<Calls["lessonUpdate"]["answer"]> {
  const { model, adapter, module, token } = request;
  await provide(adapter);
  return loraine.moduleUpdate(model, adapter, module, token);
}

export function lessonMemory(): ModelMemory[] {
  const all = Object.entries(MODELS).map(([model, shape]) => {
    const dir = `/lesson/${model}`;
    const config = { model_type: "llama", head_dim: 128, rms_norm_eps: 1e-5, rope_theta: 10_000, ...shape };
    loraine.mountBytes(`${dir}/config.json`, new TextEncoder().encode(JSON.stringify(config)));
    return { model, plans: loraine.methodMemory(dir) };
  });
  unmount("/lesson");
  return all;
}
