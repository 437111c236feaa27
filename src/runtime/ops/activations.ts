// Element-wise operators beyond arithmetic: activations with parameters, trigonometry, rounding, tests. Source: the
// ONNX operator specifications; com.microsoft has none of them.
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { NumberArray, Value } from "../value.ts";
import { empty, floatData } from "../value.ts";
import { binary, cast, divisor, fold, unary } from "./elementwise.ts";
import type { Operator, Operators } from "./operator.ts";
import { need } from "./operator.ts";

/** An activation of one float attribute, or of two. */
const shaped = (make: (a: number, b: number) => (x: number) => number, a: [string, number], b: [string, number] = ["", 0]): Operator => ({
  run: (inputs, node) => unary(make(attributeFloat(node, ...a), b[0] === "" ? 0 : attributeFloat(node, ...b))).run(inputs, node),
});

/** Rounds to the nearest integer, halves to the even one. */
export function halfToEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/** log(1 + e^x), which neither overflows nor loses small values. */
const softplus = (x: number): number => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

const test = (f: (x: number, node: NodeProto) => boolean): Operator => ({
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const data = floatData(x, node.opType);
    const out = empty("bool", x.dims);
    for (let i = 0; i < data.length; i++) out.data[i] = f(data[i], node) ? 1 : 0;
    return out;
  },
});

/** Remainders with the sign of the divisor; `fmod`: with that of the dividend. */
const mod: Operator = {
  run(inputs, node) {
    const c = attributeInt(node, "fmod", 0) !== 0;
    const floored = (a: number, b: number): number => {
      const r = a % b;
      return r !== 0 && r < 0 !== b < 0 ? r + b : r;
    };
    const big = (a: bigint, b: bigint): bigint => {
      const r = a % divisor("Mod", b);
      return !c && r !== 0n && r < 0n !== b < 0n ? r + b : r;
    };
    return binary(c ? (a, b) => a % b : floored, big).run(inputs, node);
  },
};

const add = binary(
  (a, b) => a + b,
  (a, b) => a + b,
);

const mean: Operator = {
  run(inputs, node) {
    const sum = fold(add).run(inputs, node) as Value;
    return { ...sum, data: (sum.data as Float32Array).map((v) => v / inputs.length) };
  },
};

const signOf: Operator = {
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const out = empty(x.type, x.dims);
    if (x.data instanceof BigInt64Array) (out.data as BigInt64Array).set(x.data.map((v) => (v > 0n ? 1n : v < 0n ? -1n : 0n)));
    else for (let i = 0; i < x.data.length; i++) (out.data as NumberArray)[i] = Math.sign(x.data[i]);
    return out;
  },
};

/** x where it is not below 0, else x times a slope that broadcasts. */
const leak = binary((x, slope) => (x < 0 ? x * slope : x), null);

/** Inference: the input, and a mask of ones where it is asked for. */
const dropout: Operator = {
  missing: (node) => ((node.input[2] ?? "") !== "" ? "with a training mode" : undefined),
  run(inputs, node) {
    const x = need(inputs, 0, node);
    if ((node.output[1] ?? "") === "") return x;
    const mask = empty("bool", x.dims);
    (mask.data as Uint8Array).fill(1);
    return [x, mask];
  },
};

const SELU: [[string, number], [string, number]] = [
  ["alpha", 1.67326319217681884765625],
  ["gamma", 1.05070102214813232421875],
];

export const activations: Operators = {
  LeakyRelu: shaped((a) => (x) => (x < 0 ? a * x : x), ["alpha", 0.01]),
  PRelu: leak,
  Elu: shaped((a) => (x) => (x < 0 ? a * Math.expm1(x) : x), ["alpha", 1]),
  Celu: shaped((a) => (x) => Math.max(0, x) + Math.min(0, a * Math.expm1(x / a)), ["alpha", 1]),
  Selu: shaped((a, g) => (x) => g * (x <= 0 ? a * Math.expm1(x) : x), ...SELU),
  ThresholdedRelu: shaped((a) => (x) => (x > a ? x : 0), ["alpha", 1]),
  HardSigmoid: shaped((a, b) => (x) => Math.max(0, Math.min(1, a * x + b)), ["alpha", 0.2], ["beta", 0.5]),
  Softplus: unary(softplus),
  Softsign: unary((x) => x / (1 + Math.abs(x))),
  Mish: unary((x) => x * Math.tanh(softplus(x))),
  Swish: shaped((a) => (x) => x * sigmoid(a * x), ["alpha", 1]),
  Round: unary(halfToEven),
  Sign: signOf,
  Tan: unary(Math.tan),
  Asin: unary(Math.asin),
  Acos: unary(Math.acos),
  Atan: unary(Math.atan),
  Sinh: unary(Math.sinh),
  Cosh: unary(Math.cosh),
  Asinh: unary(Math.asinh),
  Acosh: unary(Math.acosh),
  Atanh: unary(Math.atanh),
  IsNaN: test(Number.isNaN),
  IsInf: test(
    (x, node) =>
      (x === Infinity && attributeInt(node, "detect_positive", 1) !== 0) ||
      (x === -Infinity && attributeInt(node, "detect_negative", 1) !== 0),
  ),
  Mod: mod,
  Xor: binary((a, b) => a ^ b, null, "bool"),
  Sum: fold(add),
  Mean: mean,
  CastLike: { run: (inputs, node) => cast(need(inputs, 0, node), need(inputs, 1, node).type) },
  Dropout: dropout,
};
