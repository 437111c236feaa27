// Small transforms and where their inputs end: every Hadamard order by its construction, rotations from what recipes hold,
// windows of convolutions, mixed weights by their algebra.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import {
  convStatistics,
  dequantizeMixed,
  dequantizeOriginal,
  fwht,
  hadamard,
  hadamardRotation,
  im2col,
  layerStatistics,
  mixedBytes,
  mrgptq,
  orthogonalRotation,
  outlierSplit,
  permuteColumns,
  permuteRows,
  quantizeMixed,
  rotatedRtn,
  rotateHessian,
  rotationOf,
  rtn,
  splitColumns,
  storedBytes,
  type ConvGeometry,
  type RotationConfig,
} from "../../src/quantize/index.ts";
import { hadamardFactors } from "../../src/quantize/hadamard.ts";
import { inverse } from "../oracle/gptq.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

const shape = expect.objectContaining({ code: "E_SHAPE" });

describe("Hadamard", () => {
  // q + 1 and 2 (q + 1) with a prime, or the square of one; circulants; twice any of them
  test.each([1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 52, 60, 68, 76, 92, 100, 116])("order %d", (n) => {
    const h = hadamard(n);
    expect(h.every((v) => v === 1 || v === -1)).toBe(true);
    for (let i = 0; i < n; i++)
      for (let j = 0; j <= i; j++) {
        let dot = 0;
        for (let c = 0; c < n; c++) dot += h[i * n + c] * h[j * n + c];
        expect(dot).toBe(i === j ? n : 0);
      }
    const { base, power, matrix } = hadamardFactors(n);
    expect([base * power, matrix === null]).toEqual([n, base === 1]);
    // the largest power of two that leaves an order that there is: one is tried to be four times a half
    expect(base === 1 || base % 8 === 4).toBe(true);
    expect(hadamardFactors(n)).toBe(hadamardFactors(n));
  });

  test("orders that there are none of, and the block that is offered instead", () => {
    for (const [n, block] of [[3, 1], [6, 2], [10, 2], [188, 4], [376, 8]]) expect(() => hadamardFactors(n)).toThrow(`got ${n}. Rotate in blocks of ${block}.`); // prettier-ignore
    for (const n of [0, -4, 1.5, NaN]) {
      expect(() => hadamardFactors(n)).toThrow(RangeError);
      expect(() => hadamardRotation(n)).toThrow(RangeError);
      expect(() => orthogonalRotation(n, 1)).toThrow(RangeError);
    }
    for (const block of [0, 3, 1.5]) expect(() => hadamardRotation(8, { block })).toThrow(shape);
    for (const n of [0, 3, 6, 12, 1.5, NaN]) expect(() => fwht(new Float64Array(12), n)).toThrow(RangeError);
    expect(() => fwht(new Float64Array(6), 4)).toThrow(RangeError);
    for (const n of [1, 2, 4]) expect(() => fwht(new Float64Array(8), n)).not.toThrow();
  });
});

describe("rotations", () => {
  test("signs stand before the transform, in the order of the seed's numbers", () => {
    const plain = hadamardRotation(12, { block: 4 });
    const signed = hadamardRotation(12, { block: 4, seed: 3 });
    const signs = Array.from({ length: 12 }, (_, i) =>
      Math.sign(signed.matrix()[i * 12] || signed.matrix()[i * 12 + 4] || signed.matrix()[i * 12 + 8]),
    );
    const x = Float64Array.from({ length: 24 }, (_, i) => i + 1);
    const y = x.map((v, i) => v * signs[i % 12] * 1); // prettier-ignore
    signed.apply(x);
    plain.apply(y);
    // the first column of each block of a Hadamard matrix of Sylvester's is all ones
    expect(x).toEqual(y);
    expect(signs.includes(-1) && signs.includes(1)).toBe(true);
    expect([signed.kind, signed.n, signed.block, signed.seed]).toEqual(["hadamard", 12, 4, 3]);
    expect([plain.seed, hadamardRotation(12).block]).toEqual([null, 12]);
    expect(hadamardRotation(12, { block: 4, seed: 4 }).matrix()).not.toEqual(signed.matrix());
  });

  test("what a recipe holds, or a clear refusal", () => {
    for (const made of [hadamardRotation(8, { block: 4, seed: 2 }), hadamardRotation(12), orthogonalRotation(5, 0)]) {
      const { kind, n, block, seed } = made;
      expect(rotationOf({ kind, n, block, seed }).matrix()).toEqual(made.matrix());
    }
    for (const bad of [
      undefined,
      null,
      {},
      { kind: "givens" },
      { kind: "orthogonal", n: 4, block: 4, seed: null },
      { kind: "other", seed: 1 },
    ])
      expect(() => rotationOf(bad as RotationConfig)).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
    const r = hadamardRotation(4);
    for (const x of [new Float64Array(6), new Float32Array(3)]) for (const way of ["apply", "applyInverse"] as const) expect(() => r[way](x)).toThrow(/multiple of 4/); // prettier-ignore
    expect(() => rotateHessian(new Float64Array(15), r)).toThrow(/4 x 4 numbers, got 15/);
    const h = new Float64Array(16).fill(1);
    expect(rotateHessian(h, r)).not.toEqual(h);
    expect(h).toEqual(new Float64Array(16).fill(1));
  });

  test("orthogonal matrices have a positive first part of what they were made of: the signs of R are taken out", () => {
    for (const n of [1, 2, 7]) {
      const q = orthogonalRotation(n, 4).matrix();
      for (let i = 0; i < n; i++)
        for (let j = 0; j < n; j++) {
          let dot = 0;
          for (let c = 0; c < n; c++) dot += q[i * n + c] * q[j * n + c];
          expect(Math.abs(dot - Number(i === j))).toBeLessThan(1e-14);
        }
    }
  });

  test("quantizers in a basis of their own, by default in blocks of the format", () => {
    const [rows, k] = [3, 48];
    const w = tensor(gaussianWeights(rows, k, 1), [rows, k]);
    const made = layerStatistics(k);
    made.add(inputs("iid", 60, k, 1));
    const hessian = made.finish();
    const blocks: Record<string, number> = { int4_b16: 16, mxfp4: 32, int4_row: 48, int8: 48, ggml_q4_0: 32 };
    for (const [name, block] of Object.entries(blocks)) {
      const fits = k % block === 0;
      const run = (make: () => object) => quantize(w, format(name), make() as never).recipe.rotation as RotationConfig;
      for (const make of [() => rotatedRtn(), () => mrgptq({ hessian })])
        if (fits) expect(run(make), name).toEqual({ kind: "hadamard", n: k, block, seed: null });
        else expect(() => run(make), name).toThrow(shape);
    }
    const tile = quantize(w, format("int4_b16"), rotatedRtn({ seed: 9 }));
    const values = dequantizeOriginal(tile);
    let error = 0;
    w.data.forEach((v, i) => (error += (v - values[i]) ** 2));
    expect(error).toBeLessThan(0.02 * w.data.reduce((s, v) => s + v * v, 0));
    // without a rotation the values are as they are; channel scales are divided out
    const plain = quantize(w, format("int8_row"), rtn());
    const scaled = { ...plain, recipe: { ...plain.recipe, channelScales: Array.from({ length: k }, (_, j) => 1 + j) } };
    const [a, b] = [dequantizeOriginal(plain), dequantizeOriginal(scaled)];
    a.forEach((v, i) => expect(Math.abs(b[i] * (1 + (i % k)) - v)).toBeLessThanOrEqual(1e-7 * Math.abs(v)));
  });
});

describe("windows of convolutions", () => {
  test("by hand: a map of 3 x 4, windows of 2 x 2, padding on each side alone", () => {
    const x = Float32Array.from({ length: 12 }, (_, i) => i + 1);
    const of = (geometry: object, every?: number) => [...im2col(x, [1, 1, 3, 4], { channels: 1, kernel: [2, 2], ...geometry }, 0, every === undefined ? {} : { every })]; // prettier-ignore
    expect(of({ strides: [1, 2] })).toEqual([1, 2, 5, 6, 3, 4, 7, 8, 5, 6, 9, 10, 7, 8, 11, 12]);
    expect(of({ strides: [2, 2] })).toEqual([1, 2, 5, 6, 3, 4, 7, 8]);
    expect(of({ strides: [2, 3], pads: [0, 1, 0, 1] })).toEqual([0, 1, 0, 5, 3, 4, 7, 8]);
    expect(of({ strides: [3, 4], pads: [1, 0, 0, 0] })).toEqual([0, 0, 1, 2]);
    expect(of({ strides: [2, 3], pads: [0, 0, 1, 1] })).toEqual([1, 2, 5, 6, 4, 0, 8, 0, 9, 10, 0, 0, 12, 0, 0, 0]);
    expect(of({ dilations: [2, 3] })).toEqual([1, 4, 9, 12]);
    expect(of({ strides: [1, 2] }, 3)).toEqual([1, 2, 5, 6, 7, 8, 11, 12]);
    expect(of({ strides: [1, 2] }, 9)).toEqual([1, 2, 5, 6]);
  });

  test("geometry is checked word by word", () => {
    const good: ConvGeometry = { channels: 2, kernel: [2, 2] };
    const bad: [object, string][] = [
      [{ channels: 0 }, "channels: expected 1 integers >= 1, got 0"],
      [{ kernel: [2] }, "kernel: expected 2 integers >= 1, got 2"],
      [{ kernel: [0, 1] }, "kernel: expected 2 integers >= 1"],
      [{ strides: [1, 0] }, "strides: expected 2 integers >= 1"],
      [{ pads: [0, 0, 0] }, "pads: expected 4 integers >= 0"],
      [{ pads: [0, 0, 0, -1] }, "pads: expected 4 integers >= 0"],
      [{ dilations: [1, 1.5] }, "dilations: expected 2 integers >= 1"],
      [{ group: 0 }, "group: expected 1 integers >= 1"],
      [{ group: 3 }, "group: expected a divisor of 2 channels, got 3"],
    ];
    for (const [part, words] of bad) expect(() => convStatistics({ ...good, ...part })).toThrow(`convolution ${words}`);
    const x = new Float32Array(18);
    const run = (part: object, dims: [number, number, number, number] = [1, 2, 3, 3], group?: number, every?: number) =>
      im2col(x, dims, { ...good, ...part }, group, every === undefined ? undefined : { every });
    expect(run({}).length).toBe(4 * 8);
    for (const kernel of [[4, 1], [1, 4]]) expect(() => run({ kernel })).toThrow(shape); // prettier-ignore
    for (const kernel of [[3, 1], [1, 3]]) expect(() => run({ kernel })).not.toThrow(); // prettier-ignore
    expect(() => run({}, [1, 1, 6, 3])).toThrow(/\[n, 2, h, w\]/);
    expect(() => run({}, [1, 2, 3, 4])).toThrow(/expected 24 numbers for \[1, 2, 3, 4\], got 18/);
    for (const group of [-1, 2, 0.5]) expect(() => run({ group: 2 }, undefined, group)).toThrow(/im2col group: expected 0..1/);
    for (const every of [0, 1.5]) expect(() => run({}, undefined, 0, every)).toThrow(/im2col every/);
  });
});

describe("two formats in one weight", () => {
  test("the narrow part is W + E H_wn (H_nn + ridge)^-1, E the error of the wide part", () => {
    const [rows, k, wide] = [4, 12, 4];
    const rng = random(2);
    const w = Float64Array.from({ length: rows * k }, () => rng.normal());
    const made = layerStatistics(k);
    made.add(inputs("ar", 100, k, 5));
    const statistics = made.finish();
    const h = statistics.hessian;
    const split = outlierSplit(
      Float64Array.from({ length: k }, (_, j) => (j % 3 === 1 ? 10 + j : 1)),
      { block: wide },
    );
    const order = Array.from(split.order);
    expect([split.wide, ...order]).toEqual([4, 10, 7, 4, 1, 0, 2, 3, 5, 6, 8, 9, 11]);
    const formats = [format("int2_row"), format("float32")] as const;
    for (const ridge of [undefined, 0.3]) {
      const mixed = quantizeMixed(tensor(w, [rows, k]), split, formats, { statistics, ...(ridge === undefined ? {} : { ridge }) });
      expect(mixed.parts.map((p) => p.k)).toEqual([4, 8]);
      const got = dequantizeMixed(mixed);
      const narrow = order.slice(wide);
      const mean = narrow.reduce((sum, j) => sum + h[j * k + j] / narrow.length, 0);
      const inv = inverse(narrow.map((i) => narrow.map((j) => h[i * k + j] + (i === j ? (ridge ?? 0.01) * mean : 0))));
      for (let r = 0; r < rows; r++) {
        const lost = order.slice(0, wide).map((j) => w[r * k + j] - got[r * k + j]);
        const right = narrow.map((j) => order.slice(0, wide).reduce((sum, i, p) => sum + lost[p] * h[i * k + j], 0));
        narrow.forEach((j, q) => {
          const want = w[r * k + j] + right.reduce((sum, v, p) => sum + v * inv[p][q], 0);
          expect(Math.abs(got[r * k + j] - want)).toBeLessThan(1e-5);
        });
      }
      expect(mixedBytes(mixed)).toBe(mixed.parts.reduce((n, p) => n + storedBytes(p), 2 * k));
    }
    // without statistics, or with sums only, the parts are as they would be alone
    const sums = layerStatistics(k, { hessian: false });
    sums.add(inputs("ar", 100, k, 5));
    const alone = quantizeMixed(tensor(w, [rows, k]), split, formats);
    expect(quantizeMixed(tensor(w, [rows, k]), split, formats, { statistics: sums.finish() })).toEqual(alone);
  });

  test("orders, each channel once, and inputs of the parts", () => {
    const t = tensor(Float64Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
    expect([...permuteColumns(t, [2, 0, 1]).data]).toEqual([3, 1, 2, 6, 4, 5]);
    const layer = { weight: Float32Array.of(1, 2, 3, 4, 5, 6), rows: 3, k: 2, bias: Float32Array.of(7, 8, 9) };
    expect(permuteRows(layer, [2, 0, 1])).toEqual({
      weight: Float64Array.of(5, 6, 1, 2, 3, 4),
      rows: 3,
      k: 2,
      bias: Float64Array.of(9, 7, 8),
    });
    expect(permuteRows({ ...layer, bias: null }, [0, 1, 2]).bias).toBeNull();
    for (const order of [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1], [0, 1, 1.5], [0, 1, 2, 0]]) {
      expect(() => permuteColumns(t, order)).toThrow(/an order of 3 channels, each once/);
      expect(() => permuteRows(layer, order)).toThrow(shape);
    } // prettier-ignore
    const mixed = quantizeMixed(t, outlierSplit([1, 1, 100], { block: 1 }), [format("int8_row"), format("int4_row")]);
    const parts = splitColumns(tensor(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9), [3, 3]), mixed);
    expect(parts.map(({ data, shape: dims }) => [[...data], [...dims]])).toEqual([[[3, 6, 9], [3, 1]], [[1, 2, 4, 5, 7, 8], [3, 2]]]); // prettier-ignore
    // one part needs no order
    const whole = quantizeMixed(t, outlierSplit([1, 1, 1], { block: 1 }), [format("int8_row"), format("int4_row")]);
    expect([whole.parts.length, mixedBytes(whole)]).toEqual([1, storedBytes(whole.parts[0])]);
  });

  test("outliers: above so many times the median, which lies between two of an even number", () => {
    const split = (amax: number[], options: object = {}) => outlierSplit(amax, { block: 1, ...options });
    expect(split([1, 3, 8, 8.1]).wide).toBe(0); // median 5.5
    expect(split([1, 1, 3, 8, 8.1]).wide).toBe(0); // median 3
    expect(split([1, 3, 22.1, 5]).wideBlocks).toBe(1); // median 4, limit 16
    expect(split([1, 3, 16, 5]).wide).toBe(0);
    expect(split([1, 3, 16, 5], { threshold: 3.9 }).wide).toBe(1);
    const two = outlierSplit([1, 9, 1, 1, 9, 1, 1, 9, 1], { block: 2 });
    expect([two.wideBlocks, two.wide, two.blocksBefore, ...two.order]).toEqual([2, 4, 3, 1, 4, 7, 0, 2, 3, 5, 6, 8]);
    // all of k where the last block is short
    expect(outlierSplit([1, 2, 3], { block: 2, wideBlocks: 2 })).toMatchObject({ wide: 3, wideBlocks: 2 });
    expect(outlierSplit([5, 5, 5]).block).toBe(128);
    for (const bad of [[], [NaN], [-1], [Infinity]]) expect(() => split(bad)).toThrow(RangeError);
    for (const options of [{ block: 0 }, { block: 1.5 }, { threshold: 0 }, { threshold: NaN }, { wideBlocks: -1 }, { wideBlocks: 4 }, { wideBlocks: 0.5 }]) expect(() => split([1, 2, 3], options)).toThrow(RangeError); // prettier-ignore
  });
});
