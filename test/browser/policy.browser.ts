// The WebAssembly backend under a content policy that allows scripts and workers from files of its own origin only.
import { expect, it } from "vitest";
import { mxfp4 } from "../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../src/index.ts";
import { normalArray } from "../helpers/random.ts";

it("inline workers are refused by the policy, with an error", async () => {
  await expect(wasm({ threads: 2 })).rejects.toMatchObject({ code: "E_DEVICE" });
});

it("a worker file runs", async () => {
  const [m, n, k] = [4, 48, 96];
  const w = quantize(tensor(normalArray(n * k, 1), [n, k]), mxfp4);
  const x = normalArray(m * k, 2);
  const backend = await wasm({ threads: 2, workerUrl: "worker.js" });
  const one = await wasm();
  for (const activations of ["float32", "int16", "int8"] as const)
    expect(Array.from(prepareMatmul(w, { backend, activations }).run(x, m))).toEqual(
      Array.from(prepareMatmul(w, { backend: one, activations }).run(x, m)),
    );
  backend.dispose();
});
