// Data-free quantizers: scale search, HQQ, stochastic rounding. Expected figures: parts D1 and D2 of the notes
// (Gaussian data).
import { expect, test } from "vitest";
import { defineBlock, float32, format, uint4 } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import type { BlockFormat, Format, WeightQuantizer } from "../../src/index.ts";
import { hqq, rtn } from "../../src/quantize/index.ts";
import { random } from "../helpers/random.ts";

const rng = random(17);
const N = 1 << 17;
const x = Float32Array.from({ length: N }, () => 0.02 * rng.normal());
const t = tensor(x, [N / 1024, 1024]);
function errors(fmt: Format, q: WeightQuantizer) {
  const y = dequantize(quantize(t, fmt, q), { dtype: "float64" });
  let [absolute, squares, power] = [0, 0, 0];
  for (let i = 0; i < N; i++) {
    const d = x[i] - y[i];
    absolute += Math.abs(d);
    squares += d * d;
    power += x[i] * x[i];
  }
  return { mean: absolute / N, relative: squares / power };
}

test("scale search reaches the published errors, and is never worse than the rule, per block", () => {
  const search = { method: "mse" as const };
  // INT4 g128: 1.376e-2 -> 1.116e-2; NVFP4: 9.03e-3 -> 7.39e-3
  expect(errors(format("int4_b128"), rtn({ search })).relative / 1.116e-2).toBeLessThan(1.02);
  expect(errors(format("nvfp4"), rtn({ search })).relative / 7.39e-3).toBeLessThan(1.02);
  for (const name of ["int4_b32", "uint3_b32_zp", "mxfp4", "nvfp4", "float4_e2m1fn_b16", "int2_row"]) {
    const fmt = format(name) as BlockFormat;
    const span = fmt.scales[0].span === "row" ? 1024 : (fmt.scales[0].span as number);
    const plain = dequantize(quantize(t, fmt, rtn()), { dtype: "float64" });
    const searched = dequantize(quantize(t, fmt, rtn({ search })), { dtype: "float64" });
    let better = 0;
    for (let b = 0; b < N; b += span) {
      let [p, s] = [0, 0];
      for (let i = b; i < b + span; i++) {
        p += (x[i] - plain[i]) ** 2;
        s += (x[i] - searched[i]) ** 2;
      }
      // Rules that decide in float32 steps may round a tie the other way.
      if (s > p * (1 + 1e-5)) throw new Error(`${name}: block at ${b} got worse, ${p} -> ${s}`);
      if (s < p) better++;
    }
    expect(better, name).toBeGreaterThan(0);
  }
});

test("search weights: the error of heavy columns falls", () => {
  const weights = Float64Array.from({ length: 1024 }, (_, j) => (j % 8 === 0 ? 100 : 0.01));
  const error = (q: WeightQuantizer) => {
    const y = dequantize(quantize(t, format("int3_b32"), q), { dtype: "float64" });
    let s = 0;
    for (let i = 0; i < N; i++) s += weights[i % 1024] * (x[i] - y[i]) ** 2;
    return s;
  };
  const search = { method: "mse" as const };
  expect(error(rtn({ search, columnWeights: weights })) / error(rtn({ search }))).toBeLessThan(0.8);
});

test("HQQ lowers the mean error as published, most with real zero points", () => {
  const levels = [{ format: float32, span: 64 }];
  const real = defineBlock({ name: "u4_real_zero", element: uint4, scales: levels, offset: { role: "zeroPoint", levels } });
  // mean |error| 1.5605e-3 -> 1.5085e-3 (real zero) -> 1.4524e-3; relMSE 8.26e-3 -> 7.34e-3
  const plain = errors(format("uint4_b64_zp"), rtn());
  const fitted = errors(real, hqq());
  expect(plain.mean / 1.5605e-3).toBeCloseTo(1, 1);
  expect(fitted.mean / 1.4524e-3).toBeLessThan(1.005);
  expect(fitted.relative / 7.34e-3).toBeLessThan(1.01);
  expect(errors(format("uint4_b64_zp"), hqq()).mean).toBeLessThanOrEqual(plain.mean);
  expect(() => errors(format("int4_b64"), hqq())).toThrow(/zero points, got int4_b64/);
  expect(() => hqq({ norm: 2 })).toThrow(RangeError);
});

test("stochastic rounding: the mean over seeds is the value, and a seed repeats", () => {
  const values = Float32Array.from([0.1, 0.37, -0.62, 0.999, -0.05, 1, 0.5, -1]);
  const fmt = format("int4_row");
  const n = 4000;
  const mean = new Float64Array(values.length);
  for (let seed = 0; seed < n; seed++) {
    const y = dequantize(quantize(tensor(values, [1, 8]), fmt, rtn({ rounding: "stochastic", seed })));
    y.forEach((v, i) => (mean[i] += v / n));
  }
  const step = 1 / 7;
  mean.forEach((m, i) => expect(Math.abs(m - values[i])).toBeLessThan((4 * step) / (2 * Math.sqrt(n))));
  const one = () => quantize(tensor(values, [1, 8]), fmt, rtn({ rounding: "stochastic", seed: 5 }));
  expect(one().codes).toEqual(one().codes);
  expect(one().recipe.seed).toBe(5);
  expect(() => rtn({ rounding: "stochastic" })).toThrow(TypeError);
});

test("search errors", () => {
  expect(() => rtn({ search: { method: "mse", norm: -1 } })).toThrow(RangeError);
  expect(() => rtn({ search: { method: "mse", maxShrink: 1 } })).toThrow(RangeError);
  expect(() => quantize(t, format("float8_e4m3fn"), rtn({ search: { method: "mse" } }))).toThrow(/expected a format with scales/);
});
