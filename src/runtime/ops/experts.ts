// Mixtures of experts: com.microsoft.MoE and QMoE. A router gives each token to k experts, each of which is two
// products with an activation between them; the results are added by the experts' weights. Constant weights are packed
// layers of the backend, two for each expert. Source: onnxruntime docs/ContribOperators.md and what its CPU kernels
// compute.
import type { SyncLayer } from "../../backends/types.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { Value } from "../value.ts";
import { floatData, floats } from "../value.ts";
import { CODE_BITS, expertCodes } from "./codes.ts";
import type { Inputs, Operator, Operators, PrepareContext, Prepared } from "./operator.ts";
import { fail, need, text } from "./operator.ts";
import { floatWeight, layerProduct, loopProduct, type RowProduct } from "./product.ts";

/** A product with its sizes. */
interface Product {
  readonly n: number;
  readonly k: number;
  readonly run: RowProduct;
}

/** The products of each expert, and the biases [experts, n] of both. */
interface Experts {
  readonly up: readonly Product[];
  readonly down: readonly Product[];
}

/** Inputs of an operator that are no weights. */
interface Places {
  readonly biases: readonly [number, number];
  /** What experts weigh, where it is not said by the router's values. */
  readonly weights?: number;
}

const MOE: Places = { biases: [3, 5] };
const QMOE: Places = { biases: [4, 7], weights: 14 };

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

const ACTIVATIONS: ReadonlyMap<string, (x: number) => number> = new Map<string, (x: number) => number>([
  ["relu", (x) => Math.max(0, x)],
  ["gelu", (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))],
  ["silu", (x) => x * sigmoid(x)],
  ["identity", (x) => x],
]);

const activationOf = (node: NodeProto): string => text(node, "activation_type", "relu");

/** What stands between the products; of swiglu [gate, linear, gate, linear, ...] one of each pair stays. */
function activate(h: Float32Array, node: NodeProto): Float32Array {
  const simple = ACTIVATIONS.get(activationOf(node));
  if (simple !== undefined) return h.map(simple);
  const alpha = attributeFloat(node, "activation_alpha", 1);
  const beta = attributeFloat(node, "activation_beta", 0);
  const limit = attributeFloat(node, "swiglu_limit", Infinity);
  return Float32Array.from({ length: h.length / 2 }, (_, i) => {
    const gate = Math.min(h[2 * i], limit);
    const linear = Math.max(-limit, Math.min(limit, h[2 * i + 1]));
    return gate * sigmoid(alpha * gate) * (linear + beta);
  });
}

/** The experts of a token, best first: of equal values the later one, as onnxruntime has it. */
function chosen(values: Float32Array, k: number): number[] {
  const order = Array.from(values, (_, i) => i);
  return order.sort((a, b) => values[b] - values[a] || b - a).slice(0, k);
}

/**
 * What the chosen experts weigh. `given`: weights of all experts; else shares of the softmax of the router's values,
 * of all experts or (`ofChosen`) of the chosen ones.
 */
function shares(values: Float32Array, experts: readonly number[], given: Float32Array | null, ofChosen: boolean): number[] {
  const top = values[experts[0]];
  const raw = experts.map((e) => (given === null ? Math.exp(values[e] - top) : given[e]));
  if (given !== null && !ofChosen) return raw;
  const sum = ofChosen ? raw.reduce((a, b) => a + b, 0) : values.reduce((a, v) => a + Math.exp(v - top), 0);
  return raw.map((v) => (sum === 0 ? 0 : v / sum));
}

/** Rows of x through one expert. */
function through(
  up: Product,
  down: Product,
  x: Float32Array,
  m: number,
  expert: number,
  biases: readonly (Value | undefined)[],
  node: NodeProto,
): Float32Array {
  const add = (y: Float32Array, n: number, bias: Value | undefined): Float32Array => {
    if (bias === undefined) return y;
    const b = floatData(bias, node.opType).subarray(expert * n, (expert + 1) * n);
    for (let i = 0; i < y.length; i++) y[i] += b[i % n];
    return y;
  };
  const h = activate(add(up.run(x, m), up.n, biases[0]), node);
  return add(down.run(h, m), down.n, biases[1]);
}

function mix({ up, down }: Experts, inputs: Inputs, node: NodeProto, places: Places): Value {
  const x = need(inputs, 0, node);
  const router = need(inputs, 1, node);
  const [data, values] = [floatData(x, node.opType), floatData(router, node.opType)];
  const hidden = x.dims.at(-1)!;
  const tokens = data.length / Math.max(1, hidden);
  if (hidden !== up[0]?.k) throw fail(node, `rows of ${up[0]?.k}`, `[${x.dims.join(", ")}]`);
  if (values.length !== tokens * up.length) throw fail(node, `router values [${tokens}, ${up.length}]`, `[${router.dims.join(", ")}]`);
  const given =
    places.weights === undefined || inputs[places.weights] === undefined ? null : floatData(inputs[places.weights]!, node.opType);
  if (given !== null && given.length !== values.length) throw fail(node, `router weights as router values`, `${given.length}`);
  const normalizes = attributeInt(node, "normalize_routing_weights", 0) === 1;
  // QMoE without weights of the router always takes the shares of the chosen experts
  const ofChosen = normalizes || (places.weights !== undefined && given === null);
  const k = Math.min(attributeInt(node, "k", 1), up.length);
  const routes: { readonly token: number; readonly share: number }[][] = up.map(() => []);
  for (let t = 0; t < tokens; t++) {
    const row = values.subarray(t * up.length, (t + 1) * up.length);
    const experts = chosen(row, k);
    const weights = shares(row, experts, given?.subarray(t * up.length, (t + 1) * up.length) ?? null, ofChosen);
    experts.forEach((e, i) => routes[e].push({ token: t, share: weights[i] }));
  }
  const biases = places.biases.map((i) => inputs[i]);
  const out = floats(x.dims);
  routes.forEach((route, e) => {
    if (route.length === 0) return;
    const rows = new Float32Array(route.length * hidden);
    route.forEach(({ token }, i) => rows.set(data.subarray(token * hidden, (token + 1) * hidden), i * hidden));
    const y = through(up[e], down[e], rows, route.length, e, biases, node);
    route.forEach(({ token, share }, i) => {
      for (let j = 0; j < hidden; j++) out.data[token * hidden + j] += share * y[i * hidden + j];
    });
  });
  return out;
}

/** Why a node is outside what is computed here; onnxruntime's CPU kernels have the same limits. */
const unlike = (node: NodeProto, third: number): string | undefined => {
  const activation = activationOf(node);
  if (activation !== "swiglu" && !ACTIVATIONS.has(activation)) return `with the activation ${activation}`;
  if (activation === "swiglu" && attributeInt(node, "swiglu_fusion", 0) !== 1) return "with swiglu of halves (swiglu_fusion other than 1)";
  if ((node.input[third] ?? "") !== "") return "with three weights for each expert";
  return attributeInt(node, "use_sparse_mixer", 0) === 1 ? "with a sparse mixer" : undefined;
};

/** Weights [experts, n, k] of floats, expert by expert. */
function floatProducts(
  w: Value,
  node: NodeProto,
  product: (weight: Float32Array, n: number, k: number, expert: number) => Product,
): Product[] {
  const data = floatData(w, node.opType);
  if (w.dims.length !== 3) throw fail(node, "weights [experts, outputs, inputs]", `[${w.dims.join(", ")}]`);
  const [experts, n, k] = w.dims;
  return Array.from({ length: experts }, (_, e) => product(data.subarray(e * n * k, (e + 1) * n * k), n, k, e));
}

const loops = (w: Float32Array, n: number, k: number): Product => ({ n, k, run: loopProduct(w, n, k) });

const packed = (layer: SyncLayer): Product => ({ n: layer.n, k: layer.k, run: layerProduct(layer) });

/** A node whose products are layers. */
const prepared = (experts: Experts, layer: SyncLayer, drops: readonly number[], places: Places): Prepared => ({
  run: (inputs, node) => mix(experts, inputs, node, places),
  kernel: layer.explain().kernel,
  drops,
});

const moe: Operator = {
  missing: (node) => unlike(node, 6),
  run: (inputs, node) => {
    const [up, down] = [2, 4].map((i) => floatProducts(need(inputs, i, node), node, loops));
    return mix({ up, down }, inputs, node, MOE);
  },
  prepare(node, context) {
    const weights = [2, 4].map((i) => context.constant(i));
    if (!weights.every((w) => w?.dims.length === 3 && w.data instanceof Float32Array && w.data.length > 0)) return undefined;
    let first: SyncLayer | undefined;
    const [up, down] = weights.map((w, i) =>
      floatProducts(w!, node, (weight, n, k, e) => {
        const layer = context.layer(`${node.input[[2, 4][i]]} expert ${e}`, () =>
          context.backend.prepare(floatWeight(weight, n, k, true), {}),
        );
        first ??= layer;
        return packed(layer);
      }),
    );
    return prepared({ up, down }, first!, [2, 4], MOE);
  },
};

/** The layers of one weight of QMoE: codes, scales, and zero points where there are some. */
function codeProducts(node: NodeProto, context: PrepareContext, [codesAt, zerosAt]: readonly [number, number]): SyncLayer[] | undefined {
  const [codes, scales, zeros] = [codesAt, codesAt + 1, zerosAt].map((i) => context.constant(i));
  if (codes?.type !== "uint8" || codes.dims.length !== 3 || !(scales?.data instanceof Float32Array)) return undefined;
  if (zeros === undefined ? (node.input[zerosAt] ?? "") !== "" : zeros.type !== "uint8") return undefined;
  const bits = attributeInt(node, "expert_weight_bits", 4);
  const { activations: asked } = context;
  const activations = asked !== "auto" ? asked : attributeInt(node, "accuracy_level", 0) === 4 ? "int8" : "float32";
  const [experts, n, bytes] = codes.dims;
  const k = (bytes * 8) / bits;
  const size = { n, k, bits, block: attributeInt(node, "block_size", 0) || k };
  return Array.from({ length: experts }, (_, e) =>
    context.layer(`${node.input[codesAt]} expert ${e} ${activations}`, () =>
      context.backend.prepare(expertCodes(node, { codes, scales, zeros }, e, experts, size), { activations }),
    ),
  );
}

const qMoe: Operator = {
  missing(node) {
    const kind = text(node, "quant_type", "int");
    if (kind !== "int" && kind !== "") return `with codes of ${kind}`;
    const bits = attributeInt(node, "expert_weight_bits", 4);
    if (!CODE_BITS.has(bits)) return `with ${bits} bits`;
    return attributeInt(node, "weights_prepacked", 0) === 1 ? "with weights in a layout of a device" : unlike(node, 8);
  },
  run: (inputs, node) => {
    throw fail(node, "constant codes, float32 scales and uint8 zero points", inputs.map((v) => v?.type ?? "none").join(", "));
  },
  prepare(node, context) {
    const [up, down] = ([[2, 11], [5, 12]] as const).map((at) => codeProducts(node, context, at)); // prettier-ignore
    if (up === undefined || down === undefined) return undefined;
    return prepared({ up: up.map(packed), down: down.map(packed) }, up[0], [2, 3, 5, 6, 11, 12], QMOE);
  },
};

export const experts: Operators = {
  "com.microsoft.MoE": moe,
  "com.microsoft.QMoE": qMoe,
};
