// Headless Chromium on pages that are served from a folder, each with headers of its own: cross-origin isolated, under
// a strict content policy, or plain.
import { createServer } from "node:http";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { chromium } from "playwright-core";

const isolation = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
/** Headers of the documents below /isolated/, /policy/, /closed/ and /plain/. */
export const pageHeaders = {
  isolated: isolation,
  policy: {
    ...isolation,
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'",
  },
  closed: { "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'" },
  plain: {},
};
const types = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css" };

/** Serves `dir`; `files` are texts by path that are not in it. Any file is below each of them. */
export async function serve(dir, files = {}) {
  const server = createServer((request, response) => {
    const [, kind, ...rest] = normalize(new URL(request.url, "http://localhost").pathname).split("/");
    const name = rest.join("/");
    if (kind === "favicon.ico") return response.writeHead(204).end();
    try {
      if (!(kind in pageHeaders)) throw new Error(kind);
      const body = files[name] ?? readFileSync(join(dir, name));
      response.writeHead(200, { "content-type": types[extname(name)] ?? "application/octet-stream", ...pageHeaders[kind] });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/**
 * Calls f(open) in a fresh Chromium with WebGPU switched on; `open(url)` gives a page. What pages log is printed; an
 * error that no page caught is thrown here.
 */
export async function withChromium(executablePath, f) {
  const profile = mkdtempSync(join(tmpdir(), "lowbit-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    args: [
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  const uncaught = [];
  try {
    const result = await f(async (url) => {
      const page = await context.newPage();
      page.on("console", (message) => console.log(`[page] ${message.text()}`));
      page.on("pageerror", (error) => uncaught.push(error));
      await page.goto(url);
      return page;
    });
    if (uncaught.length > 0) throw new Error(`errors that no page caught: ${uncaught.map(String).join("; ")}`);
    return result;
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
}
