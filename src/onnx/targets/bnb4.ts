// MatMul and Gemm with constant weights as com.microsoft.MatMulBnb4: the NF4 and FP4 of bitsandbytes in blocks over the
// flattened [N, K] weight. Layout: B uint8, two codes a byte, the first in the high nibble; absmax float32 per block;
// quant_type 0 is FP4, 1 NF4. Byte for byte what onnxruntime's MatMulBnb4Quantizer writes. Source: onnxruntime
// docs/ContribOperators.md.
import type { Format, NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { bnb_fp4 } from "../../../formats/bnb_fp4.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";
import { nf4 } from "../../../formats/nf4.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { layerMatrix, layerType } from "../weights.ts";
import { withScaleFormat } from "./nbits.ts";
import { importMicrosoft, MICROSOFT } from "./domain.ts";
import { productNodes, productReason } from "./product.ts";
import type { Target, Written } from "./target.ts";
import { madeBytes, perWeight } from "./target.ts";

/** quant_type of a format: its code book's, whatever its name. */
function quantType(element: NumberFormat): number | undefined {
  const same = (book: NumberFormat) =>
    element.bits === 4 && element.table !== null && book.table!.every((v, i) => Object.is(v, element.table![i]));
  return same(bnb_fp4) ? 0 : same(nf4) ? 1 : undefined;
}

const BLOCK_MIN = 16;

/** Why MatMulBnb4 cannot hold a format; undefined where it can. */
function formatReason(format: Format): string | undefined {
  if (format.kind !== "block" || quantType(format.element) === undefined)
    return `MatMulBnb4 holds the code books of NF4 and FP4, not ${format.name}`;
  const [{ span, format: scale }] = format.scales;
  if (format.scales.length !== 1 || format.offset !== undefined || (scale !== float32 && scale !== float16))
    return `MatMulBnb4 has one float scale per block; ${format.name} has more`;
  if (typeof span !== "number" || span < BLOCK_MIN || (span & (span - 1)) !== 0)
    return `MatMulBnb4 has blocks of a power of two from ${BLOCK_MIN}, not ${JSON.stringify(span)}`;
  return undefined;
}

export function matMulBnb4(): Target {
  const once = perWeight<{ readonly inputs: readonly string[]; readonly bytes: number }>();
  const isHalf = (type: number): boolean => type === T.FLOAT16;
  return {
    name: "bnb4",
    opTypes: ["MatMul", "Gemm"],
    defaultOpTypes: ["MatMul", "Gemm"],
    adapt(layer, format) {
      const wanted = isHalf(layerType(layer)) ? float16 : float32;
      return format.kind === "block" && formatReason(format) === undefined && format.scales[0].format !== wanted
        ? withScaleFormat(format, wanted)
        : format;
    },
    reason: (layer, format, context) => formatReason(format) ?? productReason(layer, context),
    /** Blocks go on from one row to the next where rows are no whole blocks. */
    isFlat(layer, format) {
      const matrix = layerMatrix(layer);
      return format.kind === "block" && typeof matrix !== "string" && matrix.k % (format.scales[0].span as number) !== 0;
    },
    write(layer, packed: PackedTensor, context): Written {
      const { names, model } = context;
      const format = packed.format;
      if (format.kind !== "block") throw new Error(format.name);
      const { k, rows } = layerMatrix(layer) as { k: number; rows: number };
      const made = once(packed, () => {
        const base = layer.weight!.name;
        const half = format.scales[0].format === float16;
        const tensors = [
          makeTensor(model, names.take(`${base}_Bnb4`), T.UINT8, [Math.ceil((rows * k) / 2)], highFirst(packed)),
          makeTensor(
            model,
            names.take(`${base}_absmax`),
            half ? T.FLOAT16 : T.FLOAT,
            [packed.scales!.length / (half ? 2 : 4)],
            packed.scales!,
          ),
        ];
        layer.weight!.scope.graph.initializer.push(...tensors);
        return { inputs: tensors.map((tensor) => tensor.name), bytes: madeBytes(tensors) };
      });
      importMicrosoft(context.model);
      const attributes = [
        intAttribute("K", k),
        intAttribute("N", rows),
        intAttribute("block_size", format.scales[0].span as number),
        intAttribute("quant_type", quantType(format.element)!),
      ];
      const type = layerType(layer);
      const nodes = productNodes(
        layer,
        context,
        packed,
        (x, output) => [
          makeNode("MatMulBnb4", [x, ...made.inputs], [output], {
            name: names.take(`${layer.name}_Bnb4`),
            domain: MICROSOFT,
            attributes,
          }),
        ],
        type === T.FLOAT || type === T.FLOAT16 ? undefined : T.FLOAT,
      );
      return { nodes, codes: made.inputs[0], bytes: made.bytes };
    },
  };
}

/**
 * Codes as one stream, the first of a byte in its high nibble: rows are whole bytes, or all values are one row. A word
 * at a time: four times as fast, and this is a third of a merge.
 */
function highFirst({ rows, k, codes }: PackedTensor): Uint8Array {
  const out = new Uint8Array(Math.ceil((rows * k) / 2));
  out.set(codes.subarray(0, out.length));
  const words = new Uint32Array(out.buffer, 0, out.length >> 2);
  for (let i = 0; i < words.length; i++) words[i] = ((words[i] & 0x0f0f0f0f) << 4) | ((words[i] >>> 4) & 0x0f0f0f0f);
  for (let i = words.length << 2; i < out.length; i++) out[i] = (out[i] << 4) | (out[i] >> 4);
  return out;
}
