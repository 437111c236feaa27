// Copies of strided tensors against their definition: permutations of all ranks, slices with steps of either sign,
// expansion, filling, joins; every element size; bytes around the result stay. Reductions against binary64 over odd
// lengths, both layouts; one thread and two.
import { describe, expect, it } from "vitest";
import { copy, copyJob } from "../../../../kernels/wasm/nn/copy.ts";
import { reduce, reduceJob, REDUCTIONS, reduceSpec, type Reduction } from "../../../../kernels/wasm/nn/reduce.ts";
import type { EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import { random } from "../../../helpers/random.ts";
import { memories, runOn } from "./bench.ts";

const all = memories();
const rng = random(29);
type Bytes = 1 | 2 | 4 | 8;

const rowMajor = (sizes: readonly number[], bytes: number): number[] => {
  const strides: number[] = [];
  let stride = bytes;
  for (let i = sizes.length - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  return strides;
};

interface Side {
  readonly offset: number;
  readonly strides: readonly number[];
  readonly total: number;
}

/** Copies in a backend's memory and, element by element, here; all bytes of the target are compared. */
function check(memory: EngineMemory, sizes: readonly number[], bytes: Bytes, from: Side, to: Side): string {
  const words = (side: Side): Float32Array => new Float32Array(Math.ceil(side.total / 4));
  const [source, target] = [words(from), words(to)];
  const [sourceBytes, expected] = [new Uint8Array(source.buffer), new Uint8Array(target.buffer.slice(0))];
  sourceBytes.forEach((_, i) => (sourceBytes[i] = (i * 37 + (i >> 7)) & 127));
  const walk = (d: number, a: number, b: number): void => {
    if (d === sizes.length) expected.set(sourceBytes.subarray(a, a + bytes), b);
    else for (let i = 0; i < sizes[d]; i++) walk(d + 1, a + i * from.strides[d], b + i * to.strides[d]);
  };
  walk(0, from.offset, to.offset);
  const place = (side: Side, address: number) => ({ address: address + side.offset, strides: side.strides });
  const job = (at: readonly number[]) => copyJob({ sizes, bytes, from: place(from, at[0]), to: place(to, at[1]) }, memory.shared);
  const { spec } = job([0, 0]);
  const [, got] = runOn(memory, copy, spec, [source, target], job);
  const same = Buffer.compare(new Uint8Array(got.buffer), expected) === 0;
  expect(same, `${spec.kind} ${bytes} [${sizes}] from ${from.strides} to ${to.strides}`).toBe(true);
  return spec.kind;
}

const whole = (sizes: readonly number[], bytes: number): Side => ({
  offset: 0,
  strides: rowMajor(sizes, bytes),
  total: sizes.reduce((a, b) => a * b, bytes),
});

function* permutations(rest: readonly number[]): Iterable<number[]> {
  if (rest.length === 0) yield [];
  for (const first of rest) for (const more of permutations(rest.filter((d) => d !== first))) yield [first, ...more];
}

describe("copy", () => {
  it("every permutation of up to five dimensions, all sizes of elements", () => {
    const kinds = new Set<string>();
    for (const memory of all)
      for (const sizes of [[5], [7, 9], [3, 20, 6], [4, 3, 5, 18], [2, 3, 4, 2, 5]])
        for (const order of permutations(sizes.map((_, i) => i)))
          for (const bytes of [1, 2, 4, 8] as const) {
            if (bytes !== 4 && (memory.threads === 2 || sizes.length === 5)) continue;
            const x = whole(sizes, bytes);
            const to = whole(order.map((d) => sizes[d]), bytes);
            kinds.add(check(memory, to.total === 0 ? [] : order.map((d) => sizes[d]), bytes, { ...x, strides: order.map((d) => x.strides[d]) }, to));
          }
    expect([...kinds].sort()).toEqual(["elements", "planes", "runs"]);
  }); // prettier-ignore

  it("transposes of every remainder and of more than an item", () => {
    for (const memory of all) {
      for (let rows = 1; rows <= 21; rows++)
        for (const columns of [1, 2, 3, 4, 5, 17]) check(memory, [rows, columns], 4, { ...whole([columns, rows], 4), strides: [4, 4 * rows] }, whole([rows, columns], 4));
      for (const [rows, columns] of [[300, 201], [70, 5000], [5000, 7]])
        check(memory, [rows, columns], 4, { ...whole([columns, rows], 4), strides: [4, 4 * rows] }, whole([rows, columns], 4));
    }
  }); // prettier-ignore

  it("slices, steps of either sign, parts of a larger result, long runs", () => {
    for (const memory of all)
      for (const bytes of [1, 4, 8] as const) {
        const [x, y] = [whole([6, 50, 7], bytes), whole([9, 40, 11], bytes)];
        const inside = { ...y, offset: y.strides[0] * 2 + y.strides[1] * 3 + 4 * bytes };
        check(memory, [4, 30, 7], bytes, { ...x, offset: x.strides[0] + 2 * x.strides[1] }, inside);
        check(memory, [3, 25, 3], bytes, { ...x, strides: [2 * x.strides[0], 2 * x.strides[1], 2 * bytes] }, inside);
        check(memory, [6, 30, 7], bytes, { ...x, offset: x.total - bytes, strides: x.strides.map((s) => -s) }, inside);
        check(memory, [9, 40, 11], bytes, { offset: 0, strides: [0, 0, 0], total: 8 }, y);
        check(memory, [9, 40, 11], bytes, { offset: 0, strides: [0, bytes, 0], total: 40 * bytes + 8 }, y);
        check(memory, [9, 40, 11], bytes, { offset: 0, strides: [0, 0, bytes], total: 11 * bytes + 8 }, y);
        check(memory, [3, 60001], bytes, { ...whole([3, 60003], bytes) }, whole([3, 60001], bytes));
        check(memory, [100_003], bytes, { offset: 0, strides: [0], total: 8 }, whole([100_003], bytes));
      }
  });

  it("nothing, one element, and too many dimensions", () => {
    for (const memory of all) {
      check(memory, [3, 0, 2], 4, whole([3, 1, 2], 4), whole([3, 1, 2], 4));
      check(memory, [], 4, whole([], 4), whole([], 4));
      check(memory, [1, 1], 2, { ...whole([1, 1], 2), total: 4 }, { ...whole([1, 1], 2), total: 4 });
      check(memory, [2, 2, 2, 2, 2, 2], 4, { ...whole([2, 2, 2, 2, 2, 2], 4), strides: rowMajor([2, 2, 2, 2, 2, 2], 4).reverse() }, whole([2, 2, 2, 2, 2, 2], 4));
    }
    const side = { address: 64, strides: [1, 2, 4, 8, 16, 32, 64].map((s) => 12 * s) };
    expect(() => copyJob({ sizes: [2, 2, 2, 2, 2, 2, 2], bytes: 4, from: side, to: { ...side, strides: [...side.strides].reverse() } }, false)).toThrow(RangeError);
  }); // prettier-ignore
});

function oracle(op: Reduction, values: readonly number[], last: boolean): number {
  const sum = (map: (v: number) => number): number => values.reduce((total, v) => total + map(v), 0);
  if (op === "sum") return sum((v) => v);
  if (op === "mean") return sum((v) => v) / values.length;
  if (op === "sumSquares") return sum((v) => v * v);
  if (op === "l1") return sum(Math.abs);
  if (op === "l2") return Math.sqrt(sum((v) => v * v));
  if (op === "prod") return values.reduce((total, v) => total * v, 1);
  const best = op.endsWith("max") ? Math.max(...values) : Math.min(...values);
  if (!op.startsWith("arg")) return best;
  return last ? values.lastIndexOf(best) : values.indexOf(best);
}

describe("reduce", () => {
  it.each(REDUCTIONS)("%s is its definition", (op) => {
    for (const memory of all)
      for (const [outer, axis, inner] of [[1, 1, 1], [3, 5, 1], [7, 64, 1], [2, 1003, 1], [300, 3, 1], [1, 7, 5], [4, 9, 16], [3, 20, 37], [2, 3, 5000], [5, 40, 3], [1, 40000, 1], [0, 3, 2], [2, 3, 0]])
        for (const last of op.startsWith("arg") ? [false, true] : [false]) {
          const indices = op.startsWith("arg");
          // ties for indices; products near one
          const x = Float32Array.from({ length: outer * axis * inner }, () => (indices ? Math.round(rng.normal()) : op === "prod" ? 1 + (0.1 * rng.normal()) / Math.sqrt(axis) : rng.normal()));
          const spec = reduceSpec(op, { inner }, memory.shared, last);
          const [, y] = runOn(memory, reduce, spec, [x, new Float32Array(outer * inner)], (at) => reduceJob({ outer, axis, inner, x: at[0], y: at[1] }, spec));
          const got = indices ? new Int32Array(y.buffer) : y;
          for (let o = 0; o < outer; o++)
            for (let i = 0; i < inner; i++) {
              const values = Array.from({ length: axis }, (_, a) => x[(o * axis + a) * inner + i]);
              const expected = oracle(op, values, last);
              const size = ["sum", "mean"].includes(op) ? values.reduce((total, v) => total + Math.abs(v), 0) / (op === "mean" ? axis : 1) : Math.abs(expected);
              const bound = indices || /^m(ax|in)$/.test(op) ? 0 : (op === "prod" ? axis + 1 : Math.min(axis, inner === 1 ? axis / 16 + 6 : axis) + 2) * 2 ** -24 * size;
              const error = Math.abs(got[o * inner + i] - expected);
              if (!(error <= bound)) throw new Error(`${op} [${outer}, ${axis}, ${inner}] at ${o}, ${i}: expected ${expected}, got ${got[o * inner + i]}`);
            }
        }
  }); // prettier-ignore

  it("passes NaN on, keeps infinities, sums of nothing are what changes nothing", () => {
    for (const memory of all)
      for (const inner of [1, 3]) {
        const run = (op: Reduction, x: readonly number[]): number => {
          const axis = x.length;
          const spec = reduceSpec(op, { inner }, memory.shared);
          const wide = Float32Array.from({ length: axis * inner }, (_, i) => x[Math.floor(i / inner)]);
          return runOn(memory, reduce, spec, [wide, new Float32Array(inner)], (at) => reduceJob({ outer: 1, axis, inner, x: at[0], y: at[1] }, spec))[1][0];
        };
        for (const op of ["sum", "max", "min", "prod", "l2"] as const) expect(run(op, [1, NaN, 3, 4, 5])).toBeNaN();
        expect(run("max", [-Infinity, -Infinity])).toBe(-Infinity);
        expect(run("min", [3, -Infinity, 1])).toBe(-Infinity);
        expect([run("sum", []), run("prod", [])]).toEqual([0, 1]);
        expect(() => run("max", [])).toThrow(RangeError);
      }
  }); // prettier-ignore
});
