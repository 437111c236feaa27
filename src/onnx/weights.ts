// From a layer to a packed weight: which matrix its weight is, and the one call of the tensor layer that quantizes it.
// A weight that several layers read in the same way is quantized once. No arithmetic of weights is here: that is
// src/tensor/quantize.
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { packedSizes } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { QuantizeOptions as TensorOptions, WeightQuantizer } from "../tensor/quantize/index.ts";
import { quantizeBands } from "../tensor/quantize/bands.ts";
import { quantizeMeasured, type Measured } from "../tensor/quantize/measure.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import { bandReason, findValue, forValues, isLarge, layerBands } from "./bands.ts";
import type { OnnxModel } from "./file/model.ts";
import { ARRAY_MAX, type Scratch } from "./file/values.ts";
import type { ConstantView } from "./graph/graph.ts";
import { attributeFloat, constantView } from "./graph/graph.ts";
import { computedReason, type Layer } from "./layers.ts";
import { type WeightStore } from "./journal/store.ts";
import { commonStride, toMatrix, weightLayout, type LayerMatrix } from "./matrix.ts";

/** Where Gemm's alpha leaves this range it is multiplied into the result, not into the weight. */
const FACTOR_MAX = 65536;

/** Gemm's alpha as far as it belongs to the weight; the rest is left for the result. */
export function gemmAlpha(node: NodeProto): { readonly factor: number; readonly rest: number } {
  const alpha = node.opType === "Gemm" ? Math.fround(attributeFloat(node, "alpha", 1)) : 1;
  const size = Math.abs(alpha);
  return size <= FACTOR_MAX && size >= 1 / FACTOR_MAX ? { factor: alpha, rest: 1 } : { factor: 1, rest: alpha };
}

/** Gives a node that stays the weight that was made of its matrix, which has Gemm's alpha in it. */
export function setWeight({ node, input }: Layer, name: string): void {
  node.input[input] = name;
  if (gemmAlpha(node).factor !== 1) node.attribute = node.attribute.filter((attribute) => attribute.name !== "alpha");
}

/** The matrix of a layer, or why it has none. */
export function layerMatrix(layer: Layer): LayerMatrix | string {
  const { node, weight, shape } = layer;
  const product = node.opType === "MatMul" || node.opType === "Gemm";
  if (weight === null) return product ? "no operand is constant" : computedReason(layer);
  if (shape.includes(0)) return "the weight is empty";
  if (shape.length < 2) return "the weight has one dimension";
  const layout = weightLayout(layer, weight);
  const { rows, dims, order } = layout;
  // a convolution and a table keep their dimensions: [out channels, ...], [vocabulary, ...]
  const plain = order.every((axis, i) => axis === i) && dims[0] === rows;
  return { ...layout, shape: plain ? dims : [rows, layout.k], factor: gemmAlpha(node).factor };
}

/** Is the weight a plain [K, N] or [N, K] matrix, leading dimensions of one aside? Why not, else. */
export function singleMatrixReason(layer: Layer): string | undefined {
  const { shape } = layer;
  return shape.slice(0, -2).every((d) => d === 1) ? undefined : `the weight has ${shape.length} dimensions, not 2`;
}

/**
 * Values of a format are never negative, and nothing shifts them: negative weights would all become zero, or worse
 * behind an algorithm.
 */
const isUnsigned = (format: Format): boolean =>
  format.kind === "block"
    ? format.offset === undefined && format.element.limits.min >= 0
    : format.kind !== "opaque" && format.limits.min >= 0;

/** Why a format cannot hold the signs of a layer's weight; undefined: it can. */
export function signReason(model: OnnxModel, layer: Layer, format: Format): string | undefined {
  if (layer.weight === null || !isUnsigned(format)) return undefined;
  const { factor } = gemmAlpha(layer.node);
  const lost = findValue(model, layer.weight, (value) => value * factor < 0);
  return lost === undefined
    ? undefined
    : `${format.name} has no negative values and no zero points, and the weight has ${lost * factor} (a signed format, or one with zero points, can)`;
}

/**
 * A table with infinities (a mask): it stays as it is, for no code of few bits stands for them. In a weight that is
 * multiplied they are damage.
 */
export function maskReason(model: OnnxModel, layer: Layer): string | undefined {
  if (layer.weight === null || !/^Gather/.test(layer.node.opType)) return undefined;
  const infinite = findValue(model, layer.weight, (value) => value === Infinity || value === -Infinity);
  return infinite === undefined || findValue(model, layer.weight, Number.isNaN) !== undefined
    ? undefined
    : `the table has ${infinite}, as masks have: it stays as it is`;
}

/**
 * What 8-bit codes with one scale for the whole weight would leave above their error, in decibels: that of rounding to
 * even steps over its range.
 */
export function oneScaleDecibels(model: OnnxModel, { weight }: Layer): number {
  if (weight === null) return Infinity;
  let [least, most, signal, count] = [0, 0, 0, 0];
  forValues(model, weight, (values) => {
    for (const value of values) {
      if (value < least) least = value;
      else if (value > most) most = value;
      signal += value * value;
    }
    count += values.length;
  });
  const step = (most - least) / 255;
  return decibels(signal / count, (step * step) / 12);
}

/** Why a weight that no array holds cannot be quantized; undefined where it can. */
export function largeReason(model: OnnxModel, layer: Layer, format: Format): string | undefined {
  const matrix = layerMatrix(layer);
  if (layer.weight === null || typeof matrix === "string" || !isLarge(layer.weight)) return undefined;
  const codes = packedSizes(format, [matrix.rows, matrix.k]).codes;
  return codes > ARRAY_MAX ? `its ${format.name} codes pass 2 GiB` : bandReason(model, layer, matrix);
}

/** What quantizes one layer: options of `quantize` (round to nearest), or a quantizer. */
export type LayerQuantizer = TensorOptions | WeightQuantizer;

/** What a layer's weight becomes. */
export interface Rounding {
  readonly layer: Layer;
  readonly format: Format;
  readonly quantizer: LayerQuantizer;
  /** As one row of all its values, blocks going on from row to row. */
  readonly flat: boolean;
}

/** The error for a weight that holds NaN or an infinity. */
function notFinite(layer: Layer, values: Float32Array, cause: LowbitError): LowbitError {
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at < 0) return new LowbitError(cause.code, `layer ${layer.name}: ${cause.message}`, { cause });
  return new LowbitError(
    "E_VALUE",
    `layer ${layer.name}: expected finite weights, got ${values[at]} at index ${at} of ${JSON.stringify(layer.weight!.name)}. Repair the model, or leave the layer out with exclude (--exclude ${JSON.stringify(layer.name)}).`,
    { cause },
  );
}

/**
 * The values of a layer's weight as the matrix that is quantized: a view of `scratch` or of the model's bytes where
 * that is possible.
 * @param flat all values as one row
 */
export function matrixTensor(model: OnnxModel, layer: Layer, matrix: LayerMatrix, scratch?: Scratch, flat = false): Tensor<Float32Array> {
  const values = constantView(model, layer.weight!, scratch).data;
  const { rows, k, shape, factor } = matrix;
  const [rowStride, kStride] = [commonStride(matrix.rowOffsets), commonStride(matrix.columnOffsets)];
  const data = factor === 1 ? values : values.map((value) => value * factor);
  const views = rowStride !== undefined && kStride !== undefined && (!flat || (kStride === 1 && rowStride === k));
  if (!views) {
    const copy = Float32Array.from(toMatrix(data, matrix));
    return { data: copy, ...(flat ? contiguous([rows * k]) : contiguous(shape)), offset: 0 };
  }
  const offset = matrix.rowOffsets[0];
  if (flat) return { data, ...contiguous([rows * k]), offset };
  const stride = shape.map((_, i) => (i === 0 ? rowStride : kStride * shape.slice(i + 1).reduce((a, b) => a * b, 1)));
  return { data, shape, stride, offset };
}

const contiguous = (shape: readonly number[]) => ({
  shape,
  stride: shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1)),
});

/**
 * A weight that came back from a journal, in this run's object of its format: targets know by it which codes are
 * already what an operator wants, and copy those.
 */
export function inFormat<W extends { readonly packed: PackedTensor }>(weight: W, format: Format): W {
  const { packed } = weight;
  const same = packed.format !== format && JSON.stringify(packed.format.definition) === JSON.stringify(format.definition);
  return same ? { ...weight, packed: { ...packed, format } } : weight;
}

/** How a layer reads its constant: layers of one key read the same matrix out of it. */
export function layoutKey({ weight }: Layer, { rows, k, rowOffsets, columnOffsets, factor }: LayerMatrix): string {
  const offsets = [...rowOffsets.subarray(0, 2), commonStride(rowOffsets), commonStride(columnOffsets)];
  return [rows, k, ...offsets, factor, weight?.dataType].join();
}

/** Quantizes layers, each distinct weight once. */
export interface LayerWeights {
  /**
   * @param given the same weight as threads made it
   * @throws LowbitError E_VALUE where the weight is not finite, naming the layer
   */
  quantize(rounding: Rounding, given?: Measured): Measured;
  /** Was it made for one layer only, and is it kept by nobody? */
  owns(packed: PackedTensor): boolean;
}

/**
 * @param store where weights of earlier runs are, and new ones go where it keeps all
 * @param layers those that will be asked for: a packed weight is kept only as long as another of them reads the same
 * constant
 */
export function layerWeights(model: OnnxModel, layers: readonly Layer[], store?: WeightStore): LayerWeights {
  const readers = new Map<ConstantView["source"], number>();
  for (const { weight } of layers) if (weight !== null) readers.set(weight.source, (readers.get(weight.source) ?? 0) + 1);
  const scratch: Scratch = { bytes: new Uint8Array(0) };
  const made = new Map<ConstantView["source"], { key: string; quantizer: LayerQuantizer; measured: Measured }[]>();
  const own = new WeakSet<PackedTensor>();
  return {
    owns: (packed) => own.has(packed),
    quantize({ layer, format, quantizer, flat }, given) {
      const matrix = layerMatrix(layer);
      if (typeof matrix === "string") throw new LowbitError("E_UNSUPPORTED", `layer ${layer.name}: ${matrix}.`);
      const { source } = layer.weight!;
      const key = `${layoutKey(layer, matrix)} ${flat} ${JSON.stringify(format.definition)}`;
      const known = made.get(source) ?? [];
      const left = (readers.get(source) ?? 1) - 1;
      readers.set(source, left);
      if (left > 0) made.set(source, known);
      else made.delete(source);
      const same = known.find((entry) => entry.key === key && entry.quantizer === quantizer);
      if (same !== undefined) return same.measured;
      const stored = store?.get(layer);
      if (stored !== undefined) {
        const measured = inFormat(stored, format);
        known.push({ key, quantizer, measured });
        return measured;
      }
      const make = (): Measured =>
        isLarge(layer.weight!)
          ? quantizeLarge(model, layer, matrix, format, quantizer, flat)
          : quantizeWhole(layer, matrixTensor(model, layer, matrix, scratch, flat), format, quantizer);
      const measured = given ?? make();
      known.push({ key, quantizer, measured });
      if (store?.keepsAll) store.put(layer, measured);
      if (left <= 0) own.add(measured.packed);
      return measured;
    },
  };
}

function quantizeWhole(layer: Layer, view: Tensor<Float32Array>, format: Format, quantizer: LayerQuantizer): Measured {
  try {
    return quantizeMeasured(view, format, quantizer);
  } catch (error) {
    if (!isLowbitError(error) || error.code !== "E_VALUE") throw error;
    throw notFinite(layer, view.data, error);
  }
}

/** A weight that no array holds, in bands of rows. */
function quantizeLarge(
  model: OnnxModel,
  layer: Layer,
  matrix: LayerMatrix,
  format: Format,
  quantizer: LayerQuantizer,
  flat: boolean,
): Measured {
  try {
    return quantizeBands(layerBands(model, layer, matrix), format, quantizer, flat);
  } catch (error) {
    if (!isLowbitError(error) || error.code !== "E_VALUE") throw error;
    throw new LowbitError("E_VALUE", `layer ${layer.name}: ${error.message}`, { cause: error });
  }
}

/** The type in which a layer computes: its weight's. */
export const layerType = (layer: Layer): number => layer.weight?.dataType ?? T.UNDEFINED;

/** 10 log10(signal / noise); Infinity where nothing was lost. */
export const decibels = (signal: number, noise: number): number => (noise === 0 ? Infinity : 10 * Math.log10(signal / noise));

export type { Measured, PackedTensor };
