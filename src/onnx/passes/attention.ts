// The way from a value projection to the output projection of spelled-out attention: Reshape into heads, Transpose,
// product with the probabilities, Transpose, Reshape. It is linear in every channel of the values, so that scales and
// rotations by head pass through it.
import { readInts } from "../file/values.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeOf, isDefaultDomain, resolveConstant, type Scope } from "../graph/graph.ts";
import type { ModelLayer } from "../primitives.ts";
import type { PassContext } from "./types.ts";
import { isProduct, vectorSize } from "./norms.ts";

export interface AttentionValue {
  /**
   * The projection that makes the values; its rows are the channels that the output projection reads, in the same
   * order.
   */
  readonly layer: ModelLayer;
  readonly heads: number;
  readonly headSize: number;
}

/** Whether one node in the same graph is all that reads a value. */
export function readOnce(context: PassContext, scope: Scope, name: string): boolean {
  const readers = context.readers(scope, name);
  return readers.length === 1 && readers[0].node !== null && readers[0].scope === scope && readers[0].input >= 0;
}

/** The node of `opType` that makes `name`, where nothing else reads it. */
function made(context: PassContext, scope: Scope, name: string, opType: string): NodeProto | null {
  const node = scope.producers.get(name);
  return node?.opType === opType && isDefaultDomain(node) && readOnce(context, scope, name) ? node : null;
}

const swapsHeads = (node: NodeProto): boolean => attributeOf(node, "perm")?.ints.join() === "0,2,1,3";

/** The layer behind a value: MatMul or Gemm, or the Add of its bias, through Reshape of its rows. */
export function layerThatMakes(context: PassContext, scope: Scope, name: string, rows: number): ModelLayer | null {
  let at = name;
  for (let steps = 0; steps < 4; steps++) {
    const node = scope.producers.get(at);
    if (node === undefined || !isDefaultDomain(node) || !readOnce(context, scope, at)) return null;
    const layer = context.layerOf.get(node);
    if (isProduct(layer)) return layer.rows === rows ? layer : null;
    if (node.opType === "Add") {
      const bias = [0, 1].find((i) => vectorSize(scope, node.input[i]) === rows);
      if (bias === undefined) return null;
      at = node.input[1 - bias];
    } else if (node.opType === "Reshape") at = node.input[0];
    else return null;
  }
  return null;
}

/** The value projection that an output projection reads through attention; null where that is not what is before it. */
export function attentionValue(context: PassContext, output: ModelLayer): AttentionValue | null {
  const { scope } = output;
  // Exporters flatten the batch for Gemm: a second Reshape.
  const flat = made(context, scope, output.activation, "Reshape");
  if (flat === null) return null;
  const inner = made(context, scope, flat.input[0], "Reshape");
  const join = inner ?? flat;
  const back = made(context, scope, join.input[0], "Transpose");
  if (back === null || !swapsHeads(back)) return null;
  const product = made(context, scope, back.input[0], "MatMul");
  if (product === null) return null;
  const there = made(context, scope, product.input[1], "Transpose");
  if (there === null || !swapsHeads(there)) return null;
  const split = made(context, scope, there.input[0], "Reshape");
  const shape = split === null ? null : resolveConstant(scope, split.input[1]);
  if (split === null || shape === null) return null;
  const [heads, headSize] = readInts(context.model, shape.tensor).slice(-2);
  if (!(heads > 0 && headSize > 0) || heads * headSize !== output.k) return null;
  const layer = layerThatMakes(context, scope, split.input[0], output.k);
  return layer === null ? null : { layer, heads, headSize };
}
