// The engine in its worker: it trains the built-in model, and answers with and without the adapter.

import init, * as loraine from "loraine";
import type { News, Question } from "./messages";

const MODEL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const EXAMPLES = ["cat", "dog", "cow", "duck"].map((animal) => ({
  prompt: `What does a ${animal} say?`,
  completion: `Arr! The ${animal} says arr, matey!`,
}));
const SETTINGS: Partial<loraine.RunSettings> = {
  model: "/model",
  data: "/data.jsonl",
  out: "/run",
  rank: 8,
  alpha: 16,
  lr: 1e-2,
  "batch-size": 2,
  steps: 20,
};

let generator: loraine.Generator | undefined;

const tell = (news: News) => postMessage(news);

async function train(): Promise<void> {
  await init();
  for (const name of MODEL) {
    const response = await fetch(`/model/${name}`);
    loraine.mountBytes(`/model/${name}`, new Uint8Array(await response.arrayBuffer()));
  }
  const lines = EXAMPLES.map((example) => JSON.stringify(example)).join("\n");
  loraine.mountBytes("/data.jsonl", new TextEncoder().encode(lines));
  const run = new loraine.Run(SETTINGS, false);
  await run.train((event) => {
    if (event.type === "step") tell({ type: "loss", step: event.step, steps: event.steps, loss: event.loss });
  });
  run.free();
  generator = await loraine.Generator.open("/model", [{ name: "pirate", dir: "/run" }], { quant: "nf4" });
  tell({ type: "trained" });
}

async function ask(prompt: string): Promise<void> {
  const answer = async (adapter: string | undefined) => {
    const answered = await generator?.answer(prompt, adapter, { max_tokens: 32, temperature: 0 }, () => {});
    return answered?.text.trim() ?? "";
  };
  tell({ type: "answer", base: await answer(undefined), adapted: await answer("pirate") });
}

onmessage = async ({ data }: MessageEvent<Question>) => {
  try {
    await (data.type === "train" ? train() : ask(data.prompt));
  } catch (error) {
    tell({ type: "error", message: (error as loraine.LoraineError).message });
  }
};
