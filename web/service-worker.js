// VERSION, FILES and both policies stand above this line in the built file: every asset of one build, kept together in one cache.

// Several copies of the page may share an origin, each in a folder of its own.
const HERE = new URL("./", self.location);
const CACHE = `loraine-${HERE.pathname}-${VERSION}`;

self.addEventListener("install", (event) => {
  const fetchAll = async () => {
    const cache = await caches.open(CACHE);
    await cache.addAll(FILES.map((file) => new Request(file, { cache: "reload" })));
  };
  event.waitUntil(fetchAll());
});

self.addEventListener("activate", (event) => {
  const takeOver = async () => {
    const others = (await caches.keys()).filter((name) => name.startsWith("loraine-") && name !== CACHE);
    const removeOwn = async (name) => {
      const isOwn = await (await caches.open(name)).match(new URL("index.html", HERE));
      if (isOwn !== undefined) await caches.delete(name);
    };
    await Promise.all(others.map(removeOwn));
    await self.clients.claim();
  };
  event.waitUntil(takeOver());
});

// A new build waits until the page asks for it, so that no tab ever mixes two builds.
self.addEventListener("message", (event) => {
  if (event.data === "take over") self.skipWaiting();
});

/** A file with the policy that it should have, for hosts that send no headers. */
function guarded(response, request) {
  const policy = request.mode === "navigate" ? PAGE_POLICY : /\/assets\/worker-[^/]*\.js$/.test(request.url) ? WORKER_POLICY : undefined;
  if (policy === undefined || response.headers.has("content-security-policy")) return response;
  const headers = new Headers(response.headers);
  headers.set("content-security-policy", policy);
  return new Response(response.body, { status: response.status, headers });
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== self.location.origin) return;
  const respond = async () => {
    const cache = await caches.open(CACHE);
    const wanted = request.mode === "navigate" ? "index.html" : request;
    const found = await cache.match(wanted, { ignoreSearch: true });
    return found === undefined ? fetch(request) : guarded(found, request);
  };
  event.respondWith(respond());
});
