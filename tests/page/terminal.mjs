// The terminal program on the browser's own software adapter, so that both compute the same.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { projectFile } from "./browser.mjs";
import { losses } from "./steps.mjs";

const LORAINE = process.env.LORAINE_BIN ?? projectFile("target/debug/loraine");
const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";

/** Why the terminal program cannot run here, or false. */
export const noTerminal = existsSync(LORAINE) ? (existsSync(SWIFTSHADER) ? false : `no ${SWIFTSHADER}`) : `no ${LORAINE} (cargo build)`;

/** Runs the program, and answers with what it prints. */
export function terminal(args) {
  const env = { ...process.env, VK_DRIVER_FILES: SWIFTSHADER, XDG_RUNTIME_DIR: tmpdir() };
  const done = spawnSync(LORAINE, args.map(String), { env, encoding: "utf8" });
  assert.equal(done.status, 0, done.stderr);
  return done.stdout;
}

/** The losses of a run by its directory. */
export function lossesOf(dir) {
  const lines = readFileSync(join(dir, "metrics.jsonl"), "utf8").trim().split("\n");
  return losses(lines.map((line) => JSON.parse(line)));
}

/** The first losses of a run in the page equal those of one in the terminal. */
export function assertSameLosses(found, expected) {
  for (const [at, { loss }] of expected.entries()) {
    assert.ok(Math.abs(found[at].loss - loss) <= 1e-4 * loss, `step ${at + 1}: ${found[at].loss} in the page, ${loss} in the terminal`);
  }
}
