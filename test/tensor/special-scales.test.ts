// Fitted logarithmic scales and the exact dot product of dynamic fixed point.
import { expect, test } from "vitest";
import { float4_e2m1fn, format, type BlockFormat } from "../../formats/index.ts";
import { dequantize, dotInt16, fitLogScales, fromBytes, quantize, tensor, toBytes, unpack } from "../../src/index.ts";
import { random } from "../helpers/random.ts";

const relative = (x: Float32Array, dq: Float32Array) => x.reduce((s, v, i) => s + (v - dq[i]) ** 2, 0) / x.reduce((s, v) => s + v * v, 0);

test("fitted scales: the bits of mxfp4, nearly the error of unquantized scales", () => {
  const rng = random(41);
  const x = Float32Array.from({ length: 1 << 15 }, () => rng.normal());
  const t = tensor(x, [32, 1024]);
  const fmt = fitLogScales(t, { element: float4_e2m1fn });
  const mx = format("mxfp4") as BlockFormat;
  expect(fmt.bitsPerValue(32, 1024)).toBe(mx.bitsPerValue(32, 1024));
  const w = quantize(t, fmt);
  const fitted = relative(x, dequantize(w));
  const plain = relative(x, dequantize(quantize(t, format("float4_e2m1fn_b32") as BlockFormat)));
  expect(fitted).toBeLessThan(plain * 1.01);
  expect(fitted).toBeLessThan(0.85 * relative(x, dequantize(quantize(t, mx))));
  // Each scale is the grid point nearest to amax / 6, within half a step of at most 2 %.
  for (let b = 0; b < 1024; b++) {
    const amax = x.subarray(32 * b, 32 * b + 32).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    expect(Math.abs(fmt.scales[0].format.decode(w.scales![b]) / (amax / 6) - 1)).toBeLessThan(0.01);
  }
  const again = fromBytes(toBytes(w));
  expect(dequantize(again)).toEqual(dequantize(w));
});

test("fitted scales: one size of blocks, zero blocks, shared grids, nothing to fit", () => {
  const x = new Float32Array(96).fill(3);
  x.fill(0, 32, 64);
  const t = tensor(x, [1, 96]);
  expect([...dequantize(quantize(t, fitLogScales(t, { element: float4_e2m1fn })))]).toEqual([...x]);
  const small = tensor(new Float32Array(32).fill(1e-3), [1, 32]);
  const shared = fitLogScales([t, small], { element: float4_e2m1fn });
  expect(shared.scales[0].format.limits.minPositive).toBe(Math.fround(Math.fround(1e-3) / 6));
  expect(unpack(quantize(small, shared))).toEqual(new Uint8Array(32).fill(7));
  const bad = expect.objectContaining({ code: "E_VALUE" });
  expect(() => fitLogScales(tensor(new Float32Array(32), [1, 32]), { element: float4_e2m1fn })).toThrow(bad);
  expect(() => fitLogScales(tensor(Float32Array.of(1, Infinity), [1, 2]), { element: float4_e2m1fn })).toThrow(bad);
});

test("dotInt16 is exact where int32 and float32 sums are not", () => {
  const rng = random(43);
  for (const [n, size] of [
    [1, 65536],
    [1000, 65536],
    [1000, 200],
    [77, 4096],
    [300_000, 65536],
  ] as const) {
    const make = () => Int16Array.from({ length: n }, () => rng.integer(size) - size / 2);
    const [a, b] = [make(), make()];
    let want = 0n;
    for (let i = 0; i < n; i++) want += BigInt(a[i]) * BigInt(b[i]);
    expect(BigInt(dotInt16(a, b))).toBe(want);
  }
  const low = new Int16Array(5).fill(-32768);
  expect(dotInt16(low, low)).toBe(5 * 2 ** 30);
  expect(dotInt16(new Int16Array(0), new Int16Array(0))).toBe(0);
  expect(() => dotInt16(new Int16Array(2), new Int16Array(3))).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  const long = new Int16Array((1 << 23) + 1).fill(-32768);
  expect(() => dotInt16(long, long)).toThrow(RangeError);
  expect(() => dotInt16([1] as never, [1] as never)).toThrow(TypeError);
});

test("dfp16: quantized vectors multiply through integers and two shared exponents", () => {
  const rng = random(44);
  const make = () => Float32Array.from({ length: 512 }, () => rng.normal());
  const fmt = format("dfp16") as BlockFormat;
  const [x, y] = [make(), make()];
  const [u, v] = [x, y].map((d) => quantize(tensor(d, [1, 512]), fmt));
  const ints = (w: typeof u) => new Int16Array(unpack(w).buffer as ArrayBuffer);
  const scale = (w: typeof u) => fmt.scales[0].format.decode(w.scales![0]);
  const [dx, dy] = [dequantize(u), dequantize(v)];
  const want = dx.reduce((s, a, i) => s + a * dy[i], 0);
  expect(dotInt16(ints(u), ints(v)) * scale(u) * scale(v)).toBeCloseTo(want, 9);
});

test("elements of wide range get no subnormal scale: powers of two stay what they are", () => {
  for (const name of ["bfloat16_b32", "bfloat16_row", "bfloat16_tensor"] as const)
    for (const size of [1, 2 ** -20, 2 ** 30]) {
      const x = Float32Array.from({ length: 64 }, (_, i) => size * 2 ** -(i % 20));
      expect([...dequantize(quantize(tensor(x, [2, 32]), format(name)))], `${name} ${size}`).toEqual([...x]);
    }
  // A narrow element keeps the exact scale: the smallest normal one would cost it codes.
  const tiny = Float32Array.from({ length: 32 }, (_, i) => (i - 16) * 2 ** -140);
  expect(relative(tiny, dequantize(quantize(tensor(tiny, [1, 32]), format("int8_b32"))))).toBeLessThan(0.01);
});
