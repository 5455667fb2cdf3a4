// A hub that takes uploads as Hugging Face does, and its file server at another address. Both record every request.

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-headers": "authorization, content-type, accept, x-amz-meta",
  "access-control-allow-methods": "GET, POST, PUT",
};

async function body(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** Starts a server whose answers `answer({ method, path, bytes })` gives as [status, JSON]; every request but preflights is recorded. */
async function start(t, answer) {
  const requests = [];
  const server = createServer(async (request, response) => {
    if (request.method === "OPTIONS") {
      response.writeHead(204, CORS).end();
      return;
    }
    const bytes = await body(request);
    const { authorization, cookie, referer } = request.headers;
    const asked = { method: request.method, path: request.url, authorization, cookie, referer, headers: request.headers, bytes };
    requests.push(asked);
    const [status, value, more = {}] = answer(asked);
    response.writeHead(status, { ...CORS, "content-type": "application/json", ...more }).end(JSON.stringify(value));
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { requests, url: `http://127.0.0.1:${server.address().port}` };
}

/** A hub that `token` may write to. `exists` has the repository there already; `refuses` is a status for the commit. */
export async function startPublishing(t, token) {
  const files = await start(t, ({ method }) => (method === "PUT" ? [200, {}] : [404, {}]));
  const state = { exists: false, refuses: undefined, redirects: undefined };
  const hub = await start(t, ({ path, authorization, bytes }) => {
    if (authorization !== `Bearer ${token}`) return [401, { error: "Invalid credentials" }];
    if (state.redirects !== undefined) return [307, {}, { location: state.redirects }];
    if (path === "/api/repos/create") return state.exists ? [409, { error: "You already created this model repo" }] : [200, { url: "" }];
    if (path.includes("/preupload/")) {
      const { files: asked } = JSON.parse(bytes);
      const mode = (name) => (name.endsWith(".safetensors") ? "lfs" : "regular");
      return [200, { files: asked.map(({ path }) => ({ path, uploadMode: mode(path), shouldIgnore: false })) }];
    }
    if (path.endsWith(".git/info/lfs/objects/batch")) {
      const { objects } = JSON.parse(bytes);
      const actions = ({ oid }) => ({
        upload: { href: `${files.url}/store/${oid}?signature=abc`, header: { "x-amz-meta": "1" } },
        verify: { href: `${hub.url}/verify` },
      });
      return [200, { transfer: "basic", objects: objects.map((object) => ({ ...object, actions: actions(object) })) }];
    }
    if (path === "/verify") return [200, {}];
    if (path.includes("/commit/")) return state.refuses === undefined ? [200, { success: true }] : [state.refuses, { error: "the card is wrong" }];
    return [404, { error: "no such thing" }];
  });
  return Object.assign(state, { hub, files, url: hub.url });
}

/** The files of the commit, by path: bytes of those inside it, and of the others what the file server has got. */
export function committed({ hub, files }) {
  const commit = hub.requests.find(({ path }) => path.includes("/commit/"));
  const lines = commit.bytes.toString().trim().split("\n").map((line) => JSON.parse(line));
  const stored = new Map(files.requests.map(({ bytes }) => [createHash("sha256").update(bytes).digest("hex"), bytes]));
  const bytes = ({ key, value }) => (key === "file" ? Buffer.from(value.content, value.encoding) : stored.get(value.oid));
  return new Map(lines.filter(({ key }) => key !== "header").map((line) => [line.value.path, bytes(line)]));
}
