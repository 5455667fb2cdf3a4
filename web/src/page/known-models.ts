/** Models of supported families that a browser can hold, from small to large. Each is an address that can be edited before it is used. */

interface KnownModel {
  /** Its name in the list. */
  name: string;
  /** Its address on the usual hub: `owner/name`, with a GGUF file where one is meant. */
  address: string;
  /** The terms it is given under, as its page on the hub says. */
  license: string;
  /** Bytes of its weights. */
  download: number;
  /** Bytes on the GPU for a run with the default settings; `loraine estimate` says the same of the file. */
  memory: number;
}

export const KNOWN_MODELS: KnownModel[] = [
  {
    name: "SmolLM2 135M Instruct",
    address: "bartowski/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q8_0.gguf",
    license: "Apache 2.0",
    download: 0.145e9,
    memory: 0.572e9,
  },
  {
    name: "Gemma 3 270M Instruct",
    address: "ggml-org/gemma-3-270m-it-GGUF:gemma-3-270m-it-Q8_0.gguf",
    license: "Gemma terms",
    download: 0.292e9,
    memory: 1.23e9,
  },
  {
    name: "LFM2 350M",
    address: "LiquidAI/LFM2-350M-GGUF:LFM2-350M-Q8_0.gguf",
    license: "LFM Open License 1.0",
    download: 0.379e9,
    memory: 1.0e9,
  },
  {
    name: "SmolLM2 360M Instruct",
    address: "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:smollm2-360m-instruct-q8_0.gguf",
    license: "Apache 2.0",
    download: 0.386e9,
    memory: 0.885e9,
  },
  {
    name: "Qwen3 0.6B",
    address: "Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf",
    license: "Apache 2.0",
    download: 0.639e9,
    memory: 1.49e9,
  },
  {
    name: "Gemma 3 1B Instruct",
    address: "ggml-org/gemma-3-1b-it-GGUF:gemma-3-1b-it-Q4_K_M.gguf",
    license: "Gemma terms",
    download: 0.806e9,
    memory: 2.33e9,
  },
  {
    name: "Llama 3.2 1B Instruct",
    address: "bartowski/Llama-3.2-1B-Instruct-GGUF:Llama-3.2-1B-Instruct-Q4_K_M.gguf",
    license: "Llama 3.2 Community License",
    download: 0.808e9,
    memory: 2.36e9,
  },
];
