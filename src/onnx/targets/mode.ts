// What the quantizing modes share: layers (nodes with a weight), the context they work in, and weights that several nodes read.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import type { Constant, Names, Scope } from "../graph/graph.ts";
import { isDefaultDomain, nodeName, resolveConstant } from "../graph/graph.ts";
import type { OnnxModel } from "../file/model.ts";
import { tensorDims } from "../file/model.ts";
import type { QuantizeOptions } from "../options.ts";
import { isFloatType, tensorBytes } from "../file/values.ts";

/** A node with a weight, or one that could have one (a MatMul of two computed values). */
export interface Layer {
  readonly scope: Scope;
  readonly node: NodeProto;
  readonly name: string;
  /** Which input is the weight; -1 where none is constant. */
  readonly input: number;
  readonly weight: Constant | null;
  readonly shape: readonly number[];
  readonly bytes: number;
}

export interface ModeContext {
  readonly model: OnnxModel;
  readonly scopes: readonly Scope[];
  readonly names: Names;
  readonly options: QuantizeOptions;
  /** Version of the default opset of the model as it is now. */
  readonly opset: () => number;
  readonly notes: string[];
}

/** A layer converted: the nodes that replace it, and the figures of its weight. */
export interface Conversion {
  readonly nodes: NodeProto[];
  /** Name of the new tensor of codes: layers that read the same one share it. */
  readonly codes: string;
  readonly format: string;
  readonly bytesAfter: number;
  readonly sqnrDb: number;
}

export interface Mode {
  /** Operators that the mode quantizes. */
  readonly opTypes: readonly string[];
  /** Why a layer of one of `opTypes` stays as it is; undefined: it is converted. */
  reason(layer: Layer, context: ModeContext): string | undefined;
  /** Called once before the first conversion, with the layers that will be converted; may give a reason for some to stay after all. */
  prepare?(layers: readonly Layer[], context: ModeContext): ((layer: Layer) => string | undefined) | undefined;
  convert(layer: Layer, context: ModeContext): Conversion;
}

/** Inputs that are weights, by operator; every other operator: any large constant of two or more dimensions. */
const WEIGHT_INPUT: Readonly<Record<string, readonly number[]>> = {
  MatMul: [1, 0],
  Gemm: [1, 0],
  Conv: [1],
  ConvTranspose: [1],
  Gather: [0],
};
/** Operators whose layer is reported even without a constant weight. */
const ALWAYS: ReadonlySet<string> = new Set(["MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"]);
const LARGE = 1024;

/** The layers of a model, in order of its graphs and nodes. */
export function findLayers(scopes: readonly Scope[]): Layer[] {
  const layers: Layer[] = [];
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      if (node.opType === "Constant" || node.opType === "Identity") continue;
      const known = isDefaultDomain(node) ? WEIGHT_INPUT[node.opType] : undefined;
      let found: { input: number; weight: Constant } | undefined;
      for (const input of known ?? node.input.keys()) {
        const weight = resolveConstant(scope, node.input[input] ?? "");
        if (weight === null || !isFloatType(weight.tensor.dataType)) continue;
        const dims = tensorDims(weight.tensor);
        if (known === undefined && (dims.length < 2 || dims.reduce((a, b) => a * b, 1) < LARGE)) continue;
        if (node.opType === "Gather" && dims.length < 2) continue;
        found = { input, weight };
        break;
      }
      if (found === undefined && !(isDefaultDomain(node) && ALWAYS.has(node.opType))) continue;
      layers.push({
        scope,
        node,
        name: nodeName(node),
        input: found?.input ?? -1,
        weight: found?.weight ?? null,
        shape: found === undefined ? [] : tensorDims(found.weight.tensor),
        bytes: found === undefined ? 0 : tensorBytes(found.weight.tensor),
      });
    }
  }
  return layers;
}

/** The error for a weight that holds NaN or an infinity. */
export function notFinite(layer: Layer, values: Float32Array): LowbitError {
  const at = values.findIndex((value) => !Number.isFinite(value));
  const found = at < 0 ? "a range beyond float32" : `${values[at]} at index ${at}`;
  return new LowbitError(
    "E_VALUE",
    `layer ${layer.name}: expected finite weights, got ${found} of ${JSON.stringify(layer.weight!.name)}. Repair the model, or leave the layer out with exclude (--exclude ${JSON.stringify(layer.name)}).`,
  );
}

/** Quantized weights by tensor and layout, so that a shared one is made once. */
export interface WeightCache<T> {
  get(tensor: TensorProto, layout: string, make: () => T): T;
}

export function weightCache<T>(): WeightCache<T> {
  const made = new Map<TensorProto, Map<string, T>>();
  return {
    get(tensor, layout, make) {
      const layouts = made.get(tensor) ?? new Map<string, T>();
      made.set(tensor, layouts);
      let weight = layouts.get(layout);
      if (weight === undefined) layouts.set(layout, (weight = make()));
      return weight;
    },
  };
}

/** 10 log10(signal / noise); Infinity without noise, 0 dB for an all-zero weight that stays zero is Infinity too. */
export const decibels = (signal: number, noise: number): number => (noise === 0 ? Infinity : 10 * Math.log10(signal / noise));

/** Operators that move values around: a constant they read is a table, or a weight that is cut or put together at run time. */
const MOVES: ReadonlySet<string> = new Set("Slice Concat Split Transpose Reshape Expand Squeeze Unsqueeze Pad Tile Flatten".split(" "));

/** Why a layer of an operator that the mode does not know stays. */
export const unknownReason = (layer: Layer, dtype: string): string =>
  MOVES.has(layer.node.opType)
    ? `${layer.node.opType} moves the constant, it does not multiply by it`
    : `${dtype} has no form of ${layer.node.opType}`;

/** Bytes of a tensor that a mode made. */
export const madeBytes = (tensors: readonly TensorProto[]): number => tensors.reduce((total, tensor) => total + tensorBytes(tensor), 0);
