// Integer convolutions and products of processors that this machine may not be: the relaxed dot product is printed as
// baseline SIMD128 with the meaning that it has where it is exact for unsigned bytes (x86 with VNNI), or signed ones
// (ARM), so that whole-byte operands are checked bit for bit wherever the tests run.
import { afterAll, describe, expect, it, vi } from "vitest";
import { format } from "../../../../formats/index.ts";
import { tensor } from "../../../../src/index.ts";
import { prune } from "../../../../src/quantize/index.ts";
import { wasmWith } from "../../../../src/backends/wasm/backend.ts";
import { engineMemory } from "../../../../src/backends/wasm/memory.ts";
import { checkAny, checkConv, checkProduct, FINISHES, NAMED, PRODUCTS, rng, WHOLE_BLOCKS } from "./integer-cases.ts";

/** Whether the second operand's bytes are signed: kernels are printed when they are first run. */
const meaning = vi.hoisted(() => ({ signed: false }));

vi.mock(import("../../../../kernels/wasm/engine/asm.ts"), async (original) => {
  const { emulated } = await import("../../../helpers/emulated.ts");
  return emulated(await original(), () => meaning.signed);
});

const engines = (["u8", "s8"] as const).map((dot) => ({
  dot,
  backend: wasmWith({ simd: true, relaxed: true, dot, sharedMemory: false }),
}));
afterAll(() => engines.forEach(({ backend }) => backend.dispose()));

describe.each(engines)("$dot", ({ dot, backend }) => {
  it("convolutions and products", () => {
    meaning.signed = dot === "s8";
    const memory = engineMemory(backend);
    for (const [, c] of NAMED) FINISHES.forEach((finish, f) => checkConv(memory, { ...c, unsigned: f % 2 === 0, finish }));
    for (let n = 0; n < 40; n++) checkAny(memory);
    for (const [m, k, n] of [...PRODUCTS.slice(1, 4), ...WHOLE_BLOCKS]) checkProduct(memory, m, k, n);
  });

  it("sparse products: any columns, blocks of four rows, runs of four columns", () => {
    meaning.signed = dot === "s8";
    for (const [m, n, k] of [[1, 5, 7], [9, 16, 64], [33, 6, 65], [13, 40, 259]] as const)
      for (const [rows, width] of [[1, 1], [4, 1], [1, 4]])
        for (const sparsity of [0, 0.75, 1]) {
          const byte = (): number => (rng.next() < 0.5 ? -128 : 127);
          const across = Math.ceil(k / width);
          const kept = Array.from({ length: Math.ceil(n / rows) * across }, () => rng.next() >= sparsity);
          const block = (i: number): number => Math.floor(Math.floor(i / k) / rows) * across + Math.floor((i % k) / width);
          const w = Int8Array.from({ length: n * k }, (_, i) => (kept[block(i)] ? byte() : 0));
          const a = Int8Array.from({ length: m * k }, byte);
          const expected = new Int32Array(m * n);
          for (let r = 0; r < m; r++)
            for (let c = 0; c < n; c++) for (let i = 0; i < k; i++) expected[r * n + c] += a[r * k + i] * w[c * k + i];
          const layer = backend.prepareSparseInteger(w, n, k);
          expect(layer.run(a, m), `${m} x ${n} x ${k}, blocks of ${rows} x ${width}`).toEqual(expected);
          layer.dispose();
        }
  }); // prettier-ignore

  it("products of 2:4 weights: as without relaxed SIMD", () => {
    meaning.signed = dot === "s8";
    const standard = wasmWith({ simd: true, relaxed: false, dot: "none", sharedMemory: false });
    for (const [n, k, name] of [[16, 32, "int4_b32"], [5, 96, "int4_b32"], [33, 256, "int4_b128"], [20, 72, "int4_b64"]] as const) {
      const dense = tensor(Float32Array.from({ length: n * k }, () => rng.normal()), [n, k]); // prettier-ignore
      const w = prune(dense, "2:4", { format: format(name) });
      const [own, other] = [backend, standard].map((one) => one.prepareSparse(w, { activations: "int8" }));
      expect(own.explain().kernel).toMatch(dot === "u8" ? /_dot-u$/ : /_dot-s$/);
      for (const m of [1, 3, 4, 9]) {
        const x = Float32Array.from({ length: m * k }, () => rng.normal() * 2 ** rng.integer(8));
        expect(own.run(x, m), `${name}, ${n} x ${k}, ${m} rows`).toEqual(other.run(x, m));
      }
      own.dispose();
      other.dispose();
    }
    standard.dispose();
  }); // prettier-ignore
});
