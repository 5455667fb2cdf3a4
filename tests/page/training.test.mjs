// The built-in model trained in the page: the loss, the answers, the adapter, and what a closed tab leaves.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { serve } from "../../web/serve.mjs";
import { missing, openPage, projectFile, startForAll, text, waitForText } from "./browser.mjs";
import { conversations, demoModel, removeAll } from "./models.mjs";
import { askBoth, finished, losses, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";
import { assertSameLosses, lossesOf, noTerminal, terminal } from "./terminal.mjs";

const { unzipSync } = createRequire(projectFile("web/package.json"))("fflate");
const STEPS = 20;
const PROMPT = "What does a cat";

/** The base is where the adapter says it is, seen from the directory that both stand in. */
const LOAD_IN_PEFT = `
import json, sys
import peft, torch
from safetensors.torch import load_file
adapter = sys.argv[1]
loaded = peft.get_peft_model_state_dict(peft.AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32))
stored = load_file(adapter + "/adapter_model.safetensors")
changed = [key for key in stored.keys() & loaded.keys() if not torch.equal(stored[key].float(), loaded[key].float())]
print(json.dumps(dict(missing=sorted(loaded.keys() - stored.keys()), unexpected=sorted(stored.keys() - loaded.keys()), changed=changed, tensors=len(stored))))
`;

const shared = startForAll();
/** Losses of the run that nothing interrupts. */
let uninterrupted = [];
const leftovers = [];
after(() => removeAll(leftovers));

async function prepare(page) {
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, STEPS, { "Learning rate": 0.01 });
}

test("the demo model trains, its loss falls, and its adapter leaves the page whole", { skip: missing }, async (t) => {
  const { page, profile, problems, requests } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  assert.match(await text(page, "#model .facts"), /llama/);
  assert.match(await text(page, "#settings .memory-total"), /[kMG]?B$/);

  await prepare(page);
  await page.evaluate(() => {
    globalThis.longTasks = [];
    new PerformanceObserver((list) => globalThis.longTasks.push(...list.getEntries().map(({ duration }) => duration))).observe({
      type: "longtask",
    });
  });
  await start(page);
  await waitForText(page, "#run .stats", /of 20/);
  assert.match(await finished(page), /Finished: 20 steps/);
  assert.deepEqual(await page.evaluate(() => globalThis.longTasks.filter((ms) => ms > 50)), [], "long tasks while training");

  const metrics = await storedMetrics(page);
  const found = losses(metrics);
  uninterrupted = found;
  assert.deepEqual(
    found.map(({ step }) => step),
    Array.from({ length: STEPS }, (_, i) => i + 1),
  );
  assert.ok(found.at(-1).loss < 0.6 * found[0].loss, `loss from ${found[0].loss} to ${found.at(-1).loss}`);
  assert.match(await page.locator(".chart-place").getAttribute("aria-label"), /Loss over 20 steps/);

  await t.test("base and adapter answer differently", async () => {
    const [base, adapted] = await askBoth(page, "What does a cat say?");
    assert.ok(base.length > 5 && adapted.length > 5, `${base} | ${adapted}`);
    assert.notEqual(base, adapted);
    assert.match(adapted, /Arr/);
  });

  const beside = mkdtempSync(join(tmpdir(), "loraine-page-"));
  leftovers.push(beside);
  const unpacked = join(beside, "demo-adapter");
  mkdirSync(unpacked);
  await t.test("the zip has PEFT's layout", async () => {
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("button", { name: "Download the adapter" }).click(),
    ]);
    assert.equal(download.suggestedFilename(), "demo-adapter.zip");
    const files = unzipSync(readFileSync(await download.path()));
    const inside = Object.keys(files).map((path) => /^demo-adapter\/([^/]+)$/.exec(path)?.[1]);
    for (const name of ["README.md", "adapter_config.json", "adapter_model.safetensors", "loss.svg", "metrics.jsonl", "run.toml"])
      assert.ok(inside.includes(name), `${name} is not among ${Object.keys(files)}`);
    for (const [path, bytes] of Object.entries(files)) writeFileSync(join(unpacked, path.replace("demo-adapter/", "")), bytes);
    for (const name of ["adapter_config.json", "README.md", "run.toml"]) {
      const text = readFileSync(join(unpacked, name), "utf8");
      assert.match(text, /loraine-demo\/model/, name);
      assert.doesNotMatch(text, /"\/|\/models\/|\/runs\//, name);
    }
    // The same keys and names as an adapter that PEFT itself has saved.
    const byPeft = projectFile("tests/fixtures/llama_tied/adapter");
    const [config, peftConfig] = [unpacked, byPeft].map((dir) => JSON.parse(readFileSync(join(dir, "adapter_config.json"), "utf8")));
    assert.deepEqual(Object.keys(config).sort(), Object.keys(peftConfig).sort());
    assert.equal(config.peft_type, "LORA");
    assert.equal(config.r, 8);
    const [names, peftNames] = [unpacked, byPeft].map(
      (dir) => new Set(tensorNames(join(dir, "adapter_model.safetensors")).map((name) => name.replace(/\d+/, "N"))),
    );
    assert.deepEqual([...names].sort(), [...peftNames].sort());
    assert.equal(tensorNames(join(unpacked, "adapter_model.safetensors")).length, 2 * 7 * 4);
  });

  const noPeft = process.env.LORAINE_PEFT_PYTHON === undefined ? "LORAINE_PEFT_PYTHON names no Python with peft" : false;
  await t.test("the unpacked zip loads in PEFT", { skip: noPeft }, () => {
    // As `loraine demo` writes it.
    cpSync(demoModel, join(beside, "loraine-demo/model"), { recursive: true });
    const options = { cwd: beside, encoding: "utf8", env: { ...process.env, HF_HUB_OFFLINE: "1" } };
    const done = spawnSync(process.env.LORAINE_PEFT_PYTHON, ["-c", LOAD_IN_PEFT, "demo-adapter"], options);
    assert.equal(done.status, 0, done.stderr);
    const { missing, unexpected, changed, tensors } = JSON.parse(done.stdout.trim().split("\n").at(-1));
    assert.deepEqual({ missing, unexpected, changed, tensors }, { missing: [], unexpected: [], changed: [], tensors: 56 });
  });
  await t.test("the unpacked zip computes in the terminal what it computes in the browser", { skip: noTerminal }, async () => {
    const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
    leftovers.push(dir);
    writeFileSync(join(dir, "data.jsonl"), conversations);
    const evaluate = ["eval", "--model", demoModel, "--data", join(dir, "data.jsonl"), "--quant", "nf4", "--json"];
    const [base, adapted] = [[], ["--adapter", unpacked]].map((more) => JSON.parse(terminal([...evaluate, ...more])));
    const inBrowser = await evaluateInBrowser(unpacked);
    assert.ok(
      Math.abs(inBrowser.eval_loss - adapted.loss) <= 1e-4 * adapted.loss,
      `${inBrowser.eval_loss} in the shared.browser, ${adapted.loss} in the terminal`,
    );
    assert.equal(inBrowser.eval_tokens, adapted.tokens);
    const generate = ["generate", "--model", demoModel, "--adapter", unpacked, "--quant", "nf4", "--raw", "--prompt", PROMPT, "--max-tokens", 1, "--json", "--logits"];
    const [{ logits }] = JSON.parse(terminal(generate)).answers;
    assert.equal(inBrowser.logits.length, logits.length);
    const norm = (values) => Math.hypot(...values);
    const difference = norm(logits.map((logit, at) => logit - inBrowser.logits[at])) / norm(logits);
    assert.ok(difference <= 1e-4, `logits differ by ${difference} of their norm`);
    assert.ok(adapted.loss < 0.6 * base.loss, `loss ${base.loss} without the adapter, ${adapted.loss} with it`);
  });
  await t.test("the same run in the terminal has the same losses", { skip: noTerminal }, () => {
    const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
    leftovers.push(dir);
    writeFileSync(join(dir, "data.jsonl"), conversations);
    terminal([
      "train",
      "--model",
      demoModel,
      "--data",
      join(dir, "data.jsonl"),
      "--out",
      join(dir, "run"),
      "--steps",
      STEPS,
      "--batch-size",
      2,
      "--max-seq-len",
      64,
      "--rank",
      8,
      "--alpha",
      16,
      "--lr",
      0.01,
      "--warmup-steps",
      5,
    ]);
    const expected = lossesOf(join(dir, "run"));
    assert.equal(expected.length, STEPS);
    assertSameLosses(found, expected);
  });

  assert.deepEqual(problems, []);
  assert.deepEqual(
    requests.filter((url) => !url.startsWith(shared.site.url) && !url.startsWith("blob:")),
    [],
    "requests to other origins",
  );
  await profile.close();
});

function tensorNames(path) {
  const bytes = readFileSync(path);
  const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE())).toString());
  return Object.keys(header).filter((name) => name !== "__metadata__");
}

/** With the adapter of `dir`: the loss over the conversations, as a run that starts from it measures it before its first step, and
 * logits. */
async function evaluateInBrowser(dir) {
  const { server, url } = await serve(projectFile("web/pkg"), 0, { policy: false });
  const page = await shared.browser.newPage();
  await page.goto(`${url}package.json`);
  const read = (dir, names) => names.map((name) => [name, readFileSync(join(dir, name)).toString("base64")]);
  const files = {
    model: read(demoModel, ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]),
    adapter: read(dir, ["adapter_config.json", "adapter_model.safetensors"]),
  };
  const evaluation = await page.evaluate(
    async ({ files, conversations, prompt }) => {
      const loraine = await import("/loraine.js");
      await loraine.default();
      for (const [room, contents] of Object.entries(files)) {
        for (const [name, base64] of contents)
          loraine.mountBytes(
            `/${room}/${name}`,
            Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)),
          );
      }
      loraine.mountBytes("/data.jsonl", new TextEncoder().encode(conversations));
      const settings = {
        model: "/model",
        data: "/data.jsonl",
        "eval-data": "/data.jsonl",
        out: "/run",
        "init-adapter": "/adapter",
        steps: 1,
      };
      const { first_eval } = await new loraine.Run(settings, false).train(() => {});
      const generator = await loraine.Generator.open("/model", [{ name: "trained", dir: "/adapter" }], { quant: "nf4", context: 64 });
      const logits = await generator.logits(prompt, "trained", { raw: true });
      return { ...first_eval, logits: [...logits] };
    },
    { files, conversations, prompt: PROMPT },
  );
  await page.close();
  server.closeAllConnections();
  server.close();
  return evaluation;
}

test("a run that is paused, reloaded and gone on with has the losses of one that is not", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await prepare(page);
  await start(page);
  await waitForText(page, "#run .stats", /[3-9] of 20/);
  await page.getByRole("button", { name: "Pause" }).click();
  const paused = Number(/step (\d+)/.exec(await waitForText(page, ".run-status", /Paused at step/))[1]);
  assert.ok(paused < STEPS, `paused only after step ${paused}`);

  await page.reload();
  assert.match(await waitForText(page, ".saved", /Resume/), new RegExp(`step ${paused} of ${STEPS}`));
  await page.getByRole("button", { name: /^Resume/ }).click();
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  assert.match(await finished(page), /Finished: 20 steps/);
  assert.equal(uninterrupted.length, STEPS);
  assert.deepEqual(losses(await storedMetrics(page)), uninterrupted);
  assert.match(await page.locator(".chart-place").getAttribute("aria-label"), /Loss over 20 steps/);
  assert.equal(await page.getByLabel("Sequence length", { exact: true }).inputValue(), "64");
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a checkpoint that was not written to its end is not taken for whole", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await page.evaluate(async () => {
    const write = async (dir, name, text) => {
      const stream = await (await dir.getFileHandle(name, { create: true })).createWritable();
      await stream.write(text);
      await stream.close();
    };
    const root = await navigator.storage.getDirectory();
    const run = await (await root.getDirectoryHandle("runs", { create: true })).getDirectoryHandle("half", { create: true });
    await write(
      run,
      "run.json",
      JSON.stringify({ model: { kind: "demo" }, modelName: "demo", data: { kind: "example" }, settings: {}, started: 1 }),
    );
    const save = await (await run.getDirectoryHandle("saves", { create: true })).getDirectoryHandle("5", { create: true });
    await write(save, "metrics.jsonl", "half of it");
    await write(
      save,
      "manifest.json",
      JSON.stringify({ step: 5, steps: 9, finished: false, files: [{ name: "metrics.jsonl", bytes: 4000 }] }),
    );
  });
  await page.reload();
  await ready(page);
  assert.equal(await page.locator(".saved").isVisible(), false);
  await profile.close();
});

/** The files of the browser's storage under `cache/`, by name; `change` is made before: texts to write, or null to remove. */
function cached(page, change = {}) {
  return page.evaluate(async (change) => {
    const dir = await (await navigator.storage.getDirectory()).getDirectoryHandle("cache", { create: true });
    for (const [name, text] of Object.entries(change)) {
      if (text === null) {
        await dir.removeEntry(name);
        continue;
      }
      const stream = await (await dir.getFileHandle(name, { create: true })).createWritable();
      await stream.write(text);
      await stream.close();
    }
    const files = {};
    for await (const [name, handle] of dir.entries()) files[name] = await (await handle.getFile()).text();
    return files;
  }, change);
}

test("what the engine keeps for its next start lies in the browser's storage", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const file = "kernels-of-another-gpu.json";
  const written = await cached(page, { [file]: "{ cut off" });
  await prepare(page);
  await shortRun(page, 30);
  await start(page);
  await waitForText(page, "#run .stats", /[2-9] of 30/);
  // The engine has had it since before the run and passes it over; the page stores what the engine has after each choice of kernels.
  assert.deepEqual(await cached(page, { [file]: null }), {});
  assert.match(await finished(page), /Finished: 30 steps/);
  // The answers that follow the run choose kernels of their own.
  let stored = {};
  for (const end = Date.now() + 60_000; Object.keys(stored).length === 0 && Date.now() < end; ) {
    await page.waitForTimeout(500);
    stored = await cached(page);
  }
  assert.deepEqual(stored, written);
  assert.deepEqual(problems, []);
  await profile.close();
});
