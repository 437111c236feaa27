// Matrix products of activations against binary64: every remainder of rows, columns and depth, both layouts of both
// operands, batches that broadcast, sums kept, guards around every tensor, one thread and two; NaN and infinities where
// they belong.
import { describe, expect, it } from "vitest";
import { matmul, matmulJob, matmulSpec, type Matrix } from "../../../../kernels/wasm/nn/matmul.ts";
import type { EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import { random } from "../../../helpers/random.ts";
import { memories, runOn } from "./bench.ts";

const all = memories();
const rng = random(23);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());

interface Case {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly a?: "rows" | "columns";
  readonly b?: "rows" | "columns";
  readonly outer?: number;
  readonly inner?: number;
  /** One B for all inner matrices, as the heads of a group share keys. */
  readonly share?: boolean;
  readonly accumulate?: boolean;
  /** Floats between rows beyond their width. */
  readonly gap?: number;
}

function check(memory: EngineMemory, c: Case, spoil?: (a: Float32Array, b: Float32Array) => void): void {
  const { m, n, k, a: aLayout = "rows", b: bLayout = "rows", outer = 1, inner = 1, share = false, accumulate = false, gap = 0 } = c;
  const size = (layout: "rows" | "columns", rows: number, columns: number) =>
    layout === "rows" ? { rows, step: columns + gap } : { rows: columns, step: rows + gap };
  const [sa, sb, sc] = [size(aLayout, m, k), size(bLayout, k, n), size("rows", m, n)];
  const place = ({ rows, step }: { rows: number; step: number }, shared: boolean): Omit<Matrix, "address"> => ({
    step: 4 * step,
    outer: 4 * rows * step * (shared ? 1 : inner),
    inner: shared ? 0 : 4 * rows * step,
  });
  const a = normal(outer * inner * sa.rows * sa.step);
  const b = normal(outer * (share ? 1 : inner) * sb.rows * sb.step);
  const before = normal(outer * inner * sc.rows * sc.step);
  spoil?.(a, b);
  const spec = matmulSpec({ m }, { a: aLayout, b: bLayout }, { relaxed: memory.features.relaxed, shared: memory.shared });
  const [, , got] = runOn(memory, matmul, spec, [a, b, before], (at) =>
    matmulJob({ m, n, k, outer, inner, accumulate, a: { address: at[0], ...place(sa, false) }, b: { address: at[1], ...place(sb, share) },
      c: { address: at[2], ...place(sc, false) } }, spec, memory.threads),
  ); // prettier-ignore
  for (let i = 0; i < outer * inner; i++)
    for (let r = 0; r < m; r++)
      for (let j = 0; j < n + gap; j++) {
        const place = (i * sc.rows + r) * sc.step + j;
        if (j >= n) {
          if (got[place] !== before[place]) throw new Error(`${JSON.stringify(c)}: wrote beyond a row`);
          continue;
        }
        let [sum, size] = accumulate ? [before[place], Math.abs(before[place])] : [0, 0];
        for (let p = 0; p < k; p++) {
          const x = a[i * sa.rows * sa.step + (aLayout === "rows" ? r * sa.step + p : p * sa.step + r)];
          const y = b[(share ? Math.floor(i / inner) : i) * sb.rows * sb.step + (bLayout === "rows" ? p * sb.step + j : j * sb.step + p)];
          sum += x * y;
          size += Math.abs(x * y);
        }
        // rounding of k + 2 sums and products, at most
        const fits = Number.isFinite(sum) ? Math.abs(got[place] - sum) <= (k + 2) * 2 ** -24 * size : Object.is(got[place], sum);
        if (!fits) throw new Error(`${JSON.stringify(c)} at ${i} ${r} ${j}: expected ${sum}, got ${got[place]}`);
      }
}

const LAYOUTS = (["rows", "columns"] as const).flatMap((a) => (["rows", "columns"] as const).map((b) => ({ a, b })));

describe("matmul", () => {
  it.each(LAYOUTS)("every remainder of rows, columns and depth: A by $a, B by $b", (layout) => {
    for (const memory of all) {
      for (const m of [0, 1, 2, 3, 5, 6, 8, 10, 11, 13])
        for (const n of [0, 1, 3, 4, 7, 9, 14, 17, 31]) for (const k of [0, 1, 3, 4, 9]) check(memory, { m, n, k, ...layout });
      for (let n = 1; n <= 20; n++)
        for (const m of [1, 2, 5, 9]) check(memory, { m, n, k: 19, ...layout, gap: n % 3, accumulate: n % 2 === 0 });
    }
  });

  it.each(LAYOUTS)("several chunks of depth, blocks of rows and columns: A by $a, B by $b", (layout) => {
    for (const memory of all)
      for (const [m, n, k] of [[1, 70, 600], [3, 130, 515], [7, 33, 1030], [61, 45, 257], [250, 19, 300], [40, 300, 40], [9, 5000, 5]])
        for (const accumulate of [false, true]) check(memory, { m, n, k, ...layout, accumulate, gap: accumulate ? 3 : 0 });
  }); // prettier-ignore

  it.each(LAYOUTS)("batches of two levels, one of them broadcast: A by $a, B by $b", (layout) => {
    for (const memory of all)
      for (const m of [1, 3, 10])
        for (const share of [false, true]) check(memory, { m, n: 21, k: 12, outer: 3, inner: 4, share, ...layout, accumulate: m === 3 });
  });

  it("keeps NaN and infinities in the rows and columns where they belong", () => {
    for (const memory of all)
      for (const layout of LAYOUTS)
        for (const m of [1, 2, 11])
          check(memory, { m, n: 11, k: 9, ...layout }, (a, b) => {
            a[0] = NaN;
            b[b.length - 1] = Infinity;
          });
  });

  it("refuses a kernel of few rows for many", () => {
    const spec = matmulSpec({ m: 1 }, { a: "rows", b: "rows" }, { relaxed: false, shared: false });
    const place = { address: 64, step: 4 };
    expect(() => matmulJob({ m: 9, n: 1, k: 1, a: place, b: place, c: place }, spec, 1)).toThrow(RangeError);
  });
});
