// Fixed point: an integer with an implied power of two, value = integer * 2^-fraction; signed (two's complement) or
// unsigned, 2..32 bits. Elements of MXINT8 (fraction 6), MXINT6 (4) and MXINT4 (2), whose implied scale is part of the
// element: then the shared exponent is that of the largest magnitude, as OCP MX v1.0 has it. q<M>_<N> are the Q formats
// of signal processors, as Arm counts them: M bits with the sign before the point, N after it (Texas Instruments counts
// M without the sign). A plain integer is define/int.
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { FLAG, NUMBER, checkFields } from "../core/fields.ts";
import { roundToInteger } from "../core/round.ts";
import { nanCode, overflowCode, tableEncoder, type Ends } from "../core/table.ts";
import type { EncodeDefaults, EncodeOptions, NumberFormat } from "../core/types.ts";

/** Fixed point: integers with an implied power of two. */
export interface FixedOptions {
  readonly name?: string;
  readonly aliases?: readonly string[];
  readonly bits: number;
  /** Fraction bits, 0..bits. */
  readonly fraction: number;
  /** Default true. */
  readonly signed?: boolean;
  /**
   * Never produce the most negative code; it still decodes. Default true where signed: MX permits it, and the range is
   * symmetric.
   */
  readonly narrow?: boolean;
  readonly spec?: string;
}

const DEFAULTS: EncodeDefaults = { rounding: "halfEven", overflow: "saturate", infinity: "overflow", nan: "error" };

/**
 * A fixed-point format.
 * @throws LowbitError E_FORMAT for bits outside 2..32, fraction outside 0..bits, or narrow asked of an unsigned format
 * @example defineFixed({ bits: 8, fraction: 6 }).decode(127) // 1.984375
 */
export function defineFixed(options: FixedOptions): NumberFormat {
  checkFields("defineFixed", options, { bits: NUMBER, fraction: NUMBER, signed: FLAG, narrow: FLAG });
  const { bits, fraction, signed = true, narrow = signed } = options;
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 32 && Number.isInteger(fraction) && fraction >= 0 && fraction <= bits))
    throw new LowbitError(
      "E_FORMAT",
      `defineFixed: expected bits in 2..32 and fraction in 0..bits, got ${bits} and ${fraction}. Count the bits after the point.`,
    );
  if (narrow && !signed)
    throw new LowbitError("E_FORMAT", "defineFixed narrow: expected a signed format, got an unsigned one. Leave narrow out.");
  const name = options.name ?? `${signed ? "" : "u"}fixed${bits}_f${fraction}${narrow || !signed ? "" : "_full"}`;
  const span = 2 ** bits;
  const unit = 2 ** -fraction;
  const top = signed ? span / 2 - 1 : span - 1;
  const bottom = signed ? (narrow ? -top : -top - 1) : 0;
  const toCode = (integer: number) => (integer < 0 ? integer + span : integer);
  const ends: Ends = { name, max: top * unit, min: bottom * unit, maxCode: top, minCode: toCode(bottom), zeroCode: 0 };

  /** Above 16 bits; up to 16 the table says it. */
  const encode = (value: number, o?: EncodeOptions): number => {
    if (Number.isNaN(value) || (o?.infinity === "keep" && !Number.isFinite(value))) return nanCode(ends, o?.nan ?? DEFAULTS.nan, value);
    const scaled = value / unit;
    const q = Number.isFinite(scaled) ? roundToInteger(scaled, o?.rounding ?? DEFAULTS.rounding, o?.random) : scaled;
    if (q > top || q < bottom) return overflowCode(ends, value, q > top, o?.overflow ?? DEFAULTS.overflow);
    return toCode(q + 0);
  };
  return makeCodec({
    kind: "fixed",
    name,
    aliases: options.aliases,
    bits,
    spec: options.spec ?? (signed ? "two's complement fixed point" : "unsigned fixed point"),
    fields: [{ name: "integer", bits }],
    defaults: DEFAULTS,
    definition: { kind: "fixed", name, bits, fraction, ...(signed ? {} : { signed }), narrow },
    decode: (code) => (signed && code >= span / 2 ? code - span : code) * unit,
    ...(bits > 16 ? { encode } : { encodeBy: tableEncoder }),
    source: { unused: narrow ? [span / 2] : [], beyond: { above: (top + 1) * unit, below: (bottom - 1) * unit } },
    limits: {
      max: top * unit,
      min: bottom * unit,
      minPositive: unit,
      minNormal: unit,
      hasZero: true,
      hasNegativeZero: false,
      hasInf: false,
      hasNaN: false,
      symmetric: narrow,
      finiteValues: top - bottom + 1,
    },
  });
}

/** fixed8_f6, fixed6_f4_full, ufixed16_f12; q4_12 and uq4_12 (also written q4.12); for the registry. */
export function fixedByName(name: string): NumberFormat | undefined {
  const q = /^(u?)q(0|[1-9][0-9]?)[._](0|[1-9][0-9]?)$/.exec(name);
  if (q) {
    const [signed, whole, fraction] = [q[1] === "", Number(q[2]), Number(q[3])];
    const bits = whole + fraction;
    if (bits < 2 || bits > 32 || (signed && whole === 0)) return undefined;
    return defineFixed({
      name: `${q[1]}q${whole}_${fraction}`,
      bits,
      fraction,
      signed,
      narrow: false,
      spec: "fixed point, Q notation of Arm",
    });
  }
  const m = /^(u?)fixed([1-9][0-9]?)_f(0|[1-9][0-9]?)(_full)?$/.exec(name);
  if (!m || Number(m[2]) < 2 || Number(m[2]) > 32 || Number(m[3]) > Number(m[2]) || (m[1] && m[4])) return undefined;
  return defineFixed({ bits: Number(m[2]), fraction: Number(m[3]), signed: m[1] === "", narrow: m[1] === "" && m[4] === undefined });
}
