// Which nodes of a model have a weight: the layers that quantizers, passes and reports speak of.
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import { tensorDims } from "./file/model.ts";
import { isFloatType, tensorBytes } from "./file/values.ts";
import type { Constant, Scope } from "./graph/graph.ts";
import { isDefaultDomain, nodeName, resolveConstant } from "./graph/graph.ts";

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

/** Inputs that are weights, by operator; every other operator: any large constant of two or more dimensions. */
const WEIGHT_INPUT: ReadonlyMap<string, readonly number[]> = new Map(
  Object.entries({
    MatMul: [1, 0],
    Gemm: [1, 0],
    Conv: [1],
    ConvTranspose: [1],
    Gather: [0],
  }),
);
/** Operators whose layer is reported even without a constant weight. */
const ALWAYS: ReadonlySet<string> = new Set(["MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"]);
const LARGE = 1024;

/** The layers of a model, in order of its graphs and nodes. */
export function findLayers(scopes: readonly Scope[]): Layer[] {
  const layers: Layer[] = [];
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      if (node.opType === "Constant" || node.opType === "Identity") continue;
      const known = isDefaultDomain(node) ? WEIGHT_INPUT.get(node.opType) : undefined;
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

/** Operators that move values around: a constant they read is a table, or a weight that is cut or put together at run time. */
const MOVES: ReadonlySet<string> = new Set("Slice Concat Split Transpose Reshape Expand Squeeze Unsqueeze Pad Tile Flatten".split(" "));

/** Why a layer of an operator that the mode does not know stays. */
export const unknownReason = (layer: Layer, dtype: string): string =>
  MOVES.has(layer.node.opType)
    ? `${layer.node.opType} moves the constant, it does not multiply by it`
    : `${dtype} has no form of ${layer.node.opType}`;
