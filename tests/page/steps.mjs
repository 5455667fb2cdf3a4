// What a person does on the page, in words of the tests.

import { fill, waitForText } from "./browser.mjs";

export async function ready(page) {
  await waitForText(page, "#data .position", /Example 1/);
  await page.getByRole("button", { name: "Start training" }).and(page.locator(":enabled")).waitFor();
}

export async function paste(page, text, kind = "Detect automatically") {
  await page.locator("#data").getByRole("radio", { name: "Paste" }).check();
  await page.getByLabel("Text", { exact: true }).fill(text);
  await page.getByLabel("Format", { exact: true }).selectOption({ label: kind });
  await page.getByRole("button", { name: "Use this text" }).click();
}

/** A few quick steps on short sequences. */
export async function shortRun(page, steps, more = {}) {
  await fill(page, { "Sequence length": 64, "Batch size": 2, Steps: steps, ...more });
}

export async function start(page) {
  await page
    .getByRole("button", { name: /^(Start|New run)/ })
    .and(page.locator(":enabled"))
    .click();
}

export async function finished(page) {
  return waitForText(page, ".run-status", /Finished|Failed/, 180_000);
}

/** Asks base and adapter, and answers with what they say. */
export async function askBoth(page, prompt, timeout = 180_000) {
  await page.getByLabel("Prompt").fill(prompt);
  await page.getByLabel("Maximum length").selectOption("32");
  // The page asks its first question by itself.
  await page.getByRole("button", { name: "Compare" }).and(page.locator(":enabled")).click({ timeout });
  await page.getByRole("button", { name: "Compare" }).and(page.locator(":disabled")).waitFor();
  await page.getByRole("button", { name: "Compare" }).and(page.locator(":enabled")).waitFor({ timeout });
  return page.locator(".answer-text").allInnerTexts();
}

/** Looks a model up; what comes of it is for the caller to see. */
export async function lookUp(page, hub, name) {
  await page.locator("#model").getByRole("radio", { name: "Hub" }).check();
  await fill(page, { Hub: hub, Model: name });
  await page.getByRole("button", { name: "Look up" }).click();
}

export async function askHub(page, hub, name) {
  await lookUp(page, hub, name);
  await page.getByRole("button", { name: /^Download \d/ }).click();
}

/** The lines of `metrics.jsonl` in the newest copy that the browser's storage has of the only run. */
export async function storedMetrics(page) {
  const text = await page.evaluate(async () => {
    const root = await navigator.storage.getDirectory();
    const runs = await root.getDirectoryHandle("runs");
    let newest = { step: -1, text: "" };
    for await (const run of runs.values()) {
      const saves = await run.getDirectoryHandle("saves");
      for await (const save of saves.values()) {
        const read = async (name) => (await (await save.getFileHandle(name)).getFile()).text();
        const { step } = JSON.parse(await read("manifest.json"));
        if (step >= newest.step) newest = { step, text: await read("metrics.jsonl") };
      }
    }
    return newest.text;
  });
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
}

export const losses = (metrics) => metrics.filter((line) => line.loss !== undefined).map(({ step, loss }) => ({ step, loss }));

/** A real drop of a path, as from a file manager. */
export async function drop(page, selector, path) {
  const session = await page.context().newCDPSession(page);
  await page.locator(selector).scrollIntoViewIfNeeded();
  const box = await page.locator(selector).boundingBox();
  const at = { x: box.x + box.width / 2, y: box.y + 12, data: { items: [], files: [path], dragOperationsMask: 1 } };
  for (const type of ["dragEnter", "dragOver", "drop"]) await session.send("Input.dispatchDragEvent", { type, ...at });
  await session.detach();
}

/** Presses a button that downloads something, and answers with the name and the path of what comes. */
export async function downloaded(page, label) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: label, exact: true }).click()]);
  return { name: download.suggestedFilename(), path: await download.path() };
}
