// Quantizers on formats of several scale levels: scales of groups from weights that have moved, under an outer scale that
// stays; scales around a mean; what is refused, by name.
import { describe, expect, test } from "vitest";
import { defineBlock, float16, format, uint4 } from "../../formats/index.ts";
import { decodeArray } from "../../formats/core/bulk.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../src/index.ts";
import {
  adaround,
  awq,
  driftError,
  driftStatistics,
  gptq,
  hqq,
  layerStatistics,
  outputError,
  quantizeMixed,
  outlierSplit,
  quest,
  refitWeight,
  rtn,
  searchSmoothing,
} from "../../src/quantize/index.ts";
import { E2M1_GRID, E4M3, nearest } from "../oracle/blocks.ts";
import { gptqRef } from "../oracle/gptq.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

const [rows, k] = [5, 64];
const w = gaussianWeights(rows, k, 8);
for (let r = 0; r < rows; r++) for (let j = 0; j < 16; j++) w[r * k + j] *= 8; // its errors move the weights of later groups
w[2 * k + 40] = 0.3;
const t = tensor(w, [rows, k]);
const made = layerStatistics(k);
made.add(inputs("ar", 300, k, 9, 0.97));
const stats = made.finish();
const matrix = Array.from({ length: k }, (_, i) => Array.from(stats.hessian.subarray(i * k, (i + 1) * k)));
const original = Array.from({ length: rows }, (_, r) => Array.from(w.subarray(r * k, (r + 1) * k)));
const order = Array.from({ length: k }, (_, j) => j);
const f = Math.fround;
const largest = (list: readonly number[]) => Math.max(...list.map(Math.abs));
const e2m1 = (v: number) => E2M1_GRID[nearest(E2M1_GRID, v)];

/** GPTQ column by column, the scale of each group of each row by `scale` from the weights as they are then. */
function reference(group: number, scale: (values: number[]) => number, round = e2m1): number[] {
  const scales = original.map(() => 0);
  return gptqRef(original, matrix, {
    damp: 0.01,
    order,
    before: (j, current) => {
      if (j % group === 0) current.forEach((row, r) => (scales[r] = scale(row.slice(j, j + group))));
    },
    round: (r, _, x) => round(x / scales[r]) * scales[r],
  }).flat();
}
const near = (got: ArrayLike<number>, want: number[]) => {
  const size = largest(want);
  want.forEach((v, i) => expect(Math.abs(v - got[i]), `${i}`).toBeLessThan(1e-6 * size));
};

describe("GPTQ, a group's scale from the weights with every update so far", () => {
  test("powers of two: mxfp4", () => {
    const want = reference(32, (values) => 2 ** (Math.floor(Math.log2(largest(values))) - 2));
    for (const blockSize of [16, 32, 128]) near(dequantize(quantize(t, format("mxfp4"), gptq({ hessian: stats, blockSize }))), want);
  });

  test("two levels: nvfp4, the outer scale that of the weights at the start", () => {
    const amax = largest([...w]);
    const outer = f(amax / 2688);
    // what outgrows the largest weight saturates
    const want = reference(16, (values) => {
      const s = Math.max(f(f(Math.min(amax, largest(values)) / 6) / outer), 2 ** -6);
      return f(E4M3[nearest(E4M3, Math.min(s, 448))]! * outer);
    });
    const packed = quantize(t, format("nvfp4"), gptq({ hessian: stats }));
    near(dequantize(packed), want);
    expect(packed.superScales).toEqual(quantize(t, format("nvfp4")).superScales);
    // every row has a group whose scale has followed
    const start = quantize(t, format("nvfp4")).scales!;
    for (let r = 0; r < rows; r++) expect(packed.scales!.slice(4 * r, 4 * r + 4)).not.toEqual(start.slice(4 * r, 4 * r + 4));
  });

  test("scales around a mean, which stays: nf4 with double quantization", () => {
    const wide = tensor(gaussianWeights(4, 192, 2), [4, 192]);
    const all = layerStatistics(192);
    all.add(inputs("ar", 300, 192, 9));
    const hessian = all.finish();
    const dq = format("nf4_b64_dq") as BlockFormat;
    const [plain, packed] = [quantize(wide, dq), quantize(wide, dq, gptq({ hessian }))];
    expect([packed.offsets, packed.superScales]).toEqual([plain.offsets, plain.superScales]);
    expect(packed.scales).not.toEqual(plain.scales);
    const error = (p: PackedTensor) => outputError(wide.data, dequantize(p), 4, hessian.hessian);
    expect(error(packed)).toBeLessThan(0.5 * error(plain));
    // the first group has seen no update: its scales are the largest magnitude, in the codes there are
    for (let r = 0; r < 4; r++) {
      const got = scaleOf(packed, dq, 3 * r, r);
      const amax = largest([...wide.data.subarray(192 * r, 192 * r + 64)]);
      const codes = Array.from({ length: 256 }, (_, code) => scaleOf({ ...packed, scales: Uint8Array.of(code) }, dq, 0, r));
      expect(Math.abs(got - amax)).toBeLessThanOrEqual(Math.min(...codes.map((s) => Math.abs(s - amax))) * (1 + 1e-6));
    }
  });

  /** A scale of nf4_b64_dq: code times the outer one of its row, plus the mean of all. */
  function scaleOf(p: PackedTensor, dq: BlockFormat, cell: number, row: number): number {
    const outer = new Float32Array(p.superScales!.slice().buffer)[row];
    const mean = new Float32Array(p.offsets!.slice().buffer)[0];
    const inner = decodeArray(dq.scales[0].format, p.scales!.slice(cell, cell + 1), new Float64Array(1))[0];
    return f(f(inner * outer) + mean);
  }

  test("a search of scales around a mean: the best of the fractions, and of what is above", () => {
    const rng = random(3);
    const wide = tensor(Float32Array.from({ length: 8 * 128 }, () => rng.laplace()), [8, 128]); // prettier-ignore
    const dq = format("nf4_b64_dq") as BlockFormat;
    const plain = quantize(wide, dq);
    const values = Array.from({ length: 16 }, (_, code) => dq.element.decode(code));
    const mean = new Float32Array(plain.offsets!.slice().buffer)[0];
    const level = dq.scales[0].format;
    for (const search of [{ method: "mse" }, { method: "mse", maxGrow: 1, grid: 20, maxShrink: 0.5 }] as const) {
      const { grid, maxShrink, maxGrow } = { grid: 80, maxShrink: 0.8, maxGrow: 2, ...search };
      const packed = quantize(wide, dq, rtn({ search }));
      let better = 0;
      for (let cell = 0; cell < 16; cell++) {
        const own = [...wide.data.subarray(64 * cell, 64 * cell + 64)];
        const error = (s: number) => own.reduce((sum, v) => sum + Math.min(...values.map((a) => (v - a * s) ** 2)), 0);
        const start = scaleOf(plain, dq, cell, cell >> 1);
        const outer = new Float32Array(plain.superScales!.slice().buffer)[cell >> 1];
        const stored = (s: number) => f(f(level.decode(level.encode((s - mean) / outer, { overflow: "saturate" })) * outer) + mean);
        const tried = [start, stored(start * maxGrow), ...Array.from({ length: grid + 1 }, (_, i) => stored(start * (1 - (maxShrink * i) / grid)))]; // prettier-ignore
        for (let p = 1; p <= maxGrow; p *= 1.03125) tried.push(stored(start * p));
        const got = error(scaleOf(packed, dq, cell, cell >> 1));
        expect(got / Math.min(...tried.filter((s) => s > 0).map(error))).toBeCloseTo(1, 9);
        if (got < error(start)) better++;
      }
      expect(better).toBeGreaterThan(2);
    }
  });
});

test("polish with inputs that are always zero, and no damping", () => {
  const x = inputs("ar", 300, k, 9, 0.97);
  for (let i = 7; i < x.length; i += k) x[i] = 0;
  const dead = layerStatistics(k);
  dead.add(x);
  const hessian = dead.finish();
  for (const name of ["int4_b16", "mxfp4", "uint4_b16_zp"]) {
    const run = (polish: number) => quantize(t, format(name), gptq({ hessian, damp: 0, polish }));
    const values = dequantize(run(5));
    expect(values.every(Number.isFinite), name).toBe(true);
    for (let r = 0; r < rows; r++) expect(values[r * k + 7], name).toBe(0);
    expect(outputError(w, values, rows, hessian.hessian), name).toBeLessThanOrEqual(
      outputError(w, dequantize(run(0)), rows, hessian.hessian),
    );
  }
});

describe("what is refused, by name", () => {
  const unsupported = (words: string) =>
    expect.objectContaining({ code: "E_UNSUPPORTED", message: expect.stringContaining(words) as string });
  const levels = [{ format: float16, span: 32 }];
  const withMin = defineBlock({ name: "u4_min", element: uint4, scales: levels, offset: { role: "min", levels } });

  test("minima and opaque formats have no columns of their own", () => {
    const makers = { gptq: gptq({ hessian: stats }), "rtn with a search": rtn({ search: { method: "mse" } }), hqq: hqq(), quest: quest(), adaround: adaround({ hessian: stats }) }; // prettier-ignore
    for (const [name, quantizer] of Object.entries(makers)) {
      expect(() => quantize(t, withMin, quantizer), name).toThrow(unsupported(`${name}: expected a format with zero points or symmetric, got u4_min with offsets of role "min"`)); // prettier-ignore
      if (name !== "gptq") expect(() => quantize(t, format("ggml_q4_0"), quantizer), name).toThrow(unsupported(`${name}: expected a scalar or block format, got the opaque ggml_q4_0`)); // prettier-ignore
    }
    // AWQ rounds where there is no scale to search
    expect(quantize(t, format("ggml_q4_0"), awq({ statistics: stats, grid: 2 })).recipe.searched).toBe(false);
    for (const name of ["int4_b16", "mxfp4", "int8"]) expect(() => quantize(t, format(name), hqq())).toThrow(unsupported(`hqq: expected a format with zero points, got ${name}`)); // prettier-ignore
    for (const name of ["uint4_b16_zp", "int8"]) expect(() => quantize(t, format(name), quest())).toThrow(unsupported(`quest: expected a block format without offsets, got ${name}`)); // prettier-ignore
    expect(() => quantize(t, format("int8"), rtn({ search: { method: "mse" } }))).toThrow(unsupported("rtn search: expected a format with scales, got int8")); // prettier-ignore
    for (const options of [{ rounding: "floor" }, { overflow: "saturate" }] as const) expect(() => rtn({ search: { method: "mse" }, ...options })).toThrow(TypeError); // prettier-ignore
  });

  test("weights that are not finite: where, and whose", () => {
    for (const bad of [NaN, Infinity]) {
      const data = w.slice();
      data[3 * k + 17] = bad;
      const spoiled = tensor(data, [rows, k]);
      const makers = [
        gptq({ hessian: stats, name: "fc" }),
        adaround({ hessian: stats, name: "fc" }),
        awq({ statistics: stats, name: "fc" }),
      ];
      for (const quantizer of makers) expect(() => quantize(spoiled, format("int4_b16"), quantizer)).toThrow(`${quantizer.algorithm} of layer "fc" weight: expected finite numbers, got ${bad} at [3, 17]`); // prettier-ignore
    }
  });

  test("backends without float64 products, by the function that was to use them", () => {
    const drift = driftStatistics(k);
    drift.add(inputs("iid", 80, k, 1), inputs("iid", 80, k, 1));
    const collected = drift.finish();
    const int4 = format("int4_b16") as BlockFormat | NumberFormat;
    const calls: Record<string, (options: { backend: never }) => unknown> = {
      layerStatistics: (o) => layerStatistics(k, o),
      driftStatistics: (o) => driftStatistics(k, o),
      outputError: (o) => outputError(w, w, rows, stats.hessian, o),
      gptq: (o) => gptq({ hessian: stats, ...o }),
      adaround: (o) => quantize(t, int4, adaround({ hessian: stats, ...o })),
      refit: (o) => refitWeight(t, { drift: collected, ...o }),
      quantizeMixed: (o) => quantizeMixed(t, outlierSplit(stats, { block: 16, wideBlocks: 1 }), [int4, int4], { statistics: stats, ...o }),
    };
    for (const [name, call] of Object.entries(calls)) {
      expect(() => call({ backend: { name: "none" } as never }), name).toThrow(unsupported(`${name} backend: expected one with float64 products, got none`)); // prettier-ignore
      for (const none of [null, "wasm"]) expect(() => call({ backend: none as never }), name).toThrow(TypeError);
    }
    expect(() => driftError(t, w, collected, { backend: { name: "none" } })).toThrow(/outputError|driftError/);
    const search = { statistics: stats, format: int4, backend: { name: "none" } };
    expect(() => searchSmoothing([{ weight: w, rows, k }], search)).toThrow(/float64 products, got none/);
  });
});
