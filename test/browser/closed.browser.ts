// The WebAssembly backend under a content policy that forbids to compile WebAssembly: an error that says so, where the
// backend is made.
import { expect, it } from "vitest";
import { mxfp4 } from "../../formats/index.ts";
import { matmul, prepareMatmul, quantize, tensor, wasm } from "../../src/index.ts";

const refusal = { code: "E_UNSUPPORTED", message: expect.stringContaining("wasm-unsafe-eval") };

it('wasm() and backend "wasm" are refused, with the remedy', async () => {
  await expect(wasm()).rejects.toMatchObject(refusal);
  const w = quantize(tensor(new Float32Array(64).fill(1), [2, 32]), mxfp4);
  expect(() => prepareMatmul(w, { backend: "wasm" })).toThrowError(/wasm-unsafe-eval/);
  // the reference backend needs none
  expect(Array.from((await matmul(tensor(new Float32Array(32).fill(1), [1, 32]), w)).data)).toEqual([32, 32]);
});
