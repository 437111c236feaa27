// Options of quantize: every word that is one, what a format cannot follow, and what recipes record; exact texts.
import { describe, expect, test } from "vitest";
import { defineBlock, format, type BlockFormat, type NumberFormat } from "../../formats/index.ts";
import { dequantize, quantize, tensor, wasm, type QuantizeOptions } from "../../src/index.ts";
import { blockDecoderUses } from "../helpers/codec.ts";
import { normalArray } from "../helpers/random.ts";

const x = tensor(normalArray(4 * 64, 2), [4, 64]);
const scalar = (name: string) => format(name) as NumberFormat;
const backend = await wasm();
const unsupported = (message: string) => expect.objectContaining({ code: "E_UNSUPPORTED", message });

const WORDS: Record<string, readonly string[]> = {
  rangeRule: ["narrow", "full", "gptq", "ort", "minmax"],
  overflow: ["saturate", "inf", "nan", "error", "wrap"],
  arithmetic: ["exact", "onnx", "ort", "ortQdq"],
  rounding: ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor", "stochastic"],
};

test.each(Object.entries(WORDS))("%s: its words are taken and recorded, others refused", (name, words) => {
  const list = words.map((w) => `"${w}"`).join(", ");
  for (const word of words) {
    // only floats have an infinity or a NaN to overflow to
    const f = format(word === "minmax" ? "uint8_b16_zp" : word === "inf" || word === "nan" ? "float8_e5m2_row" : "int8_b16");
    const packed = quantize(x, f, { [name]: word, random: () => 0.5 });
    expect(packed.recipe[name]).toBe(word);
    const plain = name === "arithmetic" ? quantize(x, scalar("int8"), { [name]: word } as QuantizeOptions) : undefined;
    if (plain !== undefined) expect(plain.recipe).toEqual({ version: 1, algorithm: "rtn", rounding: "halfEven", overflow: "saturate" });
  }
  for (const wrong of ["", "x", "toString", 5, true, words[0].toUpperCase()])
    expect(() => quantize(x, format("int8_b16"), { [name]: wrong } as QuantizeOptions)).toThrow(
      new TypeError(`quantize ${name}: expected ${list}, got ${String(wrong)}. Leave it out for the default.`),
    );
  expect(() => quantize(x, format("int8_b16"), { [name]: null } as never)).toThrow(new TypeError(`quantize ${name}: expected a value, got null. Leave it out for the default.`)); // prettier-ignore
  expect(quantize(x, format("int8_b16"), { [name]: undefined })).toEqual(quantize(x, format("int8_b16")));
});

test("other options by their types", () => {
  const of = (options: unknown) => () => quantize(x, format("int8_b16"), options as QuantizeOptions);
  for (const [options, got] of [[null, "null"], [5, "number"], ["x", "string"]] as const) expect(of(options)).toThrow(new TypeError(`quantize options: expected an object of options or a quantizer, got ${got}.`)); // prettier-ignore
  for (const reduceRange of [1, "true"]) expect(of({ reduceRange })).toThrow(new TypeError(`quantize reduceRange: expected true or false, got ${reduceRange}.`)); // prettier-ignore
  for (const random of [0.5, "x", {}]) expect(of({ random })).toThrow(new TypeError(`quantize random: expected a function that gives numbers in [0, 1), got ${typeof random}.`)); // prettier-ignore
  for (const wrong of [{}, { codec: {} }, { codec: { range: 5 } }, "wasm", 5]) expect(of({ backend: wrong })).toThrow(new TypeError("quantize backend: expected a backend that converts in bulk, got none. Pass await wasm(), or leave it out.")); // prettier-ignore
  expect(of({ scalerule: "max" })).toThrow(new TypeError("quantize options: expected scaleRule, reduceRange, random, backend, rangeRule, overflow, arithmetic, rounding, got scalerule. Is it misspelt?")); // prettier-ignore
  expect(of({ ["x".repeat(60)]: 1 })).toThrow(`got ${"x".repeat(40)}. Is it misspelt?`);
  expect(of({})().recipe).toEqual({ version: 1, algorithm: "rtn", scaleRule: "max", rangeRule: "narrow", rounding: "halfEven", overflow: "saturate", arithmetic: "exact" }); // prettier-ignore
  expect(of({ reduceRange: true })().recipe).toMatchObject({ reduceRange: true });
  expect(of({ reduceRange: false })().recipe).not.toHaveProperty("reduceRange");
  for (const wrong of [null, undefined, 5, "int4", {}, { kind: 5 }]) expect(() => quantize(x, wrong as never)).toThrow(new TypeError(`quantize format: expected a format descriptor, got ${typeof wrong}. Look it up: format("int4_b32").`)); // prettier-ignore
});

describe("what a format cannot follow", () => {
  const own = "Leave it out for the format's own.";
  const steps = '"exact" unless the element is an integer, or a codebook, with one level of float32 or float16 scales';
  test("arithmetic", () => {
    const level = (name: string, span: number | "row" | "tensor" = 16) => [{ format: scalar(name), span }];
    const offset = (role: "zeroPoint" | "mean") => ({ offset: { role, levels: level(role === "mean" ? "float32" : "uint4") } });
    const f = (element: string, scale: string, span: number | "row" | "tensor" = 16, more: object = {}) => defineBlock({ element: scalar(element), scales: level(scale, span), name: "t", ...more }); // prettier-ignore
    const two = defineBlock({ element: scalar("int4"), scales: [...level("float8_e4m3fn"), ...level("float32", "tensor")], name: "t" });
    const codebook = f("nf4", "float32");
    const takes: [BlockFormat, string[]][] = [
      [f("int4", "float32"), ["onnx", "ort", "ortQdq"]],
      [f("int4", "float16"), ["onnx", "ort", "ortQdq"]],
      [f("int4", "float32", "row"), ["onnx", "ort"]],
      [f("int4", "float32", "tensor"), ["onnx", "ort"]],
      [f("uint4", "float32", 16, offset("zeroPoint")), ["onnx", "ort", "ortQdq"]],
      [f("int4", "float32", 16, offset("mean")), []],
      [f("int4", "float8_e4m3fn"), []],
      [f("int4", "float8_e8m0fnu"), []],
      [f("int4", "int16"), []],
      [two, []],
      [codebook, ["ort"]],
      [f("nf4", "float32", 16, offset("mean")), []],
      [f("nf4", "float8_e4m3fn"), []],
      [f("float4_e2m1fn", "float32"), []],
    ];
    for (const [made, words] of takes)
      for (const arithmetic of ["onnx", "ort", "ortQdq"] as const) {
        const run = () => quantize(x, made, { arithmetic });
        if (words.includes(arithmetic)) expect(run).not.toThrow();
        else expect(run, `${made.element.name} ${arithmetic}`).toThrow(unsupported(`quantize arithmetic for t: expected ${steps}, got "${arithmetic}". ${own}`)); // prettier-ignore
      }
  });

  test("rounding that an arithmetic fixes, reduced ranges of floats, minima", () => {
    for (const [name, arithmetic, fixed] of [["int4_b16", "ort", "halfExpand"], ["int4_b16", "ortQdq", "halfExpand"], ["int4_b16", "onnx", "halfEven"], ["int8_row", "ort", "halfEven"], ["nf4_b16", "ort", scalar("nf4").defaults.rounding]] as const) {
      const run = (rounding: QuantizeOptions["rounding"]) => () => quantize(x, format(name), { arithmetic, ...(rounding === undefined ? {} : { rounding }) });
      expect(run(fixed)).not.toThrow();
      expect(run(undefined)().recipe.rounding).toBe(fixed);
      expect(run("floor")).toThrow(unsupported(`quantize rounding for ${format(name).name}: expected the one that arithmetic "${arithmetic}" fixes, got "floor". ${own}`));
    } // prettier-ignore
    expect(() => quantize(x, format("float8_e4m3fn_row"), { reduceRange: true })).toThrow(unsupported(`quantize reduceRange for float8_e4m3fn_row: expected false unless the element is an integer, got true. ${own}`)); // prettier-ignore
    const min = defineBlock({ element: scalar("int4"), name: "t", scales: [{ format: scalar("float32"), span: 16 }], offset: { role: "min", levels: [{ format: scalar("float32"), span: 16 }] } }); // prettier-ignore
    expect(() => quantize(x, min)).toThrow(unsupported('quantize: expected a format with zero points, means or symmetric, got t with offsets of role "min", which is only read. Take one with zero points.')); // prettier-ignore
  });

  test("scale rules by the levels of a format; ranges of zero points that reach further than scales", () => {
    const one = "max, floor, ceil, rceil, nearest, even, mse, mseSweep, quest";
    const two = "max, torchao, te, modelopt, fourOverSix, fourThirds, mse, mseSweep";
    for (const [name, rules, wrong] of [["mxfp4", one, ["torchao", "fourThirds", "toString"]], ["nvfp4", two, ["floor", "quest", "x"]], ["uint4_b16_zp", undefined, ["mse", "floor"]]] as const)
      for (const scaleRule of wrong) expect(() => quantize(x, format(name), { scaleRule: scaleRule as never })).toThrow(unsupported(`quantize scaleRule for ${name}: expected ${rules ?? '"max"'}, got "${scaleRule}". ${own}`)); // prettier-ignore
    for (const [name, rules] of [["mxfp4", one], ["nvfp4", two]] as const)
      for (const scaleRule of rules.split(", ")) expect(quantize(x, format(name), { scaleRule: scaleRule as never }).recipe.scaleRule).toBe(scaleRule);
    const level = (span: 16 | "row" | "tensor") => [{ format: scalar("uint4"), span }];
    const f = (span: 16 | "row" | "tensor") => defineBlock({ element: scalar("uint4"), name: "t", scales: [{ format: scalar("float32"), span: 16 }], offset: { role: "zeroPoint", levels: level(span) } }); // prettier-ignore
    expect(() => quantize(x, f(16))).not.toThrow();
    for (const span of ["row", "tensor"] as const) {
      expect(() => quantize(x, f(span))).toThrow(unsupported('quantize rangeRule for t: expected a symmetric one, as its zero points reach further than its scales, got "minmax". Use "narrow".')); // prettier-ignore
      const packed = quantize(x, f(span), { rangeRule: "narrow" });
      expect(packed.offsets!.length).toBe(span === "row" ? 4 : 1);
      expect(new Set(Array.from(packed.offsets!, (b) => b & 15))).toEqual(new Set([7]));
      expect(Math.max(...dequantize(packed).map((v, i) => Math.abs(v - x.data[i])))).toBeLessThan(0.4);
    }
  }); // prettier-ignore
});

test("kernels take every arithmetic that they are exact for", () => {
  const uses = (name: string, options: QuantizeOptions = {}) => blockDecoderUses(backend, (b) => quantize(x, format(name), { ...options, backend: b })).encoded; // prettier-ignore
  for (const scaleRule of ["max", "torchao", "te", "modelopt", "fourOverSix", "mse"] as const) expect(uses("nvfp4", { scaleRule }), scaleRule).toBe(1); // prettier-ignore
  for (const [name, options] of [["nf4_b16", { arithmetic: "ort" }], ["int8_b16", {}], ["uint8_b16_zp", {}], ["int8_b16", { rangeRule: "full" }], ["mxfp4", {}], ["float8_e4m3fn_row", {}]] as [string, QuantizeOptions][]) expect(uses(name, options), name).toBe(1); // prettier-ignore
  for (const [name, options] of [["int8_b16", { arithmetic: "onnx" }], ["int8_b16", { rounding: "floor" }], ["int8_b16", { overflow: "error" }]] as [string, QuantizeOptions][]) expect(uses(name, options), name).toBe(0); // prettier-ignore
});
