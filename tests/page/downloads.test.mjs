// Large models from a hub: several requests at once, a download that goes on in any order, and models that are split into several files.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { missing, openPage, startForAll, text, waitForText } from "./browser.mjs";
import { split, spread } from "./gguf-files.mjs";
import { startHub } from "./hub-server.mjs";
import { conversations, demoModel, removeAll } from "./models.mjs";
import { finished, lookUp, paste, ready, shortRun, start } from "./steps.mjs";
import { noTerminal, terminal } from "./terminal.mjs";

const skip = missing ?? noTerminal;
const shared = startForAll();
const dir = mkdtempSync(join(tmpdir(), "loraine-page-"));
const GAP = 70 << 20;
/** What the page asks for at a time, and how many such requests are under way. */
const [PIECE, AT_ONCE] = [16 << 20, 4];
let small;
let large;
after(() => removeAll([dir]));
before(() => {
  if (skip) return;
  const data = join(dir, "data.jsonl");
  writeFileSync(data, conversations);
  terminal(["train", "--model", demoModel, "--data", data, "--out", join(dir, "run"), "--steps", 1, "--batch-size", 2, "--max-seq-len", 64]);
  const file = join(dir, "pirate.gguf");
  terminal(["merge", "--model", demoModel, "--adapter", join(dir, "run"), "--gguf", "--out", file, "--dtype", "f32"]);
  small = readFileSync(file);
  large = spread(small, GAP);
});

/** A directory of a hub with these files. */
function repository(files) {
  const place = mkdtempSync(join(dir, "hub-"));
  for (const [path, bytes] of Object.entries(files)) {
    mkdirSync(join(place, path, ".."), { recursive: true });
    writeFileSync(join(place, path), bytes);
  }
  return place;
}

/** SHA-256 of each whole file of the only hub model in the browser's storage, without the manifest. */
function stored(page) {
  return page.evaluate(async () => {
    let dir = await (await (await navigator.storage.getDirectory()).getDirectoryHandle("models")).getDirectoryHandle("hub");
    for (let depth = 0; depth < 2; depth++) for await (const inner of dir.values()) dir = inner;
    const sums = {};
    for await (const [name, handle] of dir.entries()) {
      if (name === "manifest.json") continue;
      const digest = await crypto.subtle.digest("SHA-256", await (await handle.getFile()).arrayBuffer());
      sums[name] = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    }
    return sums;
  });
}

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const weights = (hub) => hub.requests.filter(({ method, path }) => method === "GET" && path.endsWith(".gguf"));
/** Bytes of weights that the hub has sent. */
const sent = (hub) => weights(hub).reduce((sum, { sent = 0 }) => sum + sent, 0);

test("a large file comes by several requests, over breaks, and goes on after the tab is closed", { skip }, async (t) => {
  const hub = await startHub(t, { "pirates/large": repository({ "large.gguf": large }) });
  hub.lists = true;
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await lookUp(page, hub.url, "pirates/large:large.gguf");
  await page.getByRole("button", { name: /^Download \d/ }).waitFor();
  hub.requests.length = 0;
  await page.evaluate(() => {
    navigator.storage.persist = async () => {
      globalThis.askedToKeep = performance.now();
      return false;
    };
  });
  // Two pieces break off, and of those after them one never ends.
  [hub.cutAfter, hub.cuts] = [5_000_000, 2];
  hub.stall = PIECE + (1 << 20) + 7_000_000;
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .progress-text", /large\.gguf: 6[5-7]\.\d MB of/, 60_000);
  assert.ok(hub.mostAtOnce > 1 && hub.mostAtOnce <= AT_ONCE, `${hub.mostAtOnce} requests at once`);
  const asked = weights(hub).map(({ range }) => /^bytes=(\d+)-(\d*)$/.exec(range));
  assert.ok(asked.length >= 2 + large.length / PIECE - 1, `${asked.length} requests`);
  assert.ok(
    asked.every(([, from, to]) => (to === "" ? large.length : Number(to) + 1) - Number(from) <= PIECE),
    `a request for more than a piece: ${asked.map(([range]) => range)}`,
  );
  const before = sent(hub);
  assert.ok(await page.evaluate(() => globalThis.askedToKeep > 0), "the browser was not asked to keep its storage");

  // The tab is closed in the middle of it, and what is there is not asked for again.
  hub.stall = undefined;
  await page.reload();
  await ready(page);
  await page.locator("#model").getByRole("radio", { name: "Hub" }).check();
  assert.match(await text(page, ".kept"), /incomplete[^]*The browser may remove them/);
  hub.requests.length = 0;
  await page.getByRole("button", { name: "Resume: pirates/large:large.gguf" }).click();
  await waitForText(page, "#model .facts", "pirates/large:large.gguf", 60_000);
  const beginning = 1 << 20;
  // What a write of a mebibyte was still waiting for comes once more, and so does the beginning that tells what the model is.
  const again = sent(hub) + before - large.length;
  assert.ok(again >= 0 && again <= beginning + AT_ONCE * (1 << 20), `${again} bytes came twice`);
  assert.deepEqual(await stored(page), { "large.gguf": sha256(large) });
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a server without ranges, and a file that changes, end in the right file all the same", { skip }, async (t) => {
  const place = repository({ "large.gguf": large });
  const hub = await startHub(t, { "pirates/large": place });
  hub.lists = true;
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await lookUp(page, hub.url, "pirates/large:large.gguf");
  await page.getByRole("button", { name: /^Download \d/ }).waitFor();
  hub.ignoresRanges = true;
  hub.requests.length = 0;
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .facts", "pirates/large:large.gguf", 60_000);
  assert.deepEqual(await stored(page), { "large.gguf": sha256(large) });
  await page.getByRole("button", { name: "Remove pirates/large:large.gguf" }).click();
  await page.locator(".kept li").waitFor({ state: "detached" });

  // Stopped, and another version of the file stands there when it goes on.
  hub.ignoresRanges = false;
  hub.stall = PIECE + 3_000_000;
  await lookUp(page, hub.url, "pirates/large:large.gguf");
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .progress-text", /large\.gguf: [67]\d\.\d MB of/, 60_000);
  await page.locator("#model .loading").getByRole("button", { name: "Stop" }).click();
  await page.locator("#model .loading").waitFor({ state: "hidden" });
  hub.stall = undefined;
  const other = spread(small, GAP - (1 << 20));
  writeFileSync(join(place, "large.gguf"), other);
  await page.getByRole("button", { name: "Resume: pirates/large:large.gguf" }).click();
  // The model of this name is open from before, so its facts tell nothing.
  for (let tries = 0; tries < 300 && !("large.gguf" in (await stored(page))); tries++) await page.waitForTimeout(200);
  assert.deepEqual(await stored(page), { "large.gguf": sha256(other) });
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a split GGUF model is one entry of the list, is asked for its sizes, and trains", { skip }, async (t) => {
  const parts = split(small, 3);
  const name = (at) => `Q/stories-0000${at}-of-00003.gguf`;
  const files = Object.fromEntries(parts.map((bytes, at) => [name(at + 1), bytes]));
  const hub = await startHub(t, { "pirates/split": repository({ ...files, "other.gguf": small }) });
  hub.lists = true;
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  await lookUp(page, hub.url, "pirates/split");
  const list = await waitForText(page, ".file-choice", /stories/);
  assert.doesNotMatch(list, /00002|00003-of/);
  await page.getByRole("button", { name: `Choose ${name(1)}` }).click();
  const offer = await waitForText(page, "#model .offer", /to download/);
  const bytes = parts.reduce((sum, part) => sum + part.length, 0);
  assert.ok(offer.includes(`${(bytes / 1e6).toFixed(2)} MB to download`), offer);
  assert.match(offer, /787,584 parameters/);
  await page.getByRole("button", { name: /^Download \d/ }).click();
  await waitForText(page, "#model .facts", `pirates/split:${name(1)}`);
  const wanted = Object.entries(files).map(([path, bytes]) => [path.split("/")[1], sha256(bytes)]);
  assert.deepEqual(await stored(page), Object.fromEntries(wanted));
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, 2);
  await start(page);
  assert.match(await finished(page), /Finished: 2 steps/);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a busy hub is asked again when it wants to be", { skip }, async (t) => {
  const hub = await startHub(t, { "pirates/small": repository({ "small.gguf": small }) });
  hub.lists = true;
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await ready(page);
  [hub.busy, hub.retryAfter] = [1, 3];
  await lookUp(page, hub.url, "pirates/small:small.gguf");
  await page.getByRole("button", { name: /^Download \d/ }).waitFor();
  const [refused, next] = hub.requests;
  assert.ok(refused.refused && !next.refused && next.at - refused.at >= 3000, `${next.at - refused.at} ms`);
  assert.deepEqual(problems, []);
  await profile.close();
});
