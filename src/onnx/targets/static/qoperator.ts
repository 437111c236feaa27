// Operators on integers (QOperator) in place of an operator between DequantizeLinear and QuantizeLinear: QLinearConv
// and QLinearMatMul of the ONNX standard, the others of onnxruntime's domain. What has no such operator stays between
// its pairs. Source: ONNX QLinearConv-10, QLinearMatMul-10; onnxruntime docs/ContribOperators.md (QGemm, QLinearAdd,
// QLinearMul, QLinearConcat, QLinearSigmoid, QLinear pools).
import { TensorProto_DataType as T, type AttributeProto, type NodeProto } from "../../file/gen/onnx_pb.ts";
import { makeTensor, tensorDims, type OnnxModel } from "../../file/model.ts";
import { readFloats, readRaw } from "../../file/values.ts";
import { roundEven } from "../../../tensor/quantize/scales.ts";
import { findReaders, type Readers } from "../../edit.ts";
import {
  attributeOf,
  attributesOf,
  buildScopes,
  collectNames,
  CONV_ATTRIBUTES,
  isDefaultDomain,
  makeNode,
  nodeName,
  opsetVersion,
  removeUnused,
  resolveConstant,
  sortNodes,
  type Names,
  type Scope,
} from "../../graph/graph.ts";
import { importMicrosoft, MICROSOFT } from "../domain.ts";
import { FUSED_BEHIND, STATIC_OPERATORS } from "./operators.ts";
import { ACTIVATION_TYPES } from "./parameters.ts";

/** Codes with their scale and zero point, by name. */
interface Codes {
  readonly codes: string;
  readonly scale: string;
  readonly zero: string;
}

interface Work {
  readonly model: OnnxModel;
  readonly scope: Scope;
  readonly names: Names;
  readonly readers: Readers;
  /** Nodes that replace a node. */
  readonly made: Map<NodeProto, NodeProto>;
  readonly gone: Set<NodeProto>;
}

/** What an operator reads as codes; null where it is float. */
function codesOf(work: Work, name: string): Codes | null {
  const node = work.scope.producers.get(name);
  if (node?.opType !== "DequantizeLinear" || node.domain === MICROSOFT || attributeOf(node, "block_size") !== undefined) return null;
  const [codes, scale, zero = ""] = node.input;
  return { codes, scale, zero: zero === "" ? zeroOf(work, codes, scale) : zero };
}

/** A zero point of zero, which QLinear operators want written, in the shape of the scale. */
function zeroOf({ model, scope, names }: Work, codes: string, scale: string): string {
  const type = resolveConstant(scope, codes)?.tensor.dataType ?? T.INT8;
  const dims = tensorDims(resolveConstant(scope, scale)!.tensor);
  const count = dims.reduce((a, b) => a * b, 1);
  const tensor = makeTensor(model, names.take(`${codes}_zero_point`), type, dims, new Uint8Array(count * (type === T.INT32 ? 4 : 1)));
  scope.graph.initializer.push(tensor);
  scope.initializers.set(tensor.name, tensor);
  return tensor.name;
}

/** Codes of bytes, which is what the operators take. */
const isBytes = (work: Work, { zero }: Codes): boolean => {
  const type = resolveConstant(work.scope, zero)?.tensor.dataType;
  return type === T.UINT8 || type === T.INT8;
};

interface Behind extends Codes {
  /** The QuantizeLinear, and what stands before it and says the same as the ends of its codes. */
  readonly nodes: readonly NodeProto[];
}

/** The QuantizeLinear that alone reads a value, a Relu or Clip that it makes needless aside. */
function behind(work: Work, value: string): Behind | null {
  const nodes: NodeProto[] = [];
  for (let name = value; ;) {
    const list = work.readers.get(name) ?? [];
    const [only] = list;
    if (list.length !== 1 || only.node === null || only.input !== 0 || !isDefaultDomain(only.node)) return null;
    nodes.push(only.node);
    if (only.node.opType === "QuantizeLinear") {
      const [, scale, zero = ""] = only.node.input;
      const found = { codes: only.node.output[0], scale, zero, nodes };
      return zero !== "" && isBytes(work, found) && nodes.slice(0, -1).every((node) => isNeedless(work, node, found)) ? found : null;
    }
    if (!FUSED_BEHIND.has(only.node.opType) || nodes.length > 1) return null;
    name = only.node.output[0];
  }
}

const numberOf = (work: Work, name: string | undefined, missing: number): number => {
  if (name === undefined || name === "") return missing;
  const constant = resolveConstant(work.scope, name);
  return constant === null ? NaN : (readFloats(work.model, constant.tensor)[0] ?? NaN);
};

/** Do the ends of the codes bound values at least as the node does? */
function isNeedless(work: Work, node: NodeProto, { scale, zero }: Codes): boolean {
  const { model, scope } = work;
  const s = numberOf(work, scale, NaN);
  const point = resolveConstant(scope, zero)!.tensor;
  const [byte] = readRaw(model, point);
  const z = point.dataType === T.INT8 ? (byte << 24) >> 24 : byte;
  const { low, high } = ACTIVATION_TYPES.get(point.dataType === T.INT8 ? "int8" : "uint8")!;
  const bound = (index: number, name: string, missing: number): number => {
    const attribute = attributeOf(node, name);
    return attribute === undefined ? numberOf(work, node.input[index], missing) : attribute.f;
  };
  const [from, to] = node.opType === "Relu" ? [0, Infinity] : [bound(1, "min", -Infinity), bound(2, "max", Infinity)];
  return roundEven(from / s) + z <= low && roundEven(to / s) + z >= high;
}

const flat = ({ codes, scale, zero }: Codes): string[] => [codes, scale, zero];

/** What an operator on integers is made of. */
interface Parts {
  readonly domain?: string;
  readonly inputs: string[];
  readonly attributes: AttributeProto[];
  readonly op: string;
}

/** The bias of a node as int32 codes, "" without one; null where it is float. */
function biasOf(work: Work, name: string | undefined): string | null {
  if (name === undefined || name === "") return "";
  const node = work.scope.producers.get(name);
  if (node?.opType !== "DequantizeLinear") return null;
  return resolveConstant(work.scope, node.input[0])?.tensor.dataType === T.INT32 ? node.input[0] : null;
}

const POOL = ["auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"];
/** Operators of one input and one output in onnxruntime's domain, with what they keep of their attributes. */
const UNARY: ReadonlyMap<string, { op: string; attributes: readonly string[] }> = new Map([
  ["Sigmoid", { op: "QLinearSigmoid", attributes: [] }],
  ["AveragePool", { op: "QLinearAveragePool", attributes: POOL }],
  ["GlobalAveragePool", { op: "QLinearGlobalAveragePool", attributes: [] }],
]);

/** The operator on integers for a node, from its inputs to the codes `y`; null where there is none. */
function partsOf(work: Work, node: NodeProto, y: Codes): Parts | null {
  const inputs = node.input.map((name) => (name === "" ? null : codesOf(work, name)));
  const codes = inputs.filter((input) => input !== null);
  if (inputs[0] === null || inputs[0] === undefined || !isBytes(work, inputs[0])) return null;
  const [x, w] = inputs as (Codes | null)[];
  const out = [y.scale, y.zero];
  switch (node.opType) {
    case "Conv": {
      const bias = biasOf(work, node.input[2]);
      if (w === null || bias === null || !isBytes(work, w)) return null;
      const inputs8 = [...flat(x!), ...flat(w), ...out, ...(bias === "" ? [] : [bias])];
      return { op: "QLinearConv", inputs: inputs8, attributes: attributesOf(node, CONV_ATTRIBUTES) };
    }
    case "MatMul":
      return w === null || w === undefined || !isBytes(work, w)
        ? null
        : { op: "QLinearMatMul", inputs: [...flat(x!), ...flat(w), ...out], attributes: [] };
    case "Gemm": {
      // where beta is not 1 the bias has no codes
      const bias = biasOf(work, node.input[2]);
      if (w === null || bias === null || !isBytes(work, w)) return null;
      const attributes = attributesOf(node, ["alpha", "transA", "transB"]);
      return { op: "QGemm", domain: MICROSOFT, inputs: [...flat(x!), ...flat(w), bias, ...out], attributes };
    }
    case "Add":
    case "Mul":
      if (codes.length !== 2) return null;
      return { op: `QLinear${node.opType}`, domain: MICROSOFT, inputs: [...codes.flatMap(flat), ...out], attributes: [] };
    case "Concat":
      if (codes.length !== node.input.length) return null;
      return { op: "QLinearConcat", domain: MICROSOFT, inputs: [...out, ...codes.flatMap(flat)], attributes: attributesOf(node, ["axis"]) };
    default: {
      const unary = UNARY.get(node.opType);
      if (unary === undefined) return null;
      const attributes = attributesOf(node, unary.attributes);
      return { op: unary.op, domain: MICROSOFT, inputs: [...flat(x!), ...out], attributes };
    }
  }
}

/** Operators that only move codes, or pick the largest, do so as they are. */
function movesCodes(work: Work, node: NodeProto, x: Codes | null, y: Codes): boolean {
  if (STATIC_OPERATORS.get(node.opType)?.output !== "input" || x === null || !isBytes(work, x)) return false;
  const mode = new TextDecoder().decode(attributeOf(node, "mode")?.s ?? new Uint8Array(0)) || "nearest";
  if (node.opType === "Resize" && mode !== "nearest") return false;
  if (node.opType === "MaxPool" && (node.output.length > 1 || opsetVersion(work.model) < 12)) return false;
  const same = (a: string, b: string): boolean => {
    const [p, q] = [resolveConstant(work.scope, a), resolveConstant(work.scope, b)];
    if (p === null || q === null || p.tensor.dataType !== q.tensor.dataType) return false;
    return String(readRaw(work.model, p.tensor)) === String(readRaw(work.model, q.tensor));
  };
  return same(x.scale, y.scale) && same(x.zero, y.zero);
}

/** Replaces one node where it can. */
function replace(work: Work, node: NodeProto): boolean {
  const y = behind(work, node.output[0]);
  if (y === null || node.output.slice(1).some((name) => name !== "")) return false;
  const before = codesOf(work, node.input[0] ?? "");
  const parts: Parts | null = movesCodes(work, node, before, y)
    ? { op: node.opType, inputs: [before!.codes, ...node.input.slice(1)], attributes: node.attribute }
    : partsOf(work, node, y);
  if (parts === null) return false;
  const { op, domain, inputs, attributes } = parts;
  work.made.set(node, makeNode(op, inputs, [y.codes], { name: nodeName(node), attributes, ...(domain === undefined ? {} : { domain }) }));
  for (const gone of y.nodes) work.gone.add(gone);
  return true;
}

/**
 * Rewrites the main graph of a model with QDQ pairs. Returns the names of nodes that became operators on integers, and
 * the operators, with counts, that stayed between pairs.
 */
export function writeQOperators(model: OnnxModel): { replaced: ReadonlySet<string>; left: string[] } {
  const scopes = buildScopes(model);
  const [scope] = scopes;
  const work: Work = {
    model,
    scope,
    names: collectNames(scopes),
    readers: findReaders(scopes).get(scope)!,
    made: new Map(),
    gone: new Set(),
  };
  const replaced = new Set<string>();
  const left = new Map<string, number>();
  for (const node of scope.graph.node) {
    if (!isDefaultDomain(node) || !STATIC_OPERATORS.has(node.opType)) continue;
    if (!node.input.some((name) => scope.producers.get(name)?.opType === "DequantizeLinear")) continue;
    if (replace(work, node)) replaced.add(nodeName(node));
    else if (!work.gone.has(node)) left.set(node.opType, (left.get(node.opType) ?? 0) + 1);
  }
  const read = new Set<string>();
  scope.graph.node = scope.graph.node.filter((node) => !work.gone.has(node)).map((node) => work.made.get(node) ?? node);
  for (const inner of scopes) for (const node of inner.graph.node) for (const name of node.input) read.add(name);
  for (const inner of scopes) for (const { name } of inner.graph.output) read.add(name);
  const isIdle = (node: NodeProto): boolean => node.opType === "DequantizeLinear" && !read.has(node.output[0]);
  const constants = new Set(scope.graph.node.filter(isIdle).flatMap((node) => node.input));
  scope.graph.node = scope.graph.node.filter((node) => !isIdle(node));
  if ([...work.made.values()].some(({ domain }) => domain === MICROSOFT)) importMicrosoft(model);
  const after = buildScopes(model);
  removeUnused(after, constants);
  sortNodes(after);
  return { replaced, left: [...left].map(([type, count]) => `${count} ${type}`) };
}
