// The published GPTQ code (IST-DASLab/gptq: gptq.py and quant.py), transcribed step by step in float64 with plain
// lists: the Cholesky factor of the inverse, deferred blocks with group parameters from weights that lack the updates
// of the block at work, static groups, activation order. Imports nothing of the library.
import { inverse } from "./gptq.ts";

export interface AuthorsCase {
  readonly bits: number;
  readonly sym: boolean;
  /** -1: one per row. */
  readonly group: number;
  readonly actOrder: boolean;
  readonly staticGroups: boolean;
  readonly damp: number;
  readonly blockSize: number;
}

export interface AuthorsResult {
  /** 0 .. 2^bits - 1, [rows][k], in the original order of columns. */
  readonly codes: number[][];
  readonly values: number[][];
}

const halfEven = (x: number): number => {
  const f = Math.floor(x);
  return x - f < 0.5 ? f : x - f > 0.5 ? f + 1 : f % 2 === 0 ? f : f + 1;
};

interface Params {
  readonly scale: number;
  readonly zero: number;
}

function findParams(x: readonly number[], bits: number, sym: boolean): Params {
  const maxq = 2 ** bits - 1;
  let lo = Math.min(0, ...x);
  let hi = Math.max(0, ...x);
  if (sym) {
    hi = Math.max(Math.abs(lo), hi);
    if (lo < 0) lo = -hi;
  }
  if (lo === 0 && hi === 0) [lo, hi] = [-1, 1];
  const scale = (hi - lo) / maxq;
  return { scale, zero: sym ? (maxq + 1) / 2 : halfEven(-lo / scale) };
}

function choleskyUpper(a: number[][]): number[][] {
  const n = a.length;
  const l = a.map(() => new Array<number>(n).fill(0));
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let s = a[i][j];
      for (let p = 0; p < j; p++) s -= l[i][p] * l[j][p];
      l[i][j] = i === j ? Math.sqrt(s) : s / l[j][j];
    }
  return l.map((_, i) => l.map((row) => row[i]));
}

export function gptqAuthors(
  weight: readonly (readonly number[])[],
  hessian: readonly (readonly number[])[],
  c: AuthorsCase,
): AuthorsResult {
  const rows = weight.length;
  const k = hessian.length;
  const maxq = 2 ** c.bits - 1;
  let w = weight.map((row) => [...row]);
  let h = hessian.map((row) => [...row]);
  for (let j = 0; j < k; j++)
    if (h[j][j] === 0) {
      h[j][j] = 1;
      for (const row of w) row[j] = 0;
    }
  const fit = (from: readonly (readonly number[])[], a: number, b: number) => from.map((row) => findParams(row.slice(a, b), c.bits, c.sym));
  const tables: Params[][] = [];
  if (c.staticGroups && c.group > 0) for (let a = 0; a < k; a += c.group) tables.push(fit(w, a, Math.min(k, a + c.group)));
  const order = Array.from({ length: k }, (_, j) => j);
  if (c.actOrder) {
    const diagonal = h;
    order.sort((a, b) => diagonal[b][b] - diagonal[a][a] || a - b);
    w = w.map((row) => order.map((j) => row[j]));
    h = order.map((a) => order.map((b) => h[a][b]));
  }
  let params = fit(w, 0, k);
  const mean = h.reduce((s, row, i) => s + row[i], 0) / k;
  for (let j = 0; j < k; j++) h[j][j] += c.damp * mean;
  const u = choleskyUpper(inverse(h));
  const codes = w.map((row) => row.map(() => 0));
  const values = w.map((row) => row.map(() => 0));
  for (let i1 = 0; i1 < k; i1 += c.blockSize) {
    const i2 = Math.min(k, i1 + c.blockSize);
    const block = w.map((row) => row.slice(i1, i2));
    const errors = w.map(() => new Array<number>(i2 - i1).fill(0));
    for (let i = 0; i < i2 - i1; i++) {
      const at = i1 + i;
      if (c.group > 0) {
        if (!c.staticGroups) {
          // `w`, not `block`: the updates of this block are not in it yet.
          if (at % c.group === 0) params = fit(w, at, Math.min(k, at + c.group));
        } else params = tables[Math.floor(order[at] / c.group)];
      }
      for (let r = 0; r < rows; r++) {
        const { scale, zero } = params[r];
        const q = Math.min(maxq, Math.max(0, halfEven(block[r][i] / scale) + zero));
        codes[r][order[at]] = q;
        values[r][order[at]] = scale * (q - zero);
        const e = (block[r][i] - scale * (q - zero)) / u[at][at];
        for (let j = i; j < i2 - i1; j++) block[r][j] -= e * u[at][i1 + j];
        errors[r][i] = e;
      }
    }
    for (let r = 0; r < rows; r++) for (let j = i2; j < k; j++) for (let i = 0; i < i2 - i1; i++) w[r][j] -= errors[r][i] * u[i1 + i][j];
  }
  return { codes, values };
}
