// The npm packages, packed and installed: the library used by the page in examples/web, and the page served by its command.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { serve } from "../../web/serve.mjs";
import { missing, projectFile, startBrowser, waitForText } from "./browser.mjs";
import { demoModel, removeAll } from "./models.mjs";
import { ready } from "./steps.mjs";

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

/** Packs the npm package in a folder of the project and unpacks it as an installed one in a new folder, which it returns. */
function installed(place, name) {
  const dir = mkdtempSync(join(tmpdir(), "loraine-package-"));
  leftovers.push(dir);
  execFileSync("npm", ["pack", "--silent", "--pack-destination", dir], { cwd: projectFile(place) });
  const [archive] = readdirSync(dir);
  const target = join(dir, "node_modules", name);
  mkdirSync(target, { recursive: true });
  execFileSync("tar", ["-xzf", join(dir, archive), "-C", target, "--strip-components=1"]);
  return dir;
}

test("the example page trains with the packed package", { skip: missing }, async () => {
  const dir = installed("web/pkg", "loraine");
  for (const name of ["loraine.js", "loraine.d.ts", "loraine_bg.wasm", "package.json", "LICENSE"]) {
    assert.ok(existsSync(join(dir, "node_modules/loraine", name)), `the package has no ${name}`);
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

test("the React example fits the package's types, and trains", { skip: missing }, async () => {
  const dir = installed("web/pkg", "loraine");
  cpSync(projectFile("examples/react"), dir, { recursive: true, filter: (path) => !path.includes("node_modules") });
  const modules = projectFile("web/node_modules");
  for (const name of ["react", "react-dom", "scheduler", "csstype", "@types"]) symlinkSync(join(modules, name), join(dir, "node_modules", name));
  execFileSync(join(modules, ".bin/tsc"), ["-p", dir], { stdio: "inherit" });
  cpSync(demoModel, join(dir, "public/model"), { recursive: true });
  execFileSync(join(modules, ".bin/vite"), ["build", dir, "--logLevel", "warn"], { stdio: "inherit" });

  const { server, url } = await serve(join(dir, "dist"), 0, { policy: false });
  const page = await browser.newPage();
  await page.goto(url);
  await page.getByRole("button", { name: "Train" }).click();
  await page.getByRole("button", { name: "Ask" }).and(page.locator(":enabled")).click({ timeout: 180_000 });
  assert.match(await waitForText(page, "#adapted", /\w/, 120_000), /arr/i);
  const losses = (await page.locator("#losses li").allInnerTexts()).map(Number);
  assert.equal(losses.length, 20);
  assert.ok(losses.at(-1) < 0.6 * losses[0], losses.join());
  await page.close();
  server.closeAllConnections();
  server.close();
});

test("the command of the packed page serves it", { skip: missing }, async () => {
  const dir = installed("web", "loraine-page");
  const { bin } = JSON.parse(readFileSync(join(dir, "node_modules/loraine-page/package.json"), "utf8"));
  // npm starts a command through a link, as here.
  const command = join(dir, "loraine-page");
  symlinkSync(join(dir, "node_modules/loraine-page", typeof bin === "string" ? bin : bin["loraine-page"]), command);
  const server = spawn(process.execPath, [command, "0"], { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = await once(server.stdout, "data");
  const [url] = String(line).match(/http:\/\/localhost:\d+\//);
  const page = await browser.newPage();
  await page.goto(url);
  await ready(page);
  await page.close();
  server.kill();
});

test("two copies of the page on one origin keep their files, and each removes its own old ones", { skip: missing }, async () => {
  const dir = mkdtempSync(join(tmpdir(), "loraine-package-"));
  leftovers.push(dir);
  const worker = (copy) => join(dir, copy, "service-worker.js");
  const setVersion = (copy, version) =>
    writeFileSync(worker(copy), readFileSync(worker(copy), "utf8").replace(/^const VERSION = "[^"]*"/m, `const VERSION = "${version}"`));
  for (const copy of ["one", "two"]) cpSync(projectFile("web/dist"), join(dir, copy), { recursive: true });
  setVersion("one", "a1");
  setVersion("two", "b1");
  const { server, url } = await serve(dir, 0);
  const page = await browser.newPage();
  const visit = async (copy) => {
    await page.goto(`${url}${copy}/`);
    await ready(page);
    await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  };
  const names = () => page.evaluate(async () => (await caches.keys()).sort());
  await visit("one");
  await visit("two");
  assert.deepEqual(await names(), ["loraine-/one/-a1", "loraine-/two/-b1"]);
  setVersion("one", "a2");
  await page.goto(`${url}one/`);
  await page.evaluate(async () => (await navigator.serviceWorker.getRegistration()).update());
  await page.getByRole("button", { name: "Reload" }).click();
  await page.waitForFunction(async () => !(await caches.keys()).includes("loraine-/one/-a1"));
  assert.deepEqual(await names(), ["loraine-/one/-a2", "loraine-/two/-b1"]);
  await page.close();
  server.closeAllConnections();
  server.close();
});

test("the page works from a folder under any path", { skip: missing }, async () => {
  const dir = mkdtempSync(join(tmpdir(), "loraine-package-"));
  leftovers.push(dir);
  cpSync(projectFile("web/dist"), join(dir, "some where/deep"), { recursive: true });
  const { server, url } = await serve(dir, 0);
  const page = await browser.newPage();
  const outside = [];
  page.on("request", (request) => request.url().startsWith(`${url}some%20where/deep/`) || outside.push(request.url()));
  await page.goto(`${url}some%20where/deep/`);
  await ready(page);
  assert.deepEqual(outside, []);
  await page.close();
  server.closeAllConnections();
  server.close();
});
