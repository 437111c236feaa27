// Layers that 8-bit activations quantized at run time harm more than they save, told from the graph alone. They stay
// unless they are asked for.
import type { GraphProto, NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeGraphs } from "../file/model.ts";
import { attributeInt, constantResolver, definingScope, isDefaultDomain, type Scope } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import type { TargetContext } from "./target.ts";

const REMEDY = "name it with include (--include) to have it quantized, or give its weights alone 16 bits: format int16_row, target qdq";

/** Why a layer should stay; undefined: it need not. */
export function dynamicAdvice(layer: Layer, context: TargetContext): string | undefined {
  const { node, shape } = layer;
  if (node.opType === "LSTM" && streaming(context).layers.has(node))
    return `its state is carried from call to call, where the error of 8 bits adds up; ${REMEDY}`;
  if (node.opType !== "Conv") return undefined;
  // the PP-OCRv4 recogniser: outputs at 22 dB, with float depthwise convolutions, 2 % of its weights, at 28
  if (shape[1] === 1 && attributeInt(node, "group", 1) > 1)
    return `a depthwise convolution: one scale for all channels of its input drowns the quiet ones, and its weights are few; ${REMEDY}`;
  // Silero VAD: probabilities move by .07 to .1 whichever way its convolutions have 8 bits
  return streaming(context).before.has(node)
    ? `it feeds a recurrent layer whose state is carried from call to call, where the error of 8 bits adds up; ${REMEDY}`
    : undefined;
}

interface Streaming {
  /** Recurrent nodes whose initial state comes from outside the model. */
  readonly layers: ReadonlySet<NodeProto>;
  /** Nodes that their inputs depend on. */
  readonly before: ReadonlySet<NodeProto>;
}

const known = new WeakMap<readonly Scope[], Streaming>();
const RECURRENT: ReadonlySet<string> = new Set(["LSTM", "GRU", "RNN"]);
/** Input of an LSTM, GRU or RNN that holds the initial state. */
const INITIAL = 5;

function streaming({ scopes, model }: TargetContext): Streaming {
  let found = known.get(scopes);
  if (found !== undefined) return found;
  const layers = new Set<NodeProto>();
  const before = new Set<NodeProto>();
  const resolve = constantResolver(model);
  const walk = upstream(scopes);
  for (const scope of scopes)
    for (const node of scope.graph.node) {
      const state = node.input[INITIAL] ?? "";
      if (!RECURRENT.has(node.opType) || !isDefaultDomain(node) || state === "" || resolve(scope, state) !== null) continue;
      if (!walk(scope, state).fromOutside) continue;
      layers.add(node);
      for (const one of walk(scope, node.input[0]).nodes) before.add(one);
    }
  known.set(scopes, (found = { layers, before }));
  return found;
}

/**
 * What a value depends on: nodes, and whether the numbers (not the shape alone) of an input of the model are among it.
 */
function upstream(scopes: readonly Scope[]): (scope: Scope, value: string) => { nodes: Set<NodeProto>; fromOutside: boolean } {
  const scopeOf = new Map<GraphProto, Scope>(scopes.map((scope) => [scope.graph, scope]));
  return (from, value) => {
    const nodes = new Set<NodeProto>();
    let fromOutside = false;
    const pending: [Scope, string][] = [[from, value]];
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      const [at, name] = next;
      const scope = definingScope(at, name);
      if (scope === null) continue;
      const node = scope.producers.get(name);
      if (node === undefined) {
        if (scope.parent === null && scope.inputs.has(name) && !scope.initializers.has(name)) fromOutside = true;
        continue;
      }
      if (nodes.has(node)) continue;
      nodes.add(node);
      if (node.opType === "Shape" || node.opType === "Size") continue;
      for (const input of node.input) pending.push([scope, input]);
      for (const graph of node.attribute.flatMap(attributeGraphs))
        for (const { name: output } of graph.output) pending.push([scopeOf.get(graph)!, output]);
    }
    return { nodes, fromOutside };
  };
}
