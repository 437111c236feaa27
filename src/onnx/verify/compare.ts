// Figures of one output of two models, gathered sample by sample: SQNR, cosine, largest error, agreement; and whether
// the output was any evidence at all (NaN, constants and saturated scores agree whatever the weights are).
import type { OutputKind } from "./kinds.ts";
import { kindOf } from "./kinds.ts";
import type { Agreement, Figures, Judgement, NoEvidence } from "./judge.ts";
import { judge } from "./judge.ts";
import { numbers } from "./numbers.ts";
import type { OutputTensor } from "./runtimes.ts";

/** One output of two models, compared and judged. */
export interface OutputComparison extends Figures {
  readonly judgement: Judgement;
  readonly ok: boolean;
}

/** Vectors of an embedding kept for neighbours, and the fewest that say something. */
const VECTORS_MAX = 1000;
const VECTORS_MIN = 8;
/** Neighbours that are compared. */
const NEIGHBOURS = 10;
/** Scores closer together than this do not move. */
const STEADY = 1e-6;
/** Scores that stay below this are judged by their absolute error. */
const NEAR_ZERO = 0.01;

/** Running sums of one output. */
export interface Sums {
  readonly name: string;
  type: string;
  dims: readonly number[];
  samples: number;
  elements: number;
  signal: number;
  noise: number;
  other: number;
  dot: number;
  maxAbsError: number;
  rows: number;
  agreeing: number;
  equal: number;
  nan: number;
  least: number;
  most: number;
  sumsToOne: boolean;
  unitLength: boolean;
  /** The reference's first output, while every later one was the same. */
  first: OutputTensor | null;
  same: boolean;
  vectors: { a: Float64Array; b: Float64Array }[];
}

export const newSums = (name: string): Sums => ({
  name,
  type: "",
  dims: [],
  samples: 0,
  elements: 0,
  signal: 0,
  noise: 0,
  other: 0,
  dot: 0,
  maxAbsError: 0,
  rows: 0,
  agreeing: 0,
  equal: 0,
  nan: 0,
  least: Infinity,
  most: -Infinity,
  sumsToOne: true,
  unitLength: true,
  first: null,
  same: true,
  vectors: [],
});

/** Adds one sample. Both have the same shape. */
export function addSample(sums: Sums, a: OutputTensor, b: OutputTensor): void {
  sums.samples++;
  sums.type = a.type;
  sums.dims = a.dims;
  sums.elements += a.data.length;
  if (a.type === "string") {
    for (let i = 0; i < a.data.length; i++) if (a.data[i] === b.data[i]) sums.equal++;
    if (sums.equal < sums.elements) sums.noise = Infinity;
    return;
  }
  const [x, y] = [numbers(a), numbers(b)];
  addErrors(sums, x, y);
  addRows(sums, x, y, a.dims.at(-1) ?? 1);
  if (sums.first === null) sums.first = { ...a, data: x };
  else if (sums.same)
    sums.same = sums.first.data.length === x.length && Array.prototype.every.call(x, (v, i) => Object.is(v, sums.first!.data[i]));
  if (sums.vectors.length < VECTORS_MAX && a.dims.length >= 2) addVectors(sums, x, y, a.dims);
}

function addErrors(sums: Sums, a: ArrayLike<number>, b: ArrayLike<number>): void {
  for (let i = 0; i < a.length; i++) {
    const x = Number(a[i]);
    const y = Number(b[i]);
    if (Number.isNaN(x)) {
      sums.nan++;
      continue;
    }
    if (x < sums.least) sums.least = x;
    if (x > sums.most) sums.most = x;
    if (x === y) {
      sums.equal++;
      if (Number.isFinite(x)) {
        sums.signal += x * x;
        sums.other += x * x;
        sums.dot += x * x;
      }
      continue;
    }
    const error = Math.abs(x - y);
    sums.signal += Number.isFinite(x) ? x * x : 0;
    sums.other += Number.isFinite(y) ? y * y : 0;
    sums.dot += Number.isFinite(x * y) ? x * y : 0;
    sums.noise += Number.isFinite(error) ? error * error : Infinity;
    sums.maxAbsError = Math.max(sums.maxAbsError, Number.isNaN(error) ? Infinity : error);
  }
}

/** Rows along the last axis: the largest element, and what the rows of the reference look like. */
function addRows(sums: Sums, a: ArrayLike<number>, b: ArrayLike<number>, width: number): void {
  if (width < 2) return;
  for (let row = 0; row + width <= a.length; row += width) {
    let [bestA, bestB, total, square, nan] = [0, 0, 0, 0, false];
    for (let i = 0; i < width; i++) {
      const x = Number(a[row + i]);
      total += x;
      square += x * x;
      nan ||= Number.isNaN(x);
      if (x > a[row + bestA]) bestA = i;
      if (b[row + i] > b[row + bestB]) bestB = i;
    }
    if (nan) continue;
    sums.rows++;
    if (bestA === bestB) sums.agreeing++;
    // Float16 outputs round to three digits.
    if (!(Math.abs(total - 1) < 2e-3)) sums.sumsToOne = false;
    if (!(Math.abs(square - 1) < 2e-3)) sums.unitLength = false;
  }
}

/** One vector for each item of the batch: [n, d] as it is, [n, tokens, d] its mean over the tokens. */
function addVectors(sums: Sums, a: ArrayLike<number>, b: ArrayLike<number>, dims: readonly number[]): void {
  const [batch, width] = [dims[0], dims[dims.length - 1]];
  const each = batch === 0 ? 0 : a.length / batch;
  if (width < 2 || each === 0) return;
  const mean = (values: ArrayLike<number>, start: number): Float64Array => {
    const sum = new Float64Array(width);
    for (let i = 0; i < each; i++) sum[i % width] += values[start + i];
    return sum;
  };
  for (let i = 0; i < batch && sums.vectors.length < VECTORS_MAX; i++) sums.vectors.push({ a: mean(a, i * each), b: mean(b, i * each) });
}

/**
 * Share of the k nearest other vectors by cosine that both models agree on, averaged over the vectors: recall@k, k = 10
 * or a third of the others where there are fewer.
 */
export function neighbourAgreement(vectors: readonly { a: Float64Array; b: Float64Array }[]): Agreement | null {
  const n = vectors.length;
  if (n < VECTORS_MIN) return null;
  const k = Math.min(NEIGHBOURS, Math.max(1, Math.floor((n - 1) / 3)));
  const nearest = (side: "a" | "b"): Set<number>[] => {
    const unit = vectors.map((pair) => {
      const length = Math.hypot(...pair[side]);
      return pair[side].map((v) => v / (length || 1));
    });
    return unit.map((query, i) => {
      const scores = unit.map((other, j) => (i === j ? -Infinity : query.reduce((sum, v, d) => sum + v * other[d], 0)));
      return new Set(
        scores
          .map((_, j) => j)
          .sort((p, q) => scores[q] - scores[p] || p - q)
          .slice(0, k),
      );
    });
  };
  const [a, b] = [nearest("a"), nearest("b")];
  const shared = a.reduce((sum, set, i) => sum + [...set].filter((j) => b[i].has(j)).length, 0);
  return { measure: "neighbours", value: shared / (n * k), count: n };
}

function agreementOf(sums: Sums, kind: OutputKind): Agreement | null {
  if (kind === "labels") return sums.elements === 0 ? null : { measure: "equal", value: sums.equal / sums.elements, count: sums.elements };
  if (kind === "embedding") return neighbourAgreement(sums.vectors);
  if (kind === "values" || kind === "scores" || sums.rows === 0) return null;
  return { measure: "argmax", value: sums.agreeing / sums.rows, count: sums.rows };
}

function noEvidenceOf(sums: Sums, kind: OutputKind): NoEvidence | null {
  if (sums.elements === 0) return "empty";
  if (sums.type === "string" || sums.elements === 1) return sums.nan > 0 ? "nan" : null;
  if (sums.nan === sums.elements) return "nan";
  const range = sums.most - sums.least;
  if (kind === "scores" && range <= STEADY) return "saturated";
  if (range <= 1e-6 * Math.max(Math.abs(sums.most), Math.abs(sums.least))) return "constant";
  if (sums.samples > 1 && sums.same) return "constant";
  if (kind === "scores" && sums.most < NEAR_ZERO) return "near-zero";
  return null;
}

export interface Thresholds {
  readonly minSqnrDb: number;
  /** Least agreement of outputs that have one; undefined: none is asked for. */
  readonly minAgreement?: number;
}

/** Figures and judgement of one output. */
export function finish(sums: Sums, byGraph: OutputKind | undefined, thresholds: Thresholds): OutputComparison {
  const { signal, noise, other, dot } = sums;
  const kind = kindOf({ ...sums, sumsToOne: sums.rows > 0 && sums.sumsToOne, unitLength: sums.rows > 0 && sums.unitLength }, byGraph);
  const agreement = agreementOf(sums, kind);
  const noEvidence = noEvidenceOf(sums, kind);
  const compared = sums.elements - sums.nan;
  const figures = {
    name: sums.name,
    type: sums.type,
    dims: sums.dims,
    sqnrDb: compared === 0 ? NaN : noise === 0 ? Infinity : noise === Infinity ? -Infinity : 10 * Math.log10(signal / noise),
    cosine: compared === 0 ? NaN : noise === 0 ? 1 : signal === 0 || other === 0 ? 0 : dot / Math.sqrt(signal * other),
    maxAbsError: sums.maxAbsError,
    rms: compared === 0 ? NaN : Math.sqrt(signal / compared),
    argmaxAgreement: sums.rows === 0 ? null : sums.agreeing / sums.rows,
    kind,
    agreement,
    noEvidence,
    nanReference: sums.nan,
  };
  return { ...figures, judgement: judge(figures), ok: reaches(figures, thresholds) };
}

function reaches(figures: Figures, { minSqnrDb, minAgreement }: Thresholds): boolean {
  const { kind, agreement, noEvidence, sqnrDb, maxAbsError } = figures;
  if (noEvidence === "empty") return true;
  if (noEvidence === "nan") return false;
  if (agreement !== null && minAgreement !== undefined && agreement.value < minAgreement) return false;
  // A ratio to next to nothing says nothing.
  if (noEvidence === "near-zero" || noEvidence === "saturated") return maxAbsError <= NEAR_ZERO;
  if (kind === "labels" && agreement !== null && agreement.value >= LABELS_AGREE) return true;
  return sqnrDb >= minSqnrDb;
}

/** Labels are ids: the squared error of a wrong one means nothing. */
const LABELS_AGREE = 0.9;
