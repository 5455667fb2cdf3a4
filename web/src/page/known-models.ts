/** Models of supported families that a browser can hold, from small to large. */

interface KnownModel {
  id: string;
  /** Bytes of its weights. */
  download: number;
  /** Bytes on the GPU for a run with the default settings; `loraine estimate` says the same. */
  memory: number;
  gated?: true;
}

export const KNOWN_MODELS: KnownModel[] = [
  { id: "HuggingFaceTB/SmolLM2-135M-Instruct", download: 0.269e9, memory: 0.515e9 },
  { id: "HuggingFaceTB/SmolLM2-360M-Instruct", download: 0.724e9, memory: 0.791e9 },
  { id: "Qwen/Qwen2.5-0.5B-Instruct", download: 0.988e9, memory: 0.967e9 },
  { id: "Qwen/Qwen3-0.6B", download: 1.5e9, memory: 1.18e9 },
  { id: "TinyLlama/TinyLlama-1.1B-Chat-v1.0", download: 2.2e9, memory: 1.62e9 },
  { id: "meta-llama/Llama-3.2-1B-Instruct", download: 2.47e9, memory: 1.84e9, gated: true },
];
