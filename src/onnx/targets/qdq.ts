// Weights as integers behind DequantizeLinear, of the ONNX standard alone: up to 16 bits (stored as 2, 4, 8 or 16) with
// scales per tensor, per output channel or in blocks. A MatMul's weight stays [K, N] with blocks along axis 0, the form
// that onnxruntime fuses into MatMulNBits. Opset 21 (25 for 2 bits) is needed for blocks and for storage of other than
// 8 bits. Source: ONNX DequantizeLinear-21, -25.
import { LowbitError } from "../../../formats/core/errors.ts";
import { unpack, levelCodes } from "../../../formats/core/packed.ts";
import { codeArray, packedBytes, packInto, type Codes } from "../../../formats/core/pack.ts";
import type { BlockFormat, Format, NumberFormat, PackedTensor, ScaleLevel } from "../../../formats/core/types.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";
import type { AttributeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { raiseOpset } from "../graph/opset.ts";
import type { Layer } from "../layers.ts";
import type { LayerMatrix } from "../matrix.ts";
import { layerMatrix, layerType, setWeight, singleMatrixReason } from "../weights.ts";
import { withScaleFormat, withSpan } from "./nbits.ts";
import { basisOf } from "./basis.ts";
import type { Target, TargetContext, Written } from "./target.ts";
import { madeBytes, perWeight } from "./target.ts";

/** The types that hold codes: bits, signed, unsigned. An integer of another width is held in the next wider one. */
const STORAGE = [
  { bits: 2, signed: T.INT2, unsigned: T.UINT2 },
  { bits: 4, signed: T.INT4, unsigned: T.UINT4 },
  { bits: 8, signed: T.INT8, unsigned: T.UINT8 },
  { bits: 16, signed: T.INT16, unsigned: T.UINT16 },
] as const;

interface Storage {
  readonly type: number;
  readonly bits: number;
}

function storageOf(element: NumberFormat): Storage | undefined {
  const row = element.kind === "int" ? STORAGE.find(({ bits }) => element.bits <= bits) : undefined;
  return row && { type: element.limits.min < 0 ? row.signed : row.unsigned, bits: row.bits };
}

/** Codes of an element as codes of its storage: signed ones take their sign along. */
function widened(codes: Codes, element: NumberFormat, bits: number): Codes {
  if (element.bits === bits || element.limits.min >= 0) return codes;
  const out = codeArray(bits, codes.length);
  const shift = 32 - element.bits;
  const mask = 2 ** bits - 1;
  for (let i = 0; i < codes.length; i++) out[i] = ((codes[i] << shift) >> shift) & mask;
  return out;
}

/** The opset that a format needs. */
function opsetOf(format: BlockFormat): number {
  const { bits } = storageOf(format.element)!;
  if (bits === 2) return 25;
  if (bits !== 8 || typeof format.scales[0].span === "number") return 21;
  return format.scales[0].span === "row" ? 13 : 10;
}

function formatReason(format: Format): string | undefined {
  if (format.kind !== "block" || storageOf(format.element) === undefined)
    return `DequantizeLinear holds integers of at most 16 bits with scales, not ${format.name} (target stored can)`;
  const [{ span, format: scale }] = format.scales;
  if (format.scales.length !== 1 || (scale !== float32 && scale !== float16))
    return `DequantizeLinear has one level of float scales, ${format.name} has others`;
  const offset = format.offset;
  if (
    offset !== undefined &&
    (offset.role !== "zeroPoint" || !sameSpan(offset.levels[0].span, span) || offset.levels[0].format !== format.element)
  )
    return `the offsets of ${format.name} are no zero points of its element type`;
  return undefined;
}

const sameSpan = (a: ScaleLevel["span"], b: ScaleLevel["span"]): boolean => String(a) === String(b);

/** Rows of an output channel, where each has a scale: those of a ConvTranspose are its kernel positions too. */
const isChannels = (span: ScaleLevel["span"], { rowSpan, k }: LayerMatrix): boolean =>
  Array.isArray(span) && span[0] === rowSpan && span[1] === k;

/** Is the stored weight the matrix, or its transpose? */
const isPlain = ({ order }: LayerMatrix): boolean => order.every((axis, i) => axis === i);
const isFlipped = ({ order }: LayerMatrix): boolean => order.length >= 2 && order.at(-1) === order.length - 2;

/** Codes as a tensor stores them. */
function packedCodes(codes: Codes, bits: number): Uint8Array {
  if (bits >= 8) return new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength);
  const out = new Uint8Array(packedBytes(codes.length, bits));
  packInto(codes, 0, codes.length, bits, out, 0);
  return out;
}

/** Where the codes [rows, k] of a weight and its scales are in the tensors that DequantizeLinear reads. */
interface Place {
  readonly shape: readonly number[];
  readonly scaleDims: readonly number[];
  readonly attributes: AttributeProto[];
  /** Is what comes out still to be given the layer's shape? */
  readonly reshape: boolean;
  codes(codes: Codes, bits: number): Codes;
  /** @param codes scales or zero points, as the levels of a format hold them */
  scales(codes: Codes, bits: number): Codes;
}

function placeOf(layer: Layer, matrix: LayerMatrix, span: ScaleLevel["span"]): Place {
  const { shape } = layer;
  const { rows, k, rowOffsets, columnOffsets } = matrix;
  const as = (codes: Codes): Codes => codes;
  const blocks = typeof span === "number";
  const cells = blocks ? Math.ceil(k / span) : 1;
  const axis = (value: number) => [intAttribute("axis", value), ...(blocks ? [intAttribute("block_size", span)] : [])];
  if (isPlain(matrix) || rank2(shape)) {
    // a transposed weight is [k, rows], and so are its scales
    const flipped = isFlipped(matrix);
    const turn =
      (width: number) =>
      (codes: Codes, bits: number): Codes => {
        if (!flipped) return codes;
        const out = codeArray(bits, codes.length);
        const height = codes.length / width;
        for (let r = 0; r < height; r++) for (let j = 0; j < width; j++) out[j * height + r] = codes[r * width + j];
        return out;
      };
    const reshape = blocks && layer.node.opType === "Conv" && shape.length > 2;
    const rowAxis = flipped ? shape.length - 1 : 0;
    return {
      shape: reshape ? [rows, k] : shape,
      scaleDims: span === "tensor" ? [] : !blocks ? [rows] : flipped ? [...shape.slice(0, -2), cells, rows] : [rows, cells],
      attributes: span === "tensor" ? [] : axis(!blocks ? rowAxis : flipped ? shape.length - 2 : 1),
      reshape,
      codes: turn(k),
      scales: span === "tensor" ? as : turn(cells),
    };
  }
  // as it is stored, a scale per output channel where the format has one
  return {
    shape,
    scaleDims: span === "tensor" ? [] : [rows / matrix.rowSpan],
    attributes: span === "tensor" ? [] : axis(1),
    reshape: false,
    codes(codes, bits) {
      const out = codeArray(bits, codes.length);
      for (let r = 0, at = 0; r < rows; r++) for (let j = 0; j < k; j++) out[rowOffsets[r] + columnOffsets[j]] = codes[at++];
      return out;
    },
    scales: as,
  };
}

/** A matrix, leading dimensions of one aside. */
const rank2 = (shape: readonly number[]): boolean => shape.length >= 2 && shape.slice(0, -2).every((size) => size === 1);

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
    const { graph } = layer.weight!.scope;
    const format = packed.format as BlockFormat;
    const { rows, k } = packed;
    const matrix = layerMatrix(layer);
    if (typeof matrix === "string") throw new Error(matrix);
    const [level] = format.scales;
    const { element } = format;
    const storage = storageOf(element)!;
    const place = placeOf(layer, matrix, level.span);
    const store = (name: string, type: number, bits: number, dims: readonly number[], codes: Codes): TensorProto =>
      makeTensor(model, names.take(`${base}_${name}`), type, dims, packedCodes(codes, bits));
    const codes = place.codes(widened(unpack(packed), element, storage.bits), storage.bits);
    const half = level.format === float16;
    const scales = place.scales(levelCodes(level, packed.scales!, rows, k), level.format.bits);
    const tensors = [
      store("quantized", storage.type, storage.bits, place.shape, codes),
      store("scale", half ? T.FLOAT16 : T.FLOAT, level.format.bits, place.scaleDims, scales),
    ];
    if (format.offset !== undefined) {
      const zero = levelCodes(format.offset.levels[0], packed.offsets!, rows, k);
      const wide = widened(place.scales(zero, element.bits), element, storage.bits);
      tensors.push(store("zero_point", storage.type, storage.bits, place.scaleDims, wide));
    }
    graph.initializer.push(...tensors);
    const node = (op: string, inputs: string[], suffix: string, attributes: AttributeProto[] = []): string => {
      const output = names.take(`${base}_${suffix}`);
      into.push(makeNode(op, inputs, [output], { name: names.take(`${base}_${op}`), attributes }));
      return output;
    };
    let value = node(
      "DequantizeLinear",
      tensors.map((tensor) => tensor.name),
      "dequantized",
      place.attributes,
    );
    if (place.reshape) {
      const shape = names.take(`${base}_shape`);
      const bytes = new Uint8Array(BigInt64Array.from(layer.shape, BigInt).buffer);
      graph.initializer.push(makeTensor(model, shape, T.INT64, [layer.shape.length], bytes));
      value = node("Reshape", [value, shape], "reshaped");
    }
    const type = layerType(layer);
    if ((half ? T.FLOAT16 : T.FLOAT) !== type) value = node("Cast", [value], "cast", [intAttribute("to", type)]);
    return { codes: tensors[0].name, value, bytes: madeBytes(tensors) };
  }

  return {
    name: "qdq",
    opTypes: ["MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"],
    defaultOpTypes: ["MatMul", "Gemm", "Conv", "ConvTranspose"],
    adapt(layer, format) {
      if (format.kind !== "block" || formatReason(format) !== undefined) return format;
      const wanted = layerType(layer) === T.FLOAT16 ? float16 : float32;
      const typed = format.scales[0].format === wanted ? format : withScaleFormat(format, wanted);
      const matrix = layerMatrix(layer);
      if (layer.node.opType !== "ConvTranspose" || typed.scales[0].span !== "row" || typeof matrix === "string") return typed;
      // rows of a transposed convolution are kernel positions of a channel; DequantizeLinear has one scale for them, or
      // one for all groups
      return withSpan(typed, matrix.groups === 1 ? [matrix.rowSpan, matrix.k] : "tensor");
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
      } else if (layer.node.opType === "ConvTranspose") {
        if (span !== "tensor" && !isChannels(span, matrix)) return "DequantizeLinear has no blocks of a ConvTranspose (scales per row can)";
      } else if (!isPlain(matrix)) return `the weight of ${layer.node.opType} is no matrix by output channel as it is stored`;
      if (Array.isArray(span) && !isChannels(span, matrix)) return "DequantizeLinear has no two-dimensional blocks";
      if (layer.node.opType === "Gather" && typeof span === "number" && layer.shape.length > 2)
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
      setWeight(layer, made.value);
      return { nodes: null, codes: made.codes, bytes: made.bytes };
    },
  };
}
