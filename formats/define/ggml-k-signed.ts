// The k-quants of ggml whose runs have a signed scale and no minimum (Q3_K, Q6_K, IQ4_XS): value = d * scale(run) *
// level(code), the levels integers that need not be evenly spaced. See ggml-k.ts for how encoding searches.
import type { SearchLoops, SearchRoom, SignedSearch } from "../core/search.ts";
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { SUPER, half } from "./ggml-k.ts";
import { common, f32, getHalf, putHalf, type GgmlOptions } from "./ggml.ts";
import { MAGIC, midpoints, nearest16, searchLoops, TINY } from "./ggml-search.ts";
import { defineOpaque, type OpaquePlanes } from "./opaque.ts";

/** One super-block: value = d * scales[run] * level. */
export interface SignedBlock {
  d: number;
  error: number;
  readonly scales: Int16Array;
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

function isSparse(x: Float32Array, at: number): boolean {
  let zeros = 0;
  for (let j = at; j < at + SUPER; j++) if (x[j] === 0) zeros++;
  return zeros > SUPER / 2;
}

const largest = (s: Float64Array): number => {
  let most = 0;
  for (let i = 0; i < s.length; i++) if (Math.abs(s[i]) > Math.abs(most)) most = s[i];
  return most;
};

/** Levels and widths of the search. */
function specOf(o: SignedOptions): SignedSearch {
  const table = typeof o.levels === "number" ? null : o.levels;
  const low = table === null ? -(o.levels as number) : table[0];
  const high = table === null ? (o.levels as number) - 1 : table[table.length - 1];
  // the plain width first, then ascending: of equals the first stays
  const steps = Array.from({ length: 2 * o.steps + 1 }, (_, i) => (i === 0 ? 0 : i <= o.steps ? i - o.steps - 1 : i - o.steps));
  // with few levels it matters which end the largest magnitude lies at
  const ends = high - low < 16 || table !== null ? [low, high] : [low];
  return {
    kind: "signed",
    runs: SUPER / o.size,
    size: o.size,
    low,
    high,
    most: o.most,
    widths: steps.map((step) => -f32(-low + f32(f32(o.delta) * step))),
    own: ends.flatMap((end) => steps.map((step) => end + Math.sign(end) * o.delta * step)),
    ...(table === null ? {} : { levels: table }),
  };
}

/** A format of runs with a signed scale (Q3_K, Q6_K, IQ4_XS). */
export function defineGgmlKSigned(o: SignedOptions): OpaqueFormat {
  const { size, most } = o;
  const spec = specOf(o);
  const { runs, low, high } = spec;
  const table = spec.levels === undefined ? null : Float64Array.from(spec.levels);
  const bounds = table === null ? null : midpoints(table);
  const codes = new Uint8Array(SUPER);
  const best: SignedBlock = { d: 0, error: Infinity, scales: new Int16Array(runs) };
  let next = 0;

  function keep(room: SearchRoom, d: number): boolean {
    let [error, aa, ax] = [0, 0, 0];
    for (let r = 0; r < runs; r++) error += room.error[r];
    if (!(error < best.error)) return false;
    for (let r = 0; r < runs; r++) {
      aa += room.scales[r] * room.scales[r] * room.uqq[r];
      ax += room.scales[r] * room.uxq[r];
    }
    [best.d, best.error] = [d, error];
    best.scales.set(room.scales);
    // the super scale that least squares would choose for these codes
    next = aa > 0 ? half(ax / aa) : d;
    return true;
  }

  /** What the reference stores: refused where its float16 super scale overflows. */
  function reference(loops: SearchLoops, out: Uint8Array, to: number): void {
    const { refS, scales } = loops.room;
    // where its sums overflow the own search says what there is
    const extreme = largest(refS) || largest(loops.room.ownS);
    const inverse = Math.abs(extreme) < TINY ? 0 : f32(-most / extreme);
    putHalf(out, to, inverse === 0 ? 0 : f32(1 / inverse));
    for (let r = 0; r < runs; r++) scales[r] = Math.max(-most, Math.min(most - 1, f32(inverse * refS[r]) + MAGIC - MAGIC));
    const d = getHalf(out, to);
    loops.judge(d, 0);
    best.error = Infinity;
    keep(loops.room, d);
  }

  function encodeBlock(x: Float32Array, at: number, out: Uint8Array, to: number, importance: Float32Array | undefined, loops: SearchLoops) {
    const { room } = loops;
    const attempt = (d: number, reach: number): boolean => {
      loops.place(d, 0, reach);
      return keep(room, d);
    };
    loops.search(x, at, importance ?? null);
    reference(loops, out, to);
    const own = largest(room.ownS);
    for (const share of [-1, 0.99, -0.94]) attempt(half(own / (most * share)), share === -1 ? 1 : 0);
    // Subnormal super scales lie far apart, and in sparse blocks much hangs on how a few values fall.
    const thorough = Math.abs(own) / most < 2 ** -19 || isSparse(x, at);
    if (thorough) for (let n = 0; n < 32; n++) attempt(half(((n & 1 ? -1 : 1) * own) / (most * (1 - n / 80))), 1);
    for (let pass = 0; pass < 3; pass++) {
      for (let r = 0; r < runs; r++) room.ownS[r] = best.d * best.scales[r];
      if (!attempt(next, thorough ? 3 : 1)) break;
    }
    finish(x, at, out, to);
  }

  function finish(x: Float32Array, at: number, out: Uint8Array, to: number): void {
    for (let r = 0; r < runs; r++) {
      const s = best.d * best.scales[r];
      const inverse = s === 0 ? 0 : 1 / s;
      for (let j = r * size; j < (r + 1) * size; j++) {
        const v = x[at + j] * inverse;
        if (bounds !== null) codes[j] = nearest16(bounds, v);
        else {
          const q = v + MAGIC - MAGIC;
          codes[j] = (q < low ? low : q > high ? high : q) - low;
        }
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
    planes: { element: o.element, span: size, readBlock: o.readBlock },
  });
}
