// Places that forbid what the backend needs: the error comes from `wasm()`, with a code and what to do.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { afterEach, expect, it, vi } from "vitest";
import { format } from "../../../formats/index.ts";
import { engine } from "../../../kernels/wasm/engine/engine.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";

afterEach(() => void vi.restoreAllMocks());

it("a content policy without wasm-unsafe-eval", async () => {
  vi.spyOn(engine as unknown as { Module: () => void }, "Module").mockImplementation(function () {
    throw new Error("Wasm code generation disallowed by embedder");
  });
  const refusal = { code: "E_UNSUPPORTED", message: expect.stringMatching(/disallowed by embedder.*'wasm-unsafe-eval'.*reference/) };
  await expect(wasm()).rejects.toMatchObject(refusal);
  await expect(wasm({ threads: 2 })).rejects.toMatchObject(refusal);
  const w = quantize(tensor(new Float32Array(32).fill(1), [1, 32]), format("int4_b32"));
  expect(() => prepareMatmul(w, { backend: "wasm" })).toThrowError(/wasm-unsafe-eval/);
});

it("Node's permission model", async () => {
  const root = fileURLToPath(new URL("../../../", import.meta.url));
  // one text from standard input: the model keeps files from being read, too
  const { outputFiles } = await build({
    stdin: { contents: `export { wasm } from "./src/index.ts";`, resolveDir: root },
    bundle: true,
    format: "esm",
    platform: "node",
    write: false,
  });
  const script = `${outputFiles[0].text}
    for (const threads of [1, 2])
      await wasm({ threads }).then((b) => console.log("threads", b.threads), (e) => console.log(e.name, e.code, e.message));
    process.exit(0);`;
  const flag = process.allowedNodeEnvironmentFlags.has("--permission") ? "--permission" : "--experimental-permission";
  const run = (...flags: string[]): string =>
    execFileSync(process.execPath, [flag, ...flags, "--input-type=module"], {
      input: script,
      timeout: 100_000,
      encoding: "utf8",
      stdio: ["pipe", "pipe", "ignore"],
    });
  expect(run()).toMatch(/^threads 1\nLowbitError E_UNSUPPORTED .*restricted.*--allow-worker.*threads: 1/);
  expect(run("--allow-worker")).toBe("threads 1\nthreads 2\n");
});
