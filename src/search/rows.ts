// Rows of packed tensors as units: joined, and taken out.
import { packedSizes } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";

/** Are the planes of rows independent of each other? Not where a scale reaches over several rows. */
export function rowsApart(format: Format): boolean {
  if (format.kind !== "block") return true;
  const levels = [...format.scales, ...(format.offset?.levels ?? [])];
  return levels.every(({ span }) => span === "row" || typeof span === "number");
}

/** One packed tensor of two with the same format and length of rows, which must be apart. */
export function joinRows(a: PackedTensor, b: PackedTensor): PackedTensor {
  const join = (x: Uint8Array | null, y: Uint8Array | null): Uint8Array | null => {
    if (x === null || y === null) return null;
    const out = new Uint8Array(x.length + y.length);
    out.set(x);
    out.set(y, x.length);
    return out;
  };
  const rows = a.rows + b.rows;
  return {
    ...a,
    shape: [rows, a.k],
    rows,
    codes: join(a.codes, b.codes)!,
    scales: join(a.scales, b.scales),
    superScales: join(a.superScales, b.superScales),
    offsets: join(a.offsets, b.offsets),
  };
}

/** The rows of a packed tensor, which must be apart, for which `keep` is true; null where there are none. */
export function takeRows(w: PackedTensor, keep: (row: number) => boolean): PackedTensor | null {
  const kept: number[] = [];
  for (let row = 0; row < w.rows; row++) if (keep(row)) kept.push(row);
  if (kept.length === 0) return null;
  if (kept.length === w.rows) return w;
  const one = packedSizes(w.format, [1, w.k]);
  const take = (plane: Uint8Array | null, size: number | null): Uint8Array | null => {
    if (plane === null || size === null) return null;
    const out = new Uint8Array(kept.length * size);
    kept.forEach((row, i) => out.set(plane.subarray(row * size, (row + 1) * size), i * size));
    return out;
  };
  return {
    ...w,
    shape: [kept.length, w.k],
    rows: kept.length,
    codes: take(w.codes, one.codes)!,
    scales: take(w.scales, one.scales),
    superScales: take(w.superScales, one.superScales),
    offsets: take(w.offsets, one.offsets),
  };
}
