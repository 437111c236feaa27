// The integer functions of models that `integerOnly` makes (domain lowbit.integer), in loops of exact integers in
// doubles (src/quantize/integer/dyadic.ts); on kernels they are src/runtime/machine/integer-functions.ts. A model's own
// functions of that domain are run as these only where their bodies are those that integerOnly writes.
import { equals } from "../../onnx/file/copy.ts";
import { FunctionProtoSchema, type NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../../onnx/file/model.ts";
import { opsetVersion } from "../../onnx/graph/nodes.ts";
import { INTEGER_DOMAIN, integerFunctions, NORM_SHIFT } from "../../onnx/integer/functions.ts";
import { integerSqrt } from "../../quantize/integer/norm.ts";
import { empty, int64, type NumberArray, type Value } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import { fail, need, type Inputs, type Operator, type Operators } from "./operator.ts";
import { linear, products, given, shares } from "./integer-products.ts";
import { PART, ZERO, factorsOf, limitsOf, results, scalar, scaleInto, type Codes } from "./integer-scaling.ts";

/** Whether a function of this domain has the body that the operators here compute. */
export function isOwnFunction(model: OnnxModel, name: string): boolean {
  const body = model.proto.functions.find((own) => own.domain === INTEGER_DOMAIN && own.name === name);
  const ours = integerFunctions(opsetVersion(model)).get(name);
  return body !== undefined && ours !== undefined && equals(FunctionProtoSchema, body, ours);
}

const requantize = (isNarrow: boolean): Operator => ({
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const { value, to, zero } = results(isNarrow, x.dims);
    const scaling = { factors: factorsOf(need(inputs, 1, node)), dims: x.dims, limits: limitsOf(inputs, 2, node), node };
    scaleInto(x.data as NumberArray, scaling, to, zero);
    return value;
  },
});

/** The second of two operands repeated to as many codes as the first has, where it is a multiple of it. */
function repeated(y: NumberArray, b: Value, dims: readonly number[]): NumberArray {
  if (b.dims.join() === dims.join()) return y;
  const index = broadcastIndex(b.dims, dims);
  const out = new Int32Array(index.length);
  for (let i = 0; i < out.length; i++) out[i] = y[index[i]];
  return out;
}

/** Sums and products of two values, as codes of a third scale. */
const two = (isNarrow: boolean, isSum: boolean): Operator => ({
  run(inputs, node) {
    const [a, b] = [need(inputs, 0, node), need(inputs, isSum ? 2 : 1, node)];
    const dims = broadcastDims(a.dims, b.dims);
    if (dims === null) throw fail(node, "shapes that broadcast", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
    const x = repeated(a.data as NumberArray, a, dims);
    const y = repeated(b.data as NumberArray, b, dims);
    const f = factorsOf(need(inputs, isSum ? 1 : 2, node));
    const g = isSum ? factorsOf(need(inputs, 3, node)) : f;
    const { half, unit, low, high } = limitsOf(inputs, isSum ? 4 : 3, node);
    const { value, to, zero } = results(isNarrow, dims);
    const [fh, fl, gh, gl] = [f.high[0], f.low[0], g.high[0], g.low[0]];
    for (let i = 0; i < to.length; i++) {
      const [p, q] = isSum ? [x[i], y[i]] : [x[i] * y[i], 0];
      const v = Math.floor((p * fh + q * gh + Math.floor((p * fl + q * gl) / PART) + half) * unit);
      to[i] = (v < low ? low : v > high ? high : v) + zero;
    }
    return value;
  },
});

const normalize = (isNarrow: boolean, isLayer: boolean): Operator => ({
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const epsilon = scalar(inputs, 1, node);
    const f = factorsOf(need(inputs, 2, node));
    const bias = need(inputs, 3, node);
    const { half, unit, low, high } = limitsOf(inputs, 4, node);
    const n = x.dims.at(-1) ?? 0;
    if (f.high.length !== n || bias.data.length !== n)
      throw fail(node, `factors and a bias of ${n}`, `${f.high.length} and ${bias.data.length}`);
    // multiples of 2^16
    const offset = factorsOf(bias).high;
    const codes = x.data as Int32Array;
    const { value, to, zero } = results(isNarrow, x.dims);
    for (let start = 0; start < codes.length; start += n) {
      let [sum, squares] = [0, 0];
      for (let i = start; i < start + n; i++) {
        sum += codes[i];
        squares += codes[i] * codes[i];
      }
      const { mean, reciprocal } = momentOf(sum, squares, n, epsilon, isLayer);
      for (let j = 0; j < n; j++) {
        const z = Math.floor(((codes[start + j] - mean) * reciprocal) / 2 ** NORM_SHIFT);
        const v = Math.floor((z * f.high[j] + Math.floor((z * f.low[j]) / PART) + offset[j] + half) * unit);
        to[start + j] = (v < low ? low : v > high ? high : v) + zero;
      }
    }
    return value;
  },
});

/** Mean (0 of RMS norm) and reciprocal root of the sum of squares of a row, from its sums. */
export function momentOf(sum: number, squares: number, n: number, epsilon: number, isLayer: boolean): { mean: number; reciprocal: number } {
  const mean = isLayer ? Math.floor((2 * sum + n) / (2 * n)) : 0;
  // sum (x - mean)^2
  const centred = squares - 2 * mean * sum + n * mean * mean + epsilon;
  return { mean, reciprocal: Math.floor((2 ** 31 - 1) / integerSqrt(Math.max(1, centred))) };
}

const lookup: Operator = {
  run(inputs, node) {
    const x = need(inputs, 0, node);
    const limits = limitsOf(inputs, 2, node);
    const table = need(inputs, 5, node);
    const factors = factorsOf(need(inputs, 1, node));
    const entries = table.data as Codes;
    const { low, high } = limits;
    if (entries.length !== high - low + 1) throw fail(node, `${high - low + 1} entries`, String(entries.length));
    const y = empty(table.type, x.dims);
    const to = y.data as Codes;
    const at = new Int32Array(x.data.length);
    scaleInto(x.data as NumberArray, { factors, dims: x.dims, limits, node }, at, -low);
    for (let i = 0; i < to.length; i++) to[i] = entries[at[i]];
    return y;
  },
};

/** Distances of the codes of a row from its maximum, at another scale: calls `use` row by row. */
function distances(inputs: Inputs, node: NodeProto, most: number, use: (row: Float64Array, start: number) => void): void {
  const x = need(inputs, 0, node);
  const n = x.dims.at(-1) ?? 0;
  const f = factorsOf(need(inputs, 1, node));
  const shift = scalar(inputs, 2, node);
  const [half, unit] = [2 ** (shift - 17), 2 ** (16 - shift)];
  const codes = x.data as NumberArray;
  const row = new Float64Array(n);
  const [fh, fl] = [f.high[0], f.low[0]];
  for (let start = 0; start < codes.length; start += n) {
    let top = -Infinity;
    for (let j = 0; j < n; j++) top = Math.max(top, codes[start + j]);
    for (let j = 0; j < n; j++) {
      const d = top - codes[start + j];
      row[j] = Math.min(most, Math.floor((d * fh + Math.floor((d * fl) / PART) + half) * unit));
    }
    use(row, start);
  }
}

const exp: Operator = {
  run(inputs, node) {
    const table = need(inputs, 4, node).data as Uint8Array;
    const x = need(inputs, 0, node);
    const n = x.dims.at(-1) ?? 0;
    const y = empty("uint8", x.dims);
    const to = y.data as Uint8Array;
    const sums = new Int32Array(n === 0 ? 0 : to.length / n);
    distances(inputs, node, Math.min(scalar(inputs, 3, node), table.length - 1), (row, start) => {
      let sum = 0;
      for (let j = 0; j < row.length; j++) sum += to[start + j] = table[row[j]];
      sums[start / n] = sum;
    });
    return [y, int64(Array.from(sums), [...x.dims.slice(0, -1), 1])];
  },
};

const shiftmax: Operator = {
  run(inputs, node) {
    const unit = scalar(inputs, 3, node);
    const y = empty("uint8", need(inputs, 0, node).dims);
    const to = y.data as Uint8Array;
    distances(inputs, node, 16 * unit, (row, start) => {
      let sum = 0;
      for (let j = 0; j < row.length; j++) {
        const d = row[j];
        const p = Math.min(15 * unit, d + Math.floor((d + 1) / 2) - Math.floor((d + 15) / 16));
        const q = Math.floor(p / unit);
        sum += row[j] = Math.floor((2 * unit - p + q * unit) * 2 ** (14 - q));
      }
      for (let j = 0; j < row.length; j++) to[start + j] = Math.min(255, Math.floor((row[j] * 256) / sum));
    });
    return y;
  },
};

const typed = (name: string, make: (isNarrow: boolean) => Operator): [string, Operator][] => [
  [`${INTEGER_DOMAIN}.${name}`, make(false)],
  [`${INTEGER_DOMAIN}.${name}Uint8`, make(true)],
];

export const integerOnly: Operators = Object.fromEntries([
  ...typed("Requantize", requantize),
  ...typed("Linear", linear),
  ...typed("Product", (isNarrow) => products(isNarrow, ZERO, given(2), 1)),
  ...typed("Weigh", (isNarrow) => products(isNarrow, 0, given(2), 1)),
  ...typed("Attend", (isNarrow) => products(isNarrow, 0, shares, 2)),
  ...typed("Add", (isNarrow) => two(isNarrow, true)),
  ...typed("Multiply", (isNarrow) => two(isNarrow, false)),
  ...typed("LayerNorm", (isNarrow) => normalize(isNarrow, true)),
  ...typed("RmsNorm", (isNarrow) => normalize(isNarrow, false)),
  [`${INTEGER_DOMAIN}.Lookup`, lookup],
  [`${INTEGER_DOMAIN}.Exp`, exp],
  [`${INTEGER_DOMAIN}.Shiftmax`, shiftmax],
]);
