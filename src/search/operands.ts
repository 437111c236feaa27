// Formats as the scan kernel sees them: codes of 1, 2, 4 or 8 bits whose values are a unit times small integers, with
// at most one float32 scale a row. Others are decoded panel by panel. By properties, never by name.
import type { BlockFormat, Format, NumberFormat } from "../../formats/core/types.ts";

/**
 * value of a code = unit * (multiple * operand - shift) * scale of the row, operand the field (8 bits: the signed byte)
 * of the code with `flip` turned over, or its table entry.
 */
export interface Operands {
  readonly element: NumberFormat;
  readonly bits: 1 | 2 | 4 | 8;
  readonly unit: number;
  /** (table[code] / unit), all integers. */
  readonly integers: Int32Array;
  /** Mask over a whole byte of codes. */
  readonly flip: number;
  readonly table: readonly number[] | null;
  readonly doubled: boolean;
  readonly shift: number;
  /** The largest magnitude of an operand. */
  readonly most: number;
  /** A scale for each row. */
  readonly scaled: boolean;
  /** Two values of opposite sign and one size: counts of differing bits are products. */
  readonly signs: boolean;
}

/** A single float32 scale a row, no offset. */
export function rowScaled(format: BlockFormat): boolean {
  const [level, second] = format.scales;
  return second === undefined && level.span === "row" && level.format.bits === 32 && level.format.kind === "float" && !format.offset;
}

/** Floats whose fields the scan kernel reads: `lacking` powers of two of the float32 that it makes of them. */
export interface FloatOperands {
  readonly bits: 8 | 16;
  readonly mantissaBits: number;
  readonly lacking: number;
}

/** Null for a format whose elements are no floats of 8 or 16 bits, with at most one float32 scale a row. */
export function floatOperandsOf(format: Format): FloatOperands | null {
  if (format.kind === "opaque" || (format.kind === "block" && !rowScaled(format))) return null;
  const { bits, access } = format.kind === "block" ? format.element : format;
  if (access?.kind !== "shift" || !access.signed || !access.subnormals) return null;
  const { exponentBits, mantissaBits, bias } = access;
  if (bits === 8 && exponentBits + mantissaBits === 7) return { bits, mantissaBits, lacking: 127 - bias };
  if (bits === 16 && ((exponentBits === 8 && mantissaBits === 7) || (exponentBits === 5 && mantissaBits === 10)))
    return { bits, mantissaBits, lacking: 127 - bias };
  return null;
}

/** The bits to turn over so that fields are operands in the order of the integers, or null. */
function flipOf(bits: number, integers: Int32Array, multiple: number): { flip: number; shift: number } | null {
  const signed = bits === 8;
  const operand = (code: number): number => (signed ? (code << 24) >> 24 : code);
  for (const flip of signed ? [0, 128] : Array.from({ length: 2 ** bits }, (_, x) => x)) {
    const shift = multiple * operand(flip) - integers[0];
    if (integers.every((value, code) => value === multiple * operand(code ^ flip) - shift)) return { flip, shift };
  }
  return null;
}

/** Null for a format that the scan kernel cannot take. */
export function operandsOf(format: Format): Operands | null {
  if (format.kind === "opaque" || (format.kind === "block" && !rowScaled(format))) return null;
  const element = format.kind === "block" ? format.element : format;
  const { access, table } = element;
  const bits = element.bits;
  if (access.kind !== "lattice" || table === null || (bits !== 1 && bits !== 2 && bits !== 4 && bits !== 8)) return null;
  const whole = Number.isInteger(access.shift);
  const unit = whole ? access.unit : access.unit / 2;
  const integers = Int32Array.from(table, (value) => Math.round(value / unit));
  if (table.some((value, code) => !(Math.abs(value) < Infinity) || integers[code] * unit !== value)) return null;
  const least = Math.min(...integers);
  const most = Math.max(...integers);
  // values on every other integer: operands count them, products are doubled
  const doubled = integers.every((value) => (value - least) % 2 === 0) && most > least;
  const multiple = doubled ? 2 : 1;
  const common = { element, bits, unit, integers, doubled, scaled: format.kind === "block", signs: bits === 1 && least === -most } as const;
  const found = flipOf(bits, integers, multiple);
  if (found !== null) {
    const { flip, shift } = found;
    const bytes = Array.from({ length: 8 / bits }, (_, i) => flip << (bits * i)).reduce((a, b) => a | b);
    return { ...common, flip: bytes, shift, table: null, most: bits === 8 ? 128 : 2 ** bits - 1 };
  }
  const range = (most - least) / multiple;
  if (bits === 8 || range > 127) return null;
  return { ...common, flip: 0, shift: -least, table: Array.from(integers, (value) => (value - least) / multiple), most: range };
}
