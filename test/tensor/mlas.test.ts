// The fast path of arithmetic "mlas" against the general loops (reached by float64 data) and the oracle: codes, scales and zero points, bit for bit.
import { describe, expect, it } from "vitest";
import { float32 } from "../../formats/float32.ts";
import { defineBlock } from "../../formats/define/index.ts";
import { int4 } from "../../formats/int4.ts";
import { uint4 } from "../../formats/uint4.ts";
import { mlasFits, quantizeMlas } from "../../src/tensor/mlas.ts";
import { quantize } from "../../src/tensor/quantize.ts";
import { matrixView, tensor, transpose } from "../../src/tensor/tensor.ts";
import { weights } from "../onnx/build.ts";
import { mlasOracle } from "../oracle/mlas.ts";

const symmetric = (span: number) => defineBlock({ element: int4, scales: [{ format: float32, span }], rangeRule: "ort" });
const asymmetric = (span: number) =>
  defineBlock({ element: uint4, scales: [{ format: float32, span }], offset: { role: "zeroPoint", levels: [{ format: uint4, span }] } });

/** Weights with blocks that are all zero, one-signed, tied in magnitude, tiny and huge. */
function awkward(k: number, n: number): Float32Array {
  const w = weights(k * n, k + n);
  for (let i = 0; i < k; i++) {
    for (let j = 0; j < n; j++) {
      const at = i * n + j;
      if (j % 9 === 1) w[at] = 0;
      if (j % 9 === 2) w[at] = Math.abs(w[at]);
      if (j % 9 === 3) w[at] = -Math.abs(w[at]);
      if (j % 9 === 4) w[at] = i % 2 === 0 ? 0.5 : -0.5;
      if (j % 9 === 5) w[at] *= 1e-30;
      if (j % 9 === 6) w[at] *= 1e30;
      if (j % 9 === 7) w[at] = -0;
      if (j % 9 === 8) w[at] *= 1e-44; // denormal: the reciprocal of the scale is infinite
    }
  }
  return w;
}

describe.each([
  [64, 9, 16],
  [64, 300, 32],
  [250, 37, 32],
  [33, 5, 32],
  [7, 18, 16],
  [129, 9, 128],
  [512, 3, 256],
])("k %i, n %i, blocks of %i", (k, n, span) => {
  it.each(["symmetric", "asymmetric"])("%s", (kind) => {
    const format = kind === "symmetric" ? symmetric(span) : asymmetric(span);
    const w = awkward(k, n);
    const view = transpose(tensor(w, [k, n]));
    expect(mlasFits(matrixView(view), format, format.rangeRule)).toBe(true);
    const fast = quantize(view, format, { arithmetic: "mlas" });
    const general = quantize(transpose(tensor(Float64Array.from(w), [k, n])), format, { arithmetic: "mlas" });
    expect(fast.codes).toEqual(general.codes);
    expect(fast.scales).toEqual(general.scales);
    expect(fast.offsets).toEqual(general.offsets);
    // Contiguous rows take the other loop order.
    const rows = Float32Array.from({ length: k * n }, (_, i) => w[(i % k) * n + Math.floor(i / k)]);
    expect(quantize(tensor(rows, [n, k]), format, { arithmetic: "mlas" }).codes).toEqual(fast.codes);

    const oracle = mlasOracle(w, k, n, span, kind === "symmetric");
    const scales = new Float32Array(fast.scales!.buffer, fast.scales!.byteOffset);
    expect(Array.from(scales)).toEqual(oracle.scales.flat());
    for (let col = 0; col < n; col++) {
      if (col % 9 === 8) continue; // 0 * infinity: undefined in C
      const expected = oracle.codes[col].flat();
      const got = expected.map((_, i) => (fast.codes[col * fast.rowBytes + (i >> 1)] >> ((i & 1) * 4)) & 15);
      expect(got).toEqual(kind === "symmetric" ? expected.map((code) => code ^ 8) : expected);
    }
  });
});

it("sums signal and noise", () => {
  const [k, n] = [64, 6];
  const w = weights(k * n);
  const view = matrixView(transpose(tensor(w, [k, n])));
  const { signal, noise } = quantizeMlas(view, [n, k], symmetric(32), { version: 1, algorithm: "rtn" })!;
  const oracle = mlasOracle(w, k, n, 32, true);
  let [s, e] = [0, 0];
  for (let i = 0; i < k; i++) {
    for (let j = 0; j < n; j++) {
      const value = w[i * n + j];
      const back = (oracle.codes[j][i >> 5][i & 31] - 8) * oracle.scales[j][i >> 5];
      s += value ** 2;
      e += (value - back) ** 2;
    }
  }
  expect(signal).toBeCloseTo(s, 10);
  expect(noise).toBeCloseTo(e, 10);
});

it.each([NaN, Infinity, -Infinity])("refuses %s, wherever it stands", (bad) => {
  for (const at of [0, 63, 64 * 6 - 1]) {
    const w = weights(64 * 6);
    w[at] = bad;
    for (const format of [symmetric(32), asymmetric(32)]) {
      expect(() => quantize(transpose(tensor(w, [64, 6])), format, { arithmetic: "mlas" })).toThrow(/finite/);
    }
  }
});
