// Hadamard matrices of every order that can be made, transforms against their matrices, and what rotation does to
// outliers (part D2 of the notes: kurtosis 1203 -> 75.8 / 38.3 / 10.1 / 2.98 for blocks of 16, 32, 128, 4096).
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, wasm } from "../../src/index.ts";
import type { BlockFormat } from "../../src/index.ts";
import {
  dequantizeOriginal,
  fwht,
  hadamard,
  hadamardRotation,
  layerStatistics,
  mrgptq,
  orthogonalRotation,
  outputError,
  rotateHessian,
  rotatedRtn,
  rotationOf,
  searchRotation,
} from "../../src/quantize/index.ts";
import { describeShared, readVectors, vectorPath } from "../helpers/shared.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

const made = [1, 2, ...Array.from({ length: 46 }, (_, i) => 4 * (i + 1)), 196, 200, 232, 312, 344, 768];

test("H H^T = n I, entries +-1, for every order that can be made", () => {
  for (const n of made) {
    const h = hadamard(n);
    expect(h.every((v) => v === 1 || v === -1)).toBe(true);
    const step = n > 256 ? 37 : 1;
    for (let i = 0; i < n; i += step)
      for (let j = 0; j < n; j += 1) {
        let dot = 0;
        for (let c = 0; c < n; c++) dot += h[i * n + c] * h[j * n + c];
        if (dot !== (i === j ? n : 0)) throw new Error(`order ${n}: rows ${i} and ${j} have product ${dot}`);
      }
  }
  for (const n of [3, 6, 10, 90, 188, 236]) expect(() => hadamard(n)).toThrow(/E_UNSUPPORTED|blocks of/);
  expect(() => hadamard(0)).toThrow(RangeError);
});

describeShared("published Hadamard matrices", vectorPath("hadamard_matrices.jsonl.gz"), (path) => {
  test("Sylvester matrices are the same; every published order can be made", () => {
    for (const { source, n, rows } of readVectors<{ source: string; n: number; rows: string[] }>(path)) {
      if (source === "sylvester") expect(Array.from(hadamard(n), (v) => (v > 0 ? "+" : "-")).join("")).toBe(rows.join(""));
      else expect(hadamard(n).length).toBe(n * n);
    }
  });
});

test("fast transforms equal their matrices, and the inverse undoes them", () => {
  const rng = random(3);
  const cases = [
    hadamardRotation(64),
    hadamardRotation(96, { block: 32, seed: 5 }),
    hadamardRotation(60, { seed: 2 }),
    hadamardRotation(80, { block: 40 }),
    orthogonalRotation(30, 9),
  ];
  for (const r of cases) {
    const q = r.matrix();
    const x = Float64Array.from({ length: 3 * r.n }, () => rng.normal());
    const y = x.slice();
    r.apply(y);
    for (let t = 0; t < 3; t++)
      for (let j = 0; j < r.n; j++) {
        let s = 0;
        for (let i = 0; i < r.n; i++) s += x[t * r.n + i] * q[i * r.n + j];
        expect(Math.abs(y[t * r.n + j] - s)).toBeLessThan(1e-12);
      }
    for (let i = 0; i < r.n; i++)
      for (let j = 0; j < r.n; j++) {
        let dot = 0;
        for (let c = 0; c < r.n; c++) dot += q[i * r.n + c] * q[j * r.n + c];
        expect(Math.abs(dot - (i === j ? 1 : 0))).toBeLessThan(1e-12);
      }
    r.applyInverse(y);
    for (let i = 0; i < x.length; i++) expect(Math.abs(y[i] - x[i])).toBeLessThan(1e-12);
    const { kind, n, block, seed } = r;
    expect(rotationOf(JSON.parse(JSON.stringify({ kind, n, block, seed }))).matrix()).toEqual(q);
  }
  expect(() => hadamardRotation(100, { block: 16 })).toThrow(/divisor of 100/);
  expect(() => hadamardRotation(64).apply(new Float64Array(65))).toThrow(/E_SHAPE|multiple of 64/);
  expect(() => fwht(new Float64Array(12), 12)).toThrow(RangeError);
});

test("rotated Hessian is the Hessian of rotated inputs; rotated weights give the same outputs", () => {
  const k = 48;
  const x = inputs("ar", 70, k, 1);
  const r = hadamardRotation(k, { block: 24, seed: 4 });
  const acc = layerStatistics(k);
  acc.add(x);
  const xr = x.slice();
  r.apply(xr);
  const rotated = layerStatistics(k);
  rotated.add(xr);
  const got = rotateHessian(acc.finish().hessian!, r);
  const want = rotated.finish().hessian!;
  for (let i = 0; i < k * k; i++) expect(Math.abs(got[i] - want[i])).toBeLessThan(1e-10);
});

test("kurtosis of a matrix with 8 of 4096 outlier channels falls with the block of the rotation", () => {
  const [rows, k] = [64, 4096];
  const rng = random(8);
  const x = Float64Array.from({ length: rows * k }, () => rng.normal());
  const outliers = Array.from({ length: 8 }, () => rng.integer(k));
  for (let t = 0; t < rows; t++) for (const j of outliers) x[t * k + j] *= 60;
  const kurtosis = (v: Float64Array) => {
    let [m2, m4] = [0, 0];
    for (const u of v) {
      m2 += u * u;
      m4 += u ** 4;
    }
    return m4 / v.length / (m2 / v.length) ** 2;
  };
  expect(kurtosis(x)).toBeGreaterThan(800);
  for (const [block, least, most] of [
    [16, 60, 95],
    [32, 28, 50],
    [128, 8, 13],
    [4096, 2.8, 3.2],
  ]) {
    const y = x.slice();
    hadamardRotation(k, { block, seed: 1 }).apply(y);
    const got = kurtosis(y);
    expect(got, `block ${block}`).toBeGreaterThan(least);
    expect(got, `block ${block}`).toBeLessThan(most);
  }
});

test("mrgptq: the value in the original basis approximates the weight, and beats rotated round-to-nearest on the outputs", () => {
  const [rows, k] = [48, 128];
  const acc = layerStatistics(k);
  acc.add(inputs("ar", 500, k, 2));
  const stats = acc.finish();
  const w = gaussianWeights(rows, k, 6);
  const t = tensor(w, [rows, k]);
  for (const name of ["int4_b32", "float4_e2m1fn_b16", "uint3_b32_zp"]) {
    const fmt = format(name) as BlockFormat;
    const m = quantize(t, fmt, mrgptq({ hessian: stats }));
    const r = quantize(t, fmt, rotatedRtn());
    const error = (v: Float32Array) => outputError(w, v, rows, stats.hessian!);
    expect(m.recipe.rotation).toEqual({ kind: "hadamard", n: k, block: fmt.scales[0].span, seed: null });
    expect(error(dequantizeOriginal(m)) / error(dequantizeOriginal(r)), name).toBeLessThan(0.4);
    // In the rotated basis the values are far from the weight: reading them back without the rotation must not go
    // unnoticed.
    expect(error(dequantize(m)) / error(dequantizeOriginal(m))).toBeGreaterThan(50);
  }
  expect(() => quantize(tensor(w, [64, 96]), format("int4_b64"), mrgptq({ hessian: stats }))).toThrow(
    /multiple of the format's block of 64, got 96/,
  );
});

test("float32 transforms on the WebAssembly backend are the same bits", async () => {
  const backend = await wasm();
  const rng = random(3);
  for (const [n, block] of [[64, 64], [768, 768], [768, 96], [40, 40], [12, 12], [8192, 4096]]) {
    const x = Float32Array.from({ length: 3 * n }, () => rng.normal() * 2 ** (rng.integer(20) - 10));
    const [plain, fast] = [hadamardRotation(n, { block, seed: 4 }), hadamardRotation(n, { block, seed: 4, backend })];
    const [a, b] = [x.slice(), x.slice()];
    plain.apply(a);
    fast.apply(b);
    expect(b).toEqual(a);
    plain.applyInverse(a);
    rotationOf({ kind: "hadamard", n, block, seed: 4 }, { backend }).applyInverse(b);
    expect(b).toEqual(a);
    // float64 stays float64.
    const d = Float64Array.from(x);
    fast.apply(d);
    plain.applyInverse(d);
    let worst = 0;
    for (let i = 0; i < d.length; i++) worst = Math.max(worst, Math.abs(d[i] - x[i]));
    expect(worst).toBeLessThan(1e-10);
  }
  backend.dispose();
}); // prettier-ignore

test("searched signs: never worse than none, what the search says is what the quantizer gives", () => {
  const k = 128;
  const w = gaussianWeights(16, k, 5);
  for (let r = 0; r < 16; r++) w[r * k + 17] *= 25;
  const t = tensor(w, [16, k]);
  const acc = layerStatistics(k);
  acc.add(inputs("outliers", 300, k, 3));
  const { hessian } = acc.finish();
  for (const source of [undefined, hessian!]) {
    const found = searchRotation(t, format("int4_b64"), { block: k, count: 6, ...(source ? { hessian: source } : {}) });
    expect(found.errors.length).toBe(7);
    expect(found.error).toBe(Math.min(...found.errors));
    expect(new Set(found.errors).size).toBe(7);
    const values = dequantizeOriginal(quantize(t, format("int4_b64"), rotatedRtn({ block: k, seed: found.seed })));
    const error = source ? outputError(w, values, 16, source) : w.reduce((n, v, i) => n + (v - values[i]) ** 2, 0);
    expect(error / found.error).toBeCloseTo(1, 9);
  }
  expect(() => searchRotation(t, format("int4_b64"), { count: -1 })).toThrow(RangeError);
  expect(() => searchRotation(t, format("int4_b64"), { signal: AbortSignal.abort() })).toThrow(
    expect.objectContaining({ code: "E_ABORTED" }),
  );
});
