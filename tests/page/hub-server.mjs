// A hub on this machine: `resolve/REVISION/FILE` paths over directories, with the faults that networks have.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";

const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-headers": "authorization, range",
  "access-control-expose-headers": "etag, x-repo-commit, content-range",
};

/**
 * Serves `models`, directories by `owner/name`, until the test `t` ends. What comes back can be changed while it runs: `cutAfter` ends each answer with weights
 * after so many bytes, `halve` names a file of which only the first half is there, `commit` is what the hub says of the revision, `token`
 * is the only one that may read.
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
  };
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    if (request.method === "OPTIONS") {
      response.writeHead(204, CORS).end();
      return;
    }
    const { range, cookie, referer, authorization } = request.headers;
    hub.requests.push({ method: request.method, path: pathname, range, cookie, referer, authorization });
    if (hub.token !== undefined && authorization !== `Bearer ${hub.token}`) {
      response.writeHead(401, CORS).end();
      return;
    }
    const [, owner, name, resolve, , file] = pathname.split("/");
    const dir = models[`${owner}/${name}`];
    let bytes = dir !== undefined && resolve === "resolve" ? await readFile(join(dir, file)).catch(() => undefined) : undefined;
    if (bytes === undefined) {
      response.writeHead(404, { ...CORS, "content-type": "text/plain" }).end("Entry not found");
      return;
    }
    if (hub.halve === file) bytes = bytes.subarray(0, bytes.length / 2);
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const part = bytes.subarray(from);
    const headers = {
      ...CORS,
      etag: `"${file}-${bytes.length}"`,
      "x-repo-commit": hub.commit,
      "accept-ranges": "bytes",
      "content-length": part.length,
    };
    if (from > 0) headers["content-range"] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`;
    response.writeHead(from > 0 ? 206 : 200, headers);
    if (request.method === "HEAD") response.end();
    else if (file.endsWith(".safetensors") && hub.cutAfter !== undefined && part.length > hub.cutAfter && hub.cuts > 0) {
      hub.cuts -= 1;
      response.write(part.subarray(0, hub.cutAfter), () => setTimeout(() => response.destroy(), 50));
    } else if (file.endsWith(".safetensors") && hub.slow) {
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
