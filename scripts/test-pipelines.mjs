// Pipelines of transformers.js in headless Chromium, from local folders over HTTP: with lowbit/transformers every
// session runs on this runtime, and the results are those of onnxruntime-web.
//   node scripts/test-pipelines.mjs PATH_OF_CHROMIUM
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { importSource, root } from "../test/browser/bundle.mjs";
import { serve, withChromium } from "../test/browser/chromium.mjs";

const [chromium] = process.argv.slice(2);
const dir = mkdtempSync(join(tmpdir(), "lowbit-pages-"));
try {
  const { writePipelines } = await importSource("test/runtime/pipelines.ts", dir);
  writePipelines(join(dir, "models"));
  const ort = join(root, "node_modules/onnxruntime-web/dist");
  mkdirSync(join(dir, "ort"));
  for (const name of readdirSync(ort).filter((file) => /^ort-wasm-simd-threaded.*\.(mjs|wasm)$/.test(file)))
    copyFileSync(join(ort, name), join(dir, "ort", name));
  await build({
    entryPoints: [join(root, "test/browser/pipelines.js")],
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    external: ["node:*"],
    outdir: dir,
    entryNames: "page",
    logLevel: "error",
  });
  const server = await serve(dir, { "page.html": '<!doctype html><meta charset="utf-8"><title>pipelines</title><script type="module" src="page.js"></script>' }); // prettier-ignore
  try {
    await withChromium(chromium, async (open) => {
      const page = await open(`${server.url}/plain/page.html`);
      await page.waitForFunction(() => globalThis.compare !== undefined, null, { timeout: 240_000 });
      const { said, pipelines } = await page.evaluate(() => globalThis.compare());
      const faults = said.map((message) => `said: ${message}`);
      for (const [task, { made, other, leaves, differ, ms }] of Object.entries(pipelines)) {
        const [own, ort] = ms.map((time) => time.toFixed(1));
        console.log(
          `${task}: ${made.length} sessions here, ${leaves} values, ${differ.length} differ; a call ${own} ms, onnxruntime-web ${ort} ms`,
        );
        if (made.length === 0 || made.some((runtime) => runtime !== "lowbit"))
          faults.push(`${task}: sessions of ${made.join(", ") || "none"}`);
        if (other.some((runtime) => runtime !== "onnxruntime")) faults.push(`${task}: not uninstalled`);
        if (leaves === 0 || differ.length > 0) faults.push(`${task}: ${JSON.stringify(differ.slice(0, 5))}`);
      }
      if (faults.length > 0) throw new Error(`pipelines in Chromium:\n${faults.join("\n")}`);
    });
  } finally {
    server.close();
  }
} finally {
  rmSync(dir, { recursive: true, force: true });
}
