// Operands and results of an operation, for test benches of hardware: every pair where there are few, else the codes at
// which implementations break (zeros, ends, the smallest values, ones, infinities, NaN and what lies beside them) with
// each other, then seeded draws, half of them close to each other in magnitude, where sums cancel.
import { LowbitError, isLowbitError } from "./errors.ts";
import type { NumberFormat } from "./types.ts";

/** Operations with test vectors; `dot` has two vectors of `length` codes, one after the other. */
export type VectorOperation = "add" | "sub" | "mul" | "div" | "fma" | "sqrt" | "dot";

/** How many test vectors, from which seed, in which mode: see `testVectors`. */
export interface VectorOptions {
  /** How many, at most; default 1000. Where all operands are fewer, each comes once. */
  readonly count?: number;
  /** Default 1. */
  readonly seed?: number;
  /** `dot`: codes of one vector; default 4. */
  readonly length?: number;
}

/** One line of a test bench; all numbers are codes. */
export interface TestVector {
  readonly operands: readonly number[];
  readonly result: number;
}

/** The operations that vectors are made of, on codes; each result is rounded once. */
export interface Operations {
  readonly format: NumberFormat;
  add(a: number, b: number): number;
  sub(a: number, b: number): number;
  mul(a: number, b: number): number;
  div(a: number, b: number): number;
  /** a * b + c. */
  fma(a: number, b: number, c: number): number;
  sqrt(a: number): number;
  /** The exact sum of as[i] * bs[i], rounded once. @throws LowbitError E_SHAPE when the lengths differ */
  dot(as: ArrayLike<number>, bs: ArrayLike<number>): number;
}

const ARITY: ReadonlyMap<string, number> = new Map([
  ["add", 2],
  ["sub", 2],
  ["mul", 2],
  ["div", 2],
  ["fma", 3],
  ["sqrt", 1],
]);

/** Codes that an operation takes. @throws TypeError for another name, RangeError for a length below 1 */
export function vectorArity(operation: VectorOperation, length = 4): number {
  if (operation === "dot") {
    if (!Number.isSafeInteger(length) || length < 1) throw new RangeError(`vectors length: expected a positive integer, got ${length}.`);
    return 2 * length;
  }
  const arity = ARITY.get(operation);
  if (arity === undefined)
    throw new TypeError(`vectors: expected one of ${[...ARITY.keys()].join(", ")}, dot, got ${JSON.stringify(operation)}.`);
  return arity;
}

/** Uniform integers of 32 bits (splitmix32). */
function draws(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (s + 0x9e3779b9) >>> 0;
    let z = Math.imul(s ^ (s >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
}

/** Codes where implementations differ. */
function corners(format: NumberFormat): number[] {
  const { limits, bits } = format;
  const last = 2 ** bits - 1;
  const values = [0, -0, 1, -1, limits.max, limits.min, limits.minPositive, limits.minNormal, Infinity, -Infinity, NaN];
  const codes = values.flatMap((value) => {
    try {
      const code = format.encode(value, { overflow: "saturate", infinity: limits.hasInf ? "keep" : "overflow" });
      return [code, code - 1, code + 1];
    } catch (error) {
      // NaN in a format without one.
      if (isLowbitError(error)) return [];
      throw error;
    }
  });
  return [...new Set([...codes, 0, last, 2 ** (bits - 1), 2 ** (bits - 1) - 1])].filter((code) => code >= 0 && code <= last);
}

/** Every list of `arity` codes of `codes`, the first operand slowest. */
function* product(codes: readonly number[], arity: number): Generator<number[]> {
  const total = codes.length ** arity;
  for (let i = 0; i < total; i++) {
    const operands = new Array<number>(arity);
    for (let place = arity - 1, rest = i; place >= 0; place--, rest = Math.floor(rest / codes.length))
      operands[place] = codes[rest % codes.length];
    yield operands;
  }
}

function* drawn(format: NumberFormat, arity: number, next: () => number): Generator<number[]> {
  const size = 2 ** format.bits;
  const code = (): number => Math.floor((next() / 2 ** 32) * size);
  for (;;) {
    const operands = Array.from({ length: arity }, code);
    // The last operand near another one, or near its negative where the top bit is the sign.
    if (arity > 1 && next() % 2 === 0) {
      const near = (operands[0] + (next() % 9) - 4 + size) % size;
      operands[arity - 1] = next() % 2 === 0 ? near : (near + size / 2) % size;
    }
    yield operands;
  }
}

function* operandsOf(format: NumberFormat, arity: number, count: number, seed: number): Generator<number[]> {
  if (2 ** (format.bits * arity) <= count) {
    yield* product(
      Array.from({ length: 2 ** format.bits }, (_, code) => code),
      arity,
    );
    return;
  }
  const codes = corners(format);
  const next = draws(seed);
  let left = count;
  // At most half of the vectors: where the corners are too many for it, a draw of them.
  const share = Math.floor(count / 2);
  if (codes.length ** arity <= share)
    for (const operands of product(codes, arity)) {
      yield operands;
      left--;
    }
  else for (; left > count - share; left--) yield Array.from({ length: arity }, () => codes[next() % codes.length]);
  for (const operands of drawn(format, arity, next)) {
    if (left-- === 0) return;
    yield operands;
  }
}

/** The vectors of `arithmetic(format).vectors`. */
export function* testVectors(of: Operations, operation: VectorOperation, options: VectorOptions = {}): Generator<TestVector> {
  const { count = 1000, seed = 1, length = 4 } = options;
  if (!Number.isSafeInteger(count) || count < 1) throw new RangeError(`vectors count: expected a positive integer, got ${count}.`);
  const arity = vectorArity(operation, length);
  const run = (operands: readonly number[]): number => {
    const [a, b, c] = operands;
    if (operation === "dot") return of.dot(operands.slice(0, length), operands.slice(length));
    return operation === "fma" ? of.fma(a, b, c) : operation === "sqrt" ? of.sqrt(a) : of[operation](a, b);
  };
  let given = 0;
  for (const operands of operandsOf(of.format, arity, count, seed)) {
    let result: number;
    try {
      result = run(operands);
    } catch (error) {
      // 0/0 and its like in a format without NaN: there is no result to compare with.
      if (!isLowbitError(error) || error.code !== "E_UNSUPPORTED") throw error;
      continue;
    }
    given++;
    yield { operands, result };
  }
  if (given === 0)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${of.format.name} ${operation}: expected operands that have a result, got none. Take another operation.`,
    );
}
