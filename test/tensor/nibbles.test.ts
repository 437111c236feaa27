// The fast path of arithmetic "ort" against the general loops (reached by float64 data) and the oracle: codes, scales
// and zero points, bit for bit.
import { describe, expect, it } from "vitest";
import { float32 } from "../../formats/float32.ts";
import { defineBlock } from "../../formats/define/index.ts";
import { float16 } from "../../formats/float16.ts";
import { int4 } from "../../formats/int4.ts";
import { uint4 } from "../../formats/uint4.ts";
import { nibbleTile } from "../../kernels/wasm/convert/nibbles.ts";
import { nibblesFit, quantizeNibbles } from "../../src/tensor/quantize/nibbles.ts";
import { dequantize } from "../../src/tensor/dequantize.ts";
import { quantize } from "../../src/tensor/quantize/index.ts";
import { blockPolicy } from "../../src/tensor/quantize/policy.ts";
import { matrixView, tensor, transpose } from "../../src/tensor/tensor.ts";
import { weights } from "../onnx/build.ts";
import { matMulNBitsOracle } from "../oracle/matmulnbits.ts";

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
    expect(nibblesFit(matrixView(view), format, blockPolicy(format, { arithmetic: "ort" }))).toBe(true);
    const fast = quantize(view, format, { arithmetic: "ort" });
    const general = quantize(transpose(tensor(Float64Array.from(w), [k, n])), format, { arithmetic: "ort" });
    expect(fast.codes).toEqual(general.codes);
    expect(fast.scales).toEqual(general.scales);
    expect(fast.offsets).toEqual(general.offsets);
    // Contiguous rows take the other loop order.
    const rows = Float32Array.from({ length: k * n }, (_, i) => w[(i % k) * n + Math.floor(i / k)]);
    expect(quantize(tensor(rows, [n, k]), format, { arithmetic: "ort" }).codes).toEqual(fast.codes);

    const oracle = matMulNBitsOracle(w, k, n, span, kind === "symmetric");
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

describe("SIMD loops equal the plain ones", () => {
  const recipe = { version: 1, algorithm: "rtn" } as const;
  it.each([
    [64, 9, 16],
    [64, 1300, 32],
    [250, 515, 32],
    [34, 5, 32],
    [8, 18, 16],
    [130, 9, 128],
    [512, 4, 256],
    [90, 21, 20],
    [40_000, 5, 64],
  ])("k %i, n %i, blocks of %i", (k, n, span) => {
    const w = awkward(k, n);
    const rows = Float32Array.from({ length: k * n }, (_, i) => w[(i % k) * n + Math.floor(i / k)]);
    const views = [transpose(tensor(w, [k, n])), tensor(rows, [n, k])].map(matrixView);
    const halves = defineBlock({ element: int4, scales: [{ format: float16, span }], rangeRule: "ort" });
    for (const format of [symmetric(span), asymmetric(span), halves])
      for (const view of views) {
        const plain = quantizeNibbles(view, [n, k], format, recipe)!;
        let made = 0;
        const fast = quantizeNibbles(view, [n, k], format, recipe, (...args) => {
          const tile = nibbleTile(...args);
          if (tile !== null) made++;
          return tile;
        })!;
        expect(made).toBe(1);
        for (const plane of ["codes", "scales", "offsets"] as const)
          expect(Buffer.compare(fast.packed[plane] ?? Buffer.alloc(0), plain.packed[plane] ?? Buffer.alloc(0)), plane).toBe(0);
        // sums of k * n terms above zero in two orders
        expect(Math.abs(fast.signal / plain.signal - 1)).toBeLessThan(k * n * 2 ** -52);
        expect(Math.abs(fast.noise / plain.noise - 1)).toBeLessThan(k * n * 2 ** -52);
      }
  });
  it("values next to ties, and half a step below zero", () => {
    const [k, n] = [32, 64];
    const w = new Float32Array(k * n);
    const words = new Uint32Array(w.buffer);
    for (let j = 0; j < n; j++)
      for (let i = 0; i < k; i++) {
        // scale 1 (extreme -8, or 0..15): ties and their neighbours
        w[i * n + j] = i === 0 ? (j % 2 === 0 ? -8 : 15) : j % 2 === 0 ? (i % 16) - 7.5 : (i % 16) - 0.5;
        if (i > 0) words[i * n + j] += (j % 5) - 2;
        if (i > 0 && j % 2 === 1 && i % 16 === 0) w[i * n + j] = j % 3 === 0 ? 0.49999997 : 0;
      }
    for (const format of [symmetric(32), asymmetric(32)]) {
      const view = matrixView(transpose(tensor(w, [k, n])));
      expect(quantizeNibbles(view, [n, k], format, recipe, nibbleTile)!.packed).toEqual(
        quantizeNibbles(view, [n, k], format, recipe)!.packed,
      );
    }
  });
  it("leaves odd k to the plain loops, and finds what is not finite", () => {
    const view = matrixView(transpose(tensor(weights(33 * 8), [33, 8])));
    expect(quantizeNibbles(view, [8, 33], symmetric(32), recipe, () => expect.fail("odd k"))).not.toBeNull();
    const w = weights(64 * 6);
    w[100] = NaN;
    expect(quantizeNibbles(matrixView(transpose(tensor(w, [64, 6]))), [6, 64], symmetric(32), recipe, nibbleTile)).toBeNull();
  });
});

it("float16 scales so small that they are rounded coarsely: codes stay in their nibbles", () => {
  const [k, n] = [64, 24];
  const halves = defineBlock({ element: int4, scales: [{ format: float16, span: 32 }], rangeRule: "ort" });
  const w = weights(k * n);
  // extremes 1.2 to 12 units of 8 * 2^-24, so that every scale is between 1 and 12 of the smallest float16
  for (let j = 0; j < n; j++) {
    let most = 0;
    for (let i = 0; i < k; i++) most = Math.max(most, Math.abs(w[i * n + j]));
    for (let i = 0; i < k; i++) w[i * n + j] *= ((1.2 + 0.45 * j) * 2 ** -21) / most;
    w[j] = w[32 * n + j] = (1.2 + 0.45 * j) * 2 ** -21;
  }
  const { packed } = quantizeNibbles(matrixView(transpose(tensor(w, [k, n]))), [n, k], halves, { version: 1, algorithm: "rtn" })!;
  const scales = new Uint16Array(packed.scales!.buffer);
  for (let j = 0; j < n; j++)
    for (let i = 0; i < k; i++) {
      const r = Math.fround(1 / float16.decode(scales[2 * j + (i >> 5)]));
      const t = Math.fround(Math.fround(w[i * n + j] * r) + 8);
      const code = Math.max(0, Math.min(15, Math.floor(t + 0.5))) ^ 8;
      expect((packed.codes[j * packed.rowBytes + (i >> 1)] >> ((i & 1) * 4)) & 15, `${i} ${j}`).toBe(code);
    }
});

it("float16 scales: the zero point comes from the scale before it is rounded", () => {
  const halves = defineBlock({
    element: uint4,
    scales: [{ format: float16, span: 32 }],
    offset: { role: "zeroPoint", levels: [{ format: uint4, span: 32 }] },
  });
  // 0.5 / 15 is rounded up in float32 and down in float16: 0.25 / scale is below or above 7.5
  expect(Array.from(quantize(tensor(Float32Array.of(0.25, -0.25), [1, 2]), halves, { arithmetic: "ort" }).offsets!)).toEqual([7]);
});

it("sums signal and noise", () => {
  const [k, n] = [64, 6];
  const w = weights(k * n);
  const view = matrixView(transpose(tensor(w, [k, n])));
  const { signal, noise } = quantizeNibbles(view, [n, k], symmetric(32), { version: 1, algorithm: "rtn" })!;
  const oracle = matMulNBitsOracle(w, k, n, 32, true);
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
      expect(() => quantize(transpose(tensor(w, [64, 6])), format, { arithmetic: "ort" })).toThrow(/finite/);
    }
  }
});

it("signal and noise are those of the decoded values: odd rows, single rows, scales that round coarsely", () => {
  const halves = (zero: boolean) => (span: number) =>
    defineBlock({ element: zero ? uint4 : int4, scales: [{ format: float16, span }], rangeRule: zero ? "minmax" : "ort", ...(zero ? { offset: { role: "zeroPoint" as const, levels: [{ format: uint4, span }] } } : {}) }); // prettier-ignore
  for (const [k, n, span] of [[1, 1, 2], [7, 3, 4], [33, 5, 32], [64, 1, 16], [31, 2, 2], [18, 300, 6]] as const)
    for (const make of [symmetric, asymmetric, halves(false), halves(true)])
      for (const size of [1, 2 ** -16, 2 ** -22, 2 ** 12]) {
        const w = weights(k * n, k + n).map((v) => v * size);
        for (const t of [transpose(tensor(w, [k, n])), tensor(w, [n, k])]) {
          const view = matrixView(t);
          const { packed, signal, noise } = quantizeNibbles(view, [n, k], make(span), { version: 1, algorithm: "rtn" })!;
          const back = dequantize(packed, { dtype: "float64" });
          let [s, e] = [0, 0];
          for (let r = 0; r < n; r++)
            for (let j = 0; j < k; j++) {
              const v = view.data[r * view.rowStride + j * view.kStride];
              s += v ** 2;
              e += (v - back[r * k + j]) ** 2;
            }
          expect(Math.abs(signal - s)).toBeLessThanOrEqual(1e-12 * s);
          // the decoded values are rounded to float32 once more
          expect(Math.abs(noise - e)).toBeLessThanOrEqual(1e-6 * e + 1e-13 * s);
        }
      }
}); // prettier-ignore
