// Errors begin with the function that was called, and name the layer; what is reported on the way; formats that differ in
// nothing but how they are written give the same values.
import { expect, test } from "vitest";
import { defineBlock, defineInt, float32, float8_e4m3fn, format, uint4 } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import type { BlockFormat } from "../../src/index.ts";
import * as q from "../../src/quantize/index.ts";
import { gptqFactorInPlace } from "../../src/quantize/linalg.ts";
import { openAlgebra } from "../../src/quantize/simd.ts";
import type { HessianAccumulator } from "../../src/quantize/statistics.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { floatNoise } from "../helpers/statistics.ts";

const [rows, k] = [4, 32];
const w = gaussianWeights(rows, k, 1);
const t = tensor(w, [rows, k]);
const collect = (options: object = {}, width = k) => {
  const made = q.layerStatistics(width, options);
  made.add(inputs("ar", 80, width, 2));
  return made.finish() as ReturnType<HessianAccumulator["finish"]>;
};
const stats = collect();
const layer = { weight: w, rows, k };
const wrong = { weight: w, rows: rows + 1, k };

test("errors begin with the name of what was called", () => {
  const spoiled = tensor(w.map((v, i) => (i === 5 ? NaN : v)), [rows, k]); // prettier-ignore
  const moments = { mean: new Float64Array(rows), deviation: new Float64Array(rows) };
  const calls: Record<string, () => unknown> = {
    smoothFactors: () => q.smoothFactors(new Float64Array(k), [wrong]),
    scaleColumns: () => q.scaleColumns(wrong, new Float64Array(k)),
    divideRows: () => q.divideRows(wrong, new Float64Array(rows)),
    crossLayerEqualize: () => q.crossLayerEqualize([wrong]),
    absorbHighBias: () => q.absorbHighBias(wrong, wrong, moments),
    correctBias: () => q.correctBias(wrong, w, new Float64Array(k)),
    foldBatchNorm: () => q.foldBatchNorm(wrong, { gamma: [], beta: [], mean: [], variance: [] }),
    foldNorm: () => q.foldNorm(wrong, new Float64Array(k)),
    centerOutputs: () => q.centerOutputs(wrong),
    correctDriftBias: () => q.correctDriftBias(wrong, w, { inputs: stats, cross: new Float64Array(k * k), shift: new Float64Array(k) }),
    permuteColumns: () => q.permuteColumns(t, [0]),
    permuteRows: () => q.permuteRows(layer, [0]),
    profile: () => q.profile(spoiled),
    advise: () => q.advise(spoiled, [format("int8")]),
    searchRotation: () => q.searchRotation(spoiled, format("int8")),
    driftError: () => q.driftError(spoiled, w, { inputs: stats, cross: new Float64Array(k * k), shift: new Float64Array(k) }),
    quantizeMixed: () => q.quantizeMixed(spoiled, q.outlierSplit(new Float64Array(k)), [format("int8"), format("int8")]),
    prune: () => q.prune(spoiled, "2:4"),
    gptq: () => quantize(spoiled, format("int8"), q.gptq({ hessian: stats })),
    mrgptq: () => quantize(spoiled, format("int4_b16"), q.mrgptq({ hessian: stats })),
    rotatedRtn: () => quantize(spoiled, format("int4_b16"), q.rotatedRtn()),
    hqq: () => quantize(spoiled, format("uint4_b16_zp"), q.hqq()),
    quest: () => quantize(spoiled, format("int4_b16"), q.quest()),
    rtn: () => quantize(spoiled, format("int4_b16"), q.rtn({ search: { method: "mse" } })),
    awq: () => quantize(spoiled, format("int4_b16"), q.awq({ statistics: stats })),
    adaround: () => quantize(spoiled, format("int4_b16"), q.adaround({ hessian: stats })),
    refit: () => q.refitWeight(spoiled, { drift: { inputs: stats, cross: new Float64Array(k * k), shift: new Float64Array(k) } }),
  };
  for (const [name, call] of Object.entries(calls)) expect(call, name).toThrow(new RegExp(`^${name}[ :]`));
  // blocks that do not fit: whose, and what to do
  const odd = tensor(new Float32Array(24), [1, 24]);
  for (const [name, quantizer] of [["mrgptq", q.mrgptq({ hessian: collect({}, 24) })], ["rotatedRtn", q.rotatedRtn()]] as const) expect(() => quantize(odd, format("int4_b16"), quantizer)).toThrow(new RegExp(`^${name}: expected k to be a multiple of the format's block of 16, got 24`)); // prettier-ignore
});

test("errors of statistics name the layer, whoever takes them", () => {
  const sums = collect({ hessian: false });
  for (const make of [q.gptq, q.mrgptq, q.adaround] as ((o: { hessian: never; name?: string }) => q.SteppedQuantizer)[]) {
    const run = (name?: string) => () => quantize(t, format("int4_b16"), make({ hessian: sums as never, ...(name === undefined ? {} : { name }) })); // prettier-ignore
    expect(run("fc1")).toThrow(/^hessian of layer "fc1": expected statistics with a Hessian/);
    expect(run()).toThrow(/^hessian: expected statistics with a Hessian/);
  }
  expect(() => q.searchSmoothing([layer], { statistics: sums as never, format: format("int8_row") })).toThrow(/statistics with a Hessian/);
});

test("steps that are stopped say where: before the first, and between two", async () => {
  const gptq = q.gptq({ hessian: stats, blockSize: 16 });
  const run = (signal: AbortSignal, onProgress?: () => void) => q.runStepsAsync(gptq.steps(t, format("int4_b16")), { signal, ...(onProgress ? { onProgress } : {}) }); // prettier-ignore
  await expect(run(AbortSignal.abort())).rejects.toThrow(/^start: expected to run to the end/);
  const controller = new AbortController();
  await expect(run(controller.signal, () => controller.abort())).rejects.toThrow(/^gptq: expected to run to the end/);
  const seen: q.Progress[] = [];
  const x = { data: new Float32Array([1, 2, 3, 4]), shape: [2, 2] };
  await q.calibrate([{ x }, { x }, { x }], { layers: { x: {} }, maxBatches: 2, onProgress: (p) => seen.push(p) });
  expect(seen).toEqual([1, 2].map((done) => ({ stage: "calibrate", done, total: 2 })));
});

test("signed and unsigned elements with zero points: the same values", () => {
  const levels = [{ format: float32, span: 16 }];
  const offset = { role: "zeroPoint" as const, levels };
  const [signed, unsigned] = [defineInt({ bits: 4, signed: true }), uint4].map((element) => defineBlock({ name: element.name, element, scales: levels, offset })); // prettier-ignore
  const shifted = tensor(w.map((v, i) => v + (i % 32 < 16 ? 0.05 : -0.03)), [rows, k]); // prettier-ignore
  for (const make of [
    () => q.hqq(),
    () => q.hqq({ iterations: 1 }),
    () => q.rtn(),
    () => q.gptq({ hessian: stats }),
    () => q.rtn({ search: { method: "mse" } }),
  ]) {
    const [a, b] = [signed, unsigned].map((f) => dequantize(quantize(shifted, f, make()), { dtype: "float64" }));
    a.forEach((v, i) => expect(Math.abs(v - b[i])).toBeLessThan(1e-7));
  }
});

test("blocks of zeros keep their scale in polish, coarse or fine", () => {
  const data = w.slice();
  data.fill(0, 0, 32);
  for (const name of ["mxfp4", "int4_b16", "nvfp4"]) {
    const plain = quantize(tensor(data, [rows, k]), format(name));
    const polished = quantize(tensor(data, [rows, k]), format(name), q.gptq({ hessian: stats, polish: 4 }));
    const first = (format(name) as BlockFormat).scales[0].format.bits / 8 * (32 / ((format(name) as BlockFormat).scales[0].span as number)); // prettier-ignore
    expect(polished.scales!.slice(0, first), name).toEqual(plain.scales!.slice(0, first));
    expect(dequantize(polished).slice(0, 32), name).toEqual(new Float32Array(32));
  }
});

test("two levels over tiles, the largest weight anywhere: a diagonal Hessian is rounding to nearest", () => {
  const tiles = defineBlock({ name: "tiles", element: format("float4_e2m1fn") as never, scales: [{ format: float8_e4m3fn, span: [2, 16] }, { format: float32, span: "tensor" }], scaleRule: "torchao" }); // prettier-ignore
  const diagonal = new Float64Array(k * k);
  for (let i = 0; i < k; i++) diagonal[i * k + i] = 1 + (i % 5);
  for (const at of [0, 17, 33, 100])
    for (const f of [tiles, format("nvfp4") as BlockFormat]) {
      const data = w.slice();
      data[at] = 0.4;
      const one = tensor(data, [rows, k]);
      const [plain, packed] = [quantize(one, f), quantize(one, f, q.gptq({ hessian: diagonal }))];
      expect([packed.codes, packed.scales, packed.superScales], `${f.name} ${at}`).toEqual([plain.codes, plain.scales, plain.superScales]);
    }
});

test("asymmetries are measured against the diagonal: rounding of large entries is none", () => {
  const h = Float64Array.of(1e6, 5, 0, 4e6);
  const run = (hessian: Float64Array) => () => quantize(tensor(Float32Array.of(1, 2), [1, 2]), format("int4_row"), q.gptq({ hessian }));
  expect(run(h)).not.toThrow();
  expect(run(Float64Array.of(1e6, 50, 0, 4e6))).toThrow(/symmetric matrix/);
  expect(run(Float64Array.of(1e6, 0, 50, 1e6))).toThrow(/got 50 at \[1, 0\] and 0 at \[0, 1\]/);
});

test("the factor of more columns than four panels: U^T U is the inverse", () => {
  const n = 400;
  const h = Float64Array.from(
    { length: n * n },
    (_, at) => 0.8 ** Math.abs(Math.floor(at / n) - (at % n)) + (Math.floor(at / n) === at % n ? 0.5 : 0),
  );
  const u = h.slice();
  expect(gptqFactorInPlace(u, n)).toBe(-1);
  // H (U^T (U e)) = e
  for (const column of [0, 63, 200, 399]) {
    const e = Float64Array.from({ length: n }, (_, i) => Number(i === column));
    const ue = Float64Array.from({ length: n }, (_, i) => u[i * n + column]);
    const v = Float64Array.from({ length: n }, (_, i) => ue.reduce((sum, x, p) => sum + u[p * n + i] * x, 0));
    e.forEach((want, i) => expect(Math.abs(v.reduce((sum, x, j) => sum + h[i * n + j] * x, 0) - want)).toBeLessThan(1e-9));
  }
});

test("memory of a backend is given back, once", () => {
  let [taken, given] = [0, 0];
  const allocate = (n: number) => ({ data: new Float64Array(n), free: () => void given++ });
  const float64 = { threads: 2, product: () => undefined, allocate: (n: number) => (taken++, allocate(n)) };
  const algebra = openAlgebra(30, 3, { backend: { name: "fake", float64: float64 as never } }, "test");
  for (const n of [3, 4, 5]) expect(algebra.array(n)).toHaveLength(n);
  algebra.close();
  algebra.close();
  expect([taken, given]).toEqual([3, 3]);
});

test("floats without a mantissa have a prediction too", () => {
  // 2^-2 to 2^4
  for (const crest of [1.5, 3, 6])
    expect(q.predictQsnr(format("float4_e3m0_b32"), crest)).toBeCloseTo(-10 * Math.log10(floatNoise(0, 3, 16, crest, 1, 32)), 9);
});
