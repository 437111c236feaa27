// equalize: cross-layer equalisation (Nagel et al., arXiv 1906.04721, 4.1) of layers with a positively homogeneous
// function between them: the range of each output channel of one and of the input channel of the next become equal, so
// that one scale per tensor fits. Conv, ConvTranspose, Gemm and MatMul, depthwise ones too, through ReLU, LeakyReLU,
// pooling and Flatten.
import { weightLayout } from "../matrix.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeInt, isDefaultDomain, nodeName } from "../graph/graph.ts";
import { readBias, readMatrix, takesBias, writeBias, writeWeight, type ModelLayer } from "../primitives.ts";
import { readOnce } from "./attention.ts";
import { vectorSize } from "./norms.ts";
import type { Pass, PassContext } from "./types.ts";

/** f(s x) = s f(x) for s > 0, channel by channel. */
const HOMOGENEOUS: ReadonlySet<string> = new Set(
  "Relu LeakyRelu MaxPool AveragePool GlobalAveragePool GlobalMaxPool Flatten Reshape Squeeze Identity Dropout".split(" "),
);
const LAYERS: ReadonlySet<string> = new Set(["Conv", "ConvTranspose", "Gemm", "MatMul"]);
const isProduct = ({ opType }: ModelLayer): boolean => opType === "Gemm" || opType === "MatMul";

/** A layer in float64, changed until it is written. */
interface Side {
  readonly layer: ModelLayer;
  readonly matrix: Float64Array;
  readonly bias: Float64Array | null;
  readonly rowSpan: number;
}

interface Pair {
  readonly from: Side;
  readonly to: Side;
  readonly channels: number;
  /** Columns of `to` that belong to one channel, in a row of its group. */
  readonly span: number;
}

/**
 * Whether a product contracts the channels that a convolution gives, and not another axis of the same size: behind
 * Flatten, or Reshape to more than a channel, or where every channel is one number.
 */
function readsChannels(layer: ModelLayer, between: readonly NodeProto[], next: ModelLayer): boolean {
  if (isProduct(layer)) return (isProduct(next) || layer.opType === "Gemm") && !between.some(({ opType }) => opType.endsWith("Pool"));
  if (!isProduct(next)) return true;
  const channels = layer.rows / weightLayout(layer).rowSpan;
  const single = between.some(({ opType }) => opType.startsWith("Global"));
  return between.some(
    (node) =>
      (node.opType === "Flatten" && attributeInt(node, "axis", 1) === 1) ||
      (node.opType === "Reshape" && (single || next.k > channels)) ||
      (node.opType === "Squeeze" && single),
  );
}

/**
 * The layer that reads what `layer` gives, and nothing else does; null with the reason where there is none that can be
 * equalised.
 */
function nextLayer(context: PassContext, layer: ModelLayer): ModelLayer | string {
  const { scope } = layer;
  let at = layer.output;
  const between: NodeProto[] = [];
  for (let steps = 0; steps < 12; steps++) {
    if (!readOnce(context, scope, at)) return "several nodes read it";
    const { node, input } = context.readers(scope, at)[0];
    const next = context.layerOf.get(node);
    if (next !== undefined && LAYERS.has(next.opType) && next.input === 1 && input === 0)
      return readsChannels(layer, between, next) ? next : "channels do not match";
    if (node === null || !isDefaultDomain(node)) return "no layer reads it";
    const bias =
      node.opType === "Add" && steps === 0 && layer.opType === "MatMul" && vectorSize(scope, node.input[1 - input]) === layer.rows;
    if (!bias && !(HOMOGENEOUS.has(node.opType) && input === 0)) return `${node.opType} (${nodeName(node)}) is between`;
    between.push(node);
    at = node.output[0];
  }
  return "no layer reads it";
}

function sideOf(context: PassContext, sides: Map<ModelLayer, Side>, layer: ModelLayer): Side {
  let side = sides.get(layer);
  if (side === undefined) {
    const { rowSpan } = weightLayout(layer);
    const bias = takesBias(layer) ? readBias(context.model, layer) : null;
    sides.set(layer, (side = { layer, matrix: readMatrix(context.model, layer), bias, rowSpan }));
  }
  return side;
}

function pairOf(context: PassContext, sides: Map<ModelLayer, Side>, layer: ModelLayer, next: ModelLayer): Pair | string {
  const from = sideOf(context, sides, layer);
  const to = sideOf(context, sides, next);
  const channels = layer.rows / from.rowSpan;
  const inputs = next.k * next.groups;
  if (inputs % channels !== 0 || channels % next.groups !== 0) return `${next.name} reads ${inputs} inputs of ${channels} channels`;
  const span = inputs / channels;
  // Through Flatten a channel is a run of inputs; of a convolution it is the kernel.
  if (!isProduct(next) && span !== weightLayout(next).columnSpan) return "channels do not match";
  if ((next.opType === "MatMul" || layer.opType === "MatMul") && span !== 1) return "channels do not match";
  return { from, to, channels, span };
}

/** Input channel of each entry of `to`. */
const channelIn = ({ to, span }: Pair, index: number): number => {
  const { rows, k, groups } = to.layer;
  return Math.floor(Math.floor(index / k) / (rows / groups)) * (k / span) + Math.floor((index % k) / span);
};
const channelOut = ({ from }: Pair, index: number): number => Math.floor(index / from.layer.k / from.rowSpan);

/** One step of a pair. Returns the largest |s - 1|. */
function balance(pair: Pair): number {
  const { from, to, channels } = pair;
  const r1 = new Float64Array(channels);
  const r2 = new Float64Array(channels);
  from.matrix.forEach((v, i) => (r1[channelOut(pair, i)] = Math.max(r1[channelOut(pair, i)], Math.abs(v))));
  to.matrix.forEach((v, i) => (r2[channelIn(pair, i)] = Math.max(r2[channelIn(pair, i)], Math.abs(v))));
  const s = r1.map((r, c) => (r === 0 || r2[c] === 0 ? 1 : Math.sqrt(r / r2[c])));
  from.matrix.forEach((v, i) => (from.matrix[i] = v / s[channelOut(pair, i)]));
  to.matrix.forEach((v, i) => (to.matrix[i] = v * s[channelIn(pair, i)]));
  from.bias?.forEach((v, c) => (from.bias![c] = v / s[c]));
  return s.reduce((most, v) => Math.max(most, Math.abs(v - 1)), 0);
}

export const equalizePass: Pass = {
  name: "equalize",
  options: ["iterations"],
  check({ iterations = 20 }) {
    if (!(Number.isSafeInteger(iterations) && (iterations as number) >= 1))
      throw new RangeError(`pass equalize, iterations: expected a whole number above 0, got ${JSON.stringify(iterations)}.`);
  },
  run(context, { iterations = 20 }) {
    const sides = new Map<ModelLayer, Side>();
    const pairs: Pair[] = [];
    const reasons = new Map<string, number>();
    for (const layer of context.layers) {
      if (!LAYERS.has(layer.opType) || layer.input !== 1 || (layer.opType === "MatMul" && layer.shape.length !== 2)) continue;
      const next = nextLayer(context, layer);
      const pair = typeof next === "string" ? next : pairOf(context, sides, layer, next);
      if (typeof pair === "string") reasons.set(pair.replace(/ \(.*?\)/, ""), (reasons.get(pair.replace(/ \(.*?\)/, "")) ?? 0) + 1);
      else pairs.push(pair);
    }
    const most = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 3);
    const why = most.map(([reason, count]) => `${reason} (${count})`).join(", ");
    if (pairs.length === 0) {
      context.note(`no pairs of layers with ReLU or pooling alone between them were found${why === "" ? "" : `: ${why}`}; nothing changed`);
      return 0;
    }
    for (let i = 0; i < (iterations as number); i++) if (pairs.reduce((most, pair) => Math.max(most, balance(pair)), 0) < 1e-6) break;
    for (const { from, to } of pairs) {
      writeWeight(context.model, from.layer, from.matrix);
      writeWeight(context.model, to.layer, to.matrix);
      if (from.bias !== null) writeBias(context.model, from.layer, from.bias);
    }
    context.note(`${pairs.length} pairs of layers equalised${why === "" ? "" : `; others stay: ${why}`}`);
    return pairs.length;
  },
};
