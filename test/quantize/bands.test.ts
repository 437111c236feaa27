// Bands of rows of one weight, one after the other in a workspace, are the whole weight; and the memory that products work
// in: zeros at the start whoever had it before, sums of any depth, one thread or two.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, wasm } from "../../src/index.ts";
import { gptq, layerStatistics, mrgptq, awq } from "../../src/quantize/index.ts";
import { awqAt } from "../../src/quantize/awq.ts";
import { gptqIn } from "../../src/quantize/gptq.ts";
import { gptqWorkspace } from "../../src/quantize/gptq-workspace.ts";
import { mrgptqIn } from "../../src/quantize/mrgptq.ts";
import { fastProduct, openAlgebra, threadsOf } from "../../src/quantize/simd.ts";
import { MAX_DEPTH } from "../../kernels/wasm/float/float64.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

const [rows, k] = [40, 32];
const w = gaussianWeights(rows, k, 1);
const made = layerStatistics(k);
made.add(inputs("ar", 100, k, 2));
const hessian = made.finish();
const f = format("int4_b16");
const part = (from: number, to: number) => tensor(w.slice(from * k, to * k), [to - from, k]);

test("in a workspace: the codes of the whole, bands as large as the first, smaller, and larger", () => {
  for (const [whole, inWorkspace] of [
    [gptq({ hessian }), gptqIn],
    [mrgptq({ hessian, seed: 2 }), (space: ReturnType<typeof gptqWorkspace>) => mrgptqIn(space, { hessian, seed: 2 })],
  ] as const) {
    const want = dequantize(quantize(part(0, rows), f, whole));
    const workspace = gptqWorkspace();
    const quantizer = inWorkspace(workspace, { hessian });
    for (const [from, to] of [
      [0, 8],
      [8, 16],
      [16, 19],
      [19, 40],
      [0, 3],
    ])
      // prettier-ignore
      expect(dequantize(quantize(part(from, to), f, quantizer))).toEqual(want.slice(from * k, to * k));
    workspace.close();
    // closed, it opens again
    expect(dequantize(quantize(part(0, 8), f, quantizer))).toEqual(want.slice(0, 8 * k));
    workspace.close();
  }
});

test("the factor is made once, and taken again", () => {
  const workspace = gptqWorkspace();
  const held = workspace.open(8, k, 128, {}, "test");
  expect([held.rows, held.wt.length, held.factor.length]).toEqual([8, 8 * k, k * k]);
  expect(workspace.open(5, k, 128, {}, "test")).toBe(held);
  expect(workspace.open(8, k, 128, {}, "test")).toBe(held);
  const wider = workspace.open(9, k, 128, {}, "test");
  expect([wider === held, wider.rows]).toEqual([false, 9]);
  expect(wider.scratch.length).toBeGreaterThanOrEqual(128 * 9);
  quantize(part(0, 8), f, gptqIn(workspace, { hessian }));
  const { factored } = workspace.open(8, k, 128, {}, "test");
  expect(factored?.damp).toBe(0.01);
  quantize(part(8, 16), f, gptqIn(workspace, { hessian }));
  expect(workspace.open(8, k, 128, {}, "test").factored).toBe(factored);
  workspace.close();
  expect(workspace.open(8, k, 128, {}, "test").factored).toBeUndefined();
  workspace.close();
});

test("AWQ of a band takes the power that the whole chose", () => {
  const whole = quantize(part(0, rows), f, awq({ statistics: hessian, grid: 5, search: null }));
  const power = whole.recipe.power as number;
  const bands = [[0, 13], [13, 40]].map(([from, to]) => quantize(part(from, to), f, awqAt(power, { statistics: hessian, grid: 5, search: null }))); // prettier-ignore
  expect(bands.flatMap((p) => [...dequantize(p)])).toEqual([...dequantize(whole)]);
  for (const p of bands) expect([p.recipe.power, p.recipe.channelScales]).toEqual([power, whole.recipe.channelScales]);
  expect(quantize(part(0, 4), f, awqAt(0.75, { statistics: hessian, search: null })).recipe.power).toBe(0.75);
});

test("memory of products: zeros again for the next one, sums deeper than a panel, nothing of nothing", () => {
  const rng = random(4);
  for (let round = 0; round < 2; round++) {
    const algebra = openAlgebra(2 ** 20, 4, {}, "test");
    const [m, n, depth] = [5, 7, MAX_DEPTH * 2 + 3];
    const [a, b, c, d] = [m * depth, n * depth, m * n, n * n].map((size) => algebra.array(size));
    expect([a.length, b.length, c.length, d.length]).toEqual([m * depth, n * depth, m * n, n * n]);
    for (const x of [a, b, c, d]) expect(x.every((v) => v === 0)).toBe(true);
    // arrays do not overlap
    [a, b, c, d].forEach((x, i) => x.fill(i + 1));
    [a, b, c, d].forEach((x, i) => expect(x.every((v) => v === i + 1)).toBe(true));
    for (const x of [a, b]) for (let i = 0; i < x.length; i++) x[i] = rng.integer(9) - 4;
    const want = (rowsOf: number, columns: number, left: Float64Array, lda: number) =>
      Array.from({ length: rowsOf * columns }, (_, at) => {
        let sum = 0;
        for (let p = 0; p < depth; p++) sum += left[p * lda + Math.floor(at / columns)] * b[p * n + (at % columns)];
        return sum;
      });
    const product = want(m, n, a, m);
    algebra.product(c, 0, n, m, n, a, 0, m, b, 0, n, depth, 2);
    expect([...c]).toEqual(product.map((v) => 3 + 2 * v));
    const square = want(n, n, b, n);
    algebra.lower(d, 0, n, n, b, 0, n, b, 0, n, depth, 1);
    for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) expect(d[i * n + j]).toBe(4 + square[i * n + j]);
    const before = [...c];
    algebra.product(c, 0, n, 0, n, a, 0, m, b, 0, n, depth, 2);
    algebra.product(c, 0, n, m, 0, a, 0, m, b, 0, n, depth, 2);
    algebra.lower(c, 0, n, 0, a, 0, m, b, 0, n, depth, 2);
    expect([...c]).toEqual(before);
    algebra.close();
    algebra.close();
  }
});

test("a memory that grows for the next one still works", () => {
  const [m, n, depth] = [3, 4, 5];
  for (const size of [2 ** 20, 2 ** 20 + 2 ** 19, 2 ** 20 + 2 ** 19, 2 ** 21]) {
    const algebra = openAlgebra(size, 3, {}, "test");
    const [a, b, c] = [m * depth, n * depth, m * n].map((count) => algebra.array(count));
    a.fill(2);
    b.fill(3);
    algebra.product(c, 0, n, m, n, a, 0, m, b, 0, n, depth, 1);
    expect([...c], `${size}`).toEqual(new Array(m * n).fill(30));
    expect(algebra.array(size - a.length - b.length - c.length).length).toBeGreaterThan(0);
    algebra.close();
  }
});

test("copied into tiles: more rows, columns and depth than one of them, at any place of any array", () => {
  const rng = random(5);
  for (const [m, n, depth] of [
    [129, 257, 2],
    [4, 300, MAX_DEPTH + 1],
    [130, 3, 90],
    [3, 200, 70],
  ]) {
    // prettier-ignore
    const [lda, ldb, ldc] = [m + 1, n + 2, n + 3];
    const a = Float64Array.from({ length: depth * lda + 2 }, () => rng.integer(9) - 4);
    const b = Float64Array.from({ length: depth * ldb + 3 }, () => rng.integer(9) - 4);
    const c = Float64Array.from({ length: m * ldc + 4 }, () => rng.integer(9) - 4);
    const want = c.slice();
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) for (let p = 0; p < depth; p++) want[4 + i * ldc + j] -= a[2 + p * lda + i] * b[3 + p * ldb + j];
    fastProduct(c, 4, ldc, m, n, a, 2, lda, b, 3, ldb, depth, -1);
    expect(c).toEqual(want);
  }
});

test("two threads: the same sums, in memory of the backend that is given back", async () => {
  const backend = await wasm({ threads: 2 });
  expect(threadsOf({ backend }, "test")).toBe(backend.float64);
  expect(threadsOf({}, "test")).toBeNull();
  const algebra = openAlgebra(2 ** 20, 3, { backend }, "test");
  const rng = random(6);
  for (const [m, n, depth] of [
    [4, 4, 4],
    [40, 41, 42],
  ]) {
    // prettier-ignore
    const [a, b, c, d] = [m * depth, n * depth, m * n, n * n].map((size) => algebra.array(size));
    for (const x of [a, b]) for (let i = 0; i < x.length; i++) x[i] = rng.integer(9) - 4;
    algebra.product(c, 0, n, m, n, a, 0, m, b, 0, n, depth, -1);
    algebra.lower(d, 0, n, n, b, 0, n, b, 0, n, depth, -1);
    const [want, lower] = [new Float64Array(m * n), new Float64Array(n * n)];
    for (let p = 0; p < depth; p++) {
      for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) want[i * n + j] -= a[p * m + i] * b[p * n + j];
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) lower[i * n + j] -= b[p * n + i] * b[p * n + j];
    }
    expect([...c].map((v) => v + 0)).toEqual([...want].map((v) => v + 0));
    for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) expect(d[i * n + j] + 0).toBe(lower[i * n + j] + 0);
  }
  algebra.close();
  const packed = quantize(part(0, rows), f, gptq({ hessian, backend }));
  expect(packed.codes).toEqual(quantize(part(0, rows), f, gptq({ hessian })).codes);
  backend.dispose();
});
