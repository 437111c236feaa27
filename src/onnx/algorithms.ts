// Quantizers by name on the layers of a model: an algorithm is a name with options, or a function, and becomes a weight
// quantizer for each layer from the statistics of its inputs. The order of work is in decide.ts.
import { LowbitError } from "../../formats/core/errors.ts";
import { adaround, type AdaRoundOptions } from "../quantize/adaround.ts";
import { hqq } from "../quantize/hqq.ts";
import { rtn, type RtnOptions } from "../quantize/rtn.ts";
import type { AlgebraOptions } from "../quantize/simd.ts";
import { awqFamily, gptqFamily, refitFamily } from "./algorithm-choices.ts";
import type { Algorithm, AlgorithmInput, AlgorithmName, AlgorithmOptions, LayerAlgorithm } from "./algorithm-types.ts";

interface Row {
  /** What must have been collected. */
  readonly needs: "nothing" | "statistics" | "drift";
  readonly options: readonly string[];
  /**
   * Rows are quantized without a look at each other, but for what is chosen on the sample: then bands may be small, and
   * are the whole, code by code.
   */
  readonly byRows: boolean;
  make(input: AlgorithmInput, options: AlgorithmOptions, shared: AlgebraOptions): LayerAlgorithm;
}

const SCALES = ["scaleRule", "rangeRule"];
const GPTQ = [
  ...SCALES,
  "damp",
  "dampRetries",
  "blockSize",
  "actOrder",
  "staticGroups",
  "search",
  "groupScales",
  "minRows",
  "polish",
  "prune",
];

const ROWS: ReadonlyMap<string, Row> = new Map<AlgorithmName, Row>([
  [
    "rtn",
    {
      needs: "nothing",
      options: [...SCALES, "search", "rounding", "overflow", "seed"],
      byRows: false, // random numbers go on from row to row
      make: (_, o) => rtn(o as RtnOptions),
    },
  ],
  [
    "mse",
    {
      needs: "nothing",
      options: [...SCALES, "search"],
      byRows: true,
      make: (_, o) => {
        const searched = rtn({ search: { method: "mse" }, ...o } as RtnOptions);
        // Formats without scales of their own to search (scalars, ggml blocks) are rounded to nearest.
        return {
          algorithm: "mse",
          quantizeWeight: (w, f) => (f.kind === "block" ? searched : rtn()).quantizeWeight(w, f),
        };
      },
    },
  ],
  ["hqq", { needs: "nothing", options: ["norm", "beta", "kappa", "iterations"], byRows: true, make: (_, o) => hqq(o) }],
  [
    "awq",
    {
      needs: "statistics",
      options: ["grid", "search"],
      byRows: false,
      make: awqFamily,
    },
  ],
  ["gptq", { needs: "statistics", options: GPTQ, byRows: true, make: (i, o, s) => gptqFamily("gptq", i, o, s) }],
  [
    "mrgptq",
    {
      needs: "statistics",
      options: [...GPTQ.filter((o) => o !== "prune"), "block", "seed"],
      byRows: true,
      make: (i, o, s) => gptqFamily("mrgptq", i, o, s),
    },
  ],
  [
    "adaround",
    {
      needs: "statistics",
      options: [...SCALES, "iterations", "learningRate", "lambda", "search", "minRows"],
      byRows: false,
      make: (i, o, s) => adaround({ ...o, ...s, hessian: i.statistics!, name: i.name } as AdaRoundOptions),
    },
  ],
  [
    "refit",
    {
      needs: "drift",
      options: [...GPTQ, "ridge"],
      byRows: false, // every band would solve for its rows with a factor of its own
      make: refitFamily,
    },
  ],
]);

/** The names that `algorithm` takes. */
export const ALGORITHMS: readonly string[] = [...ROWS.keys()];

/** An algorithm ready for layers. */
export interface ResolvedAlgorithm {
  readonly name: string;
  readonly needs: "nothing" | "statistics" | "drift";
  /** Takes statistics where they are there (a function does not say what it needs). */
  readonly takes: boolean;
  /** Bands of few rows are the same as the whole. */
  readonly byRows: boolean;
  make(input: AlgorithmInput, shared: AlgebraOptions): LayerAlgorithm;
}

/** @throws RangeError for an unknown name, TypeError for an option that the algorithm does not have */
export function resolveAlgorithm(algorithm: Algorithm): ResolvedAlgorithm {
  if (typeof algorithm === "function")
    return { name: "function", needs: "nothing", takes: true, byRows: false, make: (input) => algorithm(input) };
  const { name, ...options } = typeof algorithm === "string" ? { name: algorithm } : algorithm;
  const row = ROWS.get(name);
  if (row === undefined)
    throw new RangeError(`algorithm: expected one of ${ALGORITHMS.join(", ")}, or a function, got ${JSON.stringify(name)}.`);
  for (const key of Object.keys(options))
    if (!row.options.includes(key))
      throw new TypeError(`algorithm ${name}: expected options of ${row.options.join(", ")}, got ${JSON.stringify(key)}.`);
  return {
    name,
    needs: row.needs,
    takes: row.needs !== "nothing",
    // a mask is chosen over all rows
    byRows: row.byRows && (options as AlgorithmOptions).prune === undefined,
    make(input, shared) {
      if (row.needs !== "nothing" && input.statistics === null)
        throw new LowbitError(
          "E_CALIBRATION",
          `layer ${input.name}: expected statistics of its inputs for ${name}, got none. Give calibration data, or an algorithm without (rtn, mse, hqq).`,
        );
      if (row.needs === "drift" && input.drift === null)
        throw new LowbitError(
          "E_CALIBRATION",
          `layer ${input.name}: expected ${name} with sequential calibration, got one-shot. Set sequential.`,
        );
      return row.make(input, options as AlgorithmOptions, shared);
    },
  };
}
