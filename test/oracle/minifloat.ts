// An oracle for small floats and integers that imports nothing of the library. Values are exact rationals (BigInt
// numerator over 2^1100), read from the wording of the specifications bit string by bit string; encoding is a
// brute-force search over all of them.

/** Everything is scaled by 2^1100, so that every double and every midpoint is an integer. */
const SCALE = 1100n;

/** A finite double as an exact integer multiple of 2^-1100. */
export function exact(x: number): bigint {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, x);
  const bits = view.getBigUint64(0);
  const e = (bits >> 52n) & 0x7ffn;
  const f = bits & 0xfffffffffffffn;
  const m = e === 0n ? f : f | (1n << 52n);
  const v = m << (SCALE - 1074n + (e === 0n ? 0n : e - 1n));
  return bits >> 63n ? -v : v;
}

export interface FloatSpec {
  readonly E: number;
  readonly M: number;
  readonly bias: number;
  readonly specials: "ieee" | "fn" | "fnuz" | "finite";
  readonly signed?: boolean;
  readonly subnormals?: boolean;
}

export type Meaning = { kind: "nan" } | { kind: "inf"; negative: boolean } | { kind: "finite"; negative: boolean; value: bigint };

const finite = (negative: boolean, value: bigint): Meaning => ({ kind: "finite", negative, value: negative ? -value : value });

/** What a code means, by its bit string. */
export function meaning(spec: FloatSpec, code: number): Meaning {
  const signed = spec.signed ?? true;
  const width = spec.E + spec.M + (signed ? 1 : 0);
  const s = code.toString(2).padStart(width, "0");
  const negative = signed && s[0] === "1";
  const body = signed ? s.slice(1) : s;
  const exponent = body.slice(0, spec.E);
  const mantissa = body.slice(spec.E);
  if (spec.specials === "fnuz" && negative && !body.includes("1")) return { kind: "nan" };
  if (spec.specials === "fn" && !body.includes("0")) return { kind: "nan" };
  if (spec.specials === "ieee" && !exponent.includes("0")) return mantissa.includes("1") ? { kind: "nan" } : { kind: "inf", negative };
  const e = parseInt(exponent, 2);
  const f = mantissa === "" ? 0n : BigInt(`0b${mantissa}`);
  const subnormal = (spec.subnormals ?? true) && e === 0;
  const significand = subnormal ? f : f + (1n << BigInt(spec.M));
  const power = (subnormal ? 1 : e) - spec.bias - spec.M;
  return finite(negative, significand << (SCALE + BigInt(power)));
}

/** What a code of an integer means. */
export function intMeaning(bits: number, signed: boolean, code: number): Meaning {
  const v = signed && code >> (bits - 1) ? BigInt(code) - (1n << BigInt(bits)) : BigInt(code);
  return { kind: "finite", negative: v < 0n, value: v << SCALE };
}

export interface Nearest {
  /** The nearest code under half-even; "over" / "under" beyond the largest / smallest value. */
  readonly code: number | "over" | "under";
}

/**
 * Half-even to nearest among all finite codes, by search. Beyond the ends the step of the last value continues (for
 * floats the same exponent or the next: `beyond` gives the first value outside).
 */
export function nearestHalfEven(meanings: readonly Meaning[], beyond: { above: bigint; below: bigint }, x: number): Nearest {
  const v = exact(x);
  let best: { code: number | "over" | "under"; distance: bigint; even: boolean } | null = null;
  const consider = (code: number | "over" | "under", value: bigint, even: boolean) => {
    const distance = v > value ? v - value : value - v;
    if (best === null || distance < best.distance || (distance === best.distance && even && !best.even)) best = { code, distance, even };
  };
  let maxCode = 0;
  let minCode = 0;
  meanings.forEach((m, code) => {
    if (m.kind !== "finite") return;
    const top = meanings[maxCode];
    const bottom = meanings[minCode];
    if (top.kind === "finite" && m.value > top.value) maxCode = code;
    if (bottom.kind === "finite" && m.value < bottom.value) minCode = code;
    // -0 is chosen by sign afterwards.
    if (m.value === 0n && m.negative) return;
    consider(code, m.value, code % 2 === 0);
  });
  consider("over", beyond.above, maxCode % 2 === 1);
  consider("under", beyond.below, minCode % 2 === 1);
  const found = best as { code: number | "over" | "under" } | null;
  return { code: v >= beyond.above ? "over" : v <= beyond.below ? "under" : found!.code };
}
