// Which nodes of a model have a weight: the layers that quantizers, passes and reports speak of.
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { isFloatType, tensorBytes } from "./file/values.ts";
import type { ConstantView, Scope } from "./graph/graph.ts";
import { constantResolver, isDefaultDomain, leadsFromConstants, nodeName, operatorName } from "./graph/graph.ts";

/** A node with a weight, or one that could have one (a MatMul of two computed values). */
export interface Layer {
  readonly scope: Scope;
  readonly node: NodeProto;
  readonly name: string;
  /** Which input is the weight; -1 where none is constant. */
  readonly input: number;
  readonly weight: ConstantView | null;
  /** Of the weight as the node reads it. */
  readonly shape: readonly number[];
  /** Of the tensor that is stored. */
  readonly bytes: number;
}

/** Inputs of com.microsoft.MoE that are weights of experts, each [experts, outputs, inputs]. */
export const EXPERT_WEIGHTS: readonly (readonly [input: number, name: string])[] = [
  [2, "fc1"],
  [4, "fc2"],
  [6, "fc3"],
];

/**
 * Inputs that are weights, by operator; the first constant one counts. Every other operator: any large constant of two
 * or more dimensions.
 */
const WEIGHT_INPUT: ReadonlyMap<string, readonly number[]> = new Map([
  ["MatMul", [1, 0]],
  ["Gemm", [1, 0]],
  ["Conv", [1]],
  ["ConvTranspose", [1]],
  ["Gather", [0]],
]);
/** Operators with several weights, each a layer: names of the inputs as ONNX has them. */
const WEIGHT_INPUTS: ReadonlyMap<string, readonly (readonly [input: number, name: string])[]> = new Map([
  ...["LSTM", "GRU", "RNN"].map((type) => [type, [[1, "W"] as const, [2, "R"] as const]] as const),
  ["com.microsoft.MoE", EXPERT_WEIGHTS],
]);
/** Operators whose layer is reported even without a constant weight. */
const ALWAYS: ReadonlySet<string> = new Set(["MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"]);
const LARGE = 1024;

/**
 * Matrices of rotations that the passes put into a graph bear names like this; they are no weights, and are not
 * quantized.
 */
export const ROTATION_NAME = "lowbit.rotation/";

/** The layers of a model, in order of its graphs and nodes. */
export function findLayers(scopes: readonly Scope[], model: OnnxModel): Layer[] {
  const resolve = constantResolver(model);
  const layers: Layer[] = [];
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      if (node.opType === "Constant" || (leadsFromConstants(node) && resolve(scope, node.output[0] ?? "") !== null)) continue;
      const standard = isDefaultDomain(node);
      const several = WEIGHT_INPUTS.get(standard ? node.opType : operatorName(node));
      const known = standard ? WEIGHT_INPUT.get(node.opType) : undefined;
      const add = (input: number, weight: ConstantView | null, name: string): void => {
        const bytes = weight === null ? 0 : tensorBytes(weight.tensor);
        layers.push({ scope, node, name, input, weight, shape: weight?.shape ?? [], bytes });
      };
      const before = layers.length;
      const inputs = several?.map(([input]) => input) ?? known ?? [...node.input.keys()];
      for (const input of inputs) {
        const weight = resolve(scope, node.input[input] ?? "");
        if (weight === null || !isFloatType(weight.dataType) || weight.name.startsWith(ROTATION_NAME)) continue;
        const { shape } = weight;
        if (known === undefined && (shape.length < 2 || shape.reduce((a, b) => a * b, 1) < LARGE)) continue;
        if (node.opType === "Gather" && shape.length < 2) continue;
        const part = several?.find(([index]) => index === input);
        add(input, weight, part === undefined ? nodeName(node) : `${nodeName(node)}.${part[1]}`);
        if (several === undefined) break;
      }
      if (layers.length === before && standard && ALWAYS.has(node.opType)) add(-1, null, nodeName(node));
    }
  }
  return layers;
}

/**
 * Operators that move values around: a constant they read is a table, or a weight that is cut or put together at run
 * time.
 */
const MOVES: ReadonlySet<string> = new Set("Slice Concat Split Transpose Reshape Expand Squeeze Unsqueeze Pad Tile Flatten".split(" "));

/** Why a layer of an operator that the mode does not know stays. */
export const unknownReason = (layer: Layer, dtype: string): string => {
  const { opType } = layer.node;
  if (MOVES.has(opType)) return `${opType} moves the constant, it does not multiply by it`;
  if (opType === "MoE") return `${dtype} has no form of MoE: q4 and q8-block make QMoE of it, the target stored keeps the operator`;
  if (opType === "QMoE") return "the experts of QMoE are quantized already";
  return `${dtype} has no form of ${opType}`;
};
