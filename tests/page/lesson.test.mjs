// The lesson at the end of the page: its figures before and after a run, their numbers against each other, and on a phone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { accessibilityProblems, missing, openPage, picture, startForAll, waitForText } from "./browser.mjs";
import { conversations } from "./models.mjs";
import { finished, paste, ready, shortRun, start } from "./steps.mjs";

const shared = startForAll();
const RANK = 4;
/** Elements of one of the lesson's figures. */
const figure = (page, title) => page.locator(".lesson-figure").filter({ has: page.getByRole("heading", { name: title, exact: true }) });

/** The numbers of a figure's table with all their digits, line by line. */
async function numbers(page, title) {
  const all = await figure(page, title)
    .locator("tbody tr")
    .evaluateAll((rows) => rows.map((row) => [...row.querySelectorAll("data")].map((data) => Number(data.value))));
  assert.ok(all.flat().every(Number.isFinite), title);
  return all;
}

const near = (a, b, most, what) => assert.ok(Math.abs(a - b) <= most, `${what}: ${a} and ${b}`);

/** True if the page can be moved sideways. */
const overflows = (page) => page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);

async function checkBlock(page) {
  const block = await numbers(page, "A weight in 4 bits");
  assert.equal(block.length, 64);
  const absmax = Math.max(...block.map(([weight]) => Math.abs(weight)));
  const levels = new Map();
  for (const [weight, code, level, decoded, error] of block) {
    assert.ok(Number.isInteger(code) && code >= 0 && code < 16);
    assert.equal(levels.get(code) ?? level, level);
    levels.set(code, level);
    near(decoded, absmax * level, 1e-6, "decoded");
    near(error, weight - decoded, 1e-6, "error");
    // No other level that the block uses is nearer.
    for (const other of levels.values()) assert.ok(Math.abs(error) <= Math.abs(weight - absmax * other) + 1e-6);
  }
  return block;
}

test("the lesson shows a block in 4 bits and memory at once, and an adapter after a run", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  // The page itself asks for nothing of it before it is opened.
  const fetched = () => page.evaluate(() => performance.getEntriesByType("resource").filter(({ name }) => /\/lesson-[^/]*\.(js|css)$/.test(name)).length);
  assert.equal(await fetched(), 0);
  await page.getByText("Show the figures").click();
  await waitForText(page, ".lesson", /llama-2-13b/);
  assert.ok((await fetched()) > 0);

  const first = await checkBlock(page);
  const blocks = figure(page, "A weight in 4 bits");
  await blocks.getByRole("button", { name: "Another block" }).press("Enter");
  await waitForText(page, ".lesson", /Block 2 of 256/);
  assert.notDeepEqual(await checkBlock(page), first);
  await blocks.getByLabel("Matrix").selectOption("model.layers.3.mlp.down_proj.weight");
  await waitForText(page, ".lesson", /Block 1 of 640/);
  await checkBlock(page);

  const plans = await page
    .locator(".lesson-memory > div")
    .evaluateAll((models) => models.map((model) => [...model.querySelectorAll("data")].map((data) => Number(data.value))));
  assert.equal(plans.length, 3);
  for (const [full, lora, qlora] of plans) assert.ok(full > lora && lora > qlora && qlora > 0, plans.join());
  assert.ok(plans[1][2] < 6e9, `${plans[1][2]} bytes for 7B`);
  for (const at of [1, 2]) assert.ok(plans[at].every((bytes, method) => bytes > plans[at - 1][method]), plans.join());

  for (const title of ["What the adapter adds", "Singular values of the update"]) {
    assert.match(await figure(page, title).innerText(), /This figure shows an adapter, once a run has made one\./);
    assert.equal(await figure(page, title).locator("table").isVisible(), false);
  }
  await picture(page, "lesson-before");
  assert.deepEqual(await accessibilityProblems(page), []);

  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 12, { Rank: RANK, Alpha: 8, "Learning rate": 0.01 });
  await start(page);
  await page.locator(".lesson select:disabled").first().waitFor({ state: "attached" });
  assert.match(await finished(page), /Finished: 12 steps/);
  await page.locator(".lesson select:enabled").nth(1).waitFor();

  const outputs = await numbers(page, "What the adapter adds");
  assert.equal(outputs.length, 32);
  for (const [base, added, merged] of outputs) near(merged - base, added, 1e-6, "output");
  assert.ok(outputs.some(([, added]) => Math.abs(added) > 1e-4));
  const checkValues = async () => {
    const values = (await numbers(page, "Singular values of the update")).flat();
    assert.equal(values.length, RANK);
    assert.ok(values.every((value, i) => value >= 0 && (i === 0 || value <= values[i - 1])) && values[0] > 0, values.join());
    const text = await figure(page, "Singular values of the update").locator(".facts").innerText();
    const norm = Number(/Frobenius norm of the update\s+(\S+)/.exec(text)[1]);
    near(norm, Math.hypot(...values), 0.01 * norm, "norm");
    assert.ok(norm < Number(/Frobenius norm of W\s+(\S+)/.exec(text)[1]));
    return values;
  };
  const values = await checkValues();
  const adapter = figure(page, "What the adapter adds");
  assert.match(await adapter.locator(".facts").innerText(), /r\s+4\s+alpha \/ r\s+2\s/);
  await adapter.getByLabel("Module").selectOption("model.layers.3.mlp.up_proj");
  await waitForText(page, ".lesson", /Module\s*model\.layers\.3\.mlp\.up_proj\s*Frobenius/);
  assert.notDeepEqual(await checkValues(), values);
  for (const [base, added, merged] of await numbers(page, "What the adapter adds")) near(merged - base, added, 1e-6, "output");

  for (const summary of await page.locator(".lesson summary").all()) await summary.click();
  assert.deepEqual(await accessibilityProblems(page), []);
  await page.setViewportSize({ width: 390, height: 844 });
  assert.equal(await overflows(page), false);
  for (const summary of await page.locator(".lesson summary").all()) await summary.click();
  await picture(page, "lesson");
  await page.setViewportSize({ width: 390, height: 844 });
  assert.equal(await overflows(page), false);
  await page.emulateMedia({ forcedColors: "active" });
  assert.deepEqual(await accessibilityProblems(page), []);
  assert.deepEqual(problems, []);
  await profile.close();
});
