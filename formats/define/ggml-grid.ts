// ggml's IQ formats: super-blocks of 256 whose elements are points of a grid (8 or 4 elements a code), with signs or
// shifts beside, and a small odd factor per run under one float16. Decoding is exact. Encoding is an own search: the
// nearest points by rounding to the lattice, scales by least squares; the reference's encoders ask for an importance
// matrix, this one leaves it aside.
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { float16 } from "../float16.ts";
import { defineCodebook } from "./codebook.ts";
import { gridPoints } from "./ggml-grids.ts";
import { common, putHalf, type GgmlOptions } from "./ggml.ts";
import { defineOpaque, type OpaquePlanes } from "./opaque.ts";

const SUPER = 256;

/** What one super-block holds, before a format writes it. */
export interface GridBlock {
  /** The float16 super scale. */
  d: number;
  /** A grid code per `length` elements. */
  readonly points: Uint16Array;
  /** Per 8 elements: bit j says that element j is negative. */
  readonly signs: Uint8Array;
  /** Per 8 elements: is the shift negative? */
  readonly shifts: Uint8Array;
  /** An index into the factors per run. */
  readonly factors: Uint8Array;
}

export interface GridOptions extends GgmlOptions {
  readonly blockBytes: number;
  /** Elements of a run: they share a factor. */
  readonly span: number;
  readonly factors: readonly number[];
  /** Elements of a point, and the values that its digits stand for, ascending. */
  readonly length: 4 | 8;
  readonly levels: readonly number[];
  readonly set: string;
  /**
   * Signs of eight elements: free, an even number of them negative, or none but a shift of +-1/8 for every `shiftSpan`
   * elements.
   */
  readonly signs: "free" | "even" | "none";
  readonly shiftSpan?: number;
  readonly write: (block: GridBlock, out: Uint8Array, to: number) => void;
  /** Reads what `write` wrote, d included. */
  readonly read: (bytes: Uint8Array, at: number, block: GridBlock) => void;
}

/**
 * Levels by code: with signs, the negative ones behind the positive; else those shifted down behind those shifted up.
 */
function elementOf(name: string, levels: readonly number[], signs: GridOptions["signs"]): NumberFormat {
  const size = 2 ** Math.ceil(Math.log2(levels.length));
  const padded = Array.from({ length: size }, (_, i) => levels[Math.min(i, levels.length - 1)]);
  const values =
    signs === "none" ? [...padded.map((v) => v + SHIFT), ...padded.map((v) => v - SHIFT)] : [...padded, ...padded.map((v) => -v)];
  return defineCodebook({ name: `${name}_levels`, values, spec: "ggml-common.h" });
}

const SHIFT = 0.125;
/** Shares of the largest magnitude that the largest level takes at first. */
const STARTS = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42];

const newBlock = (length: number, runs: number): GridBlock => ({
  d: 0,
  points: new Uint16Array(SUPER / length),
  signs: new Uint8Array(SUPER / 8),
  shifts: new Uint8Array(SUPER / 8),
  factors: new Uint8Array(runs),
});

/** The set that has an even number of ones: the eighth sign of IQ formats whose signs take seven bits. */
export const evenSigns = (seven: number): number => {
  let parity = seven;
  for (const shift of [4, 2, 1]) parity ^= parity >> shift;
  return seven | ((parity & 1) << 7);
};

export function defineGgmlGrid(o: GridOptions): OpaqueFormat {
  const { span, length, levels, signs } = o;
  const runs = SUPER / span;
  const count = levels.length;
  const size = 2 ** Math.ceil(Math.log2(count));
  const shiftSpan = o.shiftSpan ?? SUPER;
  const block = newBlock(length, runs);
  let grid: Uint8Array | undefined;
  const points = (): Uint8Array => (grid ??= gridPoints(o.set, count, length));

  // The nearest point of every lattice point, found when first asked for; rounding to the lattice first makes it close
  // to the nearest of all.
  let near: Int16Array | undefined;
  function nearest(key: number): number {
    near ??= new Int16Array(count ** length).fill(-1);
    if (near[key] >= 0) return near[key];
    const all = points();
    let [best, least] = [0, Infinity];
    for (let p = 0; p * length < all.length; p++) {
      let e = 0;
      for (let j = 0, rest = key; j < length; j++, rest = Math.floor(rest / count))
        e += (levels[rest % count] - levels[all[p * length + j]]) ** 2;
      if (e < least) [best, least] = [p, e];
    }
    near[key] = best;
    return best;
  }

  /** The sums that least squares needs for the points chosen at scale s. */
  const sums = { xx: 0, xq: 0, qq: 0 };
  const trial = new Uint16Array(SUPER / length);

  /** Points for x[at .. at + 8 or 4), negative signs in the bits of `negative`; adds to the sums. */
  function point(x: Float32Array, at: number, inverse: number, negative: number, shift: number): number {
    let key = 0;
    for (let j = length - 1; j >= 0; j--) {
      const v = ((negative >> j) & 1 ? -x[at + j] : x[at + j]) * inverse - shift;
      let q = 0;
      while (q + 1 < count && v > (levels[q] + levels[q + 1]) / 2) q++;
      key = key * count + q;
    }
    const code = nearest(key);
    const all = points();
    for (let j = 0; j < length; j++) {
      const v = (negative >> j) & 1 ? -x[at + j] : x[at + j];
      const q = levels[all[code * length + j]] + shift;
      sums.xx += v * v;
      sums.xq += v * q;
      sums.qq += q * q;
    }
    return code;
  }

  function signsOf(x: Float32Array, at: number): number {
    if (signs === "none") return 0;
    let [bits, odd, least] = [0, 0, 0];
    for (let j = 0; j < 8; j++) {
      if (x[at + j] < 0) {
        bits |= 1 << j;
        odd ^= 1;
      }
      if (Math.abs(x[at + j]) < Math.abs(x[at + least])) least = j;
    }
    return signs === "even" && odd ? bits ^ (1 << least) : bits;
  }

  /**
   * Points, signs and shifts of elements from i on for scale s; returns the squared error and leaves the sums. `i` and
   * `n` are multiples of 8.
   */
  function choose(x: Float32Array, at: number, i: number, n: number, s: number, into: Uint16Array): number {
    const inverse = s > 0 ? 1 / s : 0;
    let total = 0;
    const all = { xx: 0, xq: 0, qq: 0 };
    const step = Math.min(shiftSpan, n);
    for (let from = i; from < i + n; from += step) {
      let least = Infinity;
      for (const shift of signs === "none" ? [SHIFT, -SHIFT] : [0]) {
        sums.xx = sums.xq = sums.qq = 0;
        const codes: number[] = [];
        for (let j = from; j < from + step; j += length) codes.push(point(x, at + j, inverse, block.signs[j >> 3] >> (j & 7), shift));
        const e = sums.xx - 2 * s * sums.xq + s * s * sums.qq;
        if (e >= least) continue;
        least = e;
        codes.forEach((code, c) => (into[from / length + c] = code));
        for (let j = from; j < from + step; j += 8) block.shifts[j >> 3] = shift < 0 ? 1 : 0;
        kept.xx = sums.xx;
        kept.xq = sums.xq;
        kept.qq = sums.qq;
      }
      total += least;
      all.xq += kept.xq;
      all.qq += kept.qq;
    }
    sums.xq = all.xq;
    sums.qq = all.qq;
    return total;
  }
  const kept = { xx: 0, xq: 0, qq: 0 };

  /** The scale of elements i .. i + n that comes close to the least squared error. */
  function search(x: Float32Array, at: number, i: number, n: number): number {
    let amax = 0;
    for (let j = at + i; j < at + i + n; j++) amax = Math.max(amax, Math.abs(x[j]));
    if (amax === 0) return 0;
    let [best, least] = [0, Infinity];
    for (const share of STARTS) {
      let s = (share * amax) / levels[count - 1];
      for (let pass = 0; pass < 2; pass++) {
        const e = choose(x, at, i, n, s, trial);
        if (e < least) [best, least] = [s, e];
        if (!(sums.xq > 0)) break;
        s = sums.xq / sums.qq;
      }
    }
    return best;
  }

  /** Factors and points for super scale d; returns the squared error. */
  function fit(x: Float32Array, at: number, d: number, wanted: Float64Array): number {
    block.d = d;
    let total = 0;
    for (let r = 0; r < runs; r++) {
      let k = 0;
      while (k + 1 < o.factors.length && Math.abs(o.factors[k + 1] * d - wanted[r]) < Math.abs(o.factors[k] * d - wanted[r])) k++;
      let [best, least] = [k, Infinity];
      for (let c = Math.max(0, k - 1); c <= Math.min(o.factors.length - 1, k + 1); c++) {
        const e = choose(x, at, r * span, span, d * o.factors[c], trial);
        if (e < least) [best, least] = [c, e];
      }
      block.factors[r] = best;
      total += choose(x, at, r * span, span, d * o.factors[best], block.points);
    }
    return total;
  }

  const element = elementOf(o.name, levels, signs);
  const seen = newBlock(length, runs);
  return defineOpaque({
    ...common(o),
    blockSize: SUPER,
    blockBytes: o.blockBytes,
    encodeBlock(x, at, out, to) {
      let power = 0;
      for (let j = 0; j < SUPER; j += 8) block.signs[j >> 3] = signsOf(x, at + j);
      for (let j = at; j < at + SUPER; j++) power += x[j] * x[j];
      const wanted = new Float64Array(runs);
      for (let r = 0; r < runs; r++) wanted[r] = search(x, at, r * span, span);
      const largest = wanted.reduce((a, b) => Math.max(a, b), 0);
      const top = o.factors[o.factors.length - 1];
      putHalf(out, to, largest / top); // refuses what overflows
      let [d, least] = [0, power];
      for (const share of [1, 0.93, 0.86]) {
        const candidate = float16.decode(float16.encode(largest / (top * share), { overflow: "saturate" }));
        const e = fit(x, at, candidate, wanted);
        if (e < least) [d, least] = [candidate, e];
      }
      fit(x, at, d, wanted);
      out.fill(0, to, to + o.blockBytes);
      o.write(block, out, to);
    },
    planes: {
      element,
      span,
      readBlock(bytes, at, codes, to, scales, _mins, run) {
        o.read(bytes, at, seen);
        const all = points();
        for (let r = 0; r < runs; r++) scales[run + r] = seen.d * o.factors[seen.factors[r]];
        for (let i = 0; i < SUPER; i++) {
          const digit = all[seen.points[Math.floor(i / length)] * length + (i % length)];
          const second = signs === "none" ? seen.shifts[i >> 3] : (seen.signs[i >> 3] >> (i & 7)) & 1;
          codes[to + i] = digit + size * second;
        }
      },
    } satisfies OpaquePlanes,
  });
}

export const getWord = (bytes: Uint8Array, at: number): number =>
  bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);

export function putWord(out: Uint8Array, to: number, word: number): void {
  for (let b = 0; b < 4; b++) out[to + b] = word >>> (8 * b);
}
