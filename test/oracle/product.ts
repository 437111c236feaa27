// Oracle of matrix products: plain loops in binary64, activations quantized as docs/adding-a-kernel.md states it, and
// the bound that a float32 implementation must meet, computed from the data. Imports nothing of the library.

const EPS = 2 ** -24;

/** Nearest integer, ties to even. */
function rne(v: number): number {
  const r = Math.round(v);
  return Math.abs(v - Math.trunc(v)) === 0.5 && r % 2 !== 0 ? r - 1 : r;
}

/** Elements of k per activation scale for a weight whose scales span `span` elements. */
export function activationSpan(span: number, k: number): number {
  const s = Math.min(span, k);
  if (s <= 256) return s;
  if (span >= k) return 128;
  for (let n = 128; n >= 16; n--) if (span % n === 0) return n;
  throw new Error(`no span for ${span}`);
}

/** The code of a group's largest magnitude. */
export const largestCode = (bits: number): number => ({ 4: 7, 6: 31, 8: 127, 16: 32639 })[bits]!;

/** Quantizes x [m, k] by groups of `span`: code * scale. Groups of the first `wide` channels have 8 bits. */
export function quantizedActivations(x: Float32Array, m: number, k: number, bits: number, span: number, wide = 0): Float64Array {
  const out = new Float64Array(m * k);
  for (let r = 0; r < m; r++)
    for (let from = 0; from < k; from += span) {
      const to = Math.min(k, from + span);
      const group = Array.from(x.subarray(r * k + from, r * k + to));
      const amax = group.some((v) => !Number.isFinite(v)) ? NaN : Math.max(...group.map(Math.abs));
      const max = largestCode(from < wide ? 8 : bits);
      const scale = Math.fround(amax / max);
      group.forEach((v, i) => {
        const code = scale === 0 ? 0 : Math.max(-max, Math.min(max, rne(Math.fround(v / scale))));
        out[r * k + from + i] = code * scale;
      });
    }
  return out;
}

export interface Expected {
  readonly y: Float64Array;
  /** Largest allowed |computed - y|. */
  readonly bound: Float64Array;
}

/**
 * x [m, k] * w [n, k]^T and its bound: `steps` roundings of float32 on a sum of |x| |w| (magnitude `size` stands for
 * |w| where offsets cancel), plus an error of `slack` per unit of |x| (a weight table in fixed point), plus underflow.
 */
export function product(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  m: number,
  n: number,
  k: number,
  options: { readonly steps: number; readonly size?: ArrayLike<number>; readonly slack?: ArrayLike<number> },
): Expected {
  const y = new Float64Array(m * n);
  const bound = new Float64Array(m * n);
  for (let r = 0; r < m; r++)
    for (let c = 0; c < n; c++) {
      let sum = 0;
      let size = 0;
      let slack = 0;
      for (let i = 0; i < k; i++) {
        const a = x[r * k + i];
        sum += a * w[c * k + i];
        size += Math.abs(a) * Math.abs(options.size === undefined ? w[c * k + i] : options.size[c * k + i]);
        if (options.slack !== undefined) slack += Math.abs(a) * options.slack[c * k + i];
      }
      y[r * n + c] = sum;
      bound[r * n + c] = options.steps * EPS * size * (1 + options.steps * EPS) + slack + k * 2 ** -126;
    }
  return { y, bound };
}
