// Quantizers by name on the layers of a model: an algorithm is a name with options, or a function, and becomes a weight quantizer for each layer
// from the statistics of its inputs. The order of work is in decide.ts.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { adaround, type AdaRoundOptions } from "../quantize/adaround.ts";
import { awq, type AwqOptions } from "../quantize/awq.ts";
import { gptq, type GptqOptions } from "../quantize/gptq.ts";
import { hqq, type HqqOptions } from "../quantize/hqq.ts";
import { dequantizeOriginal, mrgptq, type MrGptqOptions } from "../quantize/mrgptq.ts";
import { chooseRidge, mergeDrift, refit, type DriftStatistics } from "../quantize/refit.ts";
import { rtn, type RtnOptions } from "../quantize/rtn.ts";
import type { AlgebraOptions } from "../quantize/simd.ts";
import { mergeStatistics, outputError, type LayerStatistics } from "../quantize/statistics.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import { matrixView, readRows, type Tensor } from "../tensor/tensor.ts";
import type { Layer } from "./layers.ts";

export type AlgorithmName = "rtn" | "mse" | "hqq" | "awq" | "gptq" | "mrgptq" | "adaround" | "refit";

/** What a quantizer can know of a layer (of one group of a grouped convolution). */
export interface AlgorithmInput {
  readonly layer: Layer;
  readonly name: string;
  readonly rows: number;
  readonly k: number;
  /** null without calibration data, and for layers that cannot be calibrated. */
  readonly statistics: LayerStatistics | null;
  /** The same over the batches held out. */
  readonly heldOut: LayerStatistics | null;
  /** Sequential: both inputs, of the float model and of the model quantized so far. */
  readonly drift: DriftStatistics | null;
  /** The same over the batches held out. */
  readonly heldOutDrift?: DriftStatistics | null;
}

/** A name, a name with options of its quantizer, or a function that makes one for each layer. */
export type Algorithm =
  AlgorithmName | (AlgorithmOptions & { readonly name: AlgorithmName }) | ((layer: AlgorithmInput) => WeightQuantizer);

/** Options of the quantizers of lowbit/quantize, without what calibration gives them. Each algorithm takes its own. */
export type AlgorithmOptions = Partial<
  Omit<RtnOptions, "signal" | "onProgress"> &
    Omit<HqqOptions, "signal" | "onProgress"> &
    Omit<AwqOptions, "statistics" | "name" | "search" | "signal" | "onProgress"> &
    Omit<MrGptqOptions, "hessian" | "name" | "search" | "seed" | "signal" | "onProgress"> &
    Omit<AdaRoundOptions, "hessian" | "name" | "search" | "signal" | "onProgress"> & {
      readonly ridge: number;
    }
>;

interface Row {
  /** What must have been collected. */
  readonly needs: "nothing" | "statistics" | "drift";
  readonly options: readonly string[];
  make(input: AlgorithmInput, options: AlgorithmOptions, shared: AlgebraOptions): WeightQuantizer;
}

const SCALES = ["scaleRule", "rangeRule"];
const GPTQ = [...SCALES, "damp", "dampRetries", "blockSize", "actOrder", "staticGroups", "search", "groupScales", "minRows", "polish"];

/** Dampings that are tried on held-out data where none is given. */
const DAMPS: readonly number[] = [0.05, 0.01, 0.1];
/** And where there are fewer vectors than inputs: close to rounding to nearest. */
const STRONG_DAMPS: readonly number[] = [0.5, 3];
/** Hadamard block that is tried beside the format's own (MR-GPTQ). */
const WIDE_BLOCK = 128;
/** Scales of fewer bits have few neighbours: a search among them is worth a try. */
const COARSE_BITS = 16;
/** Rows that options are chosen on; the weight is then quantized whole. */
const SAMPLED = 256;

/** Every n-th row, where there are many. */
function sampleRows(weight: Tensor): Tensor {
  const [rows] = weight.shape;
  if (weight.shape.length !== 2 || rows < 2 * SAMPLED) return weight;
  const step = Math.floor(rows / SAMPLED);
  return { ...weight, shape: [SAMPLED, weight.shape[1]], stride: [weight.stride[0] * step, weight.stride[1]] };
}

/** Signal and error of outputs on held-out inputs. */
function judgeOf(weight: Tensor, heldOut: LayerStatistics, shared: AlgebraOptions) {
  const view = matrixView(weight);
  const w = new Float64Array(view.rows * view.k);
  readRows(view, 0, view.rows, w);
  return {
    signal: outputError(w, new Float64Array(w.length), view.rows, heldOut.hessian!, shared),
    error: (packed: PackedTensor): number => outputError(w, dequantizeOriginal(packed), view.rows, heldOut.hessian!, shared),
  };
}

type GptqChoice = Partial<Pick<MrGptqOptions, "damp" | "actOrder" | "polish" | "block" | "search">>;

/** What is left open, one after the other, as alternatives to what was found best so far. */
function openChoices(
  name: AlgorithmName,
  format: Format,
  { k, statistics }: AlgorithmInput,
  given: GptqChoice & { staticGroups?: boolean },
): GptqChoice[][] {
  const open = (key: keyof GptqChoice): boolean => given[key] === undefined;
  const opaque = format.kind === "opaque"; // no order, no search, no polish
  const coarse = format.kind === "block" && format.scales[0].format.bits < COARSE_BITS && format.offset?.role !== "min";
  const damps = statistics!.rows < k ? [...DAMPS, ...STRONG_DAMPS] : DAMPS;
  return [
    open("damp") ? damps.map((damp) => ({ damp })) : [{}],
    open("actOrder") && given.staticGroups === undefined && !opaque ? [{ actOrder: name !== "mrgptq" }] : [],
    name !== "mrgptq" && open("search") && coarse ? [{ search: { method: "mse" } }] : [],
    name === "mrgptq" && open("block") && k % WIDE_BLOCK === 0 ? [{ block: WIDE_BLOCK }] : [],
    open("polish") && !opaque ? [{ polish: true }] : [],
  ];
}

/** Held-out data say how far few vectors can be trusted: any number will do. */
const fewRows = ({ heldOut }: AlgorithmInput, { minRows }: AlgorithmOptions): { minRows?: number } =>
  minRows !== undefined ? { minRows } : heldOut === null ? {} : { minRows: 1 };

const withoutUndefined = <T extends object>(fields: T): T =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;

/**
 * GPTQ with what is open (damping, order, scales, block, then polish) chosen on held-out data, one after the other. The weight is then quantized with these
 * options from all of the data; what the choice left on the data held out goes into the recipe.
 */
function gptqFamily(
  name: "gptq" | "mrgptq",
  input: AlgorithmInput,
  options: AlgorithmOptions & GptqChoice,
  shared: AlgebraOptions,
): WeightQuantizer {
  const base = { ...options, ...shared, ...fewRows(input, options), name: input.name };
  const variant = (choice: GptqChoice, hessian: LayerStatistics): WeightQuantizer => {
    const all = withoutUndefined({ ...base, ...choice, hessian });
    return name === "gptq" ? gptq(all as GptqOptions) : mrgptq(all as MrGptqOptions);
  };
  const { heldOut, statistics } = input;
  const fitted = statistics!;
  if (heldOut === null || heldOut.hessian === null) return variant({}, fitted);
  return {
    algorithm: variant({}, fitted).algorithm,
    quantizeWeight(weight: Tensor, format: Format): PackedTensor {
      const sample = sampleRows(weight);
      const judge = judgeOf(sample, heldOut, shared);
      let best: { choice: GptqChoice; error: number } | undefined;
      let tried = 0;
      for (const alternatives of openChoices(name, format, input, options))
        for (const change of alternatives) {
          const choice = { ...best?.choice, ...change };
          const error = judge.error(variant(choice, fitted).quantizeWeight(sample, format));
          tried++;
          if (best === undefined || error < best.error) best = { choice, error };
        }
      const packed = variant(best!.choice, mergeStatistics(fitted, heldOut)).quantizeWeight(weight, format);
      return { ...packed, recipe: { ...packed.recipe, chosenOf: tried, heldOut: { signal: judge.signal, error: best!.error } } };
    },
  };
}

/** Refit with its ridge chosen on held-out data, then GPTQ. */
function refitFamily(input: AlgorithmInput, { ridge, ...options }: AlgorithmOptions, shared: AlgebraOptions): WeightQuantizer {
  const { name, heldOutDrift } = input;
  const drift = input.drift!;
  const common = { name, ...shared, ...fewRows(input, options) };
  const quantizer = gptqFamily("gptq", input, options, shared);
  if (heldOutDrift === null || heldOutDrift === undefined)
    return refit({ drift, quantizer, ...common, ...(ridge === undefined ? {} : { ridge }) });
  return {
    algorithm: "refit",
    quantizeWeight(weight, format) {
      const found = ridge ?? chooseRidge(weight, drift, heldOutDrift, common);
      return refit({ drift: mergeDrift(drift, heldOutDrift), quantizer, ridge: found, ...common }).quantizeWeight(weight, format);
    },
  };
}

const ROWS: ReadonlyMap<string, Row> = new Map<AlgorithmName, Row>([
  ["rtn", { needs: "nothing", options: [...SCALES, "search", "rounding", "overflow", "seed"], make: (_, o) => rtn(o as RtnOptions) }],
  [
    "mse",
    {
      needs: "nothing",
      options: [...SCALES, "search"],
      make: (_, o) => {
        const searched = rtn({ search: { method: "mse" }, ...o } as RtnOptions);
        // Formats without scales of their own to search (scalars, ggml blocks) are rounded to nearest.
        return {
          algorithm: "mse",
          quantizeWeight: (w, f) => (f.kind === "block" && f.offset?.role !== "min" ? searched : rtn()).quantizeWeight(w, f),
        };
      },
    },
  ],
  ["hqq", { needs: "nothing", options: ["norm", "beta", "kappa", "iterations"], make: (_, o) => hqq(o) }],
  [
    "awq",
    {
      needs: "statistics",
      options: ["grid", "search"],
      make: (i, o, s) => awq({ ...o, ...s, statistics: i.statistics!, name: i.name } as AwqOptions),
    },
  ],
  ["gptq", { needs: "statistics", options: GPTQ, make: (i, o, s) => gptqFamily("gptq", i, o, s) }],
  ["mrgptq", { needs: "statistics", options: [...GPTQ, "block", "seed"], make: (i, o, s) => gptqFamily("mrgptq", i, o, s) }],
  [
    "adaround",
    {
      needs: "statistics",
      options: [...SCALES, "iterations", "learningRate", "lambda", "search", "minRows"],
      make: (i, o, s) => adaround({ ...o, ...s, hessian: i.statistics!, name: i.name } as AdaRoundOptions),
    },
  ],
  [
    "refit",
    {
      needs: "drift",
      options: [...GPTQ, "ridge"],
      make: refitFamily,
    },
  ],
]);

export const ALGORITHMS: readonly string[] = [...ROWS.keys()];

/** An algorithm ready for layers. */
export interface ResolvedAlgorithm {
  readonly name: string;
  readonly needs: "nothing" | "statistics" | "drift";
  /** Takes statistics where they are there (a function does not say what it needs). */
  readonly takes: boolean;
  make(input: AlgorithmInput, shared: AlgebraOptions): WeightQuantizer;
}

/** @throws RangeError for an unknown name, TypeError for an option that the algorithm does not have */
export function resolveAlgorithm(algorithm: Algorithm): ResolvedAlgorithm {
  if (typeof algorithm === "function") return { name: "function", needs: "nothing", takes: true, make: (input) => algorithm(input) };
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
