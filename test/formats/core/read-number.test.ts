import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readNumber } from "../../../formats/core/read-number.ts";

/** C's %a, from the bits of the double. */
function hexOf(x: number): string {
  const bits = new BigUint64Array(Float64Array.of(Math.abs(x)).buffer)[0];
  const exponent = Number(bits >> 52n);
  const digits = (bits & 0xfffffffffffffn).toString(16).padStart(13, "0");
  return `${x < 0 || Object.is(x, -0) ? "-" : ""}0x${exponent === 0 ? "0" : "1"}.${digits}p${exponent === 0 ? -1022 : exponent - 1023}`;
}

describe("numbers as people type them", () => {
  const cases: [text: string, value: number | undefined][] = [
    ["0.3", 0.3], [" -1e-3 ", -1e-3], ["+.5", 0.5], ["-0", -0], ["0x10", 16], ["-0b11", -3],
    ["2^-7", 2 ** -7], ["-2^+3", -8], ["2^-1074", 5e-324],
    ["0x1.8p3", 12], ["-0X1.8P+3", -12], ["0x.8p0", 0.5], ["0x3.p1", 6], ["0x0p9999", 0], ["-0x0p0", -0],
    ["0x1.fffffffffffffp1023", Number.MAX_VALUE], ["0x0.0000000000001p-1022", 5e-324], ["0x10000000000000p-1126", 5e-324],
    ["inf", Infinity], ["-INFINITY", -Infinity], ["+inf", Infinity], ["nan", NaN], ["-NaN", NaN],
  ]; // prettier-ignore
  test.each(cases)("%s", (text, value) => expect(readNumber(text)).toBe(value));

  test.each(["", " ", "-", "--1", "+-1", "3,5", "1_000", "0x", "0xp3", "0x.p3", "0x1.8", "0x1p", "0xg.8p1", "2^", "2^0.5", "3^2", "infinit", "1e400", "2^1024", "0x1p1024"])(
    "%j is none",
    (text) => expect(readNumber(text)).toBeUndefined(),
  ); // prettier-ignore

  test("every double as C and as this language print it", () => {
    fc.assert(
      fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (x) => {
        expect(readNumber(hexOf(x))).toBe(x);
        expect(readNumber(Object.is(x, -0) ? "-0" : String(x))).toBe(x);
      }),
    );
  });
});
