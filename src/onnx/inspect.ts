// inspectModel: what is in a model and what could be quantized, without changing or loading weights. Node only (it
// takes a path).
import type { Scope } from "./graph/graph.ts";
import { attributeOf, buildScopes, nodeName, operatorName, resolveConstant } from "./graph/graph.ts";
import { tensorElementType } from "./graph/infer.ts";
import { inputPaths, readModel } from "./file/io.ts";
import { fileSize } from "./file/files.ts";
import { findLayers, type Layer } from "./layers.ts";
import type { OnnxModel } from "./file/model.ts";
import { allTensors, tensorDims } from "./file/model.ts";
import type { NodeProto, ValueInfoProto } from "./file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import { dataTypeName } from "./file/types.ts";
import { defineFormat } from "../../formats/define/index.ts";
import { storedWeights, type StoredWeight } from "./targets/record.ts";
import { tensorBytes } from "./file/values.ts";

/** Element types of quantized weights. */
const NARROW: ReadonlySet<number> = new Set([
  T.INT8,
  T.UINT8,
  T.INT16,
  T.UINT16,
  T.INT4,
  T.UINT4,
  T.INT2,
  T.UINT2,
  T.FLOAT8E4M3FN,
  T.FLOAT8E4M3FNUZ,
  T.FLOAT8E5M2,
  T.FLOAT8E5M2FNUZ,
]);

/** A graph input or output: element type and dims (a name where symbolic, "?" where unknown). */
export interface ValueSummary {
  readonly name: string;
  readonly type: string;
  readonly dims: readonly (number | string)[];
}

/** One layer as `inspectModel` shows it. */
export interface LayerSummary {
  readonly name: string;
  readonly opType: string;
  /** "" where both operands are computed. */
  readonly weight: string;
  readonly dataType: string;
  /** Format of a weight that is quantized already: "int4_b32", "uint8"; "" for plain floats. */
  readonly format: string;
  /** As stored; of packed 4-bit and other sub-byte weights the matrix [K, N]. */
  readonly shape: readonly number[];
  /** Of a quantized weight with its scales and zero points, as far as they are inputs of the same node. */
  readonly bytes: number;
  /** The graph that holds the node: "" for the main one. */
  readonly graph: string;
}

/** A model as `inspectModel` shows it: files, opsets, inputs, outputs, layers. */
export interface ModelSummary {
  readonly fileBytes: number;
  /** The model file and its external data. */
  readonly files: readonly string[];
  readonly irVersion: number;
  readonly opsets: Readonly<Record<string, number>>;
  readonly producer: string;
  readonly inputs: readonly ValueSummary[];
  readonly outputs: readonly ValueSummary[];
  /** Nodes by operator (with its domain where it is not ONNX's), subgraphs included. */
  readonly operators: Readonly<Record<string, number>>;
  /** Bytes of tensors by element type. */
  readonly tensorBytes: Readonly<Record<string, number>>;
  readonly layers: readonly LayerSummary[];
}

function summarizeValue(value: ValueInfoProto): ValueSummary {
  const type = value.type?.value.case === "tensorType" ? value.type.value.value : undefined;
  const dims = (type?.shape?.dim ?? []).map((dim) =>
    dim.value.case === "dimValue" ? Number(dim.value.value) : dim.value.case === "dimParam" ? dim.value.value || "?" : "?",
  );
  return { name: value.name, type: dataTypeName(tensorElementType(value.type)), dims };
}

/** Inputs that hold a quantized weight, by operator (with its domain where it is not ONNX's). */
const QUANTIZED_INPUT: Readonly<Record<string, readonly number[]>> = {
  "com.microsoft.MatMulNBits": [1],
  "com.microsoft.MatMulBnb4": [1],
  "com.microsoft.GatherBlockQuantized": [0],
  "com.microsoft.DynamicQuantizeMatMul": [1],
  "com.microsoft.DynamicQuantizeLSTM": [1, 2],
  "com.microsoft.QMoE": [2, 5, 8],
  "com.microsoft.MatMulIntegerToFloat": [1],
  "com.microsoft.QGemm": [3],
  MatMulInteger: [1, 0],
  ConvInteger: [1],
  QLinearMatMul: [3, 0],
  QLinearConv: [3],
  DequantizeLinear: [0],
  Gather: [0],
};

function layersOf(scopes: readonly Scope[], model: OnnxModel): LayerSummary[] {
  // a recurrent node has two weights, one with experts three
  const plain = new Map<NodeProto, Layer[]>();
  for (const layer of findLayers(scopes, model)) plain.set(layer.node, [...(plain.get(layer.node) ?? []), layer]);
  const stored = storedFormats(model);
  const layers: LayerSummary[] = [];
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      const own = plain.get(node) ?? [];
      const quantized = own.some(({ weight }) => weight !== null) ? undefined : quantizedLayer(scope, node);
      if (quantized !== undefined) layers.push(quantized);
      // a table that nodes decode makes no layer of its Gather
      else if (own.length === 0 && node.opType === "Gather") layers.push(...storedLayer(scope, node, stored));
      else for (const layer of own) layers.push(...(isDecoder(layer, stored) ? [] : summaryOf(layer, stored)));
    }
  }
  return layers;
}

const plainLayer = ({ name, node, weight, shape, bytes, scope }: Layer): LayerSummary => ({
  name,
  opType: node.opType,
  weight: weight?.name ?? "",
  dataType: weight === null ? "" : dataTypeName(weight.tensor.dataType),
  format: "",
  shape,
  bytes,
  graph: scope.path,
});

/** What the target "stored" wrote down: weights by the value that they are decoded to, and the tables that decode. */
interface StoredFormats {
  readonly weights: ReadonlyMap<string, { readonly weight: StoredWeight; readonly bytes: number }>;
  readonly sources: ReadonlySet<string>;
}

function storedFormats(model: OnnxModel): StoredFormats {
  const sizes = new Map([...allTensors(model.proto)].map((tensor) => [tensor.name, tensorBytes(tensor)]));
  const weights = storedWeights(model);
  const partsOf = ({ codes, scales, superScales, offsets }: StoredWeight): string[] => [...codes, ...scales, ...superScales, ...offsets];
  return {
    weights: new Map(
      weights.map((weight) => [weight.value, { weight, bytes: partsOf(weight).reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0) }]),
    ),
    sources: new Set(weights.flatMap(partsOf)),
  };
}

/** Operators between a decoded weight and the node that multiplies by it. */
const VIEWS: ReadonlySet<string> = new Set(["Reshape", "Transpose", "Cast", "Mul"]);

/** Does the node look codes or scales up in a table? */
const isDecoder = ({ node: { opType, input } }: Layer, { sources }: StoredFormats): boolean =>
  opType === "Gather" && (input[0].startsWith("lowbit_") || sources.has(input[0]));

function summaryOf(layer: Layer, stored: StoredFormats): LayerSummary[] {
  const found = layer.weight === null ? storedLayer(layer.scope, layer.node, stored, layer.name) : [];
  return found.length > 0 ? found : [plainLayer(layer)];
}

/** A node whose weight the target "stored" decodes, with its codes; nothing for others. */
function storedLayer(scope: Scope, node: NodeProto, { weights }: StoredFormats, name = nodeName(node)): LayerSummary[] {
  for (const input of node.input) {
    let value = input;
    for (let step = 0; step < 8 && !weights.has(value); step++) {
      const maker = scope.producers.get(value);
      if (maker === undefined || !VIEWS.has(maker.opType)) break;
      value = maker.input[0];
    }
    const found = weights.get(value);
    if (found === undefined) continue;
    const { weight, bytes } = found;
    const format = defineFormat(weight.format).name;
    const shape = [weight.rows, weight.k];
    return [{ name, opType: node.opType, weight: weight.codes[0], dataType: format, format, shape, bytes, graph: scope.path }];
  }
  return [];
}

/** A node that reads a constant weight of integers of two dimensions or more. */
function quantizedLayer(scope: Scope, node: NodeProto): LayerSummary | undefined {
  const operator = operatorName(node);
  for (const input of Object.hasOwn(QUANTIZED_INPUT, operator) ? QUANTIZED_INPUT[operator] : []) {
    const weight = resolveConstant(scope, node.input[input] ?? "");
    // Tables that Gather reads may hold indices and the like; weights are the narrow types.
    if (weight === null || !NARROW.has(weight.tensor.dataType)) continue;
    const dims = tensorDims(weight.tensor);
    const integer = (name: string): number => Number(attributeOf(node, name)?.i ?? 0n);
    const [k, n, bits, block] = ["K", "N", "bits", "block_size"].map(integer);
    const packed = k > 0 && n > 0;
    if (dims.length < 2 && !packed) continue;
    const constants = node.input.map((name) => resolveConstant(scope, name)?.tensor).filter((tensor) => tensor !== undefined);
    const type = dataTypeName(weight.tensor.dataType);
    const zeroPoints = (node.input[3] ?? "") !== "";
    return {
      name: nodeName(node),
      opType: node.opType,
      weight: weight.name,
      dataType: type,
      format: bits > 0 && packed ? `${zeroPoints ? "uint" : "int"}${bits}_b${block}${zeroPoints ? "_zp" : ""}` : type,
      shape: packed ? [k, n] : dims,
      bytes: constants.reduce((sum, tensor) => sum + tensorBytes(tensor), 0),
      graph: scope.path,
    };
  }
  return undefined;
}

/**
 * What a model holds. @throws LowbitError E_ONNX on a damaged model
 * @example summarizeModel(readModelBytes(bytes)).operators.Conv // 3
 */
export function summarizeModel(model: OnnxModel): Omit<ModelSummary, "fileBytes" | "files"> {
  const scopes = buildScopes(model);
  const { proto } = model;
  const operators = new Map<string, number>();
  for (const { graph } of scopes) {
    for (const node of graph.node) {
      const name = operatorName(node);
      operators.set(name, (operators.get(name) ?? 0) + 1);
    }
  }
  const bytes: Record<string, number> = {};
  for (const tensor of allTensors(proto)) {
    const name = dataTypeName(tensor.dataType);
    bytes[name] = (bytes[name] ?? 0) + tensorBytes(tensor);
  }
  return {
    irVersion: Number(proto.irVersion),
    opsets: Object.fromEntries(proto.opsetImport.map((entry) => [entry.domain || "ai.onnx", Number(entry.version)])),
    producer: [proto.producerName, proto.producerVersion].filter((part) => part !== "").join(" "),
    inputs: proto.graph!.input.filter((value) => !scopes[0].initializers.has(value.name)).map(summarizeValue),
    outputs: proto.graph!.output.map(summarizeValue),
    operators: Object.fromEntries([...operators].sort(([a], [b]) => (a < b ? -1 : 1))),
    tensorBytes: bytes,
    layers: layersOf(scopes, model),
  };
}

/**
 * Reads a model file and says what is in it. Node only.
 * @throws LowbitError E_IO where a file cannot be read, E_ONNX where the model is damaged
 * @example for (const { name, shape } of inspectModel("model.onnx").layers) console.log(name, shape);
 */
export function inspectModel(input: string): ModelSummary {
  const model = readModel(input);
  try {
    const files = inputPaths(model);
    return { fileBytes: files.reduce((sum, path) => sum + fileSize(path), 0), files, ...summarizeModel(model) };
  } finally {
    model.close();
  }
}
