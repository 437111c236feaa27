// What is usual for the kind of an output. 10 dB of SQNR say that a model computes the same thing, not that it is as good: a sentence encoder
// at 10 dB finds three of four neighbours. The limits are what 8-bit ("good") and 4-bit ("usual") weights reach on models of the kind on
// real inputs; random inputs have smaller margins between classes and judge harder.
import type { OutputComparison } from "./compare.ts";
import type { OutputKind } from "./kinds.ts";

/** exact: no difference; good: as 8-bit weights do; usual: as 4-bit weights do; weak: below that; none: nothing was proved. */
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

const REASONS: Readonly<Record<NonNullable<OutputComparison["noEvidence"]>, string>> = {
  nan: "NaN in the reference",
  empty: "no elements",
  constant: "does not depend on these inputs",
  saturated: "stays at one score on these inputs",
  "near-zero": "next to zero on these inputs",
};

/** @param figures of one output */
export function judge(figures: Omit<OutputComparison, "judgement" | "ok">): Judgement {
  const { kind, agreement, noEvidence, sqnrDb, cosine, maxAbsError } = figures;
  if (noEvidence !== null) {
    const error = noEvidence === "near-zero" || noEvidence === "saturated" ? `, largest error ${maxAbsError.toPrecision(2)}` : "";
    return { grade: "none", text: `no evidence: ${REASONS[noEvidence]}${error}` };
  }
  if (sqnrDb === Infinity) return { grade: "exact", text: "exact" };
  const percent = (share: number): string => `${(100 * share).toFixed(1)}%`;
  if (kind === "scores") {
    const grade = maxAbsError <= SCORES.good ? "good" : maxAbsError <= SCORES.usual ? "usual" : "weak";
    return { grade, text: `${grade}: ${SCORES.what} ${maxAbsError.toPrecision(2)} (good to ${SCORES.good}, usual to ${SCORES.usual})` };
  }
  const judged = kind === "values" ? "values" : agreement !== null ? "agreement" : kind === "embedding" ? "cosine" : "values";
  const [limits, figure, text] = {
    agreement: (): [Limits, number, (v: number) => string] => [AGREEMENT[kind as Judged], agreement!.value, percent],
    cosine: (): [Limits, number, (v: number) => string] => [COSINE, cosine, (v) => v.toFixed(3)],
    values: (): [Limits, number, (v: number) => string] => [VALUES, sqnrDb, (v) => `${v.toFixed(0)} dB`],
  }[judged]();
  const grade = figure >= limits.good ? "good" : figure >= limits.usual ? "usual" : "weak";
  return { grade, text: `${grade}: ${limits.what} ${text(figure)} (good from ${text(limits.good)}, usual from ${text(limits.usual)})` };
}

type Judged = Exclude<OutputKind, "values" | "scores">;
