// Element-wise operators as expressions, and any expression over broadcast operands as one job of the chain kernel.
import { chain, chainJob, chainSpec } from "../../../kernels/wasm/nn/chain.ts";
import type { Rows } from "../../../kernels/wasm/nn/rows.ts";
import {
  binary,
  constant,
  gelu,
  geluTanh,
  operand,
  select,
  silu,
  unary,
  type Value as Expression,
} from "../../../kernels/wasm/nn/values.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat } from "../../onnx/graph/nodes.ts";
import { broadcastDims } from "../ops/elementwise.ts";
import { text } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { elementsOf, isPlaceable, type Machine, type Slot } from "./machine.ts";

export type Build = (args: readonly Expression[], node: NodeProto) => Expression;

const one =
  (op: Parameters<typeof unary>[0]): Build =>
  ([x]) =>
    unary(op, x);
const two =
  (op: Parameters<typeof binary>[0]): Build =>
  ([x, y]) =>
    binary(op, x, y);
const fold =
  (op: "min" | "max"): Build =>
  (args) =>
    args.slice(1).reduce((a, b) => binary(op, a, b), args[0]);
const biased =
  (f: (x: Expression) => Expression): Build =>
  ([x, bias]) =>
    f(bias === undefined ? x : binary("add", x, bias));

/** Bounds are inputs that may be left out, or attributes (before opset 11). */
const clip: Build = (args, node) => {
  const bound = (i: number, name: string, none: number): Expression =>
    (node.input[i] ?? "") === ""
      ? constant(attributeFloat(node, name, none))
      : args[node.input.slice(0, i).filter((given) => given !== "").length];
  return binary("atMost", binary("atLeast", args[0], bound(1, "min", -Infinity)), bound(2, "max", Infinity));
};

/** Operators on float32 as expressions of their inputs. */
export const EXPRESSIONS: ReadonlyMap<string, Build> = new Map<string, Build>([
  ["Add", two("add")],
  ["Sub", two("sub")],
  ["Mul", two("mul")],
  ["Div", two("div")],
  ["Min", fold("min")],
  ["Max", fold("max")],
  ["lowbit.Square", ([x]) => binary("mul", x, x)],
  ["lowbit.Cube", ([x]) => binary("mul", binary("mul", x, x), x)],
  ["Neg", one("neg")],
  ["Abs", one("abs")],
  ["Sqrt", one("sqrt")],
  ["Exp", one("exp")],
  ["Sigmoid", one("sigmoid")],
  ["Tanh", one("tanh")],
  ["Erf", one("erf")],
  ["Floor", one("floor")],
  ["Ceil", one("ceil")],
  ["Reciprocal", ([x]) => binary("div", constant(1), x)],
  ["Relu", ([x]) => binary("atLeast", x, constant(0))],
  ["LeakyRelu", ([x], node) => select(binary("lt", x, constant(0)), binary("mul", x, constant(attributeFloat(node, "alpha", 0.01))), x)],
  ["Clip", clip],
  ["Gelu", ([x], node) => (text(node, "approximate", "none") === "tanh" ? geluTanh(x) : gelu(x))],
  [
    "HardSwish",
    ([x]) =>
      binary(
        "mul",
        x,
        binary("atLeast", binary("atMost", binary("add", binary("mul", x, constant(1 / 6)), constant(0.5)), constant(1)), constant(0)),
      ),
  ],
  [
    "HardSigmoid",
    ([x], node) => {
      const line = binary(
        "add",
        binary("mul", x, constant(attributeFloat(node, "alpha", 0.2))),
        constant(attributeFloat(node, "beta", 0.5)),
      );
      return binary("atMost", binary("atLeast", line, constant(0)), constant(1));
    },
  ],
  ["com.microsoft.Gelu", ([x]) => gelu(x)],
  ["com.microsoft.BiasGelu", biased(gelu)],
  ["com.microsoft.FastGelu", biased(geluTanh)],
  ["com.microsoft.QuickGelu", ([x], node) => silu(x, attributeFloat(node, "alpha", 1.702))],
]);

/**
 * The operands of a chain among its inputs: the first `count`. Undefined where one of the numbers after them would give
 * the result dimensions that no operand has.
 */
export function chainOperands<V extends { readonly dims: readonly number[] }>(
  inputs: readonly (V | undefined)[],
  count: number,
): readonly (V | undefined)[] | undefined {
  const ranks = inputs.map((value) => value?.dims.length ?? 0);
  return Math.max(0, ...ranks.slice(count)) > Math.max(...ranks.slice(0, count)) ? undefined : inputs.slice(0, count);
}

/** Elements of the output under one number of a value, where its last dimensions are 1. */
function reach(value: Value, dims: readonly number[]): number {
  let count = 1;
  for (let i = 1; i <= value.dims.length && value.dims.at(-i) === 1; i++) count *= dims.at(-i)!;
  return count;
}

/** An operand of a chain: a value of the output's shape, one number, one number for each row, or one row for all. */
function rowsOf(value: Value, address: number, dims: readonly number[], width: number): { kind: "vector" | "scalar"; rows: Rows } | null {
  const size = elementsOf(value);
  const total = dims.reduce((a, b) => a * b, 1);
  if (size === 1) return { kind: "scalar", rows: { address, outer: 0, inner: 0 } };
  if (size === total) return { kind: "vector", rows: { address, outer: 0, inner: 4 * width } };
  const own = value.dims.slice(value.dims.findIndex((d) => d !== 1));
  const trailing = dims.slice(dims.length - own.length);
  if (size === width && own.join() === trailing.join()) return { kind: "vector", rows: { address, outer: 0, inner: 0 } };
  if (size * width === total && reach(value, dims) === width && value.dims.length === dims.length)
    return { kind: "scalar", rows: { address, outer: 0, inner: 4 } };
  return null;
}

/** Up to this many elements are one row. */
const ROW = 16384;

function widthOf(values: readonly Value[], dims: readonly number[]): number {
  const total = dims.reduce((a, b) => a * b, 1);
  const sizes = values.map(elementsOf).filter((n) => n !== 1 && n !== total);
  const columns = values.filter((v) => elementsOf(v) !== 1 && elementsOf(v) !== total && v.dims.at(-1) === 1);
  if (columns.length > 0) return Math.min(...columns.map((v) => reach(v, dims)));
  if (sizes.length > 0) return Math.min(...sizes);
  return total <= ROW ? total : (dims.at(-1) ?? 1);
}

/** The expression over the operands as one job; null where their shapes are none that the kernel reads. */
export function runChain(m: Machine, make: (args: readonly Expression[]) => Expression, values: readonly Value[]): Slot | null {
  if (!values.some(isPlaceable) || values.some((value) => value.type !== "float32" || elementsOf(value) === 0)) return null;
  let dims: readonly number[] | null = [];
  for (const value of values) if (dims !== null) dims = broadcastDims(dims, value.dims);
  if (dims === null) return null;
  const width = widthOf(values, dims);
  const total = dims.reduce((a, b) => a * b, 1);
  if (total % width !== 0) return null;
  const places = values.map((value) => rowsOf(value, 4, dims, width));
  if (places.some((place) => place === null)) return null;
  const rows = places.map((place, i) => ({ ...place!.rows, address: m.place(values[i]) }));
  const out = m.slot(dims);
  const expression = make(values.map((_, i) => operand(i)));
  const spec = chainSpec([expression], places.map((place) => place!.kind), { shared: m.memory.shared, relaxed: m.memory.features.relaxed }); // prettier-ignore
  m.job(m.memory.kernel(chain, spec), chainJob(total / width, width, [...rows, { address: out.address, outer: 0, inner: 4 * width }]));
  return out;
}
