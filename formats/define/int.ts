// Plain integers, signed (two's complement) or unsigned, 1..32 bits. A cast rounds to an integer and saturates; scale
// and zero point belong to block formats. Spec: ONNX INT2..INT8 / UINT2..UINT8; narrow range: "INT v.s. FP" 3.2 (the
// most negative code is never produced).
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { FLAG, NUMBER, checkFields } from "../core/fields.ts";
import { roundToInteger } from "../core/round.ts";
import { nanCode, overflowCode, type Ends } from "../core/table.ts";
import type { EncodeDefaults, EncodeOptions, NumberFormat } from "../core/types.ts";

/** Integers, signed (two's complement) or not. */
export interface IntOptions {
  readonly name?: string;
  readonly aliases?: readonly string[];
  readonly bits: number;
  readonly signed: boolean;
  /** Never produce -2^(bits-1), so that the range is symmetric; the code still decodes. */
  readonly narrow?: boolean;
  readonly spec?: string;
  readonly onnx?: number;
}

const DEFAULTS: EncodeDefaults = { rounding: "halfEven", overflow: "saturate", infinity: "overflow", nan: "error" };

/**
 * An integer format.
 * @throws LowbitError E_FORMAT when bits is not in 1..32, or narrow is asked of an unsigned format
 * @example defineInt({ bits: 5, signed: true }).encode(-20) // 16: saturates to -16
 */
export function defineInt(options: IntOptions): NumberFormat {
  checkFields("defineInt", options, { bits: NUMBER, signed: FLAG, narrow: FLAG, onnx: NUMBER });
  const { bits, signed, narrow = false } = options;
  if (!Number.isInteger(bits) || bits < 1 || bits > 32)
    throw new LowbitError("E_FORMAT", `defineInt bits: expected an integer in 1..32, got ${bits}. Choose the width of one code.`);
  if (signed === undefined) throw new LowbitError("E_FORMAT", "defineInt signed: expected true or false, got nothing. Say which it is.");
  if (narrow && (!signed || bits < 2))
    throw new LowbitError(
      "E_FORMAT",
      `defineInt narrow: expected a signed format of 2 bits or more, got ${signed ? "signed" : "unsigned"} ${bits} bits. Leave narrow out.`,
    );
  const name = options.name ?? `${signed ? "int" : "uint"}${bits}${narrow ? "_narrow" : ""}`;
  const span = 2 ** bits;
  const max = signed ? span / 2 - 1 : span - 1;
  const min = signed ? (narrow ? -max : -span / 2) : 0;
  const toCode = (v: number) => (v < 0 ? v + span : v);
  const ends: Ends = { name, max, min, maxCode: toCode(max), minCode: toCode(min), zeroCode: 0 };

  const wrap = (value: number, o: EncodeOptions | undefined): number | undefined => {
    if (o?.overflow !== "wrap" || !Number.isFinite(value)) return undefined;
    const q = roundToInteger(value, o.rounding ?? DEFAULTS.rounding, o.random) % span;
    return (q + span) % span;
  };
  const encode = (value: number, o?: EncodeOptions): number => {
    if (Number.isNaN(value) || (o?.infinity === "keep" && !Number.isFinite(value))) return nanCode(ends, o?.nan ?? DEFAULTS.nan, value);
    const wrapped = wrap(value, o);
    if (wrapped !== undefined) return wrapped;
    const q = Number.isFinite(value) ? roundToInteger(value, o?.rounding ?? DEFAULTS.rounding, o?.random) : value;
    if (q > max || q < min) return overflowCode(ends, value, q > max, o?.overflow ?? DEFAULTS.overflow);
    return toCode(q + 0);
  };

  return makeCodec({
    kind: "int",
    name,
    aliases: options.aliases,
    bits,
    spec: options.spec ?? (signed ? "two's complement integer" : "unsigned integer"),
    fields: [{ name: "integer", bits }],
    defaults: DEFAULTS,
    definition: { kind: "int", name, bits, signed, ...(narrow ? { narrow } : {}) },
    onnx: options.onnx,
    decode: (code) => (signed && code >= span / 2 ? code - span : code),
    source: { unused: narrow ? [span / 2] : [], beyond: { above: max + 1, below: min - 1 } },
    encode,
    limits: {
      max,
      min,
      minPositive: 1,
      minNormal: 1,
      hasZero: true,
      hasNegativeZero: false,
      hasInf: false,
      hasNaN: false,
      symmetric: narrow,
      finiteValues: max - min + 1,
    },
  });
}

/** int1..int32, uint1..uint32, with _narrow; for the registry. */
export function intByName(name: string): NumberFormat | undefined {
  const m = /^(u?)int([1-9][0-9]?)(_narrow)?$/.exec(name);
  if (!m || Number(m[2]) > 32 || (m[3] && (m[1] || m[2] === "1"))) return undefined;
  return defineInt({ bits: Number(m[2]), signed: m[1] === "", narrow: m[3] !== undefined });
}
