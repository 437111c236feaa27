// Which nodes of a model stay in float32 when the others become float16, and why: operators without a float16 form,
// what the caller keeps, constants that float16 cannot hold, and values that must be exact: positions and counts, and
// what becomes a shape, an index or an angle.
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { checkAborted, pause } from "../file/files.ts";
import { halfTable } from "../file/half.ts";
import { ARRAY_MAX, elementCount, readFloats, tensorBytes } from "../file/values.ts";
import type { ElementTypes } from "../graph/infer.ts";
import { isKnownOperator, SEQUENCE } from "../graph/schemas.ts";
import type { Scope } from "../graph/graph.ts";
import {
  attributeFloat,
  attributeInt,
  attributeOf,
  definingScope,
  isDefaultDomain,
  nodeName,
  operatorName,
  resolveConstant,
} from "../graph/graph.ts";
import { nameMatcher } from "../patterns.ts";
import { clampOf, constantRanges, toHalf } from "./fp16-constants.ts";
import type { TargetContext } from "./target.ts";

const set = (words: string): ReadonlySet<string> => new Set(words.trim().split(/\s+/));

/** Operators that transformers.js keeps in float32 (DEFAULT_OP_BLOCK_LIST of its float16 converter). */
export const FP16_BLOCKED_OPS: readonly string[] =
  "NonMaxSuppression TopK RoiAlign Resize CumSum Min Max Upsample RandomNormalLike RandomUniformLike Cast".split(" ");

/**
 * Operators with a float input or output that is float32 only in some version up to opset 24, or chosen by an attribute
 * (onnx 1.23).
 */
const NO_HALF = set(`
  BlackmanWindow Celu CumSum DequantizeLinear DynamicQuantizeLinear HammingWindow HannWindow IsInf MeanVarianceNormalization MelWeightMatrix
  NonMaxSuppression QLinearConv QLinearMatMul QuantizeLinear Range Resize TfIdfVectorizer Upsample RandomNormal RandomUniform
  RandomNormalLike RandomUniformLike EyeLike Bernoulli Multinomial ScatterND ScatterElements Scatter`);
/** They convert types themselves: what they read may have either. */
const CONVERTS = set("Cast CastLike");
/** Contrib operators that onnxruntime runs in float16 (test/onnx/fp16-operators.test.ts). */
const MICROSOFT_HALF = set(`
  BiasGelu FastGelu FusedMatMul GatherBlockQuantized Gelu GroupQueryAttention MatMulBnb4 MatMulNBits MultiHeadAttention QuickGelu
  RotaryEmbedding SkipLayerNormalization SkipSimplifiedLayerNormalization`);
/** Operators that move values, and change none. */
const MOVES = set(`
  Concat Expand Flatten Gather GatherElements GatherND Identity Pad Reshape ScatterElements ScatterND Slice Split Squeeze Tile Transpose
  Unsqueeze`);
/** Operators that add or choose: negative constants beyond float16 are masks there. */
const CHOOSES = set("Add Sub Sum Where ConstantOfShape");
const BOUNDS = set("Clip Min Max");
/** Cheap operators: exactness asked of their results is asked of their inputs. */
const LIGHT: ReadonlySet<string> = new Set([
  ...MOVES,
  ...set(`
    Abs Add Ceil Clip CumSum Div Exp Floor Log Max Mean Min Mod Mul Neg Pow Range Reciprocal ReduceMax ReduceMin ReduceProd ReduceSum Round
    Sign Sqrt Sub Sum Where`),
]);
const ANGLES = set("Sin Cos Tan");
const COMPARES = set("Equal Less Greater LessOrEqual GreaterOrEqual");
const CONTROL = set("If Loop Scan");
const INTEGERS: ReadonlySet<number> = new Set([T.INT8, T.UINT8, T.INT16, T.UINT16, T.INT32, T.UINT32, T.INT64, T.UINT64]);
/** Inputs that are sizes, scales and the like, by operator. */
const EXACT_INPUTS: ReadonlyMap<string, readonly number[]> = new Map([
  ["Resize", [1, 2]],
  ["Upsample", [1]],
  ["Range", [0, 1, 2]],
  ["QuantizeLinear", [1]],
  ["DequantizeLinear", [1]],
]);
/** Elements of a table of frequencies: a larger one is a weight. */
const TABLE_MAX = 4096;
/** Relative error that a variance may take: 1 / sqrt(variance + epsilon) scales every value. */
const VARIANCE_ERROR = 2 ** -9;

const EXACT = "what it computes becomes a shape, an index, an integer or an angle";

export interface Float32Plan {
  /** Why a node stays in float32; a node that is not here becomes float16. */
  readonly reasons: ReadonlyMap<NodeProto, string>;
  /** Constants whose magnitudes beyond float16 are masks. */
  readonly masks: ReadonlySet<TensorProto>;
}

interface Work {
  readonly context: TargetContext;
  readonly scopes: readonly Scope[];
  readonly reasons: Map<NodeProto, string>;
  readonly masks: Set<TensorProto>;
  readonly typeOf: (scope: Scope, name: string) => number;
  readonly keep: (node: NodeProto, reason: string) => void;
  /** Values that a node moves though float16 cannot hold them. */
  readonly beyond: Values;
  /** Values that must be exact, whoever makes them. */
  readonly exact: Values;
}

/** A set of values by the graph that defines them. */
interface Values {
  add(scope: Scope, name: string): void;
  has(scope: Scope, name: string): boolean;
}

function valueSet(): Values {
  const names = new Map<Scope, Set<string>>();
  return {
    add(scope, name) {
      const owner = definingScope(scope, name);
      if (owner !== null) names.set(owner, (names.get(owner) ?? new Set()).add(name));
    },
    has(scope, name) {
      const owner = definingScope(scope, name);
      return owner !== null && (names.get(owner)?.has(name) ?? false);
    },
  };
}

/** Decides for every node. `left` are nodes that the caller leaves in float32, with its reasons. */
export async function planFloat32(
  context: TargetContext,
  scopes: readonly Scope[],
  types: ElementTypes,
  left: ReadonlyMap<NodeProto, string>,
): Promise<Float32Plan> {
  const reasons = new Map(left);
  const work: Work = {
    context,
    scopes,
    reasons,
    masks: new Set(),
    typeOf: (scope, name) => {
      const owner = definingScope(scope, name);
      return owner === null ? 0 : (types.get(owner)!.get(name) ?? 0);
    },
    keep: (node, reason) => {
      if (!reasons.has(node) && !CONTROL.has(node.opType)) reasons.set(node, reason);
    },
    beyond: valueSet(),
    exact: valueSet(),
  };
  keepOperators(work);
  await keepForConstants(work);
  forwards(work);
  backwards(work);
  keepTransposes(work);
  return { reasons, masks: work.masks };
}

const floatInputs = ({ typeOf }: Work, scope: Scope, node: NodeProto): string[] =>
  node.input.filter((name) => typeOf(scope, name) === T.FLOAT);

// ---- operators
// ---------------------------------------------------------------------------------------------------------------------

function keepOperators(work: Work): void {
  const { context, scopes, typeOf, keep, reasons } = work;
  const { options } = context;
  const blocked = new Set(options.blockedOps ?? FP16_BLOCKED_OPS);
  const keptOps = new Set(options.keepOps ?? []);
  const names = options.keep === undefined ? [] : scopes.flatMap(({ graph }) => graph.node.map(nodeName));
  const named = (options.keep ?? []).map((pattern) => ({ pattern, matches: nameMatcher("keep", pattern, names) }));
  const functions = new Set(context.model.proto.functions.map(({ domain, name }) => `${domain}:${name}`));
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      if (node.opType === "Constant" && isDefaultDomain(node)) continue;
      const hit = named.find(({ matches }) => matches(nodeName(node)));
      if (hit !== undefined) reasons.set(node, `kept by ${String(hit.pattern)}`);
      else if (keptOps.has(node.opType) || keptOps.has(operatorName(node))) reasons.set(node, `${node.opType} is kept in float32`);
      if (functions.has(`${node.domain}:${node.opType}`)) keep(node, "model-local functions stay in float32");
      const reason = operatorReason(context, scope, node) ?? (blocked.has(node.opType) ? `${node.opType} is kept in float32` : undefined);
      if (reason !== undefined) keep(node, reason);
      const values = [...node.input, ...node.output].filter((name) => name !== "");
      if (CONTROL.has(node.opType)) continue;
      const unknown = values.find((name) => typeOf(scope, name) === 0 && definingScope(scope, name) !== null);
      if (unknown !== undefined) keep(node, `the element type of ${JSON.stringify(unknown)} is not known`);
      if (values.some((name) => (typeOf(scope, name) & SEQUENCE) !== 0)) keep(node, "sequences stay in float32");
    }
  }
}

/** Why an operator has no float16 form here. */
function operatorReason(context: TargetContext, scope: Scope, node: NodeProto): string | undefined {
  if (!isDefaultDomain(node)) {
    if (node.domain === "com.microsoft" && MICROSOFT_HALF.has(node.opType)) return undefined;
    return `${node.domain} operators stay in float32`;
  }
  if (!isKnownOperator(node)) return `${node.opType} is no operator that this package knows`;
  if (CONVERTS.has(node.opType)) return `${node.opType} converts what it reads: it takes either type`;
  if (node.opType === "DequantizeLinear" && context.opset() >= 19 && resolveConstant(scope, node.input[0] ?? "") !== null) return undefined;
  if (NO_HALF.has(node.opType)) return `${node.opType} has no float16 form in every opset and runtime`;
  if (node.opType === "LayerNormalization" && node.output.length > 1) return "its statistics are float32";
  return undefined;
}

// ---- constants
// ---------------------------------------------------------------------------------------------------------------------

async function keepForConstants(work: Work): Promise<void> {
  const { context, scopes, reasons } = work;
  const ranges = constantRanges(context.model);
  const forced = context.options.clamp;
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      if (node.opType === "BatchNormalization" && !reasons.has(node) && !varianceFits(work, scope, node))
        reasons.set(node, "its variance does not survive float16");
      if (forced !== undefined) continue;
      for (const name of node.input) {
        const constant = resolveConstant(scope, name);
        if (constant === null || constant.tensor.dataType !== T.FLOAT || tensorBytes(constant.tensor) / 2 > ARRAY_MAX) continue;
        if (tensorBytes(constant.tensor) > 1 << 20) await pause();
        checkAborted(context.options.signal);
        judge(work, scope, node, constant.tensor, ranges(constant.tensor));
      }
    }
  }
}

/** What a node makes of a constant that float16 cannot hold. */
function judge(work: Work, scope: Scope, node: NodeProto, tensor: TensorProto, range: ReturnType<ReturnType<typeof constantRanges>>): void {
  const { keep, masks, reasons, beyond } = work;
  const op = node.opType;
  if (range.beyond > 0) {
    if (BOUNDS.has(op)) return;
    if (range.infinite || (range.negative && CHOOSES.has(op))) masks.add(tensor);
    else {
      keep(node, "its constants pass 65504, where float16 ends");
      if (MOVES.has(op) && reasons.has(node)) for (const output of node.output) beyond.add(scope, output);
    }
  } else if (range.tiny && !MOVES.has(op) && !CHOOSES.has(op) && !BOUNDS.has(op)) keep(node, "its constants are too small for float16");
}

/**
 * Does the constant variance of a BatchNormalization keep its size in float16? Values under 6e-5 are subnormal there.
 */
function varianceFits({ context }: Work, scope: Scope, node: NodeProto): boolean {
  const variance = resolveConstant(scope, node.input[4] ?? "");
  if (variance === null || variance.tensor.dataType !== T.FLOAT) return true;
  const epsilon = attributeFloat(node, "epsilon", 1e-5);
  const values = readFloats(context.model, variance.tensor);
  const { codes } = toHalf(values, clampOf(values.length, false, context.options.clamp));
  const table = halfTable();
  return values.every((value, i) => Math.abs(table[codes[i]] - value) <= VARIANCE_ERROR * (value + epsilon));
}

// ---- values that must be exact
// ---------------------------------------------------------------------------------------------------------

/**
 * From the inputs on: integers that become floats are positions, ids and counts; what is made of them and constants
 * alone stays exact, up to the angle, comparison or activation that they end in. Sums of integer products (int32) pass
 * float16's range: what scales them stays.
 */
function forwards(work: Work): void {
  const { scopes, typeOf, keep, reasons, beyond, exact } = work;
  const born = valueSet();
  const sums = valueSet();
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      const [x] = node.input;
      if (node.opType === "Cast" && isDefaultDomain(node)) {
        const producer = definingScope(scope, x ?? "")?.producers.get(x);
        if (INTEGERS.has(typeOf(scope, x ?? "")))
          (producer !== undefined && /^(MatMul|Conv)Integer$/.test(producer.opType) ? sums : born).add(scope, node.output[0]);
        else if (born.has(scope, x)) born.add(scope, node.output[0]);
        continue;
      }
      const floats = floatInputs(work, scope, node);
      if (floats.some((name) => sums.has(scope, name))) {
        keep(node, "it scales sums of integer products");
        for (const name of floats) exact.add(scope, name);
      }
      if (floats.some((name) => beyond.has(scope, name))) {
        keep(node, "it reads constants beyond 65504, where float16 ends");
        if (MOVES.has(node.opType)) for (const name of node.output) beyond.add(scope, name);
      }
      if (!floats.some((name) => born.has(scope, name)) || !isExactStep(work, scope, node, floats, born)) continue;
      keep(node, "positions and counts are not rounded to float16");
      if (reasons.has(node) && !ANGLES.has(node.opType)) for (const name of node.output) born.add(scope, name);
    }
  }
}

function isExactStep(work: Work, scope: Scope, node: NodeProto, floats: readonly string[], born: Values): boolean {
  if (!isDefaultDomain(node)) return false;
  const product = node.opType === "MatMul" || node.opType === "Einsum";
  if (!product && !LIGHT.has(node.opType) && !ANGLES.has(node.opType) && !COMPARES.has(node.opType)) return false;
  return floats.every((name) => {
    if (born.has(scope, name)) return true;
    const constant = resolveConstant(scope, name);
    return constant !== null && !work.masks.has(constant.tensor) && (!product || elementCount(constant.tensor) <= TABLE_MAX);
  });
}

/** From the results back: what feeds a shape, an index, an integer or an angle through cheap operators. */
function backwards(work: Work): void {
  const { scopes, typeOf, keep, exact } = work;
  for (const scope of [...scopes].reverse()) {
    for (const node of [...scope.graph.node].reverse()) {
      if (!isDefaultDomain(node)) continue;
      const [x = ""] = node.input;
      const producer = definingScope(scope, x)?.producers.get(x);
      if (node.opType === "Cast" && typeOf(scope, x) === T.FLOAT && INTEGERS.has(attributeInt(node, "to", 0))) exact.add(scope, x);
      for (const index of EXACT_INPUTS.get(node.opType) ?? []) exact.add(scope, node.input[index] ?? "");
      if (ANGLES.has(node.opType) && (producer === undefined || LIGHT.has(producer.opType) || producer.opType === "Cast")) {
        keep(node, EXACT);
        exact.add(scope, x);
      }
      if (!LIGHT.has(node.opType) || !node.output.some((name) => exact.has(scope, name))) continue;
      keep(node, EXACT);
      for (const name of floatInputs(work, scope, node)) exact.add(scope, name);
    }
  }
}

/**
 * onnxruntime 1.30 fails with a segmentation fault when it loads a float16 Transpose of three axes that puts the second
 * one first and a product with a constant after it (x86-64; microsoft/onnxruntime#28392): that Transpose stays in
 * float32.
 */
function keepTransposes(work: Work): void {
  const { scopes, reasons, keep } = work;
  for (const scope of scopes) {
    for (const node of scope.graph.node) {
      if (node.opType !== "MatMul" || reasons.has(node)) continue;
      for (const name of node.input) {
        const before = definingScope(scope, name)?.producers.get(name);
        const perm = before?.opType === "Transpose" ? attributeOf(before, "perm")?.ints : undefined;
        if (perm?.length === 3 && perm[0] === 1n) keep(before!, "onnxruntime fails on this Transpose in float16 before a product");
      }
    }
  }
}
