// What the experts of com.microsoft.MoE multiply: no value of the graph, so nodes that compute it are put beside those
// of the model while it is calibrated. Each expert sees the tokens that the router sends to it, times its share in
// their outputs: for fc1 x, for fc2 what the activation makes of fc1; all others are zero vectors. Values are
// [experts, tokens, inputs]. Not here: fc3, swiglu in halves and the sparse mixer, which onnxruntime's CPU does not
// run.
// Source: onnxruntime docs/ContribOperators.md.
import { create } from "@bufbuild/protobuf";
import { ModelProtoSchema, TensorProto_DataType as T, type NodeProto, type TensorProto } from "../file/gen/onnx_pb.ts";
import { encodeHalf } from "../file/half.ts";
import { makeTensor, type OnnxModel } from "../file/model.ts";
import {
  attributeFloat,
  attributeInt,
  attributeOf,
  intAttribute,
  intsAttribute,
  makeNode,
  operatorName,
  type NodeInit,
} from "../graph/graph.ts";
import type { Layer } from "../layers.ts";

/** Whether a layer is a weight of experts. */
export const isExperts = ({ node }: Layer): boolean => operatorName(node) === "com.microsoft.MoE";

const [FC1, FC2] = [2, 4];

/** The value that a weight of experts multiplies, by a name that the model cannot have. */
export const expertsInput = ({ node, input }: Pick<Layer, "node" | "input">): string =>
  `${node.output[0]}/lowbit.experts/${input === FC2 ? "fc2" : "fc1"}`;

const activationName = (node: NodeProto): string => new TextDecoder().decode(attributeOf(node, "activation_type")?.s) || "relu";

const ACTIVATIONS = ["relu", "gelu", "silu", "identity", "swiglu"];

/** Why calibration cannot see what the experts of a node read; undefined where it can. */
export function expertsObstacle({ node, shape }: Layer): string | undefined {
  const activation = activationName(node);
  if (shape.length !== 3) return `weights of experts of ${shape.length} dimensions are unknown to calibration`;
  if ((node.input[6] ?? "") !== "") return "calibration does not know mixtures of experts with fc3";
  if (attributeInt(node, "use_sparse_mixer", 0) !== 0) return "calibration does not know the sparse mixer of experts";
  if (!ACTIVATIONS.includes(activation)) return `calibration does not know experts with ${activation}`;
  if (activation === "swiglu" && attributeInt(node, "swiglu_fusion", 0) !== 1)
    return "calibration knows experts with swiglu in turns only (swiglu_fusion 1)";
  return undefined;
}

/** Why a layer cannot be calibrated on the model quantized so far: there the router may send tokens elsewhere. */
export const sequentialReason = (layer: Layer): string | undefined =>
  isExperts(layer) ? "experts are calibrated on the float model only, not in sequence" : undefined;

/** Writes nodes one after the other; every value has a name below `base`. */
function writer(model: OnnxModel, base: string, half: boolean) {
  const nodes: NodeProto[] = [];
  const tensors: TensorProto[] = [];
  const name = (): string => `${base}/${nodes.length + tensors.length}`;
  const tensor = (type: number, dims: readonly number[], data: BigInt64Array | Float32Array | Uint16Array): string => {
    const made = makeTensor(model, name(), type, dims, new Uint8Array(data.buffer as ArrayBuffer));
    tensors.push(made);
    return made.name;
  };
  return {
    nodes,
    tensors,
    op(type: string, input: readonly string[], attributes: NodeInit["attributes"] = [], output = name()): string {
      nodes.push(makeNode(type, input, [output], { name: output, attributes }));
      return output;
    },
    ints: (values: readonly number[], dims = [values.length]): string => tensor(T.INT64, dims, BigInt64Array.from(values, BigInt)),
    floats: (values: readonly number[], dims: readonly number[]): string => tensor(T.FLOAT, dims, Float32Array.from(values)),
    /** A number in the type of the activations. */
    scalar: (value: number): string =>
      half ? tensor(T.FLOAT16, [], Uint16Array.of(encodeHalf(value))) : tensor(T.FLOAT, [], Float32Array.of(value)),
  };
}

type Writer = ReturnType<typeof writer>;

/** Share of every expert in the output of every token, [experts, tokens, 1]: 0 where the router chose others. */
function shares({ op, ints, floats, nodes }: Writer, node: NodeProto, experts: number, half: boolean): string {
  const chosen = attributeInt(node, "k", 1);
  const router = op("Cast", [node.input[1]], [intAttribute("to", T.FLOAT)]);
  const logits = op("Reshape", [router, ints([-1, experts])]);
  const probabilities = op("Softmax", [logits], [intAttribute("axis", 1)]);
  const indices = `${router}/indices`;
  nodes.push(makeNode("TopK", [logits, ints([chosen])], [`${router}/top`, indices], { name: `${router}/topk` }));
  const each = op("OneHot", [indices, ints([experts], []), floats([0, 1], [2])], [intAttribute("axis", 1)]);
  const ones = (n: number): string => floats(Array<number>(n).fill(1), [n, 1]);
  const mask = op("Reshape", [op("MatMul", [each, ones(chosen)]), ints([-1, experts])]);
  let share = op("Mul", [probabilities, mask]);
  if (attributeInt(node, "normalize_routing_weights", 0) === 1) share = op("Div", [share, op("MatMul", [share, ones(experts)])]);
  const turned = op("Reshape", [op("Transpose", [share]), ints([experts, -1, 1])]);
  return half ? op("Cast", [turned], [intAttribute("to", T.FLOAT16)]) : turned;
}

/** The activation between fc1 and fc2, over [experts, tokens, outputs of fc1]. */
function activate({ op, ints, scalar }: Writer, node: NodeProto, x: string, [experts, outputs]: readonly [number, number]): string {
  const times = (value: string, factor: number): string => op("Mul", [value, scalar(factor)]);
  const gated = (value: string, slope = 1): string => op("Mul", [value, op("Sigmoid", [slope === 1 ? value : times(value, slope)])]);
  switch (activationName(node)) {
    case "relu":
      return op("Relu", [x]);
    case "silu":
      return gated(x);
    case "gelu": {
      // the form with tanh, as a sigmoid
      const cubed = times(op("Mul", [x, op("Mul", [x, x])]), 0.044715);
      return op("Mul", [x, op("Sigmoid", [times(op("Add", [x, cubed]), 2 * Math.sqrt(2 / Math.PI))])]);
    }
    case "swiglu": {
      const pairs = op("Reshape", [x, ints([experts, -1, outputs / 2, 2])]);
      const of = (which: number): string => op("Gather", [pairs, ints([which], [])], [intAttribute("axis", 3)]);
      const limit = attributeOf(node, "swiglu_limit")?.f;
      const below = (value: string): string => (limit === undefined ? value : op("Min", [value, scalar(limit)]));
      const within = (value: string): string => (limit === undefined ? value : op("Max", [below(value), scalar(-limit)]));
      const gate = gated(below(of(0)), attributeFloat(node, "activation_alpha", 1));
      const beta = attributeFloat(node, "activation_beta", 0);
      const linear = within(of(1));
      return op("Mul", [gate, beta === 0 ? linear : op("Add", [linear, scalar(beta)])]);
    }
    default:
      return x;
  }
}

/** Nodes and constants that compute the inputs of the experts' weights of one node. */
function tapNode(model: OnnxModel, { node, input, shape, weight }: Layer): Writer {
  const half = weight!.dataType === T.FLOAT16;
  const to = writer(model, `${node.output[0]}/lowbit.experts`, half);
  const { op, ints } = to;
  const [experts, rows, k] = shape;
  const outputs = activationName(node) === "swiglu" ? 2 * k : k;
  const [hidden, inner] = input === FC2 ? [rows, outputs] : [k, rows];
  const share = shares(to, node, experts, half);
  const x = op("Reshape", [node.input[0], ints([1, -1, hidden])]);
  op("Mul", [x, share], [], expertsInput({ node, input: FC1 }));
  const product = op("MatMul", [x, op("Transpose", [node.input[FC1]], [intsAttribute("perm", [0, 2, 1])])]);
  const bias = node.input[FC1 + 1] ?? "";
  const sum = bias === "" ? product : op("Add", [product, op("Reshape", [bias, ints([experts, 1, inner])])]);
  op("Mul", [activate(to, node, sum, [experts, inner]), share], [], expertsInput({ node, input: FC2 }));
  return to;
}

/** The model with the values that weights of experts among these layers multiply; the model itself without such. */
export function withExperts(model: OnnxModel, layers: readonly Layer[]): OnnxModel {
  const byNode = new Map(layers.filter(isExperts).map((layer) => [layer.node, layer]));
  if (byNode.size === 0) return model;
  const made = [...byNode.values()].map((layer) => tapNode(model, layer));
  const graph = model.proto.graph!;
  const node = [...graph.node, ...made.flatMap(({ nodes }) => nodes)];
  const initializer = [...graph.initializer, ...made.flatMap(({ tensors }) => tensors)];
  return { ...model, proto: create(ModelProtoSchema, { ...model.proto, graph: { ...graph, node, initializer } }) };
}
