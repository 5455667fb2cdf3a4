// The page in other languages: each is taken from the browser or chosen, and no text of the page stays English.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { accessibilityProblems, missing, openPage, picture, projectFile, startForAll, waitForText } from "./browser.mjs";
import { conversations } from "./models.mjs";
import { ready } from "./steps.mjs";

const shared = startForAll();
const STEPS = 2;
/** Names and words that several languages share. */
const SHARED = new Set(["Hub", "Name", "Text", "Format", "Alpha", "Dropout", "Base", "Loss", "Feed-forward", "Attention", "Error"]);

/** The translations of a language, by the English texts. */
function translations(name) {
  const source = readFileSync(projectFile(`web/src/texts/${name}.ts`), "utf8");
  const found = [...source.matchAll(/("(?:[^"\\]|\\.)*"|\b[A-Za-z]+):\s+("(?:[^"\\]|\\.)*"),/g)];
  const text = (quoted) => (quoted.startsWith('"') ? JSON.parse(quoted) : quoted);
  return new Map(found.map(([, english, translated]) => [text(english), text(translated)]));
}

const patternOf = (text) => new RegExp(`^${text.split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join(".+?")}$`);

/** Texts of the page that are still English: what stands in elements and what names them. Data, answers and commands are nobody's to translate. */
async function untranslated(page, table) {
  const texts = await page.evaluate(() => {
    const own = (node) => node.parentElement.closest(".tokens, .answer-text, textarea, pre, [lang]:not(html), .suggestions") === null;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) if (own(walker.currentNode)) found.push(walker.currentNode.data);
    for (const element of document.querySelectorAll("[aria-label]")) found.push(element.getAttribute("aria-label"));
    for (const element of document.querySelectorAll("[placeholder]")) found.push(element.placeholder);
    return found.map((text) => text.trim()).filter((text) => /[A-Za-z]{3}/.test(text));
  });
  const known = [...table].filter(([english, translated]) => english !== translated && !SHARED.has(english));
  const exact = new Set(known.map(([english]) => english));
  // A pattern of less than two words fits too much.
  const patterns = known.map(([english]) => english).filter((text) => text.includes("{}") && /[A-Za-z]{2,}[^A-Za-z]+[A-Za-z]{2,}/.test(text)).map(patternOf);
  return texts.filter((text) => exact.has(text) || patterns.some((pattern) => pattern.test(text)));
}

for (const [name, locale] of [
  ["de", "de-AT"],
  ["es", "es-MX"],
  ["zh", "zh-CN"],
]) {
  test(`the page in ${name}: every text, and a run`, { skip: missing }, async () => {
    const table = translations(name);
    const { page, profile, problems } = await openPage(shared.browser, shared.site.url, { locale });
    await page.locator(".tokens .token").first().waitFor();
    assert.equal(await page.evaluate(() => document.documentElement.lang), name);
    assert.ok(table.size > 300);
    assert.equal(await page.locator("h1").innerText(), table.get("Fine-tune a language model in this tab."));
    for (const summary of await page.locator("summary").all()) if (await summary.isVisible()) await summary.click();
    for (const way of ["folder", "hub", "demo"]) {
      await page.locator(`#model input[value="${way}"]`).check();
      assert.deepEqual(await untranslated(page, table), []);
    }
    await page.locator('#data input[value="text"]').check();
    await page.locator("#data textarea").fill(conversations);
    await page.locator("#data .paste button").click();
    await page.locator(".data-name").filter({ hasText: table.get("Pasted text") }).waitFor();
    for (const [label, value] of [["Sequence length", 64], ["Batch size", 2], ["Steps", STEPS]]) {
      await page.getByRole("textbox", { name: table.get(label), exact: true }).fill(String(value));
    }
    await picture(page, `language-${name}`);
    assert.deepEqual(await accessibilityProblems(page), []);
    await page.locator("#run .run-controls .primary:enabled:not([hidden])").click();
    const finished = table.get("Finished: {}.").split("{}")[0];
    await waitForText(page, ".run-status", new RegExp(`^${finished}`), 180_000);
    await page.waitForFunction(() => [...document.querySelectorAll(".answer-text")].every(({ textContent }) => textContent.length > 3), null, { timeout: 180_000 });
    assert.deepEqual(await untranslated(page, table), []);
    await picture(page, `language-${name}-result`);
    assert.deepEqual(problems, []);
    await profile.close();
  });
}

test("a language is chosen in the page, and stays", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  assert.equal(await page.evaluate(() => document.documentElement.lang), "en");
  await page.getByLabel("Language", { exact: true }).selectOption("de");
  await waitForText(page, "h1", translations("de").get("Fine-tune a language model in this tab."));
  await page.reload();
  await waitForText(page, "#data .position", /^Beispiel 1 von/);
  assert.match(await page.locator(".memory-total").innerText(), /^\d+(,\d+)? [kMG]?B$/);
  await page.getByLabel("Sprache", { exact: true }).selectOption("en");
  await ready(page);
  assert.deepEqual(problems, []);
  await profile.close();
});
