// What the explanation of a value says, against hand-read bit patterns; the card of every format.
import { describe, expect, test } from "vitest";
import { allFormats, bitCard, explainValue, format, type NumberFormat } from "../../formats/index.ts";

const explain = (name: string, x: number, options = {}) => explainValue(format(name), x, options);

describe("explainValue", () => {
  test("a float: fields, error, neighbours, interval", () => {
    const e = explain("e4m3fn", 0.3);
    expect([e.code, e.hex, e.binary, e.value, e.reason]).toEqual([0x2a, "0x2a", "00101010", 0.3125, "nearest"]);
    expect(e.fields.map((f) => `${f.name} ${f.bits} ${f.meaning}`)).toEqual(["sign 0 +", "exponent 0101 2^-2", "mantissa 010 1.25"]);
    expect(e.error).toBeCloseTo(0.0125, 12);
    expect([e.below, e.above]).toEqual([
      { code: 0x29, value: 0.28125 },
      { code: 0x2a, value: 0.3125 },
    ]);
    expect(e.interval).toEqual([0.296875, 0.328125]);
    expect(e.lines.join("\n")).toContain("0.3 -> 0.3125");
  });

  test("subnormals, ties, overflow, underflow, exact values, NaN", () => {
    expect(explain("float16", 1e-7).fields[1].meaning).toBe("subnormal, 2^-14");
    expect(explain("e2m1", 2.5).reason).toBe("tie");
    expect(explain("e4m3fn", 1000).reason).toBe("overflow");
    expect(explain("e4m3fn", 448).interval).toEqual([432, 464]);
    expect(explain("e4m3fn", 448, { overflow: "saturate" }).interval).toEqual([432, Infinity]);
    expect(explain("e2m1", 0.1).reason).toBe("underflow");
    expect(explain("e2m1", 0.1, { rounding: "ceil" }).reason).toBe("rounding");
    expect(explain("e4m3fn", NaN).reason).toBe("not a number");
    const exact = explain("int4", 3);
    expect([exact.reason, exact.below?.value, exact.above?.value]).toEqual(["exact", 2, 4]);
    expect(explain("int4", 7).above).toBeNull();
    expect(explain("int4", -8).below).toBeNull();
  });

  test("infinity kept: the format's own, else what NaN becomes", () => {
    for (const f of allFormats) {
      if (f.kind === "block" || f.kind === "opaque") continue;
      for (const x of [Infinity, -Infinity]) {
        const own = f.limits.hasInf && (x > 0 || f.limits.min < 0);
        expect(explainValue(f, x, { infinity: "keep", nan: "max" }).value, f.name).toBe(own ? x : f.limits.max);
      }
    }
    expect(explain("int8", -Infinity, { infinity: "keep", nan: "zero" }).lines).toContain(
      'why       an infinite input: policy "keep", and "zero" for what is no number',
    );
    expect(() => explain("e2m1", -Infinity, { infinity: "keep" })).toThrow(/a number, got -Infinity\. .*infinity: "overflow"/);
    expect(() => explain("e2m1", NaN, { infinity: "keep" })).toThrow(/a number, got NaN\. .*nan: "zero"/);
  });

  test("a posit: fields of the code at hand", () => {
    // 11001110 is the two's complement of 00110010: regime 01 (k = -1), exponent 10, fraction 010.
    const e = explain("posit8_es2", -0.3);
    expect(e.fields.map((f) => `${f.name} ${f.bits} ${f.meaning}`)).toEqual([
      "sign 1 -",
      "regime 10 k = -1: 2^-4",
      "exponent 01 2^2",
      "mantissa 110 1.25",
    ]);
    expect(-(2 ** -4) * 2 ** 2 * 1.25).toBe(e.value);
  });

  test("the fields of every code of a float or posit multiply to its value", () => {
    for (const name of ["float8_e5m2", "float6_e2m3fn", "binary8p3se", "posit8_es1", "posit6_es3", "float4_e3m0"]) {
      const f = format(name) as NumberFormat;
      for (let c = 0; c < 2 ** f.bits; c++) {
        const v = f.decode(c);
        if (!Number.isFinite(v) || v === 0) continue;
        const product = explainValue(f, v).fields.reduce((p, { name, meaning }) => {
          if (name === "sign") return meaning === "-" ? -p : p;
          const power = /2\^(-?[0-9]+)$/.exec(meaning);
          return p * (power ? 2 ** Number(power[1]) : Number(meaning));
        }, 1);
        expect(product).toBe(v);
      }
    }
  });

  test("a block format is explained by its element", () => {
    expect(() => explain("int4_b32", 1)).toThrow(/element format int4/);
  });
});

test("every format has a card with its name, layout and spec", () => {
  for (const f of allFormats) {
    const card = bitCard(f);
    expect(card.name).toBe(f.name);
    expect(card.lines.length).toBeGreaterThan(1);
    if (f.kind !== "block" && f.kind !== "opaque") {
      expect(card.layout.replaceAll(" ", "")).toHaveLength(f.bits);
      expect(card.values === null).toBe(f.bits > 6);
    }
  }
  expect(bitCard(format("e4m3fn")).layout).toBe("s eeee mmm");
});
