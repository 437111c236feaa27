// A sketch: one bit a dimension beside an index of two stages, the sign of a vector less the mean direction of all. A
// look at the sketches leaves the first stage a few thousand vectors to score instead of all, and reads an eighth of
// the bytes of int8. Signs as a first stage have one too, of their first dimensions only: 128 of 768. Whether it may,
// and how many vectors it must leave, is tested when the index is built:
//
//   64 of the vectors, as queries, search one row in 2 to 8. The nearest by the first stage, as many as stand for the
//   24 nearest of all rows, must be among the best of the sketches; twice the worst place of any of them, as a share
//   of the rows, is what the sketch leaves. Where that is more than one row in 16 there is no sketch.
//
// Searches for more than 24, or that many of all rows where a filter leaves some, go without it.
import { binary } from "../../formats/binary.ts";
import type { EngineMemory } from "../backends/wasm/memory.ts";
import { engineRows, type EngineRows } from "./engine-rows.ts";
import { operandsOf } from "./operands.ts";
import { lengthOf } from "./query.ts";

export interface Sketch {
  readonly rows: EngineRows;
  /** The mean of unit vectors. */
  readonly centre: Float32Array;
  /** How many rows it leaves, and of how many. */
  candidates: number;
  tested: number;
}

/** Below this a scan of the first stage is as fast. */
export const LEAST_ROWS = 32768;
const QUERIES = 64;
/** Of all rows: the nearest so many are what the test speaks of. */
const DEPTH = 24;
const MARGIN = 2;
/** At least so many are left. */
const LEAST_LEFT = 256;
const MOST_SHARE = 16;
/** Signs get a sketch of one dimension in so many, in whole vectors of 128. */
const FEWER = 6;
const STEP = 128;
/** Rows that the mean is of. */
const MEAN_ROWS = 8192;

/** Dimensions that a sketch beside a first stage of `bits` looks at; null where it would read as much. */
export function sketchDims(dims: number, bits: number): number | null {
  if (bits >= 4) return dims;
  const few = STEP * Math.max(1, Math.floor(dims / STEP / FEWER));
  return bits === 1 && dims >= 3 * few ? few : null;
}

/** The first `few` of rows of `dims`. */
export function firstDims(x: Float32Array, dims: number, few: number): Float32Array {
  const rows = x.length / dims;
  const out = new Float32Array(rows * few);
  for (let r = 0; r < rows; r++) out.set(x.subarray(r * dims, r * dims + few), r * few);
  return out;
}

/** An empty one. `kept`: of a file. */
export function makeSketch(memory: EngineMemory, kept: Pick<Sketch, "centre" | "candidates" | "tested">): Sketch {
  const { centre } = kept;
  return { ...kept, rows: engineRows(memory, binary, operandsOf(binary)!, centre.length, "cosine", centre) };
}

/** The mean of the first `dims` of vectors, each at length one, of rows evenly spaced. */
export function meanDirection(dims: number, rows: number, row: (first: number) => Float32Array): Float32Array {
  const many = Math.min(rows, MEAN_ROWS);
  const sum = new Float64Array(dims);
  for (let i = 0; i < many; i++) {
    const v = row(Math.floor((i * rows) / many));
    let square = 0;
    for (let j = 0; j < dims; j++) square += v[j] * v[j];
    if (square > 0) for (let j = 0, f = 1 / Math.sqrt(square) / many; j < dims; j++) sum[j] += f * v[j];
  }
  return Float32Array.from(sum);
}

/** The first dimensions of a query as sketches are: q - |q| centre. */
export function sketchQuery(q: Float64Array, centre: Float32Array): Float64Array {
  const out = q.slice(0, centre.length);
  const size = lengthOf(out);
  for (let i = 0; i < out.length; i++) out[i] -= size * centre[i];
  return out;
}

/** Tests a sketch against the first stage; false where it leaves out too much. */
export function testSketch(sketch: Sketch, first: EngineRows): boolean {
  const { count, dims } = first;
  const part = Math.max(2, Math.min(8, Math.floor(count / 131072)));
  const own = Array.from({ length: QUERIES }, (_, i) => Math.floor(((i + 0.5) * count) / QUERIES));
  const queries = own.map((row) => {
    const q = new Float64Array(dims);
    first.decode(row, q);
    return q;
  });
  const nearest = Math.ceil(DEPTH / part);
  const wanted = first.scanPart(queries, nearest + 1, part, false);
  const most = Math.ceil(count / part / MOST_SHARE / MARGIN);
  const found = sketch.rows.scanPart(
    queries.map((q) => sketchQuery(q, sketch.centre)),
    most,
    part,
    true,
  );
  let worst = 0;
  for (let i = 0; i < QUERIES; i++) {
    for (const row of nearestOf(wanted[i], own[i], nearest)) {
      const { rows, scores } = found[i];
      const at = rows.indexOf(row);
      if (at < 0) return false;
      // of equal ones the last
      let place = 0;
      for (const score of scores) if (score >= scores[at]) place++;
      worst = Math.max(worst, place);
    }
  }
  sketch.candidates = Math.max(LEAST_LEFT, MARGIN * part * worst);
  sketch.tested = count;
  return true;
}

/** The best `count` rows but `own`, of at most one more. */
function nearestOf({ rows, scores }: { rows: Uint32Array; scores: Float32Array }, own: number, count: number): Uint32Array {
  if (rows.length <= count || rows.includes(own)) return rows.filter((row) => row !== own);
  const least = Math.min(...scores);
  return rows.filter((_, i) => scores[i] > least);
}

/** May a search for `k` use it? Not where a filter leaves so few rows that some of the k may be far away. */
export function within(k: number, rows: number, mask: Uint8Array | null): boolean {
  if (mask === null) return k <= DEPTH;
  let set = 0;
  for (const byte of mask) set += BITS[byte];
  return k * rows <= DEPTH * set;
}
const BITS = Uint8Array.from({ length: 256 }, (_, x) => x.toString(2).replaceAll("0", "").length);

/** Rows that a sketch leaves of `rows`, of which `want` go on. */
export const leaves = ({ candidates, tested }: Sketch, rows: number, want: number): number =>
  Math.min(rows, Math.max(Math.ceil((candidates * rows) / tested), 2 * want));
