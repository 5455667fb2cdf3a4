// The page itself: every state looked at, by axe-core and in pictures; the keyboard, the link, the policy, and no network.

import assert from "node:assert/strict";
import { test } from "node:test";
import { serve } from "../../web/serve.mjs";
import { accessibilityProblems, fill, missing, openPage, picture, projectFile, startForAll, startServer, waitForText, watch } from "./browser.mjs";
import { conversations } from "./models.mjs";
import { askBoth, finished, paste, ready, shortRun, start } from "./steps.mjs";

const shared = startForAll();

async function look(page, state) {
  await picture(page, state);
  assert.deepEqual(await accessibilityProblems(page), [], state);
}

test("every state of the page can be read and used", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await look(page, "ready");
  for (const [section, way] of [
    ["#model", "Files"],
    ["#model", "Hub"],
    ["#data", "File"],
    ["#data", "Paste"],
  ]) {
    await page.locator(section).getByRole("radio", { name: way }).check();
  }
  await page.getByText("Data options").click();
  await page.getByText("More settings").click();
  await look(page, "all-open");
  // What is trained is what is on screen: with nothing chosen there, nothing is.
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  await page.locator("#model").getByRole("radio", { name: "Built-in" }).check();

  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await fill(page, { Rank: "many" });
  await waitForText(page, "#settings .field-help.wrong", /number/);
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  await fill(page, { Rank: "4" });
  await shortRun(page, 200);
  await start(page);
  await waitForText(page, "#run .stats", /[4-9] of 200/);
  await look(page, "training");
  await page.getByRole("button", { name: "Pause" }).click();
  await waitForText(page, ".run-status", /Paused/);
  await look(page, "paused");
  await page.reload();
  await waitForText(page, ".saved", /Resume/);
  await look(page, "kept");
  await page.getByRole("button", { name: /^Resume/ }).click();
  await waitForText(page, ".run-status", /Training/);
  await page.getByRole("button", { name: "Stop and keep" }).click();
  await waitForText(page, ".run-status", /Stopped/);
  assert.ok(await page.getByRole("button", { name: "Resume" }).isVisible());
  await askBoth(page, "Who are you?");
  await look(page, "result");
  assert.deepEqual(problems, []);
  await profile.close();
});

test("the memory picture follows the settings", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const adapter = page
    .locator(".memory-legend li")
    .filter({ hasText: /adapter/i })
    .locator(".bytes");
  const before = await adapter.innerText();
  await page.getByLabel("Rank, usual values").fill("6");
  await page.waitForFunction(
    (before) =>
      [...document.querySelectorAll(".memory-legend li")].some((li) => /adapter/i.test(li.textContent) && !li.textContent.includes(before)),
    before,
  );
  assert.equal(await page.getByLabel("Rank", { exact: true }).inputValue(), "64");
  await profile.close();
});

test("the keyboard alone reaches and runs everything", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const reached = new Set();
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.labels?.[0]?.textContent ?? document.activeElement.textContent));
  }
  for (const name of [
    "Built-in",
    "Example",
    "Data options",
    "Next",
    "Rank",
    "Learning rate",
    "Target modules",
    "More settings",
    "Start training",
  ]) {
    assert.ok(
      [...reached].some((text) => text.startsWith(name)),
      `${name} is not reached: ${[...reached].join(" | ")}`,
    );
  }
  await page.getByLabel("Built-in").focus();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("button", { name: "Choose a folder" }).waitFor();
  await profile.close();
});

test("a link brings the recipe back, asks no network, and holds nothing private", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 2, { Rank: 4, Alpha: 12, "Learning rate": 0.002 });
  await page.getByLabel("Target modules").selectOption({ label: "Attention" });
  await page.getByText("More settings").click();
  await page.getByLabel("Optimizer", { exact: true }).selectOption("adamw8bit");
  const link = await page.locator(".link input[readonly]").inputValue();
  assert.doesNotMatch(decodeURIComponent(link), /matey|pasted/);
  const again = await openPage(shared.browser, link);
  // Many examples are longer than the link's sequences: the others are shown, and the data are refused.
  await waitForText(again.page, "#data .position", /Example \d/);
  const value = (label) => again.page.getByLabel(label, { exact: true }).inputValue();
  assert.deepEqual(await Promise.all(["Rank", "Alpha", "Learning rate", "Steps", "Sequence length", "Batch size"].map(value)), [
    "4",
    "12",
    "0.002",
    "2",
    "64",
    "2",
  ]);
  assert.equal(await value("Target modules"), "q_proj,k_proj,v_proj,o_proj");
  assert.equal(await value("Optimizer"), "adamw8bit");

  const hub =
    "#model=hub&hub=https%3A%2F%2Fhub.invalid&name=owner%2Fname%40v1&rank=-3&steps=1e99&lr=x&targets=%3Cimg%20src%3Dx%3E&surprise=1";
  const hostile = await openPage(shared.browser, `${shared.site.url}${hub}`);
  await waitForText(hostile.page, ".run-status", /Fetch the model first/);
  assert.equal(await hostile.page.getByRole("textbox", { name: "Model", exact: true }).inputValue(), "owner/name@v1");
  assert.equal(await hostile.page.getByLabel("Rank", { exact: true }).inputValue(), "8");
  assert.deepEqual(
    hostile.requests.filter((url) => !url.startsWith(shared.site.url)),
    [],
  );
  for (const { profile } of [again, hostile]) await profile.close();
  await profile.close();
});

test("the policy lets nothing in that is not the page's own, and nothing out", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const tried = await page.evaluate(async () => {
    const outcome = {};
    const attempt = async (name, action) => {
      try {
        await action();
        outcome[name] = "allowed";
      } catch (error) {
        outcome[name] = error.name;
      }
    };
    await attempt("markup", () => {
      document.createElement("div").innerHTML = "<b>x</b>";
    });
    await attempt("elsewhere", () => fetch("https://elsewhere.invalid/"));
    await attempt("local", () => fetch("http://127.0.0.1:9/"));
    await attempt("inline", () => {
      const script = document.createElement("script");
      script.text = "globalThis.ran = 1";
      document.head.append(script);
      if (globalThis.ran !== 1) throw new TypeError("did not run");
    });
    // Only code of the page's own turns is bound by its policy; what a test evaluates directly is let through.
    await new Promise((turn) => setTimeout(() => attempt("eval", () => globalThis.eval("1")).then(turn)));
    return outcome;
  });
  assert.deepEqual(
    Object.entries(tried).filter(([, outcome]) => outcome === "allowed"),
    [],
  );
  const response = await page.request.get(shared.site.url);
  assert.match(response.headers()["content-security-policy"], /default-src 'none'.*frame-ancestors 'none'/);
  await profile.close();
});

test("where the host sends no headers, the worker has its policy from the second visit on", { skip: missing }, async () => {
  const bare = await serve(projectFile("web/dist"), 0, { policy: false });
  const { page, profile, problems } = await openPage(shared.browser, bare.url);
  await ready(page);
  const evaluates = () =>
    page.workers()[0].evaluate(
      () =>
        // Only code of the worker's own turns is bound by its policy.
        new Promise((told) => {
          setTimeout(() => {
            try {
              told(new Function("return true")());
            } catch (error) {
              told(error.name);
            }
          });
        }),
    );
  assert.equal(await evaluates(), true);
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  const response = await page.reload();
  assert.match(response.headers()["content-security-policy"], /default-src 'none'.*frame-ancestors 'none'/);
  await ready(page);
  assert.equal(await evaluates(), "EvalError");
  assert.deepEqual(problems, []);
  await profile.close();
  bare.server.closeAllConnections();
  bare.server.close();
});

test("after the first load the page opens and trains without a network", { skip: missing }, async () => {
  const alone = await startServer();
  const { page, profile, problems } = await openPage(shared.browser, alone.url);
  await ready(page);
  await page.evaluate(() => navigator.serviceWorker.ready);
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  alone.server.closeAllConnections();
  await new Promise((closed) => alone.server.close(closed));
  await page.reload();
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 2);
  await start(page);
  assert.match(await finished(page), /Finished: 2 steps/);
  // A link opens as well: its settings stand behind the #.
  const other = await profile.newPage();
  watch(other);
  await other.goto(`${alone.url}#rank=2`);
  await ready(other);
  assert.equal(await other.getByLabel("Rank", { exact: true }).inputValue(), "2");
  assert.deepEqual(problems, []);
  await profile.close();
});
