/** The one Trusted Types policy: it lets scripts of this origin be workers, and nothing else. */

const sameOrigin = (url: string): string => {
  if (new URL(url, location.href).origin !== location.origin) throw new TypeError(`${url} is not a script of this page`);
  return url;
};

interface Policies {
  createPolicy(name: string, rules: { createScriptURL: (url: string) => string }): { createScriptURL(url: string): object };
}

const policies = (globalThis as { trustedTypes?: Policies }).trustedTypes;
const policy = policies?.createPolicy("loraine", { createScriptURL: sameOrigin });

/** `url` as something that a worker may be made of; a plain string where the browser has no Trusted Types. */
export function trustedScriptUrl(url: string): object | string {
  return policy?.createScriptURL(url) ?? sameOrigin(url);
}
