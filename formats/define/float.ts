// Binary floating point of any exponent and mantissa width, bias and set of special values: sign, exponent, mantissa,
// most significant first.
//   exponent field 0: (-1)^s * 2^(1-bias) * m / 2^M        else: (-1)^s * 2^(e-bias) * (1 + m / 2^M)
// Spec: OCP OFP8 and MX v1.0 (float8 e4m3 "fn", e5m2, float6, float4, e8m0), IEEE 754 (float16, float32), ml_dtypes for
// names and "fnuz".
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { FLAG, NUMBER, POLICIES, TEXT, checkFields } from "../core/fields.ts";
import { exponentOf, roundToInteger } from "../core/round.ts";
import { nanCode, overflowCode, type Ends } from "../core/table.ts";
import type { EncodeDefaults, EncodeOptions, Field, NumberFormat } from "../core/types.ts";

/**
 * Which codes are not finite numbers. `ieee`: the top exponent holds infinity (mantissa 0) and NaN. `fn`: only the
 * all-ones magnitude, NaN; no infinity. `fnuz`: NaN is the code of -0; no infinity, no -0. `p3109`: as fnuz, but the
 * top magnitude is infinity (unsigned: NaN on top, infinity below it). `finite`: none.
 */
export type FloatSpecials = "ieee" | "fn" | "fnuz" | "p3109" | "finite";

/** A binary float: the widths of its fields, its bias, and what its largest exponent means. */
export interface FloatOptions {
  readonly name: string;
  readonly aliases?: readonly string[];
  readonly exponentBits: number;
  readonly mantissaBits: number;
  /** Default 2^(exponentBits-1) - 1. */
  readonly bias?: number;
  readonly specials: FloatSpecials;
  /** Default true. */
  readonly signed?: boolean;
  /**
   * Is exponent field 0 subnormal (and zero)? Default true; without, it is an ordinary exponent and the format has no
   * zero (e8m0).
   */
  readonly subnormals?: boolean;
  /**
   * Low bits of the code that carry nothing: written as zero, ignored when read (tf32 in its 32-bit word). Default 0.
   */
  readonly padding?: number;
  readonly spec?: string;
  readonly onnx?: number;
  readonly defaults?: Partial<EncodeDefaults>;
}

const SPECIALS: ReadonlySet<FloatSpecials> = /* @__PURE__ */ new Set(["ieee", "fn", "fnuz", "p3109", "finite"]);
const FIELDS = {
  exponentBits: NUMBER,
  mantissaBits: NUMBER,
  bias: NUMBER,
  specials: TEXT,
  signed: FLAG,
  subnormals: FLAG,
  padding: NUMBER,
  onnx: NUMBER,
  defaults: POLICIES,
};
const float32 = new Float32Array(1);
const bits32 = new Uint32Array(float32.buffer);

/**
 * A floating-point format.
 * @throws LowbitError E_FORMAT for field widths or a bias that leave no format
 * @example defineFloat({ name: "float5_e3m1", exponentBits: 3, mantissaBits: 1, specials: "finite" }).limits.max // 24
 */
export function defineFloat(options: FloatOptions): NumberFormat {
  checkFields("defineFloat", options, FIELDS);
  const { name, exponentBits: E, mantissaBits: M, specials, signed = true, subnormals = true, padding = 0 } = options;
  const bad = (what: string, expected: string, got: unknown) =>
    new LowbitError("E_FORMAT", `${name ?? "defineFloat"} ${what}: expected ${expected}, got ${got}. See docs/adding-a-format.md.`);
  if (!Number.isInteger(E) || E < 1 || E > 8) throw bad("exponentBits", "an integer in 1..8", E);
  if (!Number.isInteger(M) || M < 0 || M > 23) throw bad("mantissaBits", "an integer in 0..23", M);
  if (!SPECIALS.has(specials)) throw bad("specials", `one of ${[...SPECIALS].join(", ")}`, String(specials));
  const bias = options.bias ?? 2 ** (E - 1) - 1;
  if (!Number.isInteger(bias) || Math.abs(bias) > 512) throw bad("bias", "an integer in -512..512", bias);
  if (specials === "fnuz" && !signed) throw bad("specials", `a signed format for "fnuz" (its NaN is the code of -0)`, "unsigned");
  if (specials === "ieee" && (M < 1 || E < 2))
    throw bad("specials", `at least 2 exponent bits and 1 mantissa bit for "ieee"`, `e${E}m${M}`);
  if (!subnormals && signed) throw bad("subnormals", "an unsigned format where there are none", "signed");
  const bits = E + M + (signed ? 1 : 0) + padding;
  if (bits > 16 && !(signed && subnormals)) throw bad("width", "at most 16 bits without sign or subnormals", bits);
  if (padding !== 0 && !(Number.isInteger(padding) && padding > 0 && bits > 16 && bits <= 32))
    throw bad("padding", "a natural number that makes a code of 17..32 bits", padding);

  const signBit = 2 ** (E + M);
  const top = signBit - 1; // the all-ones magnitude
  const infMagnitude = specials === "p3109" ? (signed ? top : top - 1) : (2 ** E - 1) * 2 ** M;
  const hasInf = specials === "ieee" || specials === "p3109";
  const maxMagnitude = hasInf ? infMagnitude - 1 : specials === "fn" ? top - 1 : top;
  const nanAtSign = specials === "fnuz" || (specials === "p3109" && signed);
  const nan = nanAtSign ? signBit : specials === "ieee" ? infMagnitude + 2 ** (M - 1) : specials === "finite" ? undefined : top;
  const inf = hasInf ? infMagnitude : undefined;
  const negativeInf = inf !== undefined && signed ? inf + signBit : undefined;
  const negativeZero = signed && !nanAtSign ? signBit : undefined;
  const minExponent = subnormals ? 1 - bias : -bias; // of the smallest normal number
  const quantum = 2 ** (minExponent - M); // the gap of subnormals

  // The machine's own float32: its conversions stand in for the rule.
  const binary32 = E === 8 && M === 23 && bias === 127 && specials === "ieee";

  const magnitudeValue = (m: number): number => {
    const e = Math.floor(m / 2 ** M);
    const f = m % 2 ** M;
    return subnormals && e === 0 ? f * quantum : (1 + f / 2 ** M) * 2 ** (e - bias);
  };
  const decode = (code: number): number => {
    if (binary32) {
      bits32[0] = code;
      return float32[0];
    }
    const negative = signed && code >= signBit;
    const m = negative ? code - signBit : code;
    if (nanAtSign ? code === signBit : specials === "fn" && m === top) return NaN;
    if (hasInf && m >= infMagnitude) return m > infMagnitude ? NaN : negative ? -Infinity : Infinity;
    return negative ? -magnitudeValue(m) : magnitudeValue(m);
  };

  const max = magnitudeValue(maxMagnitude);
  const beyond = magnitudeValue(maxMagnitude + 1); // the next value if the format went on
  const minPositive = magnitudeValue(subnormals ? 1 : 0);
  const minNormal = magnitudeValue(subnormals ? Math.min(2 ** M, maxMagnitude) : 0);
  const defaults: EncodeDefaults = {
    rounding: "halfEven",
    overflow: inf !== undefined ? "inf" : nan !== undefined ? "nan" : "saturate",
    infinity: "overflow",
    nan: nan !== undefined ? "nan" : "error",
    ...options.defaults,
  };
  const specialCodes = { nanCode: nan, infCode: inf, negativeInfCode: negativeInf, negativeZeroCode: negativeZero };

  // The encoder by rule: scale by powers of two (exact), round once, read the fields off the integer.
  const hidden = subnormals ? 0 : 2 ** M; // without subnormals the smallest normal number has code 0
  const ends: Ends = {
    name,
    max,
    min: signed ? -max : subnormals ? 0 : minPositive,
    maxCode: maxMagnitude,
    minCode: signed ? maxMagnitude + signBit : 0,
    zeroCode: subnormals ? 0 : undefined,
    ...specialCodes,
  };
  const encode = (value: number, o?: EncodeOptions): number => {
    if (binary32 && (o?.rounding ?? "halfEven") === "halfEven") {
      float32[0] = value;
      if (Number.isFinite(float32[0])) return bits32[0];
    }
    const nanPolicy = o?.nan ?? defaults.nan;
    if (Number.isNaN(value)) return nanCode(ends, nanPolicy);
    const overflow = o?.overflow ?? defaults.overflow;
    const rounding = o?.rounding ?? defaults.rounding;
    const negative = value < 0 || Object.is(value, -0);
    if (!Number.isFinite(value)) {
      if ((o?.infinity ?? defaults.infinity) === "keep") return (negative ? negativeInf : inf) ?? nanCode(ends, nanPolicy, value);
      return overflowCode(ends, value, !negative, overflow);
    }
    // A scale format holds no zero and no sign: what lies above zero underflows to its smallest value, the rest is out
    // of range.
    if (!subnormals && value < minPositive) return value > 0 ? 0 : overflowCode(ends, value, false, overflow);
    const shift = value === 0 ? 0 : Math.max(exponentOf(value) - minExponent, 0);
    const exact = value / 2 ** shift / quantum;
    let q = Math.abs(roundToInteger(exact, rounding, o?.random));
    // Without mantissa bits the parity of a code is that of its exponent, not of q (1 or 2).
    if (M === 0 && rounding === "halfEven" && Math.abs(exact) === 1.5) q = 1 + ((shift + 1 - hidden) & 1);
    const magnitude = shift * 2 ** M + q - hidden; // a carry into the exponent comes out right by itself
    if (!signed && negative && magnitude > 0)
      return rounding === "trunc" || rounding === "ceil" ? 0 : overflowCode(ends, value, false, overflow);
    if (magnitude > maxMagnitude) {
      const towardZero = rounding === "trunc" || rounding === (negative ? "ceil" : "floor");
      return towardZero ? (negative ? ends.minCode : ends.maxCode) : overflowCode(ends, value, !negative, overflow);
    }
    return !negative ? magnitude : magnitude > 0 ? magnitude + signBit : (negativeZero ?? 0);
  };

  const fields: Field[] = [];
  if (signed) fields.push({ name: "sign", bits: 1 });
  fields.push({ name: "exponent", bits: E });
  if (M > 0) fields.push({ name: "mantissa", bits: M });
  if (padding > 0) fields.push({ name: "padding", bits: padding });
  const unit = 2 ** padding;
  return makeCodec({
    kind: "float",
    name,
    aliases: options.aliases,
    bits,
    spec: options.spec ?? `binary floating point e${E}m${M}`,
    fields,
    defaults,
    definition: {
      kind: "float",
      name,
      exponentBits: E,
      mantissaBits: M,
      bias,
      specials,
      signed,
      ...(subnormals ? {} : { subnormals }),
      ...(padding ? { padding } : {}),
      ...(options.defaults ? { defaults: options.defaults } : {}),
    },
    onnx: options.onnx,
    decode: padding ? (code) => decode(Math.floor(code / unit)) : decode,
    access: padding ? undefined : Object.freeze({ kind: "shift", exponentBits: E, mantissaBits: M, bias, signed, subnormals }),
    source: { beyond: { above: beyond, below: signed ? -beyond : -minPositive }, ...specialCodes, minNormal },
    encode: padding ? (value, o) => encode(value, o) * unit : encode,
    limits: {
      max,
      min: -max,
      minPositive,
      minNormal,
      hasZero: true,
      hasNegativeZero: negativeZero !== undefined,
      hasInf: inf !== undefined,
      hasNaN: nan !== undefined,
      symmetric: true,
      finiteValues: 2 * maxMagnitude + 1,
    },
  });
}

/**
 * float_e<E>m<M>, and with _ieee, _fn, _fnuz or _p3109 for the special values (without: finite numbers only), for the
 * registry. The bias is 2^(E-1) - 1, for fnuz and p3109 2^(E-1). Named formats (float8_e4m3fn) follow ml_dtypes'
 * spelling instead.
 */
export function floatByName(name: string): NumberFormat | undefined {
  const m = /^float_e([1-8])m(0|[1-9][0-9]?)(?:_(ieee|fn|fnuz|p3109))?$/.exec(name);
  if (!m) return undefined;
  const [exponentBits, mantissaBits] = [Number(m[1]), Number(m[2])];
  const specials = (m[3] ?? "finite") as FloatSpecials;
  if (mantissaBits > 23 || (specials === "ieee" && (mantissaBits < 1 || exponentBits < 2))) return undefined;
  const above = specials === "fnuz" || specials === "p3109" ? 0 : 1;
  return defineFloat({ name, exponentBits, mantissaBits, specials, bias: 2 ** (exponentBits - 1) - above });
}
