// Kernels of engines that this machine may not be: the assembler is replaced by one that prints every relaxed
// instruction as baseline SIMD128 with the meaning that it has on a given processor, so that whole-byte operands,
// corrections, tiles and panels of every style are checked bit for bit wherever the tests run.
import { afterAll, describe, expect, it, vi } from "vitest";
import { allFormats, format, type Format } from "../../../formats/index.ts";
import type { WasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { prepareMatmul, quantize, tensor } from "../../../src/index.ts";
import { wasmWith } from "../../../src/backends/wasm/backend.ts";

vi.mock(import("../../../kernels/wasm/engine/asm.ts"), async (original) => {
  const { emulated } = await import("../../helpers/emulated.ts");
  return emulated(await original());
});

const base: WasmFeatures = { simd: true, relaxed: false, dot: "none", sharedMemory: false };
const simd = wasmWith(base);
const engines = (["i7", "s8", "u8"] as const).map((dot) => ({ dot, backend: wasmWith({ ...base, relaxed: true, dot }) }));
afterAll(() => {
  simd.dispose();
  engines.forEach(({ backend }) => backend.dispose());
});

let seed = 20261122;
const random = (): number => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const noise = (n: number): Float32Array => Float32Array.from({ length: n }, () => random() + random() + random() + random() - 2);

const named = [
  "int2_b32", "int3_b32", "int4_b16", "int4_b32", "int4_b128", "int2_b256", "int3_b256", "int4_b256", "int6_b256", "uint4_b256_zp", "int5_b32", "int6_b32", "int7_b32", "int8_b32", "int8_row", "uint2_b32_zp", "uint4_b32_zp", "uint8_b32_zp",
  "float4_e2m1fn_b32", "float4_e2m1fn_b16", "iq4_nl_b32", "nf4_b32", "bipolar4_row", "uint1_row",
]; // prettier-ignore

describe("kernels of other processors, emulated", () => {
  it("every format: as baseline SIMD128 bit for bit, for one row and many", () => {
    let compared = 0;
    for (const f of [...allFormats, ...named.map((name) => format(name))] as Format[]) {
      const block = f.kind === "opaque" ? f.blockSize : f.kind === "block" && typeof f.scales[0].span === "number" ? f.scales[0].span : 32;
      const [n, k] = [17, 2 * block];
      const w = quantize(tensor(noise(n * k), [n, k]), f);
      const x = noise(65 * k);
      x.fill(1e3, 3, 9); // groups with large and with small values
      for (const activations of ["int8", "int16"] as const) {
        const standard = prepareMatmul(w, { backend: simd, activations });
        // two planes are joined in another order by i16 products: nothing to compare bit for bit
        const planes = standard.explain().kernel.includes("planes");
        for (const { dot, backend } of engines) {
          const layer = prepareMatmul(w, { backend, activations });
          if (layer.explain().activations === "float32") continue;
          const one = layer.run(x.subarray(0, k), 1);
          for (const m of [4, 9, 20, 65]) {
            const y = layer.run(x.subarray(0, m * k), m);
            expect(y.subarray(0, n), `${dot} ${layer.explain().kernel} m = ${m}, first row`).toEqual(one);
            const expected = standard.run(x.subarray(0, m * k), m);
            if (!planes && !layer.explain().kernel.includes("planes"))
              expect(y, `${dot} ${layer.explain().kernel} m = ${m}`).toEqual(expected);
            else {
              const bound = 1e-5 * k * Math.max(...x.subarray(0, m * k));
              for (let i = 0; i < y.length; i++)
                if (!(Math.abs(y[i] - expected[i]) <= bound))
                  expect.fail(`${dot} ${layer.explain().kernel} m = ${m}: ${y[i]}, expected ${expected[i]}`);
            }
            compared += y.length;
          }
          layer.dispose();
        }
        standard.dispose();
      }
    }
    expect(compared).toBeGreaterThan(100000);
  });

  it("full-range integer products", () => {
    for (const [m, n, k] of [[1, 5, 7], [4, 16, 64], [6, 17, 65], [13, 40, 259]] as const)
      for (const unsigned of [false, true])
        for (const extreme of [false, true]) {
          const byte = (): number => (extreme ? (random() < 0.5 ? -128 : 127) : Math.floor(random() * 256) - 128);
          const w = Int8Array.from({ length: n * k }, byte);
          const a = unsigned ? Uint8Array.from({ length: m * k }, () => byte() + 128) : Int8Array.from({ length: m * k }, byte);
          const expected = new Int32Array(m * n);
          for (let r = 0; r < m; r++)
            for (let c = 0; c < n; c++) for (let i = 0; i < k; i++) expected[r * n + c] += a[r * k + i] * w[c * k + i];
          for (const { dot, backend } of [...engines, { dot: "none", backend: simd }]) {
            const layer = backend.prepareInteger(w, n, k);
            expect(layer.run(a, m), `${dot} ${m} x ${n} x ${k}`).toEqual(expected);
            layer.dispose();
          }
        }
  }); // prettier-ignore
});
