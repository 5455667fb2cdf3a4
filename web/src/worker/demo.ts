import { PageError } from "./failure";

/** A file of the built-in model or its data: an asset of this page. */
export async function fetchDemo(name: string): Promise<Blob> {
  const response = await fetch(new URL(`../demo/${name}`, self.location.href)).catch(() => undefined);
  if (!response?.ok) throw new PageError("file", `The page's own file demo/${name} cannot be read. Reload the page.`);
  return response.blob();
}
