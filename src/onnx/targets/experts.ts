// Mixtures of experts with weights in blocks: com.microsoft.MoE as com.microsoft.QMoE. The two or three weights of a
// node are layers that go together, in codes of as many bits and blocks of one size. Layout: codes [experts, outputs,
// inputs * bits / 8], scales [experts, outputs, inputs / block], zero points packed likewise; without them codes count
// from the middle. `weights_prepacked` is not written: runtimes before 1.30 refuse it.
// Source: onnxruntime docs/ContribOperators.md.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { dataTypeName } from "../file/types.ts";
import { attributeInt, intAttribute, makeNode, type Scope } from "../graph/graph.ts";
import { EXPERT_WEIGHTS, type Layer } from "../layers.ts";
import { layerType } from "../weights.ts";
import { basisOf } from "./basis.ts";
import { importMicrosoft, MICROSOFT } from "./domain.ts";
import { nbitsOperands, nbitsPlan, type NBitsOperands } from "./nbits.ts";
import { layersByNode, madeBytes, perNode, perWeight, type TargetContext, type Written } from "./target.ts";

interface Part {
  readonly codes: string;
  readonly scales: string;
  readonly zeroPoints: string;
  readonly bytes: number;
  readonly operands: Pick<NBitsOperands, "bits" | "blockSize">;
}

/** Size of the last axis of a value where the file says it. */
function lastSize(scope: Scope, name: string): number | undefined {
  const value = [...scope.graph.input, ...scope.graph.valueInfo, ...scope.graph.output].find((one) => one.name === name);
  const type = value?.type?.value;
  const dim = type?.case === "tensorType" ? type.value.shape?.dim.at(-1)?.value : undefined;
  return dim?.case === "dimValue" ? Number(dim.value) : undefined;
}

/**
 * Before onnxruntime 1.23 the weights were [experts, inputs, outputs]: the shapes of the activations and of the biases
 * tell.
 */
function isTurned({ node, scope, input, shape }: Layer): boolean {
  const bias = scope.initializers.get(node.input[input + 1] ?? "")?.dims;
  const hidden = lastSize(scope, node.input[0]) ?? lastSize(scope, node.output[0]);
  if (input !== 4 && hidden !== undefined && hidden !== shape[2]) return true;
  if (input === 4 && hidden !== undefined && hidden !== shape[1]) return true;
  return bias?.length === 2 && Number(bias[1]) !== shape[1];
}

/** Why a weight of MoE cannot be held in codes of blocks; undefined where it can. */
export function expertsReason(
  layer: Layer,
  { bits, blockSize }: { bits: number; blockSize: number },
  zeroPoints: boolean,
): string | undefined {
  const { shape } = layer;
  if (shape.length !== 3) return `the weight has ${shape.length} dimensions, not 3`;
  const type = layerType(layer);
  if (type !== T.FLOAT && type !== T.FLOAT16) return `QMoE computes in float32 and float16, not ${dataTypeName(type)}`;
  if (isTurned(layer)) return "its weights are [experts, inputs, outputs], as onnxruntime had them before 1.23; export it again";
  const whole = zeroPoints ? (blockSize * 8) / bits : blockSize;
  if (shape[2] % whole === 0) return undefined;
  return `QMoE takes rows of whole blocks: ${shape[2]} is no multiple of ${whole}${zeroPoints ? ` (${blockSize}, and zero points in whole bytes)` : ""}`;
}

export interface ExpertsWriter {
  prepare(layers: readonly Layer[], context: TargetContext): ((layer: Layer) => string | undefined) | undefined;
  write(layer: Layer, packed: PackedTensor, context: TargetContext): Written;
}

/**
 * Without `normalize_routing_weights` MoE weighs the experts of a token by their shares of all, QMoE by those of the
 * chosen ones, unless it is given weights: Softmax of the router's values. null where both mean the same.
 */
function sharesOfAll(node: NodeProto, { names }: TargetContext): NodeProto | null {
  if (attributeInt(node, "normalize_routing_weights", 0) === 1) return null;
  const name = names.take(`${node.name || node.output[0]}_router_weights`);
  return makeNode("Softmax", [node.input[1]], [name], { name });
}

/** Weights that a node has, by input. */
const weightsOf = (node: NodeProto): number[] => EXPERT_WEIGHTS.map(([input]) => input).filter((input) => (node.input[input] ?? "") !== "");

export function expertsWriter(): ExpertsWriter {
  const once = perWeight<Part>();
  const gather = perNode<Part>();

  function store(layer: Layer, packed: PackedTensor, context: TargetContext): Part {
    const { model, names } = context;
    const { name, scope } = layer.weight!;
    const [experts, rows, k] = layer.shape;
    if (basisOf(packed) !== null)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `layer ${layer.name}: expected an algorithm that keeps the basis of the experts' inputs, got ${packed.recipe.algorithm}. Take gptq, or the target stored.`,
      );
    const operands = nbitsOperands(packed, layerType(layer) === T.FLOAT16, context.owns?.(packed));
    const { bits, blocks, codes, scales, zeroPoints, half } = operands;
    const tensors = [
      makeTensor(model, names.take(`${name}_Q${bits}`), T.UINT8, [experts, rows, (k * bits) / 8], codes),
      makeTensor(model, names.take(`${name}_scales`), half ? T.FLOAT16 : T.FLOAT, [experts, rows, blocks], scales),
    ];
    if (zeroPoints !== null)
      tensors.push(makeTensor(model, names.take(`${name}_zero_points`), T.UINT8, [experts, rows, (blocks * bits) / 8], zeroPoints));
    scope.graph.initializer.push(...tensors);
    const [first, second, third] = tensors;
    return { codes: first.name, scales: second.name, zeroPoints: third?.name ?? "", bytes: madeBytes(tensors), operands };
  }

  return {
    prepare(layers, { formatOf }) {
      const byNode = layersByNode(layers, "MoE");
      if (byNode.size === 0) return undefined;
      const formOf = (layer: Layer): string => {
        const format = formatOf(layer);
        const plan = nbitsPlan(format, layer.shape[2]);
        return typeof plan === "string" ? plan : `${plan.bits} ${plan.blockSize}`;
      };
      return ({ node }) => {
        const own = byNode.get(node);
        if (own === undefined) return undefined;
        if (own.length < weightsOf(node).length) return "QMoE has all weights of its experts in codes, and another one stays";
        return own.every((layer) => formOf(layer) === formOf(own[0]))
          ? undefined
          : "QMoE has one number of bits and one block size for all weights";
      };
    },
    write(layer, packed, context) {
      const { node } = layer;
      const part = once(packed, () => store(layer, packed, context));
      const own = gather(layer, part);
      const written = { codes: part.codes, bytes: part.bytes };
      if (weightsOf(node).some((one) => !own.has(one))) return { nodes: null, ...written };
      importMicrosoft(context.model);
      const shares = sharesOfAll(node, context);
      const weights = EXPERT_WEIGHTS.map(([at]) => [own.get(at), node.input[at + 1] ?? ""] as const);
      const inputs = [
        ...node.input.slice(0, 2),
        ...weights.flatMap(([of, bias]) => [of?.codes ?? "", of?.scales ?? "", bias]),
        // behind all of them
        ...weights.map(([of]) => of?.zeroPoints ?? ""),
        shares?.output[0] ?? "",
      ];
      while (inputs.at(-1) === "") inputs.pop();
      const { bits, blockSize } = part.operands;
      const quantized = makeNode("QMoE", inputs, [...node.output], {
        name: context.names.take(`${node.name || node.output[0]}_Q${bits}`),
        domain: MICROSOFT,
        attributes: [...node.attribute, intAttribute("expert_weight_bits", bits), intAttribute("block_size", blockSize)],
      });
      return { nodes: shares === null ? [quantized] : [shares, quantized], ...written };
    },
  };
}
