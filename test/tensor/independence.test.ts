// What must not matter: other rows, the size of the numbers, the backend; and what matters at the ends of ranges.
import { describe, expect, test } from "vitest";
import { allFormats, defineBlock, defineFloat, format, type BlockFormat, type NumberFormat } from "../../formats/index.ts";
import { decompressBfloat16, dequantize, fitLogScales, fromBytes, quantize, tensor, toBytes, wasm, type PackedTensor, type QuantizeOptions } from "../../src/index.ts"; // prettier-ignore
import { levelValues } from "../../formats/core/packed.ts";
import { awkwardBlock, random } from "../helpers/random.ts";

const scalar = (name: string) => format(name) as NumberFormat;
const backend = await wasm();
/** A quarter of a megabyte of values at most: rows of blocks of every kind, ends that are no whole block. */
function data(rows: number, k: number, seed: number): Float32Array {
  const rng = random(seed);
  const x = new Float32Array(rows * k);
  for (let r = 0; r < rows; r++) for (let at = 0, kind = seed + r; at < k; at += 8, kind++) x.set(awkwardBlock(rng, 8, kind % 9).subarray(0, k - at), r * k + at); // prettier-ignore
  return x;
}
const planes = (w: PackedTensor) => [w.codes, w.scales, w.superScales, w.offsets].map((p) => (p === null ? null : [...p]));

test("rows are quantized each for itself, whatever the rule, where no scale reaches over them", () => {
  const [rows, k] = [3, 41];
  const blocks: [BlockFormat, QuantizeOptions[]][] = [
    [format("mxfp4") as BlockFormat, (["max", "floor", "ceil", "rceil", "nearest", "even", "mse", "mseSweep", "quest"] as const).map((scaleRule) => ({ scaleRule }))],
    [defineBlock({ element: scalar("int4"), scales: [{ format: scalar("float32"), span: 16 }] }), [{ scaleRule: "mse" }, { rangeRule: "full" }, { arithmetic: "ort" }, { arithmetic: "onnx", rangeRule: "ort" }, { rounding: "floor" }]],
    [defineBlock({ element: scalar("float4_e2m1fn"), scales: [{ format: scalar("float8_e4m3fn"), span: 16 }, { format: scalar("float32"), span: "row" }] }), (["max", "torchao", "te", "modelopt", "fourOverSix", "mse"] as const).map((scaleRule) => ({ scaleRule }))],
    [format("uint4_b16_zp") as BlockFormat, [{}, { arithmetic: "ort" }, { arithmetic: "onnx" }, { arithmetic: "ortQdq" }]],
    [format("nf4_b16") as BlockFormat, [{}, { arithmetic: "ort" }]],
  ]; // prettier-ignore
  for (const [f, list] of blocks)
    for (const options of list)
      for (const seed of [1, 4]) {
        const x = data(rows, k, seed);
        const whole = planes(quantize(tensor(x, [rows, k]), f, options));
        const each = Array.from({ length: rows }, (_, r) => planes(quantize(tensor(x.subarray(r * k, (r + 1) * k), [1, k]), f, options)));
        expect(whole, `${f.name} ${JSON.stringify(options)}`).toEqual(
          whole.map((p, i) => (p === null ? null : each.flatMap((row) => row[i]!))),
        );
      }
});

test("numbers 2^-40 of the size have scales 2^-40 of the size, and the same codes", () => {
  for (const [name, list] of [["int4_b16", [{}, { scaleRule: "mse" }, { scaleRule: "mseSweep" }, { rangeRule: "ort" }, { arithmetic: "ort" }]], ["float4_e2m1fn_b16", [{}, { scaleRule: "mse" }]], ["uint4_b16_zp", [{}, { arithmetic: "ort" }]]] as [string, QuantizeOptions[]][])
    for (const options of list)
      for (const power of [-40, 30]) {
        const x = Float32Array.from(data(4, 64, 2), (v) => (Math.abs(v) < 2 ** -20 ? 0 : v));
        const f = format(name) as BlockFormat;
        const [a, b] = [x, x.map((v) => v * 2 ** power)].map((v) => quantize(tensor(v, [4, 64]), f, options));
        expect(b.codes, `${name} ${JSON.stringify(options)}`).toEqual(a.codes);
        expect(b.offsets).toEqual(a.offsets);
        const [s, t] = [a, b].map((w) => levelValues(f.scales[0], w.scales!, 4, 64));
        s.forEach((v, i) => expect(t[i]).toBe(x.subarray(16 * i, 16 * i + 16).some((u) => u !== 0) ? v * 2 ** power : v));
      }
}); // prettier-ignore

test("blocks of zeros, of formats with a zero and without, by kernels as by loops", () => {
  for (const f of allFormats.filter((g) => g.kind === "block" || g.kind === "bipolar")) {
    const own = f.kind === "block" ? f : defineBlock({ element: f as NumberFormat, scales: [{ format: scalar("float32"), span: 16 }] });
    const x = tensor(Float32Array.from({ length: 512 }, (_, i) => (i % 64 < 32 ? 0 : i / 100)), [2, 256]); // prettier-ignore
    const plain = quantize(x, own);
    expect(quantize(x, own, { backend }), f.name).toEqual(plain);
    const back = dequantize(plain);
    for (let i = 0; i < 32; i++) expect(back[i] + 0, f.name).toBe(0);
    expect(dequantize(plain, { backend })).toEqual(back);
  }
  const f = format("int4_b16") as BlockFormat;
  for (const options of [{ arithmetic: "onnx" }, { arithmetic: "onnx", rangeRule: "ort" }, { arithmetic: "onnx", rangeRule: "full" }] as QuantizeOptions[]) {
    const packed = quantize(tensor(new Float32Array(16), [1, 16]), f, options);
    expect([levelValues(f.scales[0], packed.scales!, 1, 16)[0], ...packed.codes]).toEqual([1, ...new Array(8).fill(0)]);
  } // prettier-ignore
});

test("one bit with a zero point: the upper code is the middle of a full range", () => {
  const f = format("uint1_b4_zp") as BlockFormat;
  const packed = quantize(tensor(Float32Array.of(-3, 3, 1, -1), [1, 4]), f, { rangeRule: "full" });
  expect([levelValues(f.scales[0], packed.scales!, 1, 4)[0], packed.offsets![0], ...dequantize(packed)]).toEqual([3, 1, -3, 0, 0, 0]);
});

test("zero points of 32 under scales of 16: one of each row's two", () => {
  const f = defineBlock({ element: scalar("uint4"), scales: [{ format: scalar("float32"), span: 16 }], offset: { role: "zeroPoint", levels: [{ format: scalar("uint4"), span: 32 }] } }); // prettier-ignore
  const x = data(5, 64, 3);
  const packed = quantize(tensor(x, [5, 64]), f, { rangeRule: "full" });
  expect([...packed.offsets!]).toEqual(new Array(5).fill(0x88));
  const own = quantize(tensor(x, [5, 64]), format("uint4_b16_zp"), { rangeRule: "full" });
  expect([packed.codes, packed.scales]).toEqual([own.codes, own.scales]);
});

test("inner scales a rounding beyond the largest are the largest, also in a format that rounds up", () => {
  const up = defineFloat({ name: "t_up", exponentBits: 4, mantissaBits: 3, specials: "fn", defaults: { rounding: "ceil" } });
  const f = defineBlock({
    element: scalar("int4"),
    scales: [
      { format: up, span: 4 },
      { format: scalar("float32"), span: "tensor" },
    ],
  });
  const rng = random(3);
  for (let i = 0; i < 200; i++) {
    const x = Float32Array.from({ length: 16 }, () => rng.normal());
    const packed = quantize(tensor(x, [2, 8]), f);
    expect(Math.max(...levelValues(f.scales[0], packed.scales!, 2, 8))).toBe(448);
  }
  expect(() => quantize(tensor(Float32Array.of(7 * 448 * (1 + 2 ** -18), 0), [1, 2]), defineBlock({ element: scalar("int4"), scales: [{ format: up, span: 2 }] }))).toThrow(/expected at most 448, the largest t_up/); // prettier-ignore
});

test("fitted logarithmic scales: every step by the formula, the ends exactly", () => {
  const rng = random(6);
  const element = scalar("float4_e2m1fn");
  for (let i = 0; i < 40; i++) {
    const [low, high] = [rng.next() + 0.1, (rng.next() + 0.1) * 10 ** rng.integer(6)].sort((a, b) => a - b).map(Math.fround);
    const x = Float32Array.from({ length: 40 }, (_, j) => (j < 16 ? (j === 3 ? -low : low / 2) : j < 32 ? (j === 20 ? high : 0) : j === 35 ? low : 0)); // prettier-ignore
    const { scales, name, spec } = fitLogScales(tensor(x, [1, 40]), { element, span: 16 });
    expect([name, spec, scales.length, scales[0].span]).toEqual([
      "float4_e2m1fn_b16_log8",
      "MR-GPTQ (arXiv 2509.23202), appendix H",
      1,
      16,
    ]);
    const values = [...scales[0].format.table!];
    const [alpha, beta] = [Math.max(Math.log2(high / low), 0.5) / 255, Math.log2(low / 6)];
    expect(values.length).toBe(256);
    expect(values[0]).toBe(Math.fround(low / 6));
    expect(values[255]).toBeGreaterThanOrEqual(Math.fround(high / 6));
    values.slice(1, 255).forEach((v, q) => expect(v).toBe(Math.fround(2 ** (alpha * (q + 1) + beta))));
    expect(values[255] / Math.fround(2 ** (255 * alpha + beta))).toBeCloseTo(1, 6);
  }
  for (const [values, got] of [[[0, 0], "Infinity to 0"], [[1, Infinity], "1 to Infinity"]] as const) expect(() => fitLogScales(tensor(Float32Array.from(values), [2, 1]), { element })).toThrow(`fitLogScales: expected finite values that are not all zero, got amax from ${got}. Clean the tensor.`); // prettier-ignore
  expect(() => fitLogScales(tensor(Float32Array.of(1, NaN), [2, 1]), { element })).toThrow(/expected finite values/);
});

test("quest of blocks that do not vary: the least deviation that it knows", () => {
  const f = defineBlock({ element: scalar("float4_e2m1fn"), scales: [{ format: scalar("float8_e8m0fnu"), span: 8 }] });
  const scale = (value: number) => levelValues(f.scales[0], quantize(tensor(new Float32Array(8).fill(value), [1, 8]), f, { scaleRule: "quest" }).scales!, 1, 8)[0]; // prettier-ignore
  for (const value of [0, 1, -0.5, 3]) expect(scale(value)).toBe(2 ** -27);
});

test("minima beside scales, by kernels as by loops", () => {
  const f = defineBlock({ element: scalar("uint4"), scales: [{ format: scalar("float32"), span: 8 }], offset: { role: "min", levels: [{ format: scalar("float16"), span: 8 }] } }); // prettier-ignore
  const rng = random(9);
  const [rows, k] = [5, 24];
  const packed: PackedTensor = { format: f, shape: [rows, k], rows, k, rowBytes: 12, codes: Uint8Array.from({ length: 60 }, () => rng.integer(256)), scales: new Uint8Array(Float32Array.from({ length: 15 }, () => rng.normal()).buffer), superScales: null, offsets: new Uint8Array(Uint16Array.from({ length: 15 }, () => 0x3000 + rng.integer(0x1000)).buffer), recipe: { version: 1, algorithm: "t" } }; // prettier-ignore
  const [s, m] = [levelValues(f.scales[0], packed.scales!, rows, k), levelValues(f.offset!.levels[0], packed.offsets!, rows, k)];
  const want = Float32Array.from({ length: rows * k }, (_, i) => ((packed.codes[i >> 1] >> (4 * (i & 1))) & 15) * s[i >> 3] + m[i >> 3]);
  expect(dequantize(packed)).toEqual(want);
  expect(dequantize(packed, { backend })).toEqual(want);
  expect(dequantize(fromBytes(toBytes(packed)))).toEqual(want);
});

describe("lossless codes as long as they may be", () => {
  /** Lengths 1, 2, ..., n, n: symbol i of i ones and a zero, the last all ones. */
  const container = (longest: number, order: readonly number[], lengths = Array.from({ length: longest + 1 }, (_, i) => Math.min(i + 1, longest))) => {
    const bits = order.map((s) => "1".repeat(Math.min(s, longest)) + (s < longest ? "0" : "")).join("");
    const stream = Array.from({ length: Math.ceil(bits.length / 8) }, (_, i) => parseInt(bits.slice(8 * i, 8 * i + 8).padEnd(8, "0"), 2));
    const symbols = lengths.flatMap((length, s) => [100 + s, length]);
    return Uint8Array.of(0x4c, 0x42, 0x46, 0x31, order.length, 0, 0, 0, lengths.length, 0, ...symbols, ...order.map((_, i) => 128 * (i % 2) + i), ...stream);
  }; // prettier-ignore
  test.each([1, 11, 12, 13, 20, 24])("of %d bits, at every place in a byte", (longest) => {
    for (let shift = 0; shift < 8; shift++) {
      const order = [...new Array<number>(shift).fill(0), ...Array.from({ length: longest + 1 }, (_, i) => longest - i), longest, longest - 1 >= 0 ? longest - 1 : 0]; // prettier-ignore
      const words = order.map((s, i) => ((i % 2) << 15) | ((100 + s) << 7) | i);
      expect([...decompressBfloat16(container(longest, order))]).toEqual(words);
    }
  });
  test("longer ones, and sums that are no code, word for word", () => {
    const said = (expected: string, got: string) => expect.objectContaining({ code: "E_CONTAINER", message: `decompressBfloat16: expected ${expected}, got ${got}. Is the data whole, and from compressBfloat16?` }); // prettier-ignore
    expect(() => decompressBfloat16(container(25, [0]))).toThrow(said("distinct symbols of 1..24 bits", "124: 25"));
    expect(() => decompressBfloat16(container(2, [0], [1, 2]))).toThrow(said("a complete prefix code", "a Kraft sum of 0.75"));
    expect(() => decompressBfloat16(container(2, [0], [1, 1, 1]))).toThrow(said("a complete prefix code", "a Kraft sum of 1.5"));
    expect(() => decompressBfloat16(container(2, [0], [0, 1]))).toThrow(said("distinct symbols of 1..24 bits", "100: 0"));
    const good = container(2, [0, 1, 2]);
    expect([...decompressBfloat16(good)].length).toBe(3);
    const changed = (at: number, value: number) => good.map((b, i) => (i === at ? value : b));
    for (const n of [0, 9])
      expect(() => decompressBfloat16(good.subarray(0, n))).toThrow(said('"LBF1" and a header of 10 bytes', "something else"));
    expect(() => decompressBfloat16(changed(3, 0x32))).toThrow(said('"LBF1" and a header of 10 bytes', "something else"));
    expect(() => decompressBfloat16(changed(8, 0))).toThrow(said("1..256 symbols (none for no values)", "0"));
    expect(() => decompressBfloat16(changed(9, 2))).toThrow(said("1..256 symbols (none for no values)", "515"));
    expect(() => decompressBfloat16(changed(9, 1))).toThrow(said("1..256 symbols (none for no values)", "259"));
    expect(() => decompressBfloat16(changed(4, 200))).toThrow(said("at least 216 bytes for 200 values", String(good.length)));
    expect(() => decompressBfloat16(changed(4, 4))).toThrow(said("1 bytes of codes", "0"));
    expect(() => decompressBfloat16(changed(12, 100))).toThrow(said("distinct symbols of 1..24 bits", "100: 2"));
    expect(() => decompressBfloat16(changed(good.length - 1, good[good.length - 1] | 1))).toThrow(said("zero bits after the last code", "others")); // prettier-ignore
    expect(() => decompressBfloat16(Uint8Array.of(...good, 0))).toThrow(said("1 bytes of codes", "2"));
    const none = Uint8Array.of(0x4c, 0x42, 0x46, 0x31, 0, 0, 0, 0, 0, 0);
    expect(decompressBfloat16(none).length).toBe(0);
    expect(() => decompressBfloat16(Uint8Array.of(...none, 0))).toThrow(said("0 bytes of codes", "1"));
  });
});

test("a tensor-like with a shape beside it is none", () => {
  expect(() => tensor({ data: Float32Array.of(1, 2), dims: [2] } as never, [2])).toThrow(TypeError);
  for (const wrong of ["x", 5, null, undefined, [1]]) expect(() => tensor(wrong as never), String(wrong)).toThrow(/^tensor data: expected a Float32Array or Float64Array, got/); // prettier-ignore
});
