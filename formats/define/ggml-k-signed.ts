// The k-quants of ggml whose runs have a signed scale and no minimum (Q3_K, Q6_K, IQ4_XS): value = d * scale(run) *
// level(code), the levels integers that need not be evenly spaced. See ggml-k.ts for how encoding searches.
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { SUPER, MAGIC, half, ones } from "./ggml-k.ts";
import { f32, getHalf, putHalf, signedExtreme, type GgmlOptions } from "./ggml.ts";
import { defineOpaque, type OpaquePlanes } from "./opaque.ts";

/** One super-block: value = d * scales[run] * level. */
export interface SignedBlock {
  d: number;
  error: number;
  readonly scales: Int16Array;
  /** The super scale that least squares would choose for these codes. */
  next: number;
}

export interface SignedOptions extends GgmlOptions {
  readonly blockBytes: number;
  /** Elements of a run. */
  readonly size: number;
  readonly element: NumberFormat;
  /** Codes of a run's scale are -most .. most - 1. */
  readonly most: number;
  /** Widths around the largest level that the reference tries: `steps` on either side, `delta` apart. */
  readonly steps: number;
  readonly delta: number;
  /** Levels: -levels .. levels - 1, or a table of 16 in ascending order. */
  readonly levels: number | readonly number[];
  /** `codes` are 0 for the lowest level, 1 for the next. */
  readonly write: (block: SignedBlock, codes: Uint8Array, out: Uint8Array, to: number) => void;
  readonly readBlock: OpaquePlanes["readBlock"];
}

const newBlock = (runs: number): SignedBlock => ({ d: 0, error: Infinity, scales: new Int16Array(runs), next: 0 });

/** The index of the nearest of 16 ascending levels; halves go to the upper one. */
function nearest16(bounds: Float64Array, v: number): number {
  let i = v >= bounds[7] ? 8 : 0;
  if (v >= bounds[i + 3]) i += 4;
  if (v >= bounds[i + 1]) i += 2;
  return v >= bounds[i] ? i + 1 : i;
}

function isSparse(x: Float32Array, at: number): boolean {
  let zeros = 0;
  for (let j = at; j < at + SUPER; j++) if (x[j] === 0) zeros++;
  return zeros > SUPER / 2;
}

export function defineGgmlKSigned(o: SignedOptions): OpaqueFormat {
  const { size, most } = o;
  const runs = SUPER / size;
  const table = typeof o.levels === "number" ? null : Float64Array.from(o.levels);
  const bounds = table === null ? new Float64Array(0) : table.slice(0, -1).map((v, i) => (v + table[i + 1]) / 2);
  const low = table === null ? -(o.levels as number) : table[0];
  const high = table === null ? (o.levels as number) - 1 : table[table.length - 1];
  // with few levels it matters which end the largest magnitude lies at
  const ends = high - low < 16 || table !== null ? [low, high] : [low];
  const codes = new Uint8Array(SUPER);
  const [refS, ownS] = [new Float64Array(runs), new Float64Array(runs)];
  let [best, other] = [newBlock(runs), newBlock(runs)];

  const level = (v: number): number => {
    if (table !== null) return table[nearest16(bounds, v)];
    const q = v + MAGIC - MAGIC;
    return q < low ? low : q > high ? high : q;
  };

  /**
   * The scale of a run by least squares over grids of several widths: once with the reference's weights x^2, once with
   * u.
   */
  function searchRun(x: Float32Array, at: number, u: Float32Array, r: number): void {
    const extreme = signedExtreme(x, at, size);
    refS[r] = ownS[r] = 0;
    if (Math.abs(extreme) < f32(1e-15)) return;
    let refBest = 0;
    let ownBest = 0;
    for (const end of ends)
      for (let i = 0; i <= 2 * o.steps; i++) {
        // the plain width first, then ascending: of equals the first stays
        const step = i === 0 ? 0 : i <= o.steps ? i - o.steps - 1 : i - o.steps;
        const inverse = (end + Math.sign(end) * o.delta * step) / extreme;
        let wqq = 0;
        let wxq = 0;
        let uqq = 0;
        let uxq = 0;
        for (let j = at; j < at + size; j++) {
          const v = x[j];
          const q = level(inverse * v);
          const a = v * v * q;
          const b = u[j] * q;
          wqq += a * q;
          wxq += a * v;
          uqq += b * q;
          uxq += b * v;
        }
        if (end === low && wqq > 0 && wxq * wxq > refBest * wqq) {
          refS[r] = wxq / wqq;
          refBest = refS[r] * wxq;
        }
        if (uqq > 0 && uxq * uxq > ownBest * uqq) {
          ownS[r] = uxq / uqq;
          ownBest = ownS[r] * uxq;
        }
      }
  }

  function runError(x: Float32Array, at: number, u: Float32Array, s: number, limit: number): number {
    const inverse = s === 0 ? 0 : 1 / s;
    let error = 0;
    for (let j = at; j < at + size && error <= limit; j++) {
      const e = s * level(x[j] * inverse) - x[j];
      error += u[j] * e * e;
    }
    return error;
  }

  /** Error of the scales in b, and the super scale that suits their codes. */
  function judge(x: Float32Array, at: number, u: Float32Array, b: SignedBlock): void {
    let error = 0;
    let aa = 0;
    let ax = 0;
    for (let r = 0; r < runs; r++) {
      const s = b.d * b.scales[r];
      const inverse = s === 0 ? 0 : 1 / s;
      let uqq = 0;
      let uxq = 0;
      for (let j = at + r * size; j < at + (r + 1) * size; j++) {
        const q = level(x[j] * inverse);
        const e = s * q - x[j];
        const uq = u[j] * q;
        error += u[j] * e * e;
        uqq += uq * q;
        uxq += uq * x[j];
      }
      aa += b.scales[r] * b.scales[r] * uqq;
      ax += b.scales[r] * uxq;
    }
    b.error = error;
    b.next = aa > 0 ? half(ax / aa) : b.d;
  }

  /** For the super scale in b: each run's best scale within `reach` of s. */
  function place(x: Float32Array, at: number, u: Float32Array, b: SignedBlock, s: Float64Array, reach: number): void {
    for (let r = 0; r < runs; r++) {
      const middle = b.d === 0 ? 0 : Math.max(-most, Math.min(most - 1, s[r] / b.d + MAGIC - MAGIC));
      b.scales[r] = middle;
      if (reach === 0) continue;
      let least = runError(x, at + r * size, u, b.d * middle, Infinity);
      for (let i = Math.max(-most, middle - reach); i <= Math.min(most - 1, middle + reach); i++) {
        if (i === middle) continue;
        const e = runError(x, at + r * size, u, b.d * i, least);
        if (e < least) {
          least = e;
          b.scales[r] = i;
        }
      }
    }
    judge(x, at, u, b);
  }

  function keep(): boolean {
    if (!(other.error < best.error)) return false;
    [best, other] = [other, best];
    return true;
  }

  const largest = (s: Float64Array): number => s.reduce((a, v) => (Math.abs(v) > Math.abs(a) ? v : a), 0);

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
      // what the reference stores: refused where its float16 super scale overflows
      putHalf(out, to, largest(refS) / -most);
      best.d = getHalf(out, to);
      place(x, at, u, best, refS, 0);
      const own = largest(ownS);
      for (const share of [-1, 0.99, -0.94]) {
        other.d = half(own / (most * share));
        place(x, at, u, other, ownS, share === -1 ? 1 : 0);
        keep();
      }
      // Subnormal super scales lie far apart, and in sparse blocks much hangs on how a few values fall.
      const thorough = Math.abs(own) / most < 2 ** -14 || isSparse(x, at);
      if (thorough)
        for (let n = 0; n < 32; n++) {
          other.d = half(((n & 1 ? -1 : 1) * own) / (most * (1 - n / 80)));
          place(x, at, u, other, ownS, 1);
          keep();
        }
      for (let pass = 0; pass < 3; pass++) {
        for (let r = 0; r < runs; r++) ownS[r] = best.d * best.scales[r];
        other.d = best.next;
        place(x, at, u, other, ownS, thorough ? 3 : 1);
        if (!keep()) break;
      }
      for (let r = 0; r < runs; r++) {
        const s = best.d * best.scales[r];
        const inverse = s === 0 ? 0 : 1 / s;
        for (let j = r * size; j < (r + 1) * size; j++)
          codes[j] = table === null ? level(x[at + j] * inverse) - low : nearest16(bounds, x[at + j] * inverse);
      }
      out.fill(0, to, to + o.blockBytes);
      o.write(best, codes, out, to);
    },
    planes: { element: o.element, span: size, readBlock: o.readBlock },
  });
}
