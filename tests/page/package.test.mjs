// The npm package, packed, installed and used by the page in examples/web.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { serve } from "../../web/serve.mjs";
import { missing, projectFile, startBrowser, waitForText } from "./browser.mjs";
import { demoModel, removeAll } from "./models.mjs";

const MOST_BYTES = 5_000_000;

let browser;
const leftovers = [];

before(async () => {
  if (!missing) browser = await startBrowser();
});
after(async () => {
  await browser?.close();
  removeAll(leftovers);
});

test("the module is small enough to be fetched by a page", { skip: missing }, () => {
  const { size } = statSync(projectFile("web/pkg/loraine_bg.wasm"));
  assert.ok(size < MOST_BYTES, `${size} bytes`);
});

test("the example page trains with the packed package", { skip: missing }, async () => {
  const dir = mkdtempSync(join(tmpdir(), "loraine-package-"));
  leftovers.push(dir);
  execFileSync("npm", ["pack", "--silent", "--pack-destination", dir], { cwd: projectFile("web/pkg") });
  const [archive] = readdirSync(dir);
  const installed = join(dir, "node_modules/loraine");
  mkdirSync(installed, { recursive: true });
  execFileSync("tar", ["-xzf", join(dir, archive), "-C", installed, "--strip-components=1"]);
  for (const name of ["loraine.js", "loraine.d.ts", "loraine_bg.wasm", "package.json", "LICENSE"]) {
    assert.ok(existsSync(join(installed, name)), `the package has no ${name}`);
  }
  for (const name of ["index.html", "main.js"]) cpSync(projectFile(`examples/web/${name}`), join(dir, name));
  cpSync(demoModel, join(dir, "model"), { recursive: true });

  // Served without the page's own policy: the example has an inline script.
  const { server, url } = await serve(dir, 0, { policy: false });
  const page = await browser.newPage();
  await page.goto(url);
  await page.getByRole("button", { name: "Train" }).click();
  const log = await waitForText(page, "#log", /pirate: /, 180_000);
  const losses = [...log.matchAll(/step \d+: loss ([\d.]+)/g)].map(([, loss]) => Number(loss));
  assert.equal(losses.length, 20);
  assert.ok(losses.at(-1) < 0.6 * losses[0], log);
  assert.match(log, /\/run\/adapter_model\.safetensors: \d+ bytes/);
  server.closeAllConnections();
  server.close();
});
