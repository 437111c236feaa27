// Which nodes of a model have a weight: the layers that quantizers, passes and reports speak of.
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { isFloatType, tensorBytes } from "./file/values.ts";
import type { ConstantView, Scope } from "./graph/graph.ts";
import { attributeInt, constantResolver, isDefaultDomain, leadsFromConstants, nodeName, operatorName } from "./graph/graph.ts";

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
      // one that makes no value is damaged: no runtime loads it
      if (node.output.every((name) => name === "")) continue;
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
        const part = several?.find(([index]) => index === input);
        const name = part === undefined ? nodeName(node) : `${nodeName(node)}.${part[1]}`;
        if (weight === null && part !== undefined && (node.input[input] ?? "") !== "") add(input, null, name);
        if (weight === null || !isFloatType(weight.dataType) || weight.name.startsWith(ROTATION_NAME)) continue;
        const { shape } = weight;
        if (known === undefined && several === undefined && (shape.length < 2 || shape.reduce((a, b) => a * b, 1) < LARGE)) continue;
        if (node.opType === "Gather" && shape.length < 2) continue;
        add(input, weight, name);
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

const RECURRENT: ReadonlySet<string> = new Set(["LSTM", "GRU", "RNN"]);

/** Does a Gather take rows of its table: axis 0, counted from either end? */
export const gathersRows = ({ node, shape }: Pick<Layer, "node" | "shape">): boolean =>
  [0, -shape.length].includes(attributeInt(node, "axis", 0));

/**
 * Why a layer has no constant weight: by the node that makes it, where constants alone go in; tools that fold constants
 * leave no such nodes.
 */
export function computedReason({ scope, node, name }: Layer): string {
  const [at] = WEIGHT_INPUTS.get(node.opType)?.find(([, part]) => name.endsWith(`.${part}`)) ?? [1];
  const maker = scope.producers.get(node.input[at] ?? "");
  if (maker === undefined) return "the weight is not constant";
  const resolvable = maker.input.every(
    (name) => name === "" || scope.initializers.has(name) || scope.producers.get(name)?.opType === "Constant",
  );
  return resolvable && maker.input.length > 0
    ? `the weight is put together by ${maker.opType} (${nodeName(maker)}) when the model runs; fold constants first, e.g. by onnxslim or an optimized model of onnxruntime`
    : `the weight is not constant: ${maker.opType} (${nodeName(maker)}) computes it`;
}

/** Why a layer of an operator that the mode does not know stays. */
export const unknownReason = (layer: Layer, dtype: string): string => {
  const { opType } = layer.node;
  if (MOVES.has(opType)) return `${opType} moves the constant, it does not multiply by it`;
  if (opType === "MoE") return `${dtype} has no form of MoE: q4 and q8-block make QMoE of it, the target stored keeps the operator`;
  if (RECURRENT.has(opType)) return `${dtype} has no form of ${opType}: the target stored holds its weights, e.g. in int8_row`;
  if (opType === "QMoE") return "the experts of QMoE are quantized already";
  return `${dtype} has no form of ${opType}`;
};
