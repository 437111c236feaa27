// Packed tensors as the inputs of com.microsoft.MatMulNBits (4 bits): B uint8 [N, blocks, blockSize / 2], low nibble first, scales [N * blocks],
// zero points uint8 [N * ceil(blocks / 2)]. Any quantizer may have made the tensor. The bytes that stand for nothing are those of onnxruntime's
// own tool: after an odd K the zero point, then zeros; the zero point of a block that is not there is 8.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/index.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";
import { int4 } from "../../../formats/int4.ts";
import { uint4 } from "../../../formats/uint4.ts";

export interface NBitsInputs {
  readonly codes: Uint8Array;
  readonly scales: Uint8Array;
  readonly zeroPoints: Uint8Array | null;
  readonly blocks: number;
}

/** The format of q4: int4 with the signed extreme at -8 (zero point 8 in the file), or uint4 with a zero point per block. */
export function nbitsFormat(blockSize: number, symmetric: boolean, half: boolean): BlockFormat {
  const scales = [{ format: half ? float16 : float32, span: blockSize }];
  if (symmetric) return defineBlock({ element: int4, scales, rangeRule: "ort" });
  return defineBlock({ element: uint4, scales, offset: { role: "zeroPoint", levels: [{ format: uint4, span: blockSize }] } });
}

/** Is code 0 of the file the smallest value? Signed codes are two's complement, and the file wants them counted from the least. */
const isSigned = (element: NumberFormat): boolean => element.limits.min < 0;

/**
 * The inputs of MatMulNBits for a packed tensor [N, K].
 * @throws LowbitError E_UNSUPPORTED where the format is not 4-bit integers in blocks along K with at most one level of scales
 */
export function nbitsInputs(packed: PackedTensor): NBitsInputs {
  const { format, rows: n, k } = packed;
  const level = format.kind === "block" ? format.scales[0] : undefined;
  const span = level?.span;
  if (
    format.kind !== "block" ||
    format.element.kind !== "int" ||
    format.element.bits !== 4 ||
    typeof span !== "number" ||
    format.scales.length !== 1
  ) {
    throw new LowbitError(
      "E_UNSUPPORTED",
      `MatMulNBits: expected 4-bit integers with one scale per block along K, got ${format.name}. Quantize to such a format.`,
    );
  }
  const blocks = Math.ceil(k / span);
  const rowBytes = (blocks * span) / 2;
  const flip = isSigned(format.element) ? 0x88 : 0;
  const codes = new Uint8Array(n * rowBytes);
  if (rowBytes === packed.rowBytes && codes.length % 4 === 0 && packed.codes.byteOffset % 4 === 0) {
    const from = new Uint32Array(packed.codes.buffer, packed.codes.byteOffset, codes.length / 4);
    const to = new Uint32Array(codes.buffer);
    for (let i = 0; i < to.length; i++) to[i] = from[i] ^ (flip * 0x01010101);
  } else {
    for (let row = 0; row < n; row++) {
      const from = row * packed.rowBytes;
      const to = row * rowBytes;
      for (let i = 0; i < packed.rowBytes; i++) codes[to + i] = packed.codes[from + i] ^ flip;
    }
  }
  const zeroBytes = Math.ceil(blocks / 2);
  const zeroPoints = packed.offsets === null ? null : packed.offsets.slice();
  if (k % 2 === 1) {
    const last = (k - 1) >> 1;
    for (let row = 0; row < n; row++) {
      const zero = zeroPoints === null ? 8 : (zeroPoints[row * zeroBytes + ((blocks - 1) >> 1)] >> (((blocks - 1) & 1) * 4)) & 15;
      codes[row * rowBytes + last] = (codes[row * rowBytes + last] & 15) | (zero << 4);
    }
  }
  if (zeroPoints !== null && blocks % 2 === 1) for (let row = 1; row <= n; row++) zeroPoints[row * zeroBytes - 1] |= 0x80;
  return { codes, scales: packed.scales!, zeroPoints, blocks };
}
