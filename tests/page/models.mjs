// Models for the tests of the page, and data that fit them.

import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { projectFile } from "./browser.mjs";

const stories = projectFile("../shared/models/stories260K");

export const demoModel = projectFile("src/demo/model");

/** A model directory from outside the page: stories260K where it lies beside the project, else the built-in model's. */
export const folder = existsSync(stories) ? { dir: stories, name: "stories260K" } : { dir: demoModel, name: "model" };

/** Plain text, for models without a chat template. */
export const plainText = "Once upon a time there was a little dog. He liked to play in the park with his friend.\n".repeat(6);

/** Short conversations for the built-in model: a few steps on them are quick on a software adapter. */
export const conversations = ["a cat", "a dog", "a cow", "a duck", "a horse", "a sheep", "a pig", "a frog"]
  .map((animal) =>
    JSON.stringify({
      messages: [
        { role: "user", content: `What does ${animal} say?` },
        { role: "assistant", content: `Arr! ${animal} says arr, matey!` },
      ],
    }),
  )
  .join("\n");

/** A copy of a model directory in a place of its own, changed by `change(dir)`. */
export function changedModel(dir, change) {
  const place = mkdtempSync(join(tmpdir(), "loraine-page-"));
  cpSync(dir, place, { recursive: true });
  change(place);
  return place;
}

export function editJson(path, edit) {
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...edit }));
}

export function removeAll(dirs) {
  for (const dir of dirs) rmSync(dir, { recursive: true, force: true });
}
