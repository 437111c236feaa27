// A LayerNorm whose input has mean zero, as an RMSNorm: what rotations need, because a turned vector no longer has the
// mean it had.
import { addInitializer, floatTensor, freshName, insertBefore, removeNode } from "../edit.ts";
import { TensorProto_DataType as T, type NodeProto } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { intAttribute, intsAttribute, makeNode, nodeName, opsetVersion, resolveConstant } from "../graph/graph.ts";
import type { Norm } from "./norms.ts";
import type { PassContext } from "./types.ts";

/** Why a norm cannot become an RMSNorm; undefined: it can. */
export function rmsObstacle(context: PassContext, norm: Norm): string | undefined {
  if (norm.kind === "rms") return undefined;
  if (norm.fused === null) {
    const inside = new Set<NodeProto | null>(norm.core);
    const outside = norm.centering.some((sub) => context.readers(norm.scope, sub.output[0]).some(({ node }) => !inside.has(node)));
    return outside ? `norm ${norm.output}: its centred input is used elsewhere` : undefined;
  }
  const used = norm.fused.output
    .slice(1)
    .filter((name) => name !== "" && name !== norm.sum && context.readers(norm.scope, name).length > 0);
  return used.length > 0 ? `norm ${norm.output}: its mean or deviation (${used[0]}) is used` : undefined;
}

/** Makes a LayerNorm of centred inputs an RMSNorm. Its gain is one and its bias zero by then. */
export function toRms(context: PassContext, norm: Norm): void {
  if (norm.kind === "rms") return;
  const { scope, fused } = norm;
  if (fused === null) {
    const [z] = norm.inputs;
    for (const sub of norm.centering) {
      for (const node of norm.core) if (node !== sub) node.input = node.input.map((name) => (name === sub.output[0] ? z : name));
    }
    for (const sub of norm.centering) {
      const mean = scope.producers.get(sub.input[1]);
      removeNode(scope, sub);
      const inside = new Set<NodeProto | null>(norm.centering);
      if (mean !== undefined && context.readers(scope, mean.output[0]).every(({ node }) => inside.has(node))) removeNode(scope, mean);
    }
    return;
  }
  if (fused.opType === "SkipLayerNormalization") {
    fused.opType = "SkipSimplifiedLayerNormalization";
    fused.input.length = 3;
    return;
  }
  spellOut(context, norm, fused);
}

/** Pow, ReduceMean, Add, Sqrt, Div, Mul: the form that runtimes recognise as an RMSNorm. */
function spellOut(context: PassContext, norm: Norm, node: NodeProto): void {
  const { model } = context;
  const { scope, inputs, output, epsilon } = norm;
  const type = resolveConstant(scope, norm.gain!.node.input[norm.gain!.input])!.tensor.dataType;
  const base = nodeName(node);
  const name = (suffix: string): string => freshName(model, `${base}_${suffix}`);
  const scalar = (suffix: string, value: number): string =>
    addInitializer(scope, floatTensor(model, `${base}_${suffix}`, [], [value], type), model);
  const axes = new BigInt64Array([-1n]);
  const asInput = opsetVersion(model) >= 18;
  const axesName = asInput
    ? [addInitializer(scope, makeTensor(model, `${base}_axes`, T.INT64, [1], new Uint8Array(axes.buffer)), model)]
    : [];
  const attributes = [intAttribute("keepdims", 1), ...(asInput ? [] : [intsAttribute("axes", [-1])])];
  const [square, mean, sum, root, ratio] = ["square", "mean", "sum", "root", "ratio"].map(name);
  const gain = norm.gain!.node.input[norm.gain!.input];
  removeNode(scope, node);
  const at = scope.graph.node.findIndex((other) => other.input.includes(output));
  const made = [
    makeNode("Pow", [inputs[0], scalar("two", 2)], [square], { name: square }),
    makeNode("ReduceMean", [square, ...axesName], [mean], { name: mean, attributes }),
    makeNode("Add", [mean, scalar("epsilon", epsilon)], [sum], { name: sum }),
    makeNode("Sqrt", [sum], [root], { name: root }),
    makeNode("Div", [inputs[0], root], [ratio], { name: ratio }),
    makeNode("Mul", [ratio, gain], [output], { name: base }),
  ];
  insertBefore(scope, scope.graph.node[at], made);
}
