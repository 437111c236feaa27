// Digits, hexadecimal forms and results of the explorer against fractions of big integers, read back from the text.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { exactDigits, exactResult, hexFloat } from "../../docs/.vitepress/explorer/exact.ts";

/** A fraction, the denominator above zero. */
type Fraction = readonly [numerator: bigint, denominator: bigint];
const equal = ([a, b]: Fraction, [c, d]: Fraction): boolean => a * d === c * b;

/** A double as a fraction, by doubling until it is whole. */
function fractionOf(x: number): Fraction {
  let denominator = 1n;
  let m = x;
  while (!Number.isInteger(m)) {
    m *= 2;
    denominator *= 2n;
  }
  return [BigInt(m), denominator];
}

/** "-1.25e-3" as a fraction. */
function read(text: string): Fraction {
  const [, sign, whole, part = "", power = "0"] = /^(-?)(\d+)(?:\.(\d+))?(?:e(-?\d+))?$/.exec(text)!;
  const e = Number(power) - part.length;
  const m = BigInt(`${sign}${whole}${part}`);
  return e >= 0 ? [m * 10n ** BigInt(e), 1n] : [m, 10n ** BigInt(-e)];
}

const doubles = fc.oneof(
  fc.double({ noNaN: true, noDefaultInfinity: true, min: -1e200, max: 1e200 }),
  fc.integer({ min: -(2 ** 30), max: 2 ** 30 }).map((m) => m / 2 ** 12),
  fc.constantFrom(0, 5e-324, 2 ** -1022, 1e21, 1e-7, 123456789012345680000, Number.MAX_VALUE),
);

describe("a double, written out", () => {
  it("is itself, digit by digit", () => {
    fc.assert(
      fc.property(doubles, (x) => equal(read(exactDigits(x)), fractionOf(x))),
      { numRuns: 1000 },
    );
    expect(exactDigits(0.1)).toBe("0.1000000000000000055511151231257827021181583404541015625");
    expect([-0, NaN, -Infinity, -250.5, 1e21, 2 ** -7].map(exactDigits)).toEqual(["-0", "NaN", "-Infinity", "-250.5", "1e21", "0.0078125"]); // prettier-ignore
  });
  it("has a hexadecimal form", () => {
    fc.assert(
      fc.property(doubles, (x) => {
        const [, sign, lead, part = "", e] = /^(-?)0x([01])(?:\.([0-9a-f]+))?p([+-]\d+)$/.exec(hexFloat(x))!;
        const digits = BigInt(`0x${lead}${part}`) * (sign ? -1n : 1n);
        const power = Number(e) - 4 * part.length;
        expect(power >= 0 ? [digits << BigInt(power), 1n] : [digits, 1n << BigInt(-power)]).toSatisfy((f) => equal(f as unknown as Fraction, fractionOf(x))); // prettier-ignore
        expect(lead === "0").toBe(x === 0);
        expect(part.endsWith("0")).toBe(false);
      }),
      { numRuns: 1000 },
    );
    expect([0.3125, -0, 2 ** -1074, Infinity].map(hexFloat)).toEqual(["0x1.4p-2", "-0x0p+0", "0x1p-1074", "Infinity"]);
  });
});

describe("results", () => {
  it("of sums, differences and products have every digit", () => {
    fc.assert(
      fc.property(doubles, doubles, (x, y) => {
        const [[a, b], [c, d]] = [fractionOf(x), fractionOf(y)];
        if (Number.isFinite(x + y)) expect(equal(read(exactResult("+", x, y)), [a * d + c * b, b * d])).toBe(true);
        if (Number.isFinite(x - y)) expect(equal(read(exactResult("-", x, y)), [a * d - c * b, b * d])).toBe(true);
        expect(equal(read(exactResult("*", x, y)), [a * c, b * d])).toBe(true);
      }),
      { numRuns: 500 },
    );
  });
  it("of quotients and roots end, or say that they go on", () => {
    fc.assert(
      fc.property(doubles, doubles, (x, y) => {
        const text = exactResult("/", x, y);
        if (y === 0 || !Number.isFinite(x / y)) return;
        const [[a, b], [c, d]] = [fractionOf(x), fractionOf(y)];
        if (text.endsWith("...")) expect(equal(fractionOf(x / y), [a * d, b * c])).toBe(false);
        else expect(equal(read(text), c < 0n ? [-a * d, -b * c] : [a * d, b * c])).toBe(true);
      }),
      { numRuns: 500 },
    );
    expect([exactResult("/", 1, 3), exactResult("/", 1, 0), exactResult("/", 1, 4)]).toEqual(["0.3333333333333333...", "Infinity", "0.25"]);
    expect([2, 2.25, -1].map((x) => exactResult("sqrt", x, 0))).toEqual(["1.4142135623730951...", "1.5", "NaN"]);
  });
});
