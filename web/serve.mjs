#!/usr/bin/env node
// Serves the built page on this machine alone: node web/serve.mjs [PORT], or npx loraine-page [PORT]

import { createReadStream, existsSync, realpathSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { PAGE_HEADER_CSP, WORKER_CSP } from "./csp.mjs";

const DEFAULT_PORT = 8017;

const TYPES = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  json: "application/json",
  jsonl: "application/jsonl",
  svg: "image/svg+xml",
  wasm: "application/wasm",
  webmanifest: "application/manifest+json",
};

function headers(file, policy) {
  const ending = file.slice(file.lastIndexOf(".") + 1);
  const isWorker = /assets.worker-[^/\\]*\.js$/.test(file);
  return {
    "content-type": TYPES[ending] ?? "application/octet-stream",
    ...(policy ? { "content-security-policy": isWorker ? WORKER_CSP : PAGE_HEADER_CSP } : {}),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    // Names in assets/ change with their content.
    "cache-control": file.includes(`${sep}assets${sep}`) ? "public, max-age=31536000, immutable" : "no-cache",
  };
}

/** The file of `dir` that a request's path names, or undefined. */
function find(dir, url) {
  let path;
  try {
    path = decodeURIComponent(new URL(url, "http://localhost").pathname);
  } catch {
    return undefined;
  }
  const file = normalize(join(dir, path.endsWith("/") ? `${path}index.html` : path));
  return file.startsWith(dir + sep) && existsSync(file) && statSync(file).isFile() ? file : undefined;
}

/** Starts a server of the files in `dir`; port 0 takes any that is free. The policy is the built page's own. */
export function serve(dir, port, { policy = true } = {}) {
  const server = createServer((request, response) => {
    const file = find(dir, request.url ?? "/");
    if (file === undefined || !["GET", "HEAD"].includes(request.method ?? "")) {
      response.writeHead(404, { "content-type": "text/plain" }).end("not found\n");
      return;
    }
    response.writeHead(200, { ...headers(file, policy), "content-length": statSync(file).size });
    if (request.method === "HEAD") response.end();
    else createReadStream(file).pipe(response);
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => resolve({ server, url: `http://localhost:${server.address().port}/` }));
  });
}

// npx starts this file through a link.
if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const dist = fileURLToPath(new URL("dist", import.meta.url));
  if (!existsSync(join(dist, "index.html"))) {
    console.error("serve: the page is not built yet; run make web");
    process.exit(1);
  }
  const port = Number(process.argv[2] ?? DEFAULT_PORT);
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    console.error(`serve: ${process.argv[2]} is no port; give a number from 0 (any that is free) to 65535`);
    process.exit(1);
  }
  const { url } = await serve(dist, port).catch((error) => {
    console.error(`serve: ${error.message}`);
    process.exit(1);
  });
  console.log(`The page is at ${url}  Ctrl-C ends the server.`);
}
