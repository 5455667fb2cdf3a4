// Content-Security-Policy of the page and of its worker. The page itself may talk to its own origin alone; the worker, which
// fetches models, may also talk to the address that the user typed, and its code talks to no other.

const strict = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "style-src 'self'",
  "img-src 'self' data: blob:",
  "worker-src 'self'",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types loraine",
];

export const PAGE_CSP = [...strict, "connect-src 'self'"].join("; ");
/** With what a page cannot say of itself. */
export const PAGE_HEADER_CSP = `${PAGE_CSP}; frame-ancestors 'none'`;
export const WORKER_CSP = [...strict, "connect-src 'self' https: http://localhost:* http://127.0.0.1:*"].join("; ");
