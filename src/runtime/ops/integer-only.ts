// The integer functions of models that `integerOnly` makes (domain lowbit.integer): their products by the kernel of
// integers, the rest in loops of exact integer arithmetic in doubles (src/quantize/integer/dyadic.ts). A model's own
// functions of that domain are run as these only where their bodies are those that integerOnly writes.
import { equals } from "@bufbuild/protobuf";
import { engineMemory, hasEngineMemory, type EngineMemory } from "../../backends/wasm/memory.ts";
import { runCodes } from "../../backends/wasm/nn/codes.ts";
import type { IntegerLayer } from "../../backends/wasm/ops.ts";
import type { WasmBackend } from "../../backends/wasm/backend.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { FunctionProtoSchema } from "../../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../../onnx/file/model.ts";
import { opsetVersion } from "../../onnx/graph/nodes.ts";
import { INTEGER_DOMAIN, integerFunctions, NORM_SHIFT } from "../../onnx/integer/functions.ts";
import { integerSqrt } from "../../quantize/integer/norm.ts";
import type { NumberArray, Value } from "../value.ts";
import { empty, int64 } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import type { Inputs, Operator, Operators, PrepareContext, Prepared, Run } from "./operator.ts";
import { fail, need, product } from "./operator.ts";

/** Whether a function of this domain has the body that the operators here compute. */
export function isOwnFunction(model: OnnxModel, name: string): boolean {
  const body = model.proto.functions.find((own) => own.domain === INTEGER_DOMAIN && own.name === name);
  const ours = integerFunctions(opsetVersion(model)).get(name);
  return body !== undefined && ours !== undefined && equals(FunctionProtoSchema, body, ours);
}

const ZERO = 128;
const PART = 2 ** 16;

/** Factors c / 2^t in two parts of 16 bits, the sign of each apart. */
interface Factors {
  readonly dims: readonly number[];
  readonly high: Float64Array;
  readonly low: Float64Array;
  /** The factors c; null where one is beyond int32. */
  readonly words: Int32Array | null;
}

const WORD = 2 ** 31;

function split(dims: readonly number[], numbers: Float64Array): Factors {
  const high = numbers.map((c) => Math.floor(c / PART));
  const words = numbers.every((c) => c >= -WORD && c < WORD) ? Int32Array.from(numbers) : null;
  return { dims, high, low: numbers.map((c, i) => c - high[i] * PART), words };
}

const known = new WeakMap<object, Factors>();

function factorsOf(value: Value): Factors {
  const found = known.get(value.data);
  if (found !== undefined) return found;
  const made = split(value.dims, Float64Array.from(value.data as BigInt64Array, Number));
  known.set(value.data, made);
  return made;
}

const scalar = (inputs: Inputs, i: number, node: NodeProto): number => {
  const value = need(inputs, i, node);
  if (value.data.length !== 1) throw fail(node, `a scalar at input ${i}`, `[${value.dims.join(", ")}]`);
  return Number(value.data[0]);
};

interface Limits {
  /** Rounding, in units of 2^16. */
  readonly half: number;
  /** 2^(16 - shift). */
  readonly unit: number;
  readonly shift: number;
  readonly low: number;
  readonly high: number;
}

function limitsOf(inputs: Inputs, at: number, node: NodeProto): Limits {
  const [shift, low, high] = [at, at + 1, at + 2].map((i) => scalar(inputs, i, node));
  if (shift < 17 || shift > 69) throw fail(node, "a shift from 17 to 69", String(shift));
  return { half: 2 ** (shift - 17), unit: 2 ** (16 - shift), shift, low, high };
}

type Codes = Int32Array | Uint8Array;

/** Codes of results: int32, or uint8 around 128. */
function results(isNarrow: boolean, dims: readonly number[]): { value: Value; to: Codes; zero: number } {
  const value = empty(isNarrow ? "uint8" : "int32", dims);
  return { value, to: value.data as Codes, zero: isNarrow ? ZERO : 0 };
}

/** Where element i of a result finds its factor: one for all, one a column, one a row, or any broadcast. */
function indexOf(
  factors: Factors,
  dims: readonly number[],
  node: NodeProto,
): { readonly period: number; readonly list: Int32Array | null } {
  const { length } = factors.high;
  if (length === 1) return { period: 0, list: null };
  if (length === dims.at(-1) && factors.dims.at(-1) === length) return { period: length, list: null };
  if (broadcastDims(factors.dims, dims)?.join() !== dims.join())
    throw fail(node, `factors for [${dims.join(", ")}]`, `[${factors.dims.join(", ")}]`);
  return { period: -1, list: broadcastIndex(factors.dims, dims) };
}

type Engine = EngineMemory | null;

/** An operator whose loops have a kernel in a backend's memory. */
const onEngine = (make: (engine: Engine) => Run): Operator => ({
  run: make(null),
  prepare(_node, { backend }): Prepared | undefined {
    return hasEngineMemory(backend) ? { run: make(engineMemory(backend)), kernel: "codes", drops: [] } : undefined;
  },
});

/** Rows of a job without columns of its own: all codes as one row, where there are enough of them. */
const KERNEL_CODES = 256;
const isWords = (data: unknown): data is Int32Array => data instanceof Int32Array && data.length >= KERNEL_CODES && data.length % 4 === 0;

interface Scaling {
  readonly factors: Factors;
  readonly dims: readonly number[];
  readonly limits: Limits;
  readonly node: NodeProto;
  /** Added to every row first. */
  readonly bias?: Int32Array;
}

/** to = clip(floor(((x + bias) c + 2^(t - 1)) / 2^t)) + zero. */
function scaleInto(engine: Engine, x: NumberArray, { factors, dims, limits, node, bias }: Scaling, to: Codes, zero: number): void {
  const { half, unit, shift, low, high } = limits;
  const { period, list } = indexOf(factors, dims, node);
  const n = dims.at(-1) ?? 1;
  const isRow = list !== null && factors.dims.at(-1) === 1 && factors.high.length === to.length / n;
  if (
    engine !== null &&
    isWords(x) &&
    factors.words !== null &&
    (list === null || isRow) &&
    (n % 4 === 0 || (period === 0 && bias === undefined))
  ) {
    const width = period === 0 && bias === undefined ? to.length : n;
    const spec = {
      value: bias === undefined ? ("x" as const) : ("biased" as const),
      sum: false,
      columns: period > 0,
      addend: false,
      result: zero === 0 ? ("int32" as const) : ("uint8" as const),
    };
    return runCodes(engine, { spec, rows: to.length / width, width, x, factors: factors.words, bias, shift, low, high, to });
  }
  const { high: upper, low: lower } = factors;
  for (let i = 0, j = 0, column = 0; i < to.length; i++) {
    if (list !== null) j = list[i];
    const q = x[i] + (bias === undefined ? 0 : bias[column]);
    const v = Math.floor((q * upper[j] + Math.floor((q * lower[j]) / PART) + half) * unit);
    to[i] = (v < low ? low : v > high ? high : v) + zero;
    if (period > 0 && ++j === period) j = 0;
    if (++column === n) column = 0;
  }
}

const requantize = (isNarrow: boolean): Operator =>
  onEngine((engine) => (inputs, node) => {
    const x = need(inputs, 0, node);
    const { value, to, zero } = results(isNarrow, x.dims);
    const scaling = { factors: factorsOf(need(inputs, 1, node)), dims: x.dims, limits: limitsOf(inputs, 2, node), node };
    scaleInto(engine, x.data as NumberArray, scaling, to, zero);
    return value;
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
const two = (isNarrow: boolean, isSum: boolean): Operator =>
  onEngine((engine) => (inputs, node) => {
    const [a, b] = [need(inputs, 0, node), need(inputs, isSum ? 2 : 1, node)];
    const dims = broadcastDims(a.dims, b.dims);
    if (dims === null) throw fail(node, "shapes that broadcast", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
    const n = dims.at(-1) ?? 1;
    // a row for all rows (masks of keys) stays one
    const isRow = b.data.length === n && b.dims.at(-1) === n && n % 4 === 0 && b.data instanceof Int32Array && engine !== null;
    const x = repeated(a.data as NumberArray, a, dims);
    const y = isRow && isWords(x) ? (b.data as NumberArray) : repeated(b.data as NumberArray, b, dims);
    const f = factorsOf(need(inputs, isSum ? 1 : 2, node));
    const g = isSum ? factorsOf(need(inputs, 3, node)) : f;
    const { half, unit, shift, low, high } = limitsOf(inputs, isSum ? 4 : 3, node);
    const { value, to, zero } = results(isNarrow, dims);
    if (engine !== null && isWords(x) && y instanceof Int32Array && f.words !== null && g.words !== null) {
      const spec = {
        value: isSum ? ("x" as const) : ("product" as const),
        sum: isSum,
        columns: false,
        addend: false,
        result: isNarrow ? ("uint8" as const) : ("int32" as const),
      };
      runCodes(engine, {
        spec,
        rows: x.length / (y.length === x.length ? x.length : n),
        width: y.length === x.length ? x.length : n,
        x,
        b: y,
        factors: f.words,
        other: isSum ? g.words[0] : undefined,
        shift,
        low,
        high,
        to,
      });
      return value;
    }
    const [fh, fl, gh, gl] = [f.high[0], f.low[0], g.high[0], g.low[0]];
    for (let i = 0; i < to.length; i++) {
      const [p, q] = isSum ? [x[i], y[i]] : [x[i] * y[i], 0];
      const v = Math.floor((p * fh + q * gh + Math.floor((p * fl + q * gl) / PART) + half) * unit);
      to[i] = (v < low ? low : v > high ? high : v) + zero;
    }
    return value;
  });

const normalize = (isNarrow: boolean, isLayer: boolean): Operator =>
  onEngine((engine) => (inputs, node) => {
    const x = need(inputs, 0, node);
    const epsilon = scalar(inputs, 1, node);
    const f = factorsOf(need(inputs, 2, node));
    const bias = need(inputs, 3, node);
    const { half, unit, shift, low, high } = limitsOf(inputs, 4, node);
    const n = x.dims.at(-1) ?? 0;
    if (f.high.length !== n || bias.data.length !== n)
      throw fail(node, `factors and a bias of ${n}`, `${f.high.length} and ${bias.data.length}`);
    // multiples of 2^16
    const offset = factorsOf(bias).high;
    const codes = x.data as Int32Array;
    const { value, to, zero } = results(isNarrow, x.dims);
    const { means, reciprocals } = momentsOf(codes, n, epsilon, isLayer);
    if (engine !== null && isWords(codes) && n % 4 === 0 && f.words !== null) {
      const spec = {
        value: "normalized" as const,
        sum: false,
        columns: true,
        addend: true,
        result: isNarrow ? ("uint8" as const) : ("int32" as const),
      };
      const addend = bias.data as BigInt64Array;
      runCodes(engine, {
        spec,
        rows: means.length,
        width: n,
        x: codes,
        factors: f.words,
        addend,
        means,
        reciprocals,
        shift,
        low,
        high,
        to,
      });
      return value;
    }
    for (let r = 0, i = 0; r < means.length; r++)
      for (let j = 0; j < n; j++, i++) {
        const z = Math.floor(((codes[i] - means[r]) * reciprocals[r]) / 2 ** NORM_SHIFT);
        const v = Math.floor((z * f.high[j] + Math.floor((z * f.low[j]) / PART) + offset[j] + half) * unit);
        to[i] = (v < low ? low : v > high ? high : v) + zero;
      }
    return value;
  });

/** Mean and reciprocal root of the sum of squares of every row. */
function momentsOf(codes: Int32Array, n: number, epsilon: number, isLayer: boolean): { means: Int32Array; reciprocals: Int32Array } {
  const rows = n === 0 ? 0 : codes.length / n;
  const [means, reciprocals] = [new Int32Array(rows), new Int32Array(rows)];
  for (let r = 0; r < rows; r++) {
    const end = (r + 1) * n;
    let sum = 0;
    if (isLayer) for (let i = r * n; i < end; i++) sum += codes[i];
    const mean = Math.floor((2 * sum + n) / (2 * n));
    let squares = epsilon;
    for (let i = r * n; i < end; i++) squares += (codes[i] - (isLayer ? mean : 0)) ** 2;
    means[r] = isLayer ? mean : 0;
    reciprocals[r] = Math.floor((2 ** 31 - 1) / integerSqrt(Math.max(1, squares)));
  }
  return { means, reciprocals };
}

const lookup: Operator = onEngine((engine) => (inputs, node) => {
  const x = need(inputs, 0, node);
  const limits = limitsOf(inputs, 2, node);
  const table = need(inputs, 5, node);
  const factors = factorsOf(need(inputs, 1, node));
  const entries = table.data as Codes;
  const { shift, low, high } = limits;
  if (entries.length !== high - low + 1) throw fail(node, `${high - low + 1} entries`, String(entries.length));
  const y = empty(table.type, x.dims);
  const to = y.data as Codes;
  if (engine !== null && isWords(x.data) && factors.words?.length === 1) {
    const spec = {
      value: "x" as const,
      sum: false,
      columns: false,
      addend: false,
      result: entries instanceof Uint8Array ? ("table8" as const) : ("table32" as const),
    };
    runCodes(engine, {
      spec,
      rows: 1,
      width: to.length,
      x: x.data,
      factors: factors.words,
      table: entries,
      first: low,
      shift,
      low,
      high,
      to,
    });
    return y;
  }
  const at = new Int32Array(x.data.length);
  scaleInto(null, x.data as NumberArray, { factors, dims: x.dims, limits, node }, at, -low);
  for (let i = 0; i < to.length; i++) to[i] = entries[at[i]];
  return y;
});

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

const exp: Operator = onEngine((engine) => (inputs, node) => {
  const table = need(inputs, 4, node).data as Uint8Array;
  const x = need(inputs, 0, node);
  const n = x.dims.at(-1) ?? 0;
  const y = empty("uint8", x.dims);
  const to = y.data as Uint8Array;
  const sums = new Int32Array(n === 0 ? 0 : to.length / n);
  const most = Math.min(scalar(inputs, 3, node), table.length - 1);
  const { words } = factorsOf(need(inputs, 1, node));
  if (engine !== null && isWords(x.data) && n % 4 === 0 && words !== null) {
    const spec = { value: "distance" as const, sum: false, columns: false, addend: false, result: "summed8" as const };
    runCodes(engine, {
      spec,
      rows: sums.length,
      width: n,
      x: x.data,
      factors: words,
      table,
      shift: scalar(inputs, 2, node),
      low: 0,
      high: most,
      to,
      sums,
    });
  } else
    distances(inputs, node, most, (row, start) => {
      let sum = 0;
      for (let j = 0; j < row.length; j++) sum += to[start + j] = table[row[j]];
      sums[start / n] = sum;
    });
  return [y, int64(Array.from(sums), [...x.dims.slice(0, -1), 1])];
});

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

/** The sums of columns of a matrix [k, n] of uint8. */
function columnSums(w: Uint8Array, k: number, n: number): Int32Array {
  const sums = new Int32Array(n);
  for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) sums[j] += w[i * n + j];
  return sums;
}

const byRows = (w: Uint8Array, k: number, n: number): Int8Array => {
  const rows = new Int8Array(n * k);
  for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) rows[j * k + i] = w[i * n + j] - ZERO;
  return rows;
};

/** to[m, n] = (x - zeroX) (w - 128) by loops: w [k, n]. */
function multiplyLoops(x: Uint8Array, w: Uint8Array, zeroX: number, k: number, n: number, to: Int32Array): void {
  to.fill(0);
  for (let r = 0; r < to.length / n; r++)
    for (let i = 0; i < k; i++) {
      const v = x[r * k + i] - zeroX;
      for (let j = 0; j < n; j++) to[r * n + j] += v * (w[i * n + j] - ZERO);
    }
}

const matrixOf = (value: Value, node: NodeProto): Uint8Array => {
  if (value.type !== "uint8" || value.dims.length < 2) throw fail(node, "matrices of uint8", `${value.type} [${value.dims.join(", ")}]`);
  return value.data as Uint8Array;
};

/** x [.., k] of uint8 around 128, a constant weight [k, n] of the same, an int32 bias. */
function linear(isNarrow: boolean): Operator {
  const finish = (engine: Engine, sums: Int32Array, bias: Int32Array, x: Value, inputs: Inputs, node: NodeProto): Value => {
    const dims = [...x.dims.slice(0, -1), bias.length];
    const { value, to, zero } = results(isNarrow, dims);
    scaleInto(engine, sums, { factors: factorsOf(need(inputs, 3, node)), dims, limits: limitsOf(inputs, 4, node), node, bias }, to, zero);
    return value;
  };
  const inner = (inputs: Inputs, node: NodeProto, k: number): Value => {
    const x = need(inputs, 0, node);
    if (x.dims.at(-1) !== k || x.type !== "uint8") throw fail(node, `[.., ${k}] of uint8`, `${x.type} [${x.dims.join(", ")}]`);
    return x;
  };
  return {
    run(inputs, node) {
      const w = need(inputs, 1, node);
      const [k, n] = w.dims;
      const x = inner(inputs, node, k);
      const sums = new Int32Array((x.data.length / k) * n);
      multiplyLoops(x.data as Uint8Array, matrixOf(w, node), ZERO, k, n, sums);
      return finish(null, sums, need(inputs, 2, node).data as Int32Array, x, inputs, node);
    },
    prepare(_node, context): Prepared | undefined {
      const [w, bias] = [context.constant(1), context.constant(2)];
      if (!hasEngineMemory(context.backend) || w?.dims.length !== 2 || w.type !== "uint8" || bias?.type !== "int32" || w.data.length === 0)
        return undefined;
      const [k, n] = w.dims;
      const bytes = w.data as Uint8Array;
      const layer = context.own((context.backend as WasmBackend).prepareInteger(byRows(bytes, k, n), n, k));
      const added = columnSums(bytes, k, n).map((sum, j) => (bias.data[j] as number) - ZERO * (sum - ZERO * k));
      const engine = engineMemory(context.backend);
      let sums = new Int32Array(0);
      return {
        kernel: "int8",
        drops: [1, 2],
        run(inputs, of) {
          const x = inner(inputs, of, k);
          const m = x.data.length / k;
          if (sums.length !== m * n) sums = new Int32Array(m * n);
          if (m > 0) layer.run(x.data as Uint8Array, m, sums);
          return finish(engine, sums, added, x, inputs, of);
        },
      };
    },
  };
}

/** Codes around 128 as int8. */
function centred(x: Uint8Array): Int8Array {
  const out = new Int8Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = x[i] ^ ZERO;
  return out;
}

/** Products of two activations: of codes around 128, or (`zero` 0) of weights of softmax with such codes. */
function products(
  isNarrow: boolean,
  zero: number,
  finish: (inputs: Inputs, node: NodeProto) => { factors: Factors; at: number },
  second: number,
): Operator {
  const run = (engine: Engine, inputs: Inputs, node: NodeProto, multiply: typeof multiplyLoops): Value => {
    const [a, b] = [need(inputs, 0, node), need(inputs, second, node)];
    const [x, w] = [matrixOf(a, node), matrixOf(b, node)];
    const [m, k] = a.dims.slice(-2);
    const [kb, n] = b.dims.slice(-2);
    const batch = broadcastDims(a.dims.slice(0, -2), b.dims.slice(0, -2));
    if (batch === null || k !== kb) throw fail(node, "shapes that multiply", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
    const [ia, ib] = [a, b].map((v) => broadcastIndex(v.dims.slice(0, -2), batch));
    const sums = new Int32Array(product(batch) * m * n);
    for (let c = 0; c < ia.length; c++)
      if (k > 0 && m * n > 0)
        multiply(
          x.subarray(ia[c] * m * k, (ia[c] + 1) * m * k),
          w.subarray(ib[c] * k * n, (ib[c] + 1) * k * n),
          zero,
          k,
          n,
          sums.subarray(c * m * n, (c + 1) * m * n),
        );
    const { factors, at } = finish(inputs, node);
    const dims = [...batch, m, n];
    const { value, to, zero: around } = results(isNarrow, dims);
    scaleInto(engine, sums, { factors, dims, limits: limitsOf(inputs, at, node), node }, to, around);
    return value;
  };
  return {
    run: (inputs, node) => run(null, inputs, node, multiplyLoops),
    prepare(_node, { backend }: PrepareContext): Prepared | undefined {
      if (!hasEngineMemory(backend)) return undefined;
      const engine = engineMemory(backend);
      return {
        kernel: "int8",
        drops: [],
        run: (inputs, of) =>
          run(engine, inputs, of, (x, w, zeroX, k, n, to) => {
            const layer: IntegerLayer = (backend as WasmBackend).prepareInteger(byRows(w, k, n), n, k);
            try {
              layer.run(zeroX === 0 ? x : centred(x), to.length / n, to);
            } finally {
              layer.dispose();
            }
          }),
      };
    },
  };
}

const given = (i: number) => (inputs: Inputs, node: NodeProto) => ({ factors: factorsOf(need(inputs, i, node)), at: i + 1 });

/** A factor over the sums of rows. */
function shares(inputs: Inputs, node: NodeProto): { factors: Factors; at: number } {
  const sum = need(inputs, 1, node);
  const multiplier = scalar(inputs, 3, node);
  const data = Float64Array.from(sum.data as BigInt64Array, (v) => Math.floor(multiplier / Number(v)));
  return { factors: split(sum.dims, data), at: 4 };
}

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
