// A packed tensor in the form that MatMulNBits reads, values unchanged: scales in the type of the activations where
// that loses nothing, one scale and zero point for every block where the file's groups are larger.
import { decodeArray } from "../../../formats/core/bulk.ts";
import { codeArray, packInto } from "../../../formats/core/pack.ts";
import { levelCodes, packedSizes } from "../../../formats/core/packed.ts";
import { spanGrid } from "../../../formats/core/span.ts";
import type { BlockFormat, NumberFormat, PackedTensor, ScaleLevel, Span } from "../../../formats/core/types.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";
import { nbitsOperands, nbitsPlan, withScaleFormat, withSpan } from "../targets/nbits.ts";

interface Codes {
  readonly format: NumberFormat;
  readonly codes: ArrayLike<number>;
}

/** Codes of a level in another format of the same values; null where a value is lost. */
function retyped(from: Codes, format: NumberFormat): Codes | null {
  if (from.format === format) return from;
  const values = decodeArray(from.format, Uint32Array.from(from.codes), new Float64Array(from.codes.length));
  const codes = codeArray(format.bits, values.length);
  for (let i = 0; i < values.length; i++) {
    codes[i] = format.encode(values[i]);
    if (!Object.is(format.decode(codes[i]), values[i])) return null;
  }
  return { format, codes };
}

/** Entries of a level for every block of `size` columns, as packed rows. */
function respanned({ format, codes }: Codes, span: Span, size: number, rows: number, k: number, to: NumberFormat): Uint8Array {
  const from = spanGrid(span, rows, k);
  const grid = spanGrid(size, rows, k);
  const rowBytes = Math.ceil((grid.gridK * to.bits) / 8);
  const out = new Uint8Array(rowBytes * rows);
  const line = codeArray(format.bits, grid.gridK);
  for (let r = 0; r < rows; r++) {
    for (let b = 0; b < grid.gridK; b++) line[b] = codes[Math.floor(r / from.rows) * from.gridK + Math.floor((b * size) / from.k)];
    packInto(line, 0, grid.gridK, to.bits, out, r * rowBytes);
  }
  return out;
}

/**
 * The tensor as the operator wants it, or itself where its form cannot be had so; null where the operator cannot hold
 * it without a loss.
 */
export function fitted(packed: PackedTensor, half: boolean): PackedTensor | null {
  const { format, rows, k } = packed;
  const plan = nbitsPlan(format, k);
  if (typeof plan === "string" || format.kind !== "block") return null;
  const wanted = half ? float16 : float32;
  if (format.scales.length === 1) {
    const fit = asIs(packed, format, wanted);
    if (fit !== null) return fit;
  }
  if (!half) return packed;
  // steps with scales that are computed: float16 holds them or it does not
  const exact = nbitsOperands(packed, false);
  const scales = new Float32Array(exact.scales.buffer, exact.scales.byteOffset, exact.scales.length / 4);
  return scales.every((s) => float16.decode(float16.encode(s)) === s) && rows > 0 ? packed : null;
}

/** With whole scales per block of the operator; null where its zero points or codes are of another kind. */
function asIs(packed: PackedTensor, format: BlockFormat, wanted: NumberFormat): PackedTensor | null {
  const { rows, k } = packed;
  const [level] = format.scales;
  const target = withScaleFormat(format, wanted);
  const blockSize = blockOf(target, k);
  if (blockSize === undefined) return null;
  const read = (at: ScaleLevel, bytes: Uint8Array): Codes => ({ format: at.format, codes: levelCodes(at, bytes, rows, k) });
  const scales = retyped(read(level, packed.scales!), wanted);
  if (scales === null) return null;
  const fit = withSpan(target, blockSize);
  const zero = format.offset?.levels[0];
  const offsets = zero === undefined ? null : respanned(read(zero, packed.offsets!), zero.span, blockSize, rows, k, zero.format);
  const sizes = packedSizes(fit, packed.shape);
  return {
    ...packed,
    format: fit,
    rowBytes: sizes.rowBytes,
    scales: respanned(scales, level.span, blockSize, rows, k, wanted),
    offsets,
  };
}

/** The block size in which the operator takes codes as they are. */
function blockOf(format: BlockFormat, k: number): number | undefined {
  const plan = nbitsPlan(format, k);
  if (typeof plan === "string") return undefined;
  const again = nbitsPlan(withSpan(format, plan.blockSize), k);
  return typeof again !== "string" && again.asIs ? plan.blockSize : undefined;
}
