// Data as people have them: long ones, tables, other scripts, questions of their own.

import assert from "node:assert/strict";
import { appendFileSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { missing, openPage, picture, startForAll, text, waitForText } from "./browser.mjs";
import { removeAll } from "./models.mjs";
import { paste, ready } from "./steps.mjs";

const shared = startForAll();
const leftovers = [];
after(() => removeAll(leftovers));

const LINE = `${JSON.stringify({ prompt: "Tell me of the sea.", completion: "Arr! The sea is wide and blue, matey!" })}\n`;
/** The window must not stand still for longer, also on a busy machine. */
const MOST_STILL_MS = 1500;

/** Notes the longest time between two frames from now on. */
const watchFrames = (page) =>
  page.evaluate(() => {
    globalThis.longestStill = 0;
    let last = performance.now();
    const frame = () => {
      globalThis.longestStill = Math.max(globalThis.longestStill, performance.now() - last);
      last = performance.now();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });

async function stops(page) {
  const loading = page.locator("#data .loading");
  await loading.waitFor({ timeout: 20_000 });
  assert.match(await text(page, ".run-status"), /Reading the data/);
  await loading.getByRole("button", { name: "Stop" }).click();
  await loading.waitFor({ state: "hidden" });
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  const still = await page.evaluate(() => globalThis.longestStill);
  assert.ok(still < MOST_STILL_MS, `the page stood still for ${still} ms`);
}

test("long data are read beside the page, with their progress and a stop", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await page.locator("#data").getByRole("radio", { name: "Paste" }).check();
  await watchFrames(page);
  await page.evaluate(
    ([line, times]) => {
      const clipboardData = new DataTransfer();
      clipboardData.setData("text/plain", line.repeat(times));
      const area = document.querySelector("#data textarea");
      area.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    },
    [LINE, Math.ceil(15e6 / LINE.length)],
  );
  await waitForText(page, "#data .data-name", /Pasted text, 15\.0 MB/);
  assert.match(await waitForText(page, "#data .progress-text", /MB of/), /reading the data: [\d.]+ MB of 15\.0 MB/);
  await picture(page, "data-reading");
  await stops(page);

  const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
  leftovers.push(dir);
  const file = join(dir, "big.jsonl");
  writeFileSync(file, LINE.repeat(Math.ceil(100e6 / LINE.length)));
  await page.locator("#data").getByRole("radio", { name: "File" }).check();
  await page.locator("#data input[type=file]").setInputFiles(file);
  await waitForText(page, "#data .progress-text", /reading the data: [\d.]+ MB of 100 MB/);
  await stops(page);

  // Other data are taken at once, also while long ones are read.
  await page.locator("#data input[type=file]").setInputFiles(file);
  await waitForText(page, "#data .progress-text", /MB of 100 MB/);
  await page.locator("#data").getByRole("radio", { name: "Example" }).check();
  await ready(page);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a file of 500 MB shows its first examples at once, and stops at once", { skip: missing }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
  leftovers.push(dir);
  const file = join(dir, "big.jsonl");
  const piece = LINE.repeat(Math.ceil(10e6 / LINE.length));
  for (let at = 0; at < 50; at++) appendFileSync(file, piece);
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await page.locator("#data").getByRole("radio", { name: "File" }).check();
  await watchFrames(page);
  const timed = async (what, most, work) => {
    const began = performance.now();
    await work();
    const took = performance.now() - began;
    t.diagnostic(`${what}: ${took.toFixed(0)} ms`);
    assert.ok(took < most, `${what} took ${took} ms`);
  };
  await timed("preview", 3000, async () => {
    await page.locator("#data input[type=file]").setInputFiles(file);
    await page.locator("#data .totals", { hasText: "The first examples. The others are being read." }).waitFor();
  });
  assert.equal(await text(page, "#data .position"), "Example 1");
  assert.match(await text(page, "#data .tokens"), /Tell me of the sea/);
  await page.getByRole("button", { name: "Next" }).click();
  assert.equal(await text(page, "#data .position"), "Example 2");
  await waitForText(page, "#data .progress-text", /reading the data: [\d.]+ MB of 500 MB/);
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  await picture(page, "data-glimpse");
  await timed("stop", 1000, async () => {
    await page.locator("#data .loading").getByRole("button", { name: "Stop" }).click();
    await page.locator("#data .loading").waitFor({ state: "hidden" });
  });
  assert.equal(await page.locator("#data .preview").isVisible(), false);
  const still = await page.evaluate(() => globalThis.longestStill);
  assert.ok(still < MOST_STILL_MS, `the page stood still for ${still} ms`);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("tables and pairs of other names are read, and every script can be read in the tokens", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await paste(page, 'question,answer\n"What, does a cat say?",Meow!\nWhat does a dog say?,Woof!\n');
  await waitForText(page, "#data .position", /Example \d of 2$/);
  assert.match(await text(page, "#data .tokens"), /What, does a cat say\?.*Meow!/s);
  assert.equal(await page.getByLabel("Prompt", { exact: true }).inputValue(), "What, does a cat say?");

  await paste(page, JSON.stringify({ prompt: "你好，世界", completion: "مرحبا 👋🏽" }));
  await waitForText(page, "#data .position", /of 1$/);
  const shown = (await text(page, "#data .tokens")).replaceAll(/\s/g, "");
  assert.match(shown, /你好，世界/);
  assert.match(shown, /مرحبا/);
  const titles = await page.locator("#data .token[title^='tokens ']").count();
  assert.ok(titles > 0, "tokens that share a character name their ids together");

  await paste(page, '{"text": "fine, and long enough"}\n{"text": 5}\n{"text": "fine too, matey"}', "JSON");
  await waitForText(page, "#data .notice.error", /line 2/);
  await page.getByText("Data options").click();
  await page.getByLabel("Skip records that cannot be trained on").check();
  await waitForText(page, "#data .totals", /2 examples.*1 skipped/);
  assert.deepEqual(problems, []);
  await profile.close();
});
