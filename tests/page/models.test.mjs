// Models from outside the page: a folder, a hub, and what can be wrong with either.

import assert from "node:assert/strict";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { fill, missing, openPage, startForAll, text, waitForText } from "./browser.mjs";
import { startHub } from "./hub-server.mjs";
import { changedModel, demoModel, editJson, folder, plainText, removeAll } from "./models.mjs";
import { askHub, drop, finished, lookUp, paste, ready, shortRun, start } from "./steps.mjs";

const shared = startForAll();
const leftovers = [];
after(() => removeAll(leftovers));

function changed(change) {
  const dir = changedModel(demoModel, change);
  leftovers.push(dir);
  return dir;
}

/** The page goes on working: the built-in model opens again, and may be trained. */
async function stillWorks(page) {
  await page.locator("#model").getByRole("radio", { name: "Built-in" }).check();
  await page.locator("#model .notice.error").waitFor({ state: "detached" });
  await ready(page);
}

test("a model folder that is dropped in trains, and its run opens again after a reload", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await page.locator("#model").getByRole("radio", { name: "Files" }).check();
  await drop(page, "#model .drop", folder.dir);
  await waitForText(page, "#model .facts", folder.name);
  await paste(page, plainText);
  await waitForText(page, "#data .position", /Example 1 of/);
  await shortRun(page, 6);
  await start(page);
  assert.match(await finished(page), /Finished: 6 steps/);
  await page.reload();
  await page.getByRole("button", { name: /^Open/ }).click();
  await waitForText(page, "#model .facts", folder.name);
  await waitForText(page, "#data .position", /Example 1 of/);
  assert.ok(await page.getByRole("button", { name: "Download the adapter" }).isVisible());
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a folder that is chosen opens; one without a model, or of another architecture, says what is wrong", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const choose = async (dir) => {
    await page.locator("#model").getByRole("radio", { name: "Files" }).check();
    await page.locator("#model input[webkitdirectory]").setInputFiles(dir);
  };
  await choose(demoModel);
  await waitForText(page, "#model .facts", /model/);

  const without = changed((dir) => removeAll([join(dir, "config.json")]));
  await choose(without);
  await waitForText(page, "#model .notice.error", /holds no config\.json/);
  await stillWorks(page);

  const architecture = changed((dir) => editJson(join(dir, "config.json"), { model_type: "mamba", architectures: ["MambaForCausalLM"] }));
  await choose(architecture);
  assert.match(await waitForText(page, "#model .notice.error", /mamba/i), /config\.json/);
  await stillWorks(page);

  const truncated = changed((dir) => {
    const path = join(dir, "model.safetensors");
    const bytes = readFileSync(path);
    writeFileSync(path, bytes.subarray(0, bytes.length / 2));
  });
  await choose(truncated);
  await waitForText(page, "#model .notice.error", /model\.safetensors/);
  await stillWorks(page);

  const garbage = changed((dir) => writeFileSync(join(dir, "config.json"), "not JSON at all"));
  await choose(garbage);
  await waitForText(page, "#model .notice.error", /config\.json.*JSON/s);
  await stillWorks(page);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a model from a hub arrives over a connection that breaks, and stays", { skip: missing }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": demoModel });
  hub.cutAfter = 300_000;
  hub.cuts = 2;
  const { page, profile, problems, requests } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await askHub(page, hub.url, "pirates/stories");
  await waitForText(page, "#model .facts", "pirates/stories");
  const weights = hub.requests.filter(({ method, path }) => method === "GET" && path.endsWith("/model.safetensors"));
  assert.deepEqual(
    weights.map(({ range }) => range),
    [undefined, "bytes=300000-", "bytes=600000-"],
  );
  assert.ok(
    weights.every(({ path }) => path.includes(`/resolve/${hub.commit}/`)),
    "weights are of the commit that the configuration was of",
  );
  assert.ok(hub.requests.every(({ cookie, referer }) => cookie === undefined && referer === undefined));
  const foreign = requests.filter((url) => !url.startsWith(shared.site.url));
  const addresses = [`${hub.url}/pirates/stories/resolve/`, `${hub.url}/api/models/pirates/stories/tree/`];
  assert.ok(foreign.length > 0 && foreign.every((url) => addresses.some((address) => url.startsWith(address))), foreign.join());

  // The hub is gone: the model is there all the same.
  hub.close();
  await page.reload();
  await ready(page);
  await page.locator("#model").getByRole("radio", { name: "Hub" }).check();
  await page.getByRole("button", { name: "Open: pirates/stories" }).click();
  await waitForText(page, "#model .facts", "pirates/stories");
  await page.getByRole("button", { name: "Remove pirates/stories" }).click();
  await page.locator(".kept li").waitFor({ state: "detached" });
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a download that is stopped goes on where it was", { skip: missing }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": demoModel });
  hub.slow = true;
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await askHub(page, hub.url, "pirates/stories");
  await waitForText(page, "#model .progress-text", /model\.safetensors/);
  await page.waitForTimeout(500);
  await page.locator("#model .loading").getByRole("button", { name: "Stop" }).click();
  await page.locator("#model .loading").waitFor({ state: "hidden" });
  await waitForText(page, ".kept", /incomplete/);
  hub.slow = false;
  await page.getByRole("button", { name: "Resume: pirates/stories" }).click();
  await waitForText(page, "#model .facts", "pirates/stories");
  const weights = hub.requests.filter(({ method, path }) => method === "GET" && path.endsWith("/model.safetensors"));
  const ranges = weights.map(({ range }) => range);
  assert.equal(ranges.length, 2);
  assert.match(ranges[1], /^bytes=[1-9]\d+-$/);
  await profile.close();
});

test("a download waits while the browser is offline, and goes on when it is back", { skip: missing }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": demoModel });
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await lookUp(page, hub.url, "pirates/stories");
  await page.getByRole("button", { name: /^Download \d/ }).waitFor();
  await profile.setOffline(true);
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .progress-text", /waiting for a connection, then config\.json goes on/);
  // Longer than the attempts of a hub that is not there would take.
  await page.waitForTimeout(6000);
  assert.match(await text(page, "#model .progress-text"), /waiting for a connection/);
  await profile.setOffline(false);
  await waitForText(page, "#model .facts", "pirates/stories");
  assert.deepEqual(problems, []);
  await profile.close();
});

test("what a hub does not give is told where it was asked for", { skip: missing }, async (t) => {
  const unsupported = changed((dir) => editJson(join(dir, "config.json"), { model_type: "mamba", architectures: ["MambaForCausalLM"] }));
  const hub = await startHub(t, { "pirates/stories": demoModel, "pirates/mamba": unsupported });
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await lookUp(page, hub.url, "pirates/nobody");
  assert.match(await waitForText(page, "#model .notice.error", /404/), /pirates\/nobody.*spelling/);
  // Another name, and the notice of the one before is gone; so is every trace of it.
  await fill(page, { Model: "pirates/stories" });
  await page.locator("#model .notice.error").waitFor({ state: "detached" });
  assert.equal(await page.locator(".kept li").count(), 0);
  await stillWorks(page);

  await lookUp(page, hub.url, "not a name");
  await waitForText(page, "#model .field-help.wrong", /owner\/name/);
  await lookUp(page, "ftp://nowhere", "a/b");
  await waitForText(page, "#model .field-help.wrong", /https/);

  await lookUp(page, hub.url, "pirates/mamba");
  await waitForText(page, "#model .notice.error", /mamba/i);
  assert.equal(
    hub.requests.some(({ path }) => path.includes("pirates/mamba") && path.endsWith(".safetensors")),
    false,
    "weights of a model that cannot be used",
  );
  await stillWorks(page);

  hub.endless = "config.json";
  await lookUp(page, hub.url, "pirates/stories");
  await waitForText(page, "#model .notice.error", /config\.json has more than 128 MiB/);
  hub.endless = undefined;
  await stillWorks(page);

  hub.halve = "model.safetensors";
  await askHub(page, hub.url, "pirates/stories");
  await waitForText(page, "#model .notice.error", /model\.safetensors/);
  hub.halve = undefined;
  await askHub(page, hub.url, "pirates/stories");
  await waitForText(page, "#model .facts", "pirates/stories");

  const { url } = hub;
  hub.close();
  await lookUp(page, url, "pirates/unreachable");
  await waitForText(page, "#model .notice.error", /does not arrive/);
  assert.doesNotMatch(await text(page, ".kept"), /nobody|mamba|unreachable|0 B/);
  await stillWorks(page);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a pasted address is understood, its size is known before it is fetched, and a gated model takes a token", { skip: missing }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": demoModel });
  hub.token = "secret-of-this-test";
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await page.locator("#model").getByRole("radio", { name: "Hub" }).check();
  await fill(page, { Model: `${hub.url}/pirates/stories/tree/main` });
  await page.getByRole("button", { name: "Look up" }).click();
  assert.match(await waitForText(page, "#model .notice.error", /401/), /terms.*access token/s);
  assert.equal(await page.getByRole("textbox", { name: "Model", exact: true }).inputValue(), "pirates/stories");
  assert.equal(await page.getByRole("textbox", { name: "Hub", exact: true }).inputValue(), hub.url);

  await page.locator("summary", { hasText: "Gated models" }).click();
  await page.getByLabel("Access token").fill(hub.token);
  await page.getByRole("button", { name: "Look up" }).click();
  const { size } = statSync(join(demoModel, "model.safetensors"));
  const offer = await waitForText(page, "#model .offer", /to download/);
  assert.ok(offer.includes(`${(size / 1e6).toFixed(2)} MB to download`), offer);
  assert.match(offer, /787,584 parameters/);
  assert.equal(hub.requests.filter(({ method, path }) => method === "GET" && path.endsWith(".safetensors")).length, 0);
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .facts", "pirates/stories");
  assert.ok(hub.requests.slice(1).every(({ authorization }) => authorization === `Bearer ${hub.token}`));

  // Kept for this session alone: nowhere that outlives the tab, and not in the link.
  const kept = await page.evaluate(() => JSON.stringify([localStorage, document.cookie, location.href]));
  assert.ok(!kept.includes(hub.token));
  assert.ok(!(await page.locator(".link input[readonly]").inputValue()).includes(hub.token));
  const other = await profile.newPage();
  await other.goto(shared.site.url);
  await ready(other);
  assert.equal(await other.evaluate(() => sessionStorage.length), 0);
  assert.deepEqual(problems, []);
  await profile.close();
});
