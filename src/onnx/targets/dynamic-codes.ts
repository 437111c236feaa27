// Codes, scales and zero points of packed weights as the integer operators want them.
import { levelCodes, levelValues } from "../../../formats/core/packed.ts";
import type { Codes } from "../../../formats/core/pack.ts";
import type { BlockFormat, PackedTensor } from "../../../formats/core/types.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";

/** Scales, zero points and the element type of codes. */
export interface Levels {
  readonly scales: Float32Array;
  readonly zeros: Uint8Array;
  readonly type: number;
}

/** Scales and zero points of a packed tensor, and the element type of codes and zero points. */
export function levelsOf(packed: PackedTensor): Levels {
  const format = packed.format as BlockFormat;
  const { rows, k } = packed;
  const scales = Float32Array.from(levelValues(format.scales[0], packed.scales!, rows, k));
  const zeros =
    format.offset === undefined
      ? new Uint8Array(scales.length)
      : (levelCodes(format.offset.levels[0], packed.offsets!, rows, k) as Uint8Array);
  return { scales, zeros, type: format.element.limits.min < 0 ? T.INT8 : T.UINT8 };
}

/**
 * One zero point for all channels. They differ only where a channel is all zeros (its codes all are its zero point),
 * which then takes the others'. Codes are changed in place.
 */
export function oneZeroPoint(codes: Uint8Array, zeros: Uint8Array, k: number): number {
  const perChannel = codes.length / zeros.length;
  const isZero = (channel: number): boolean => {
    for (let i = channel * perChannel; i < (channel + 1) * perChannel; i++) if (codes[i] !== zeros[channel]) return false;
    return true;
  };
  const live = zeros.findIndex((_, channel) => !isZero(channel));
  const zero = zeros[Math.max(0, live)];
  zeros.forEach((own, channel) => {
    if (own === zero) return;
    if (!isZero(channel)) throw new Error(`zero points ${zero} and ${own} in one convolution of rows of ${k}`);
    codes.fill(zero, channel * perChannel, (channel + 1) * perChannel);
  });
  return zero;
}

/** Side of the squares in which a matrix is transposed: both of their sides stay in the cache. */
const SQUARE = 64;

/** [rows, columns] transposed. */
export function transposed(values: Codes, rows: number, columns: number): Uint8Array {
  const out = new Uint8Array(values.length);
  for (let r0 = 0; r0 < rows; r0 += SQUARE)
    for (let c0 = 0; c0 < columns; c0 += SQUARE)
      for (let r = r0; r < Math.min(rows, r0 + SQUARE); r++)
        for (let c = c0; c < Math.min(columns, c0 + SQUARE); c++) out[c * rows + r] = values[r * columns + c];
  return out;
}
