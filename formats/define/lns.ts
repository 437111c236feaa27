// Logarithmic numbers: a sign and the two's complement fixed-point logarithm of the magnitude to base two. value =
// (-1)^S * 2^(L / 2^fraction); the most negative L is zero (of either sign). Products are integer additions. Spec:
// Swartzlander and Alexopoulos, "The Sign/Logarithm Number System" (1975); Miyashita et al., "Convolutional Neural
// Networks using Logarithmic Data Representation" (2016), where fraction is 0 or 1. Values are irrational where L has
// fraction bits: a code's value is the nearest double. Between two values the boundary is their geometric mean, which
// rounds the logarithm; below the smallest magnitude it is half of that one.
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { NUMBER, checkFields } from "../core/fields.ts";
import { exactExp2 } from "../core/exp.ts";
import { tableEncoder } from "../core/table.ts";
import type { NumberFormat } from "../core/types.ts";

/** A logarithmic number: a sign, and a logarithm to base 2 in fixed point. */
export interface LnsOptions {
  /** Default lns<bits>_f<fraction>. */
  readonly name?: string;
  readonly aliases?: readonly string[];
  /** Width with the sign, 3..16. */
  readonly bits: number;
  /** Fraction bits of the logarithm, 0..bits - 2; the largest logarithm, 2^(bits - 2 - fraction), is at most 256. */
  readonly fraction: number;
}

/**
 * A logarithmic format.
 * @throws LowbitError E_FORMAT when the widths leave no format
 * @example defineLns({ bits: 8, fraction: 3 }).decode(0b0_0000100) // 1.4142135623730951: 2^(4 / 8)
 */
export function defineLns(options: LnsOptions): NumberFormat {
  checkFields("defineLns", options, { bits: NUMBER, fraction: NUMBER });
  const { bits, fraction } = options;
  const whole = bits - 2 - fraction;
  if (!(Number.isInteger(bits) && bits >= 3 && bits <= 16 && Number.isInteger(fraction) && fraction >= 0 && whole >= 0 && whole <= 8))
    throw new LowbitError(
      "E_FORMAT",
      `defineLns: expected bits in 3..16 and fraction in max(0, bits - 10)..bits - 2, got ${bits} and ${fraction}. Choose the logarithm's digits.`,
    );
  const name = options.name ?? `lns${bits}_f${fraction}`;
  const half = 2 ** (bits - 1);
  const unit = 2 ** -fraction;
  /** The logarithm, in steps of `unit`, of a code without its sign. */
  const steps = (magnitude: number): number => (magnitude >= half / 2 ? magnitude - half : magnitude);
  const zero = half / 2;
  const magnitudeOf = (magnitude: number): number => (magnitude === zero ? 0 : exactExp2(steps(magnitude) * unit));
  const tie = (magnitude: number): number => exactExp2((steps(magnitude) + 0.5) * unit);
  const smallest = magnitudeOf(zero + 1);
  const beyond = exactExp2(zero * unit);
  return makeCodec({
    kind: "logarithmic",
    name,
    aliases: options.aliases,
    bits,
    spec: "sign and base-2 logarithm in fixed point",
    fields: [
      { name: "sign", bits: 1 },
      { name: "exponent", bits: bits - 1 },
    ],
    defaults: { rounding: "halfEven", overflow: "saturate", infinity: "overflow", nan: "error" },
    definition: { kind: "lns", name, bits, fraction },
    decode: (code) => (code >= half ? -magnitudeOf(code - half) : magnitudeOf(code)),
    encodeBy: tableEncoder,
    source: {
      boundary: (lower, upper, lowerCode, upperCode) =>
        lower === 0 ? smallest / 2 : upper === 0 ? -smallest / 2 : lower > 0 ? tie(lowerCode) : -tie(upperCode - half),
      beyond: { above: beyond, below: -beyond },
      negativeZeroCode: half + zero,
    },
  });
}

/** lns<n>_f<m>, for the registry. */
export function lnsByName(name: string): NumberFormat | undefined {
  const m = /^lns([1-9][0-9]?)_f(0|[1-9][0-9]?)$/.exec(name);
  if (!m) return undefined;
  const [bits, fraction] = [Number(m[1]), Number(m[2])];
  return bits >= 3 && bits <= 16 && fraction <= bits - 2 && fraction >= bits - 10 ? defineLns({ bits, fraction }) : undefined;
}
