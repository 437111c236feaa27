// A page that is not cross-origin isolated: one thread works, more are refused in words.
import { expect, it } from "vitest";
import { mxfp4 } from "../../formats/index.ts";
import { matmul, quantize, tensor, wasm } from "../../src/index.ts";
import { normalArray } from "../helpers/random.ts";

it("is not isolated", () => {
  expect((globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated).toBe(false);
});

it("threads need an isolated page, and the error says so", async () => {
  await expect(wasm({ threads: 2 })).rejects.toMatchObject({
    code: "E_UNSUPPORTED",
    message: expect.stringContaining("cross-origin isolated"),
  });
});

it("one thread gives the reference's numbers", async () => {
  const [m, n, k] = [3, 33, 96];
  const w = quantize(tensor(normalArray(n * k, 1), [n, k]), mxfp4);
  const x = tensor(normalArray(m * k, 2), [m, k]);
  const expected = (await matmul(x, w)).data;
  const got = (await matmul(x, w, { backend: "wasm" })).data;
  for (let i = 0; i < got.length; i++) expect(Math.abs(got[i] - expected[i])).toBeLessThan(1e-4);
});
