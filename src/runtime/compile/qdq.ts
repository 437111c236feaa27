// Static quantization as QDQ graphs spell it: a convolution or product of dequantized codes by dequantized constant
// weights, whose result is quantized again (Relu between them where the codes' bound does its work), as one QLinearConv
// or QLinearMatMul: exact integer sums instead of float32 ones. What else reads the dequantized values keeps them.
import { create } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto } from "../../onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema, TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import type { Value } from "../value.ts";
import { linksOf, tied, type FlatNode, type Links } from "./flat.ts";

const BYTES: ReadonlySet<string> = new Set(["int8", "uint8"]);

/** Codes, scale and zero point of a DequantizeLinear node. */
interface Codes {
  readonly codes: string;
  readonly scale: string;
  readonly zero: string;
}

interface Constants {
  /** The value of an initializer. */
  readonly constant: (name: string) => Value | undefined;
  /** Its type and sizes, unread. */
  readonly tensor: (name: string) => TensorProto | undefined;
}

type Graph = Links<FlatNode> & Constants;

/** What a value is dequantized from, by one scale or, where `axis` says so, one for each index of an axis. */
function dequantized(graph: Graph, name: string, axis?: number): Codes | undefined {
  const node = graph.makers.get(name)?.node;
  if (node === undefined || operatorName(node) !== "DequantizeLinear" || attributeInt(node, "block_size", 0) !== 0) return undefined;
  const [codes, scale, zero = ""] = node.input;
  const [s, z] = [graph.constant(scale), graph.constant(zero)];
  if (s?.type !== "float32" || (zero !== "" && z === undefined)) return undefined;
  const many = s.data.length > 1;
  if (many && (axis === undefined || attributeInt(node, "axis", 1) !== axis)) return undefined;
  return { codes, scale, zero };
}

/** The one node that reads a value. */
function onlyReader(graph: Graph, name: string, from: FlatNode): FlatNode | undefined {
  const only = graph.only(name);
  return only !== undefined && tied(only, from) ? only : undefined;
}

/** The QuantizeLinear that ends a pattern: codes of 8 bits, one scale. */
function quantizedBy(graph: Graph, from: FlatNode): { readonly node: NodeProto; readonly between: readonly FlatNode[] } | undefined {
  let next = onlyReader(graph, from.node.output[0], from);
  const between: FlatNode[] = [];
  if (next !== undefined && operatorName(next.node) === "Relu") {
    between.push(next);
    next = onlyReader(graph, next.node.output[0], from);
  }
  if (next === undefined || operatorName(next.node) !== "QuantizeLinear" || (next.node.input[2] ?? "") === "") return undefined;
  const [scale, zero] = [graph.constant(next.node.input[1]), graph.constant(next.node.input[2])];
  if (scale?.type !== "float32" || scale.data.length !== 1 || zero === undefined || !BYTES.has(zero.type) || zero.data.length !== 1)
    return undefined;
  // codes have no values below zero only where zero is the least of them
  if (between.length > 0 && Number(zero.data[0]) !== (zero.type === "uint8" ? 0 : -128)) return undefined;
  return { node: next.node, between };
}

/** The int32 codes of a bias in units of the sums: the product of both scales, to a unit in its last place. */
function integerBias(graph: Graph, name: string, x: Codes, w: Codes): string | undefined {
  const bias = dequantized(graph, name, 0);
  const codes = bias && graph.constant(bias.codes);
  if (bias === undefined || codes?.type !== "int32" || (bias.zero !== "" && graph.constant(bias.zero)!.data.some((z) => Number(z) !== 0)))
    return undefined;
  const [bs, xs, ws] = [bias.scale, x.scale, w.scale].map((of) => graph.constant(of)!.data as Float32Array);
  const at = (list: Float32Array, i: number): number => list[list.length === 1 ? 0 : i];
  for (let i = 0; i < codes.data.length; i++) {
    const wanted = xs[0] * at(ws, i);
    if (Math.abs(at(bs, i) - wanted) > Math.abs(wanted) * 2 ** -22) return undefined;
  }
  return bias.codes;
}

/** The node that a convolution or product becomes, in place of the QuantizeLinear that ends it. */
function fused(
  graph: Graph,
  flat: FlatNode,
): { readonly node: NodeProto; readonly ends: NodeProto; readonly taken: readonly FlatNode[] } | undefined {
  const { node } = flat;
  const operator = operatorName(node);
  const isConv = operator === "Conv";
  if (!isConv && operator !== "MatMul") return undefined;
  const x = dequantized(graph, node.input[0]);
  const w = dequantized(graph, node.input[1], isConv ? 0 : 1);
  const last = x && w && quantizedBy(graph, flat);
  if (x === undefined || w === undefined || last === undefined || x.zero === "" || w.zero === "") return undefined;
  const codes = graph.tensor(w.codes);
  const zero = graph.constant(x.zero);
  if (codes === undefined || ![T.INT8, T.UINT8].includes(codes.dataType) || zero === undefined || !BYTES.has(zero.type)) return undefined;
  if (zero.data.length !== 1 || (!isConv && codes.dims.length !== 2)) return undefined;
  const given = isConv ? (node.input[2] ?? "") : "";
  const bias = given === "" ? "" : integerBias(graph, given, x, w);
  if (bias === undefined) return undefined;
  const { name, attribute } = node;
  const [, yScale, yZero] = last.node.input;
  const input = [x.codes, x.scale, x.zero, w.codes, w.scale, w.zero, yScale, yZero, ...(bias === "" ? [] : [bias])];
  const made = create(NodeProtoSchema, {
    opType: isConv ? "QLinearConv" : "QLinearMatMul",
    name,
    input,
    output: [last.node.output[0]],
    attribute,
  });
  return { node: made, ends: last.node, taken: [flat, ...last.between] };
}

/** Nodes with such patterns as one, where their QuantizeLinear stood. */
export function fuseQdq(nodes: readonly FlatNode[], outputs: readonly string[], constants: Constants): FlatNode[] {
  if (!nodes.some(({ node }) => operatorName(node) === "QuantizeLinear")) return [...nodes];
  const graph: Graph = { ...linksOf(nodes, outputs), ...constants };
  const taken = new Set<FlatNode>();
  const ends = new Map<NodeProto, NodeProto>();
  for (const flat of nodes) {
    const found = fused(graph, flat);
    if (found === undefined) continue;
    for (const part of found.taken) taken.add(part);
    ends.set(found.ends, found.node);
  }
  const kept = nodes.flatMap((flat) => (taken.has(flat) ? [] : [{ ...flat, node: ends.get(flat.node) ?? flat.node }]));
  // what only the fused nodes read is dead now
  const read = new Set([...outputs, ...kept.flatMap(({ node, guards }) => [...node.input, ...guards.map(({ name }) => name)])]);
  return kept.filter(({ node }) => operatorName(node) !== "DequantizeLinear" || node.output.some((name) => read.has(name)));
}
