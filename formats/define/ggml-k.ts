// The k-quants of ggml: super-blocks of 256 elements in runs, each run with a small integer scale (and minimum) under
// one float16 (or two).
// Spec: ggml-org/ggml src/ggml-quants.c, ggml-common.h. Decoding is exact; encoding is an own search for the least
// squared error, weighted with an importance where one is given: less error than the reference's over a tensor, though
// not in every block (about one in a hundred of Q4_K). Refused is what it cannot store. Error sums are closed forms of
// the sums that least squares needs, so that one loop over a run serves both weightings.
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { float16 } from "../float16.ts";
import { getHalf, putHalf, type GgmlOptions } from "./ggml.ts";
import { defineOpaque, type OpaquePlanes } from "./opaque.ts";

export const SUPER = 256;
/** 1.5 * 2^52: added and taken away again it rounds to an integer, halves to even. */
export const MAGIC = 6755399441055744;

/**
 * The float16 of a super scale; never zero where it is not, since a few large codes of the smallest float16 still carry
 * the block.
 */
export const half = (v: number): number => {
  const h = float16.decode(float16.encode(v, { overflow: "saturate" }));
  return h === 0 && v !== 0 ? Math.sign(v) * 2 ** -24 : h;
};

/** One super-block: value = d * scales[run] * code - dmin * mins[run]. */
export interface KBlock {
  d: number;
  dmin: number;
  error: number;
  readonly scales: Int16Array;
  readonly mins: Int16Array;
  /** Super scales that least squares would choose for these codes. */
  nextD: number;
  nextMin: number;
}

/** How the reference chooses the scale of a run: widths around `top`, weights of elements, and what it minimises. */
export interface KRule {
  readonly first: number;
  readonly steps: number;
  /** `rms`: root mean square of the run plus magnitude; `abs`: magnitude. */
  readonly weights: "rms" | "abs";
  readonly norm: "squared" | "absolute";
}

export interface KOptions extends GgmlOptions {
  readonly blockBytes: number;
  /** Elements of a run. */
  readonly size: number;
  readonly element: NumberFormat;
  /** Largest code of a run's scale and minimum. */
  readonly most: number;
  readonly rule: KRule;
  readonly write: (block: KBlock, codes: Uint8Array, out: Uint8Array, to: number) => void;
  readonly readBlock: OpaquePlanes["readBlock"];
}

const newBlock = (runs: number): KBlock => ({
  d: 0,
  dmin: 0,
  error: Infinity,
  scales: new Int16Array(runs),
  mins: new Int16Array(runs),
  nextD: 0,
  nextMin: 0,
});

/** A format of runs with scale and minimum (Q2_K, Q4_K, Q5_K). */
export function defineGgmlK(o: KOptions): OpaqueFormat {
  const { size, most, rule } = o;
  const runs = SUPER / size;
  const top = 2 ** o.element.bits - 1;
  // where codes are few, wider grids that clip are worth a try
  const last = top < 8 ? rule.steps + 16 : rule.steps;
  const codes = new Uint8Array(SUPER);
  const w = new Float64Array(size);
  // what the reference finds for each run, and what the own search finds
  const [refS, refM, ownS, ownM] = [0, 1, 2, 3].map(() => new Float64Array(runs));
  let [best, other] = [newBlock(runs), newBlock(runs)];

  /**
   * Scale and minimum of a run by least squares over grids of several widths: once with the reference's weights, once
   * with u.
   */
  function searchRun(x: Float32Array, at: number, u: Float32Array, r: number): void {
    let low = 0;
    let high = -Infinity;
    let power = 0;
    for (let j = at; j < at + size; j++) {
      const v = x[j];
      if (v < low) low = v;
      if (v > high) high = v;
      power += v * v;
    }
    refS[r] = ownS[r] = 0;
    refM[r] = ownM[r] = -low;
    if (high === low) return;
    const lift = rule.weights === "rms" ? Math.sqrt(power / size) : 0;
    let sw = 0;
    let sx = 0;
    let sxx = 0;
    let su = 0;
    let ux = 0;
    let uxx = 0;
    for (let j = 0; j < size; j++) {
      const v = x[at + j];
      const wj = lift + Math.abs(v);
      const uj = u[at + j];
      w[j] = wj;
      sw += wj;
      sx += wj * v;
      sxx += wj * v * v;
      su += uj;
      ux += uj * v;
      uxx += uj * v * v;
    }
    let refError = Infinity;
    let ownError = Infinity;
    for (let step = -1; step <= last; step++) {
      const inverse = (step < 0 ? top : top + rule.first + 0.1 * step) / (high - low);
      let wq = 0;
      let wqq = 0;
      let wxq = 0;
      let uq = 0;
      let uqq = 0;
      let uxq = 0;
      for (let j = 0; j < size; j++) {
        const v = x[at + j];
        let q = inverse * (v - low) + MAGIC - MAGIC;
        q = q > top ? top : q;
        const a = w[j] * q;
        const b = u[at + j] * q;
        wq += a;
        wqq += a * q;
        wxq += a * v;
        uq += b;
        uqq += b * q;
        uxq += b * v;
      }
      // the reference's: the plain grid first, then least squares
      let s = 1 / inverse;
      let m = low;
      const det = sw * wqq - wq * wq;
      if (step >= 0) {
        s = (sw * wxq - sx * wq) / det;
        m = (wqq * sx - wq * wxq) / det;
        if (m > 0) {
          s = wxq / wqq;
          m = 0;
        }
      }
      if (step < 0 || (det > 0 && step <= rule.steps)) {
        const e =
          rule.norm === "squared"
            ? sxx + s * (s * wqq + 2 * (m * wq - wxq)) + m * (m * sw - 2 * sx)
            : absoluteError(x, at, inverse, low, s, m);
        if (e < refError) {
          refError = e;
          refS[r] = s;
          refM[r] = -m;
        }
      }
      const own = su * uqq - uq * uq;
      // without two different codes there is a scale alone
      s = own > 0 ? (su * uxq - ux * uq) / own : 0;
      m = own > 0 ? (uqq * ux - uq * uxq) / own : 1;
      if (m > 0) {
        s = uxq / uqq;
        m = 0;
      }
      const e = uxx + s * (s * uqq + 2 * (m * uq - uxq)) + m * (m * su - 2 * ux);
      if (e < ownError && s > 0) {
        ownError = e;
        ownS[r] = s;
        ownM[r] = -m;
      }
    }
  }

  function absoluteError(x: Float32Array, at: number, inverse: number, low: number, s: number, m: number): number {
    let sum = 0;
    for (let j = 0; j < size; j++) {
      let q = inverse * (x[at + j] - low) + MAGIC - MAGIC;
      q = q > top ? top : q;
      sum += w[j] * Math.abs(s * q + m - x[at + j]);
    }
    return sum;
  }

  /** Weighted squared error of a run for value = s * q - m; stops above `limit`. */
  function runError(x: Float32Array, at: number, u: Float32Array, s: number, m: number, limit: number): number {
    const inverse = s > 0 ? 1 / s : 0;
    let error = 0;
    for (let j = at; j < at + size && error <= limit; j++) {
      const v = x[j] + m;
      let q = v * inverse + MAGIC - MAGIC;
      q = q > top ? top : q > 0 ? q : 0;
      const e = s * q - v;
      error += u[j] * e * e;
    }
    return error;
  }

  /** Codes and error of the scales and minima in b, and the super scales that suit these codes. */
  function judge(x: Float32Array, at: number, u: Float32Array, b: KBlock): void {
    let error = 0;
    let aa = 0;
    let ab = 0;
    let bb = 0;
    let ax = 0;
    let bx = 0;
    for (let r = 0; r < runs; r++) {
      const s = b.d * b.scales[r];
      const m = b.dmin * b.mins[r];
      const inverse = s > 0 ? 1 / s : 0;
      let uq = 0;
      let uqq = 0;
      let uxq = 0;
      let su = 0;
      let ux = 0;
      for (let j = r * size; j < (r + 1) * size; j++) {
        const v = x[at + j];
        const uj = u[at + j];
        let q = (v + m) * inverse + MAGIC - MAGIC;
        q = q > top ? top : q > 0 ? q : 0;
        const e = s * q - m - v;
        error += uj * e * e;
        uq += uj * q;
        uqq += uj * q * q;
        uxq += uj * q * v;
        su += uj;
        ux += uj * v;
      }
      const sc = b.scales[r];
      const mn = b.mins[r];
      aa += sc * sc * uqq;
      ab -= sc * mn * uq;
      bb += mn * mn * su;
      ax += sc * uxq;
      bx -= mn * ux;
    }
    const determinant = aa * bb - ab * ab;
    let d = b.d;
    let dmin = b.dmin;
    if (determinant > 1e-12 * aa * bb) [d, dmin] = [(ax * bb - bx * ab) / determinant, (aa * bx - ab * ax) / determinant];
    else if (aa > 0) [d, dmin] = [ax / aa, bb > 0 ? b.dmin : 0];
    b.error = error;
    b.nextD = half(Math.max(0, d));
    b.nextMin = half(Math.max(0, dmin));
  }

  const code = (v: number, unit: number): number => (unit > 0 ? Math.min(most, Math.max(0, v / unit + MAGIC - MAGIC)) : 0);

  /**
   * For the super scales in b: codes of scale and minimum near those of `s` and `m`, each run's best within `reach`.
   */
  function place(x: Float32Array, at: number, u: Float32Array, b: KBlock, s: Float64Array, m: Float64Array, reach: 0 | 1): void {
    for (let r = 0; r < runs; r++) {
      const s0 = code(s[r], b.d);
      const m0 = code(m[r], b.dmin);
      b.scales[r] = s0;
      b.mins[r] = m0;
      if (reach === 0) continue;
      let least = runError(x, at + r * size, u, b.d * s0, b.dmin * m0, Infinity);
      for (let n = 0; n < NEAR.length; n += 2) {
        const i = s0 + NEAR[n];
        const k = m0 + NEAR[n + 1];
        if (i < 0 || i > most || k < 0 || k > most || (k !== m0 && !(b.dmin > 0))) continue;
        const e = runError(x, at + r * size, u, b.d * i, b.dmin * k, least);
        if (e < least) {
          least = e;
          b.scales[r] = i;
          b.mins[r] = k;
        }
      }
    }
    judge(x, at, u, b);
  }

  /** The candidate in `other` becomes the best where it is better. */
  function keep(): boolean {
    if (!(other.error < best.error)) return false;
    [best, other] = [other, best];
    return true;
  }

  return defineOpaque({
    name: o.name,
    aliases: o.aliases,
    spec: `ggml ${o.spec}; ggml-quants.c`,
    gguf: o.gguf,
    blockSize: SUPER,
    blockBytes: o.blockBytes,
    encodeBlock(x, at, out, to, importance) {
      const u = importance ?? ones(x.length);
      for (let r = 0; r < runs; r++) searchRun(x, at + r * size, u, r);
      // what the reference stores: refused where its float16 super scales overflow
      const top2 = (v: Float64Array): number => v.reduce((a, b) => Math.max(a, b), 0);
      putHalf(out, to, top2(refS) / most);
      putHalf(out, to + 2, top2(refM) / most);
      best.d = getHalf(out, to);
      best.dmin = getHalf(out, to + 2);
      place(x, at, u, best, refS, refM, 0);
      const [maxS, maxM] = [top2(ownS), top2(ownM)];
      for (const share of STARTS) {
        other.d = half(maxS / (most * share));
        other.dmin = half(maxM / (most * share));
        place(x, at, u, other, ownS, ownM, share === 1 ? 1 : 0);
        keep();
      }
      // Subnormal super scales, and run scales of few bits, lie far apart, so that much hangs on where the codes fall:
      // one is moved, then the other.
      if (most < 16 || Math.min(maxS, maxM > 0 ? maxM : maxS) / most < 2 ** -14)
        for (let n = 0; n < 2 * COARSE; n++) {
          const share = 1 - (0.4 * (n % COARSE)) / COARSE;
          other.d = n < COARSE ? half(maxS / (most * share)) : best.d;
          other.dmin = n < COARSE ? best.dmin : half(maxM / (most * share));
          place(x, at, u, other, ownS, ownM, 1);
          keep();
        }
      for (let pass = 0; pass < PASSES; pass++) {
        for (let r = 0; r < runs; r++) {
          ownS[r] = best.d * best.scales[r];
          ownM[r] = best.dmin * best.mins[r];
        }
        other.d = best.nextD;
        other.dmin = best.nextMin;
        place(x, at, u, other, ownS, ownM, 1);
        if (!keep()) break;
      }
      finish(x, at, out, to);
    },
    planes: { element: o.element, span: size, min: true, readBlock: o.readBlock },
  });

  function finish(x: Float32Array, at: number, out: Uint8Array, to: number): void {
    for (let r = 0; r < runs; r++) {
      const [s, m] = [best.d * best.scales[r], best.dmin * best.mins[r]];
      const inverse = s > 0 ? 1 / s : 0;
      for (let j = r * size; j < (r + 1) * size; j++) {
        const q = (x[at + j] + m) * inverse + MAGIC - MAGIC;
        codes[j] = q > top ? top : q > 0 ? q : 0;
      }
    }
    out.fill(0, to, to + o.blockBytes);
    o.write(best, codes, out, to);
  }
}

/** Shares of the largest code that the largest scale takes at first. */
const STARTS = [1, 0.95, 0.87];
const PASSES = 6;
/** Super scales that are tried where float16 is coarse. */
const COARSE = 16;
/** Steps of scale and minimum that are tried around a pair: the minimum gains where the scale grows. */
const NEAR = Int8Array.of(1, 0, -1, 0, 0, 1, 0, -1, 1, 1, -1, -1);

let one = new Float32Array(0);
/** Weights of one. */
export function ones(length: number): Float32Array {
  if (one.length < length) one = new Float32Array(Math.max(length, 4096)).fill(1);
  return one;
}

/** Super scales at 0 and 2, and the twelve bytes at 4 with eight 6-bit scales and minima (Q4_K, Q5_K). */
export function writeScales6(block: KBlock, out: Uint8Array, to: number): void {
  putHalf(out, to, block.d);
  putHalf(out, to + 2, block.dmin);
  for (let r = 0; r < 8; r++) {
    const [s, m] = [block.scales[r], block.mins[r]];
    if (r < 4) {
      out[to + 4 + r] |= s;
      out[to + 8 + r] |= m;
    } else {
      out[to + 8 + r] = (s & 15) | ((m & 15) << 4);
      out[to + r] |= (s >> 4) << 6;
      out[to + 4 + r] |= (m >> 4) << 6;
    }
  }
}

export function readScales6(bytes: Uint8Array, at: number, scales: Float64Array, mins: Float64Array, run: number): void {
  const d = getHalf(bytes, at);
  const dmin = getHalf(bytes, at + 2);
  const q = at + 4;
  for (let r = 0; r < 8; r++) {
    const s = r < 4 ? bytes[q + r] & 63 : (bytes[q + r + 4] & 15) | ((bytes[q + r - 4] >> 6) << 4);
    const m = r < 4 ? bytes[q + r + 4] & 63 : (bytes[q + r + 4] >> 4) | ((bytes[q + r] >> 6) << 4);
    scales[run + r] = d * s;
    mins[run + r] = -(dmin * m);
  }
}
