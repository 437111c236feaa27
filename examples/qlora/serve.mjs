// The QLoRA example in a browser: bundles the page and serves it. After `npm run build`:
//   node examples/qlora/serve.mjs              prints an address to open
//   node examples/qlora/serve.mjs --chromium PATH   opens it in a headless Chromium, prints what the page says and ends
import { build } from "esbuild";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";

const root = new URL("../..", import.meta.url);
const wasm = new URL("node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", root);
const types = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm", ".txt": "text/plain" };

const bundled = await build({
  entryPoints: [fileURLToPath(new URL("page.mjs", import.meta.url))],
  bundle: true,
  format: "esm",
  platform: "browser",
  external: ["node:*"],
  write: false,
  logLevel: "error",
});
const files = new Map([
  ["/", ["index.html", readFileSync(new URL("index.html", import.meta.url))]],
  ["/page.js", ["page.js", bundled.outputFiles[0].contents]],
  ["/known.txt", ["known.txt", readFileSync(new URL("docs/numerics.md", root))]],
  ["/other.txt", ["other.txt", readFileSync(new URL("src/tensor/tensor.ts", root))]],
  ...["tfjs-backend-wasm.wasm", "tfjs-backend-wasm-simd.wasm"].map((name) => [`/${name}`, [name, readFileSync(new URL(name, wasm))]]),
]);
const server = createServer((request, response) => {
  const [name, body] = files.get(new URL(request.url, "http://localhost").pathname) ?? [];
  if (body === undefined) return response.writeHead(404).end();
  response.writeHead(200, { "content-type": types[extname(name)] }).end(body);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}/${process.argv.includes("--quick") ? "?quick" : ""}`;

const at = process.argv.indexOf("--chromium");
if (at < 0) console.log(`QLoRA in the browser: ${url}`);
else {
  const { chromium } = await import("playwright-core");
  const browser = await chromium.launch({ executablePath: process.argv[at + 1], args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage();
    page.on("console", (message) => console.log(message.text()));
    page.on("pageerror", (error) => console.log(String(error)));
    await page.goto(url);
    await page.waitForFunction(() => document.getElementById("state").textContent !== "running", null, { timeout: 600_000 });
    const state = await page.textContent("#state");
    if (state !== "done") throw new Error(`the page: ${state}`);
  } finally {
    await browser.close();
    server.close();
  }
}
