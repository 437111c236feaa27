// Polish step by step, by full sums of the error (q - w) A (q - w) instead of gradients: the same codes and scales after any
// number of passes, for scales that are fitted, scales that move by codes, and formats without any.
import { expect, test } from "vitest";
import { defineBlock, defineInt, float8_e4m3fn, float8_e8m0fnu, format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, unpack } from "../../src/index.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../src/index.ts";
import { gptq, layerStatistics, outputError } from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const [rows, k] = [8, 64];
const w = gaussianWeights(rows, k, 3);
const made = layerStatistics(k);
made.add(inputs("power", 100, k, 4));
const hessian = made.finish().hessian!;

interface Row {
  /** Of each column: its value, and its group. */
  readonly q: number[];
  readonly scale: number[];
  readonly zero: number[];
  readonly scaleCode: number[];
}
interface Rules {
  readonly width: number;
  readonly round: (t: number) => number;
  /** The scale that a code stands for; null where scales are float32. */
  readonly level: NumberFormat | null;
  readonly scaled: boolean;
}

/** To the nearest of all values of an element; posits as they round themselves, which is not to the nearest. */
function rounding(element: NumberFormat, narrow: boolean): (t: number) => number {
  if (element.kind === "posit") return (t) => element.decode(element.encode(t, { overflow: "saturate" }));
  const all = Array.from({ length: 2 ** element.bits }, (_, code) => element.decode(code));
  const allowed = all.filter((v) => Number.isFinite(v) && (!narrow || v >= -element.limits.max));
  return (t) => allowed.reduce((best, v) => (Math.abs(v - t) < Math.abs(best - t) ? v : best));
}

const forms = (a: number[][], d: number[]) => a.map((row) => row.reduce((sum, v, j) => sum + v * d[j], 0));
const dot = (a: number[], b: number[]) => a.reduce((sum, v, i) => sum + v * b[i], 0);

/** One pass over a row, in place. @returns whether anything changed */
function pass(row: Row, own: number[], a: number[][], { width, round, level, scaled }: Rules): boolean {
  const gradient = (q: number[]) => forms(a, q.map((v, j) => v - own[j])); // prettier-ignore
  const error = (q: number[]) => dot(q.map((v, j) => v - own[j]), gradient(q)); // prettier-ignore
  const nearest = (target: number, scale: number, zero: number) => (round(target / scale + zero) - zero) * scale;
  let changed = false;
  for (let from = 0; from < k; from += width) {
    const columns = Array.from({ length: Math.min(width, k - from) }, (_, i) => from + i);
    const g = scaled ? from / width : 0;
    for (let sweep = 0; sweep < 2; sweep++)
      for (const j of columns) {
        const v = nearest(row.q[j] - gradient(row.q)[j] / a[j][j], row.scale[g], row.zero[g]);
        if (v === row.q[j] || !(error(row.q.with(j, v)) < error(row.q) * (1 - 1e-13))) continue;
        row.q[j] = v;
        changed = true;
      }
    if (!scaled) continue;
    const start = error(row.q);
    if (level === null) {
      const u = row.q.map((v, j) => (columns.includes(j) ? v / row.scale[g] : 0));
      const curve = dot(u, forms(a, u));
      if (!(curve > 0)) continue;
      const scale = Math.fround(row.scale[g] - dot(u, gradient(row.q)) / curve);
      const moved = row.q.map((v, j) => (columns.includes(j) ? u[j] * scale : v));
      if (scale === row.scale[g] || scale === 0 || !(error(moved) < start)) continue;
      row.q.splice(0, k, ...moved);
      row.scale[g] = scale;
      changed = true;
      continue;
    }
    let best = { error: start, q: row.q, code: row.scaleCode[g] };
    for (const code of [row.scaleCode[g] - 1, row.scaleCode[g] + 1]) {
      const q = [...row.q];
      for (const j of columns) q[j] = nearest(q[j] - gradient(q)[j] / a[j][j], level.decode(code), row.zero[g]);
      if (error(q) < best.error) best = { error: error(q), q, code };
    }
    if (best.q === row.q) continue;
    row.q.splice(0, k, ...best.q);
    row.scaleCode[g] = best.code;
    row.scale[g] = level.decode(best.code);
    changed = true;
  }
  return changed;
}

const int3 = defineInt({ bits: 3, signed: true });
const coarse3 = defineBlock({ name: "int3_e4m3", element: int3, scales: [{ format: float8_e4m3fn, span: 16 }] });
const powers3 = defineBlock({ name: "int3_e8m0", element: int3, scales: [{ format: float8_e8m0fnu, span: 8 }], scaleRule: "floor" });
const coarse = defineBlock({ name: "e2m1_e4m3", element: format("float4_e2m1fn") as NumberFormat, scales: [{ format: float8_e4m3fn, span: 16 }] }); // prettier-ignore
const cases: [name: string, f: BlockFormat | NumberFormat, width: number, level: NumberFormat | null, narrow: boolean][] = [
  ["int4, fitted scales", format("int4_b16") as BlockFormat, 16, null, true],
  ["int3, fitted scales of a row", format("int3_row") as BlockFormat, k, null, true],
  ["uint3 with zero points", format("uint3_b16_zp") as BlockFormat, 16, null, false],
  ["float4, fitted scales", format("float4_e2m1fn_b32") as BlockFormat, 32, null, false],
  ["posits of 4 bits", format("posit4_es1_b16") as BlockFormat, 16, null, false],
  ["posits of 6 bits", format("posit6_es1_b16") as BlockFormat, 16, null, false],
  ["powers of two", format("mxfp4") as BlockFormat, 32, (format("mxfp4") as BlockFormat).scales[0].format, false],
  ["E4M3 scales of few codes", coarse3, 16, float8_e4m3fn, true],
  ["powers of two that are too low", powers3, 8, float8_e8m0fnu, true],
  ["E4M3 scales", coarse, 16, float8_e4m3fn, false],
];

/** Float32 scales, or codes of 8 bits, and zero points of 3 bits, of every row. */
function rowsOf(packed: PackedTensor, level: NumberFormat | null, width: number): Row[] {
  const values = dequantize(packed, { dtype: "float64" });
  const cells = k / width;
  const scales = level === null ? new Float32Array(packed.scales!.slice().buffer) : packed.scales!;
  const zeros = packed.offsets === null ? null : unpack({ ...packed, format: format("uint3"), codes: packed.offsets, rows, k: cells, rowBytes: packed.offsets.length / rows }); // prettier-ignore
  return Array.from({ length: rows }, (_, r) => {
    const codes = Array.from(scales.subarray(r * cells, (r + 1) * cells));
    return {
      q: Array.from(values.subarray(r * k, (r + 1) * k)),
      scale: codes.map((code) => level?.decode(code) ?? code),
      scaleCode: codes,
      zero: codes.map((_v, c) => zeros?.[r * cells + c] ?? 0),
    };
  });
}

test.each(cases)("%s", (_, f, width, level, narrow) => {
  const damp = 0.02;
  let mean = 0;
  for (let j = 0; j < k; j++) mean += hessian[j * k + j] / k;
  const a = Array.from({ length: k }, (_v, i) => Array.from({ length: k }, (_u, j) => hessian[i * k + j] + (i === j ? damp * mean : 0)));
  const run = (polish: number) => quantize(tensor(w, [rows, k]), f, gptq({ hessian, damp, polish }));
  const round = rounding((f as BlockFormat).element, narrow);
  const list = rowsOf(run(0), level, width);
  let seen = 0;
  for (const passes of [1, 2]) {
    list.forEach((row, r) => (seen += Number(pass(row, Array.from(w.subarray(r * k, (r + 1) * k)), a, { width, round, level, scaled: true })))); // prettier-ignore
    const got = rowsOf(run(passes), level, width);
    got.forEach((row, r) => {
      row.scale.forEach((s, g) => expect(s / list[r].scale[g], `pass ${passes}, scale ${g}`).toBeCloseTo(1, 6));
      row.q.forEach((v, j) => expect(Math.abs(v - list[r].q[j]), `pass ${passes}, ${r} ${j}`).toBeLessThan(1e-6 * row.scale[Math.floor(j / width)])); // prettier-ignore
    });
  }
  expect(seen).toBeGreaterThan(7);
});

test("elements without scales: codes only, in blocks of 32", () => {
  const big = Float32Array.from(w, (v) => 60 * v);
  const f = format("float4_e2m1fn") as NumberFormat;
  const round = rounding(f, false);
  const a = Array.from({ length: k }, (_, i) => Array.from(hessian.subarray(i * k, (i + 1) * k)));
  const run = (polish: number) => dequantize(quantize(tensor(big, [rows, k]), f, gptq({ hessian, damp: 0, polish })), { dtype: "float64" });
  const start = run(0);
  const want = Array.from({ length: rows }, (_, r) => {
    const row: Row = { q: Array.from(start.subarray(r * k, (r + 1) * k)), scale: [1], zero: [0], scaleCode: [0] };
    pass(row, Array.from(big.subarray(r * k, (r + 1) * k)), a, { width: 32, round, level: null, scaled: false });
    return row.q;
  }).flat();
  expect([...run(1)]).toEqual(want);
  expect(want).not.toEqual([...start]);
});

test("elements that do not round to the nearest value: no change for the worse", () => {
  for (const name of ["posit4_es1_b16", "posit6_es1_b16", "posit4_es1_row"]) {
    const damped = hessian.slice();
    let mean = 0;
    for (let j = 0; j < k; j++) mean += hessian[j * k + j] / k;
    for (let j = 0; j < k; j++) damped[j * k + j] += 0.02 * mean;
    const run = (polish: number) => quantize(tensor(w, [rows, k]), format(name), gptq({ hessian, damp: 0.02, polish }));
    const error = (packed: PackedTensor) => outputError(w, dequantize(packed, { dtype: "float64" }), rows, damped);
    const [plain, once, often] = [0, 1, 100].map(run);
    expect(error(once), name).toBeLessThanOrEqual(error(plain));
    expect(error(often), name).toBeLessThanOrEqual(error(once));
    expect((often.recipe.polish as { errorKept: number }).errorKept).toBeCloseTo(error(often) / error(plain), 9);
  }
});

test("a weight that is exact stays so, and nothing of it is kept less", () => {
  const exact = tensor(Float32Array.from({ length: rows * k }, (_, i) => (i % 16 === 0 ? 7 : (i % 15) - 7)), [rows, k]); // prettier-ignore
  const packed = quantize(exact, format("int4_b16"), gptq({ hessian, polish: 3 }));
  expect(dequantize(packed)).toEqual(exact.data);
  expect(packed.recipe.polish).toEqual({ passes: 3, errorKept: 1 });
});
