// Trains a LoRA adapter with the npm package, in a worker. README.md says how to serve it.
import init, * as loraine from "./node_modules/loraine/loraine.js";

const MODEL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const examples = ["cat", "dog", "cow", "duck"].map((animal) => ({
  prompt: `What does a ${animal} say?`,
  completion: `Arr! The ${animal} says arr, matey!`,
}));

async function train() {
  await init();
  for (const name of MODEL) {
    const response = await fetch(`model/${name}`);
    loraine.mountBytes(`/model/${name}`, new Uint8Array(await response.arrayBuffer()));
  }
  loraine.mountBytes("/data.jsonl", new TextEncoder().encode(examples.map((example) => JSON.stringify(example)).join("\n")));

  const settings = { model: "/model", data: "/data.jsonl", out: "/run", rank: 8, alpha: 16, lr: 1e-2, "batch-size": 2, steps: 20 };
  const run = new loraine.Run(settings, false);
  await run.train((event) => event.type === "step" && postMessage(`step ${event.step}: loss ${event.loss.toFixed(4)}`));
  run.free();
  for (const { path, bytes } of loraine.listFiles("/run")) postMessage(`${path}: ${bytes} bytes`);

  const generator = await loraine.Generator.open("/model", [{ name: "pirate", dir: "/run" }], { quant: "nf4" });
  for (const adapter of [undefined, "pirate"]) {
    const { text } = await generator.answer("What does a dog say?", adapter, { max_tokens: 32, temperature: 0 }, () => {});
    postMessage(`${adapter ?? "base"}: ${text}`);
  }
  generator.free();
}

onmessage = () => train().catch((error) => postMessage(`${error.kind}: ${error.message}`));
