// Where options end: for every option of the quantizers the last values that are taken and the first that are refused.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { float32, uint4 } from "../../formats/all.ts";
import { defineBlock } from "../../formats/define/index.ts";
import { quantize, tensor, type WeightQuantizer } from "../../src/index.ts";
import * as q from "../../src/quantize/index.ts";
import { random } from "../helpers/random.ts";

const k = 16;
const rng = random(3);
const statistics = (options: object = {}, rows = 2 * k) => {
  const made = q.layerStatistics(k, options);
  made.add(Float32Array.from({ length: rows * k }, () => rng.normal()));
  return made.finish();
};
const hessian = statistics().hessian!;
const weight = tensor(Float32Array.from({ length: 8 * k }, () => rng.normal()), [8, k]); // prettier-ignore
const refuse = (code: string) => expect.objectContaining({ code });

type Make = (options: Record<string, unknown>) => unknown;
const rows: [name: string, make: Make, taken: Record<string, unknown[]>, refused: Record<string, unknown[]>][] = [
  [
    "hqq",
    (o) => q.hqq(o),
    { norm: [1e-9, 1], beta: [1e-9, 1e300], kappa: [1, 9.99], iterations: [0, 1000] },
    { norm: [0, 1.0001, NaN], beta: [0, Infinity, NaN], kappa: [0.99, 10, NaN], iterations: [-1, 0.5, 1001, NaN] },
  ],
  [
    "gptq",
    (o) => q.gptq({ hessian, ...o }),
    { damp: [0, 1e9], dampRetries: [0, 10], blockSize: [1, 1024], groupScales: ["current", "blockStart"], polish: [true, false, 0, 100] },
    { damp: [-1e-9, Infinity, NaN], dampRetries: [-1, 11, 0.5], blockSize: [0, 1.5], groupScales: ["", "last"], polish: [-1, 101, 0.5] },
  ],
  [
    "gptq search",
    (search) => q.gptq({ hessian, search: { method: "mse", ...search } }),
    { norm: [1e-9, 8], grid: [1, 10_000], maxShrink: [1e-9, 0.999], maxGrow: [1, 16] },
    { method: ["mae"], norm: [0, 8.01], grid: [0, 10_001, 1.5], maxShrink: [0, 1], maxGrow: [0.99, 16.1] },
  ],
  [
    "adaround",
    (o) => q.adaround({ hessian, ...o }),
    { iterations: [0, 1], learningRate: [1e-9, 9.99], lambda: [0, 1e9] },
    { iterations: [-1, 0.5], learningRate: [0, 10], lambda: [-1e-9, Infinity] },
  ],
  ["awq", (o) => q.awq({ statistics: statistics(), ...o }), { grid: [1, 1000] }, { grid: [0, 1001, 1.5] }],
  [
    "observer",
    ({ k: length = k, ...o }) => q.observer(length as number, { method: "mse", ...o }),
    { k: [1], momentum: [1e-9, 1], percentile: [50.01, 100], bins: [16, 18], bits: [2, 16], quantizedBins: [2, 128], limit: [0, 1e9] },
    {
      k: [0, 1.5],
      momentum: [0, 1.01],
      percentile: [50, 100.1],
      bins: [14, 17],
      bits: [1, 17, 2.5],
      method: ["mean", undefined],
      quantizedBins: [0, 3],
      limit: [-1, Infinity],
    },
  ],
];

test.each(rows)("%s", (_, make, taken, refused) => {
  for (const [name, values] of Object.entries(taken))
    for (const value of values) expect(() => make({ [name]: value }), `${name} ${String(value)}`).not.toThrow();
  for (const [name, values] of Object.entries(refused))
    for (const value of values) expect(() => make({ [name]: value }), `${name} ${String(value)}`).toThrow(RangeError);
});

test("prune and GPTQ's other options", () => {
  const prune = { pattern: "2:4" } as const;
  expect(() => q.gptq({ hessian, prune, blockSize: 16 })).not.toThrow();
  expect(() => q.gptq({ hessian, prune, blockSize: 24 })).toThrow(RangeError);
  expect(() => q.gptq({ hessian, prune, actOrder: true })).toThrow(TypeError);
  expect(() => q.gptq({ hessian, prune, polish: 1 })).toThrow(TypeError);
});

test("a Hessian that is missing, of another layer, of too few rows, or no symmetric matrix", () => {
  for (const make of [q.gptq, q.adaround, q.mrgptq]) {
    for (const none of [undefined, {}, { hessian: undefined }, { hessian: null }])
      expect(() => (make as unknown as Make)(none as Record<string, unknown>)).toThrow(TypeError);
  }
  for (const make of [q.gptq, q.adaround] as ((o: { hessian: never; minRows?: number }) => WeightQuantizer)[]) {
    const run = (given: unknown, minRows?: number) => () =>
      quantize(weight, format("int4_b16"), make({ hessian: given as never, ...(minRows === undefined ? {} : { minRows }) }));
    expect(run(hessian)).not.toThrow();
    expect(run(statistics())).not.toThrow();
    expect(run(statistics({ hessian: false }))).toThrow(refuse("E_CALIBRATION"));
    expect(run(hessian.subarray(1))).toThrow(refuse("E_CALIBRATION"));
    const other = q.layerStatistics(k / 2, {});
    other.add(new Float32Array(k * k).fill(1));
    expect(run(other.finish())).toThrow(refuse("E_CALIBRATION"));
    const skew = hessian.slice();
    skew[1] += Math.abs(skew[1]) + 1;
    expect(run(skew)).toThrow(refuse("E_CALIBRATION"));
    expect(run(hessian.slice().fill(NaN))).toThrow(refuse("E_CALIBRATION"));
    if (make === (q.adaround as unknown)) expect(run(new Float64Array(k * k))).toThrow(refuse("E_CALIBRATION"));
    // by default an eighth of the inputs
    expect(run(statistics({}, 1))).toThrow(refuse("E_CALIBRATION"));
    expect(run(statistics({}, 2))).not.toThrow();
    expect(run(statistics({}, 2), 3)).toThrow(refuse("E_CALIBRATION"));
    expect(run(statistics({}, 3), 3)).not.toThrow();
  }
});

test("narrow ranges: the most negative code is never used, but by the others", () => {
  // one value far below all others takes the lowest code where it may; the weights before it push the rest down
  const data = Float32Array.from({ length: 8 * k }, (_, i) => (i % k === 3 ? -8 : rng.normal() * 0.5));
  const low = (rangeRule: "narrow" | "gptq" | "full", make: (o: object) => WeightQuantizer): number => {
    const packed = quantize(tensor(data, [8, k]), format("int4_b16"), make({ rangeRule }));
    const codes = [...packed.codes].flatMap((byte) => [byte & 15, byte >> 4]).map((c) => (c > 7 ? c - 16 : c));
    return Math.min(...codes);
  };
  const makes: ((o: object) => WeightQuantizer)[] = [(o) => q.gptq({ hessian, ...o }), (o) => q.adaround({ hessian, iterations: 20, ...o }), (o) => q.rtn(o)]; // prettier-ignore
  for (const make of makes) {
    expect(low("narrow", make)).toBe(-7);
    expect(low("full", make)).toBe(-8);
  }
});

/**
 * Half-quadratic quantization (Badri and Shaji 2023), one block: W_e = shrink(W - W_q), z = mean(q - (W - W_e) / s);
 * the zero point met on the way, in its stored form, whose mean absolute error is least, the rule's own one first.
 */
function hqqZero(x: number[], s: number, rule: number, iterations: number, p: number, beta: number, kappa: number): number {
  const even = (v: number) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));
  const code = (v: number, z: number) => even(Math.min(15, Math.max(0, v / s + z)));
  const error = (z: number) => x.reduce((sum, v) => sum + Math.abs(v - (code(v, z) - z) * s), 0);
  const met = [rule];
  let z = -Math.min(0, ...x) / s;
  for (let i = 0; i < iterations; i++) {
    met.push(Math.fround(z));
    const parts = x.map((v) => {
      const c = code(v, z);
      const d = v - (c - z) * s;
      const shrunk = Math.sign(d) * Math.max(0, Math.abs(d) - Math.abs(d) ** (p - 1) / beta);
      return c - (v - (d === 0 ? 0 : shrunk)) / s;
    });
    z = parts.reduce((a, b) => a + b, 0) / x.length;
    beta *= kappa;
  }
  met.push(Math.fround(z));
  return met.reduce((best, m) => (error(m) < error(best) ? m : best));
}

test("HQQ: zero points after any number of iterations, as by the paper's steps", () => {
  const levels = [{ format: float32, span: 32 }];
  const real = defineBlock({ name: "u4_real_zero_b32", element: uint4, scales: levels, offset: { role: "zeroPoint", levels } });
  const x = Float32Array.from({ length: 16 * 32 }, () => rng.laplace());
  const w = tensor(x, [16, 32]);
  const floats = (bytes: Uint8Array) => [...new Float32Array(bytes.slice().buffer)];
  const start = quantize(w, real, q.rtn());
  const seen = new Set<string>();
  for (const options of [
    { iterations: 0 },
    { iterations: 1 },
    { iterations: 2 },
    { iterations: 5, norm: 0.5 },
    { iterations: 4, beta: 1, kappa: 2 },
    {},
  ]) {
    // prettier-ignore
    const o = { iterations: 20, norm: 0.7, beta: 10, kappa: 1.01, ...options };
    const packed = quantize(w, real, q.hqq(options));
    const scales = floats(packed.scales!);
    const rule = floats(start.offsets!);
    const want = scales.map((s, b) => hqqZero([...x.subarray(b * 32, (b + 1) * 32)], s, rule[b], o.iterations, o.norm, o.beta, o.kappa));
    expect(floats(packed.offsets!), JSON.stringify(options)).toEqual(want);
    seen.add(String(want));
  }
  expect(seen.size).toBe(6);
});

test("channels that there are not are refused, the last one is taken", () => {
  const some = statistics();
  expect(q.selectChannels(some, [0, k - 1]).k).toBe(2);
  for (const channel of [-1, k, 0.5]) expect(() => q.selectChannels(some, [0, channel])).toThrow(RangeError);
});

test("smoothing: the power of the outputs counts where it is small, and must not be zero", () => {
  const search = (scale: number) =>
    q.searchSmoothing([{ weight: Float64Array.from(weight.data, (v) => v * scale), rows: 8, k }], {
      statistics: statistics() as never,
      format: format("int8_row"),
      alphas: [0.5],
    });
  expect(search(1e-6).errors[0]).toBeGreaterThan(0);
  expect(() => search(0)).toThrow(refuse("E_CALIBRATION"));
});
