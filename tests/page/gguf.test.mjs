// GGUF files as the base: dropped in, and from a hub over a connection that breaks and damages; the adapter out as zip and as GGUF.

import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { accessibilityProblems, fill, missing, openPage, picture, projectFile, startForAll, text, waitForText } from "./browser.mjs";
import { startHub } from "./hub-server.mjs";
import { conversations, demoModel, removeAll } from "./models.mjs";
import { askHub, downloaded, drop, finished, lookUp, losses, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";
import { assertSameLosses, lossesOf, noTerminal, terminal } from "./terminal.mjs";

const { unzipSync } = createRequire(projectFile("web/package.json"))("fflate");
const skip = missing ?? noTerminal;
const shared = startForAll();
const STEPS = 6;
const RUN = ["--steps", STEPS, "--batch-size", 2, "--max-seq-len", 64];

const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
const data = join(dir, "data.jsonl");
/** The built-in model as the terminal writes it: in 8 bits, and in f32, of which the keys are only the beginning. */
const gguf = join(dir, "pirate.gguf");
const large = join(dir, "pirate-f32.gguf");
after(() => removeAll([dir]));
before(() => {
  if (skip) return;
  writeFileSync(data, conversations);
  terminal(["train", "--model", demoModel, "--data", data, "--out", join(dir, "first"), ...RUN]);
  const merge = ["merge", "--model", demoModel, "--adapter", join(dir, "first"), "--gguf"];
  terminal([...merge, "--out", gguf, "--dtype", "q8_0"]);
  terminal([...merge, "--out", large, "--dtype", "f32"]);
});

/** A directory of a hub with these files, by their paths there. */
function repository(files) {
  const place = mkdtempSync(join(dir, "hub-"));
  for (const [path, from] of Object.entries(files)) {
    mkdirSync(join(place, path, ".."), { recursive: true });
    copyFileSync(from, join(place, path));
  }
  return place;
}

async function train(page) {
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, STEPS);
  await start(page);
  assert.match(await finished(page), new RegExp(`Finished: ${STEPS} steps`));
}

test("a GGUF file that is dropped in trains as in the terminal, and its adapter leaves as zip and as GGUF", { skip }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await page.locator("#model").getByRole("radio", { name: "Files" }).check();
  await picture(page, "model-files");
  await drop(page, "#model .drop", gguf);
  await waitForText(page, "#model .facts", "pirate.gguf");
  await train(page);
  const found = losses(await storedMetrics(page));
  const run = join(dir, "terminal");
  terminal(["train", "--model", gguf, "--data", data, "--out", run, ...RUN]);
  assert.equal(lossesOf(run).length, STEPS);
  assertSameLosses(found, lossesOf(run));
  await page.getByRole("button", { name: "Compare" }).and(page.locator(":enabled")).waitFor({ timeout: 120_000 });
  await picture(page, "result-gguf");
  assert.deepEqual(await accessibilityProblems(page), []);

  const zip = await downloaded(page, "Download the adapter");
  assert.equal(zip.name, "pirate-adapter.zip");
  const unpacked = join(dir, "pirate-adapter");
  mkdirSync(unpacked);
  for (const [path, bytes] of Object.entries(unzipSync(readFileSync(zip.path)))) {
    writeFileSync(join(unpacked, path.replace("pirate-adapter/", "")), bytes);
    if (/(adapter_config\.json|README\.md|run\.toml)$/.test(path)) assert.doesNotMatch(new TextDecoder().decode(bytes), /"\/|\/models\/|\/runs\//, path);
  }
  const exported = await downloaded(page, "Download for llama.cpp");
  assert.equal(exported.name, "pirate-adapter.gguf");
  // The terminal makes the same file of the zip.
  const own = join(dir, "pirate-adapter.gguf");
  terminal(["export", "--model", gguf, "--adapter", unpacked, "--out", own, "--gguf"]);
  assert.ok(readFileSync(exported.path).equals(readFileSync(own)), "the page's GGUF adapter is another than the terminal's");
  const whole = await downloaded(page, "Download the merged model");
  assert.equal(whole.name, "pirate-merged.gguf");
  const merged = join(dir, "pirate-merged.gguf");
  terminal(["merge", "--model", gguf, "--adapter", unpacked, "--out", merged, "--gguf"]);
  assert.ok(readFileSync(whole.path).equals(readFileSync(merged)), "the page's merged model is another than the terminal's");

  // What was dropped in was copied when the run began.
  await page.reload();
  await page.getByRole("button", { name: /^Open/ }).click();
  await waitForText(page, "#model .facts", "pirate.gguf");
  const again = await downloaded(page, "Download for llama.cpp");
  assert.ok(readFileSync(again.path).equals(readFileSync(own)));
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a GGUF file that is chosen opens; a damaged one, and several at once, say what is wrong", { skip }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const choose = async (files) => {
    await page.locator("#model").getByRole("radio", { name: "Files" }).check();
    await page.locator("#model input[accept='.gguf']").setInputFiles(files);
  };
  await choose(gguf);
  await waitForText(page, "#model .facts", "pirate.gguf");
  const cut = join(dir, "cut.gguf");
  copyFileSync(gguf, cut);
  truncateSync(cut, statSync(gguf).size / 2);
  await choose(cut);
  assert.match(await waitForText(page, "#model .notice.error", /does not end inside the file/), /cut\.gguf/);
  await choose([gguf, cut]);
  await waitForText(page, "#model .notice.error", /several GGUF models: cut\.gguf, pirate\.gguf/);
  const text = join(dir, "letter.gguf");
  writeFileSync(text, "Dear pirates,\n".repeat(10));
  await choose(text);
  await waitForText(page, "#model .notice.error", /letter\.gguf.*not a GGUF file/);
  await choose(gguf);
  await waitForText(page, "#model .facts", "pirate.gguf");
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a GGUF file of a hub is looked up by its beginning, arrives over a connection that breaks, and is checked", { skip }, async (t) => {
  const files = { "stories-Q8_0.gguf": gguf, "stories-F32.gguf": large, "mmproj-stories.gguf": gguf };
  const hub = await startHub(t, { "pirates/stories-GGUF": repository(files) });
  hub.lists = true;
  const { size } = statSync(large);
  const { page, profile, problems, requests } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  // The repository alone: which of its files?
  await lookUp(page, hub.url, "pirates/stories-GGUF");
  await page.getByRole("button", { name: "Choose stories-F32.gguf" }).waitFor();
  assert.deepEqual(await page.locator(".file-choice li span:first-child").allInnerTexts(), ["stories-Q8_0.gguf", "stories-F32.gguf"]);
  await picture(page, "hub-files");
  assert.deepEqual(await accessibilityProblems(page), []);
  hub.requests.length = 0;
  await page.getByRole("button", { name: "Choose stories-F32.gguf" }).click();
  const offer = await waitForText(page, "#model .offer", /to download/);
  assert.match(offer, /787,584 parameters/);
  assert.ok(offer.includes(`${(size / 1e6).toFixed(2)} MB to download`), offer);
  assert.equal(await page.getByRole("textbox", { name: "Model", exact: true }).inputValue(), "pirates/stories-GGUF:stories-F32.gguf");
  await picture(page, "hub-offer");

  hub.cutAfter = 500_000;
  hub.cuts = 3;
  hub.damage = { file: "stories-F32.gguf", times: 1 };
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .facts", "pirates/stories-GGUF:stories-F32.gguf", 120_000);
  const begun = 1 << 20;
  const ranges = hub.requests.filter(({ path }) => path.endsWith(".gguf")).map(({ range }) => range);
  // The beginning is asked for once. After three breaks the file is whole, and damaged at its end: it comes once more.
  const parts = [0, 1, 2, 3].map((n) => `bytes=${begun + n * hub.cutAfter}-`);
  assert.deepEqual(ranges, [`bytes=0-${begun - 1}`, ...parts, undefined]);
  const stored = await storedModel(page);
  assert.deepEqual(Object.keys(stored), ["stories-F32.gguf"]);
  assert.equal(stored["stories-F32.gguf"], size);

  // The link names the file; the model opens again without the hub, and is removed.
  const link = await page.locator(".link input[readonly]").inputValue();
  assert.match(decodeURIComponent(link), /name=pirates\/stories-GGUF:stories-F32\.gguf/);
  const foreign = requests.filter((url) => !url.startsWith(shared.site.url));
  const addresses = [`${hub.url}/pirates/stories-GGUF/resolve/`, `${hub.url}/api/models/pirates/stories-GGUF/tree/`];
  assert.ok(foreign.length > 0 && foreign.every((url) => addresses.some((address) => url.startsWith(address))), foreign.join());
  hub.close();
  await page.goto(link);
  await page.reload();
  await page.getByRole("button", { name: "Open: pirates/stories-GGUF:stories-F32.gguf" }).click();
  await waitForText(page, "#model .facts", "pirates/stories-GGUF:stories-F32.gguf");
  await train(page);
  assert.equal((await downloaded(page, "Download for llama.cpp")).name, "stories-F32-adapter.gguf");
  await page.getByRole("button", { name: "Remove pirates/stories-GGUF:stories-F32.gguf" }).click();
  await page.locator(".kept li").waitFor({ state: "detached" });
  assert.deepEqual(problems, []);
  await profile.close();
});

/** Names and sizes of the files of the only hub model in the browser's storage, without its manifest. */
function storedModel(page) {
  return page.evaluate(async () => {
    let dir = await (await (await navigator.storage.getDirectory()).getDirectoryHandle("models")).getDirectoryHandle("hub");
    for (let depth = 0; depth < 2; depth++) for await (const inner of dir.values()) dir = inner;
    const files = {};
    for await (const [name, handle] of dir.entries()) if (name !== "manifest.json") files[name] = (await handle.getFile()).size;
    return files;
  });
}

test("a file that keeps arriving damaged is refused and not kept", { skip }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": repository({ "Q8/stories.gguf": gguf }) });
  hub.lists = true;
  hub.hides = true;
  hub.damage = { file: "stories.gguf", times: 9 };
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await askHub(page, hub.url, "pirates/stories:Q8/stories.gguf");
  await waitForText(page, "#model .notice.error", /stories\.gguf arrived twice with another checksum/);
  assert.equal(await page.locator(".kept li").count(), 0);
  hub.damage.times = 0;
  await askHub(page, hub.url, "pirates/stories:Q8/stories.gguf");
  await waitForText(page, "#model .facts", "pirates/stories:Q8/stories.gguf");
  await lookUp(page, hub.url, "pirates/stories:other.gguf");
  await waitForText(page, "#model .notice.error", /pirates\/stories at .* has no other\.gguf \(404\)/);
  await fill(page, { Model: "pirates/stories:notes.txt" });
  await page.getByRole("button", { name: "Look up" }).click();
  await waitForText(page, "#model .field-help.wrong", /owner\/name/);
  assert.match(await text(page, ".starters"), /SmolLM2 135M Instruct[^]*Apache 2\.0[^]*Gemma 3 270M[^]*Gemma terms/);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a download that the browser has no room for is not begun", { skip }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": repository({ "stories.gguf": large }) });
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const says = (quota) =>
    page.workers()[0].evaluate((quota) => {
      navigator.storage.estimate = async () => ({ quota, usage: 0 });
    }, quota);
  await says(2_000_000);
  await lookUp(page, hub.url, "pirates/stories:stories.gguf");
  await waitForText(page, "#model .offer", /3\.17 MB to download.*The browser grants this page 2\.00 MB: free disk space/s);
  const download = page.getByRole("button", { name: /^Download \d/ });
  assert.ok(await download.isDisabled());
  await picture(page, "hub-no-room");
  assert.deepEqual(await accessibilityProblems(page), []);

  // Where the browser grants less than it says, the download ends at that, and goes on once there is room.
  await says(50_000_000);
  const session = await page.context().newCDPSession(page);
  const origin = new URL(shared.site.url).origin;
  const { usage } = await session.send("Storage.getUsageAndQuota", { origin });
  await session.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: usage + 2_000_000 });
  await page.getByRole("button", { name: "Look up" }).click();
  await download.and(page.locator(":enabled")).click();
  await waitForText(page, "#model .notice.error", /The browser's storage for this page is full/);
  await session.send("Storage.overrideQuotaForOrigin", { origin });
  await page.getByRole("button", { name: "Look up" }).click();
  await download.and(page.locator(":enabled")).click();
  await waitForText(page, "#model .facts", "pirates/stories:stories.gguf");
  assert.deepEqual(problems, []);
  await profile.close();
});
