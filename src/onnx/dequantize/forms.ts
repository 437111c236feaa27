// The float form of each operator that holds quantized weights. A form is null where the graph around the operator is
// not the usual one. Sources: ONNX operators MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv; onnxruntime
// docs/ContribOperators.md for the others.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt, attributesOf, CONV_ATTRIBUTES, intAttribute, nodeName } from "../graph/graph.ts";
import { bnb4Values, integerValues, nbitsValues, tableValues, type Numbers } from "./codes.ts";
import { qMoE } from "./experts.ts";
import { dynamicLstm } from "./lstm.ts";
import { addFloats, newNode, plainName, type FloatForm, type Rewriting } from "./rewriting.ts";

type Form = (node: NodeProto, work: Rewriting) => FloatForm | null;

const inputOf = (node: NodeProto, i: number): string => node.input[i] ?? "";

/** `form` from a value `x`, and an Add where there is a bias. */
function withBias(work: Rewriting, node: NodeProto, bias: string, product: (output: string) => NodeProto): FloatForm {
  const [output] = node.output;
  if (bias === "") return { at: node, nodes: [product(output)], instead: [node] };
  const inner = work.names.take(`${output}_product`);
  const add = newNode(work, "Add", [inner, bias], output, `${plainName(nodeName(node))}_bias`);
  return { at: node, nodes: [product(inner), add], instead: [node] };
}

const matMulNBits: Form = (node, work) => {
  const [codes, scales] = [work.numbers(inputOf(node, 1)), work.numbers(inputOf(node, 2))];
  const given = inputOf(node, 3);
  const zeros = work.numbers(given);
  const [k, rows] = [attributeInt(node, "K", 0), attributeInt(node, "N", 0)];
  const [bits, blockSize] = [attributeInt(node, "bits", 4), attributeInt(node, "block_size", 0)];
  // g_idx says another group for each column
  if (codes === null || scales === null || (given !== "" && zeros === null) || inputOf(node, 4) !== "") return null;
  if (![2, 4, 8].includes(bits) || blockSize < 1 || scales.data.length !== rows * Math.ceil(k / blockSize)) return null;
  const values = nbitsValues({ rows, k, bits, blockSize }, codes, scales, zeros);
  const weight = addFloats(work, inputOf(node, 1), [k, rows], values, scales.dataType);
  return withBias(work, node, inputOf(node, 5), (output) =>
    newNode(work, "MatMul", [inputOf(node, 0), weight], output, plainName(nodeName(node))),
  );
};

const matMulBnb4: Form = (node, work) => {
  const [codes, absmax] = [work.numbers(inputOf(node, 1)), work.numbers(inputOf(node, 2))];
  const [k, rows] = [attributeInt(node, "K", 0), attributeInt(node, "N", 0)];
  const blockSize = attributeInt(node, "block_size", 0);
  if (codes === null || absmax === null || blockSize < 1) return null;
  const values = bnb4Values({ rows, k, blockSize }, codes, absmax, attributeInt(node, "quant_type", 1));
  const weight = addFloats(work, inputOf(node, 1), [k, rows], values, absmax.dataType);
  return withBias(work, node, "", (output) => newNode(work, "MatMul", [inputOf(node, 0), weight], output, plainName(nodeName(node))));
};

const gatherBlockQuantized: Form = (node, work) => {
  const [codes, scales] = [work.numbers(inputOf(node, 0)), work.numbers(inputOf(node, 2))];
  const zeros = work.numbers(inputOf(node, 3));
  if (codes === null || scales === null || (inputOf(node, 3) !== "" && zeros === null)) return null;
  const rank = codes.shape.length;
  const axis = (attributeInt(node, "quantize_axis", 1) + rank) % rank;
  // uint8 elements hold one code of 8 bits or two of 4, counted from the middle
  const bits = attributeInt(node, "bits", 4);
  const bytes = codes.dataType === T.UINT8;
  const settings = {
    axis,
    blockSize: attributeInt(node, "block_size", 128),
    perByte: bytes ? 8 / bits : 1,
    zero: bytes ? 2 ** (bits - 1) : 0,
  };
  const { values, shape } = tableValues(codes, scales, zeros, settings);
  const table = addFloats(work, inputOf(node, 0), shape, values, scales.dataType);
  const attributes = [intAttribute("axis", attributeInt(node, "gather_axis", 0))];
  return withBias(work, node, "", (output) =>
    newNode(work, "Gather", [table, inputOf(node, 1)], output, plainName(nodeName(node)), attributes),
  );
};

/** A quantized activation as floats: what DynamicQuantizeLinear took, or behind a DequantizeLinear. */
function floatActivation(work: Rewriting, codes: string, scale: string, zeroPoint: string, nodes: NodeProto[]): string {
  const dynamic = work.maker(codes);
  if (dynamic?.opType === "DynamicQuantizeLinear" && dynamic.output[0] === codes && dynamic.output[1] === scale) return dynamic.input[0];
  const output = work.names.take(`${codes}_float`);
  nodes.push(
    newNode(work, "DequantizeLinear", zeroPoint === "" ? [codes, scale] : [codes, scale, zeroPoint], output, `${codes}_DequantizeLinear`),
  );
  return output;
}

/** A weight of integers with a scale per tensor or channel, as a float constant. */
function floatWeight(work: Rewriting, codes: string, scale: Numbers | null, zeroPoint: string, axisOf: (rank: number) => number) {
  const [numbers, zeros] = [work.numbers(codes), work.numbers(zeroPoint)];
  if (numbers === null || scale === null || (zeroPoint !== "" && zeros === null)) return null;
  const axis = axisOf(numbers.shape.length);
  const channels = numbers.shape[axis];
  if ([scale, zeros].some((level) => level !== null && level.data.length !== 1 && level.data.length !== channels)) return null;
  const values = integerValues(numbers, scale, zeros, axis);
  return { name: addFloats(work, codes, numbers.shape, values, scale.dataType), channels };
}

const lastAxis = (rank: number): number => rank - 1;
const firstAxis = (): number => 0;

/** MatMulInteger or ConvInteger, Cast, Mul by a product of both scales: how dynamic quantization is written. */
const integerProduct =
  (op: "MatMul" | "Conv"): Form =>
  (node, work) => {
    const cast = work.onlyReader(node.output[0]);
    if (cast?.opType !== "Cast" || attributeInt(cast, "to", 0) !== T.FLOAT) return null;
    const scaled = work.onlyReader(cast.output[0]);
    if (scaled?.opType !== "Mul") return null;
    const scales = work.maker(scaled.input[scaled.input[0] === cast.output[0] ? 1 : 0]);
    if (scales?.opType !== "Mul") return null;
    // the activation's scale comes first; it is the computed one where only one is
    const [first, second] = scales.input;
    const [activation, weight] = work.numbers(second) === null ? [second, first] : [first, second];
    const nodes: NodeProto[] = [];
    const made = floatWeight(work, inputOf(node, 1), work.numbers(weight), inputOf(node, 3), op === "Conv" ? firstAxis : lastAxis);
    if (made === null) return null;
    const x = floatActivation(work, inputOf(node, 0), activation, inputOf(node, 2), nodes);
    const attributes = op === "Conv" ? attributesOf(node, CONV_ATTRIBUTES) : [];
    nodes.push(newNode(work, op, [x, made.name], scaled.output[0], plainName(nodeName(node)), attributes));
    return { at: scaled, nodes, instead: [node, cast, scaled] };
  };

const dynamicQuantizeMatMul: Form = (node, work) => {
  const made = floatWeight(work, inputOf(node, 1), work.numbers(inputOf(node, 2)), inputOf(node, 3), lastAxis);
  if (made === null) return null;
  return withBias(work, node, inputOf(node, 4), (output) =>
    newNode(work, "MatMul", [inputOf(node, 0), made.name], output, plainName(nodeName(node))),
  );
};

const matMulIntegerToFloat: Form = (node, work) => {
  const made = floatWeight(work, inputOf(node, 1), work.numbers(inputOf(node, 3)), inputOf(node, 5), lastAxis);
  if (made === null) return null;
  const nodes: NodeProto[] = [];
  const x = floatActivation(work, inputOf(node, 0), inputOf(node, 2), inputOf(node, 4), nodes);
  const form = withBias(work, node, inputOf(node, 6), (output) =>
    newNode(work, "MatMul", [x, made.name], output, plainName(nodeName(node))),
  );
  return { ...form, nodes: [...nodes, ...form.nodes] };
};

/**
 * A statically quantized operator: DequantizeLinear before, the float operator, QuantizeLinear behind where the result
 * is quantized.
 */
function staticForm(
  work: Rewriting,
  node: NodeProto,
  places: { readonly y: readonly [scale: string, zeroPoint: string] },
  x: readonly [codes: string, scale: string, zeroPoint: string],
  float: (x: string, output: string) => NodeProto[],
): FloatForm {
  const nodes: NodeProto[] = [];
  const input = floatActivation(work, ...x, nodes);
  const [scale, zeroPoint] = places.y;
  const output = scale === "" ? node.output[0] : work.names.take(`${node.output[0]}_float`);
  nodes.push(...float(input, output));
  if (scale !== "")
    nodes.push(newNode(work, "QuantizeLinear", [output, scale, zeroPoint], node.output[0], `${nodeName(node)}_QuantizeLinear`));
  return { at: node, nodes, instead: [node] };
}

const three = (node: NodeProto, from: number): [string, string, string] => [
  inputOf(node, from),
  inputOf(node, from + 1),
  inputOf(node, from + 2),
];

const qLinearMatMul: Form = (node, work) => {
  const made = floatWeight(work, inputOf(node, 3), work.numbers(inputOf(node, 4)), inputOf(node, 5), lastAxis);
  if (made === null) return null;
  return staticForm(work, node, { y: [inputOf(node, 6), inputOf(node, 7)] }, three(node, 0), (x, output) => [
    newNode(work, "MatMul", [x, made.name], output, plainName(nodeName(node))),
  ]);
};

/** A bias of int32 codes: their scale is that of the input times that of the weight. */
function floatBias(work: Rewriting, bias: string, inputScale: Numbers | null, weightScale: Numbers | null, alpha = 1): string | null {
  if (bias === "") return "";
  const codes = work.numbers(bias);
  if (codes === null || inputScale === null || weightScale === null) return null;
  const scale = (i: number): number => alpha * Math.fround(inputScale.data[0] * weightScale.data[weightScale.data.length === 1 ? 0 : i]);
  return addFloats(
    work,
    bias,
    codes.shape,
    Float32Array.from(codes.data, (code, i) => code * scale(i)),
    weightScale.dataType,
  );
}

const qLinearConv: Form = (node, work) => {
  const [inputScale, weightScale] = [work.numbers(inputOf(node, 1)), work.numbers(inputOf(node, 4))];
  const made = floatWeight(work, inputOf(node, 3), weightScale, inputOf(node, 5), firstAxis);
  const bias = made === null ? null : floatBias(work, inputOf(node, 8), inputScale, weightScale);
  if (made === null || bias === null) return null;
  return staticForm(work, node, { y: [inputOf(node, 6), inputOf(node, 7)] }, three(node, 0), (x, output) => [
    newNode(
      work,
      "Conv",
      bias === "" ? [x, made.name] : [x, made.name, bias],
      output,
      plainName(nodeName(node)),
      attributesOf(node, CONV_ATTRIBUTES),
    ),
  ]);
};

const qGemm: Form = (node, work) => {
  const [inputScale, weightScale] = [work.numbers(inputOf(node, 1)), work.numbers(inputOf(node, 4))];
  const axis = attributeInt(node, "transB", 0) === 0 ? lastAxis : firstAxis;
  const made = floatWeight(work, inputOf(node, 3), weightScale, inputOf(node, 5), axis);
  const bias = made === null ? null : floatBias(work, inputOf(node, 6), inputScale, weightScale, attributeFloat(node, "alpha", 1));
  if (made === null || bias === null) return null;
  const attributes = attributesOf(node, ["alpha", "transA", "transB"]);
  return staticForm(work, node, { y: [inputOf(node, 7), inputOf(node, 8)] }, three(node, 0), (x, output) => [
    newNode(work, "Gemm", bias === "" ? [x, made.name] : [x, made.name, bias], output, plainName(nodeName(node)), attributes),
  ]);
};

/** A row of a table of integers, then its scale: DequantizeLinear behind a Gather of codes. */
const gatheredTable: Form = (node, work) => {
  const gather = work.maker(inputOf(node, 0));
  if (gather?.opType !== "Gather" || work.onlyReader(gather.output[0]) !== node) return null;
  const scale = work.numbers(inputOf(node, 1));
  if (scale === null || scale.data.length !== 1) return null;
  const made = floatWeight(work, inputOf(gather, 0), scale, inputOf(node, 2), firstAxis);
  if (made === null) return null;
  const row = newNode(work, "Gather", [made.name, inputOf(gather, 1)], node.output[0], plainName(nodeName(gather)), gather.attribute);
  return { at: node, nodes: [row], instead: [node, gather] };
};

/** A table of integers with a scale per row: codes and scales are gathered apart and multiplied. */
const gatheredRows: Form = (node, work) => {
  for (const [codesAt, scaleAt] of [
    [0, 1],
    [1, 0],
  ]) {
    const cast = work.maker(inputOf(node, codesAt));
    const scaled = work.maker(inputOf(node, scaleAt));
    const gather = cast?.opType === "Cast" ? work.maker(inputOf(cast, 0)) : undefined;
    if (cast === undefined || gather?.opType !== "Gather" || scaled?.opType !== "Gather") continue;
    if (inputOf(gather, 1) !== inputOf(scaled, 1)) continue;
    const alone = [cast, gather, scaled].every(({ output: [name] }) => work.onlyReader(name) !== undefined);
    const [codes, scale] = [work.numbers(inputOf(gather, 0)), work.numbers(inputOf(scaled, 0))];
    if (!alone || codes === null || codes.dataType === T.FLOAT || scale === null || scale.data.length !== codes.shape[0]) continue;
    const made = floatWeight(work, inputOf(gather, 0), scale, "", firstAxis)!;
    const row = newNode(work, "Gather", [made.name, inputOf(gather, 1)], node.output[0], plainName(nodeName(gather)), gather.attribute);
    return { at: node, nodes: [row], instead: [node, cast, gather, scaled] };
  }
  return null;
};

/** Operators that are read in a form only where the nodes around them say so; else they are what they seem. */
export const ORDINARY: ReadonlySet<string> = new Set(["DequantizeLinear", "Mul"]);

/** The forms by operator. */
export const FORMS: ReadonlyMap<string, Form> = new Map<string, Form>([
  ["com.microsoft.MatMulNBits", matMulNBits],
  ["com.microsoft.MatMulBnb4", matMulBnb4],
  ["com.microsoft.GatherBlockQuantized", gatherBlockQuantized],
  ["MatMulInteger", integerProduct("MatMul")],
  ["ConvInteger", integerProduct("Conv")],
  ["com.microsoft.DynamicQuantizeMatMul", dynamicQuantizeMatMul],
  ["com.microsoft.MatMulIntegerToFloat", matMulIntegerToFloat],
  ["com.microsoft.DynamicQuantizeLSTM", dynamicLstm],
  ["com.microsoft.QMoE", qMoE],
  ["QLinearMatMul", qLinearMatMul],
  ["QLinearConv", qLinearConv],
  ["com.microsoft.QGemm", qGemm],
  ["DequantizeLinear", gatheredTable],
  ["Mul", gatheredRows],
]);
