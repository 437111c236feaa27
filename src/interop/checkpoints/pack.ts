// From codes and scales as checkpoints store them to packed tensors: nothing is rounded here.
import { LowbitError } from "../../../formats/core/errors.ts";
import { packInto } from "../../../formats/core/pack.ts";
import { packedSizes } from "../../../formats/core/packed.ts";
import type { BlockFormat, NumberFormat, PackedTensor, Span } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/block.ts";
import { format } from "../../../formats/registry.ts";

/** Codes row-major [rows, k], scales as the bytes of their type, row-major [rows, groups]. */
export interface Parts {
  readonly method: string;
  readonly rows: number;
  readonly k: number;
  readonly codes: ArrayLike<number>;
  readonly format: BlockFormat;
  readonly scales: Uint8Array;
  readonly superScales?: Uint8Array;
  /** Zero points as codes of the offset's format, [rows, groups]. */
  readonly zeroPoints?: ArrayLike<number>;
}

/** @throws LowbitError E_SHAPE where scales do not fit the shape */
export function packParts(p: Parts): PackedTensor {
  const sizes = packedSizes(p.format, [p.rows, p.k]);
  const { element } = p.format;
  const codes = new Uint8Array(sizes.codes);
  for (let r = 0; r < p.rows; r++) packInto(p.codes, r * p.k, p.k, element.bits, codes, r * sizes.rowBytes);
  const check = (what: string, want: number | null, got: number): void => {
    if (want !== got)
      throw new LowbitError(
        "E_SHAPE",
        `${p.method} ${what}: expected ${want ?? "no"} bytes for ${p.format.name} [${p.rows}, ${p.k}], got ${got}. Is group_size that of the file?`,
      );
  };
  check("scales", sizes.scales, p.scales.length);
  if (p.superScales !== undefined) check("global scale", sizes.superScales, p.superScales.length);
  let offsets: Uint8Array | null = null;
  if (p.format.offset !== undefined) {
    const level = p.format.offset.levels[0];
    const groups = (p.zeroPoints?.length ?? 0) / p.rows;
    offsets = new Uint8Array(sizes.offsets!);
    const rowBytes = offsets.length / p.rows;
    if (p.zeroPoints === undefined || Math.ceil((groups * level.format.bits) / 8) !== rowBytes)
      check("zero points", sizes.offsets, groups * p.rows);
    for (let r = 0; r < p.rows; r++) packInto(p.zeroPoints!, r * groups, groups, level.format.bits, offsets, r * rowBytes);
  }
  return {
    ...{ format: p.format, shape: [p.rows, p.k], rows: p.rows, k: p.k, rowBytes: sizes.rowBytes, codes },
    ...{ scales: p.scales, superScales: p.superScales ?? null, offsets, recipe: { version: 1, algorithm: p.method } },
  };
}

/**
 * An integer format in groups with zero points, whose type is wider than the element's where a checkpoint's zero points
 * pass it.
 */
export function groupFormat(element: NumberFormat, scale: NumberFormat, span: Span, zeroPoint?: NumberFormat): BlockFormat {
  return defineBlock({
    element,
    scales: [{ format: scale, span }],
    ...(zeroPoint === undefined ? {} : { offset: { role: "zeroPoint" as const, levels: [{ format: zeroPoint, span }] } }),
    ...(zeroPoint === undefined || zeroPoint === element
      ? {}
      : { name: `${element.name}_${spanText(span)}_${scale.name}_${zeroPoint.name}zp` }),
  });
}
const spanText = (span: Span): string => (typeof span === "number" ? `b${span}` : String(span));

export const scalar = (name: string): NumberFormat => format(name) as NumberFormat;

/** Rows and columns change places; elements of `bytes` bytes. */
export function transposed(data: Uint8Array, rows: number, columns: number, bytes: number): Uint8Array {
  const out = new Uint8Array(data.length);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) for (let b = 0; b < bytes; b++) out[(c * rows + r) * bytes + b] = data[(r * columns + c) * bytes + b];
  return out;
}
