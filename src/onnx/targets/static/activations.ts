// Writes QuantizeLinear and DequantizeLinear pairs around the operators that are quantized (QDQ): a pair stands for a
// value once, and every quantized node reads the same; nodes that are not quantized go on reading the float value where
// it is still there.
import type { NodeProto, TensorProto } from "../../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../../file/model.ts";
import { makeTensor, tensorDims } from "../../file/model.ts";
import { readFloats } from "../../file/values.ts";
import { findReaders, renameOutput, type Readers } from "../../edit.ts";
import type { Names, Scope } from "../../graph/graph.ts";
import {
  attributeFloat,
  buildScopes,
  collectNames,
  intAttribute,
  makeNode,
  nodeName,
  opsetVersion,
  removeUnused,
  resolveConstant,
  sortNodes,
} from "../../graph/graph.ts";
import { importMicrosoft, MICROSOFT } from "../domain.ts";
import { FUSED_BEHIND, reads, STATIC_OPERATORS, type StaticOperator } from "./operators.ts";
import type { ActivationParameters, ActivationType, CodeRange, ValueRange } from "./parameters.ts";
import { ACTIVATION_TYPES, activationParameters, biasCodes } from "./parameters.ts";

/** What static quantization knows before weights are written. */
export interface ActivationPlan {
  readonly symmetric: boolean;
  /** The nodes to quantize, and those of them whose output is quantized too. */
  readonly nodes: ReadonlySet<NodeProto>;
  readonly outputs: ReadonlySet<NodeProto>;
  readonly ranges: ReadonlyMap<string, ValueRange>;
  /** Types of values, by name. */
  readonly types: ReadonlyMap<string, ActivationType>;
}

/** The value after a node that is quantized in its place: behind a Relu or Clip that alone reads it. */
export function outputValue(readers: Readers, node: NodeProto): string {
  const name = node.output[0];
  const list = readers.get(name) ?? [];
  const [only] = list;
  return list.length === 1 && only.node !== null && only.input === 0 && FUSED_BEHIND.has(only.node.opType) ? only.node.output[0] : name;
}

/** The computed values that a node of the main graph would have quantized. */
export function quantizedInputs(scope: Scope, node: NodeProto, operator: StaticOperator): string[] {
  const indices = operator.inputs === "all" ? [...node.input.keys()] : operator.inputs;
  return indices.map((i) => node.input[i] ?? "").filter((name) => name !== "" && resolveConstant(scope, name) === null);
}

interface Writer {
  readonly model: OnnxModel;
  readonly scope: Scope;
  readonly names: Names;
  readonly plan: ActivationPlan;
  readonly parameters: Map<string, ActivationParameters & { readonly type: CodeRange }>;
  /** Value -> its quantized form as floats. */
  readonly pairs: Map<string, string>;
  readonly late: Map<NodeProto | null, NodeProto[]>;
  readonly notes: string[];
}

/** 16-bit codes are in the standard from opset 21; before, onnxruntime has them in its own domain. */
function domainOf(writer: Writer, type: CodeRange): { domain?: string } {
  if (type.bits === 8 || opsetVersion(writer.model) >= 21) return {};
  importMicrosoft(writer.model);
  return { domain: MICROSOFT };
}

function codeBytes(value: number, { bits }: CodeRange): Uint8Array {
  return bits === 8 ? Uint8Array.of(value) : new Uint8Array(Uint16Array.of(value).buffer);
}

/**
 * Quantizes and dequantizes a value; returns the float name that readers take. undefined where its range is not known.
 */
function pairOf(writer: Writer, value: string): string | undefined {
  const known = writer.pairs.get(value);
  if (known !== undefined) return known;
  const range = writer.plan.ranges.get(value);
  if (range === undefined) return undefined;
  const { model, scope, names, plan } = writer;
  const type = ACTIVATION_TYPES.get(plan.types.get(value) ?? "uint8")!;
  const parameters = activationParameters(range, type, plan.symmetric);
  const scale = makeTensor(model, names.take(`${value}_scale`), T.FLOAT, [], new Uint8Array(Float32Array.of(parameters.scale).buffer));
  const zero = makeTensor(model, names.take(`${value}_zero_point`), type.onnx, [], codeBytes(parameters.zeroPoint, type));
  scope.graph.initializer.push(scale, zero);
  const codes = names.take(`${value}_quantized`);
  const floats = names.take(`${value}_dequantized`);
  const domain = domainOf(writer, type);
  const nodes = [
    makeNode("QuantizeLinear", [value, scale.name, zero.name], [codes], { name: names.take(`${value}_QuantizeLinear`), ...domain }),
    makeNode("DequantizeLinear", [codes, scale.name, zero.name], [floats], { name: names.take(`${value}_DequantizeLinear`), ...domain }),
  ];
  const maker = scope.producers.get(value) ?? null;
  writer.late.set(maker, [...(writer.late.get(maker) ?? []), ...nodes]);
  writer.pairs.set(value, floats);
  writer.parameters.set(floats, { ...parameters, type });
  return floats;
}

/** Scales of the DequantizeLinear that makes a weight; undefined where the weight is no codes. */
function weightScales(writer: Writer, name: string): Float32Array | undefined {
  const { model, scope } = writer;
  const node = scope.producers.get(name);
  if (node?.opType !== "DequantizeLinear" || node.attribute.some((attribute) => attribute.name === "block_size")) return undefined;
  const scale = resolveConstant(scope, node.input[1]);
  return scale === null ? undefined : Float32Array.from(readFloats(model, scale.tensor));
}

/** The bias of a node as int32 behind a DequantizeLinear. */
function quantizeBias(writer: Writer, node: NodeProto, operator: StaticOperator): void {
  const { model, scope, names, notes } = writer;
  const name = operator.bias === undefined ? "" : (node.input[operator.bias] ?? "");
  const constant = resolveConstant(scope, name);
  const input = writer.parameters.get(node.input[0]);
  const scales = operator.weight === undefined ? undefined : weightScales(writer, node.input[operator.weight]);
  if (constant === null || constant.tensor.dataType !== T.FLOAT || input === undefined || scales === undefined) return;
  if (node.opType === "Gemm" && (attributeFloat(node, "beta", 1) !== 1 || attributeFloat(node, "alpha", 1) !== 1)) return;
  const dims = tensorDims(constant.tensor);
  const values = readFloats(model, constant.tensor);
  if (dims.length !== 1 || (scales.length !== 1 && scales.length !== values.length)) return;
  const made = biasCodes(values, input.scale, scales);
  if (made === undefined) {
    notes.push(`${nodeName(node)}: the bias stays float32, its codes pass int32`);
    return;
  }
  const bytes = (data: Int32Array | Float32Array) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const scaleDims = made.scales.length === 1 ? [] : [made.scales.length];
  const tensors: TensorProto[] = [
    makeTensor(model, names.take(`${name}_quantized`), T.INT32, dims, bytes(made.codes)),
    makeTensor(model, names.take(`${name}_scale`), T.FLOAT, scaleDims, bytes(made.scales)),
  ];
  scope.graph.initializer.push(...tensors);
  const floats = names.take(`${name}_dequantized`);
  const attributes = scaleDims.length === 0 ? [] : [intAttribute("axis", 0)];
  const inputs = tensors.map((tensor) => tensor.name);
  const dequantize = makeNode("DequantizeLinear", inputs, [floats], { name: names.take(`${name}_DequantizeLinear`), attributes });
  writer.late.set(null, [...(writer.late.get(null) ?? []), dequantize]);
  node.input[operator.bias!] = floats;
}

/** Readers of a value, the QuantizeLinear not among them, read another one instead. */
function redirect(readers: Readers, value: string, to: string, who: "floats" | "codes"): void {
  for (const { node, input } of readers.get(value) ?? [])
    if (node !== null && input >= 0 && reads(node.opType) === who) node.input[input] = to;
}

/** Outputs of the model keep their names: the maker gets another, and the dequantized value takes it. */
function outputPair(writer: Writer, readers: Readers, value: string): void {
  const before = writer.pairs.get(value);
  const floats = pairOf(writer, value);
  if (floats === undefined) return;
  redirect(readers, value, floats, "codes");
  if (before !== undefined || !writer.scope.graph.output.some(({ name }) => name === value)) return;
  const { scope, names } = writer;
  const maker = scope.producers.get(value)!;
  const inner = names.take(`${value}_float`);
  renameOutput(scope, maker, maker.output.indexOf(value), inner);
  const [quantize, dequantize] = writer.late.get(maker)!.slice(-2);
  quantize.input[0] = inner;
  dequantize.output[0] = value;
  for (const node of scope.graph.node) node.input = node.input.map((name) => (name === floats ? value : name));
  redirect(readers, value, inner, "floats");
  writer.pairs.set(value, value);
  writer.parameters.set(value, writer.parameters.get(floats)!);
}

/** Puts the pairs into the main graph of a model whose weights are written. @returns the values that are quantized */
export function writeActivations(model: OnnxModel, plan: ActivationPlan, notes: string[]): string[] {
  const scopes = buildScopes(model);
  const [scope] = scopes;
  const readers = findReaders(scopes).get(scope)!;
  const late = new Map<NodeProto | null, NodeProto[]>();
  const writer: Writer = { model, scope, names: collectNames(scopes), plan, parameters: new Map(), pairs: new Map(), late, notes };
  const nodes = scope.graph.node.filter((node) => plan.nodes.has(node));
  const biases = new Set<string>();
  const outputs = nodes.filter((node) => plan.outputs.has(node)).map((node) => outputValue(readers, node));
  for (const node of nodes) {
    const operator = STATIC_OPERATORS.get(node.opType)!;
    for (const value of quantizedInputs(scope, node, operator)) {
      if (scope.producers.get(value)?.opType === "DequantizeLinear" && !plan.ranges.has(value)) continue;
      const floats = pairOf(writer, value);
      if (floats !== undefined) node.input = node.input.map((name) => (name === value ? floats : name));
    }
    if (operator.bias !== undefined) biases.add(node.input[operator.bias] ?? "");
    quantizeBias(writer, node, operator);
  }
  for (const value of outputs) outputPair(writer, readers, value);
  scope.graph.node = [...(late.get(null) ?? []), ...scope.graph.node.flatMap((node) => [node, ...(late.get(node) ?? [])])];
  const after = buildScopes(model);
  removeUnused(after, biases);
  sortNodes(after);
  return [...writer.pairs.keys()];
}
