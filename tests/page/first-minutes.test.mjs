// What a newcomer meets: one thing to press, nothing trained but what is on screen, a start that can be called off, a result in view.

import assert from "node:assert/strict";
import { test } from "node:test";
import { accessibilityProblems, fill, missing, openPage, picture, startForAll, text, waitForText } from "./browser.mjs";
import { startHub } from "./hub-server.mjs";
import { conversations, demoModel } from "./models.mjs";
import { askBoth, askHub, finished, lookUp, paste, ready, shortRun, start } from "./steps.mjs";

const shared = startForAll();
const LAPTOP = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 844 };

const starter = (page) => page.getByRole("button", { name: "Start training" });

/** Where an element lies in the window. */
const place = (page, selector) =>
  page.locator(selector).evaluate((element) => {
    const { top, bottom, left, right } = element.getBoundingClientRect();
    return { top, bottom, left, right, width: innerWidth, height: innerHeight };
  });

/** No run can start, the page says why, shows nothing of another model, and leads to where it can be changed. */
async function blocked(page, reason) {
  await waitForText(page, ".run-status", reason);
  assert.ok(await starter(page).isDisabled());
  assert.equal(await page.locator("#model .facts").count(), 0, "facts of another model");
  assert.equal(await page.locator("#settings .memory").isVisible(), false, "memory of another model");
  assert.equal(await page.locator("#data .preview").isVisible(), false, "tokens of another model");
  await page.getByRole("button", { name: "Show me" }).click();
  await page.waitForFunction(() => {
    const { top } = document.querySelector("#model").getBoundingClientRect();
    return top >= -1 && top < innerHeight / 2;
  });
}

test("nothing is trained but what is on screen", { skip: missing }, async (t) => {
  const hub = await startHub(t, { "pirates/stories": demoModel });
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const model = page.locator("#model");

  await model.getByRole("radio", { name: "Files" }).check();
  await blocked(page, /Choose a model first/);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Choose a folder");
  await model.getByRole("radio", { name: "Hub" }).check();
  await blocked(page, /Fetch the model first/);
  await picture(page, "hub-not-fetched");
  await lookUp(page, hub.url, "pirates/nobody");
  await waitForText(page, "#model .notice.error", /404/);
  await blocked(page, /Fetch the model first/);
  await lookUp(page, hub.url, "pirates/stories");
  await waitForText(page, "#model .offer", /to download/);
  await blocked(page, /Download the model first/);
  await picture(page, "hub-offer");
  assert.deepEqual(await accessibilityProblems(page), []);
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .facts", "pirates/stories");
  await ready(page);
  await fill(page, { Model: "pirates/stories2" });
  await blocked(page, /Fetch the model first/);
  await fill(page, { Model: "pirates/stories" });
  await waitForText(page, "#model .facts", "pirates/stories");
  await ready(page);

  await model.getByRole("radio", { name: "Built-in" }).check();
  await waitForText(page, "#model .facts", /demo/);
  await ready(page);

  // The same with data: another source, and a text that was edited after it was used.
  const data = page.locator("#data");
  await data.getByRole("radio", { name: "File" }).check();
  await waitForText(page, ".run-status", /Choose a data file first/);
  assert.ok(await starter(page).isDisabled());
  assert.equal(await page.locator("#data .preview").isVisible(), false);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await page.getByLabel("Text", { exact: true }).fill(`${conversations}\n`);
  await waitForText(page, ".run-status", /Use this text/);
  assert.ok(await starter(page).isDisabled());
  await data.getByRole("radio", { name: "Example" }).check();
  await ready(page);
  assert.deepEqual(problems, []);
  await profile.close();

  const link = await openPage(shared.browser, `${shared.site.url}#model=hub&hub=${encodeURIComponent(hub.url)}&name=pirates%2Fstories&rank=4`);
  await blocked(link.page, /Fetch the model first/);
  await askHub(link.page, hub.url, "pirates/stories");
  await waitForText(link.page, "#model .facts", "pirates/stories");
  assert.equal(await link.page.getByLabel("Rank", { exact: true }).inputValue(), "4");
  await link.profile.close();
});

for (const [device, viewport] of Object.entries({ laptop: LAPTOP, phone: PHONE })) {
  test(`the first screen of a ${device} starts the demo, and its end is in view, asked and answered`, { skip: missing }, async () => {
    const { page, profile, problems } = await openPage(shared.browser, shared.site.url, { viewport });
    await ready(page);
    const demo = page.getByRole("button", { name: "Train the demo" });
    const { top, bottom, height } = await place(page, ".first .primary:not([hidden])");
    assert.ok(top > 0 && bottom < height, `the button stands at ${top} to ${bottom} of ${height}`);
    await fill(page, { "Sequence length": 128, "Batch size": 2, Steps: 12 });
    await page.evaluate(() => scrollTo(0, 0));
    await demo.and(page.locator(":enabled")).waitFor();
    await demo.focus();
    await page.keyboard.press("Enter");
    const bar = page.locator(".run-bar");
    await bar.waitFor();
    assert.notEqual(await page.evaluate(() => document.activeElement.tagName), "BODY", "the focus after the start");
    await waitForText(page, ".run-bar", /Step \d+ of 12, loss \d/);
    const inBar = await place(page, ".run-bar");
    assert.ok(inBar.bottom <= inBar.height + 1 && inBar.top > 0, JSON.stringify(inBar));
    for (const section of ["model", "data", "settings"]) {
      assert.equal(await page.locator(`#${section} .section-body`).isVisible(), false, `${section} is not folded`);
      const { top, bottom } = await place(page, `#${section}`);
      assert.ok(bottom - top < 140, `${section} is ${bottom - top} high`);
    }
    assert.match(await page.title(), /^\d+ %, loss|^Done/);
    assert.match(await finished(page), /Finished: 12 steps/);
    assert.equal(await page.title(), "Done: loraine");
    await page.waitForFunction(() => [...document.querySelectorAll(".answer-text")].every(({ textContent }) => textContent.length > 3), null, {
      timeout: 180_000,
    });
    // Scrolling is smooth.
    await page.waitForTimeout(700);
    const result = await place(page, "#result-title");
    assert.ok(result.top >= 0 && result.bottom < result.height / 2, `the result stands at ${result.top}`);
    assert.notEqual(await page.evaluate(() => document.activeElement.tagName), "BODY", "the focus after the end");
    assert.equal(await bar.isVisible(), false);
    assert.ok(await page.locator("#data .preview").isVisible());
    await picture(page, `demo-finished-${device}`);
    // An answer that the limit ends says so.
    await askBoth(page, "Tell me a story about a turtle and a horse.");
    assert.match((await page.locator(".answer .hint").allInnerTexts()).join(), /Cut at 32 tokens\./);
    assert.deepEqual(problems, []);
    await profile.close();
  });
}

test("a start can be called off at every moment, and the page goes on", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  // A first step of some seconds: a quick one may be over before the test has seen it.
  const story = "The turtle and the horse went down to the sea. ".repeat(12);
  const long = Array.from({ length: 8 }, () => JSON.stringify({ prompt: "Tell a story.", completion: story })).join("\n");
  await paste(page, long);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 2, { "Sequence length": 256, "Batch size": 8 });
  const seen = new Set();
  // Each time at a later stage, until a run gets as far as its first step.
  for (let tries = 0; tries < 12; tries++) {
    await start(page);
    const cancel = page.locator(".run-bar").getByRole("button", { name: "Cancel" });
    // A start that is over at once cannot be called off.
    const starting = await cancel.waitFor({ timeout: 5000 }).then(
      () => true,
      () => false,
    );
    if (!starting) break;
    const done = await page
      .waitForFunction(
        (seen) => {
          const now = [...document.querySelectorAll(".stage")].at(-1)?.textContent.replace(/\d.*/, "") ?? "";
          const ended = /Finished/.test(document.querySelector(".run-status")?.textContent ?? "");
          if (ended || document.querySelector(".stats")?.offsetParent) return "step";
          return now !== "" && !seen.includes(now) ? now : undefined;
        },
        [...seen],
        { polling: 5, timeout: 60_000 },
      )
      .then((handle) => handle.jsonValue());
    if (done === "step") break;
    seen.add(done);
    const called = await cancel.click({ timeout: 2000 }).then(
      () => true,
      () => false,
    );
    if (!called) break;
    await page.locator(".run-bar").waitFor({ state: "hidden" });
    await starter(page).and(page.locator(":enabled")).waitFor();
    await waitForText(page, "#data .position", /Example 1 of 8$/);
    assert.equal(await page.locator("#run .notice.error").count(), 0);
  }
  assert.ok(seen.size >= 2, `called off in ${[...seen].join(" | ")}`);
  if (await page.locator(".run-bar").isHidden()) await start(page);
  assert.match(await finished(page), /Finished: 2 steps/, await page.locator("#run").innerText());
  assert.equal(await page.locator(".saved li").count(), 0, "runs that were called off leave nothing");
  await profile.close();
});

test("a phone that is turned has a chart of its width", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url, { viewport: PHONE });
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 4);
  await start(page);
  await finished(page);
  for (const viewport of [{ width: 844, height: 390 }, PHONE, { width: 1280, height: 800 }, PHONE]) {
    await page.setViewportSize(viewport);
    // The chart follows its place with the next frames.
    await page
      .waitForFunction(() => {
        const widths = [".chart-place", ".chart-place .uplot"].map((it) => document.querySelector(it).getBoundingClientRect().width);
        return Math.abs(widths[0] - widths[1]) <= 1;
      })
      .catch(() => undefined);
    const { wide, chart } = await page.evaluate(() => ({
      wide: document.documentElement.scrollWidth,
      chart: document.querySelector(".chart-place").clientWidth,
    }));
    assert.ok(wide <= viewport.width, `the page is ${wide} wide in ${viewport.width}`);
    const drawn = await page.locator(".chart-place .uplot").evaluate((plot) => plot.getBoundingClientRect().width);
    assert.ok(Math.abs(drawn - chart) <= 1, `a chart of ${drawn} in ${chart}`);
  }
  await profile.close();
});

test("forced colors keep apart what colors told", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await page.emulateMedia({ forcedColors: "active" });
  await ready(page);
  const style = (selector, property) =>
    page
      .locator(selector)
      .first()
      .evaluate((element, property) => getComputedStyle(element)[property], property);
  assert.notEqual(await style("#data .tokens .token.trained", "backgroundColor"), await style("#data .tokens .token:not(.trained)", "backgroundColor"));
  const paper = await style("body", "backgroundColor");
  for (const part of [".histogram-bars span", ".memory-bar span", ".memory-legend .swatch", "#data .choice input:checked + span"]) {
    assert.notEqual(await style(part, "backgroundColor"), paper, part);
  }
  await picture(page, "forced-colors");
  await profile.close();
});

test("the page says something before its program runs, and without one", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url, { javaScriptEnabled: false });
  assert.match(await text(page, "h1"), /Fine-tune/);
  assert.match(await text(page, "main.notice"), /JavaScript/);
  const { left, right, width } = await place(page, "h1").catch(() => ({ left: 1, right: 2, width: 3 }));
  assert.ok(left > 0 && right <= width);
  await profile.close();
});

test("a software adapter is named for what it is", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  assert.match(await text(page, ".gpu"), /Software adapter: very slow/);
  await profile.close();
});

test("a second tab shows the run of the first", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 300);
  const other = await profile.newPage();
  await other.goto(shared.site.url);
  assert.equal(await other.locator(".other-tab").isVisible(), false);
  await start(page);
  await waitForText(other, ".other-tab", /demo: step \d+ of 300, loss \d/);
  const third = await profile.newPage();
  await third.goto(shared.site.url);
  await waitForText(third, ".other-tab", /demo: step \d+ of 300/);
  await picture(third, "second-tab");
  await page.getByRole("button", { name: "Stop and keep" }).click();
  await waitForText(page, ".run-status", /Stopped/);
  await other.locator(".other-tab").waitFor({ state: "hidden" });
  await profile.close();
});

test("epochs and steps are two views of the length of a run", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const value = (label) => page.getByLabel(label, { exact: true }).inputValue();
  // The demo: 120 steps of 8 over 800 examples.
  assert.deepEqual([await value("Steps"), await value("Epochs")], ["120", "1.2"]);
  await fill(page, { Epochs: "2" });
  assert.equal(await value("Steps"), "200");
  await fill(page, { Steps: "50" });
  assert.equal(await value("Epochs"), "0.5");
  assert.match(await text(page, ".run-status"), /50 steps: 0.5 epochs of 800 examples/);

  // One's own data: a twentieth is held out, at least one of 20.
  const many = Array.from({ length: 40 }, (_, at) => JSON.stringify({ prompt: `Count to ${at}.`, completion: `Arr! ${at}, matey!` })).join("\n");
  await paste(page, many);
  await waitForText(page, "#data .position", /of 40$/);
  await fill(page, { "Batch size": 2, Epochs: "1" });
  assert.match(await waitForText(page, ".run-status", /epoch of/), /19 steps: 1 epoch of 38 examples, 2 more for validation/);
  assert.equal(await value("Steps"), "19");
  await profile.close();
});
