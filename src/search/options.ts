// The options of an index, checked, and the formats that their precisions are.
import { LowbitError } from "../../formats/core/errors.ts";
import { format as formatByName } from "../../formats/registry.ts";
import type { Format } from "../../formats/core/types.ts";
import { defineBlock } from "../../formats/define/block.ts";
import type { Fit, IndexOptions, Metric, Precision, Projection } from "./types.ts";

const METRICS: readonly string[] = ["cosine", "dot", "euclidean"];

/** Longest vector: sums of squares of its integers must fit 31 bits. */
export const MOST_DIMS = 65536;

export interface Checked {
  readonly dims: number;
  readonly metric: Metric;
  readonly first: Format;
  readonly later: Format | null;
  readonly candidates: number | null;
  readonly fit: Fit | Projection | null;
  readonly sketch: "auto" | false | number;
}

/**
 * The format that vectors of a precision are packed in: scalar formats of at most 8 bits get a float32 scale a row, but
 * for the two signs under cosine, where it says nothing.
 * @throws LowbitError E_FORMAT_UNKNOWN, TypeError
 */
export function precisionFormat(precision: Precision, metric: Metric): Format {
  const found = typeof precision === "string" ? formatByName(precision) : precision;
  if (typeof found !== "object" || found === null || typeof found.kind !== "string")
    throw new TypeError(`search precision: expected a format or the name of one, got ${String(precision)}. \`lowbit formats\` lists all.`);
  if (found.kind === "block" || found.kind === "opaque" || found.bits > 8) return found;
  const signs = found.bits === 1 && found.limits.symmetric;
  if (signs && metric === "cosine") return found;
  const scaled = defineBlock({ element: found, scales: [{ format: formatByName("float32"), span: "row" }] });
  return formatByName(scaled.name) ?? scaled;
}

/** Rows kept as they are. */
export const isPlain = (format: Format): boolean => format === formatByName("float32");

/** @throws TypeError, RangeError, LowbitError E_FORMAT_UNKNOWN, E_SHAPE */
export function checkIndexOptions(options: IndexOptions): Checked {
  if (typeof options !== "object" || options === null)
    throw new TypeError(`createIndex options: expected { dims, ... }, got ${options === null ? "null" : typeof options}.`);
  const { dims, metric = "cosine", precision = "int8", rescore, fit, sketch = "auto" } = options;
  if (!Number.isSafeInteger(dims) || dims < 1 || dims > MOST_DIMS)
    throw new RangeError(
      `createIndex dims: expected an integer from 1 to ${MOST_DIMS}, got ${String(dims)}. Pass the numbers of a vector.`,
    );
  if (!METRICS.includes(metric))
    throw new TypeError(`createIndex metric: expected "cosine", "dot" or "euclidean", got ${JSON.stringify(metric)}.`);
  if (sketch !== "auto" && sketch !== false && !(Number.isSafeInteger(sketch) && sketch >= 1 && sketch <= 1e6))
    throw new TypeError(
      `createIndex sketch: expected "auto", false or how many vectors it leaves, 1 to 1000000, got ${JSON.stringify(sketch)}.`,
    );
  const stage = rescore === undefined ? null : rescoring(rescore);
  return {
    dims,
    metric: metric as Metric,
    first: precisionFormat(precision, metric as Metric),
    later: stage === null ? null : precisionFormat(stage.precision, metric as Metric),
    candidates: stage?.candidates ?? null,
    fit: fit ?? null,
    sketch,
  };
}

function rescoring(rescore: NonNullable<IndexOptions["rescore"]>): { precision: Precision; candidates: number | null } {
  if (typeof rescore === "number") return { precision: "float32", candidates: checkCandidates(rescore) };
  if (typeof rescore === "string" || "kind" in rescore) return { precision: rescore as Precision, candidates: null };
  const { precision = "float32", candidates } = rescore;
  return { precision, candidates: candidates === undefined ? null : checkCandidates(candidates) };
}

/** @throws RangeError */
export function checkCandidates(n: number): number {
  if (!Number.isSafeInteger(n) || n < 1 || n > 1e6)
    throw new RangeError(`search candidates: expected an integer from 1 to 1000000, got ${String(n)}.`);
  return n;
}

/** Vectors as whole rows of float32. @throws TypeError, LowbitError E_SHAPE */
export function checkVectors(what: string, x: unknown, dims: number): Float32Array {
  const given = Array.isArray(x) ? Float32Array.from(x as number[]) : x;
  if (!(given instanceof Float32Array))
    throw new TypeError(`${what}: expected a Float32Array, got ${typeof x}. Convert it with Float32Array.from(data).`);
  if (given.length % dims !== 0)
    throw new LowbitError("E_SHAPE", `${what}: expected vectors of ${dims} numbers, got ${given.length} numbers in all. Check dims.`);
  return given;
}
