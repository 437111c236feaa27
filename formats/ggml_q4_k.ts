// ggml_q4_k: 256 elements in 144 bytes, 4.5 bits per value: 8 runs of 32, each with a 6-bit scale and minimum under two float16.
//   d:f16  dmin:f16  scales[12]  qs[128]     value = d * sc(run) * q - dmin * m(run)
// qs[32 c + l]: low nibble element 64 c + l, high nibble 64 c + 32 + l. The twelve bytes: runs 0..3 in the low six bits of bytes 0..3 (sc) and
// 4..7 (m); runs 4..7 in the nibbles of bytes 8..11 (sc low, m high), their upper two bits on top of bytes 0..3 and 4..7.
// Decoding is exact; encoding is an own search for the least squared error (the reference minimises an error weighted by magnitude). What the
// reference's rule gives is tried as well, so that no block is worse, and refused is what it cannot store.
import { f32, getHalf, nearestInt, putHalf } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";
import { float16 } from "./float16.ts";
import { uint4 } from "./uint4.ts";

const RUNS = 8;
const SIZE = 32;
const codes = new Uint8Array(SIZE);
const weights = new Float64Array(SIZE);

/** Codes of one run for value = s * q - m; returns the squared error, or stops above `limit`. */
function fit(x: Float32Array, at: number, s: number, m: number, limit = Infinity): number {
  const inverse = s > 0 ? 1 / s : 0;
  let error = 0;
  for (let j = 0; j < SIZE && error <= limit; j++) {
    const v = x[at + j];
    const t = (v + m) * inverse;
    const q = t >= 15 ? 15 : t > 0 ? (t + 0.5) | 0 : 0;
    const e = s * q - m - v;
    codes[j] = q;
    error += e * e;
  }
  return error;
}

/**
 * Scale and minimum (both >= 0) of one run that come close to the least squared error, or to the least error weighted by magnitude: grids of
 * several widths, refined by least squares.
 */
function search(x: Float32Array, at: number, weighted: boolean): [number, number] {
  let [low, high, power] = [0, -Infinity, 0];
  for (let j = at; j < at + SIZE; j++) {
    low = Math.min(low, x[j]);
    high = Math.max(high, x[j]);
    power += x[j] * x[j];
  }
  const mean = Math.sqrt(power / SIZE);
  let [sw, sx] = [0, 0];
  for (let j = 0; j < SIZE; j++) {
    weights[j] = weighted ? mean + Math.abs(x[at + j]) : 1;
    sw += weights[j];
    sx += weights[j] * x[at + j];
  }
  if (high === low) return [0, -low];
  let best: [number, number] = [0, Math.max(0, -sx / sw)];
  let least = Infinity;
  // Minima to start from: shares of the smallest value, or of one step where nothing is negative.
  const unit = low < 0 ? -low : high / 15;
  // 15, 15 +- 1/4, ...: of equals the first stays, so that what fits the code range exactly is found exactly.
  for (let step = 0; step < 17; step++) {
    const width = 15 + (step & 1 ? step + 1 : -step) / 8;
    for (const lift of low < 0 ? LIFTS : SHIFTS) {
      let m = unit * lift;
      let s = (high + m) / width;
      if (s <= 0) continue;
      for (let pass = 0; pass < 3; pass++) {
        const inverse = 1 / s;
        let error = 0;
        let q1 = 0;
        let q2 = 0;
        let xq = 0;
        for (let j = 0; j < SIZE; j++) {
          const v = x[at + j];
          const w = weights[j];
          const t = (v + m) * inverse;
          const q = t >= 15 ? 15 : t > 0 ? (t + 0.5) | 0 : 0;
          const e = s * q - m - v;
          const wq = w * q;
          error += w * e * e;
          q1 += wq;
          q2 += wq * q;
          xq += wq * v;
        }
        if (error < least) {
          least = error;
          best = [s, m];
        }
        const determinant = sw * q2 - q1 * q1;
        if (determinant <= 0) break;
        s = (sw * xq - q1 * sx) / determinant;
        m = (q1 * xq - q2 * sx) / determinant;
        if (m < 0) [s, m] = [q2 > 0 ? xq / q2 : 0, 0];
        if (!(s > 0)) break;
      }
    }
  }
  return best;
}

/** The float16 of a super scale; never zero where it is not, since a few large codes of the smallest float16 still carry the block. */
const half = (v: number) => (v > 0 ? Math.max(2 ** -24, float16.decode(float16.encode(v, { overflow: "saturate" }))) : 0);

/** Where the minimum may start, as a share of the smallest value or of a step. */
const LIFTS = [1, 0.5, 0, 1.7];
const SHIFTS = [0, 0.25, 0.5, 0.75, 1];

/** Codes that the largest run scale and minimum may take at first. */
const TOPS = [62, 61, 60, 59, 57, 55, 53, 51, 48, 45, 42, 38];

interface Attempt {
  readonly error: number;
  readonly d: number;
  readonly dmin: number;
  readonly scales: Uint8Array;
  readonly mins: Uint8Array;
  /** The float16 super scales that would fit the codes of this attempt best. */
  readonly nextD: number;
  readonly nextMin: number;
}

/** The best 6-bit scales and minima within `reach` of the wanted ones, for given super scales. */
function attempt(x: Float32Array, at: number, d: number, dmin: number, wanted: readonly (readonly number[])[], reach: number): Attempt {
  const scales = new Uint8Array(RUNS);
  const mins = new Uint8Array(RUNS);
  const near = (v: number, unit: number) => (unit > 0 ? Math.max(0, Math.min(63, Math.round(v / unit))) : 0);
  for (let r = 0; r < RUNS; r++) {
    const from = at + r * SIZE;
    const s0 = near(wanted[r][0], d);
    const m0 = near(wanted[r][1], dmin);
    const mReach = dmin > 0 ? reach : 0;
    let least = Infinity;
    for (let s = Math.max(0, s0 - reach); s <= Math.min(63, s0 + reach); s++)
      for (let m = Math.max(0, m0 - mReach); m <= Math.min(63, m0 + mReach); m++) {
        const e = fit(x, from, d * s, dmin * m, least);
        if (e < least) {
          least = e;
          scales[r] = s;
          mins[r] = m;
        }
      }
  }
  return judge(x, at, d, dmin, scales, mins);
}

/** Error of given scales and minima, and the super scales that suit their codes. */
function judge(x: Float32Array, at: number, d: number, dmin: number, scales: Uint8Array, mins: Uint8Array): Attempt {
  let error = 0;
  // Normal equations of d and dmin given the codes.
  let [aa, ab, bb, ax, bx] = [0, 0, 0, 0, 0];
  for (let r = 0; r < RUNS; r++) {
    const from = at + r * SIZE;
    error += fit(x, from, d * scales[r], dmin * mins[r]);
    const b = -mins[r];
    for (let j = 0; j < SIZE; j++) {
      const a = scales[r] * codes[j];
      aa += a * a;
      ab += a * b;
      bb += b * b;
      ax += a * x[from + j];
      bx += b * x[from + j];
    }
  }
  const determinant = aa * bb - ab * ab;
  let [nextD, nextMin] = [d, dmin];
  if (determinant > 0) [nextD, nextMin] = [(ax * bb - bx * ab) / determinant, (aa * bx - ab * ax) / determinant];
  else if (aa > 0) [nextD, nextMin] = [ax / aa, 0];
  return { error, d, dmin, scales, mins, nextD: half(Math.max(0, nextD)), nextMin: half(Math.max(0, nextMin)) };
}

/** The reference's scale and minimum of one run, in float32 steps: 22 widths around 15, all but the first refined by least squares with weights rms + |x|. */
function referenceRun(x: Float32Array, at: number): [number, number] {
  let [low, high, power, sw, sx] = [0, -Infinity, 0, 0, 0];
  for (let j = at; j < at + SIZE; j++) power = f32(power + f32(x[j] * x[j]));
  const mean = f32(Math.sqrt(f32(power / SIZE)));
  for (let j = 0; j < SIZE; j++) {
    const v = x[at + j];
    low = Math.min(low, v);
    high = Math.max(high, v);
    weights[j] = f32(mean + Math.abs(v));
    sw = f32(sw + weights[j]);
    sx = f32(sx + f32(weights[j] * v));
  }
  if (high === low) return [0, -low];
  const range = f32(high - low);
  if (range === Infinity) return [(high - low) / 15, -low];
  const errorOf = (s: number, min: number): number => {
    let sum = 0;
    for (let j = 0; j < SIZE; j++) {
      const e = f32(f32(f32(s * codes[j]) + min) - x[at + j]);
      sum = f32(sum + f32(weights[j] * f32(e * e)));
    }
    return sum;
  };
  const round = (width: number): void => {
    const inverse = f32(width / range);
    for (let j = 0; j < SIZE; j++) codes[j] = Math.max(0, Math.min(15, nearestInt(f32(inverse * f32(x[at + j] - low)))));
  };
  round(15);
  let best: [number, number] = [f32(1 / f32(15 / range)), low];
  let least = errorOf(best[0], best[1]);
  for (let step = 0; step <= 20; step++) {
    round(f32(f32(-1 + f32(f32(0.1) * step)) + 15));
    let [q1, q2, xq] = [0, 0, 0];
    for (let j = 0; j < SIZE; j++) {
      const wq = f32(weights[j] * codes[j]);
      q1 = f32(q1 + wq);
      q2 = f32(q2 + f32(wq * codes[j]));
      xq = f32(xq + f32(wq * x[at + j]));
    }
    const determinant = f32(f32(sw * q2) - f32(q1 * q1));
    if (!(determinant > 0)) continue;
    let s = f32(f32(f32(sw * xq) - f32(sx * q1)) / determinant);
    let min = f32(f32(f32(q2 * sx) - f32(q1 * xq)) / determinant);
    if (min > 0) [s, min] = [f32(xq / q2), 0];
    const error = errorOf(s, min);
    if (error < least) [least, best] = [error, [s, min]];
  }
  return [best[0], -best[1]];
}

/** What the reference's rule makes of a block. @throws LowbitError E_VALUE beyond its float16 super scales */
function reference(x: Float32Array, at: number, out: Uint8Array, to: number): Attempt {
  const runs = Array.from({ length: RUNS }, (_, r) => referenceRun(x, at + r * SIZE));
  const [most, mostMin] = [0, 1].map((i) => Math.max(0, ...runs.map((r) => r[i])));
  // written again below
  putHalf(out, to, f32(most / 63));
  putHalf(out, to + 2, f32(mostMin / 63));
  const code = (v: number, top: number) => Math.max(0, Math.min(63, nearestInt(f32(v * (top > 0 ? f32(63 / top) : 0)))));
  const scales = Uint8Array.from(runs, (r) => code(r[0], most));
  const mins = Uint8Array.from(runs, (r) => code(r[1], mostMin));
  return judge(x, at, getHalf(out, to), getHalf(out, to + 2), scales, mins);
}

export const ggml_q4_k = /* @__PURE__ */ defineOpaque({
  name: "ggml_q4_k",
  aliases: ["q4_k", "gguf_q4_k"],
  spec: "ggml Q4_K (type 12); ggml-quants.c",
  blockSize: 256,
  blockBytes: 144,
  encodeBlock(x, at, out, to) {
    let best = reference(x, at, out, to);
    // The super scales start where the largest run scale takes one of the upper codes; the best start is refined.
    for (const weighted of [false, true]) {
      const runs = Array.from({ length: RUNS }, (_, r) => search(x, at + r * SIZE, weighted));
      const [maxScale, maxMin] = [0, 1].map((i) => Math.max(...runs.map((r) => r[i])));
      let local = attempt(x, at, half(maxScale / 63), half(maxMin / 63), runs, 2);
      // One after the other: where one run dwarfs the rest, the rest hang on how their few small codes fall.
      for (const start of maxMin > 0 ? [0, 1] : [0]) {
        const { d, dmin } = local;
        for (const top of TOPS) {
          const other = attempt(x, at, start === 0 ? half(maxScale / top) : d, start === 0 ? dmin : half(maxMin / top), runs, 1);
          if (other.error < local.error) local = other;
        }
      }
      if (local.error < best.error) best = local;
    }
    for (let pass = 0; pass < 4; pass++) {
      const { d, dmin, mins, nextD, nextMin }: Attempt = best;
      const near = Array.from(best.scales, (s, r) => [d * s, dmin * mins[r]]);
      const next = attempt(x, at, nextD, nextMin, near, 2);
      if (!(next.error < best.error)) break;
      best = next;
    }
    putHalf(out, to, best.d);
    putHalf(out, to + 2, best.dmin);
    for (let r = 0; r < RUNS; r++) {
      const [s, m] = [best.scales[r], best.mins[r]];
      if (r < 4) {
        out[to + 4 + r] |= s;
        out[to + 8 + r] |= m;
      } else {
        out[to + 8 + r] = (s & 15) | ((m & 15) << 4);
        out[to + r] |= (s >> 4) << 6;
        out[to + 4 + r] |= (m >> 4) << 6;
      }
      fit(x, at + r * SIZE, best.d * s, best.dmin * m);
      for (let j = 0; j < SIZE; j++) out[to + 16 + (r >> 1) * SIZE + j] |= codes[j] << ((r & 1) * 4);
    }
  },
  planes: {
    element: uint4,
    span: SIZE,
    min: true,
    readBlock(bytes, at, out, to, scales, mins, run) {
      const d = getHalf(bytes, at);
      const dmin = getHalf(bytes, at + 2);
      const q = at + 4;
      for (let r = 0; r < RUNS; r++) {
        const s = r < 4 ? bytes[q + r] & 63 : (bytes[q + r + 4] & 15) | ((bytes[q + r - 4] >> 6) << 4);
        const m = r < 4 ? bytes[q + r + 4] & 63 : (bytes[q + r + 4] >> 4) | ((bytes[q + r] >> 6) << 4);
        scales[run + r] = d * s;
        mins[run + r] = -(dmin * m);
        for (let j = 0; j < SIZE; j++) out[to + r * SIZE + j] = (bytes[at + 16 + (r >> 1) * SIZE + j] >> ((r & 1) * 4)) & 15;
      }
    },
  },
});
