// Test vectors of arithmetic and tables of values: all operands where they are few, corner cases, seeds, exact results.
import { describe, expect, it } from "vitest";
import { arithmetic, explainCode, format, valueTable, type NumberFormat, type VectorOperation } from "../../formats/index.ts";

const scalar = (name: string): NumberFormat => format(name) as NumberFormat;
/**
 * The nearest code by search over all values, ties to the even code; doubles hold the exact results of 4-bit operands.
 */
function nearestCode(f: NumberFormat, x: number): number {
  const held = Math.min(f.limits.max, Math.max(f.limits.min, x));
  const all = [...f.table!.entries()].filter(([, v]) => Number.isFinite(v));
  const least = Math.min(...all.map(([, v]) => Math.abs(v - held)));
  const near = all.filter(([, v]) => Math.abs(v - held) === least).map(([code]) => code);
  return near.length === 1 ? near[0] : near.find((code) => code % 2 === 0)!;
}

describe("vectors", () => {
  it.each(["add", "sub", "mul"] as const)("%s of 4 bits: every pair once, with the nearest value", (op) => {
    const f = scalar("int4");
    const all = [...arithmetic(f).vectors(op)];
    expect(new Set(all.map(({ operands }) => operands.join())).size).toBe(256);
    expect(all).toHaveLength(256);
    for (const { operands, result } of all) {
      const [a, b] = operands.map((code) => f.decode(code));
      expect(result).toBe(nearestCode(f, op === "add" ? a + b : op === "sub" ? a - b : a * b));
    }
  });
  it("corner cases are among a few of many", () => {
    const f = scalar("float16");
    const codes = new Set([...arithmetic(f).vectors("add", { count: 4000 })].flatMap(({ operands }) => operands));
    for (const code of [0, 0x8000, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 1, 0x0400, 0x03ff, 0x7c00, 0xfc00]) expect(codes).toContain(code);
  });
  it("a seed repeats, another differs; the count is kept", () => {
    const of = arithmetic(scalar("posit16_es1"));
    const [one, same, other] = [3, 3, 4].map((seed) => [...of.vectors("fma", { seed, count: 50 })]);
    expect(one).toEqual(same);
    expect(one).not.toEqual(other);
    expect(one).toHaveLength(50);
  });
  it("dot: two vectors of codes, summed exactly and rounded once", () => {
    const f = scalar("float8_e4m3fn");
    const of = arithmetic(f);
    for (const { operands, result } of of.vectors("dot", { count: 100, length: 3 })) {
      expect(operands).toHaveLength(6);
      const sum = of.accumulator();
      for (let i = 0; i < 3; i++) sum.addProduct(operands[i], operands[3 + i]);
      expect(result).toBe(sum.round());
    }
  });
  it("what has no result is left out", () => {
    const all = [...arithmetic(scalar("int4")).vectors("div")];
    expect(all.length).toBeLessThan(256);
    expect(all.length).toBeGreaterThan(200);
    expect(all.filter(({ operands }) => operands[0] === 0 && operands[1] === 0)).toEqual([]);
  });
  it("32 bits", () => {
    const all = [...arithmetic(scalar("float32")).vectors("mul", { count: 300 })];
    expect(all).toHaveLength(300);
    for (const { operands, result } of all)
      expect(scalar("float32").decode(result)).toBe(
        Math.fround(scalar("float32").decode(operands[0]) * scalar("float32").decode(operands[1])),
      );
  });
  it("mistakes", () => {
    const of = arithmetic(scalar("int4"));
    expect(() => [...of.vectors("pow" as VectorOperation)]).toThrow(TypeError);
    expect(() => [...of.vectors("add", { count: 0 })]).toThrow(RangeError);
    expect(() => [...of.vectors("dot", { length: 1.5 })]).toThrow(RangeError);
  });
});

describe("one code, and all", () => {
  it("explainCode", () => {
    expect(explainCode(scalar("posit8_es2"), 0x48)).toMatchObject({ value: 2, hex: "0x48", binary: "01001000" });
    const f = scalar("float8_e5m2");
    expect(explainCode(f, 0x7b)).toMatchObject({ value: 57344, above: null, below: { code: 0x7a } });
    expect(explainCode(f, 0x7c)).toMatchObject({ value: Infinity, above: null, below: { code: 0x7b, value: 57344 } });
    expect(explainCode(f, 0x7f).lines.join("\n")).toContain("NaN");
    expect(() => explainCode(f, 256)).toThrow(RangeError);
  });
  it("the neighbours of every code are those in the order of values", () => {
    for (const name of ["float4_e2m1fn", "int4", "posit8_es1", "nf4"]) {
      const f = scalar(name);
      const { values } = f.order!;
      for (let code = 0; code < 2 ** f.bits; code++) {
        const { value, below, above } = explainCode(f, code);
        if (Number.isNaN(value)) continue;
        const at = values.indexOf(value + 0);
        expect([below, above].map((n) => (n === null ? undefined : n.value + 0))).toEqual([values[at - 1], values[at + 1]]);
      }
    }
  });
  it("tables", () => {
    const f = scalar("float4_e2m1fn");
    expect(valueTable(f, "csv").split("\n").slice(0, 3)).toEqual(["code,hex,value", "0,0x0,0", "1,0x1,0.5"]);
    expect(valueTable(f, "csv")).toContain("8,0x8,-0\n");
    const words = valueTable(f, "readmemh").trim().split("\n").slice(1);
    const view = new DataView(new ArrayBuffer(8));
    words.forEach((word, code) => {
      view.setBigUint64(0, BigInt(`0x${word}`));
      expect(Object.is(view.getFloat64(0), f.decode(code))).toBe(true);
    });
    expect(words).toHaveLength(16);
    expect(() => valueTable(scalar("float32"), "csv")).toThrow(/at most 16 bits/);
  });
});
