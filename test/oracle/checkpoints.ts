// GPTQ and AWQ layers written by the rules of those formats, from float weights, apart from the code: the tensors of a
// module, and the values that they stand for. Rounding to nearest with a zero point per group; scales float16.
import type { SafeContent } from "../../src/interop/index.ts";
import { half } from "./ggml.ts";

export interface Written {
  readonly tensors: Record<string, SafeContent>;
  /** [n, k], what a reader must get. */
  readonly values: Float32Array;
}

export interface WriteOptions {
  readonly bits?: number;
  readonly group?: number;
  /** Columns by the order of their groups (activation order); default: as they are. */
  readonly order?: readonly number[];
}

const bytesOf = (a: ArrayBufferView): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
const i32 = (data: Int32Array, shape: number[]): SafeContent => ({ dtype: "I32", shape, bytes: bytesOf(data) });

/** The float16 code next to a positive number of ordinary size, by search. */
export function halfCode(x: number): number {
  let [lo, hi] = [0, 0x7bff];
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (half(mid) < x) lo = mid + 1;
    else hi = mid;
  }
  return lo > 0 && x - half(lo - 1) < half(lo) - x ? lo - 1 : lo;
}

interface Rounded {
  readonly q: Uint8Array;
  readonly zeros: Uint8Array;
  readonly scales: Uint16Array;
  readonly groups: number;
  readonly values: Float32Array;
  readonly groupOf: Int32Array;
}

/** q [n, k]; zeros and scales [groups, n]. Zero points from 1 on, which v1 needs. */
function rounded(w: Float32Array, n: number, k: number, { bits = 4, group = 32, order }: WriteOptions): Rounded {
  const groups = k / group;
  const groupOf = new Int32Array(k);
  for (let p = 0; p < k; p++) groupOf[order?.[p] ?? p] = Math.floor(p / group);
  const top = 2 ** bits - 1;
  const [q, values] = [new Uint8Array(n * k), new Float32Array(n * k)];
  const [zeros, scales] = [new Uint8Array(groups * n), new Uint16Array(groups * n)];
  const members = Array.from({ length: groups }, (_, g) => Array.from(groupOf.keys()).filter((j) => groupOf[j] === g));
  for (let r = 0; r < n; r++)
    for (const [g, columns] of members.entries()) {
      const of = columns.map((j) => w[r * k + j]);
      const [lo, hi] = [Math.min(0, ...of), Math.max(0, ...of)];
      const code = halfCode((hi - lo) / top || 1);
      const scale = half(code);
      const zero = Math.min(top, Math.max(1, Math.round(-lo / scale)));
      scales[g * n + r] = code;
      zeros[g * n + r] = zero;
      for (const j of columns) {
        const v = Math.min(top, Math.max(0, Math.round(w[r * k + j] / scale) + zero));
        q[r * k + j] = v;
        values[r * k + j] = scale * (v - zero);
      }
    }
  return { q, zeros, scales, groups, values, groupOf };
}

/** A field of `bits` bits at place i of a stream of 32-bit words, the lowest bit first. */
function put(words: Int32Array, at: (word: number) => number, i: number, bits: number, v: number): void {
  for (let b = 0; b < bits; b++) if ((v >> b) & 1) words[at((i * bits + b) >> 5)] |= 1 << ((i * bits + b) & 31);
}

/** GPTQ v1: qweight [k bits / 32, n], qzeros [groups, n bits / 32] less one, scales [groups, n], g_idx [k]. */
export function gptqModule(w: Float32Array, n: number, k: number, options: WriteOptions = {}): Written {
  const { bits = 4 } = options;
  const { q, zeros, scales, groups, values, groupOf } = rounded(w, n, k, options);
  const qweight = new Int32Array((k * bits * n) / 32);
  const wide = (n * bits) / 32;
  const qzeros = new Int32Array(groups * wide);
  for (let r = 0; r < n; r++) {
    for (let j = 0; j < k; j++) put(qweight, (word) => word * n + r, j, bits, q[r * k + j]);
    for (let g = 0; g < groups; g++) put(qzeros, (word) => g * wide + word, r, bits, zeros[g * n + r] - 1);
  }
  return {
    values,
    tensors: {
      qweight: i32(qweight, [(k * bits) / 32, n]),
      qzeros: i32(qzeros, [groups, wide]),
      scales: { dtype: "F16", shape: [groups, n], bytes: bytesOf(scales) },
      g_idx: i32(groupOf, [k]),
    },
  };
}

/** AWQ: qweight [k, n / 8] and qzeros [groups, n / 8]; nibble i of a word is column [0, 2, 4, 6, 1, 3, 5, 7][i]. */
export function awqModule(w: Float32Array, n: number, k: number, options: WriteOptions = {}): Written {
  const { q, zeros, scales, groups, values } = rounded(w, n, k, { ...options, bits: 4 });
  const pack = (of: (column: number) => number): number =>
    [0, 2, 4, 6, 1, 3, 5, 7].reduce((word, column, i) => word | (of(column) << (4 * i)), 0);
  const wide = n / 8;
  return {
    values,
    tensors: {
      qweight: i32(
        Int32Array.from({ length: k * wide }, (_, i) => pack((c) => q[(8 * (i % wide) + c) * k + Math.floor(i / wide)])),
        [k, wide],
      ),
      qzeros: i32(
        Int32Array.from({ length: groups * wide }, (_, i) => pack((c) => zeros[Math.floor(i / wide) * n + 8 * (i % wide) + c])),
        [groups, wide],
      ),
      scales: { dtype: "F16", shape: [groups, n], bytes: bytesOf(scales) },
    },
  };
}
