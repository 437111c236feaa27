// npm run test:docs: the built site (npm run docs) in headless Chromium: every page without an error or a request
// elsewhere, under a strict policy; the number explorer computes, keeps its state in the link and reads it back.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const dist = fileURLToPath(new URL("../docs/.vitepress/dist", import.meta.url));
if (!existsSync(dist)) {
  console.error("test:docs: expected the built site, found none. Run `npm run docs` first.");
  process.exit(1);
}
const browserPath =
  process.env.CHROMIUM_PATH ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
if (browserPath === undefined) {
  console.error("test:docs: expected Chromium, found none. Install it (Debian: apt-get install chromium) or set CHROMIUM_PATH.");
  process.exit(1);
}

const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".woff2": "font/woff2" };
// VitePress starts with two inline scripts (appearance, hashes of pages)
const policy =
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:";
const server = createServer((request, response) => {
  const path = join(dist, new URL(request.url, "http://localhost").pathname.replace(/\/$/, "/index.html"));
  if (!path.startsWith(dist) || !existsSync(path)) return response.writeHead(404).end();
  response
    .writeHead(200, { "content-type": types[extname(path)] ?? "text/plain", "content-security-policy": policy })
    .end(readFileSync(path));
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const origin = `http://127.0.0.1:${server.address().port}`;

const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]; // prettier-ignore
const browser = await chromium.launch({ executablePath: browserPath, args: quiet });
const faults = [];
try {
  const page = await browser.newPage();
  page.on("console", (message) => message.type() === "error" && faults.push(`${page.url()}: ${message.text()}`));
  page.on("pageerror", (error) => faults.push(`${page.url()}: ${error.message}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.origin !== origin && !["data:", "blob:"].includes(url.protocol)) faults.push(`${page.url()}: asks for ${url.href}`);
  });

  const pages = readdirSync(dist).filter((name) => name.endsWith(".html") && name !== "404.html");
  for (const name of pages) {
    await page.goto(`${origin}/${name}`, { waitUntil: "load" });
    assert.ok((await page.locator("h1").first().innerText()).length > 0, `${name} has a title`);
  }

  await page.goto(`${origin}/explorer.html`);
  const lines = page.getByTestId("lines");
  await lines.waitFor();
  assert.match(await lines.innerText(), /0\.3 -> 0\.3125 {3}code 0x32 {3}posit8_es2/);
  await page.getByRole("button", { name: "bit 0 of mantissa" }).click();
  assert.equal(await page.getByTestId("value").inputValue(), "0.34375");
  await page.getByTestId("format").fill('{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"bias":5,"specials":"finite"}');
  assert.match(await lines.innerText(), /mine/);
  const [link, shown] = [page.url(), await lines.innerText()];
  const other = await browser.newPage();
  await other.goto(link);
  assert.equal(await other.getByTestId("lines").innerText(), shown, "a link brings the state back");
  await page.getByTestId("format").fill("mxfp4");
  await page.getByTestId("block").fill("1 -2 3");
  assert.equal(await page.locator("tbody tr").count(), 3);
  await page.getByTestId("format").fill("mxfp5");
  assert.match(await page.getByRole("alert").innerText(), /Nearest: /);
  assert.deepEqual(faults, []);
  console.log(`test:docs: ${pages.length} pages, the explorer; no console error, no request elsewhere`);
} finally {
  await browser.close();
  server.close();
}
