// quantize and dequantize with a backend give the tensors and values of the library's own loops, bit for bit: every
// format, rule and awkward shape.
import { describe, expect, test } from "vitest";
import { allFormats, defineBlock, format, type BlockFormat, type Format, type NumberFormat } from "../../formats/index.ts";
import { dequantize, quantize, tensor, transpose, wasm, type PackedTensor, type QuantizeOptions, type Tensor } from "../../src/index.ts";
import { blockDecoderUses } from "../helpers/codec.ts";
import { awkwardBlock, random } from "../helpers/random.ts";

const backend = await wasm();
const scalar = (name: string): NumberFormat => format(name) as NumberFormat;

/** Rows of awkward blocks, some of them multiples of a step so that quotients are ties. */
function data(rows: number, k: number, seed: number): Float32Array {
  const rng = random(seed);
  const x = new Float32Array(rows * k);
  for (let at = 0, kind = seed; at < x.length; at += 16, kind++) x.set(awkwardBlock(rng, 16, kind).subarray(0, x.length - at), at);
  for (let i = 0; i < x.length; i += 5) x[i] = (rng.integer(31) - 15) * 2 ** -6;
  return x;
}

function equal(a: PackedTensor, b: PackedTensor, what: string): void {
  for (const plane of ["codes", "scales", "superScales", "offsets"] as const) {
    const [x, y] = [a[plane], b[plane]];
    if (x === null || y === null) expect(x, `${what} ${plane}`).toBe(y);
    else if (Buffer.compare(x, y) !== 0) throw new Error(`${what}: ${plane} differ at ${x.findIndex((v, i) => v !== y[i])}`);
  }
  expect(a.recipe).toEqual(b.recipe);
}

function check(t: Tensor, f: Format, options: QuantizeOptions, what: string): void {
  let plain: PackedTensor;
  try {
    plain = quantize(t, f, options);
  } catch (error) {
    expect(() => quantize(t, f, { ...options, backend }), what).toThrow((error as Error).message);
    return;
  }
  const fast = quantize(t, f, { ...options, backend });
  equal(fast, plain, what);
  const want = dequantize(plain);
  const got = dequantize(fast, { backend });
  for (let i = 0; i < want.length; i++)
    if (!Object.is(got[i], want[i])) throw new Error(`${what}: value ${i} is ${got[i]}, not ${want[i]}`);
}

const shapes = [[1, 32], [3, 64], [5, 33], [17, 100], [2, 1], [33, 256], [1, 20_000], [3, 16_390]] as const; // prettier-ignore

describe("every named format", () => {
  test.each(allFormats.map((f) => [f.name, f] as const))("%s", (_, f) => {
    for (const [rows, k] of shapes.slice(0, 6)) {
      const t = tensor(data(rows, k, rows + k), [rows, k]);
      check(t, f, {}, `${f.name} [${rows}, ${k}]`);
    }
  });
});

/** Formats by the shape of their scales and offsets, not in the list of names. */
const own: Record<string, BlockFormat> = {
  int4_b32: format("int4_b32") as BlockFormat,
  uint4_b32_zp: format("uint4_b32_zp") as BlockFormat,
  uint3_b24_zp: format("uint3_b24_zp") as BlockFormat,
  int5_b64: format("int5_b64") as BlockFormat,
  int8_row: format("int8_row") as BlockFormat,
  int8_tensor: format("int8_tensor") as BlockFormat,
  nf4_b64: format("nf4_b64") as BlockFormat,
  float8_row: format("float8_e4m3fn_row") as BlockFormat,
  tiles: defineBlock({ element: scalar("float8_e4m3fn"), scales: [{ format: scalar("float32"), span: [8, 16] }] }),
  halves: defineBlock({ element: scalar("int6"), scales: [{ format: scalar("float16"), span: 20 }] }),
  posits: defineBlock({ element: scalar("posit8_es2"), scales: [{ format: scalar("float32"), span: 32 }] }),
  wide: defineBlock({ element: scalar("int12"), scales: [{ format: scalar("float32"), span: 48 }] }),
  half: defineBlock({ element: scalar("float16"), scales: [{ format: scalar("float32"), span: 32 }] }),
};

describe("blocks, rows, tensors, tiles; zero points; long rows and odd ends", () => {
  test.each(Object.keys(own))("%s", (name) => {
    for (const [rows, k] of shapes) {
      const x = data(rows, k, rows * k);
      check(tensor(x, [rows, k]), own[name], {}, `${name} [${rows}, ${k}]`);
      check(transpose(tensor(x, [k, rows])), own[name], {}, `${name} transposed [${rows}, ${k}]`);
      if (k < 1000) check(tensor(Float64Array.from(x, (v) => v * 1.1), [rows, k]), own[name], {}, `${name} float64`);
    }
  }); // prettier-ignore
});

describe("every rule, rounding and arithmetic", () => {
  const t = tensor(data(9, 160, 3), [9, 160]);
  test("scale rules", () => {
    for (const scaleRule of ["max", "floor", "ceil", "rceil", "nearest", "even", "mse", "mseSweep", "quest", "torchao", "te", "modelopt", "fourOverSix"] as const)
      for (const name of ["mxfp4", "mxfp8_e4m3", "mxint8", "nvfp4", "nvint4"]) check(t, format(name), { scaleRule }, `${name} ${scaleRule}`);
  }); // prettier-ignore
  test("range rules, rounding, overflow, arithmetic", () => {
    for (const name of ["int4_b32", "uint4_b32_zp", "int8_row", "mxfp4", "nf4_b64"]) {
      const f = format(name);
      for (const rangeRule of ["narrow", "full", "gptq", "ort", "minmax"] as const) check(t, f, { rangeRule }, `${name} ${rangeRule}`);
      for (const rounding of ["halfEven", "halfExpand", "halfTrunc", "trunc", "ceil", "floor"] as const) check(t, f, { rounding }, `${name} ${rounding}`);
      for (const arithmetic of ["onnx", "ort"] as const) check(t, f, { arithmetic }, `${name} ${arithmetic}`);
      check(t, f, { overflow: "error" }, `${name} error`);
    }
    check(t, scalar("float8_e4m3fn"), { rounding: "trunc" }, "cast");
    check(t, scalar("int8"), { rounding: "stochastic", random: () => 0.3 }, "stochastic cast");
  }); // prettier-ignore
});

test("quotients next to every boundary: x = boundary * scale and its neighbours", () => {
  const words = new Uint32Array(1);
  const float = new Float32Array(words.buffer);
  for (const name of ["float4_e2m1fn", "float8_e4m3fn", "float6_e3m2fn", "int4", "int8", "posit8_es2", "nf4"]) {
    const element = scalar(name);
    const f = defineBlock({ element, scales: [{ format: scalar("float32"), span: "row" }] });
    const list = [element.limits.max];
    for (const b of element.order!.boundaries)
      for (const step of [-2, -1, 0, 1, 2]) {
        float[0] = b;
        words[0] += step;
        if (Math.abs(float[0]) <= element.limits.max) list.push(float[0]);
      }
    for (const s of [1, 0.1, 3e-5, 7.7, 1e-38, 1e20]) {
      const x = Float32Array.from(list, (v) => v * s);
      check(tensor(x, [1, x.length]), f, {}, `${name} * ${s}`);
    }
  }
});

test("values that are not finite are refused, or make their block NaN, as without a backend", () => {
  for (const name of ["int4_b32", "mxfp4", "mxint8", "nvfp4", "float8_e4m3fn", "int8"])
    for (const bad of [NaN, Infinity, -Infinity]) {
      const x = data(4, 64, 1);
      x[100] = bad;
      check(tensor(x, [4, 64]), format(name), {}, `${name} ${bad}`);
    }
  for (const name of ["int4_b32", "mxfp4", "nvfp4", "uint4_b32_zp"])
    check(tensor(new Float32Array(256), [4, 64]), format(name), {}, `${name} of zeros`);
});

test("the kernels do run: not every call falls back", () => {
  const t = tensor(data(8, 64, 2), [8, 64]);
  for (const name of ["int4_b32", "uint4_b32_zp", "mxfp4", "nvfp4", "mxfp8_e4m3", "float8_e4m3fn_row"])
    expect(blockDecoderUses(backend, (b) => dequantize(quantize(t, format(name), { backend: b }), { backend: b })), name).toEqual({ encoded: 1, decoded: 1 });
}); // prettier-ignore
