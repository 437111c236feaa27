// Known traps of runtimes: files that load and are wrong, or slow, in one of them. A row says where (runtime, versions
// seen), when (a condition on the graph) and what to do. Found by running files in the runtimes, or in their public bug
// reports; a version is the last one in which it was seen.
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { elementCount } from "../file/values.ts";
import { attributeGraphs, allTensors } from "../file/model.ts";
import { attributeInt } from "../graph/graph.ts";

/** Where a trap is. */
export type TrapRuntime = "onnxruntime-node" | "onnxruntime-web wasm" | "onnxruntime-web webgpu" | "onnxruntime-web webgpu (JSEP)";

/** What the conditions look at, gathered in one walk. */
interface Traits {
  /** Nodes by operator, subgraphs and functions included. */
  readonly nodes: ReadonlyMap<string, readonly NodeProto[]>;
  readonly types: ReadonlySet<number>;
  /** Elements of every initializer, by name. */
  readonly constants: ReadonlyMap<string, number>;
  /** Names of initializers of one dimension. */
  readonly vectors: ReadonlySet<string>;
  /** Values that DequantizeLinear makes, and those that QuantizeLinear reads. */
  readonly dequantized: ReadonlySet<string>;
  readonly quantized: ReadonlySet<string>;
}

interface TrapRow {
  readonly id: string;
  readonly runtime: TrapRuntime;
  /** The versions in which it was seen. */
  readonly versions: string;
  readonly effect: "wrong" | "does not load" | "slow" | "less accurate";
  readonly when: (traits: Traits) => boolean;
  readonly text: string;
}

/** A trap that a model is in. */
export interface RuntimeTrap {
  readonly id: string;
  readonly runtime: TrapRuntime;
  readonly versions: string;
  readonly effect: TrapRow["effect"];
  /** What happens and what to do. */
  readonly text: string;
}

const has = (traits: Traits, ...types: string[]): boolean => types.some((type) => traits.nodes.has(type));
const some = (traits: Traits, type: string, test: (node: NodeProto) => boolean): boolean => traits.nodes.get(type)?.some(test) ?? false;

export const RUNTIME_TRAPS: readonly TrapRow[] = [
  {
    id: "jsep-dynamic-int8",
    runtime: "onnxruntime-web webgpu (JSEP)",
    versions: "to 1.30",
    effect: "wrong",
    when: (t) => has(t, "DynamicQuantizeLinear") && has(t, "MatMulInteger", "ConvInteger"),
    text: "dynamic 8-bit products gave other numbers than on the CPU in the build ort.all (Cast of the int32 sums): check with --runtimes webgpu, or ship q4, q4f16 or fp16 for WebGPU.",
  },
  {
    id: "jsep-dequantize-8",
    runtime: "onnxruntime-web webgpu (JSEP)",
    versions: "to 1.30",
    effect: "wrong",
    when: (t) => some(t, "DequantizeLinear", (node) => !t.constants.has(node.input[0]) && (t.constants.get(node.input[1]) ?? 1) === 1),
    text: "DequantizeLinear of computed 8-bit values with one scale reads some of them again and again, and wraps below the zero point, in the build ort.all: static activations and embeddings with one scale for the table (perChannel: false). Use the build ort.webgpu, or ship q4, q4f16 or fp16 for it.",
  },
  {
    id: "jsep-nbits-8",
    runtime: "onnxruntime-web webgpu (JSEP)",
    versions: "to 1.30",
    effect: "does not load",
    when: (t) => some(t, "MatMulNBits", (node) => attributeInt(node, "bits", 4) === 8),
    text: "8-bit MatMulNBits has no kernel in the build ort.all (the build ort.webgpu runs it): ship q4, q4f16 or fp16 for it.",
  },
  {
    id: "webgpu-dequantize-1d",
    runtime: "onnxruntime-web webgpu",
    versions: "1.30 to 1.31-dev",
    effect: "wrong",
    when: (t) => some(t, "DequantizeLinear", (node) => attributeInt(node, "block_size", 0) > 0 && t.vectors.has(node.input[1])),
    text: "DequantizeLinear of a vector with block_size takes a scale per element: give the tensor two dimensions.",
  },
  {
    id: "int8-without-vnni",
    runtime: "onnxruntime-node",
    versions: "all, on x86 without VNNI",
    effect: "less accurate",
    when: (t) =>
      t.types.has(T.INT8) &&
      has(t, "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DequantizeLinear", "DynamicQuantizeMatMul"),
    text: "int8 weights near +-127 saturate in the 16-bit sums of x86 processors without VNNI (before 2019, and much of the cloud): use uint8 weights, or a reduced range, for those.",
  },
  {
    id: "softmax-between-pairs",
    runtime: "onnxruntime-node",
    versions: "to 1.30",
    effect: "wrong",
    when: (t) =>
      has(t, "QLinearSoftmax") || some(t, "Softmax", (node) => t.dequantized.has(node.input[0]) && t.quantized.has(node.output[0])),
    text: "Softmax between pairs becomes QLinearSoftmax, whose sums overflow where a probability passes some 148 codes for each element of its axis: 0 for rows of one element, as the first token of a decoder has. Let it read floats: keep it out of opTypes.",
  },
  {
    id: "nbits-wasm-slow",
    runtime: "onnxruntime-web wasm",
    versions: "to 1.31-dev",
    effect: "slow",
    when: (t) => has(t, "MatMulNBits"),
    text: "MatMulNBits is slower than float32 in WebAssembly (0.04 of its speed at one row, 0.8 at 128): q8 is the fast dtype there.",
  },
  {
    id: "nbits-no-accuracy-level",
    runtime: "onnxruntime-node",
    versions: "to 1.30",
    effect: "slow",
    when: (t) =>
      some(t, "MatMulNBits", (node) => [2, 8].includes(attributeInt(node, "bits", 4)) && attributeInt(node, "accuracy_level", 0) !== 4),
    text: "2- and 8-bit MatMulNBits without accuracy_level 4 run at 0.08 to 0.14 of float32's speed on the CPU: write them with --accuracy-level 4.",
  },
  {
    id: "nbits-bits",
    runtime: "onnxruntime-node",
    versions: "to 1.30",
    effect: "does not load",
    when: (t) => some(t, "MatMulNBits", (node) => ![2, 4, 8].includes(attributeInt(node, "bits", 4))),
    text: "MatMulNBits takes 2, 4 or 8 bits only.",
  },
  {
    id: "nbits-g-idx",
    runtime: "onnxruntime-node",
    versions: "to 1.30",
    effect: "wrong",
    when: (t) =>
      some(
        t,
        "MatMulNBits",
        (node) => (node.input[4] ?? "") !== "" && (attributeInt(node, "bits", 4) !== 4 || (node.input[3] ?? "") !== ""),
      ),
    text: "MatMulNBits with g_idx ignores zero points (4 bit) or computes something else (2 bit): permute K instead.",
  },
  {
    id: "fp8-activations",
    runtime: "onnxruntime-node",
    versions: "to 1.30",
    effect: "does not load",
    when: (t) => [...FP8].some((type) => t.types.has(type)) && has(t, "QuantizeLinear"),
    text: "FP8 activations (QuantizeLinear to FP8) do not load at the default optimisation level: set session.disable_quant_qdq to 1, or keep activations float.",
  },
  {
    id: "fp4",
    runtime: "onnxruntime-node",
    versions: "to 1.30",
    effect: "does not load",
    when: (t) => t.types.has(T.FLOAT4E2M1),
    text: "FLOAT4E2M1 has no kernel on CPU and WebAssembly: store the codes as uint4 with a lookup.",
  },
  {
    id: "float16-range",
    runtime: "onnxruntime-web webgpu",
    versions: "all",
    effect: "wrong",
    when: (t) => t.types.has(T.FLOAT16),
    text: "float16 values end at 65504 on a GPU; the CPU computes many float16 operators in float32, so a check there does not see an overflow (verify looks at the float32 model's range).",
  },
];

const FP8: ReadonlySet<number> = new Set([T.FLOAT8E4M3FN, T.FLOAT8E5M2, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2FNUZ]);

/**
 * The known traps that a model is in, in the order of the table. Reads the graph only, no weights.
 * @example runtimeTraps(model).map(({ text }) => text) // []: no known trap in it
 */
export function runtimeTraps(model: OnnxModel): RuntimeTrap[] {
  const traits = traitsOf(model);
  return RUNTIME_TRAPS.filter((row) => row.when(traits)).map(({ id, runtime, versions, effect, text }) => ({
    id,
    runtime,
    versions,
    effect,
    text,
  }));
}

function traitsOf({ proto }: OnnxModel): Traits {
  const nodes = new Map<string, NodeProto[]>();
  const types = new Set<number>();
  const constants = new Map<string, number>();
  const vectors = new Set<string>();
  const stack: NodeProto[][] = [proto.graph?.node ?? [], ...proto.functions.map((own) => own.node)];
  for (let list = stack.pop(); list !== undefined; list = stack.pop())
    for (const node of list) {
      const known = nodes.get(node.opType);
      if (known === undefined) nodes.set(node.opType, [node]);
      else known.push(node);
      if (node.opType === "Cast") types.add(attributeInt(node, "to", 0));
      for (const attribute of node.attribute) for (const graph of attributeGraphs(attribute)) stack.push(graph.node);
    }
  for (const tensor of allTensors(proto)) {
    types.add(tensor.dataType);
    if (tensor.name === "") continue;
    constants.set(tensor.name, elementCount(tensor));
    if (tensor.dims.length === 1) vectors.add(tensor.name);
  }
  const dequantized = new Set((nodes.get("DequantizeLinear") ?? []).map((node) => node.output[0]));
  const quantized = new Set((nodes.get("QuantizeLinear") ?? []).map((node) => node.input[0]));
  return { nodes, types, constants, vectors, dequantized, quantized };
}
