// The kernel of codes against BigInt: every value and result that it has, extremes among the codes.
import { describe, expect, test } from "vitest";
import type { CodesSpec } from "../../../kernels/wasm/nn/codes.ts";
import { wasm } from "../../../src/backends/wasm/backend.ts";
import { engineMemory } from "../../../src/backends/wasm/memory.ts";
import { runCodes } from "./run-codes.ts";
import { seededRandom } from "../../../src/quantize/index.ts";

const base = { value: "x", sum: false, columns: false, addend: false, result: "int32" } as const;
const specs: Omit<CodesSpec, "shared">[] = [
  base,
  { ...base, result: "uint8" },
  { ...base, result: "table8" },
  { ...base, result: "table32" },
  { ...base, sum: true },
  { ...base, value: "product", result: "uint8" },
  { ...base, value: "biased", columns: true },
  { ...base, columns: true, result: "uint8" },
  { ...base, value: "normalized", columns: true, addend: true },
  { ...base, value: "distance", result: "summed8" },
];

describe("codes", () => {
  const random = seededRandom(14);
  const int = (low: number, high: number): number => Math.floor(low + random() * (high - low + 1));
  const list = (n: number, low: number, high: number): Int32Array => Int32Array.from({ length: n }, () => int(low, high));

  test.each(specs)("%j", async (spec) => {
    const backend = await wasm();
    const memory = engineMemory(backend);
    for (const [rows, width, shift] of [
      [1, 4, 17],
      [3, 8, 31],
      [5, 36, 47],
      [2, 20, 62],
    ]) {
      const count = rows * width;
      const small = spec.value === "product" || spec.value === "normalized" || spec.value === "distance";
      const edge = small ? 32767 : 2 ** 30;
      const x = list(count, -edge, edge);
      if (!small) [x[0], x[1]] = [-(2 ** 31), 2 ** 31 - 1];
      const b = list(count, -32768, 32767);
      // one for all, one a column, or one a row
      const factors = list(spec.columns ? width : rows, spec.columns ? -(2 ** 31) : 0, 2 ** 31 - 1);
      const other = int(-(2 ** 31), 2 ** 31 - 1);
      const bias = list(width, -1000, 1000);
      if (spec.value === "biased") [x[0], x[1]] = [5, 6];
      const addend = BigInt64Array.from({ length: width }, () => BigInt(int(-(2 ** 45), 2 ** 45)));
      const [means, reciprocals] = [list(rows, -9, 9), list(rows, 0, 2 ** 15)];
      const [low, high] = [-100, 120];
      const table = spec.result === "table32" ? list(221, -(2 ** 31), 2 ** 31 - 1) : Uint8Array.from(list(221, 0, 255));
      const bytes = ["uint8", "table8", "summed8"].includes(spec.result);
      const to = bytes ? new Uint8Array(count) : new Int32Array(count);
      const sums = spec.result === "summed8" ? new Int32Array(rows) : undefined;
      const floor = spec.result === "summed8" ? 0 : low;
      runCodes(memory, {
        spec,
        rows,
        width,
        x,
        b,
        factors,
        other,
        bias,
        addend,
        means,
        reciprocals,
        table,
        first: floor,
        shift,
        low: floor,
        high,
        to,
        sums,
      });
      const total = new Int32Array(rows);
      for (let i = 0; i < count; i++) {
        const [r, j] = [Math.floor(i / width), i % width];
        let v = BigInt(x[i]);
        if (spec.value === "biased") v += BigInt(bias[j]);
        if (spec.value === "product") v *= BigInt(b[i]);
        if (spec.value === "distance") v = BigInt(Math.max(...x.subarray(r * width, (r + 1) * width))) - v;
        if (spec.value === "normalized") v = ((v - BigInt(means[r])) * BigInt(reciprocals[r])) >> 8n;
        let sum = v * BigInt(factors[spec.columns ? j : r]);
        if (spec.sum) sum += BigInt(b[i]) * BigInt(other);
        if (spec.addend) sum += addend[j];
        const code = Number((sum + (1n << BigInt(shift - 1))) >> BigInt(shift));
        const clipped = Math.max(floor, Math.min(high, code));
        const want = spec.result === "int32" ? clipped : spec.result === "uint8" ? clipped + 128 : table[clipped - floor];
        if (to[i] !== want) throw new Error(`row ${r}, column ${j} of ${rows} x ${width}, shift ${shift}: expected ${want}, got ${to[i]}`);
        total[r] += want;
      }
      if (sums !== undefined) expect(sums).toEqual(total);
    }
    backend.dispose();
  });
});
