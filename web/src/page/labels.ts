/** What the page calls the settings of a run: above their controls and in messages. */

export const LABELS = {
  rank: "Rank",
  "max-seq-len": "Sequence length",
  "batch-size": "Batch size",
  alpha: "Alpha",
  lr: "Learning rate",
  steps: "Steps",
  epochs: "Epochs",
  "eval-fraction": "Validation share",
  method: "Base weights",
  "quantize-embedding": "Embedding and head in 4 bits too",
  objective: "Objective",
  "init-adapter": "Start from",
  schedule: "Schedule",
  optim: "Optimizer",
  "warmup-steps": "Warm-up steps",
  "grad-accum": "Gradient accumulation",
  dropout: "Dropout",
  "weight-decay": "Weight decay",
  seed: "Seed",
  "target-modules": "Target modules",
  "gpu-memory": "GPU memory",
  "on-long": "Longer examples",
  "chat-template": "Chat template",
  "train-on": "Train on",
} as const;

const labels: Record<string, string> = LABELS;

/** A text of the engine with its placeholders of settings, `⟨lr⟩` or `⟨train-on=all⟩`, written as the page calls them. */
export function withLabels(text: string): string {
  return text.replace(/⟨([a-z-]+)(?:=([^⟩]*))?⟩/g, (_, key: string, value?: string) => {
    const label = labels[key] ?? key.replaceAll("-", " ");
    return value === undefined ? `“${label}”` : `“${label}: ${value}”`;
  });
}
