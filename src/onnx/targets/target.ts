// What a target is: a way to hold a packed weight in an ONNX graph. A target knows which formats and operators it takes
// and writes the nodes; it computes no weights. Adding one is a file like its neighbours and a line in
// targets/index.ts.
import type { Format, PackedTensor } from "../../../formats/core/types.ts";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import type { TargetName } from "../dtypes.ts";
import type { OnnxModel } from "../file/model.ts";
import { tensorBytes } from "../file/values.ts";
import type { Names, Scope } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import type { QuantizeOptions } from "../options.ts";

export interface TargetContext {
  readonly model: OnnxModel;
  readonly scopes: readonly Scope[];
  readonly names: Names;
  readonly options: QuantizeOptions;
  /** Version of the default opset of the model as it is now. */
  readonly opset: () => number;
  readonly notes: string[];
  /** The format that was decided for a layer. */
  readonly formatOf: (layer: Layer) => Format;
  /** Puts nodes whose inputs are constants before all others of a graph. */
  readonly before: (scope: Scope, nodes: readonly NodeProto[]) => void;
  /** Does nobody else read the packed weight, so that its memory may become the new tensor's? Default: no. */
  readonly owns?: (packed: PackedTensor) => boolean;
}

/** What became of a layer. */
export interface Written {
  /**
   * The nodes that replace the layer's node, ending in the same output names; null: the node stays, its weight input
   * was rewired.
   */
  readonly nodes: NodeProto[] | null;
  /** Name of the new tensor of codes: layers that read the same one share it. */
  readonly codes: string;
  /** Bytes of codes, scales and zero points. */
  readonly bytes: number;
}

export interface Target {
  readonly name: TargetName;
  /** Operators that it can write. */
  readonly opTypes: readonly string[];
  /** Those of them that are quantized unless options name others. */
  readonly defaultOpTypes: readonly string[];
  /**
   * The format that holds the layer's weight where `format` is asked for: a target may need scales of the layer's own
   * type.
   */
  adapt?(layer: Layer, format: Format): Format;
  /** Why a layer of one of `opTypes` cannot be held in that format; undefined: it can. */
  reason(layer: Layer, format: Format, context: TargetContext): string | undefined;
  /** Why a layer that could be held is better left alone: it stays unless options name it, its operator or a format. */
  advice?(layer: Layer, context: TargetContext): string | undefined;
  /** Called once before the first `write`, with the layers to come; may give a reason for some to stay after all. */
  prepare?(layers: readonly Layer[], context: TargetContext): ((layer: Layer) => string | undefined) | undefined;
  /**
   * Does it hold the format at its own width? Where it does not, it is taken only when asked for by name. Default true.
   */
  isNative?(layer: Layer, format: Format): boolean;
  /** Must the weight be quantized as one row of all its values, blocks going on from row to row? */
  isFlat?(layer: Layer, format: Format): boolean;
  write(layer: Layer, weight: PackedTensor, context: TargetContext): Written;
  /** Called once after the last `write`. */
  finish?(context: TargetContext): void;
}

/** Bytes of tensors that a target made. */
export const madeBytes = (tensors: readonly TensorProto[]): number => tensors.reduce((total, tensor) => total + tensorBytes(tensor), 0);

/** Tensors made for a packed weight, once: layers that share a weight share them. */
export function perWeight<T>(): (weight: PackedTensor, make: () => T) => T {
  const made = new WeakMap<PackedTensor, T>();
  return (weight, make) => {
    let value = made.get(weight);
    if (value === undefined) made.set(weight, (value = make()));
    return value;
  };
}

/** The layers of operators of one type by their node, where the weights of a node go together. */
export function layersByNode(layers: readonly Layer[], opType: string): ReadonlyMap<NodeProto, readonly Layer[]> {
  const byNode = new Map<NodeProto, Layer[]>();
  for (const layer of layers) if (layer.node.opType === opType) byNode.set(layer.node, [...(byNode.get(layer.node) ?? []), layer]);
  return byNode;
}

/** Gathers what was made for the weights of a node, which is written with the last of them: all so far, by input. */
export function perNode<T>(): (layer: Layer, part: T) => ReadonlyMap<number, T> {
  const parts = new Map<NodeProto, Map<number, T>>();
  return ({ node, input }, part) => {
    const own = parts.get(node) ?? new Map<number, T>();
    parts.set(node, own.set(input, part));
    return own;
  };
}
