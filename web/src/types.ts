/** Shapes of what the engine takes and gives: JSON views of the library's own structs, under their names. */

export type Method = "qlora" | "lora";
export type Schedule = "constant" | "linear" | "cosine";
export type OnLong = "refuse" | "truncate" | "drop" | "split";

/** `train::settings::RunSettings`; keys that the page does not touch pass through. */
export interface RunSettings {
  model: string;
  data: string;
  out: string;
  method: Method;
  quant: "nf4" | "fp4";
  "double-quant": boolean;
  rank: number;
  alpha: number;
  dropout: number;
  "target-modules": string;
  "batch-size": number;
  "grad-accum": number;
  "max-seq-len"?: number;
  steps?: number;
  lr: number;
  schedule: Schedule;
  "warmup-steps": number;
  "weight-decay": number;
  seed: number;
  "eval-every": number;
  "save-every": number;
  keep: number;
  "log-every": number;
  "gpu-memory"?: number;
  "data-format": DataFormat;
}

export interface DataFormat {
  "chat-template"?: string;
  "train-on"?: "completion" | "assistant" | "all";
  "on-long": OnLong;
  packing: boolean;
}

export interface ModelSummary {
  family: string;
  layers: number;
  hidden_size: number;
  heads: number;
  kv_heads: number;
  vocabulary: number;
  context: number;
  parameters: number;
  dtypes: string[];
  stored_bytes: number;
  nf4_bytes: number;
}

export interface ShownToken {
  id: number;
  text: string;
  trained: boolean;
}

export interface ShownExample {
  number: number;
  shape: string;
  text: string;
  tokens: ShownToken[];
}

export interface DataReport {
  chat_template?: string | null;
  shapes: Record<string, number>;
  read: number;
  kept: number;
  truncated: number;
  split: number;
  tokens: number;
  trained_tokens: number;
  longest: number;
  dropped: Record<string, { count: number; first: number[] }>;
}

export interface Inspection {
  examples: ShownExample[];
  lengths: number[];
  report: DataReport | null;
  refusal: string | null;
}

export interface MemoryCategory {
  name: string;
  label: string;
  bytes: number;
}

/** What a run would take; from a model's sizes alone, or with the data read. */
export interface Estimate {
  total: number;
  categories: MemoryCategory[];
  trained_parameters: number;
  layers: number;
  kept_layers: number;
  fits?: boolean | null;
  longest_seq_len?: number | null;
}

export interface AdapterSummary {
  name: string;
  [key: string]: unknown;
}

export type RunEvent =
  | ({ type: "planned"; steps: number } & Estimate)
  | { type: "loading"; done: number; total: number }
  | { type: "resumed"; step: number }
  | StepEvent
  | { type: "skipped"; step: number }
  | EvaluatedEvent
  | { type: "saved"; path: string }
  | { type: "paused"; step: number }
  | { type: "continued"; step: number };

export interface StepEvent {
  type: "step";
  step: number;
  steps: number;
  loss: number;
  lr: number;
  grad_norm: number;
  tokens: number;
  tokens_per_s: number;
  gpu_bytes: number;
}

export interface EvaluatedEvent {
  type: "evaluated";
  step: number;
  eval_loss: number;
  eval_perplexity: number;
  eval_tokens: number;
}

export interface Evaluation {
  step: number;
  eval_loss: number;
  eval_tokens: number;
}

export interface Outcome {
  step: number;
  interrupted: boolean;
  first_eval?: Evaluation | null;
  last_eval?: Evaluation | null;
}

export interface AnswerSettings {
  max_tokens: number;
  temperature: number;
  seed: number;
  raw: boolean;
}

export interface Answer {
  text: string;
  tokens: number;
  stop: "end" | "max_tokens" | "context" | "caller";
  seconds: number;
}

/** Everything that can go wrong, as a sentence for the person at the page. */
export interface Failure {
  kind: "no-adapter" | "gpu-lost" | "out-of-memory" | "gpu" | "file" | "setting" | "training" | "hub" | "storage" | "cancelled" | "crash";
  message: string;
  path?: string;
  field?: string;
}
