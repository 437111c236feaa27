// No infinity from finite weights: near the largest float32 the nearest code may stand for a value beyond it. Such
// codes become the nearest one that does not. Blocks that cannot hold such values, which is all but the largest, are
// not looked at.
import { codeArray, packInto, unpackInto } from "../../../formats/core/pack.ts";
import type { BlockFormat, NumberFormat } from "../../../formats/core/types.ts";
import type { MatrixView } from "../tensor.ts";
import type { CellParams } from "./encode.ts";

/** From here on a double rounds to an infinite float32. */
const BEYOND = 2 ** 128 * (1 - 2 ** -25);

/** Mends codes in place. */
export function keepFinite(m: MatrixView, { element }: BlockFormat, cells: CellParams, codes: Uint8Array): void {
  const { grid, scale, zeroPoint } = cells;
  const { min, max } = element.limits;
  const reach = (c: number): boolean => Math.max(max - zeroPoint[c], zeroPoint[c] - min) * Math.abs(scale[c]) >= BEYOND;
  if (!scale.some((s, c) => s === s && reach(c))) return;
  const rowBytes = Math.ceil((m.k * element.bits) / 8);
  const row = codeArray(element.bits, m.k);
  for (let r = 0; r < m.rows; r++) {
    unpackInto(codes, r * rowBytes, element.bits, row, 0, m.k);
    const cell0 = Math.floor(r / grid.rows) * grid.gridK;
    for (let j = 0; j < m.k; j++) {
      const c = cell0 + Math.floor(j / grid.k);
      if (reach(c)) row[j] = finiteCode(element, row[j], zeroPoint[c], scale[c]);
    }
    packInto(row, 0, m.k, element.bits, codes, r * rowBytes);
  }
}

/** The code itself, or the one nearest to it whose value is finite. */
export function finiteCode(element: NumberFormat, code: number, zero: number, scale: number): number {
  const value = element.decode(code);
  if (!(Math.abs((value - zero) * scale) >= BEYOND)) return code;
  const most = (BEYOND * (1 - 2 ** -50)) / Math.abs(scale);
  const limit = value > zero ? zero + most : zero - most;
  return element.encode(limit, { rounding: value > zero ? "floor" : "ceil", overflow: "saturate" });
}
