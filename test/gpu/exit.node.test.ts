// Processes that use the WebGPU backend end with exit code 0, without a hang and without a crash of dawn: with and
// without dispose, with work under way, with backends that were dropped, after garbage collection. Shader caches are
// cold. Node only.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { afterAll, beforeAll, expect, it } from "vitest";
import { adapterName, describeGpu, takesAll } from "./adapter.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Ends of a process, after a product has run. */
const ends: Record<string, string> = {
  disposed: "layer.dispose(); backend.dispose();",
  "backend disposed": "backend.dispose();",
  "nothing disposed": "",
  "work under way": "void layer.runAsync(x, 1);",
  "work under way, exit": "void layer.runAsync(x, 1).catch(() => {}); process.exit(0);",
  "disposed with work under way": "const late = layer.runAsync(x, 1).then(() => 0, () => 0); backend.dispose(); await late;",
  collected: "for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((r) => setTimeout(r, 5)); } await layer.runAsync(x, 1);",
  "dropped and collected": "void layer.runAsync(x, 1); layer = null; backend = null; for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((r) => setTimeout(r, 5)); }",
  "two backends": "const other = await webgpu(); globalThis.gc(); await prepareMatmul(w, { backend: other }).runAsync(x, 1); backend.dispose(); globalThis.gc();",
  "disposed and collected": "backend.dispose(); layer = null; backend = null; for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((r) => setTimeout(r, 30)); }",
}; // prettier-ignore

describeGpu(`process exits on ${adapterName}`, () => {
  const dir = mkdtempSync(join(tmpdir(), "lowbit-exit-"));
  const bundle = join(dir, "lowbit.mjs");
  beforeAll(async () => {
    // the package webgpu, as an install would put it there
    symlinkSync(join(root, "node_modules"), join(dir, "node_modules"));
    await build({
      stdin: {
        contents: `export { webgpu } from "./src/backends/webgpu/backend.ts"; export { prepareMatmul, quantize, tensor } from "./src/index.ts"; export { int4 } from "./formats/int4.ts";`,
        resolveDir: root,
        loader: "ts",
      },
      bundle: true,
      format: "esm",
      platform: "node",
      external: ["webgpu"],
      outfile: bundle,
      logLevel: "silent",
    });
  });
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  const script = (end: string): string => `
    const { webgpu, prepareMatmul, quantize, tensor, int4 } = await import(${JSON.stringify(`file://${bundle}`)});
    let backend = await webgpu();
    const w = quantize(tensor(Float32Array.from({ length: 64 }, (_, i) => (i % 15) - 7), [2, 32]), int4);
    let layer = prepareMatmul(w, { backend });
    const x = new Float32Array(32).fill(1);
    const y = await layer.runAsync(x, 1);
    console.log("answer", y[0]);
    ${end}`;

  async function run(end: string): Promise<{ code: number | string; out: string }> {
    return new Promise((resolve) => {
      const child = spawn(process.execPath, ["--expose-gc", "--input-type=module", "-e", script(end)], {
        cwd: root,
        env: { ...process.env, MESA_SHADER_CACHE_DISABLE: "true" },
        stdio: ["ignore", "pipe", "pipe"],
      });
      let out = "";
      child.stdout.on("data", (data) => (out += data));
      child.stderr.on("data", (data) => (out += data));
      const timer = setTimeout(() => child.kill("SIGKILL"), 240_000);
      child.on("close", (code, signal) => {
        clearTimeout(timer);
        resolve({ code: code ?? signal ?? "none", out });
      });
    });
  }

  const times = takesAll("formats") ? 5 : 1;
  it(`${times * Object.keys(ends).length} of them`, async () => {
    const rounds = Array.from({ length: times }, () => Object.entries(ends)).flat();
    const wrong: string[] = [];
    while (rounds.length > 0)
      await Promise.all(
        rounds.splice(0, 2).map(async ([name, end]) => {
          const { code, out } = await run(end);
          if (code !== 0 || !/answer -?\d/.test(out)) wrong.push(`${name}: ${code} ${out}`);
        }),
      );
    expect(wrong).toEqual([]);
  }, 600_000);
});
