// What the quantizing modes share: the context they work in, and weights that several nodes read.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import type { Names, Scope } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import type { OnnxModel } from "../file/model.ts";
import type { QuantizeOptions } from "../options.ts";
import { tensorBytes } from "../file/values.ts";

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

/** Bytes of a tensor that a mode made. */
export const madeBytes = (tensors: readonly TensorProto[]): number => tensors.reduce((total, tensor) => total + tensorBytes(tensor), 0);
