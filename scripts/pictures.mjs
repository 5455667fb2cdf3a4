// Draws docs/images: node scripts/pictures.mjs TERMINAL_TEXT DIRECTORY. scripts/pictures makes what this needs.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { openPage, startBrowser, startServer, waitForText } from "../tests/page/browser.mjs";
import { ready, start } from "../tests/page/steps.mjs";

/** The built-in run takes a minute on a quiet machine. */
const WAIT_MS = 15 * 60_000;
const [terminalText, directory] = process.argv.slice(2);

/** The sixteen colors of a terminal: dark ones by 30 to 37 and 40 to 47, bright ones by 90 to 97 and 100 to 107. */
const DARK = ["#1c2128", "#d1242f", "#1a7f37", "#9a6700", "#0969da", "#8250df", "#1b7c83", "#c9d1d9"];
const BRIGHT = ["#6e7681", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff"];

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** Lines with SGR colors as HTML. Colors and bold are all that the program writes. */
function html(ansi) {
  let style = {};
  const spans = ansi.split(/\x1b\[([\d;]*)m/).map((part, index) => {
    if (index % 2 === 0) {
      if (part === "") return "";
      const css = Object.entries(style).map(([property, value]) => `${property}:${value}`);
      return `<span style="${css.join(";")}">${escaped(part)}</span>`;
    }
    for (const code of part.split(";").map(Number)) {
      if (code === 0) style = {};
      else if (code === 1) style["font-weight"] = "bold";
      else if (code === 39) delete style.color;
      else if (code === 49) delete style.background;
      else if (code >= 30 && code <= 37) style.color = DARK[code - 30];
      else if (code >= 40 && code <= 47) style.background = DARK[code - 40];
      else if (code >= 90 && code <= 97) style.color = BRIGHT[code - 90];
      else if (code >= 100 && code <= 107) style.background = BRIGHT[code - 100];
    }
    return "";
  });
  return spans.join("");
}

async function terminal(browser) {
  const page = await browser.newPage({ viewport: { width: 1000, height: 400 }, deviceScaleFactor: 2 });
  await page.setContent(`<style>
    body { margin: 0; background: #fff }
    main { background: #0d1117; color: #e6edf3; width: max-content; padding: 14px 18px 16px; border-radius: 8px }
    pre { margin: 0; font: 13px/15px "DejaVu Sans Mono", "Liberation Mono", monospace }
  </style><main><pre>${html(readFileSync(terminalText, "utf8").trimEnd())}</pre></main>`);
  await page.locator("main").screenshot({ path: join(directory, "terminal.png"), omitBackground: true });
  await page.close();
}

/** The page at the end of a run of the built-in model, with the answers of base and adapter. */
async function trainedPage(browser) {
  const site = await startServer();
  const { page, profile } = await openPage(browser, site.url, { viewport: { width: 1180, height: 900 }, deviceScaleFactor: 1.5 });
  await ready(page);
  await start(page);
  await waitForText(page, ".run-status", /Finished/, WAIT_MS);
  await page.getByRole("button", { name: "What does a cat say?" }).click();
  const ask = page.getByRole("button", { name: "Compare" });
  // The page asks its first question by itself.
  await ask.click({ timeout: WAIT_MS });
  await ask.and(page.locator(":disabled")).waitFor();
  await ask.and(page.locator(":enabled")).waitFor({ timeout: WAIT_MS });
  const [top, bottom] = await page.evaluate(() => {
    const place = (selector) => document.querySelector(selector).getBoundingClientRect();
    return [place("#run").top + scrollY, place(".answers").bottom + scrollY + 32];
  });
  const clip = { x: 0, y: top, width: 1180, height: bottom - top };
  await page.screenshot({ path: join(directory, "page.png"), clip, fullPage: true });
  await profile.close();
  site.server.close();
}

const browser = await startBrowser();
try {
  await terminal(browser);
  await trainedPage(browser);
} finally {
  await browser.close();
}
