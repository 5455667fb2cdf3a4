// The built page in Debian's Chromium, on its software adapter.

import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { serve } from "../../web/serve.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const require = createRequire(join(root, "web/package.json"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const CHROMIUM = process.env.LORAINE_CHROMIUM ?? "/usr/bin/chromium";
export const projectFile = (path) => join(root, path);
const screenshots = join(root, "web/screenshots");

/** Why the page cannot be tested here, or undefined. */
export const missing = !existsSync(CHROMIUM)
  ? `no Chromium at ${CHROMIUM}`
  : !existsSync(join(root, "web/dist/index.html"))
    ? "the page is not built (make web)"
    : undefined;

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--ignore-gpu-blocklist",
];
const WITH_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

export async function startBrowser({ gpu = true } = {}) {
  return chromium.launch({
    executablePath: CHROMIUM,
    headless: true,
    args: [...ARGUMENTS, ...(gpu ? WITH_GPU : ["--disable-features=WebGPUService", "--disable-gpu"])],
  });
}

export function startServer() {
  return serve(join(root, "web/dist"), 0);
}

/** A browser and a server for all tests of a file, ended after the last one. */
export function startForAll() {
  const shared = {};
  before(async () => {
    if (!missing) [shared.browser, shared.site] = await Promise.all([startBrowser(), startServer()]);
  });
  after(async () => {
    await shared.browser?.close();
    shared.site?.server.close();
  });
  return shared;
}

/** A fresh profile with the page open, and what went wrong in it. */
export async function openPage(browser, url, options = {}) {
  const { path = "", ...context } = options;
  const profile = await browser.newContext({ viewport: { width: 1280, height: 800 }, acceptDownloads: true, ...context });
  const page = await profile.newPage();
  const watched = watch(page);
  await page.goto(url + path);
  return { profile, page, ...watched };
}

export function watch(page) {
  const problems = [];
  const requests = [];
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => {
    // A model that is asked for and not there is no fault of the page.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) problems.push(message.text());
  });
  page.context().on("request", (request) => requests.push(request.url()));
  return { problems, requests };
}

export const text = (page, selector) => page.locator(selector).innerText();

/** Waits until the text of `selector` matches, and answers with it. */
export async function waitForText(page, selector, pattern, timeout = 60_000) {
  const locator = page.locator(selector);
  try {
    await locator.filter({ hasText: pattern }).first().waitFor({ state: "visible", timeout });
  } catch (error) {
    // A failure in CI has no screen to look at: say what stood there, and how far a run of this page is.
    const texts = await page.locator(`${selector}, .run-status`).allTextContents();
    throw new Error(`${selector} did not come to match ${pattern}; the page says ${JSON.stringify(texts)}`, { cause: error });
  }
  return locator.first().innerText();
}

/** What axe-core finds wrong in the page as it is now. */
export async function accessibilityProblems(page) {
  // The page's own policy lets no inline script in; evaluated code is the browser's, not the page's.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
}

/** Pictures of one state: laptop and phone, light and dark. */
export async function picture(page, state) {
  mkdirSync(screenshots, { recursive: true });
  const sizes = { laptop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };
  for (const [device, size] of Object.entries(sizes)) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize(size);
      await page.emulateMedia({ colorScheme });
      await page.waitForTimeout(350);
      await page.screenshot({ path: join(screenshots, `${state}-${device}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.setViewportSize(sizes.laptop);
  await page.emulateMedia({ colorScheme: "light" });
}

/** Puts values into fields by their labels. */
export async function fill(page, values) {
  for (const [label, value] of Object.entries(values)) {
    await page.getByRole("textbox", { name: label, exact: true }).fill(String(value));
  }
}
