// GPTQ written from the paper without any of its speed-ups: the inverse by Gauss-Jordan, the optimal brain surgeon
// update of the whole rest of the row after every column, the inverse downdated by elimination. Imports nothing of the
// library.

export function inverse(a: number[][]): number[][] {
  const n = a.length;
  const m = a.map((row, i) => [...row, ...row.map((_, j) => (i === j ? 1 : 0))]);
  for (let c = 0; c < n; c++) {
    let p = c;
    for (let r = c + 1; r < n; r++) if (Math.abs(m[r][c]) > Math.abs(m[p][c])) p = r;
    [m[c], m[p]] = [m[p], m[c]];
    const d = m[c][c];
    for (let j = 0; j < 2 * n; j++) m[c][j] /= d;
    for (let r = 0; r < n; r++) {
      if (r === c) continue;
      const f = m[r][c];
      if (f !== 0) for (let j = 0; j < 2 * n; j++) m[r][j] -= f * m[c][j];
    }
  }
  return m.map((row) => row.slice(n));
}

export interface GptqRefOptions {
  readonly damp: number;
  /** Columns in order of work; the same index as in w. */
  readonly order: number[];
  /** Called before column j with the current weights (all columns), so that dynamic groups can take their scales. */
  readonly before?: (j: number, current: number[][]) => void;
  /** Rounds one weight to the value of a code. */
  readonly round: (row: number, j: number, x: number) => number;
}

/** Values [rows][k] after GPTQ. h is k x k. */
export function gptqRef(w: number[][], h: number[][], o: GptqRefOptions): number[][] {
  const k = h.length;
  const mean = h.reduce((s, row, i) => s + row[i], 0) / k;
  const damped = h.map((row, i) => row.map((v, j) => (i === j ? v + o.damp * mean : v)));
  let inv = inverse(damped);
  const cur = w.map((row) => [...row]);
  const out = w.map((row) => [...row]);
  for (const j of o.order) {
    o.before?.(j, cur);
    const d = inv[j][j];
    for (let r = 0; r < w.length; r++) {
      const q = o.round(r, j, cur[r][j]);
      const e = (cur[r][j] - q) / d;
      out[r][j] = q;
      for (let c = 0; c < k; c++) cur[r][c] -= e * inv[j][c];
      cur[r][j] = q;
    }
    inv = inv.map((row, a) => row.map((v, b) => (a === j || b === j ? 0 : v - (row[j] * inv[j][b]) / d)));
    inv[j][j] = 1; // done; never read again
  }
  return out;
}

/** Output error ||X (W - Q)^T||^2 from the activations themselves. */
export function outputErrorRef(w: ArrayLike<number>, q: ArrayLike<number>, rows: number, x: ArrayLike<number>, tokens: number): number {
  const k = w.length / rows;
  let sum = 0;
  for (let t = 0; t < tokens; t++)
    for (let r = 0; r < rows; r++) {
      let y = 0;
      for (let j = 0; j < k; j++) y += (w[r * k + j] - q[r * k + j]) * x[t * k + j];
      sum += y * y;
    }
  return sum;
}
