// Data that cannot be trained on, a GPU that goes away or is not there, an engine that dies: each is told, and the page goes on.

import assert from "node:assert/strict";
import { test } from "node:test";
import { accessibilityProblems, missing, openPage, picture, startBrowser, startForAll, text, waitForText } from "./browser.mjs";
import { conversations } from "./models.mjs";
import { finished, losses, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";

const shared = startForAll();

test("data that cannot be trained on say why, and other data are taken after", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await paste(page, '{"text": "fine"}\nthis is not JSON', "JSON");
  assert.match(await waitForText(page, "#data .notice.error", /JSON/), /line 2/);
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  await picture(page, "data-not-json");
  assert.deepEqual(await accessibilityProblems(page), []);

  const masked = JSON.stringify({ input_ids: [5, 6, 7, 8], labels: [-100, -100, -100, -100] });
  await paste(page, `${masked}\n${masked}`);
  await waitForText(page, "#data .notice.error", /train/);
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());

  await paste(page, JSON.stringify({ question: "no field that is known", reply: "none" }));
  await waitForText(page, "#data .notice.error", /question|fields|shape/);

  const hostile = '<img src=x onerror="globalThis.hurt = 1"><script>globalThis.hurt = 1</script>';
  await paste(page, JSON.stringify({ prompt: hostile, completion: hostile }));
  await waitForText(page, "#data .tokens", /onerror/);
  assert.equal(await page.evaluate(() => globalThis.hurt), undefined);
  assert.equal(await page.locator("#data .tokens img").count(), 0);

  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await page.locator("#data .notice.error").waitFor({ state: "detached" });
  assert.deepEqual(problems, []);
  await profile.close();
});

/** Keeps hold of each device that the worker is given, and lets a test take its memory away. */
async function watchDevices(page) {
  const worker = page.workers()[0];
  await worker.evaluate(() => {
    const request = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = async function (...args) {
      globalThis.lastDevice = await request.apply(this, args);
      if (globalThis.loseAll) globalThis.lastDevice.destroy();
      return globalThis.lastDevice;
    };
    const popErrorScope = GPUDevice.prototype.popErrorScope;
    GPUDevice.prototype.popErrorScope = function () {
      return globalThis.noMemory ? Promise.resolve(new GPUOutOfMemoryError("no memory is left")) : popErrorScope.call(this);
    };
  });
  return worker;
}

test("a run goes on by itself after a lost GPU", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 10);
  const worker = await watchDevices(page);
  await start(page);
  await waitForText(page, "#run .stats", /[4-9] of 10/);
  await worker.evaluate(() => globalThis.lastDevice.destroy());
  await waitForText(page, "#run .notice", /The GPU was lost after step \d+ .*goes on by itself/);
  assert.match(await finished(page), /Finished: 10 steps/);
  const steps = losses(await storedMetrics(page)).map(({ step }) => step);
  assert.deepEqual(steps, [...Array(10).keys()].map((i) => i + 1));
  assert.match(await page.locator(".chart-place").getAttribute("aria-label"), /Loss over 10 steps/);
  assert.deepEqual(problems, []);
  await profile.close();
});

test(
  "a GPU without memory, and one that is lost again and again, end the run but not the page: it goes on from the checkpoint",
  { skip: missing },
  async () => {
    const { page, profile } = await openPage(shared.browser, shared.site.url);
    await ready(page);
    await paste(page, conversations);
    await waitForText(page, "#data .position", /Example 1 of 8$/);
    await shortRun(page, 10);
    const worker = await watchDevices(page);
    await worker.evaluate(() => {
      globalThis.noMemory = true;
    });
    await start(page);
    await waitForText(page, "#run .notice.error", /memory.*smaller/is);
    await worker.evaluate(() => {
      globalThis.noMemory = false;
    });

    await start(page);
    await waitForText(page, "#run .stats", /[4-9] of 10/);
    await worker.evaluate(() => {
      globalThis.loseAll = true;
      globalThis.lastDevice.destroy();
    });
    await waitForText(page, "#run .notice.error", /lost/i);
    await worker.evaluate(() => {
      globalThis.loseAll = false;
    });
    assert.match(await text(page, ".run-status"), /checkpoint of step \d+ is intact/);
    await picture(page, "gpu-lost");
    assert.deepEqual(await accessibilityProblems(page), []);
    await page.getByRole("button", { name: "Resume" }).click();
    assert.match(await finished(page), /Finished: 10 steps/);
    assert.equal(await page.locator("#run .notice.error").count(), 0);
    await profile.close();
  },
);

test("an engine that dies is started again, with the model and the data that were open", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 3);
  await start(page);
  await page
    .locator("#run .run-status")
    .filter({ hasText: /Getting ready/ })
    .waitFor();
  await page.workers()[0].evaluate(() => {
    setTimeout(() => {
      throw new Error("the engine is dead");
    });
  });
  await waitForText(page, "#run .notice.error", /stopped unexpectedly.*the engine is dead.*started again/);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await page.getByText("Data options").click();
  await page.getByLabel("Train on").selectOption({ label: "Every token" });
  await waitForText(page, "#data .totals", /9\d %/);
  await page
    .getByRole("button", { name: /^(Start|New run)/ })
    .and(page.locator(":enabled"))
    .waitFor();
  await profile.close();
});

test("a browser without WebGPU says which browsers have it, and everything else works", { skip: missing }, async () => {
  const plain = await startBrowser({ gpu: false });
  const { page, profile, problems } = await openPage(plain, shared.site.url);
  await waitForText(page, ".no-gpu", /Firefox 141/);
  await waitForText(page, "#data .position", /Example 1 of 800$/);
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  assert.match(await text(page, "#settings .memory-total"), /B$/);
  await picture(page, "no-webgpu");
  assert.deepEqual(await accessibilityProblems(page), []);
  assert.deepEqual(problems, []);
  await profile.close();
  await plain.close();
});
