// Fields of formats whose widths depend on the value, neighbours and reasons at the ends of the range.
import { expect, test } from "vitest";
import { showNumber } from "../../formats/core/explain.ts";
import { explainValue, format } from "../../formats/index.ts";

const explain = (name: string, x: number, options = {}) => explainValue(format(name), x, options);

test("an infinite input has no neighbours; values beyond the range say by what they were decided", () => {
  for (const x of [Infinity, -Infinity]) {
    const e = explain("e4m3fn", x, { overflow: "saturate", infinity: "overflow" });
    expect([e.below, e.above]).toEqual([null, null]);
  }
  const why = (name: string, x: number, options: object): string => explain(name, x, options).lines.join("\n");
  expect(why("float8_e5m2", 1e6, { rounding: "floor", overflow: "inf" })).toContain('the last value (rounding "floor", overflow "inf")');
  expect(why("float8_e5m2", 1e6, { overflow: "inf" })).toMatch(/range -57344\.\.57344: overflow "inf"/);
  expect(why("float8_e5m2", 1e6, { overflow: "saturate" })).toMatch(/range -57344\.\.57344: overflow "saturate"/);
  expect(why("float8_e5m2", 1e6, { rounding: "floor", overflow: "saturate" })).not.toContain("the last value");
});

test("powers of two are shown as such beyond four digits", () => {
  expect([65536, 131072, -131072, 2 ** -10, 2 ** -11, -(2 ** -11), 98304, -0].map(showNumber)).toEqual([
    "65536",
    "2^17",
    "-2^17",
    "0.0009765625",
    "2^-11",
    "-2^-11",
    "98304",
    "-0",
  ]);
});

test("HiFloat8: the dot says how many exponent bits follow", () => {
  const dots = [
    [1.5, "0001 0 exponent bits"],
    [3, "001 1 exponent bits"],
    [-8, "01 2 exponent bits"],
    [20, "10 3 exponent bits"],
    [-300, "11 4 exponent bits"],
    [2 ** -20, "0000 denormal"],
  ] as const;
  for (const [x, want] of dots) {
    const [, dot] = explain("hifloat8", x).fields;
    expect(`${dot.bits} ${dot.meaning}`).toBe(want);
  }
});

test("a logarithmic number: the power of two that its logarithm says", () => {
  const power = (x: number): string => explain("lns8_f3", x).fields[1].meaning;
  expect([power(1.5), power(-0.3), power(2)]).toEqual(["2^0.625", "2^-1.75", "2^1"]);
});

test("a takum: direction, regime and characteristic of the code at hand", () => {
  // 4 = 2^2: upwards from 2^1 - 1 by the bit 1
  expect(explain("takum_linear12", 4).fields.map((f) => `${f.name} ${f.bits} ${f.meaning}`)).toEqual([
    "sign 0 +",
    "direction 1 up",
    "regime 001 r = 1",
    "characteristic 1 c = 2",
    "mantissa 000000 1",
  ]);
  expect(explain("takum_linear12", 0.3).fields.map(({ meaning }) => meaning)).toEqual(["+", "down", "r = 1", "c = -2", "1.203125"]);
  expect(explain("takum_linear12", -5).fields.map(({ meaning }) => meaning)).toEqual(["-", "up", "r = 1", "c = 2", "1.25"]);
  // to base sqrt(e): 0.3 = e^(-2.4 / 2)
  expect(
    explain("takum12", 0.3)
      .fields.slice(1, 4)
      .map(({ meaning }) => meaning),
  ).toEqual(["down", "r = 1", "c = -3"]);
});
