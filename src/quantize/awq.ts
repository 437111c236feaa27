// AWQ: scales the channels of a weight by a power of the mean magnitude of their inputs before rounding, the power
// chosen by the error of the layer's output; optionally the scales of the blocks are searched too. Source: Lin et al.,
// arXiv 2306.00978; mit-han-lab/llm-awq. The packed weight is W diag(s): inputs must be divided by s
// (recipe.channelScales), folded into what comes before, or undone by `dequantizeOriginal`.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { hessianOf } from "./hessian.ts";
import { FLT_MAX, weightMatrix } from "./grid.ts";
import { rtn } from "./rtn.ts";
import { resolveSearch, type ScaleSearch } from "./search.ts";
import type { AlgebraOptions } from "./simd.ts";
import { outputError, type LayerStatistics } from "./statistics.ts";
import { runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";

/** Activation-aware scales of channels: statistics, and the powers that are tried. */
export interface AwqOptions extends RunOptions, AlgebraOptions {
  /** Statistics with a Hessian. Token weights given to calibration count, which is what MBQ does with modalities. */
  readonly statistics: LayerStatistics;
  /** Powers tried: 0, 1 / grid, ... below 1; default 20. */
  readonly grid?: number;
  /** Also try scales by search, weighted by the energy of the inputs; default true. */
  readonly search?: ScaleSearch | null;
  readonly name?: string;
}

/**
 * AWQ as a quantizer. Never worse than round-to-nearest on the calibration inputs: that is one of its candidates.
 * @throws LowbitError E_CALIBRATION as gptq
 * @example
 * const packed = quantize(w, format("int4_b128"), awq({ statistics: stats, grid: 4 })); // a quick search
 * dequantizeOriginal(packed) // with the channel scales of the recipe undone
 */
export function awq(options: AwqOptions): SteppedQuantizer {
  return awqAt(undefined, options);
}

/** AWQ with a power that was chosen before, on a part of the weight: its bands need the same channel scales. */
export function awqAt(power: number | undefined, options: AwqOptions): SteppedQuantizer {
  check(options);
  const steps = function* (weight: Tensor, format: Format): Steps<PackedTensor> {
    return (yield* together([weight], format, options, power))[0];
  };
  return { algorithm: "awq", steps, quantizeWeight: (weight, format) => runSteps(steps(weight, format), options) };
}

/**
 * AWQ of layers that read the same input (q, k and v; gate and up): one power for all of them, by the sum of their
 * output errors, so that one set of factors is folded into what comes before.
 * @throws as awq; E_SHAPE for weights of different k
 * @example const [query, key] = awqLayers([w, w], format("int4_b128"), { statistics: stats, grid: 4 }); // of one input
 */
export function awqLayers(weights: readonly Tensor[], format: Format, options: AwqOptions): PackedTensor[] {
  check(options);
  if (weights.length === 0) throw new TypeError("awqLayers: expected at least one weight, got none.");
  return runSteps(together(weights, format, options), options);
}

function check(options: AwqOptions): void {
  if (!options?.statistics) throw new TypeError("awq: expected options.statistics, got none. Collect them with layerStatistics(k).");
  const count = options.grid ?? 20;
  if (!(Number.isInteger(count) && count >= 1 && count <= 1000))
    throw new RangeError(`awq grid: expected an integer in 1..1000, got ${count}.`);
  searchOf(options);
}

const searchOf = (o: AwqOptions) => (o.search === null ? null : resolveSearch(o.search ?? { method: "mse", grid: 20, maxShrink: 0.5 }));

interface Scaled {
  readonly error: number;
  readonly packed: PackedTensor;
  readonly searched: boolean;
}

function* together(weights: readonly Tensor[], format: Format, options: AwqOptions, given?: number): Steps<PackedTensor[]> {
  const count = given === undefined ? (options.grid ?? 20) : 1;
  const search = searchOf(options);
  const at = options.name === undefined ? "" : ` of layer "${options.name}"`;
  const matrices = weights.map((weight) => weightMatrix(weight, `awq${at}`));
  const { k } = matrices[0];
  const { statistics } = options;
  // it is not inverted, and a power is one number: any number of tokens will do
  const hessian = hessianOf(statistics, k, at, 1);
  const mean = statistics.sumAbs.map((s) => s / statistics.weight);
  for (const w of matrices)
    if (w.k !== k) throw new LowbitError("E_SHAPE", `awq${at}: expected layers of ${k} inputs, got ${w.k}. They must read the same input.`);
  const plain: number[] = [];
  let best: { error: number; power: number; scales: Float64Array; layers: Scaled[] } | undefined;
  for (let i = 0; i < count; i++) {
    const power = given ?? i / count;
    const scales = channelScales(mean, power);
    const columnWeights = scales.map((s, j) => hessian[j * k + j] / (s * s));
    const layers = matrices.map((w): Scaled => {
      const scaled = w.data.map((v, at) => v * scales[at % k]);
      const t: Tensor = { data: scaled, shape: [w.rows, k], stride: [k, 1], offset: 0 };
      let kept: Scaled | undefined;
      for (const searched of search ? [false, true] : [false]) {
        if (searched && format.kind !== "block") continue;
        const packed = rtn(searched ? { search: search!, columnWeights } : {}).quantizeWeight(t, format);
        const values = dequantize(packed, { dtype: "float64" });
        for (let v = 0; v < values.length; v++) values[v] /= scales[v % k];
        const error = outputError(w.data, values, w.rows, hessian, options);
        if (i === 0 && !searched) plain.push(error);
        if (kept === undefined || error < kept.error) kept = { error, packed, searched };
      }
      return kept!;
    });
    // packed weights that go beyond float32 could not be read
    const fits = matrices.every((w) => w.data.every((v, at) => Math.abs(v * scales[at % k]) <= FLT_MAX));
    const error = fits ? layers.reduce((n, l) => n + l.error, 0) : Infinity;
    if (best === undefined || error < best.error) best = { error, power, scales, layers };
    yield { stage: "awq", done: i + 1, total: count, layer: options.name };
  }
  const { power, scales, error, layers } = best!;
  if (!Number.isFinite(error)) throw new LowbitError("E_CALIBRATION", `awq${at}: expected a finite error, got ${error}.`);
  return layers.map((layer, i) => ({
    ...layer.packed,
    shape: weights[i].shape.slice(),
    recipe: {
      ...layer.packed.recipe,
      algorithm: "awq",
      power,
      searched: layer.searched,
      ...(power > 0 ? { channelScales: Array.from(scales) } : {}),
      error: layer.error,
      roundToNearestError: plain[i],
    },
  }));
}

/** mean^power, at least 1e-4, divided by the geometric mean of its extremes. Dead channels keep the smallest scale. */
function channelScales(mean: Float64Array, power: number): Float64Array<ArrayBuffer> {
  const s = Float64Array.from(mean, (m) => Math.max(m ** power, 1e-4));
  let [lo, hi] = [Infinity, 0];
  for (const v of s) {
    lo = Math.min(lo, v);
    hi = Math.max(hi, v);
  }
  const norm = Math.sqrt(lo * hi);
  return s.map((v) => v / norm);
}
