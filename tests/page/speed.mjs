// How fast a page trains beside the terminal on the same driver, and where the worker's time goes: node tests/page/speed.mjs
//
// Both sides run SwiftShader, one after the other, and both report the tokens a second over their last steps.

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { missing, openPage, projectFile, startBrowser, startServer, waitForText } from "./browser.mjs";
import { conversations, demoModel, folder, plainText, removeAll } from "./models.mjs";
import { finished, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";

const LORAINE = process.env.LORAINE_BIN ?? projectFile("target/release/loraine");
const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";
const STEPS = 40;
const SEQUENCE = 64;
const BATCH = 4;

if (missing || !existsSync(LORAINE) || !existsSync(SWIFTSHADER)) {
  console.error(`speed: ${missing ?? `needs ${LORAINE} (cargo build --release) and ${SWIFTSHADER}`}`);
  process.exit(1);
}

/** Adds up, in the worker, the time inside calls of WebGPU and the time until buffers are mapped. */
function watchCalls() {
  const spent = { calls: 0, inCalls: 0, maps: 0, mapping: 0, submits: 0, from: performance.now() };
  globalThis.spent = spent;
  for (const name of ["GPUDevice", "GPUQueue", "GPUCommandEncoder", "GPUComputePassEncoder", "GPUBuffer"]) {
    const prototype = globalThis[name].prototype;
    for (const [key, { value }] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
      if (typeof value !== "function" || key === "constructor") continue;
      prototype[key] = function (...args) {
        const before = performance.now();
        const result = value.apply(this, args);
        spent.inCalls += performance.now() - before;
        spent.calls += 1;
        if (key === "submit") spent.submits += 1;
        if (key === "mapAsync") {
          spent.maps += 1;
          const settle = () => {
            spent.mapping += performance.now() - before;
          };
          result.then(settle, settle);
        }
        return result;
      };
    }
  }
}

const rate = (metrics) => metrics.filter((line) => line.loss !== undefined).at(-1).tokens_per_s;

async function inPage(browser, site, model, data, watched) {
  const { page, profile } = await openPage(browser, site.url);
  await ready(page);
  if (model.dir !== demoModel) {
    await page.locator("#model").getByRole("radio", { name: "Files" }).check();
    await page.locator("#model input[webkitdirectory]").setInputFiles(model.dir);
    await waitForText(page, "#model .facts", model.name);
  }
  await paste(page, data);
  await waitForText(page, "#data .position", /Example 1/);
  await shortRun(page, STEPS, { "Sequence length": SEQUENCE, "Batch size": BATCH, Rank: 8 });
  const worker = page.workers()[0];
  if (watched) await worker.evaluate(watchCalls);
  await start(page);
  let spent;
  if (watched) {
    await waitForText(page, "#run .stats", new RegExp(`^\\D*(1\\d|2\\d) of ${STEPS}`, "s"));
    const at = () => worker.evaluate(() => ({ ...globalThis.spent, now: performance.now() }));
    const first = await at();
    await finished(page);
    const last = await at();
    spent = Object.fromEntries(Object.keys(last).map((key) => [key, last[key] - first[key]]));
  } else {
    await finished(page);
  }
  const metrics = await storedMetrics(page);
  await profile.close();
  return { rate: rate(metrics), spent };
}

function inTerminal(model, data) {
  const dir = mkdtempSync(join(tmpdir(), "loraine-speed-"));
  const file = join(dir, data.endsWith("}") ? "data.jsonl" : "data.txt");
  writeFileSync(file, data);
  const args = ["train", "--model", model.dir, "--data", file, "--out", join(dir, "run"), "--steps", STEPS, "--batch-size", BATCH, "--max-seq-len", SEQUENCE, "--rank", 8];
  const env = { ...process.env, VK_DRIVER_FILES: SWIFTSHADER, XDG_RUNTIME_DIR: tmpdir() };
  const done = spawnSync(LORAINE, args.map(String), { env, encoding: "utf8" });
  if (done.status !== 0) throw new Error(done.stderr);
  const lines = readFileSync(join(dir, "run/metrics.jsonl"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
  removeAll([dir]);
  return rate(lines);
}

const [browser, site] = await Promise.all([startBrowser(), startServer()]);
for (const [model, data] of [[{ dir: demoModel, name: "demo" }, conversations], [folder, plainText]]) {
  const terminal = [inTerminal(model, data)];
  const page = [(await inPage(browser, site, model, data, false)).rate];
  terminal.push(inTerminal(model, data));
  page.push((await inPage(browser, site, model, data, false)).rate);
  const best = { terminal: Math.max(...terminal), page: Math.max(...page) };
  const { spent } = await inPage(browser, site, model, data, true);
  const share = (ms) => `${((100 * ms) / spent.now).toFixed(1)} %`;
  console.log(`${model.name}: terminal ${best.terminal.toFixed(0)} tokens/s, page ${best.page.toFixed(0)} tokens/s; a step takes the page ${(best.terminal / best.page).toFixed(2)} times as long`);
  console.log(`  of the worker's time: ${share(spent.inCalls)} in ${spent.calls} calls of WebGPU (${spent.submits} submits), a read-back took ${(spent.mapping / spent.maps).toFixed(0)} ms beside the steps under way`);
}
await browser.close();
site.server.close();
