// Operators on codes as static quantization writes them, on parts of one input that is quantized first, so that their
// codes are on the device: an output for each. Scales are none whose codes lie on a tie.
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { RuntimeTensor } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "../onnx/build.ts";

type Kind = "uint8" | "int8" | "uint16" | "int16";

export interface CodeCase {
  readonly op: string;
  readonly x: readonly number[];
  /** Of x; "float32" is not quantized. Default uint8. */
  readonly type?: Kind | "float32";
  /** Inputs behind x; "x" is x once more. */
  readonly more?: readonly Input[];
  /** Inputs before it: QLinearConcat. */
  readonly before?: readonly Input[];
  readonly attributes?: Record<string, AttributeValue>;
  readonly outputs?: number;
}

type Input = "" | "x" | { readonly dims: readonly number[]; readonly type: string; readonly of: (i: number) => number };

const ints = (...list: number[]): { ints: number[] } => ({ ints: list });
const scale = (v: number): Input => ({ dims: [], type: "float32", of: () => v });
const zero = (v: number, type: Kind = "uint8"): Input => ({ dims: [], type, of: () => v });
const list = (type: string, ...values: number[]): Input => ({ dims: [values.length], type, of: (i) => values[i] });
/** Codes of weights: of 7 bits, as onnxruntime saturates sums of pairs on some processors. */
const codes = (...dims: number[]): Input => ({ dims, type: "int8", of: (i) => ((37 * i + 11 * (i >> 3)) % 127) - 63 });
const scales = (n: number): Input => ({ dims: [n], type: "float32", of: (i) => 0.0031 + 0.00077 * i });
const zeros = (n: number): Input => ({ dims: [n], type: "int8", of: () => 0 });
const bias = (n: number): Input => ({ dims: [n], type: "int32", of: (i) => 977 * i - 1500 });

const X = { uint8: [0.0173, 121], int8: [0.0171, -9], uint16: [7.3e-5, 30011], int16: [7.1e-5, -77] } as const;
/** Scale and zero point of x. */
const own = (type: Kind = "uint8"): Input[] => [scale(X[type][0]), zero(X[type][1], type)];
const out = (s: number, z: number, type: Kind = "uint8"): Input[] => [scale(s), zero(z, type)];

export const CODE_CASES: readonly CodeCase[] = [
  {
    op: "QLinearConv",
    x: [2, 6, 7, 5],
    more: [...own(), codes(8, 3, 3, 2), scales(8), zeros(8), ...out(0.0719, 117), bias(8)],
    attributes: { group: 2n, strides: ints(2, 1), pads: ints(1, 0, 1, 1) },
  },
  {
    op: "QLinearConv",
    x: [1, 5, 6, 6],
    type: "int8",
    more: [...own("int8"), codes(5, 1, 3, 3), scale(0.0037), zero(0, "int8"), ...out(0.0311, -128, "int8")],
    attributes: { group: 5n, dilations: ints(1, 2), pads: ints(1, 2, 1, 2) },
  },
  { op: "QLinearConv", x: [2, 3, 11], more: [...own(), codes(3, 3, 4), scale(0.0041), zero(3, "int8"), ...out(0.0613, 100), bias(3)], attributes: { strides: ints(3), pads: ints(2, 1) } }, // prettier-ignore
  { op: "QLinearMatMul", x: [2, 3, 5, 5], more: [...own(), "x", scale(0.0231), zero(90), ...out(0.0831, 131)] },
  { op: "QLinearMatMul", x: [4, 4], type: "int8", more: [...own("int8"), "x", ...own("int8"), ...out(0.0419, -5, "int8")] },
  { op: "QLinearMatMul", x: [2, 3, 17], more: [...own(), codes(17, 9), scales(9), zeros(9), ...out(0.0831, 131)] },
  { op: "QLinearMatMul", x: [5, 8], type: "int8", more: [...own("int8"), codes(8, 6), scale(0.0053), zero(-7, "int8"), ...out(0.0419, 3, "int8")] }, // prettier-ignore
  { op: "com.microsoft.QGemm", x: [4, 12], more: [...own(), codes(7, 12), scales(7), zeros(7), bias(7), ...out(0.0613, 127)], attributes: { transB: 1n } }, // prettier-ignore
  { op: "com.microsoft.QGemm", x: [6, 4], more: [...own(), codes(6, 5), scale(0.0047), zero(0, "int8"), "", ...out(0.0519, 113)], attributes: { transA: 1n, alpha: 0.75 } }, // prettier-ignore
  { op: "com.microsoft.QLinearAdd", x: [2, 3, 7], more: [...own(), "x", ...own(), ...out(0.0359, 97)] },
  { op: "com.microsoft.QLinearMul", x: [2, 5, 3], more: [...own(), { dims: [3], type: "uint8", of: (i) => 40 + 70 * i }, ...out(0.0093, 128), ...out(0.0211, 99)] }, // prettier-ignore
  { op: "com.microsoft.QLinearSigmoid", x: [3, 11], more: [...own(), ...out(0.00397, 1)] },
  { op: "com.microsoft.QLinearLeakyRelu", x: [3, 11], more: [...own(), ...out(0.0161, 41)], attributes: { alpha: 0.13 } },
  { op: "com.microsoft.QLinearConcat", x: [2, 3, 4], before: out(0.0229, 117), more: [...own(), "x", ...own()], attributes: { axis: 1n } },
  { op: "com.microsoft.QLinearAveragePool", x: [1, 3, 6, 5], more: [...own(), ...out(0.0127, 110)], attributes: { kernel_shape: ints(3, 2), strides: ints(2, 1), pads: ints(1, 0, 1, 1) } }, // prettier-ignore
  { op: "com.microsoft.QLinearGlobalAveragePool", x: [2, 3, 4, 5], more: [...own(), ...out(0.0031, 120)] },
  { op: "QuantizeLinear", x: [2, 5, 3], type: "float32", more: [scales(5), { dims: [5], type: "int8", of: (i) => 9 - 7 * i }], attributes: { axis: 1n } }, // prettier-ignore
  { op: "QuantizeLinear", x: [3, 8], type: "float32", more: [scale(0.00713)] },
  { op: "QuantizeLinear", x: [3, 8], type: "float32", more: out(6.1e-5, 30011, "uint16") },
  { op: "QuantizeLinear", x: [3, 8], type: "float32", more: out(7.9e-5, -600, "int16") },
  { op: "DequantizeLinear", x: [3, 8], type: "int16", more: own("int16") },
  { op: "DequantizeLinear", x: [4, 6], type: "int8", more: [scales(6), { dims: [6], type: "int8", of: (i) => 5 * i - 9 }], attributes: { axis: -1n } }, // prettier-ignore
  { op: "com.microsoft.DequantizeLinear", x: [4, 6], more: own() },
  { op: "MaxPool", x: [2, 3, 7, 6], attributes: { kernel_shape: ints(3, 2), strides: ints(2, 1), pads: ints(1, 0, 1, 1) } },
  { op: "MaxPool", x: [1, 4, 9], type: "int8", attributes: { kernel_shape: ints(3), dilations: ints(2) } },
  { op: "Transpose", x: [2, 3, 5], type: "int8", attributes: { perm: ints(2, 0, 1) } },
  { op: "Slice", x: [4, 9], more: [list("int64", 1, 2), list("int64", 3, 9), list("int64", 0, 1), list("int64", 1, 3)] },
  { op: "Concat", x: [2, 6], type: "int16", more: ["x"], attributes: { axis: 1n } },
  { op: "Split", x: [2, 9], type: "int8", more: [list("int64", 4, 5)], attributes: { axis: 1n }, outputs: 2 },
  { op: "Gather", x: [5, 4], more: [list("int64", 3, -1, 0)] },
  { op: "Expand", x: [3, 1], more: [list("int64", 2, 3, 4)] },
  { op: "Resize", x: [1, 2, 3, 4], more: ["", list("float32", 1, 1, 2, 1.5)], attributes: { mode: "nearest", coordinate_transformation_mode: "asymmetric", nearest_mode: "floor" } }, // prettier-ignore
  { op: "Reshape", x: [4, 6], type: "int8", more: [list("int64", 3, -1)] },
  { op: "Cast", x: [3, 7], type: "int8", attributes: { to: 1n } },
];

const size = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const ARRAYS = { float32: [Float32Array, T.FLOAT], int8: [Int8Array, T.INT8], uint8: [Uint8Array, T.UINT8], int16: [Int16Array, T.INT16], uint16: [Uint16Array, T.UINT16], int32: [Int32Array, T.INT32] } as const; // prettier-ignore

/** A model with outputs `y0` (of several: `y0`, `y0/1`) and so on. */
export function codesModel(cases: readonly CodeCase[]): { readonly bytes: Uint8Array; readonly feeds: Record<string, RuntimeTensor> } {
  const count = cases.reduce((sum, { x }) => sum + size(x), 0);
  const [initializer, nodes] = [[] as ReturnType<typeof raw>[], [] as ReturnType<typeof node>[]];
  const named = (opType: string, input: string[], output: string[], attributes: Record<string, AttributeValue> = {}): void => {
    const made = node(opType.replace("com.microsoft.", ""), input, output, attributes);
    if (opType.startsWith("com.microsoft.")) made.domain = "com.microsoft";
    nodes.push(made);
  };
  const constant = (name: string, { dims, type, of }: Exclude<Input, string>): string => {
    const values = Array.from({ length: size(dims) }, (_, i) => of(i));
    if (type === "int64") initializer.push(raw(name, [...dims], BigInt64Array.from(values, BigInt), T.INT64));
    else {
      const [array, element] = ARRAYS[type as keyof typeof ARRAYS];
      initializer.push(raw(name, [...dims], array.from(values), element));
    }
    return name;
  };
  initializer.push(raw("sizes", [cases.length], BigInt64Array.from(cases, ({ x }) => BigInt(size(x))), T.INT64)); // prettier-ignore
  named("Neg", ["all"], ["less"]);
  named("Split", ["less", "sizes"], cases.map((_, i) => `part${i}`)); // prettier-ignore
  const outputs: string[] = [];
  cases.forEach(({ op, x, type = "uint8", before = [], more = [], attributes, outputs: parts = 1 }, i) => {
    initializer.push(raw(`shape${i}`, [x.length], BigInt64Array.from(x, BigInt), T.INT64));
    named("Reshape", [`part${i}`, `shape${i}`], [type === "float32" ? `x${i}` : `v${i}`]);
    if (type !== "float32") {
      const given = own(type).map((input, j) => constant(`x${i}/${j}`, input as Exclude<Input, string>));
      named("QuantizeLinear", [`v${i}`, ...given], [`x${i}`]);
    }
    const nameOf = (input: Input, name: string): string => (input === "" ? "" : input === "x" ? `x${i}` : constant(name, input));
    const input = [...before.map((v, j) => nameOf(v, `b${i}_${j}`)), `x${i}`, ...more.map((v, j) => nameOf(v, `c${i}_${j}`))];
    const output = Array.from({ length: parts }, (_, j) => (j === 0 ? `y${i}` : `y${i}/${j}`));
    named(op, input, output, attributes);
    outputs.push(...output);
  });
  const proto = model(
    graph({ input: [value("all", T.FLOAT, [count])], output: outputs.map((name) => value(name, 0, [])), initializer, node: nodes }),
    { opset: 21, ir: 10 },
  );
  // the type of an output is onnxruntime's to infer
  for (const output of proto.graph!.output) output.type = undefined;
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  const all = { type: "float32", dims: [count], data: weights(count, 3).map((v) => 5 * v) };
  return { bytes: encode(proto), feeds: { all } };
}
