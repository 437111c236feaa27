// Element-wise operators as functions of one number: what a graph computes from one value and scalar constants (a GELU
// in any spelling, a scale, an activation) is a table over the codes of that value.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt, attributeOf, operatorName } from "../graph/graph.ts";

export type Unary = (x: number) => number;

/** erf within 1.2e-7 (Abramowitz and Stegun, 7.1.26, is not enough): a series below 2.5, a continued fraction above. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  if (a < 2.5) {
    let [term, sum] = [a, a];
    for (let n = 1; Math.abs(term) > 1e-17 * sum; n++) {
      term *= (-a * a) / n;
      sum += term / (2 * n + 1);
    }
    return Math.sign(x) * (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let k = 60; k > 0; k--) fraction = k / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + fraction));
}

const gelu: Unary = (x) => (x * (1 + erf(x / Math.SQRT2))) / 2;
const tanhGelu: Unary = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const sigmoid: Unary = (x) => 1 / (1 + Math.exp(-x));

type Apply = (args: readonly number[], node: NodeProto) => number;

const text = (node: NodeProto, name: string): string => new TextDecoder().decode(attributeOf(node, name)?.s ?? new Uint8Array(0));

const OPERATORS: ReadonlyMap<string, Apply> = new Map<string, Apply>([
  ["Add", ([a, b]) => a + b],
  ["Sub", ([a, b]) => a - b],
  ["Mul", ([a, b]) => a * b],
  ["Div", ([a, b]) => a / b],
  ["Pow", ([a, b]) => a ** b],
  ["Neg", ([a]) => -a],
  ["Abs", ([a]) => Math.abs(a)],
  ["Reciprocal", ([a]) => 1 / a],
  ["Sqrt", ([a]) => Math.sqrt(a)],
  ["Exp", ([a]) => Math.exp(a)],
  ["Log", ([a]) => Math.log(a)],
  ["Erf", ([a]) => erf(a)],
  ["Tanh", ([a]) => Math.tanh(a)],
  ["Sigmoid", ([a]) => sigmoid(a)],
  ["Softplus", ([a]) => Math.log1p(Math.exp(a))],
  ["Relu", ([a]) => Math.max(0, a)],
  ["LeakyRelu", ([a], node) => (a < 0 ? a * attributeFloat(node, "alpha", 0.01) : a)],
  ["Elu", ([a], node) => (a < 0 ? attributeFloat(node, "alpha", 1) * Math.expm1(a) : a)],
  ["HardSigmoid", ([a], node) => Math.min(1, Math.max(0, attributeFloat(node, "alpha", 0.2) * a + attributeFloat(node, "beta", 0.5)))],
  ["HardSwish", ([a]) => a * Math.min(1, Math.max(0, a / 6 + 0.5))],
  ["Clip", ([a, low = -Infinity, high = Infinity]) => Math.min(high, Math.max(low, a))],
  ["Min", (args) => Math.min(...args)],
  ["Max", (args) => Math.max(...args)],
  ["Identity", ([a]) => a],
  ["Dropout", ([a]) => a],
  ["Gelu", ([a], node) => (text(node, "approximate") === "tanh" ? tanhGelu(a) : gelu(a))],
  ["com.microsoft.Gelu", ([a]) => gelu(a)],
  ["com.microsoft.FastGelu", ([a]) => tanhGelu(a)],
  ["com.microsoft.QuickGelu", ([a], node) => a * sigmoid(attributeFloat(node, "alpha", 1.702) * a)],
]);

/** The operator as a function of its operands; undefined where it is not element-wise. */
export function elementwise(node: NodeProto): ((args: readonly number[]) => number) | undefined {
  const apply = OPERATORS.get(operatorName(node));
  if (apply === undefined || (node.opType === "Dropout" && attributeInt(node, "training_mode", 0) !== 0)) return undefined;
  return (args) => apply(args, node);
}

const SAMPLES = [-3, -1, -0.3, 0.2, 0.9, 2, 4];
const near = (f: Unary, g: Unary): boolean => SAMPLES.every((x) => Math.abs(f(x) - g(x)) <= 1e-6 * Math.abs(g(x)));

/** a, where f(x) = a x. */
export function slopeOf(f: Unary): number | undefined {
  const a = f(1);
  return Number.isFinite(a) && a !== 0 && f(0) === 0 && near(f, (x) => a * x) ? a : undefined;
}

/** a, where f(x) = a max(x, 0) with a positive. */
export function rectifierOf(f: Unary): number | undefined {
  const a = f(1);
  return Number.isFinite(a) && a > 0 && SAMPLES.every((x) => Math.abs(f(x) - a * Math.max(0, x)) <= 1e-6 * a * Math.abs(x)) ? a : undefined;
}

/** Whether f is GELU, by erf or tanh or x sigmoid(1.702 x). */
export const isGelu = (f: Unary): boolean => SAMPLES.every((x) => Math.abs(f(x) - gelu(x)) <= 0.021);
