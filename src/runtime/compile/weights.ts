// Weights that are codes with scales in the model: what the target "stored" wrote, and DequantizeLinear of constants.
// Products take them as packed tensors, codes as they are; where another operator reads one, it is decoded.
import { defineBlock } from "../../../formats/define/index.ts";
import { dequantizeRows } from "../../../formats/core/packed.ts";
import type { NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { packInto } from "../../../formats/core/pack.ts";
import { float32 } from "../../../formats/float32.ts";
import { int4 } from "../../../formats/int4.ts";
import { int8 } from "../../../formats/int8.ts";
import { uint4 } from "../../../formats/uint4.ts";
import { uint8 } from "../../../formats/uint8.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { Weight } from "../ops/operator.ts";
import type { NumberArray, Value } from "../value.ts";
import { floats } from "../value.ts";

/** The decoded value. */
export function decodeWeight({ isRows, packed }: Weight): Value {
  const w = packed();
  const out = floats(w.shape.length === 2 && !isRows ? [w.k, w.rows] : w.shape);
  const rows = isRows ? out.data : new Float32Array(out.data.length);
  dequantizeRows(w, 0, w.rows, rows);
  if (!isRows) for (let r = 0; r < w.rows; r++) for (let i = 0; i < w.k; i++) out.data[i * w.rows + r] = rows[r * w.k + i];
  return out;
}

/** Element formats of codes by signedness and bits. */
const ELEMENTS: ReadonlyMap<string, NumberFormat> = new Map<string, NumberFormat>([
  ["int8 8", int8],
  ["uint8 8", uint8],
  ["int8 4", int4],
  ["uint8 4", uint4],
]);

/**
 * DequantizeLinear of a constant matrix along one of its axes, as a weight; undefined for other shapes and types.
 * `bits`: of the codes, 4 or 8.
 */
export function dequantizedWeight(
  node: NodeProto,
  bits: number,
  codes: Value,
  scales: Value,
  zeros: Value | undefined,
): Weight | undefined {
  const element = ELEMENTS.get(`${codes.type} ${bits}`);
  if (element === undefined || codes.dims.length !== 2 || !(scales.data instanceof Float32Array)) return undefined;
  const block = attributeInt(node, "block_size", 0);
  const given = attributeInt(node, "axis", 1);
  const axis = given < 0 ? given + 2 : given;
  // blocks lie along the axis that products contract; scales per channel along the other one
  const contracted = block > 0 ? axis : 1 - axis;
  if (block === 0 && scales.data.length === 1) return undefined;
  const isRows = contracted === 1;
  const k = codes.dims[contracted];
  const rows = codes.dims[1 - contracted];
  const span = block > 0 ? block : k;
  const blocks = Math.ceil(k / span);
  if (scales.data.length !== rows * blocks || (zeros !== undefined && zeros.data.length !== rows * blocks)) return undefined;
  const at = (r: number, i: number, width: number): number => (isRows ? r * width + i : i * rows + r);
  const packed = (): PackedTensor => {
    const from = codes.data as NumberArray;
    const mask = 2 ** bits - 1;
    const rowBytes = Math.ceil((k * bits) / 8);
    const out = new Uint8Array(rows * rowBytes);
    const row = new Uint8Array(k);
    const scale = new Float32Array(rows * blocks);
    const perRow = Math.ceil((blocks * bits) / 8);
    const offsets = zeros === undefined ? null : new Uint8Array(rows * perRow);
    const zero = new Uint8Array(blocks);
    for (let r = 0; r < rows; r++) {
      for (let i = 0; i < k; i++) row[i] = from[at(r, i, k)] & mask;
      packInto(row, 0, k, bits, out, r * rowBytes);
      for (let b = 0; b < blocks; b++) {
        scale[r * blocks + b] = (scales.data as Float32Array)[at(r, b, blocks)];
        if (zeros !== undefined) zero[b] = Number(zeros.data[at(r, b, blocks)]) & mask;
      }
      if (offsets !== null) packInto(zero, 0, blocks, bits, offsets, r * perRow);
    }
    return {
      format: defineBlock({
        element,
        scales: [{ format: float32, span }],
        ...(zeros === undefined ? {} : { offset: { role: "zeroPoint" as const, levels: [{ format: element, span }] } }),
      }),
      shape: [rows, k],
      rows,
      k,
      rowBytes,
      codes: out,
      scales: new Uint8Array(scale.buffer),
      superScales: null,
      offsets,
      recipe: { version: 1, algorithm: "onnx" },
    };
  };
  return { isRows, packed };
}
