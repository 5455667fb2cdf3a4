// A real model in the page: SmolLM2-135M-Instruct from a GGUF file, from the download to the adapter. It takes many minutes on a software
// adapter, so it runs only where LORAINE_SMOLLM2_GGUF names the file (docs/testing.md says where to get it).

import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { serve } from "../../web/serve.mjs";
import { missing, openPage, projectFile, startForAll, text, waitForText } from "./browser.mjs";
import { startHub } from "./hub-server.mjs";
import { conversations, removeAll } from "./models.mjs";
import { askBoth, downloaded, losses, lookUp, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";
import { assertSameLosses, lossesOf, noTerminal, terminal } from "./terminal.mjs";

const { unzipSync } = createRequire(projectFile("web/package.json"))("fflate");
const GGUF = process.env.LORAINE_SMOLLM2_GGUF;
const noModel = GGUF === undefined ? "LORAINE_SMOLLM2_GGUF names no file" : existsSync(GGUF) ? false : `no ${GGUF}`;
const skip = missing ?? (noTerminal || noModel);
const shared = startForAll();
const STEPS = 5;
const NAME = "pirates/smollm2:SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE = NAME.split(":")[1];
/** Bytes of the module's memory at its largest. */
const MOST_MEMORY = 200e6;
const MINUTES = 60_000;

const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
after(() => removeAll([dir]));

/** The page with a worker that says how much memory its module has; memory of a module never shrinks. */
async function serveWatched() {
  const site = join(dir, "site");
  cpSync(projectFile("web/dist"), site, { recursive: true });
  const watch = `{
    const start = WebAssembly.instantiateStreaming.bind(WebAssembly);
    WebAssembly.instantiateStreaming = async (...given) => {
      const made = await start(...given);
      self.moduleMemory = made.instance.exports.memory;
      return made;
    };
  }\n`;
  const worker = readdirSync(join(site, "assets")).find((name) => /^worker-.*\.js$/.test(name));
  writeFileSync(join(site, "assets", worker), watch + readFileSync(join(site, "assets", worker), "utf8"));
  return serve(site, 0);
}

async function moduleBytes(page) {
  const sizes = await Promise.all(page.workers().map((worker) => worker.evaluate(() => self.moduleMemory?.buffer.byteLength ?? 0)));
  return Math.max(...sizes);
}

test("a real model: broken download, training, reload, answers, and the adapter out", { skip, timeout: 90 * MINUTES }, async (t) => {
  mkdirSync(join(dir, "hub"));
  symlinkSync(GGUF, join(dir, "hub", FILE));
  const { size } = statSync(GGUF);
  const hub = await startHub(t, { "pirates/smollm2": join(dir, "hub") });
  hub.lists = true;
  const { server, url } = await serveWatched();
  t.after(() => server.close());
  const { page, profile, problems } = await openPage(shared.browser, url);
  await ready(page);
  await lookUp(page, hub.url, NAME);
  t.diagnostic(await waitForText(page, "#model .offer", /135 million parameters/, 2 * MINUTES));
  hub.cutAfter = 8_000_000;
  hub.cuts = 3;
  hub.requests.length = 0;
  const began = performance.now();
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .facts", NAME, 5 * MINUTES);
  t.diagnostic(`download and check: ${((performance.now() - began) / 1000).toFixed(1)} s, module ${(await moduleBytes(page)) / 1e6} MB`);
  const asked = hub.requests.filter(({ path }) => path.endsWith(".gguf"));
  assert.ok(asked.every(({ range }) => Number(/^bytes=(\d+)-/.exec(range)?.[1]) > 0), "the beginning is here since the model was looked up");
  const again = asked.reduce((sum, { sent }) => sum + sent, 0) + (1 << 20) - size;
  assert.ok(hub.cuts === 0 && again >= 0 && again <= 3 * (1 << 20), `${again} bytes came twice over the breaks`);

  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/, MINUTES);
  await shortRun(page, STEPS, { "Batch size": 1 });
  await start(page);
  await waitForText(page, "#run .stats", /[2-4] of 5/, 20 * MINUTES);
  t.diagnostic(`training: module ${(await moduleBytes(page)) / 1e6} MB`);
  const beforeReload = await moduleBytes(page);
  await page.getByRole("button", { name: "Pause" }).click();
  await waitForText(page, ".run-status", /Paused at step/, 10 * MINUTES);

  // The hub is gone by now: the browser has everything.
  hub.close();
  await page.reload();
  await page.getByRole("button", { name: /^Resume/ }).click();
  assert.match(await waitForText(page, ".run-status", /Finished|Failed/, 30 * MINUTES), /Finished: 5 steps/);
  const found = losses(await storedMetrics(page));
  assert.equal(found.length, STEPS);
  const run = join(dir, "terminal");
  writeFileSync(join(dir, "data.jsonl"), conversations);
  const train = ["train", "--model", GGUF, "--data", join(dir, "data.jsonl"), "--out", run];
  terminal([...train, "--steps", STEPS, "--batch-size", 1, "--max-seq-len", 64]);
  t.diagnostic(`losses: ${found.map(({ loss }) => loss.toFixed(5))} in the page, ${lossesOf(run).map(({ loss }) => loss.toFixed(5))} in the terminal`);
  assertSameLosses(found, lossesOf(run));

  const [base, adapted] = await askBoth(page, "What does a cat say?", 20 * MINUTES);
  t.diagnostic(`base: ${base} | adapted: ${adapted}`);
  assert.ok(base.length > 0 && adapted.length > 0);
  const zip = await downloaded(page, "Download the adapter");
  const files = Object.keys(unzipSync(readFileSync(zip.path)));
  assert.ok(files.some((path) => path.endsWith("/adapter_model.safetensors")), files.join());
  const exported = await downloaded(page, "Download for llama.cpp");
  assert.equal(exported.name, "SmolLM2-135M-Instruct.Q4_1-adapter.gguf");
  assert.equal(readFileSync(exported.path).subarray(0, 4).toString(), "GGUF");
  const most = Math.max(beforeReload, await moduleBytes(page));
  t.diagnostic(`module at most ${most / 1e6} MB for a file of ${size / 1e6} MB`);
  assert.ok(most < MOST_MEMORY, `${most} bytes`);
  assert.match(await text(page, "#model .facts"), /llama/);
  assert.deepEqual(problems, []);
  await profile.close();
});
