// Element-wise operators with broadcasting. The plain loops of `unary` and `binary` are where kernels of chains take
// over.
import { LowbitError } from "../../../formats/core/errors.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { ElementType, NumberArray, Value } from "../value.ts";
import { elementType, empty, floatData, floats, roundTo, sizeOf } from "../value.ts";
import type { Operator, Operators } from "./operator.ts";
import { fail, need, text } from "./operator.ts";

/** The shape two shapes broadcast to; null where they do not. */
export function broadcastDims(a: readonly number[], b: readonly number[]): number[] | null {
  const rank = Math.max(a.length, b.length);
  const out: number[] = [];
  for (let i = 0; i < rank; i++) {
    const x = a[i - rank + a.length] ?? 1;
    const y = b[i - rank + b.length] ?? 1;
    if (x !== y && x !== 1 && y !== 1) return null;
    out.push(x === 1 ? y : x);
  }
  return out;
}

/** For every element of `out`, the element of a value of shape `dims` that is read there. */
export function broadcastIndex(dims: readonly number[], out: readonly number[]): Int32Array {
  const size = sizeOf(out);
  const index = new Int32Array(size);
  let inner = 1;
  let stride = 1;
  for (let axis = out.length - 1; axis >= 0; axis--) {
    const d = dims[axis - out.length + dims.length] ?? 1;
    // what lies inside this axis is filled: repeat it along the axis
    if (inner * out[axis] > size) break;
    for (let i = 1; i < out[axis]; i++) {
      const step = d === 1 ? 0 : i * stride;
      for (let j = 0; j < inner; j++) index[i * inner + j] = index[j] + step;
    }
    inner *= out[axis];
    stride *= d;
  }
  return index;
}

const same = (a: readonly number[], b: readonly number[]): boolean => a.length === b.length && a.every((d, i) => d === b[i]);

type Binary<N> = (a: N, b: N) => N | boolean;

export function binary(number: Binary<number>, big: Binary<bigint> | null, result?: ElementType): Operator {
  return {
    run(inputs, node) {
      const a = need(inputs, 0, node);
      const b = need(inputs, 1, node);
      if (a.type !== b.type) throw fail(node, `two inputs of one type`, `${a.type} and ${b.type}`);
      const dims = broadcastDims(a.dims, b.dims);
      if (dims === null) throw fail(node, "shapes that broadcast", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
      const out = empty(result ?? a.type, dims);
      const n = out.data.length;
      const ia = same(a.dims, dims) ? null : broadcastIndex(a.dims, dims);
      const ib = same(b.dims, dims) ? null : broadcastIndex(b.dims, dims);
      if (a.data instanceof BigInt64Array) {
        if (big === null) throw fail(node, "a float type", a.type);
        const y = b.data as BigInt64Array;
        const to = out.data as unknown as (bigint | boolean)[];
        for (let i = 0; i < n; i++) to[i] = big(a.data[ia === null ? i : ia[i]], y[ib === null ? i : ib[i]]);
        return out;
      }
      const x = a.data;
      const y = b.data as NumberArray;
      const to = out.data as NumberArray;
      for (let i = 0; i < n; i++) to[i] = number(x[ia === null ? i : ia[i]], y[ib === null ? i : ib[i]]) as number;
      return out;
    },
  };
}

export const unary = (f: (x: number) => number): Operator => ({
  run(inputs, node) {
    const x = floatData(need(inputs, 0, node), node.opType);
    const out = floats(need(inputs, 0, node).dims);
    for (let i = 0; i < x.length; i++) out.data[i] = f(x[i]);
    return out;
  },
});

const signed = (f: (x: number) => number, big: (x: bigint) => bigint): Operator => ({
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const out = empty(x.type, x.dims);
    if (x.data instanceof BigInt64Array) (out.data as BigInt64Array).set(x.data.map(big));
    else for (let i = 0; i < x.data.length; i++) (out.data as NumberArray)[i] = f(x.data[i]);
    return out;
  },
});

/** erf by its series of positive terms, to the rounding of float64. Source: Abramowitz and Stegun 7.1.6. */
export function erf(x: number): number {
  const z = Math.abs(x);
  if (!(z < 6)) return Number.isNaN(x) ? x : Math.sign(x);
  let term = z;
  let sum = z;
  for (let n = 1; term > sum * 1e-17; n++) {
    term *= (2 * z * z) / (2 * n + 1);
    sum += term;
  }
  return Math.sign(x) * (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const gelu = (x: number): number => 0.5 * x * (1 + erf(x / Math.SQRT2));
const geluTanh = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));

/** Min, Max: of one or more. */
export const fold = (step: Operator): Operator => ({
  run: (inputs, node) => inputs.slice(1).reduce<Value>((a, b) => step.run([a, b], node) as Value, need(inputs, 0, node)),
});

const withBias = (f: Operator): Operator => ({
  run: (inputs, node) => f.run([inputs[1] === undefined ? inputs[0] : (add.run(inputs.slice(0, 2), node) as Value)], node),
});

const add = binary(
  (a, b) => a + b,
  (a, b) => a + b,
);

/** @throws LowbitError E_VALUE for 0 */
export function divisor(op: "Div" | "Mod", b: bigint): bigint {
  if (b === 0n) throw new LowbitError("E_VALUE", `${op}: expected a divisor that is not 0, got 0 (int64). Check the feeds.`);
  return b;
}

const divide = (a: bigint, b: bigint): bigint => a / divisor("Div", b);

const div: Operator = {
  run(inputs, node) {
    const integer = need(inputs, 0, node).type !== "float32";
    return binary((a, b) => (integer ? Math.trunc(a / b) : a / b), divide).run(inputs, node);
  },
};

/** float32 to an integer, as C truncates what fits. */
const toBig = (x: number): bigint => (Number.isFinite(x) ? BigInt(Math.trunc(x)) : 0n);

export function cast(x: Value, type: ElementType): Value {
  const out = empty(type, x.dims);
  if (out.data instanceof Float32Array && !(x.data instanceof BigInt64Array)) {
    out.data.set(x.data);
    return out;
  }
  const from = x.data as ArrayLike<number | bigint>;
  for (let i = 0; i < from.length; i++) {
    const v = from[i];
    if (type === "bool") (out.data as Uint8Array)[i] = Number(v) !== 0 ? 1 : 0;
    else if (out.data instanceof BigInt64Array) out.data[i] = typeof v === "bigint" ? v : toBig(v);
    else if (typeof v === "bigint") out.data[i] = type === "float32" ? Number(v) : Number(BigInt.asIntN(32, v));
    else out.data[i] = type === "float32" ? v : Math.trunc(v);
  }
  return out;
}

const castTo: Operator = {
  missing: (node) => (elementType(attributeInt(node, "to", 0)) === undefined ? "to an element type outside the runtime's" : undefined),
  run(inputs, node) {
    const to = attributeInt(node, "to", 0);
    const out = cast(need(inputs, 0, node), elementType(to)!);
    return out.data instanceof Float32Array ? { ...out, data: roundTo(out.data, to) } : out;
  },
};

const where: Operator = {
  run(inputs, node) {
    const [c, x, y] = [0, 1, 2].map((i) => need(inputs, i, node));
    const xy = broadcastDims(x.dims, y.dims);
    const dims = xy === null ? null : broadcastDims(c.dims, xy);
    if (dims === null || x.type !== y.type)
      throw fail(node, "shapes that broadcast and one type", `[${x.dims.join(", ")}] and [${y.dims.join(", ")}]`);
    const out = empty(x.type, dims);
    const [ic, ix, iy] = [c, x, y].map((v) => broadcastIndex(v.dims, dims));
    for (let i = 0; i < out.data.length; i++) out.data[i] = c.data[ic[i]] ? x.data[ix[i]] : y.data[iy[i]];
    return out;
  },
};

const clip: Operator = {
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const low = inputs[1]?.data[0] ?? attributeFloat(node, "min", -Infinity);
    const high = inputs[2]?.data[0] ?? attributeFloat(node, "max", Infinity);
    const out = empty(x.type, x.dims);
    for (let i = 0; i < x.data.length; i++) out.data[i] = x.data[i] < low ? low : x.data[i] > high ? high : x.data[i];
    return out;
  },
};

export const elementwise: Operators = {
  Add: add,
  Sub: binary(
    (a, b) => a - b,
    (a, b) => a - b,
  ),
  Mul: binary(
    (a, b) => a * b,
    (a, b) => a * b,
  ),
  Div: div,
  Pow: binary((a, b) => a ** b, null),
  Min: fold(binary(Math.min, (a, b) => (a < b ? a : b))),
  Max: fold(binary(Math.max, (a, b) => (a > b ? a : b))),
  Equal: binary(
    (a, b) => a === b,
    (a, b) => a === b,
    "bool",
  ),
  Greater: binary(
    (a, b) => a > b,
    (a, b) => a > b,
    "bool",
  ),
  GreaterOrEqual: binary(
    (a, b) => a >= b,
    (a, b) => a >= b,
    "bool",
  ),
  Less: binary(
    (a, b) => a < b,
    (a, b) => a < b,
    "bool",
  ),
  LessOrEqual: binary(
    (a, b) => a <= b,
    (a, b) => a <= b,
    "bool",
  ),
  And: binary((a, b) => a & b, null, "bool"),
  Or: binary((a, b) => a | b, null, "bool"),
  Not: { run: (inputs, node) => ({ ...need(inputs, 0, node), data: (need(inputs, 0, node).data as Uint8Array).map((v) => 1 - v) }) },
  Neg: signed(
    (x) => -x,
    (x) => -x,
  ),
  Abs: signed(Math.abs, (x) => (x < 0n ? -x : x)),
  Sqrt: unary(Math.sqrt),
  Exp: unary(Math.exp),
  Log: unary(Math.log),
  Sin: unary(Math.sin),
  Cos: unary(Math.cos),
  Tanh: unary(Math.tanh),
  Erf: unary(erf),
  Floor: unary(Math.floor),
  Ceil: unary(Math.ceil),
  Reciprocal: unary((x) => 1 / x),
  Sigmoid: unary(sigmoid),
  Relu: unary((x) => (x < 0 ? 0 : x)),
  HardSwish: unary((x) => x * Math.max(0, Math.min(1, x / 6 + 0.5))),
  Gelu: { run: (inputs, node) => unary(text(node, "approximate", "none") === "tanh" ? geluTanh : gelu).run(inputs, node) },
  "com.microsoft.Gelu": unary(gelu),
  "com.microsoft.BiasGelu": withBias(unary(gelu)),
  "com.microsoft.FastGelu": withBias(unary(geluTanh)),
  "com.microsoft.QuickGelu": {
    run(inputs, node) {
      const alpha = attributeFloat(node, "alpha", 1.702);
      return unary((x) => x * sigmoid(alpha * x)).run(inputs, node);
    },
  },
  Cast: castTo,
  Where: where,
  Clip: clip,
};
