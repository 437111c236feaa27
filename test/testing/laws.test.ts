// Every named format keeps the laws of lowbit/testing; formats that are broken on purpose break them with a readable
// counterexample.
import { describe, expect, test } from "vitest";
import {
  allFormats,
  defineBlock,
  defineCodebook,
  defineFloat,
  definePosit,
  float16,
  format,
  type NumberFormat,
  type OpaqueFormat,
} from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { blockLaws, formatLaws, lawsOf } from "../../src/testing/index.ts";

describe.each(allFormats.map((f) => [f.name, f] as const))("%s", (_, f) => {
  const runs = f.kind === "block" || f.kind === "opaque" ? 10 : 30;
  test.each(lawsOf(f, { runs }).map((l) => [l.name, l.check] as const))("%s", (_name, check) => check());
});

describe("formats by parameter", () => {
  test.each([
    "posit6_es1",
    "posit24_es3",
    "posit32_es0",
    "posit2_es0",
    "int12",
    "uint32",
    "bipolar12",
    "binary8p3ue",
    "int4_narrow",
    "float8_e4m3fn_row",
    "int5_b64_float16",
    "uint4_b32_float16_zp",
    "posit8_es1_b16",
  ])("%s keeps its laws", (name) => {
    for (const { check } of lawsOf(format(name), { runs: 25 })) check();
  });
});

describe("a user's own formats keep them too", () => {
  test.each([
    defineFloat({ name: "float9_e4m4_mine", exponentBits: 4, mantissaBits: 4, specials: "ieee" }),
    defineFloat({ name: "far_mine", exponentBits: 8, mantissaBits: 2, bias: 300, specials: "fn" }),
    defineCodebook({ name: "table_mine", values: [3, -1, 0.5, 3, -7, 0, "-0"] }),
    definePosit({ name: "posit5_mine", bits: 5, es: 4 }),
  ])("$name", (f) => {
    for (const { check } of formatLaws(f)) check();
  });
});

describe("broken formats are caught, with bits, value, expected and found", () => {
  const e4m3 = format("float8_e4m3fn") as NumberFormat;
  /** A copy of a format with some members replaced. */
  const like = (changes: Partial<NumberFormat>): NumberFormat =>
    Object.create(e4m3, Object.fromEntries(Object.entries(changes).map(([k, value]) => [k, { value, enumerable: true }]))) as NumberFormat;
  const messages = (f: NumberFormat): string[] =>
    formatLaws(f).flatMap(({ check }) => {
      try {
        check();
        return [];
      } catch (error) {
        return [(error as Error).message];
      }
    });

  test("the intact copy breaks nothing", () => {
    expect(messages(like({}))).toEqual([]);
  });

  test("truncation in place of rounding", () => {
    const found = messages(like({ encode: (x, o) => e4m3.encode(x, { rounding: "trunc", ...o }) }));
    expect(found.length).toBeGreaterThan(0);
    const message = found.find((m) => m.includes("right side of their boundary"))!;
    expect(message).toMatch(/float8_e4m3fn breaks the law/);
    expect(message).toMatch(/value {5}\S+ \(binary64 [0-9a-f]{16}\)/);
    expect(message).toMatch(/code {6}0x[0-9a-f]{2} = [01] [01]{4} [01]{3} -> /);
    expect(message).toMatch(/expected {2}.+\n {2}found/);
    expect(message).toMatch(/shrunk \d+ times; repeat with/);
  });

  test("a wrong value of one code", () => {
    const found = messages(like({ decode: (c) => (c === 0x31 ? 0.55 : e4m3.decode(c)) }));
    expect(found.some((m) => m.includes("0x31 = 0 0110 001 -> 0.55"))).toBe(true);
  });

  test("wrong limits, a lost sign of zero, a NaN that is none", () => {
    expect(messages(like({ limits: { ...e4m3.limits, max: 480 } })).join()).toMatch(/limit {5}max\n.*480/);
    expect(messages(like({ encode: (x, o) => e4m3.encode(x + 0, o) & (x === 0 ? 0x7f : 0xff) })).join()).toMatch(/signed zero/);
    expect(messages(like({ encode: (x, o) => (Number.isNaN(x) ? 0 : e4m3.encode(x, o)) })).join()).toMatch(/NaN and infinity follow/);
  });

  test("an exception is a counterexample as well", () => {
    const found = messages(
      like({
        encode(x, o) {
          if (x > 100) throw new Error("boom");
          return e4m3.encode(x, o);
        },
      }),
    );
    expect(found.join()).toMatch(/expected {2}no error\n {2}found {5}Error: boom/);
  });

  test("an opaque format that loses a value", () => {
    const q = format("ggml_q8_0") as OpaqueFormat;
    const broken: OpaqueFormat = {
      ...q,
      encodeBytes: (x) => q.encodeBytes(x.map((v, i) => (i === 5 ? 0 : v))),
      decodeBytes: (b) => q.decodeBytes(b).map((v, i) => (i === 7 ? NaN : v)),
    };
    const found = blockLaws(broken).flatMap(({ name, check }) => {
      try {
        check();
        return [];
      } catch (error) {
        return [`${name}: ${(error as Error).message}`];
      }
    });
    expect(found.join()).toMatch(/no value moves.*\n.*data/);
  });
});

describe("elements without a zero", () => {
  const levels = defineCodebook({ name: "levels2", values: [-1, -0.3, 0.3, 1] });
  const blocks = defineBlock({ element: levels, scales: [{ format: float16, span: 32 }] });
  test.each(blockLaws(blocks, { runs: 60 }).map((l) => [l.name, l.check] as const))("%s", (_name, check) => check());
  test.each(["bipolar2_b8", "bipolar4_row", "bipolar3_b16_float8_e8m0fnu"])("%s: a block of zeros stays next to zero", (name) => {
    const x = Float32Array.from({ length: 32 }, (_, i) => (i < 16 ? 0 : i));
    const back = dequantize(quantize(tensor(x, [2, 16]), format(name) as never));
    expect(Math.max(...back.subarray(0, 16).map(Math.abs))).toBeLessThan(2 ** -100);
    expect(Math.abs(back[31] - 31)).toBeLessThan(4);
  });
});
