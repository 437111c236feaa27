// Products of 4-bit weights with activations of two widths (COMET's FMPQ): exact integers, the oracle's numbers, any
// order of channels, one row to many, threads; and what is refused.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { format } from "../../../formats/index.ts";
import { dequantize, prepareMatmul, quantize, tensor, wasm, type MixedChannels, type WasmBackend } from "../../../src/index.ts";
import { gaussian, outlierSplit, permuteColumns, seededRandom } from "../../../src/quantize/index.ts";
import { product, quantizedActivations } from "../../oracle/product.ts";

const multiply = (x: ArrayLike<number>, w: ArrayLike<number>, m: number, n: number, k: number): number[] =>
  Array.from({ length: m * n }, (_, at) => {
    const [r, j] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let i = 0; i < k; i++) sum += x[r * k + i] * w[j * k + i];
    return sum;
  });

describe("mixed activations", () => {
  const backends: WasmBackend[] = [];
  beforeAll(async () => void backends.push(await wasm(), await wasm({ threads: 2 })));
  afterAll(() => backends.forEach((backend) => backend.dispose()));

  const random = seededRandom(44);
  const integer = (most: number): number => Math.floor(random() * (2 * most + 1)) - most;

  test.each([
    [1, 17, 128, "int4_b32", 32],
    [5, 33, 256, "int4_b64", 128],
    [37, 16, 192, "uint4_b32_zp", 64],
    [3, 19, 96, "int4_b32", 96],
    [6, 8, 384, "int6_row", 128],
  ] as const)("%d rows of [%d, %d] %s, %d wide: the integers of one unsplit product", (m, n, k, name, wide) => {
    const bits = name === "int6_row" ? "int6" : "int4";
    const most = bits === "int4" ? 7 : 31;
    const span = name === "int6_row" ? 128 : Number(/_b(\d+)/.exec(name)![1]);
    const packed = quantize(
      tensor(
        Float32Array.from({ length: n * k }, () => integer(7)),
        [n, k],
      ),
      format(name),
    );
    const w = { ...packed, scales: new Uint8Array(new Float32Array(packed.scales!.length / 4).fill(0.5).buffer) };
    const values = dequantize(w);
    // the first channel of a group holds its largest code: scales are 1
    const ordered = Float32Array.from({ length: m * k }, (_, i) => {
      const limit = i % k < wide ? 127 : most;
      return (i % k) % span === 0 ? limit : integer(limit);
    });
    // place p of the weight is channel (5 p + 2) mod k of x: k has no factor 5
    const order = Int32Array.from({ length: k }, (_, p) => (5 * p + 2) % k);
    const x = new Float32Array(m * k);
    for (let r = 0; r < m; r++) for (let p = 0; p < k; p++) x[r * k + order[p]] = ordered[r * k + p];
    const want = multiply(ordered, values, m, n, k);
    for (const backend of [...backends, "reference"] as const) {
      const run = (of: Float32Array, mixed: MixedChannels): number[] =>
        Array.from(prepareMatmul(w, { backend: backend as WasmBackend, activations: bits, mixed }).run(of, m));
      expect(run(x, { wide, order })).toEqual(want);
      expect(run(ordered, { wide })).toEqual(want);
      // without it, codes beyond the narrow ones are lost
      expect(run(ordered, { wide: 0 })).not.toEqual(want);
    }
  });

  test("outliers gathered by outlierSplit: the oracle's numbers, far nearer to float32 than 4 bits alone", () => {
    const [m, n, k, block] = [9, 24, 256, 32];
    const normal = gaussian(seededRandom(45));
    const x = Float32Array.from({ length: m * k }, (_, i) => normal() * ([7, 80, 133].includes(i % k) ? 60 : 1));
    const weight = tensor(Float32Array.from({ length: n * k }, normal), [n, k]);
    const magnitudes = Float64Array.from({ length: k }, (_, i) => Math.max(...Array.from({ length: m }, (_, r) => Math.abs(x[r * k + i]))));
    const split = outlierSplit(magnitudes, { block });
    expect(split.wide).toBe(block);
    const w = quantize(permuteColumns(weight, split.order), format("int4_b32"));
    const values = dequantize(w);
    const ordered = Float32Array.from({ length: m * k }, (_, i) => x[i - (i % k) + split.order[i % k]]);
    const acts = quantizedActivations(ordered, m, k, 4, block, split.wide);
    const { y: want, bound } = product(acts, values, m, n, k, { steps: k + 16, size: Float64Array.from(values, Math.abs) });
    const exact = multiply(ordered, values, m, n, k);
    const error = (y: ArrayLike<number>): number => Math.sqrt(exact.reduce((sum, v, i) => sum + (v - y[i]) ** 2, 0));
    for (const backend of backends) {
      const layer = prepareMatmul(w, { backend, activations: "int4", mixed: split });
      const y = layer.run(x, m);
      y.forEach((v, i) => expect(Math.abs(v - want[i])).toBeLessThanOrEqual(bound[i]));
      expect(layer.explain().reasons.join()).toMatch(/first 32 of 256 channels keep 8 bits/);
      // one row takes another kernel
      expect(Array.from(layer.run(x.subarray(0, k), 1))).toEqual(Array.from(y.subarray(0, n), (v) => expect.closeTo(v, 2) as number));
      const narrow = prepareMatmul(w, { backend, activations: "int4" }).run(ordered, m);
      expect(error(y)).toBeLessThan(error(narrow) / 2);
    }
  });

  test("refuses what cannot be", () => {
    const w = quantize(tensor(new Float32Array(4 * 64).fill(1), [4, 64]), format("int4_b32"));
    const [backend] = backends;
    const make =
      (mixed: MixedChannels, more: object = {}) =>
      () =>
        prepareMatmul(w, { backend, activations: "int4", mixed, ...more });
    for (const wide of [-32, 0.5, 65, NaN]) expect(make({ wide })).toThrow(/0 to k = 64 wide channels, got/);
    expect(make({ wide: 3 })().explain().reasons.join()).toContain("the first 32 of 64 channels");
    expect(make({ wide: 32, order: [0, 1, 2] })).toThrow(/order of 64 channels, each once, got 3/);
    expect(make({ wide: 32, order: new Array<number>(64).fill(0) })).toThrow(/each once/);
    expect(make({ wide: 32 }, { activations: "int8" })).toThrow(/"int4" or "int6"/);
    expect(make({ wide: 32 }, { hadamard: 32 })).toThrow(/no hadamard/);
    const floats = quantize(tensor(new Float32Array(4 * 64).fill(1), [4, 64]), format("bfloat16"));
    const order = Array.from({ length: 64 }, (_, p) => 63 - p);
    expect(() => prepareMatmul(floats, { backend, activations: "int4", mixed: { wide: 0, order } })).toThrow(/integer product/);
    expect(prepareMatmul(floats, { backend, activations: "int4", mixed: { wide: 32 } }).explain().activations).toBe("float32");
    expect(() => prepareMatmul(floats, { backend, activations: "int4", hadamard: 32 })).toThrow(/integer product/);
  });
});
