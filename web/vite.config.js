import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig } from "vite";
import { PAGE_CSP, PAGE_HEADER_CSP, WORKER_CSP } from "./csp.mjs";

const here = import.meta.dirname;
const demo = join(here, "../src/demo");

/** The built-in model and its data, from the one place where they stand in the project. */
function demoFiles() {
  const files = ["model", "data"].flatMap((room) => readdirSync(join(demo, room)).map((name) => `${room}/${name}`));
  return {
    name: "demo-files",
    generateBundle() {
      for (const file of files) {
        this.emitFile({ type: "asset", fileName: `demo/${file}`, source: readFileSync(join(demo, file)) });
      }
    },
  };
}

/** The policy in the page itself, for hosts that send no headers. */
function contentSecurityPolicy() {
  const attrs = { "http-equiv": "Content-Security-Policy", content: PAGE_CSP };
  return { name: "content-security-policy", transformIndexHtml: () => [{ tag: "meta", attrs, injectTo: "head-prepend" }] };
}

/** The service worker, told which files make this build; their contents are its version. */
function offline() {
  return {
    name: "offline",
    enforce: "post",
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        const publicFiles = readdirSync(join(here, "public"));
        const files = [...Object.keys(bundle).filter((file) => !file.endsWith(".map")), ...publicFiles].sort();
        const hash = createHash("sha256");
        for (const file of files) {
          const built = bundle[file];
          const content =
            built === undefined ? readFileSync(join(here, "public", file)) : built.type === "chunk" ? built.code : built.source;
          hash.update(file).update(content);
        }
        const version = hash.digest("hex").slice(0, 16);
        const source = readFileSync(join(here, "service-worker.js"), "utf8");
        const told = { VERSION: version, FILES: files, PAGE_POLICY: PAGE_HEADER_CSP, WORKER_POLICY: WORKER_CSP };
        const head = Object.entries(told).map(([name, value]) => `const ${name} = ${JSON.stringify(value)};\n`);
        this.emitFile({ type: "asset", fileName: "service-worker.js", source: head.join("") + source });
      },
    },
  };
}

export default defineConfig({
  root: here,
  base: "./",
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: false },
  worker: { format: "es" },
  plugins: [demoFiles(), contentSecurityPolicy(), offline()],
});
