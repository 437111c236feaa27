// Weights as integers behind DequantizeLinear, of the ONNX standard alone: 2, 4 or 8 bits with scales per tensor, per output channel or in blocks.
// A MatMul's weight stays [K, N] with blocks along axis 0, the form that onnxruntime fuses into MatMulNBits. Opset 21 (25 for 2 bits) is needed
// for blocks and for fewer than 8 bits. Source: ONNX DequantizeLinear-21, -25.
import { LowbitError } from "../../../formats/core/errors.ts";
import { unpack, levelCodes } from "../../../formats/core/packed.ts";
import { codeArray, packedBytes, packInto, type Codes } from "../../../formats/core/pack.ts";
import type { BlockFormat, Format, PackedTensor } from "../../../formats/core/types.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { raiseOpset } from "../graph/opset.ts";
import type { Layer } from "../layers.ts";
import { layerMatrix, layerType, singleMatrixReason, type LayerMatrix } from "../weights.ts";
import { withScaleFormat } from "./nbits.ts";
import { basisOf } from "./basis.ts";
import { castNode } from "./product.ts";
import type { Target, TargetContext, Written } from "./target.ts";
import { madeBytes, perWeight } from "./target.ts";

const TYPES: ReadonlySet<number> = new Set([T.INT8, T.UINT8, T.INT4, T.UINT4, T.INT2, T.UINT2]);

/** The opset that a format needs. */
function opsetOf(format: BlockFormat): number {
  if (format.element.bits === 2) return 25;
  if (format.element.bits < 8 || typeof format.scales[0].span === "number") return 21;
  return format.scales[0].span === "row" ? 13 : 10;
}

function formatReason(format: Format): string | undefined {
  if (format.kind !== "block" || format.element.kind !== "int" || !TYPES.has(format.element.onnx ?? 0))
    return `DequantizeLinear holds integers of 2, 4 or 8 bits, not ${format.name} (target stored can)`;
  const [{ span, format: scale }] = format.scales;
  if (format.scales.length !== 1 || (scale !== float32 && scale !== float16))
    return `DequantizeLinear has one level of float scales, ${format.name} has others`;
  if (Array.isArray(span)) return "DequantizeLinear has no two-dimensional blocks";
  const offset = format.offset;
  if (offset !== undefined && (offset.role !== "zeroPoint" || offset.levels[0].span !== span || offset.levels[0].format !== format.element))
    return `the offsets of ${format.name} are no zero points of its element type`;
  return undefined;
}

/** Is the stored weight the matrix, or its transpose? */
const isPlain = ({ order }: LayerMatrix): boolean => order.every((axis, i) => axis === i);
const isFlipped = ({ order }: LayerMatrix): boolean => order.length >= 2 && order.at(-1) === order.length - 2;

interface Made {
  readonly codes: string;
  readonly value: string;
  readonly bytes: number;
}

export function qdqTarget(): Target {
  const once = perWeight<Map<string, Made>>();

  /** DequantizeLinear of the weight, in the shape that the layer's node reads. */
  function make(layer: Layer, packed: PackedTensor, context: TargetContext, into: Written["nodes"] & object): Made {
    const { model, names } = context;
    const base = layer.weight!.name;
    const scope = layer.weight!.scope;
    const format = packed.format as BlockFormat;
    const { rows, k } = packed;
    const matrix = layerMatrix(layer);
    if (typeof matrix === "string") throw new Error(matrix);
    // a transposed weight is [k, rows], and so are its scales
    const flipped = isFlipped(matrix);
    const { span } = format.scales[0];
    const turn = (codes: Codes, height: number, width: number, bits: number): Codes => {
      if (!flipped) return codes;
      const out = codeArray(bits, codes.length);
      for (let r = 0; r < height; r++) for (let j = 0; j < width; j++) out[j * height + r] = codes[r * width + j];
      return out;
    };
    const pack = (codes: Codes, bits: number): Uint8Array => {
      if (bits >= 8) return new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength);
      const out = new Uint8Array(packedBytes(codes.length, bits));
      packInto(codes, 0, codes.length, bits, out, 0);
      return out;
    };
    const cells = typeof span === "number" ? Math.ceil(k / span) : 1;
    const shape = layer.shape;
    const scaleDims = span === "tensor" ? [] : span === "row" ? [rows] : flipped ? [...shape.slice(0, -2), cells, rows] : [rows, cells];
    const { element } = format;
    const level = format.scales[0];
    const half = level.format === float16;
    const grid = span === "tensor" ? 1 : rows;
    const scales = pack(turn(levelCodes(level, packed.scales!, rows, k), grid, cells, level.format.bits), level.format.bits);
    const tensors = [
      makeTensor(
        model,
        names.take(`${base}_quantized`),
        element.onnx!,
        shape,
        pack(turn(unpack(packed), rows, k, element.bits), element.bits),
      ),
      makeTensor(model, names.take(`${base}_scale`), half ? T.FLOAT16 : T.FLOAT, scaleDims, scales),
    ];
    if (format.offset !== undefined) {
      const zero = turn(levelCodes(format.offset.levels[0], packed.offsets!, rows, k), grid, cells, element.bits);
      tensors.push(makeTensor(model, names.take(`${base}_zero_point`), element.onnx!, scaleDims, pack(zero, element.bits)));
    }
    scope.graph.initializer.push(...tensors);
    const axis = flipped ? (typeof span === "number" ? shape.length - 2 : shape.length - 1) : typeof span === "number" ? 1 : 0;
    const value = names.take(`${base}_dequantized`);
    into.push(
      makeNode(
        "DequantizeLinear",
        tensors.map((tensor) => tensor.name),
        [value],
        {
          name: names.take(`${base}_DequantizeLinear`),
          attributes: [
            ...(span === "tensor" ? [] : [intAttribute("axis", axis)]),
            ...(typeof span === "number" ? [intAttribute("block_size", span)] : []),
          ],
        },
      ),
    );
    const type = layerType(layer);
    const made = half ? T.FLOAT16 : T.FLOAT;
    if (made === type) return { codes: tensors[0].name, value, bytes: madeBytes(tensors) };
    const cast = names.take(`${base}_cast`);
    into.push(castNode(context, value, cast, type, `${base}_cast_node`));
    return { codes: tensors[0].name, value: cast, bytes: madeBytes(tensors) };
  }

  return {
    name: "qdq",
    opTypes: ["MatMul", "Gemm", "Conv", "Gather"],
    defaultOpTypes: ["MatMul", "Gemm", "Conv"],
    adapt(layer, format) {
      const wanted = layerType(layer) === T.FLOAT16 ? float16 : float32;
      return format.kind === "block" && formatReason(format) === undefined && format.scales[0].format !== wanted
        ? withScaleFormat(format, wanted)
        : format;
    },
    reason(layer, format, context) {
      const reason = formatReason(format);
      if (reason !== undefined || format.kind !== "block") return reason;
      const matrix = layerMatrix(layer);
      if (typeof matrix === "string") return matrix;
      const { span } = format.scales[0];
      if (layer.node.opType === "MatMul" || layer.node.opType === "Gemm") {
        const single = singleMatrixReason(layer);
        if (single !== undefined) return single;
      } else if (!isPlain(matrix)) return `the weight of ${layer.node.opType} is no matrix by output channel as it is stored`;
      else if (typeof span === "number" && layer.shape.length > 2)
        return `DequantizeLinear has blocks along one axis, and the weight has ${layer.shape.length} dimensions (scales per row can)`;
      if (context.opset() < 7) return `opset ${context.opset()} (7 or later is needed)`;
      return undefined;
    },
    prepare(layers, context) {
      const needed = Math.max(...layers.map((layer) => opsetOf(context.formatOf(layer) as BlockFormat)));
      const before = context.opset();
      if (before >= needed) return undefined;
      const failure = raiseOpset(context, needed);
      if (failure === undefined) {
        context.notes.push(`opset raised from ${before} to ${needed}: DequantizeLinear needs it`);
        return undefined;
      }
      return (layer) => {
        const wanted = opsetOf(context.formatOf(layer) as BlockFormat);
        return before >= wanted
          ? undefined
          : `DequantizeLinear of ${context.formatOf(layer).name} needs opset ${wanted}, the model has ${before}, and ${failure}`;
      };
    },
    write(layer, packed, context) {
      if (basisOf(packed) !== null)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `layer ${layer.name}: expected an algorithm that keeps the model's basis, got ${packed.recipe.algorithm}. Take gptq, or the target stored.`,
        );
      const views = once(packed, () => new Map());
      const key = `${layer.shape.join()} ${layerType(layer)}`;
      let made = views.get(key);
      if (made === undefined) {
        const nodes: NonNullable<Written["nodes"]> = [];
        made = make(layer, packed, context, nodes);
        views.set(key, made);
        context.before(layer.weight!.scope, nodes);
      }
      layer.node.input[layer.input] = made.value;
      return { nodes: null, codes: made.codes, bytes: made.bytes };
    },
  };
}
