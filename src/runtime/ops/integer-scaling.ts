// What the integer functions of models share (integer-only.ts): factors c / 2^t in parts that doubles multiply exactly,
// limits, and requantization into int32 or uint8 codes.
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { empty, type NumberArray, type Value } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import { fail, need, type Inputs } from "./operator.ts";

export const ZERO = 128;
export const PART = 2 ** 16;

/** Factors c / 2^t in two parts of 16 bits, the sign of each apart. */
export interface Factors {
  readonly dims: readonly number[];
  readonly high: Float64Array;
  readonly low: Float64Array;
  /** The factors c; null where one is beyond int32. */
  readonly words: Int32Array | null;
}

const WORD = 2 ** 31;

export function split(dims: readonly number[], numbers: Float64Array): Factors {
  const high = numbers.map((c) => Math.floor(c / PART));
  const words = numbers.every((c) => c >= -WORD && c < WORD) ? Int32Array.from(numbers) : null;
  return { dims, high, low: numbers.map((c, i) => c - high[i] * PART), words };
}

const known = new WeakMap<object, Factors>();

export function factorsOf(value: Value): Factors {
  const found = known.get(value.data);
  if (found !== undefined) return found;
  const made = split(value.dims, Float64Array.from(value.data as BigInt64Array, Number));
  known.set(value.data, made);
  return made;
}

export const scalar = (inputs: Inputs, i: number, node: NodeProto): number => {
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

export function limitsOf(inputs: Inputs, at: number, node: NodeProto): Limits {
  const [shift, low, high] = [at, at + 1, at + 2].map((i) => scalar(inputs, i, node));
  if (shift < 17 || shift > 69) throw fail(node, "a shift from 17 to 69", String(shift));
  return { half: 2 ** (shift - 17), unit: 2 ** (16 - shift), shift, low, high };
}

export type Codes = Int32Array | Uint8Array;

/** Codes of results: int32, or uint8 around 128. */
export function results(isNarrow: boolean, dims: readonly number[]): { value: Value; to: Codes; zero: number } {
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

/** The factor of one row of an average: floor(multiplier / sum). */
export const share = (multiplier: number, sum: number | bigint): number => Math.floor(multiplier / Number(sum));

interface Scaling {
  readonly factors: Factors;
  readonly dims: readonly number[];
  readonly limits: Limits;
  readonly node: NodeProto;
  /** Added to every row first. */
  readonly bias?: Int32Array;
}

/** to = clip(floor(((x + bias) c + 2^(t - 1)) / 2^t)) + zero. */
export function scaleInto(x: NumberArray, { factors, dims, limits, node, bias }: Scaling, to: Codes, zero: number): void {
  const { half, unit, low, high } = limits;
  const { period, list } = indexOf(factors, dims, node);
  const n = dims.at(-1) ?? 1;
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
