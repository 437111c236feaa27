// Weights packed by the kernel of dense rows: the same bytes as the packers that move field by field, for every width
// that it takes.
import { describe, expect, it } from "vitest";
import { format } from "../../formats/index.ts";
import { defineBlock, defineInt } from "../../formats/define/index.ts";
import { float32 } from "../../formats/float32.ts";
import type { BlockFormat } from "../../formats/core/types.ts";
import { offsetTerms } from "../../kernels/offsets.ts";
import { wasmFeatures } from "../../kernels/wasm/engine/features.ts";
import { createRuntime } from "../../kernels/wasm/engine/runtime.ts";
import { weightRecord } from "../../kernels/wasm/dot/gemmspec.ts";
import { packWeight } from "../../kernels/wasm/dot/pack.ts";
import { chooseDot } from "../../kernels/wasm/products/choose.ts";
import { indexSwaps } from "../../kernels/wasm/products/rowpack.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../src/index.ts";
import { readByRows, weightSource } from "../../src/backends/source.ts";
import { wasmWith } from "../../src/backends/wasm/backend.ts";
import { weightMemory } from "../../src/backends/wasm/product.ts";
import { packRows } from "../../src/backends/wasm/rows.ts";
import { seededRandom } from "../../src/quantize/random.ts";

const blocks = (bits: number, span: number, zeroPoint: boolean): BlockFormat =>
  defineBlock({
    element: defineInt({ bits, signed: !zeroPoint }),
    scales: [{ format: float32, span }],
    ...(zeroPoint ? { offset: { role: "zeroPoint" as const, levels: [{ format: defineInt({ bits, signed: false }), span }] } } : {}),
  });

const cases: readonly (readonly [string, BlockFormat, number, number])[] = [
  ...[2, 4, 8].flatMap((bits) =>
    [false, true].map((zero) => [`${bits} bits${zero ? ", zero points" : ""}`, blocks(bits, 32, zero), 32, 96] as const),
  ),
  ["spans of two groups", blocks(4, 512, false), 16, 1024],
  ["a short last group", blocks(4, 32, false), 48, 72],
  ["a row of odd length", blocks(4, 32, false), 32, 45],
  ["scales of other types", format("mxfp4") as BlockFormat, 32, 96],
  ["two levels of scales", format("nvfp4") as BlockFormat, 32, 96],
  ["addends", format("q4_1") as unknown as BlockFormat, 32, 96],
];

describe("packing by the kernel of dense rows", () => {
  const features = wasmFeatures();
  const runtime = createRuntime({ features, pool: null });

  for (const [name, of, rows, k] of cases)
    it(`writes what the packer of fields writes: ${name}`, () => {
      const random = seededRandom(7);
      const w = quantize(
        tensor(
          Float32Array.from({ length: rows * k }, () => random() - 0.4),
          [rows, k],
        ),
        of,
      );
      const source = weightSource(w);
      const choice = chooseDot(source, { activationBits: 8, features, shared: false, codebook: "int8" });
      if (typeof choice === "string") throw new Error(choice);
      const { plan, shape } = choice;
      const parts = offsetTerms(source, plan);
      const record = weightRecord({ bits: plan.bits, group: shape.group, ...parts });
      expect(shape.half).toBe(false);
      const [own, other] = [weightMemory(runtime, shape.bytes), weightMemory(runtime, shape.bytes)];
      const { space } = own;
      const took = packRows(runtime, space, { source, plan, cut: shape, record, parts, address: own.address });
      // opaque blocks are no dense rows
      expect(took).toBe(source.dense !== undefined && shape.span === shape.group);
      packWeight(source, plan, shape, space.buffer, other.address);
      if (!took) return;
      expect(new Uint8Array(space.buffer, own.address, shape.bytes)).toEqual(new Uint8Array(space.buffer, other.address, shape.bytes));
    });

  it("keeps scales as float16 where they are float16 values: the same products, in fewer bytes", () => {
    const [rows, k] = [48, 256];
    const random = seededRandom(3);
    const halves = [2 ** -14, -0.75, 0, 65504, -(2 ** -14) * 1.5, 1.0009765625];
    for (const zeroPoint of [false, true])
      for (const span of [32, 256]) {
        const of = blocks(4, span, zeroPoint);
        const count = rows * (k / span);
        const scales = Float32Array.from({ length: count }, (_, i) => halves[i % halves.length]);
        const codes = Uint8Array.from({ length: (rows * k) / 2 }, () => 256 * random());
        const offsets = zeroPoint ? { offsets: Uint8Array.from({ length: rows * Math.ceil(k / span / 2) }, () => 16 * random()) } : {};
        const packed = { ...quantize(tensor(new Float32Array(rows * k).fill(1), [rows, k]), of), codes, ...offsets };
        const half = { ...packed, scales: new Uint8Array(scales.buffer) };
        // one that is no float16, of a row by itself, keeps float32 for all
        const odd = Float32Array.from(scales, (v, i) => (i >= count - k / span ? 1 + 2 ** -20 : v));
        const full = { ...packed, scales: new Uint8Array(odd.buffer) };
        const shapes = [half, full].map((w) => {
          const choice = chooseDot(weightSource(w), { activationBits: 8, features, shared: false, codebook: "int8" });
          if (typeof choice === "string") throw new Error(choice);
          return choice.shape;
        });
        expect(shapes.map((shape) => shape.half)).toEqual([true, false]);
        expect(shapes[0].bytes).toBeLessThan(shapes[1].bytes);
        const backend = wasmWith(features);
        for (const m of [1, 3, 40]) {
          const x = Float32Array.from({ length: m * k }, () => random() - 0.5);
          const [a, b] = [half, full].map((w) => backend.prepare(w, { activations: "int8" }).run(x, m));
          for (let r = 0; r < m; r++) expect(a.subarray(r * rows, r * rows + rows - 1)).toEqual(b.subarray(r * rows, r * rows + rows - 1));
        }
        backend.dispose();
      }
  });

  it("orders the fields of a word by bytes", () => {
    for (const bits of [1, 2, 4, 8]) {
      const quads = 8 / bits;
      let places = Array.from({ length: 32 / bits }, (_, i) => i);
      for (const [low, high] of indexSwaps(bits)) {
        const swapped = (i: number): number => {
          const [a, b] = [(i >> low) & 1, (i >> high) & 1];
          return a === b ? i : i ^ (1 << low) ^ (1 << high);
        };
        places = places.map((_, i) => places[swapped(i)]);
      }
      expect(places).toEqual(places.map((_, i) => 4 * (i % quads) + Math.floor(i / quads)));
    }
  });

  it("asks for the rows of a weight in parts, never for all of its codes", () => {
    const w = quantize(tensor(new Float32Array(64 * 64).fill(1), [64, 64]), blocks(4, 32, false));
    const lazy = { ...w };
    Object.defineProperty(lazy, "codes", {
      get() {
        throw new Error("all codes");
      },
    });
    const asked: number[] = [];
    readByRows(lazy, {
      codes(row, count, into) {
        asked.push(row, count);
        into.set(w.codes.subarray(row * w.rowBytes, (row + count) * w.rowBytes));
      },
    });
    const source = weightSource(lazy);
    const choice = chooseDot(source, { activationBits: 8, features, shared: false, codebook: "int8" });
    if (typeof choice === "string") throw new Error(choice);
    const { plan, shape } = choice;
    const parts = offsetTerms(source, plan);
    const record = weightRecord({ bits: plan.bits, group: shape.group, ...parts });
    const { space, address } = weightMemory(runtime, shape.bytes);
    expect(packRows(runtime, space, { source, plan, cut: shape, record, parts, address })).toBe(true);
    expect(asked).toEqual([0, 64]);
  });

  it("reads single rows some at once, for every product", async () => {
    const [n, k] = [200, 256];
    const x = Float32Array.from({ length: k }, (_, i) => Math.sin(i));
    for (const features of ["simd", undefined] as const)
      for (const [of, activations] of [
        [blocks(2, 32, false), "int8"],
        [blocks(4, 32, false), "int8"],
        [blocks(4, 32, false), "float32"],
        [format("ternary_row") as BlockFormat, "int8"],
      ] as const) {
        const backend = await wasm(features === undefined ? {} : { features });
        const w = quantize(
          tensor(
            Float32Array.from({ length: n * k }, (_, i) => Math.cos(i * i)),
            [n, k],
          ),
          of,
        );
        const lazy = { ...w };
        let whole = 0;
        Object.defineProperty(lazy, "codes", { get: () => (whole++, w.codes), enumerable: true });
        let rows = 0;
        readByRows(lazy, {
          codes(row, count, into) {
            rows += count;
            into.set(w.codes.subarray(row * w.rowBytes, (row + count) * w.rowBytes));
          },
        });
        const options = { backend, activations };
        expect(prepareMatmul(lazy, options).run(x, 1)).toEqual(prepareMatmul(w, options).run(x, 1));
        expect(whole).toBe(0);
        // what looks at all codes first reads them once more
        expect(rows).toBeGreaterThanOrEqual(n);
        expect(rows).toBeLessThanOrEqual(3 * n);
        backend.dispose();
      }
  });
});
