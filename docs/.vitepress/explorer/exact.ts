// Numbers and results written exactly: every digit of a double, its hexadecimal form, sums and products as they are
// before any rounding. Pure functions, tested in Node.
import { addDyadic, dyadic, mulDyadic, type Dyadic } from "../../../formats/core/exact.ts";

/** All decimal digits of m * 2^e; with an exponent of ten where zeros would be longer. */
function digitsOf({ m, e }: Dyadic): string {
  if (m === 0n) return "0";
  const magnitude = m < 0n ? -m : m;
  // m * 2^e = m * 5^-e * 10^e
  const whole = e >= 0 ? magnitude << BigInt(e) : magnitude * 5n ** BigInt(-e);
  const all = whole.toString();
  const digits = all.replace(/0+$/, "");
  /** Place of the first digit: the power of ten that it counts. */
  const first = all.length - 1 + Math.min(e, 0);
  const sign = m < 0n ? "-" : "";
  if (first > 20 || first < -7) return `${sign}${digits[0]}${digits.length > 1 ? `.${digits.slice(1)}` : ""}e${first}`;
  if (first < 0) return `${sign}0.${"0".repeat(-first - 1)}${digits}`;
  const before = digits.slice(0, first + 1).padEnd(first + 1, "0");
  return `${sign}${before}${digits.length > first + 1 ? `.${digits.slice(first + 1)}` : ""}`;
}

/** The double with all its digits (0.1 has 55), not the fewest that tell it from its neighbours. */
export function exactDigits(x: number): string {
  return Object.is(x, -0) ? "-0" : Number.isFinite(x) ? digitsOf(dyadic(x)) : String(x);
}

/** As C's "%a" and IEEE 754 write it: 0x1.4p-2. */
export function hexFloat(x: number): string {
  if (!Number.isFinite(x)) return String(x);
  const sign = x < 0 || Object.is(x, -0) ? "-" : "";
  if (x === 0) return `${sign}0x0p+0`;
  let { m, e } = dyadic(Math.abs(x));
  // one binary digit before the point: subnormal doubles too
  const shift = 53 - m.toString(2).length;
  m <<= BigInt(shift);
  e += 52 - shift;
  const fraction = (m & 0xfffffffffffffn).toString(16).padStart(13, "0").replace(/0+$/, "");
  return `${sign}0x1${fraction === "" ? "" : `.${fraction}`}p${e < 0 ? "" : "+"}${e}`;
}

const negated = ({ m, e }: Dyadic): Dyadic => ({ m: -m, e });
const equal = (a: Dyadic, b: Dyadic): boolean => addDyadic(a, negated(b)).m === 0n;

/** The exact result of two doubles; "..." behind the digits of a quotient or root that do not end here. */
export function exactResult(operation: "+" | "-" | "*" | "/" | "sqrt", x: number, y: number): string {
  const rounded = { "+": x + y, "-": x - y, "*": x * y, "/": x / y, sqrt: Math.sqrt(x) }[operation];
  const finite = Number.isFinite(x) && (operation === "sqrt" || Number.isFinite(y));
  if (!finite || Number.isNaN(rounded) || (operation === "/" && y === 0)) return String(rounded);
  const [a, b] = [dyadic(x), finite && operation !== "sqrt" ? dyadic(y) : dyadic(0)];
  if (operation === "+" || operation === "-" || operation === "*") {
    const { m, e } = operation === "*" ? mulDyadic(a, b) : addDyadic(a, operation === "+" ? b : negated(b));
    return m === 0n ? exactDigits(rounded) : digitsOf({ m, e });
  }
  if (!Number.isFinite(rounded)) return `${String(rounded)} (beyond doubles)`;
  const q = dyadic(rounded);
  const ends = operation === "/" ? equal(mulDyadic(q, b), a) : equal(mulDyadic(q, q), a);
  return ends ? exactDigits(rounded) : `${rounded}...`;
}
