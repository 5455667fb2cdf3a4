// Every kernel variant in the browser's own compiler, also those that no run of these tests happens to take.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { missing, projectFile, startBrowser, startServer } from "./browser.mjs";
import { removeAll } from "./models.mjs";

test("the browser compiles every kernel variant", { skip: missing }, async () => {
  const dir = mkdtempSync(join(tmpdir(), "loraine-shaders-"));
  // As `cargo test` has built it, where it has.
  const [program, ...command] = ["scripts/with-mpi", "cargo", "run", "--quiet", "--example", "shaders", "--", dir];
  execFileSync(program, command, { cwd: projectFile(".") });
  // Cooperative matrices are wgpu's own extension, which no browser has.
  const texts = readdirSync(dir)
    .map((name) => [name, readFileSync(join(dir, name), "utf8")])
    .filter(([, text]) => !text.startsWith("enable ") || !text.includes("wgpu_cooperative_matrix"));
  removeAll([dir]);
  const [browser, site] = await Promise.all([startBrowser(), startServer()]);
  const page = await browser.newPage();
  await page.goto(site.url);
  const { refused, exchanging } = await page.evaluate(async (texts) => {
    const adapter = await navigator.gpu.requestAdapter();
    const exchanging = adapter.features.has("subgroups");
    const device = await adapter.requestDevice({ requiredFeatures: exchanging ? ["subgroups"] : [] });
    const refused = [];
    for (const [name, text] of texts) {
      const subgroups = text.includes("subgroupBroadcast");
      if (subgroups && !exchanging) continue;
      // A browser wants the extension named; natively it must not be.
      const module = device.createShaderModule({ code: subgroups ? `enable subgroups;\n${text}` : text });
      const { messages } = await module.getCompilationInfo();
      refused.push(...messages.filter(({ type }) => type === "error").map(({ message, lineNum }) => `${name}, line ${lineNum}: ${message}`));
    }
    return { refused, exchanging };
  }, texts);
  await browser.close();
  site.server.close();
  assert.deepEqual(refused, []);
  assert.ok(texts.length > 100, `${texts.length} variants`);
  assert.ok(exchanging, "variants that exchange values between lanes were left out");
});
