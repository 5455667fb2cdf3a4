// The browser's storage fails while a run is under way: nothing is said to be saved that is not, and the adapter can be taken.

import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { test } from "node:test";
import { missing, openPage, picture, startForAll, text, waitForText } from "./browser.mjs";
import { conversations } from "./models.mjs";
import { downloaded, finished, losses, paste, ready, shortRun, start, storedMetrics } from "./steps.mjs";

const shared = startForAll();
/** `LORAINE_SOAK` tries so many times as many places of a fault. */
const PLACES = 6 * Number(process.env.LORAINE_SOAK ?? 1);
const STEPS = 3;

/** Lets a test fail the worker's operations on storage: those from `failFrom` to `failTo`, counted from 1. */
async function plant(page) {
  const worker = page.workers()[0];
  await worker.evaluate(() => {
    Object.assign(globalThis, { operations: 0, failFrom: Number.POSITIVE_INFINITY, failTo: Number.POSITIVE_INFINITY });
    const fails = () => {
      globalThis.operations += 1;
      return globalThis.operations >= globalThis.failFrom && globalThis.operations <= globalThis.failTo;
    };
    const full = () => {
      throw new DOMException("planted", "QuotaExceededError");
    };
    const stand = (type, name, applies, fault) => {
      const real = type.prototype[name];
      type.prototype[name] = function (...given) {
        return applies(given) && fails() ? fault() : real.apply(this, given);
      };
    };
    const always = () => true;
    const creates = (given) => given[1]?.create === true;
    // A write on a full disk is short; everything else is an error.
    stand(FileSystemSyncAccessHandle, "write", always, () => 0);
    for (const name of ["truncate", "flush"]) stand(FileSystemSyncAccessHandle, name, always, full);
    stand(FileSystemFileHandle, "createSyncAccessHandle", always, async () => full());
    for (const name of ["getFileHandle", "getDirectoryHandle"]) stand(FileSystemDirectoryHandle, name, creates, async () => full());
    stand(FileSystemDirectoryHandle, "removeEntry", always, async () => full());
  });
  const fail = (from, to = Number.POSITIVE_INFINITY) =>
    worker.evaluate(
      ([from, to]) => {
        const before = globalThis.operations;
        Object.assign(globalThis, { operations: 0, failFrom: from, failTo: to });
        return before;
      },
      [from, to],
    );
  return { fail, heal: () => fail(Number.POSITIVE_INFINITY) };
}

/** The newest whole copy of each run in the browser's storage: the step, and whether the run has come to its end. */
function stored(page) {
  return page.evaluate(async () => {
    const found = [];
    const root = await navigator.storage.getDirectory();
    const runs = await root.getDirectoryHandle("runs", { create: true });
    for await (const run of runs.values()) {
      let newest;
      const saves = await run.getDirectoryHandle("saves").catch(() => undefined);
      for await (const save of saves?.values() ?? []) {
        const read = async (name) => (await save.getFileHandle(name)).getFile();
        try {
          const manifest = JSON.parse(await (await read("manifest.json")).text());
          const sizes = await Promise.all(manifest.files.map(async ({ name }) => (await read(name)).size));
          if (!manifest.files.every(({ bytes }, i) => bytes === sizes[i])) continue;
          const { step, finished } = manifest;
          if (newest === undefined || step > newest.step || (step === newest.step && finished)) newest = { step, finished };
        } catch {
          // Half a copy.
        }
      }
      if (newest !== undefined) found.push(newest);
    }
    return found;
  });
}

async function removeRuns(page) {
  await page.evaluate(async () => {
    const root = await navigator.storage.getDirectory();
    await root.removeEntry("runs", { recursive: true }).catch(() => {});
  });
}

async function prepare(page, steps) {
  await ready(page);
  await paste(page, conversations);
  await waitForText(page, "#data .position", /Example 1 of 8$/);
  await shortRun(page, steps);
}

const notice = "#run .notice.error";

test("a run without room for its checkpoint pauses, says so, and goes on once there is room", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await prepare(page, 12);
  const { fail, heal } = await plant(page);
  await start(page);
  await waitForText(page, "#run .stats", /[2-9] of 12/);
  await fail(1);
  const status = await waitForText(page, ".run-status", /Paused at step \d+, which is not saved/);
  assert.match(await text(page, notice), /storage for this page is full.*Then continue, or stop and download the adapter/s);
  const [whole] = await stored(page);
  const said = /Step (\d+) is saved|Nothing of this run is saved yet/.exec(await text(page, notice));
  assert.equal(said[1] === undefined ? undefined : Number(said[1]), whole?.step, said[0]);
  assert.ok(Number(/step (\d+)/.exec(status)[1]) < 12);
  await picture(page, "storage-full");
  await heal();
  await page.getByRole("button", { name: "Continue" }).click();
  assert.match(await finished(page), /Finished: 12 steps/);
  assert.equal(await page.locator(notice).count(), 0);
  assert.deepEqual(await stored(page), [{ step: 12, finished: true }]);
  assert.equal(losses(await storedMetrics(page)).length, 12);
  await profile.close();
});

test("a run that comes to its end without any room shows its adapter, and says that it is not saved", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await prepare(page, 12);
  const { fail } = await plant(page);
  await start(page);
  await waitForText(page, "#run .stats", /[2-9] of 12/);
  await fail(1);
  await waitForText(page, ".run-status", /which is not saved/);
  await page.getByRole("button", { name: "Continue" }).click();
  assert.match(await finished(page), /Finished: 12 steps/);
  assert.match(await text(page, notice), /The result is not saved in this browser: download the adapter/);
  assert.equal(await page.getByRole("button", { name: "Resume" }).isVisible(), false);
  const zip = await downloaded(page, "Download the adapter");
  assert.ok(statSync(zip.path).size > 10_000);
  await profile.close();
});

test("a fault of any operation on the storage is told, and the run has its adapter all the same", { skip: missing, timeout: 1_800_000 }, async (t) => {
  const { page, profile, problems } = await openPage(shared.browser, shared.site.url);
  await prepare(page, STEPS);
  const { fail, heal } = await plant(page);
  /** One run; what the page said at its end. Continues where it pauses. */
  const run = async () => {
    await start(page);
    await page.locator(".run-status").filter({ hasText: /Getting ready|Training|Failed/ }).waitFor();
    for (;;) {
      const status = await waitForText(page, ".run-status", /Finished|Failed|Paused at/, 180_000);
      if (!status.startsWith("Paused")) return status;
      const [step] = /\d+/.exec(status);
      const whole = (await stored(page)).some((save) => save.step === Number(step));
      if (/and saved/.test(status)) assert.ok(whole, status);
      await page.getByRole("button", { name: "Continue" }).click();
      await page.locator(".run-status").filter({ hasNotText: /Paused at/ }).waitFor();
    }
  };
  await heal();
  assert.match(await run(), /Finished/);
  const operations = await heal();
  assert.ok(operations > 50, `${operations} operations`);
  t.diagnostic(`${operations} operations on the storage in a run of ${STEPS} steps`);
  const told = { finished: 0, unsaved: 0, refused: 0 };
  for (let i = 0; i < Math.min(PLACES, 2 * operations); i++) {
    const at = 1 + Math.floor((i * operations) / Math.min(PLACES, 2 * operations));
    const place = `operation ${at} of ${operations}${i % 2 === 0 ? "" : " and all later ones"}`;
    await removeRuns(page);
    await fail(at, i % 2 === 0 ? at : Number.POSITIVE_INFINITY);
    const status = await run();
    const notices = await page.locator(notice).allInnerTexts();
    const whole = await stored(page);
    await heal();
    if (/Failed/.test(status)) {
      // Only what a run begins with has to be there: nothing was trained.
      assert.match(notices.join(), /storage/, place);
      assert.deepEqual(whole, [], place);
      told.refused += 1;
      continue;
    }
    assert.match(status, new RegExp(`Finished: ${STEPS} steps`), place);
    const unsaved = notices.some((notice) => /not saved in this browser/.test(notice));
    assert.ok(unsaved || whole.some(({ step, finished }) => step === STEPS && finished), `${place}: ${JSON.stringify([notices, whole])}`);
    told[unsaved ? "unsaved" : "finished"] += 1;
    if (unsaved) {
      const zip = await downloaded(page, "Download the adapter");
      assert.ok(statSync(zip.path).size > 10_000, place);
    }
  }
  t.diagnostic(JSON.stringify(told));
  assert.ok(told.finished + told.unsaved > 0);
  assert.deepEqual(problems, []);
  await profile.close();
});

test("a worker that is killed in a run leaves the checkpoint that the page names", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await prepare(page, 12);
  await start(page);
  await waitForText(page, "#run .stats", /[4-9] of 12/);
  await page.workers()[0].evaluate(() => {
    setTimeout(() => {
      throw new Error("the engine is dead");
    });
  });
  const status = await waitForText(page, ".run-status", /checkpoint of step \d+ is intact/);
  const [whole] = await stored(page);
  assert.ok(whole.step >= Number(/step (\d+)/.exec(status)[1]), `${status}, but the storage has step ${whole.step}`);
  await page.getByRole("button", { name: "Resume" }).and(page.locator(":enabled")).click();
  assert.match(await finished(page), /Finished: 12 steps/);
  const steps = losses(await storedMetrics(page)).map(({ step }) => step);
  assert.deepEqual(steps, [...Array(12).keys()].map((i) => i + 1));
  await profile.close();
});

test("of two tabs that resume one run, one is told that the other has it", { skip: missing }, async () => {
  const { page, profile } = await openPage(shared.browser, shared.site.url);
  await prepare(page, 40);
  await start(page);
  await waitForText(page, "#run .stats", /[3-9] of 40/);
  await page.getByRole("button", { name: "Pause" }).click();
  await waitForText(page, ".run-status", /Paused at step \d+ and saved/);
  await page.close();
  const tabs = await Promise.all([profile.newPage(), profile.newPage()]);
  for (const tab of tabs) {
    await tab.goto(shared.site.url);
    await waitForText(tab, ".saved", /Resume/);
  }
  for (const tab of tabs) await tab.getByRole("button", { name: /^Resume/ }).click();
  const ends = await Promise.all(
    tabs.map(async (tab) => {
      await tab.locator(".saved, .run-status").filter({ hasText: /open in another tab|Training|Finished/ }).first().waitFor({ timeout: 180_000 });
      return (await text(tab, "main")).includes("This run is open in another tab");
    }),
  );
  assert.deepEqual(ends.sort(), [false, true]);
  const winner = (await text(tabs[0], "main")).includes("open in another tab") ? tabs[1] : tabs[0];
  assert.match(await finished(winner), /Finished: 40 steps/);
  assert.equal(losses(await storedMetrics(winner)).length, 40);
  await profile.close();
});
