// Bipolar integers: every bit is -1 or +1, value = sum (2 b_i - 1) 2^i = 2 u - (2^n - 1) with u the unsigned reading of
// the word. All odd integers in
// -(2^n - 1) .. 2^n - 1: exactly symmetric, negation is bitwise NOT, and there is no zero (a cast of 0 gives a
// neighbour, -1 or +1: ties to the even word). Spec: Bipolar-INT of APMM / AP-LLM (arXiv 2409.17870). Below: lossless
// re-expression of affine integers, with corrected scale and offset.
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { NUMBER, checkFields } from "../core/fields.ts";
import { tableEncoder } from "../core/table.ts";
import type { EncodeDefaults, NumberFormat } from "../core/types.ts";

/** Integers whose bits are -1 and +1: the odd numbers between -(2^bits - 1) and 2^bits - 1. */
export interface BipolarOptions {
  /** Default bipolar<bits>. */
  readonly name?: string;
  readonly aliases?: readonly string[];
  /** 1..16. */
  readonly bits: number;
  readonly spec?: string;
}

const DEFAULTS: EncodeDefaults = { rounding: "halfEven", overflow: "saturate", infinity: "overflow", nan: "error" };

/**
 * A bipolar integer format.
 * @throws LowbitError E_FORMAT when bits is not in 1..16
 * @example defineBipolarInt({ bits: 2 }).table // [-3, -1, 1, 3]
 */
export function defineBipolarInt(options: BipolarOptions): NumberFormat {
  checkFields("defineBipolarInt", options, { bits: NUMBER });
  const { bits } = options;
  if (!Number.isInteger(bits) || bits < 1 || bits > 16)
    throw new LowbitError("E_FORMAT", `defineBipolarInt bits: expected an integer in 1..16, got ${bits}. Choose the width of one code.`);
  const name = options.name ?? `bipolar${bits}`;
  const max = 2 ** bits - 1;
  return makeCodec({
    kind: "bipolar",
    name,
    aliases: options.aliases,
    bits,
    spec: options.spec ?? "Bipolar-INT, arXiv 2409.17870",
    fields: [{ name: "integer", bits }],
    defaults: DEFAULTS,
    definition: { kind: "bipolar", name, bits },
    decode: (code) => 2 * code - max,
    encodeBy: tableEncoder,
    source: { beyond: { above: max + 2, below: -max - 2 } },
  });
}

/** bipolar<n>, for the registry. */
export function bipolarByName(name: string): NumberFormat | undefined {
  const m = /^bipolar([1-9][0-9]?)$/.exec(name);
  return m && Number(m[1]) <= 16 ? defineBipolarInt({ bits: Number(m[1]) }) : undefined;
}

/** How integers q stand for real numbers: value = scale * (q - zeroPoint) + offset. */
export interface Affine {
  readonly bits: number;
  readonly signed: boolean;
  readonly scale: number;
  /** Default 0. */
  readonly zeroPoint?: number;
  /** Default 0. */
  readonly offset?: number;
}

/**
 * Bipolar codes with the same real values: value = scale * (v - zeroPoint) + offset with v the bipolar value of a code.
 */
export interface BipolarTensor {
  readonly bits: number;
  readonly codes: Uint16Array;
  readonly scale: number;
  readonly zeroPoint: number;
  readonly offset: number;
}

function checkWidth(bits: number): void {
  if (!Number.isInteger(bits) || bits < 1 || bits > 16) throw new RangeError(`bits: expected an integer in 1..16, got ${bits}.`);
}

/**
 * Integers as bipolar codes, exactly. Signed q: v = 2 q + 1, so scale / 2 and zero point 2 z + 1; unsigned q: v = 2 q -
 * (2^n - 1), so scale / 2 and zero point 2 z - (2^n - 1). The zero point is an odd or even integer in units of the new
 * scale; `scale * zeroPoint` is the offset to subtract.
 * @param q integer values (not words): -2^(n-1)..2^(n-1)-1 or 0..2^n-1
 * @throws RangeError for a value outside the range
 * @example
 * const { scale, zeroPoint } = bipolarFromAffine([-8, 0, 7], { bits: 4, signed: true, scale: 0.5 });
 * [scale, zeroPoint] // [0.25, 1]: of the bipolar values -15, 1, 15
 */
export function bipolarFromAffine(q: ArrayLike<number>, affine: Affine): BipolarTensor {
  const { bits, signed, scale, zeroPoint = 0, offset = 0 } = affine;
  checkWidth(bits);
  const low = signed ? -(2 ** (bits - 1)) : 0;
  const codes = new Uint16Array(q.length);
  for (let i = 0; i < q.length; i++) {
    const u = q[i] - low; // offset binary: two's complement with the top bit flipped
    if (!(Number.isInteger(u) && u >= 0 && u < 2 ** bits))
      throw new RangeError(`q[${i}]: expected an integer in ${low}..${low + 2 ** bits - 1}, got ${q[i]}. Check bits and signed.`);
    codes[i] = u;
  }
  return { bits, codes, scale: scale / 2, zeroPoint: signed ? 2 * zeroPoint + 1 : 2 * zeroPoint - (2 ** bits - 1), offset };
}

/**
 * The way back: the integers q and their affine map, the exact inverse of bipolarFromAffine. A zero point of the wrong
 * parity would be half an integer there; it moves into the offset (one rounding of scale / 2).
 * @throws RangeError for a code that does not fit into bits
 * @example
 * const bipolar = bipolarFromAffine([-8, 0, 7], { bits: 4, signed: true, scale: 0.5 });
 * affineFromBipolar(bipolar, true).q // [-8, 0, 7]
 */
export function affineFromBipolar(tensor: BipolarTensor, signed: boolean): { q: Int32Array; affine: Required<Affine> } {
  const { bits, codes, scale, zeroPoint, offset } = tensor;
  checkWidth(bits);
  const low = signed ? -(2 ** (bits - 1)) : 0;
  const q = Int32Array.from(codes, (u, i) => {
    if (u >= 2 ** bits) throw new RangeError(`codes[${i}]: expected a code in 0..${2 ** bits - 1}, got ${u}. Check bits.`);
    return u + low;
  });
  const z = signed ? (zeroPoint - 1) / 2 : (zeroPoint + 2 ** bits - 1) / 2;
  const whole = Math.floor(z);
  return { q, affine: { bits, signed, scale: 2 * scale, zeroPoint: whole, offset: offset - (z - whole) * 2 * scale } };
}
