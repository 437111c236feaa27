// The built site behind a strict content policy, in headless Chromium, and what every page must keep to: no error, no
// request elsewhere, nothing serious for axe.
import { createServer } from "node:http";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { extname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";

export const dist = fileURLToPath(new URL("../../docs/.vitepress/dist", import.meta.url));
const docs = createRequire(new URL("../../docs/package.json", import.meta.url));

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};
/** Style attributes are Shiki's (colours of code); scripts are files of the site, and WebAssembly. */
const POLICY =
  "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'";

/** The path that the site was built for (DOCS_BASE): what it asks for elsewhere is not there. */
export const builtBase = () => /(?:src|href)="([^"]*)assets\//.exec(readFileSync(join(dist, "index.html"), "utf8"))[1];

/** Serves the site; `loaded` are the paths asked for, with their bytes under gzip. */
export async function serveSite() {
  const loaded = [];
  const base = builtBase();
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const path = join(
      dist,
      decodeURIComponent(pathname)
        .slice(base.length - 1)
        .replace(/\/$/, "/index.html"),
    );
    if (!pathname.startsWith(base) || !path.startsWith(dist) || !existsSync(path) || statSync(path).isDirectory())
      return response.writeHead(404).end();
    const body = readFileSync(path);
    loaded.push({ path: pathname, bytes: body });
    response
      .writeHead(200, { "content-type": TYPES[extname(path)] ?? "application/octet-stream", "content-security-policy": POLICY })
      .end(body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    /** Where the pages are: `${origin}/explorer.html`. */
    origin: `http://127.0.0.1:${server.address().port}${base.slice(0, -1)}`,
    /** Forgets what was asked for before. */
    forget: () => loaded.splice(0),
    /** Kilobytes that a server which compresses would have sent. */
    kilobytes: () => loaded.reduce((sum, { bytes }) => sum + gzipSync(bytes).length, 0) / 1000,
    loaded,
    close: () => server.close(),
  };
}

/** Paths of all pages, those of the start first. */
export function sitePages() {
  const all = readdirSync(dist, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".html") && name !== "404.html");
  return all
    .map((name) => relative(dist, join(dist, name)).replaceAll("\\", "/"))
    .sort((a, b) => a.split("/").length - b.split("/").length);
}

export async function openBrowser(executablePath) {
  const args = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]; // prettier-ignore
  return chromium.launch({ executablePath, args });
}

/** Milliseconds that a step of a page may take. */
export const PATIENCE = 180_000;

/** A page that writes down what goes wrong on it. */
export async function watchedPage(context, origin, faults) {
  const page = await context.newPage();
  // a machine that does other work too: nothing here is judged by these limits
  page.setDefaultTimeout(PATIENCE);
  page.on("console", (message) => message.type() === "error" && faults.push(`${page.url()}: ${message.text()}`));
  page.on("pageerror", (error) => faults.push(`${page.url()}: ${error.message}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (!url.href.startsWith(`${origin}/`) && !["data:", "blob:"].includes(url.protocol))
      faults.push(`${page.url()}: asks for ${url.href}`);
  });
  return page;
}

const axe = readFileSync(docs.resolve("axe-core/axe.min.js"), "utf8");

/** Serious and critical findings of axe on a page as it is now, in words. */
export async function accessibility(page) {
  await page.evaluate(`typeof axe === "undefined" && (() => {${axe}})()`);
  const found = await page.evaluate(async () => {
    // the theme's own button of the search box: its keys are not in its name
    const { violations } = await globalThis.axe.run({ exclude: [".VPNavBarSearch"] }, { resultTypes: ["violations"] });
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .flatMap(({ id, nodes }) => nodes.slice(0, 3).map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`));
  });
  return found.map((line) => `${page.url()}: ${line.replaceAll("\n", " ")}`);
}

export const browserPath = () =>
  process.env.CHROMIUM_PATH ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
