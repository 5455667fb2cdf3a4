// What comes of a run: adapters of several runs and of other people side by side, preferences between answers, a model card, and the
// adapter on a hub.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { accessibilityProblems, fill, missing, openPage, picture, projectFile, startForAll, text, waitForText } from "./browser.mjs";
import { startHub } from "./hub-server.mjs";
import { conversations, removeAll } from "./models.mjs";
import { committed, startPublishing } from "./publish-server.mjs";
import { askBoth, downloaded, finished, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";

const { unzipSync } = createRequire(projectFile("web/package.json"))("fflate");
const shared = startForAll();
const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
after(() => removeAll([dir]));

/** The zip of the first test's adapter, and what it answers. */
let zip;
let answered;
const PROMPT = "What does a cat say?";

async function trained(page, steps, more = {}) {
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, steps, { "Learning rate": 0.01, ...more });
  await start(page);
  assert.match(await finished(page), new RegExp(`Finished: ${steps} step`));
}

/** Asks the question once more, of all columns. */
async function askAgain(page) {
  const compare = page.getByRole("button", { name: "Compare" });
  await compare.and(page.locator(":enabled")).click({ timeout: 180_000 });
  await compare.and(page.locator(":disabled")).waitFor();
  await compare.and(page.locator(":enabled")).waitFor({ timeout: 180_000 });
  return page.locator(".answer-text").allInnerTexts();
}

test("two runs are compared, the better answers are noted, and the next run learns from them", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await trained(page, 12);
  const first = await askBoth(page, PROMPT);
  assert.equal(first.length, 2);
  await page.getByText("More settings").click();
  await trained(page, 3, { Rank: 4, Seed: 7 });
  await waitForText(page, ".adapters", /This run[^]*Run of/);
  await page.locator(".adapters").getByRole("checkbox", { name: /^Run of/ }).check();
  await page.getByLabel("Prompt").fill(PROMPT);
  await page.getByLabel("Maximum length").selectOption("32");
  const three = await askAgain(page);
  assert.equal(three.length, 3);
  // The same adapter gives the same answer, beside whichever others it lies.
  assert.equal(three[0], first[0]);
  assert.equal(three[2], first[1]);
  assert.deepEqual(await page.locator(".answer h3").allInnerTexts().then((titles) => titles.map((title) => title.replace(/of .*/, "of"))), [
    "Base",
    "This run",
    "Run of",
  ]);
  await picture(page, "three-answers");
  assert.deepEqual(await accessibilityProblems(page), []);

  await page.getByRole("button", { name: /^This answer is better: Run of/ }).click();
  const pairs = new Set([three[0], three[1]].filter((answer) => answer !== three[2])).size;
  await waitForText(page, ".preferences", new RegExp(`^${new Set([three[0], three[1]]).size === 2 ? pairs : 2} preference`));
  const file = await downloaded(page, "Download as JSONL");
  assert.equal(file.name, "preferences.jsonl");
  const records = readFileSync(file.path, "utf8").trim().split("\n").map((line) => JSON.parse(line));
  for (const { prompt, chosen, rejected } of records) {
    assert.deepEqual(prompt, [{ role: "user", content: PROMPT }]);
    assert.deepEqual(chosen, [{ role: "assistant", content: three[2] }]);
    assert.ok([three[0], three[1]].includes(rejected[0].content) && rejected[0].role === "assistant" && rejected.length === 1);
  }
  await picture(page, "preferences");

  await page.getByRole("button", { name: "Train on them" }).click();
  await waitForText(page, "#data .data-name", /preferences\.jsonl/);
  assert.equal(await page.getByLabel("Objective", { exact: true }).inputValue(), "dpo");
  assert.match(await page.getByLabel("Start from", { exact: true }).inputValue(), /^\/runs\//);
  await shortRun(page, 4, { "Sequence length": 256, "Batch size": 1 });
  await start(page);
  assert.match(await finished(page), /Finished: 4 steps/);
  await page.reload();
  await page.getByRole("button", { name: /^Open: .*4 steps/ }).click();
  await waitForText(page, ".run-status", /Finished: 4 steps/);
  const again = await downloaded(page, "Download the adapter");
  const files = unzipSync(readFileSync(again.path));
  const toml = new TextDecoder().decode(files["demo-adapter/run.toml"]);
  assert.match(toml, /objective = "dpo"/);
  assert.match(toml, /init-adapter = "first-adapter"/);
  const metrics = new TextDecoder().decode(files["demo-adapter/metrics.jsonl"]).trim().split("\n").map((line) => JSON.parse(line));
  const [{ loss, ...named }] = metrics;
  // Before the first step the model is its own reference.
  assert.ok(Math.abs(loss - Math.log(2)) < 1e-3, `loss ${loss}`);
  assert.ok("rewards/accuracies" in named && "logps/chosen" in named, Object.keys(named).join());
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a run that begins during an answer ends the answer", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await trained(page, 1);
  // The page asks its first question by itself.
  await page.locator('.answer[aria-busy="true"]').waitFor();
  await start(page);
  assert.match(await finished(page), /Finished: 1 step/);
  assert.equal(await page.locator(".comparison .notice.error").count(), 0);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a run that starts from an adapter and is paused goes on after a reload, without the adapter", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await trained(page, 2);
  await page.getByText("More settings").click();
  await page.getByLabel("Start from", { exact: true }).selectOption({ label: "This run" });
  await shortRun(page, 8);
  await start(page);
  await waitForText(page, "#run .stats", /[2-6] of 8/);
  await page.getByRole("button", { name: "Pause" }).click();
  await waitForText(page, ".run-status", /Paused at step/);
  await page.reload();
  await page.getByRole("button", { name: /^Discard: .*2 steps/ }).click();
  await page.getByRole("button", { name: /^Resume/ }).click();
  assert.match(await finished(page), /Finished: 8 steps/);
  assert.equal((await storedMetrics(page)).filter(({ loss }) => loss !== undefined).length, 8);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("the model card is shown, edited, and comes with the zip", { skip: missing }, async () => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await trained(page, 6);
  answered = await askBoth(page, PROMPT);
  await page.getByText("Model card", { exact: true }).click();
  const card = page.getByLabel("README.md", { exact: true });
  await page.waitForFunction(() => document.querySelector(".model-card textarea").value.includes("## Training"));
  const shown = await card.inputValue();
  assert.match(shown, /^---\nbase_model: "loraine-demo\/model"\n/);
  assert.match(shown, /\| rank \| 8 \|[^]*\| lr \| 0\.01 \|[^]*\| steps \| 6 \|\n\| loss of the last step \| \d\.\d{4} \|/);
  assert.doesNotMatch(shown, /\/runs\/|\/models\//);
  const plain = await downloaded(page, "Download the adapter");
  const cardOf = (path) => new TextDecoder().decode(unzipSync(readFileSync(path))["demo-adapter/README.md"]);
  assert.equal(cardOf(plain.path), shown);
  await card.fill(`${shown}\nMade by a pirate.\n`);
  const edited = await downloaded(page, "Download the adapter");
  zip = readFileSync(edited.path);
  assert.match(cardOf(edited.path), /Made by a pirate\.\n$/);
  await picture(page, "model-card");
  assert.deepEqual(await accessibilityProblems(page), []);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("the adapter of somebody else answers without a run: from a zip, and from a hub by its name", { skip: missing }, async (t) => {
  const place = join(dir, "friend");
  mkdirSync(place);
  for (const [path, bytes] of Object.entries(unzipSync(zip))) writeFileSync(join(place, path.split("/")[1]), bytes);
  const hub = await startHub(t, { "pirates/arr-lora": place });
  const { page, profile, problems, requests } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  const copy = join(dir, "friend.zip");
  writeFileSync(copy, zip);
  await page.getByText("Open another adapter").click();
  await page.locator(".adapter-panel input[type=file]").setInputFiles(copy);
  await waitForText(page, ".adapters", /friend[^]*for loraine-demo\/model/);
  await page.getByLabel("Prompt").fill(PROMPT);
  await page.getByLabel("Maximum length").selectOption("32");
  assert.deepEqual(await askAgain(page), answered);

  await page.getByLabel("Adapter on a hub").fill(`${hub.url}/pirates/arr-lora`);
  await page.getByRole("button", { name: "Fetch the adapter" }).click();
  await waitForText(page, ".adapters", /pirates\/arr-lora/);
  assert.deepEqual(await askAgain(page), [...answered, answered[1]]);
  await picture(page, "other-adapters");
  assert.deepEqual(await accessibilityProblems(page), []);
  const foreign = requests.filter((url) => !url.startsWith(shared.site.url) && !url.startsWith("blob:"));
  assert.ok(foreign.length > 0 && foreign.every((url) => url.startsWith(`${hub.url}/pirates/arr-lora/resolve/`)), foreign.join());
  assert.ok(hub.requests.every(({ cookie, referer }) => cookie === undefined && referer === undefined));

  // They stay until they are removed.
  await page.reload();
  await ready(page);
  assert.deepEqual(await page.locator(".adapters .checkbox").allInnerTexts().then((titles) => titles.sort()), ["friend", "pirates/arr-lora"]);
  await page.getByRole("button", { name: "Remove friend" }).click();
  await page.locator(".adapters li", { hasText: "friend" }).waitFor({ state: "detached" });

  // What is no adapter says so.
  const empty = join(dir, "empty.zip");
  writeFileSync(empty, "not a zip");
  await page.getByText("Open another adapter").click();
  await page.locator(".adapter-panel input[type=file]").setInputFiles(empty);
  await waitForText(page, ".adapter-panel .notice.error", /empty\.zip is not a zip file/);
  await page.getByLabel("Adapter on a hub").fill("not a name");
  await page.getByRole("button", { name: "Fetch the adapter" }).click();
  await waitForText(page, ".adapter-panel .field-help.wrong", /owner\/name/);
  await page.getByLabel("Adapter on a hub").fill(`${hub.url}/pirates/nothing`);
  await page.getByRole("button", { name: "Fetch the adapter" }).click();
  await waitForText(page, ".adapter-panel .notice.error", /pirates\/nothing.*404/);
  assert.deepEqual(problems, []);
  await profile.close();
});

/** Whether a text lies anywhere that outlives the page: storage of the origin, cookies, and the address. */
async function storedAnywhere(page, needle) {
  return page.evaluate(async (needle) => {
    const found = [];
    if (JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href]).includes(needle)) found.push("page storage");
    const walk = async (dir, path) => {
      for await (const [name, handle] of dir.entries()) {
        if (handle.kind === "directory") await walk(handle, `${path}/${name}`);
        else if ((await (await handle.getFile()).text()).includes(needle)) found.push(`${path}/${name}`);
      }
    };
    await walk(await navigator.storage.getDirectory(), "");
    return found;
  }, needle);
}

test("publishing sends the token to the hub alone, and keeps it only where that was asked for", { skip: missing }, async (t) => {
  const TOKEN = "hf_secret_of_this_test";
  const target = await startPublishing(t, TOKEN);
  const { page, profile, problems, requests } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await trained(page, 3);
  await page.getByRole("button", { name: "Compare" }).and(page.locator(":enabled")).waitFor({ timeout: 180_000 });
  await page.getByText("Publish", { exact: true }).first().click();
  const publish = page.getByRole("button", { name: "Publish", exact: true });
  await publish.click();
  await waitForText(page, ".publish .field-help.wrong", /you\/name/);
  await fill(page, { "Hub to publish on": target.url, Repository: "matey/arr-lora" });
  await page.getByLabel("Token with write access").fill("wrong");
  await publish.click();
  await waitForText(page, ".publish .notice.error", /does not let this token write to matey\/arr-lora \(401\).*Invalid credentials/);
  assert.equal(target.files.requests.length, 0);
  target.hub.requests.length = 0;

  await page.getByLabel("Token with write access").fill(TOKEN);
  await picture(page, "publish");
  assert.deepEqual(await accessibilityProblems(page), []);
  await publish.click();
  await waitForText(page, ".publish .notice", new RegExp(`Published: ${target.url}/matey/arr-lora`));
  const own = await downloaded(page, "Download the adapter");
  const zipped = Object.entries(unzipSync(readFileSync(own.path))).map(([path, bytes]) => [path.split("/")[1], Buffer.from(bytes)]);
  const sent = committed(target);
  assert.deepEqual([...sent.keys()].sort(), zipped.map(([name]) => name).sort());
  for (const [name, bytes] of zipped) assert.ok(bytes.equals(sent.get(name)), `${name} differs`);
  assert.deepEqual(JSON.parse(target.hub.requests.find(({ path }) => path === "/api/repos/create").bytes), {
    type: "model",
    organization: "matey",
    name: "arr-lora",
    private: true,
  });

  assert.ok(target.hub.requests.every(({ authorization }) => authorization === `Bearer ${TOKEN}`));
  assert.ok(target.files.requests.length === 1 && target.files.requests[0].headers["x-amz-meta"] === "1");
  for (const { headers, path, bytes } of target.files.requests) assert.ok(!JSON.stringify([headers, path]).includes(TOKEN) && !bytes.includes(TOKEN));
  assert.ok([...target.hub.requests, ...target.files.requests].every(({ cookie, referer }) => cookie === undefined && referer === undefined));
  const origins = new Set(requests.filter((url) => !url.startsWith("blob:")).map((url) => new URL(url).origin));
  assert.deepEqual([...origins].sort(), [new URL(shared.site.url).origin, target.url, target.files.url].sort());
  assert.deepEqual(await storedAnywhere(page, TOKEN), []);
  assert.ok(!(await page.locator(".link input[readonly]").inputValue()).includes(TOKEN));

  // A hub that leads elsewhere gets no further.
  const thief = await startPublishing(t, TOKEN);
  target.redirects = `${thief.url}/api/repos/create`;
  await publish.click();
  await waitForText(page, ".publish .notice.error", /cannot be reached.*redirect/);
  assert.equal(thief.hub.requests.length, 0);
  target.redirects = undefined;
  [target.exists, target.refuses] = [true, 400];
  await publish.click();
  await waitForText(page, ".publish .notice.error", /answered 400 for the commit: the card is wrong/);

  await page.getByLabel("Keep the token in this browser").check();
  assert.deepEqual(await storedAnywhere(page, TOKEN), ["page storage"]);
  await page.reload();
  await ready(page);
  assert.equal(await page.locator(".publish input[type=password]").inputValue(), TOKEN);
  await page.getByRole("button", { name: /^Open/ }).click();
  await page.getByText("Publish", { exact: true }).first().click();
  await page.getByLabel("Keep the token in this browser").uncheck();
  assert.deepEqual(await storedAnywhere(page, TOKEN), []);
  assert.doesNotMatch(await text(page, ".publish"), new RegExp(TOKEN));
  // The browser itself tells of the redirect that was not followed.
  assert.deepEqual(
    problems.filter((problem) => !/redirect/i.test(problem)),
    [],
  );
  await profile.close();
});
