// What is usual for the kind of an output. 10 dB of SQNR say that a model computes the same thing, not that it is as
// good: a sentence encoder at 10 dB finds three of four neighbours. The limits are what 8-bit ("good") and 4-bit
// ("usual") weights reach on models of the kind on real inputs; random inputs have smaller margins between classes and
// judge harder.
import type { OutputKind } from "./kinds.ts";

/**
 * Why an output proves nothing. nan: the reference is NaN; empty: no elements; constant: one value, or the same values
 * in every sample; saturated: a score that stays at 0 or 1; near-zero: so small that only the absolute error means
 * something.
 */
export type NoEvidence = "nan" | "empty" | "constant" | "saturated" | "near-zero";

/** How often two models come to the same result. */
export interface Agreement {
  /**
   * argmax: the largest element along the last axis; equal: the elements; neighbours: nearest vectors among the samples
   * (recall, by cosine).
   */
  readonly measure: "argmax" | "equal" | "neighbours";
  /** Share in 0..1. */
  readonly value: number;
  /** Rows, elements or query vectors. */
  readonly count: number;
}

/** Figures of one output of two models. */
export interface Figures {
  readonly name: string;
  readonly type: string;
  /** Shape of the last sample's output. */
  readonly dims: readonly number[];
  /**
   * 10 log10(sum a^2 / sum (a - b)^2) over all samples and all elements where the reference is a number; Infinity where
   * the outputs are equal, -Infinity where b alone is not finite, NaN where there is nothing to compare.
   */
  readonly sqnrDb: number;
  readonly cosine: number;
  readonly maxAbsError: number;
  /** Root mean square of the reference. */
  readonly rms: number;
  /** Share of rows along the last axis with the same largest element; null where there is no such axis. */
  readonly argmaxAgreement: number | null;
  /** What the output seems to be. */
  readonly kind: OutputKind;
  /** The agreement that judges this kind; null for plain values. */
  readonly agreement: Agreement | null;
  /** Null where the output is evidence. */
  readonly noEvidence: NoEvidence | null;
  /** Elements of the reference that are NaN. */
  readonly nanReference: number;
}

/**
 * exact: no difference; good: as 8-bit weights do; usual: as 4-bit weights do; weak: below that; none: nothing was
 * proved.
 */
export interface Judgement {
  readonly grade: "exact" | "good" | "usual" | "weak" | "none";
  /** The figure and its limits in words. */
  readonly text: string;
}

interface Limits {
  readonly what: string;
  readonly good: number;
  readonly usual: number;
}

const AGREEMENT: Readonly<Record<"logits" | "probabilities" | "embedding" | "labels", Limits>> = {
  logits: { what: "same largest element", good: 0.98, usual: 0.9 },
  probabilities: { what: "same largest element", good: 0.98, usual: 0.9 },
  embedding: { what: "same nearest neighbours", good: 0.95, usual: 0.85 },
  labels: { what: "equal", good: 0.99, usual: 0.95 },
};
/** Embeddings without enough vectors for neighbours. */
const COSINE: Limits = { what: "cosine", good: 0.995, usual: 0.98 };
/** Largest error of scores in 0..1. */
const SCORES: Limits = { what: "largest error", good: 0.01, usual: 0.05 };
/** Everything else: decibels. */
const VALUES: Limits = { what: "SQNR", good: 30, usual: 20 };

const REASONS: Readonly<Record<NoEvidence, string>> = {
  nan: "NaN in the reference",
  empty: "no elements",
  constant: "does not depend on these inputs",
  saturated: "stays at one score on these inputs",
  "near-zero": "next to zero on these inputs",
};

/** Rounded down: a figure that falls short of a limit is not shown as the limit. */
const down = (value: number, digits: number): string => (Math.floor(value * 10 ** digits + 1e-9) / 10 ** digits).toFixed(digits);

/** @param figures of one output */
export function judge(figures: Figures): Judgement {
  const { kind, agreement, noEvidence, sqnrDb, cosine, maxAbsError } = figures;
  if (noEvidence !== null) {
    const error = noEvidence === "near-zero" || noEvidence === "saturated" ? `, largest error ${maxAbsError.toPrecision(2)}` : "";
    return { grade: "none", text: `no evidence: ${REASONS[noEvidence]}${error}` };
  }
  if (sqnrDb === Infinity) return { grade: "exact", text: "exact" };
  // the largest element may be the same all the same
  if (sqnrDb === -Infinity && kind !== "labels") return { grade: "weak", text: "weak: NaN or infinity where the reference has numbers" };
  const percent = (share: number): string => `${down(100 * share, 1)}%`;
  if (kind === "scores") {
    const grade = maxAbsError <= SCORES.good ? "good" : maxAbsError <= SCORES.usual ? "usual" : "weak";
    return { grade, text: `${grade}: ${SCORES.what} ${maxAbsError.toPrecision(2)} (good to ${SCORES.good}, usual to ${SCORES.usual})` };
  }
  const judged = kind === "values" ? "values" : agreement !== null ? "agreement" : kind === "embedding" ? "cosine" : "values";
  const [limits, figure, text] = {
    agreement: (): [Limits, number, (v: number) => string] => [AGREEMENT[kind as Judged], agreement!.value, percent],
    cosine: (): [Limits, number, (v: number) => string] => [COSINE, cosine, (v) => down(v, 3)],
    values: (): [Limits, number, (v: number) => string] => [VALUES, sqnrDb, (v) => `${down(v, Number.isInteger(v) ? 0 : 1)} dB`],
  }[judged]();
  const grade = figure >= limits.good ? "good" : figure >= limits.usual ? "usual" : "weak";
  return { grade, text: `${grade}: ${limits.what} ${text(figure)} (good from ${text(limits.good)}, usual from ${text(limits.usual)})` };
}

type Judged = Exclude<OutputKind, "values" | "scores">;
