// Builders and parametric names over their whole ranges, and beyond: what each makes, or that it refuses. Digests as in
// stability.test.ts (UPDATE_STABILITY=1 writes them anew); the registry's own words below.
import { describe, expect, test } from "vitest";
import * as define from "../../formats/define/index.ts";
import {
  allFormats,
  float32,
  format,
  isLowbitError,
  LowbitError,
  valueTable,
  type Format,
  type NumberFormat,
} from "../../formats/index.ts";
import { nearest } from "../../formats/registry.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { digest, holder, numbers, POLICIES } from "../helpers/digest.ts";

const { hold } = holder<string>("families.json");

/** The code of an error, or the type of one that is none of ours: their words may change. */
const codeOf = <T>(run: () => T): T | string => {
  try {
    return run();
  } catch (error) {
    return isLowbitError(error) ? error.code : (error as Error).name;
  }
};
const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, i) => from + i);

/** What a scalar format is, in short. */
function sketch(f: NumberFormat): unknown[] {
  const count = 2 ** f.bits;
  const codes = count <= 256 ? range(0, count - 1) : range(0, 63).map((i) => Math.floor((i * (count - 1)) / 63));
  const list = numbers(f).filter((_, i) => i % 5 === 0);
  return [
    f.kind, f.name, f.aliases, f.bits, f.limits, f.access, f.fields, f.ordering ?? "", f.scaleTo ?? "", f.defaults, f.definition,
    ...codes.map((c) => f.decode(c)),
    ...[POLICIES[0], POLICIES[3], POLICIES[9], POLICIES[11]].flatMap((options) => list.map((x) => codeOf(() => f.encode(x, options)))),
  ]; // prettier-ignore
}
const held = (name: string, feed: (add: (...values: unknown[]) => void) => void): void => hold(name, digest(feed));
const scalar = (add: (...values: unknown[]) => void, run: () => NumberFormat): void => {
  const f = codeOf(run);
  if (typeof f === "string") add(f);
  else add(...sketch(f));
};

describe("builders", () => {
  test("integers", () => held("int", (add) => {
    for (const bits of [-1, 0, 0.5, ...range(1, 17), 24, 31, 32, 33]) for (const signed of [true, false]) for (const narrow of [undefined, true, false]) scalar(add, () => define.defineInt({ bits, signed, narrow } as never));
  })); // prettier-ignore
  test("fixed point", () => held("fixed", (add) => {
    for (const bits of [1, 2, 3, 4, 8, 16, 17, 32, 33]) for (const fraction of [-1, 0, 0.5, 1, bits, bits + 1]) for (const signed of [true, false]) for (const narrow of [undefined, true, false]) scalar(add, () => define.defineFixed({ bits, fraction, signed, narrow } as never));
  })); // prettier-ignore
  test("bipolar integers", () => held("bipolar", (add) => {
    for (const bits of [0, 0.5, ...range(1, 17)]) scalar(add, () => define.defineBipolarInt({ bits }));
  })); // prettier-ignore
  test("posits", () => held("posit", (add) => {
    for (const bits of [1, 2, ...range(3, 8), 12, 16, 17, 32, 33]) for (const es of bits === 16 ? [1, 4] : [-1, 0, 1, 2, 3, 4, 5, 0.5]) scalar(add, () => define.definePosit({ bits, es }));
    for (const bits of [8, 16, 32]) for (const es of [0, 1, 2]) add(codeOf(() => define.quireBits(define.definePosit({ bits, es }))));
  })); // prettier-ignore
  test("takums", () => held("takum", (add) => {
    for (const bits of [4, ...range(5, 13), 16, 17, 32, 33, 7.5]) for (const linear of [true, false]) scalar(add, () => define.defineTakum({ bits, linear }));
  })); // prettier-ignore
  test("logarithmic numbers", () => held("lns", (add) => {
    for (const bits of [2, ...range(3, 9), 12, 16, 17]) for (const fraction of [-1, 0, 1, 2, 3, bits - 2, bits - 1, bits, 0.5]) scalar(add, () => define.defineLns({ bits, fraction }));
  })); // prettier-ignore
  test("P3109", () => held("p3109", (add) => {
    for (const bits of [2, 3, 4, 6, 8, 12, 15, 16]) for (const precision of [0, 0.5, ...range(1, bits + 2)]) for (const domain of ["se", "sf", "ue", "uf"] as const) scalar(add, () => define.defineP3109({ bits, precision, domain }));
    for (const domain of ["s", "es", "", "sef"]) scalar(add, () => define.defineP3109({ bits: 8, precision: 3, domain: domain as never }));
  })); // prettier-ignore
  test.each(["ieee", "fn", "fnuz", "finite", "p3109", "none"])("floats: %s", (specials) => held(`float ${specials}`, (add) => {
    for (const [e, m] of [...range(1, 4).flatMap((e) => range(0, 2).map((m) => [e, m])), [8, 7], [8, 10], [5, 10], [8, 23], [8, 24], [9, 2], [8, 0], [8, 1], [0.5, 2], [3, -1]])
      for (const signed of [true, false])
        for (const more of [{}, { bias: 0 }, { bias: 2 ** (e - 1) }, { subnormals: false }, { padding: 1 }, { bias: 140 }, { bias: -140 }])
          scalar(add, () => define.defineFloat({ name: "t", exponentBits: e, mantissaBits: m, specials: specials as never, signed, ...more }));
  })); // prettier-ignore
  test("codebooks", () => held("codebook", (add) => {
    const lists: (number | "-0")[][] = [[], [1], [-1, 1], [1, -1], [1, 1], [0, 1, 2], [-2, -1, 0, 1], [-1, "-0", 0, 1], ["-0", 1], [0.1, 0.2, 0.4, 0.8], [NaN, 1], [Infinity, 1], [1e39, 1], [5e-324, 1], range(0, 255), range(0, 256), [-0.5, 0.25, 8]];
    for (const values of lists) for (const more of [{}, { bits: 1 }, { bits: 3 }, { bits: 8 }, { bits: 17 }, { thresholds: [0] }, { thresholds: values.slice(1).map((_, i) => i) }, { thresholds: [0.5, 0.5, 1.5] }, { defaults: { overflow: "error" } }, { defaults: { rounding: "floor" } }])
      scalar(add, () => define.defineCodebook({ name: "t", values, ...more } as never));
  })); // prettier-ignore
  test("pairs with outliers", () => held("olive", (add) => {
    const x = Float32Array.from({ length: 96 }, (_, i) => Math.fround(Math.sin(i * 1.7) * (i % 13 === 0 ? 30 : i % 29 === 5 ? 900 : 1)));
    for (const bits of [4, 8]) for (const blockSize of [2, 3, 16, 32, 96]) {
      const f = codeOf(() => define.defineOlive({ bits: bits as 4, blockSize }));
      if (typeof f === "string") add(f);
      else add(f.name, f.blockBytes, ...[1, 1e-30, 1e30, -7.3].flatMap((s) => { const y = x.map((v) => v * s); const b = f.encodeBytes(y); return [b, f.decodeBytes(b)]; }));
    }
    add(define.defineOlive({ bits: 4 }).name, define.defineOlive({ bits: 8 }).name);
  })); // prettier-ignore
  test("blocks: levels, spans, offsets, rules", () => held("block", (add) => {
    const int4 = format("int4") as NumberFormat;
    const uint4 = format("uint4") as NumberFormat;
    const float8 = format("float8_e4m3fn") as NumberFormat;
    const x = tensor(Float32Array.from({ length: 160 }, (_, i) => Math.fround(Math.cos(i * 2.3) * (1 + (i % 7)))), [4, 40]);
    for (const element of [int4, uint4, float8])
      for (const span of [1, 16, "row", "tensor", [2, 8], 0, -1, 0.5, [0, 1], [2], "rows", [2, 0.5]])
        for (const second of [undefined, "tensor", "row", 32, 8, [4, 16]])
          for (const more of [{}, { tail: "error" }, { nonFinite: "scale" }, { rangeRule: "full" }, { offset: "zeroPoint" }, { offset: "mean" }, { offset: "min" }, { name: "mine", aliases: ["other"] }, { scaleRule: "floor" }]) {
            const { offset, ...rest } = more as { offset?: string };
            const scales = [{ format: second === undefined ? float32 : float8, span }, ...(second === undefined ? [] : [{ format: float32, span: second }])];
            const f = codeOf(() => define.defineBlock({ element, scales, ...rest, ...(offset === undefined ? {} : { offset: { role: offset, levels: [{ format: offset === "zeroPoint" ? element : float32, span }] } }) } as never));
            if (typeof f === "string") add(f);
            else add(f.name, f.aliases, f.scaleRule, f.rangeRule, f.tail, f.nonFinite, f.definition, f.bitsPerValue(4, 40), f.bitsPerValue(3, 17), codeOf(() => dequantize(quantize(x, f))));
          }
  })); // prettier-ignore
});

test("parametric names: what they make, at and beyond the bounds of each family", () => held("names", (add) => {
  const names = [
    ...[...range(0, 9), 15, 16, 17, 31, 32, 33].flatMap((b) => [`int${b}`, `uint${b}`, `bipolar${b}`, `posit${b}_es1`, `takum${b}`, `takum_linear${b}`, `lns${b}_f2`, `fixed${b}_f2`, `ufixed${b}_f3`, `fixed${b}_f1_full`, `ufixed${b}_f1_full`, `q${b}_3`, `uq${b}.0`, `binary${b}p3se`, `k${b}p4uf`, `float_e${b}m2`, `float_e4m${b}`]),
    ...range(0, 9).flatMap((p) => [`binary8p${p}sf`, `binary8p${p}uf`, `binary8p${p}`, `binary8p${p}ue`, `posit8_es${p}`, `lns8_f${p}`, `fixed8_f${p}`, `q0_${p}`, `uq0_${p}`, `posit${p}`]),
    ...["int4_b32", "int4_b0", "int4_b032", "int4_row", "int4_tensor", "int4_col", "int4_b8_float16", "int4_b8_int4", "int4_b8_nothing", "uint4_b8_zp", "uint4_b8_float16_zp", "float8_e4m3fn_b8_zp", "nf4_b8", "mxfp4_b8", "ggml_q4_0_b8", "int4_row_bfloat16_zp", "INT4_B32", "Mxfp4", "olive4_b32", "olive8_b2", "olive4_b3", "olive5_b4", "olive4_b0", "int4_b32_zp", "int05", "int", "int-4", "posit8_es", "takum", "e4m3", "_b8", "binary8p3xx", "hif8", "toString", "__proto__", ""],
  ];
  for (const name of names) {
    const f = codeOf(() => format(name) as Format);
    if (typeof f === "string") add(name, f);
    else if (f.kind === "block" || f.kind === "opaque") add(name, f.name, f.definition);
    else add(name, f.name, f.bits, f.limits, f.definition);
  }
})); // prettier-ignore

describe("the registry", () => {
  test("formats in the order of their names, numbers as numbers; each name once", () => {
    const names = allFormats.map((f) => f.name);
    const parts = (name: string) => name.split(/(\d+)/).map((part, i) => (i % 2 === 1 ? part.padStart(4, "0") : part.replaceAll("_", " "))).join(""); // prettier-ignore
    expect(names).toEqual([...names].sort((a, b) => (parts(a) < parts(b) ? -1 : 1)));
    expect(names.indexOf("int8")).toBeGreaterThan(names.indexOf("int2"));
    expect(new Set(names).size).toBe(names.length);
    expect(Object.isFrozen(allFormats)).toBe(true);
    for (const f of allFormats) for (const name of [f.name, f.name.toUpperCase()]) expect(format(name)).toBe(f);
  });

  test("three names nearest to a misspelt one", () => {
    expect(nearest("kitten", ["sitting", "kitten", "mitten", "bitten", "kit"])).toEqual(["kitten", "bitten", "kit"]);
    // what holds the name, or is held, is two steps nearer; of equals the first in the alphabet
    expect(nearest("abc", ["xabcx", "abd", "zzz", "ab"])).toEqual(["ab", "xabcx", "abd"]);
    expect(nearest("", ["b", "a"])).toEqual(["a", "b"]);
    expect(nearest("a".repeat(60), ["a".repeat(40), "a".repeat(38)])).toEqual(["a".repeat(40), "a".repeat(38)]);
    expect(() => format("flaot16")).toThrow(/^format name: expected a known format, got "flaot16"\. Nearest: float16, \w+, \w+\. `lowbit formats` lists all\.$/); // prettier-ignore
    expect(() => format("x".repeat(90))).toThrow(`got "${"x".repeat(60)}". Nearest`);
    expect(() => format(5 as never)).toThrow(new TypeError("format name: expected a string, got number."));
    expect(() => format("e4m3")).toThrow('format name: expected one format, got "e4m3", which names float8_e4m3 and float8_e4m3fn. Use a full name.'); // prettier-ignore
    for (const name of ["int9", "INT9", "uint9_b8", "posit9_es1"]) expect(format(name)).toBe(format(name.toLowerCase()));
  });

  test("errors say what they are", () => {
    const cause = new Error("why");
    const error = new LowbitError("E_SHAPE", "text", { cause });
    expect([error.name, error.code, error.message, error.cause, error instanceof Error]).toEqual([
      "LowbitError",
      "E_SHAPE",
      "text",
      cause,
      true,
    ]);
    expect(String(error)).toBe("LowbitError: text");
    expect(Object.keys(error)).not.toContain("Symbol(lowbit.error)");
    // of another copy of the package: the brand tells
    for (const [value, is] of [[error, true], [{ [Symbol.for("lowbit.error")]: true }, true], [{ [Symbol.for("lowbit.error")]: 1 }, false], [new Error("x"), false], [null, false], [undefined, false], ["E_SHAPE", false]] as const) expect(isLowbitError(value)).toBe(is); // prettier-ignore
  });

  test("tables of values as other tools read them", () => {
    const f = format("float8_e5m2") as NumberFormat;
    const c = valueTable(f, "c");
    expect(c.startsWith("#include <math.h>\nstatic const double float8_e5m2_values[256] = {\n  0,\n")).toBe(true);
    expect(c.split("\n").slice(2, -2).map((line) => line.slice(2, -1))).toEqual([...f.table!].map((v) => (Number.isNaN(v) ? "NAN" : v === Infinity ? "INFINITY" : v === -Infinity ? "-INFINITY" : Object.is(v, -0) ? "-0" : String(v)))); // prettier-ignore
    const odd = define.defineCodebook({ name: "my_book", values: [1, 2] });
    expect(valueTable(odd, "c")).toContain("double my_book_values[2]");
    expect(valueTable(odd, "csv")).toBe("code,hex,value\n0,0x0,1\n1,0x1,2\n");
    expect(valueTable(odd, "json")).toBe('{"format":"my_book","bits":1,"values":["1","2"]}\n');
    expect(valueTable(odd, "readmemh")).toBe("// my_book: the value of each code as an IEEE double\n3ff0000000000000\n4000000000000000\n");
    expect(valueTable(format("int16") as NumberFormat, "csv").split("\n").length).toBe(65538);
    expect(() => valueTable(format("int17") as NumberFormat, "csv")).toThrow("valueTable: expected a format of at most 16 bits, got int17 of 17. Decode single codes."); // prettier-ignore
  });
});

test("fields of definitions: types, misspelt ones, and what is no set of options, word for word", () => {
  const E = (message: string) => expect.objectContaining({ code: "E_FORMAT", message });
  const int = (options: unknown) => () => define.defineInt(options as never);
  const remedy = "Leave it out for the default, where it has one.";
  expect(int({ bits: "4", signed: true })).toThrow(E(`defineInt bits: expected a number, got "4". ${remedy}`));
  expect(int({ bits: 4, signed: 1 })).toThrow(E(`defineInt signed: expected true or false, got 1. ${remedy}`));
  expect(int({ bits: 4, signed: true, name: 5 })).toThrow(E(`defineInt name: expected a string, got 5. ${remedy}`));
  for (const [aliases, got] of [["a", '"a"'], [["a", 5], "Array"], [{}, "Object"], [null, "null"], [{ length: 0, every: () => true }, "Object"]] as const) expect(int({ bits: 4, signed: true, aliases })).toThrow(E(`defineInt aliases: expected an array of strings, got ${got}. ${remedy}`)); // prettier-ignore
  expect(int({ bits: 4, signed: true, aliases: [] })().aliases).toEqual([]);
  expect(int({ bits: 4, signed: true, kind: "int", spec: undefined })().name).toBe("int4");
  for (const [options, got] of [[null, "null"], [undefined, "undefined"], ["x", "a string"], [[4], "Array"], [5, "a number"]] as const) expect(int(options)).toThrow(E(`defineInt: expected an object of options, got ${got}. See docs/adding-a-format.md.`)); // prettier-ignore
  expect(int({ bits: 4, signed: true, sign: true })).toThrow(
    /^defineInt: expected the fields bits, signed, .*, got sign\. Is it misspelt\?$/,
  );
  expect(int({ bits: 4, signed: true, ["x".repeat(50)]: 1 })).toThrow(`got ${"x".repeat(40)}. Is it`);
  expect(int({ bits: "x".repeat(50), signed: true })).toThrow(`got "${"x".repeat(40)}". Leave`);
  expect(int({ bits: 4, signed: true, toString: 5 })).toThrow(/got toString\. Is it misspelt/);
  const block = (options: object) => () => define.defineBlock({ element: format("int4"), scales: [{ format: float32, span: 8 }], ...options } as never); // prettier-ignore
  for (const element of [{}, { bits: 4 }, { bits: 0.5, encode: () => 0 }, { encode: () => 0 }, format("mxfp4"), "int4"]) expect(block({ element })).toThrow(E(`defineBlock element: expected a scalar format, got ${typeof element === "string" ? '"int4"' : "Object"}. ${remedy}`)); // prettier-ignore
  expect(block({ tail: "long" })).toThrow(E(`defineBlock tail: expected one of short, error, got "long". ${remedy}`));
  const float = (defaults: unknown) => () => define.defineFloat({ name: "t", exponentBits: 3, mantissaBits: 2, specials: "fn", defaults } as never); // prettier-ignore
  for (const [defaults, got] of [[{ round: "x" }, "Object"], [5, "5"], [["rounding"], "Array"]] as const) expect(float(defaults)).toThrow(E(`defineFloat defaults: expected an object of rounding, overflow, infinity and nan, got ${got}. ${remedy}`)); // prettier-ignore
});

test("definitions make the format again; what is none is refused", () => {
  for (const f of allFormats) {
    const again = define.defineFormat(JSON.parse(JSON.stringify(f.definition)) as never);
    expect([again.name, again.kind, again.definition]).toEqual([f.name, f.kind, f.definition]);
    if (f.kind === "opaque") expect(again).toBe(f);
    else if (f.kind !== "block" && f.table !== null) expect((again as NumberFormat).table).toEqual(f.table);
  }
  const refused = (definition: unknown, message: RegExp) => expect(() => define.defineFormat(definition as never)).toThrow(expect.objectContaining({ code: "E_FORMAT", message: expect.stringMatching(message) as string })); // prettier-ignore
  for (const wrong of [null, undefined, 5, {}, { kind: "x" }, { kind: "toString" }, { kind: 5 }, []]) refused(wrong, /^format definition: expected kind int, float, posit, bipolar, codebook, fixed, takum, lns, hifloat8, block, opaque, got/); // prettier-ignore
  refused({ kind: "block", element: null }, /^format definition: expected the fields of kind "block", got|expected kind/);
  refused({ kind: "block" }, /./);
  const mx = format("mxfp4").definition;
  refused({ ...mx, element: mx }, /expected a scalar format as element or scale, got "mxfp4"\. Nest scalar formats only\.$/);
  const q4 = format("ggml_q4_0").definition;
  for (const change of [{ name: "ggml_q4_9" }, { blockSize: 64 }, { blockBytes: 20 }]) refused({ ...q4, ...change }, /expected an opaque format defined in this process, got/); // prettier-ignore
});
