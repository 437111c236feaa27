// Least-squares refit: the normal equations, an oracle by Gauss-Jordan, what it gains behind a quantized layer, bias,
// errors.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import {
  correctDriftBias,
  driftError,
  driftStatistics,
  gptq,
  layerStatistics,
  mergeDrift,
  mergeStatistics,
  refit,
  refitWeight,
  rtn,
} from "../../src/quantize/index.ts";
import { inverse } from "../oracle/gptq.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

/** x, and y = x with noise, a loss of gain and a shift. */
function drifting(tokens: number, k: number, seed: number) {
  const x = inputs("ar", tokens, k, seed);
  const rng = random(seed + 1);
  const y = x.map((v, i) => 0.8 * v + 0.3 * rng.normal() + 0.1 * ((i % k) % 3));
  return { x, y };
}

test("solves the normal equations of ||W x - V y||^2 + ridge ||V - W||^2, token weights and masks included", () => {
  const [rows, k, tokens] = [5, 17, 90];
  const { x, y } = drifting(tokens, k, 3);
  const w = Float64Array.from(gaussianWeights(rows, k, 2, 1));
  const weights = Float64Array.from({ length: tokens }, (_, t) => 1 + (t % 3));
  const mask = Uint8Array.from({ length: tokens }, (_, t) => (t % 7 === 0 ? 0 : 1));
  const acc = driftStatistics(k);
  const half = 40 * k;
  acc.add(x.subarray(0, half), y.subarray(0, half), { mask: mask.subarray(0, 40), weights: weights.subarray(0, 40) });
  acc.add(x.subarray(half), y.subarray(half), { mask: mask.subarray(40), weights: weights.subarray(40) });
  const drift = acc.finish();
  const ridge = 0.1;
  const v = refitWeight(tensor(w, [rows, k]), { drift, ridge });
  // Oracle: V = (W X Y^T + r W) (Y Y^T + r)^-1 from the tokens themselves.
  const yy = Array.from({ length: k }, () => new Array<number>(k).fill(0));
  const xy = Array.from({ length: k }, () => new Array<number>(k).fill(0));
  for (let t = 0; t < tokens; t++)
    if (mask[t])
      for (let i = 0; i < k; i++)
        for (let j = 0; j < k; j++) {
          yy[i][j] += weights[t] * y[t * k + i] * y[t * k + j];
          xy[i][j] += weights[t] * x[t * k + i] * y[t * k + j];
        }
  const r = (ridge * yy.reduce((s, row, i) => s + row[i], 0)) / k;
  const inv = inverse(yy.map((row, i) => row.map((u, j) => (i === j ? u + r : u))));
  for (let row = 0; row < rows; row++) {
    const left = Array.from({ length: k }, (_, j) => {
      let s = r * w[row * k + j];
      for (let i = 0; i < k; i++) s += w[row * k + i] * xy[i][j];
      return s;
    });
    for (let j = 0; j < k; j++) {
      let s = 0;
      for (let i = 0; i < k; i++) s += left[i] * inv[i][j];
      expect(Math.abs(v[row * k + j] - s)).toBeLessThan(1e-9);
    }
  }
});

test("inputs that did not change leave the weight as it is", () => {
  const [rows, k] = [4, 24];
  const x = inputs("ar", 100, k, 5);
  const acc = driftStatistics(k);
  acc.add(x, x);
  const w = gaussianWeights(rows, k, 1);
  expect(Float32Array.from(refitWeight(tensor(w, [rows, k]), { drift: acc.finish() }))).toEqual(w);
});

test("refit + GPTQ + bias beats GPTQ alone on what the float layer gave, on other tokens too", () => {
  const [rows, k, tokens] = [24, 64, 600];
  const w = gaussianWeights(rows, k, 6);
  const calibration = drifting(tokens, k, 7);
  const other = drifting(300, k, 70);
  const acc = driftStatistics(k);
  acc.add(calibration.x, calibration.y);
  const drift = acc.finish();
  const t = tensor(w, [rows, k]);
  const fmt = format("int4_b32");
  const error = (q: ArrayLike<number>, bias: ArrayLike<number> | null, { x, y }: typeof other, n: number) => {
    let sum = 0;
    for (let i = 0; i < n; i++)
      for (let r = 0; r < rows; r++) {
        let d = bias ? -bias[r] : 0;
        for (let j = 0; j < k; j++) d += w[r * k + j] * x[i * k + j] - q[r * k + j] * y[i * k + j];
        sum += d * d;
      }
    return sum;
  };
  const plain = dequantize(quantize(t, fmt, gptq({ hessian: drift.inputs })));
  const packed = quantize(t, fmt, refit({ drift }));
  expect(packed.recipe.algorithm).toBe("gptq");
  expect(packed.recipe.refit).toEqual({ ridge: 0.05 });
  const moved = dequantize(packed);
  const bias = correctDriftBias({ weight: w, rows, k }, moved, drift);
  for (const [data, n] of [[calibration, tokens] as const, [other, 300] as const]) {
    const [a, b, c] = [error(plain, null, data, n), error(moved, null, data, n), error(moved, bias, data, n)];
    expect(b).toBeLessThan(0.8 * a);
    expect(c).toBeLessThan(b);
  }
  // The bias takes the mean error out.
  let mean = 0;
  for (let i = 0; i < tokens; i++) {
    mean += bias[3];
    for (let j = 0; j < k; j++) mean += moved[3 * k + j] * calibration.y[i * k + j] - w[3 * k + j] * calibration.x[i * k + j];
  }
  expect(Math.abs(mean / tokens)).toBeLessThan(1e-9);
  // Any quantizer may follow.
  const rounded = quantize(t, fmt, refit({ drift, quantizer: rtn() }));
  expect(rounded.codes).toEqual(quantize(tensor(refitWeight(t, { drift }), [rows, k]), fmt).codes);
});

test("errors: both models must give the same finite tokens, enough of them; the ridge; progress and abort", () => {
  const k = 16;
  const acc = driftStatistics(k, { name: "fc" });
  const x = inputs("iid", 40, k, 1);
  expect(() => acc.add(x, x.subarray(k))).toThrow(/fc.*same tokens/);
  const bad = x.slice();
  bad[3 * k + 2] = Infinity;
  expect(() => acc.add(bad, x)).toThrow(/fc.*Infinity in channel 2 of token 3/);
  expect(() => acc.add(x, bad)).toThrow(/fc.*Infinity in channel 2 of token 3/);
  expect(() => acc.finish()).toThrow(/at least one token/);
  const mask = new Uint8Array(40).fill(1);
  mask[3] = 0;
  acc.add(bad, bad, { mask });
  const drift = acc.finish();
  expect(drift.inputs.rows).toBe(39);
  const t = tensor(gaussianWeights(4, k, 1), [4, k]);
  expect(() => refit({} as never)).toThrow(TypeError);
  expect(() => refit({ drift, ridge: -1 })).toThrow(RangeError);
  const few = driftStatistics(k);
  few.add(x.subarray(0, k), x.subarray(0, k));
  expect(() => quantize(t, format("int4_b16"), refit({ drift: few.finish(), name: "fc" }))).toThrow(/fc.*at least 2 calibration tokens/);
  few.add(x.subarray(0, k), x.subarray(0, k));
  expect(() => refitWeight(t, { drift: few.finish(), ridge: 0, minRows: 1 })).toThrow(/positive definite|equal tokens/);
  const stages: string[] = [];
  quantize(t, format("int4_b16"), refit({ drift, onProgress: (p) => stages.push(`${p.stage} ${p.done}`) }));
  expect(stages).toEqual(["refit 0", "refit 1", "gptq 0", "gptq 16"]);
  const signal = AbortSignal.abort();
  expect(() => quantize(t, format("int4_b16"), refit({ drift, signal }))).toThrow(expect.objectContaining({ code: "E_ABORTED" }));
});

test("statistics and drift of two shards are those of all tokens; other lengths and missing Hessians are refused", () => {
  const [k, tokens] = [12, 90];
  const { x, y } = drifting(tokens, k, 21);
  const collect = (from: number, to: number) => {
    const acc = driftStatistics(k);
    acc.add(x.subarray(from * k, to * k), y.subarray(from * k, to * k));
    return acc.finish();
  };
  const [want, got] = [collect(0, tokens), mergeDrift(collect(0, 31), collect(31, tokens))];
  const near = (a: Float64Array, b: Float64Array) => a.forEach((v, i) => expect(Math.abs(v - b[i])).toBeLessThan(1e-9));
  for (const what of ["hessian", "sum", "sumAbs", "sumSquares", "min", "max"] as const) near(got.inputs[what]!, want.inputs[what]!);
  expect([got.inputs.rows, got.inputs.weight, got.inputs.k]).toEqual([tokens, tokens, k]);
  near(got.cross, want.cross);
  near(got.shift, want.shift);
  const other = layerStatistics(k, { hessian: false });
  other.add(x);
  expect(() => mergeStatistics(want.inputs, other.finish())).toThrow(
    /mergeStatistics: expected inputs of length 12 with a Hessian in both, got .* without/,
  );
  const wide = layerStatistics(2 * k);
  wide.add(x);
  expect(() => mergeStatistics(want.inputs, wide.finish())).toThrow(/got inputs of length 24/);
});

test("sums that the caller has are added as they are; half of them, or with a mask, are refused", () => {
  const [k, tokens] = [12, 40];
  const { x, y } = drifting(tokens, k, 23);
  const want = driftStatistics(k);
  want.add(x, y);
  const { inputs, cross, shift } = want.finish();
  const got = driftStatistics(k);
  got.add(x, y, { products: inputs.hessian!, crossProducts: cross });
  expect(got.finish()).toEqual({ inputs, cross, shift });
  const products = inputs.hessian!;
  expect(() => got.add(x, y, { products })).toThrow(/products and crossProducts .* together/);
  const own = layerStatistics(k);
  expect(() => own.add(y, { products, mask: new Uint8Array(tokens).fill(1) })).toThrow(/without mask and weights/);
  expect(() => own.add(y, { products: products.subarray(1) })).toThrow(/12 x 12/);
});

test("the error over that of the weight as it was, from the tokens themselves", () => {
  const [rows, k, tokens] = [6, 32, 200];
  const { x, y } = drifting(tokens, k, 31);
  const acc = driftStatistics(k);
  acc.add(x, y);
  const drift = acc.finish();
  const w = gaussianWeights(rows, k, 3);
  const t = tensor(w, [rows, k]);
  const error = (q: ArrayLike<number>) => {
    let sum = 0;
    for (let i = 0; i < tokens; i++)
      for (let r = 0; r < rows; r++) {
        let d = 0;
        for (let j = 0; j < k; j++) d += w[r * k + j] * x[i * k + j] - q[r * k + j] * y[i * k + j];
        sum += d * d;
      }
    return sum;
  };
  const q = dequantize(quantize(t, format("int4_b32"), refit({ drift })));
  for (const values of [q, w, new Float32Array(rows * k)]) {
    const want = error(values) - error(w);
    expect(Math.abs(driftError(t, values, drift) - want)).toBeLessThan(1e-6 * error(w));
  }
  expect(driftError(t, q, drift)).toBeLessThan(0);
});
