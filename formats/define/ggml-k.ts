// The k-quants of ggml: super-blocks of 256 elements in runs, each run with a small integer scale (and minimum) under
// one float16 (or two).
// Spec: ggml-org/ggml src/ggml-quants.c, ggml-common.h. Decoding is exact; encoding is an own search for the least
// squared error, weighted with an importance where one is given. What the reference stores without one is a candidate,
// so that no block is worse. Refused is what it cannot store. The loops over values are those of ggml-search.ts, or
// kernels that do the same.
import type { SearchLoops, SearchRoom, SearchSpec } from "../core/search.ts";
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { common, f32, getHalf, putHalf, type GgmlOptions } from "./ggml.ts";
import { MAGIC, searchLoops } from "./ggml-search.ts";
import { defineOpaque, type OpaquePlanes } from "./opaque.ts";

export const SUPER = 256;

const bits64 = new Float64Array(1);
const words = new Uint32Array(bits64.buffer);
/** The units of float16, by exponent from -14 on. */
const UNITS = Float64Array.from({ length: 30 }, (_, i) => 2 ** (i - 24));
const LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0];

/**
 * The float16 of a super scale, at most 65504; never zero where it is not, since a few large codes of the smallest
 * float16 still carry the block.
 */
export function half(v: number): number {
  bits64[0] = v;
  const exponent = ((words[LITTLE] >>> 20) & 2047) - 1023;
  if (exponent > 15) return v > 0 ? 65504 : v < 0 ? -65504 : v;
  const unit = UNITS[Math.max(-14, exponent) + 14];
  const h = Math.max(-65504, Math.min(65504, (v / unit + MAGIC - MAGIC) * unit));
  return h === 0 && v !== 0 ? Math.sign(v) * 2 ** -24 : h;
}

/** One super-block: value = d * scales[run] * code - dmin * mins[run]. */
export interface KBlock {
  d: number;
  dmin: number;
  error: number;
  readonly scales: Int16Array;
  readonly mins: Int16Array;
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

const sum = (values: Float64Array): number => {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i];
  return total;
};
const largest = (values: Float64Array): number => {
  let most = 0;
  for (let i = 0; i < values.length; i++) if (values[i] > most) most = values[i];
  return most;
};

/** The super scales that least squares would choose for the codes in the room, which were made for d and dmin. */
function nextScales(room: SearchRoom, d: number, dmin: number): [number, number] {
  const { scales, mins, uq, uqq, uxq, su, ux } = room;
  let [aa, ab, bb, ax, bx] = [0, 0, 0, 0, 0];
  for (let r = 0; r < scales.length; r++) {
    const [sc, mn] = [scales[r], mins[r]];
    aa += sc * sc * uqq[r];
    ab -= sc * mn * uq[r];
    bb += mn * mn * su[r];
    ax += sc * uxq[r];
    bx -= mn * ux[r];
  }
  const determinant = aa * bb - ab * ab;
  if (determinant > 1e-12 * aa * bb) [d, dmin] = [(ax * bb - bx * ab) / determinant, (aa * bx - ab * ax) / determinant];
  else if (aa > 0) [d, dmin] = [ax / aa, bb > 0 ? dmin : 0];
  return [half(Math.max(0, d)), half(Math.max(0, dmin))];
}

/** A format of runs with scale and minimum (Q2_K, Q4_K, Q5_K). */
export function defineGgmlK(o: KOptions): OpaqueFormat {
  const { size, most, rule } = o;
  const runs = SUPER / size;
  const top = 2 ** o.element.bits - 1;
  // where codes are few, wider grids that clip are worth a try
  const last = top < 8 ? rule.steps + 16 : rule.steps;
  const steps = (n: number, width: (step: number) => number): number[] => [top, ...Array.from({ length: n + 1 }, (_, i) => width(i))];
  const spec: SearchSpec = {
    kind: "affine",
    runs,
    size,
    top,
    most,
    widths: steps(rule.steps, (i) => f32(f32(f32(rule.first) + f32(f32(0.1) * i)) + top)),
    own: steps(last, (i) => top + rule.first + 0.1 * i),
    lift: rule.weights === "rms",
    absolute: rule.norm === "absolute",
  };
  const codes = new Uint8Array(SUPER);
  const best: KBlock = { d: 0, dmin: 0, error: Infinity, scales: new Int16Array(runs), mins: new Int16Array(runs) };
  let [nextD, nextMin] = [0, 0];

  /** The codes in the room become the best where they are better. */
  function keep(room: SearchRoom, d: number, dmin: number): boolean {
    const error = sum(room.error);
    if (!(error < best.error)) return false;
    [best.d, best.dmin, best.error] = [d, dmin, error];
    best.scales.set(room.scales);
    best.mins.set(room.mins);
    [nextD, nextMin] = nextScales(room, d, dmin);
    return true;
  }

  /** What the reference stores: refused where its float16 super scales overflow. */
  function reference(loops: SearchLoops, out: Uint8Array, to: number): void {
    const { refS, refM, scales, mins } = loops.room;
    const [s, m] = [largest(refS), largest(refM)];
    putHalf(out, to, f32(s / most));
    putHalf(out, to + 2, f32(m / most));
    const [inverseS, inverseM] = [s > 0 ? f32(most / s) : 0, m > 0 ? f32(most / m) : 0];
    for (let r = 0; r < runs; r++) {
      scales[r] = Math.min(most, Math.max(0, f32(inverseS * refS[r]) + MAGIC - MAGIC));
      mins[r] = Math.min(most, Math.max(0, f32(inverseM * refM[r]) + MAGIC - MAGIC));
    }
    const [d, dmin] = [getHalf(out, to), getHalf(out, to + 2)];
    loops.judge(d, dmin);
    best.error = Infinity;
    keep(loops.room, d, dmin);
  }

  function encodeBlock(x: Float32Array, at: number, out: Uint8Array, to: number, importance: Float32Array | undefined, loops: SearchLoops) {
    const { room } = loops;
    const attempt = (d: number, dmin: number, reach: number): boolean => {
      loops.place(d, dmin, reach);
      return keep(room, d, dmin);
    };
    loops.search(x, at, importance ?? null);
    reference(loops, out, to);
    const [maxS, maxM] = [largest(room.ownS), largest(room.ownM)];
    for (const share of STARTS) attempt(half(maxS / (most * share)), half(maxM / (most * share)), share === 1 ? 1 : 0);
    // Subnormal super scales, and run scales of few bits, lie far apart, so that much hangs on where the codes fall:
    // one is moved, then the other.
    if (most < 16 || Math.min(maxS, maxM > 0 ? maxM : maxS) / most < 2 ** -14)
      for (let n = 0; n < 2 * COARSE; n++) {
        const share = 1 - (0.4 * (n % COARSE)) / COARSE;
        attempt(n < COARSE ? half(maxS / (most * share)) : best.d, n < COARSE ? best.dmin : half(maxM / (most * share)), 1);
      }
    for (let pass = 0; pass < PASSES; pass++) {
      for (let r = 0; r < runs; r++) {
        room.ownS[r] = best.d * best.scales[r];
        room.ownM[r] = best.dmin * best.mins[r];
      }
      if (!attempt(nextD, nextMin, 1)) break;
    }
    finish(x, at, out, to);
  }

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

  return defineOpaque({
    ...common(o),
    blockSize: SUPER,
    blockBytes: o.blockBytes,
    encodeBlock: (x, at, out, to, importance, loops) => encodeBlock(x, at, out, to, importance, loops!),
    search: { spec, loops: searchLoops(spec) },
    planes: { element: o.element, span: size, min: true, readBlock: o.readBlock },
  });
}

/** Shares of the largest code that the largest scale takes at first. */
const STARTS = [1, 0.95, 0.87];
const PASSES = 6;
/** Super scales that are tried where float16 is coarse. */
const COARSE = 16;

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
