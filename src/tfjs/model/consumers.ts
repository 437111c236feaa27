// What the matrices of a model are multiplied as: which axis of a weight numbers the outputs.
import type { TfjsModelFile, WeightEntry } from "./manifest.ts";

interface Node {
  readonly op?: unknown;
  readonly name?: unknown;
  readonly input?: unknown;
  readonly attr?: Readonly<Record<string, { readonly b?: unknown } | null | undefined>> | null;
}

const flag = (value: unknown): boolean => value === true || value === "true";

/** The node that an input of a node names. */
const nameOf = (input: unknown): string | undefined =>
  typeof input === "string" ? input.replace(/^\^/, "").replace(/:\d+$/, "") : undefined;

/** Names of weights whose first axis numbers the rows: embeddings, and matrices that are multiplied transposed. */
function rowsFirst(json: TfjsModelFile["json"]): Set<string> {
  const topology = json.modelTopology as { readonly node?: unknown } | null | undefined;
  const nodes = Array.isArray(topology?.node) ? (topology.node as (Node | null)[]) : [];
  const found = new Set<string>();
  for (const node of nodes) {
    const inputs = Array.isArray(node?.input) ? node.input.map(nameOf) : [];
    const { op, attr } = node ?? {};
    const transposed = flag(attr?.transpose_b?.b) || flag(attr?.adj_y?.b);
    if (op === "MatMul" || op === "_FusedMatMul" || op === "BatchMatMulV2" || op === "BatchMatMul") {
      if (transposed && inputs[1] !== undefined) found.add(inputs[1]);
    } else if ((op === "GatherV2" || op === "Gather" || op === "ResourceGather") && inputs[0] !== undefined) found.add(inputs[0]);
  }
  return found;
}

/** The axis of a matrix whose entries become the rows of a packed tensor: 1 for [inputs, outputs]. */
export function rowAxes(json: TfjsModelFile["json"]): (entry: WeightEntry) => 0 | 1 {
  const first = rowsFirst(json);
  return ({ name }) => (first.has(name) || /(^|\/)embeddings$/.test(name) ? 0 : 1);
}
