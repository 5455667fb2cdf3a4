// Logits of every position of given tokens, and the tokens that follow greedily, by llama.cpp inside node-llama-cpp, on the CPU
// with keys and values in f32. Prints one JSON object.
//
//   node llama_cpp.mjs DIR model.gguf '[1, 2, 3]' COUNT LOGITS.f32 [adapter.gguf]
//
// DIR holds node_modules with node-llama-cpp and its build for the system.
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [dir, modelPath, tokens, count, out, filePath] = process.argv.slice(2);
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(resolve(dir, "node_modules/node-llama-cpp/dist/index.js")));
const ids = JSON.parse(tokens);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const lora = filePath ? { adapters: [{ filePath, scale: 1 }] } : undefined;
const context = await model.createContext({
    contextSize: 256, threads: 1, lora, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
});
const sequence = context.getSequence();
const wanted = ids.map((id) => [id, { generateNext: { token: true, logits: true, options: { temperature: 0 } } }]);
const rows = (await sequence.controlledEvaluate(wanted)).map((result) => result.next.logits);
const flat = new Float32Array(rows.length * rows[0].size);
rows.forEach((row, at) => row.forEach((value, id) => { flat[at * row.size + id] = value; }));
writeFileSync(out, Buffer.from(flat.buffer));
await sequence.clearHistory();
const greedy = [];
for await (const id of sequence.evaluate(ids, { temperature: 0 })) {
    greedy.push(id);
    if (greedy.length >= +count) break;
}
console.log(JSON.stringify({ greedy, tokens: model.tokenize("Once upon a time, Äpfel", false) }));
process.exit(0);
