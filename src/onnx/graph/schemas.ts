// Which element types operators give, from their schemas (onnx 1.23 with history, onnxruntime's contrib operators).
// What is not here is unknown: callers leave it, and what touches it, alone.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { attributeInt, attributeOf, constantTensor } from "./nodes.ts";
import { isDefaultDomain } from "./scopes.ts";

/** Added to an element type: a sequence (or optional, or a sequence of maps) of such tensors. */
export const SEQUENCE = 1 << 8;

export interface OutputContext {
  readonly node: NodeProto;
  /** Element type of an input; 0: unknown or missing. */
  readonly input: (index: number) => number;
  readonly opset: number;
}

/** Types of a node's outputs; the last one stands for all that follow. */
type Rule = (context: OutputContext) => readonly number[];

const words = (text: string): string[] => text.trim().split(/\s+/);
const fixed =
  (...types: number[]): Rule =>
  () =>
    types;
const like =
  (...inputs: number[]): Rule =>
  ({ input }) => [inputs.reduce((type, index) => type || input(index), 0)];
const first: Rule = ({ input }) => [input(0)];
/** All inputs have one type: any that is known tells it. */
const common: Rule = ({ node, input }) => [node.input.reduce((type, _, i) => type || input(i), 0)];
const attribute =
  (name: string, fallback: (context: OutputContext) => number): Rule =>
  (context) => [attributeInt(context.node, name, 0) || fallback(context)];
const element: Rule = ({ input }) => [input(0) & ~SEQUENCE];
const sequence: Rule = (context) => [common(context)[0] === 0 ? 0 : common(context)[0] | SEQUENCE];
/** Class labels are strings where the attribute says so. */
const labels =
  (name: string): Rule =>
  ({ node }) => [(attributeOf(node, name)?.strings.length ?? 0) > 0 ? T.STRING : T.INT64, T.FLOAT];

const GROUPS: readonly (readonly [operators: string, rule: Rule])[] = [
  [
    `Add Sub Mul Div Max Min Mean Sum Mod PRelu Concat MatMul Gemm Conv ConvTranspose Einsum InstanceNormalization BitwiseAnd BitwiseOr
     BitwiseXor Range StringConcat`,
    common,
  ],
  [
    `Abs Acos Acosh Affine AffineGrid Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift BitwiseNot Ceil Celu CenterCropPad Clip
     Col2Im Compress Cos Cosh Crop CumProd CumSum DFT DeformConv DepthToSpace Det Elu Erf Exp Expand Flatten Floor GRU Gather GatherElements
     GatherND Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
     ImageScaler LRN LSTM LeakyRelu Log LogSoftmax LpNormalization LpPool MaxRoiPool MaxUnpool MeanVarianceNormalization Mish
     Neg NegativeLogLikelihoodLoss Pad ParametricSoftplus Pow RMSNormalization RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
     ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round
     STFT ScaledTanh Scatter ScatterElements ScatterND Selu SequenceErase SequenceInsert Shrink Sigmoid Sign SimplifiedLayerNormalization
     Sin Sinh Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Swish Tan Tanh TensorScatter
     ThresholdedRelu Tile Transpose Trilu Unsqueeze Upsample`,
    first,
  ],
  ["Shape Size ArgMax ArgMin NonZero NonMaxSuppression SequenceLength", fixed(T.INT64)],
  [`Equal Less Greater LessOrEqual GreaterOrEqual And Or Xor Not IsNaN IsInf OptionalHasElement RegexFullMatch`, fixed(T.BOOL)],
  ["TopK MaxPool Unique", ({ input }) => [input(0), T.INT64]],
  ["Dropout", ({ input, opset }) => [input(0), opset < 10 ? input(0) : T.BOOL]],
  ["LayerNormalization", ({ node, input }) => [input(0), attributeInt(node, "stash_type", T.FLOAT)]],
  ["CastLike", like(1)],
  ["Where", like(1, 2)],
  ["OneHot", like(2)],
  ["Cast BitCast", ({ node, opset }) => [opset < 6 ? namedType(node) : attributeInt(node, "to", 0)]],
  ["Constant", ({ node }) => [constantType(node)]],
  ["ConstantOfShape", ({ node }) => [attributeOf(node, "value")?.t?.dataType ?? T.FLOAT]],
  ["RandomNormal RandomUniform", attribute("dtype", () => T.FLOAT)],
  ["HannWindow HammingWindow BlackmanWindow MelWeightMatrix", attribute("output_datatype", () => T.FLOAT)],
  ["RandomNormalLike RandomUniformLike EyeLike Bernoulli", attribute("dtype", ({ input }) => input(0))],
  ["Multinomial", attribute("dtype", () => T.INT32)],
  ["TfIdfVectorizer", fixed(T.FLOAT)],
  ["ImageDecoder", fixed(T.UINT8)],
  ["StringNormalizer", fixed(T.STRING)],
  ["StringSplit", fixed(T.STRING, T.INT64)],
  ["QuantizeLinear", ({ node, input }) => [input(2) || attributeInt(node, "output_dtype", T.UINT8)]],
  ["DequantizeLinear", attribute("output_dtype", ({ input }) => input(1))],
  ["DynamicQuantizeLinear", fixed(T.UINT8, T.FLOAT, T.UINT8)],
  ["MatMulInteger ConvInteger", fixed(T.INT32)],
  ["QLinearMatMul QLinearConv", like(7)],
  ["SequenceConstruct SplitToSequence Optional", sequence],
  ["SequenceEmpty", ({ node }) => [attributeInt(node, "dtype", T.FLOAT) | SEQUENCE]],
  ["SequenceAt ConcatFromSequence OptionalGetElement", element],
];

const ML_GROUPS: readonly (readonly [operators: string, rule: Rule])[] = [
  ["ArrayFeatureExtractor Binarizer Imputer", first],
  ["FeatureVectorizer LinearRegressor Normalizer OneHotEncoder SVMRegressor Scaler TreeEnsembleRegressor", fixed(T.FLOAT)],
  ["LinearClassifier SVMClassifier", labels("classlabels_strings")],
  ["TreeEnsembleClassifier", labels("classlabels_strings")],
];

/** onnxruntime's contrib operators: what optimized and quantized models hold. */
const MICROSOFT_GROUPS: readonly (readonly [operators: string, rule: Rule])[] = [
  [
    `Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu FastGelu FusedConv FusedGemm FusedMatMul Gelu GemmaRotaryEmbedding GroupNorm
     GroupQueryAttention Inverse MatMulBnb4 MatMulFpQ4 MatMulNBits MoE MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool PackedAttention
     QGemm QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearAdd QLinearSigmoid QLinearSoftmax
     QMoE QuickGelu RotaryEmbedding SkipGroupNorm SparseAttention TransposeMatMul Trilu`,
    first,
  ],
  ["SkipLayerNormalization SkipSimplifiedLayerNormalization", ({ input }) => [input(0), T.FLOAT, T.FLOAT, input(0)]],
  ["EmbedLayerNormalization", ({ input }) => [input(2), T.INT32, input(2)]],
  ["GatherBlockQuantized", like(2)],
  ["DynamicQuantizeMatMul", fixed(T.FLOAT)],
  ["DynamicQuantizeLSTM", fixed(T.FLOAT, T.FLOAT, T.FLOAT)],
  ["MatMulIntegerToFloat QAttention", ({ node, input }) => [input(node.opType === "QAttention" ? 3 : 2)]],
  ["QuantizeLinear", ({ node, input }) => [input(2) || attributeInt(node, "output_dtype", T.UINT8)]],
  ["DequantizeLinear", like(1)],
];

const table = (groups: readonly (readonly [string, Rule])[]): ReadonlyMap<string, Rule> =>
  new Map(groups.flatMap(([operators, rule]) => words(operators).map((operator) => [operator, rule] as const)));

const RULES: ReadonlyMap<string, ReadonlyMap<string, Rule>> = new Map([
  ["", table(GROUPS)],
  ["ai.onnx.ml", table(ML_GROUPS)],
  ["com.microsoft", table(MICROSOFT_GROUPS)],
]);

const ruleOf = (node: NodeProto): Rule | undefined => RULES.get(isDefaultDomain(node) ? "" : node.domain)?.get(node.opType);

/** Element types of a node's outputs; 0 where they are unknown. Nodes with subgraphs are the caller's business. */
export function outputTypes(context: OutputContext): number[] {
  const rule = ruleOf(context.node);
  const types = rule?.(context) ?? [0];
  return context.node.output.map((_, i) => types[Math.min(i, types.length - 1)]);
}

/** Is this an operator of ONNX itself that this package knows? Those with subgraphs included. */
export const isKnownOperator = (node: NodeProto): boolean =>
  isDefaultDomain(node) && (ruleOf(node) !== undefined || ["If", "Loop", "Scan", "SequenceMap"].includes(node.opType));

/** Cast's `to` before opset 6: "FLOAT16". */
function namedType(node: NodeProto): number {
  const name = new TextDecoder().decode(attributeOf(node, "to")?.s ?? new Uint8Array(0)).toUpperCase();
  return Object.hasOwn(T, name) ? (T[name as keyof typeof T] as number) : 0;
}

function constantType(node: NodeProto): number {
  const [attribute] = node.attribute;
  if (attribute?.name === "sparse_value") return attribute.sparseTensor?.values?.dataType ?? 0;
  if (attribute?.name.startsWith("value_string")) return T.STRING;
  return constantTensor(node)?.dataType ?? 0;
}
