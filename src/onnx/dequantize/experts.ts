// com.microsoft.QMoE as MoE: codes [experts, outputs, inputs * bits / 8] of integers with scales by row or block become
// float weights [experts, outputs, inputs]. Its FP4 and FP8 forms stay.
// Source: onnxruntime docs/ContribOperators.md.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeInt, attributeOf, intAttribute, nodeName } from "../graph/graph.ts";
import { EXPERT_WEIGHTS } from "../layers.ts";
import { blockValues } from "./codes.ts";
import { addFloats, newNode, plainName, type FloatForm, type Rewriting } from "./rewriting.ts";

/** Inputs of QMoE for one of MoE's weights: codes, scales, bias; zero points behind all of them. */
const CODES = 2;
const ZERO_POINTS = 11;
/** Weights of the router apart from its values: MoE has no place for them. */
const ROUTER_WEIGHTS = 14;
/** Attributes that speak of codes. */
const OF_CODES: readonly string[] = ["expert_weight_bits", "block_size", "quant_type", "weights_prepacked"];

const NORMALIZE = "normalize_routing_weights";

/** Are the weights of the router the Softmax of its values, as MoE has them? */
function weighsByAll(node: NodeProto, { maker }: Rewriting): boolean {
  const made = maker(node.input[ROUTER_WEIGHTS]);
  return made?.opType === "Softmax" && made.input[0] === node.input[1] && attributeInt(node, NORMALIZE, 0) === 0;
}

/** The float form of a QMoE; null where its weights are no constants, or no integers in rows or blocks. */
export function qMoE(node: NodeProto, work: Rewriting): FloatForm | null {
  const input = (i: number): string => node.input[i] ?? "";
  const type = new TextDecoder().decode(attributeOf(node, "quant_type")?.s ?? new Uint8Array());
  const prepacked = attributeInt(node, "weights_prepacked", -1) === 1;
  const ofChosen = input(ROUTER_WEIGHTS) === "";
  if ((type !== "" && type !== "int") || prepacked || !(ofChosen || weighsByAll(node, work))) return null;
  if (input(CODES) === "" || input(CODES + 3) === "") return null;
  const bits = attributeInt(node, "expert_weight_bits", 4);
  const inputs = [input(0), input(1)];
  for (const [i] of EXPERT_WEIGHTS.entries()) {
    const at = CODES + 3 * i;
    if (input(at) === "") {
      inputs.push("", input(at + 2));
      continue;
    }
    const [codes, scales, zeros] = [at, at + 1, ZERO_POINTS + i].map((one) => work.numbers(input(one)));
    if (codes?.shape.length !== 3 || scales === null || (input(ZERO_POINTS + i) !== "" && zeros === null)) return null;
    const [experts, rows, bytes] = codes.shape;
    const k = (bytes * 8) / bits;
    const blockSize = attributeInt(node, "block_size", 0) || k;
    if (![2, 4, 8].includes(bits) || scales.data.length !== experts * rows * (k / blockSize)) return null;
    // by row, zero points of several rows share a byte: [experts, rows / codes in a byte]
    const values = blockValues({ rows: experts * rows, k, bits, blockSize }, codes, scales, zeros);
    inputs.push(addFloats(work, input(at), [experts, rows, k], values, scales.dataType), input(at + 2));
  }
  while (inputs.at(-1) === "") inputs.pop();
  // QMoE without weights of the router weighs experts by their shares of those chosen, whatever its attribute says
  const others = node.attribute.filter(({ name }) => !OF_CODES.includes(name) && name !== NORMALIZE);
  const attributes = ofChosen ? [...others, intAttribute(NORMALIZE, 1)] : others;
  const made = newNode(work, "MoE", inputs, node.output[0], plainName(nodeName(node)), attributes);
  made.domain = node.domain;
  const shares = input(ROUTER_WEIGHTS);
  const isOnly = !ofChosen && work.onlyReader(shares) === node;
  return { at: node, nodes: [made], instead: isOnly ? [work.maker(shares)!, node] : [node] };
}
