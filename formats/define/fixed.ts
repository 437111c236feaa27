// Fixed point: a two's complement integer with an implied power of two, value = integer * 2^-fraction. The elements of MXINT8 (fraction 6), MXINT6
// (4) and MXINT4 (2), whose implied scale is part of the element: then the shared exponent is that of the largest magnitude, as OCP MX v1.0 has it.
// Only elements of block formats are named after it; a plain integer is define/int.
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { FLAG, NUMBER, checkFields } from "../core/fields.ts";
import { tableEncoder } from "../core/table.ts";
import type { NumberFormat } from "../core/types.ts";

export interface FixedOptions {
  readonly name?: string;
  readonly bits: number;
  /** Fraction bits, 0..bits. */
  readonly fraction: number;
  /** Never produce the most negative code; it still decodes. Default true: MX permits it, and the range is symmetric. */
  readonly narrow?: boolean;
  readonly spec?: string;
}

/**
 * A signed fixed-point format.
 * @throws LowbitError E_FORMAT for bits outside 2..16 or fraction outside 0..bits
 * @example defineFixed({ bits: 8, fraction: 6 }).decode(127) // 1.984375
 */
export function defineFixed(options: FixedOptions): NumberFormat {
  checkFields("defineFixed", options, { bits: NUMBER, fraction: NUMBER, narrow: FLAG });
  const { bits, fraction, narrow = true } = options;
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 16 && Number.isInteger(fraction) && fraction >= 0 && fraction <= bits))
    throw new LowbitError(
      "E_FORMAT",
      `defineFixed: expected bits in 2..16 and fraction in 0..bits, got ${bits} and ${fraction}. Count the bits after the point.`,
    );
  const name = options.name ?? `fixed${bits}_f${fraction}${narrow ? "" : "_full"}`;
  const span = 2 ** bits;
  const unit = 2 ** -fraction;
  const max = (span / 2 - 1) * unit;
  return makeCodec({
    kind: "fixed",
    name,
    bits,
    spec: options.spec ?? "two's complement fixed point",
    fields: [{ name: "integer", bits }],
    defaults: { rounding: "halfEven", overflow: "saturate", infinity: "overflow", nan: "error" },
    definition: { kind: "fixed", name, bits, fraction, narrow },
    decode: (code) => (code >= span / 2 ? code - span : code) * unit,
    encodeBy: tableEncoder,
    source: { unused: narrow ? [span / 2] : [], beyond: { above: max + unit, below: -max - (narrow ? 1 : 2) * unit } },
  });
}

/** fixed8_f6, fixed6_f4_full. */
export function fixedByName(name: string): NumberFormat | undefined {
  const m = /^fixed([1-9][0-9]?)_f(0|[1-9][0-9]?)(_full)?$/.exec(name);
  if (!m || Number(m[1]) < 2 || Number(m[1]) > 16 || Number(m[2]) > Number(m[1])) return undefined;
  return defineFixed({ bits: Number(m[1]), fraction: Number(m[2]), narrow: m[3] === undefined });
}
