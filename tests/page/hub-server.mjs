// A hub on this machine: `resolve/REVISION/FILE` paths over directories, and the list of their files, with the faults that networks have.

import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";

/** Weights, which a hub keeps apart from the other files. */
const isLarge = (path) => /\.(safetensors|gguf)$/.test(path);

const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-headers": "authorization, range",
  "access-control-expose-headers": "etag, x-repo-commit, content-range, retry-after",
};

/**
 * Serves `models`, directories by `owner/name`, until the test `t` ends. What comes back can be changed while it runs:
 * - `cutAfter` ends each answer with weights after so many bytes, `cuts` times; `slow` never ends one.
 * - `halve` names a file of which only the first half is there, `damage` one of which a byte arrives wrong, so many times.
 * - `endless` names a file that never ends.
 * - `commit` is what the hub says of the revision, and `token` is the only one that may read.
 * - `lists` has it list files with their checksums, as Hugging Face does; `hides` keeps the sizes of ranges from the page.
 * - `stall` is a byte of weights at which an answer stops without an end; `ignoresRanges` has it send whole files always.
 * - `busy` is how many requests are answered by 429 first, with `retryAfter` as the seconds to wait.
 * `mostAtOnce` is how many answers with weights were under way together, and each of `requests` has the bytes that were `sent`.
 */
export async function startHub(t, models) {
  const hub = {
    requests: [],
    token: undefined,
    cutAfter: undefined,
    cuts: Number.POSITIVE_INFINITY,
    halve: undefined,
    commit: "c".repeat(40),
    slow: false,
    lists: false,
    hides: false,
    stall: undefined,
    ignoresRanges: false,
    mostAtOnce: 0,
    damage: { file: "", times: 0 },
    endless: undefined,
    busy: 0,
    retryAfter: 0,
  };
  let underWay = 0;
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    if (request.method === "OPTIONS") {
      response.writeHead(204, CORS).end();
      return;
    }
    const { range, cookie, referer, authorization } = request.headers;
    const record = { method: request.method, path: pathname, range, cookie, referer, authorization };
    record.at = Date.now();
    hub.requests.push(record);
    if (hub.busy > 0) {
      hub.busy -= 1;
      record.refused = true;
      response.writeHead(429, { ...CORS, "retry-after": hub.retryAfter }).end();
      return;
    }
    if (hub.token !== undefined && authorization !== `Bearer ${hub.token}`) {
      response.writeHead(401, CORS).end();
      return;
    }
    const listed = /^\/api\/models\/(.+)\/tree\/[^/]+$/.exec(pathname)?.[1];
    if (hub.lists && models[listed] !== undefined) {
      response.writeHead(200, { ...CORS, "content-type": "application/json" }).end(JSON.stringify(await files(models[listed])));
      return;
    }
    const [, owner, name, resolve, , ...path] = pathname.split("/");
    const file = path.join("/");
    const dir = models[`${owner}/${name}`];
    let bytes = dir !== undefined && resolve === "resolve" ? await readFile(join(dir, file)).catch(() => undefined) : undefined;
    if (bytes === undefined) {
      response.writeHead(404, { ...CORS, "content-type": "text/plain" }).end("Entry not found");
      return;
    }
    if (hub.endless === file) {
      response.writeHead(200, { ...CORS, "content-type": "application/json" });
      const piece = Buffer.alloc(1 << 20, " ");
      const send = () => {
        while (!response.destroyed && response.write(piece));
      };
      response.on("drain", send);
      send();
      return;
    }
    if (hub.halve === file) bytes = bytes.subarray(0, bytes.length / 2);
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(hub.ignoresRanges ? "" : (request.headers.range ?? "")) ?? [];
    const [from, to] = [Number(first ?? 0), last ? Math.min(Number(last) + 1, bytes.length) : bytes.length];
    let part = bytes.subarray(from, to);
    const cut = isLarge(file) && hub.cutAfter !== undefined && part.length > hub.cutAfter && hub.cuts > 0;
    if (hub.damage.file === path.at(-1) && hub.damage.times > 0 && to === bytes.length && !cut) {
      hub.damage.times -= 1;
      part = Buffer.from(part);
      part[part.length - 1] ^= 1;
    }
    const headers = {
      ...CORS,
      etag: `"${file}-${bytes.length}"`,
      "x-repo-commit": hub.commit,
      "accept-ranges": "bytes",
      "content-length": part.length,
    };
    if (hub.hides) headers["access-control-expose-headers"] = "etag";
    if (first !== undefined) headers["content-range"] = `bytes ${from}-${to - 1}/${bytes.length}`;
    response.writeHead(first === undefined ? 200 : 206, headers);
    if (request.method === "HEAD") {
      response.end();
      return;
    }
    if (isLarge(file)) {
      underWay += 1;
      hub.mostAtOnce = Math.max(hub.mostAtOnce, underWay);
      response.on("close", () => (underWay -= 1));
    }
    const stalls = isLarge(file) && hub.stall !== undefined && from <= hub.stall && hub.stall < to;
    record.sent = cut ? hub.cutAfter : stalls ? hub.stall - from : part.length;
    if (cut) {
      hub.cuts -= 1;
      response.write(part.subarray(0, hub.cutAfter), () => setTimeout(() => response.destroy(), 50));
    } else if (stalls) {
      response.write(part.subarray(0, hub.stall - from));
    } else if (isLarge(file) && hub.slow) {
      // Never ends by itself: the page has to stop it.
      response.write(part.subarray(0, part.length / 2));
    } else {
      response.end(part);
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  t.after(close);
  return Object.assign(hub, { url: `http://127.0.0.1:${server.address().port}`, close });
}

/** What the hub's list says of the files of a directory. */
async function files(dir) {
  const names = (await readdir(dir, { recursive: true })).filter((name) => /\.[^/]+$/.test(name)).sort();
  const row = async (path) => {
    const bytes = await readFile(join(dir, path));
    const oid = createHash("sha256").update(bytes).digest("hex");
    return { type: "file", path, size: bytes.length, oid: oid.slice(0, 40), ...(isLarge(path) ? { lfs: { oid, size: bytes.length } } : {}) };
  };
  return Promise.all(names.map(row));
}
