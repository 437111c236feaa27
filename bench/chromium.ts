// A page in headless Chromium, for benches whose peer runs in a browser only.
import { existsSync } from "node:fs";

export interface Page {
  waitForFunction(expression: string): Promise<unknown>;
  evaluate(expression: string): Promise<unknown>;
}
/** What test/browser/chromium.mjs has. */
interface Browser {
  serve(folder: string, files: object): Promise<{ url: string; close(): void }>;
  withChromium(path: string, run: (open: (url: string) => Promise<Page>) => Promise<void>): Promise<void>;
}

export function chromiumPath(bench: string): string {
  const found = process.env.CHROMIUM_PATH ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
  if (found === undefined) throw new Error(`${bench}: expected Chromium, found none. Install it or set CHROMIUM_PATH.`);
  return found;
}

/** Opens `path` of the folder, with `files` over it, waits for `window.ready`, and closes everything after `use`. */
export async function inChromium(
  chromium: string,
  folder: string,
  files: object,
  path: string,
  use: (page: Page) => Promise<void>,
): Promise<void> {
  const { serve, withChromium } = (await import(new URL("../test/browser/chromium.mjs", import.meta.url).href)) as Browser;
  const server = await serve(folder, files);
  try {
    await withChromium(chromium, async (open) => {
      const page = await open(`${server.url}/${path}`);
      await page.waitForFunction("window.ready");
      await use(page);
    });
  } finally {
    server.close();
  }
}
