// MR-GPTQ: GPTQ in a basis rotated block by block, with block Hadamard transforms matched to the format, scales of
// least squared error and static activation order. Source: Egiazarian et al., "Bridging the Gap...", arXiv 2509.23202;
// code IST-DASLab/FP-Quant. The packed weight is W Q: inputs must be rotated by the same Q (recipe.rotation), or the
// weight read back with `dequantizeOriginal`.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { rtn, type RtnOptions } from "./rtn.ts";
import { gptq, gptqIn, type GptqOptions } from "./gptq.ts";
import { hessianOf } from "./hessian.ts";
import type { GptqWorkspace } from "./gptq-workspace.ts";
import { FLT_MAX, weightMatrix } from "./grid.ts";
import { hadamardRotation, rotateHessian, rotationOf, type Rotation, type RotationConfig } from "./rotation.ts";
import { outputError, type LayerStatistics } from "./statistics.ts";
import { checkAborted, runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** GPTQ behind a block Hadamard transform, for formats of small blocks. */
export interface MrGptqOptions extends Omit<GptqOptions, "search"> {
  /**
   * Size of the Hadamard blocks; default: the block of the format (128 is the library default of FP-Quant). Must divide
   * k.
   */
  readonly block?: number;
  /** Random signs from this seed; default none. */
  readonly seed?: number | null;
  /** Default: least squared error. null: scales by the format's rule. */
  readonly search?: GptqOptions["search"] | null;
}

function blockOf(format: Format, k: number, block: number | undefined, what: string): number {
  if (block !== undefined) return block;
  if (format.kind === "opaque") return format.blockSize;
  const span = format.kind === "block" ? format.scales[0].span : undefined;
  const size = typeof span === "number" ? span : Array.isArray(span) ? (span as readonly number[])[1] : k;
  if (k % size !== 0)
    throw new LowbitError("E_SHAPE", `${what}: expected k to be a multiple of the format's block of ${size}, got ${k}. Pass block.`);
  return size;
}

function rotated(weight: Tensor, rotation: Rotation, what: string): Tensor {
  const w = weightMatrix(weight, what);
  rotation.apply(w.data);
  const beyond = w.data.find((v) => Math.abs(v) > FLT_MAX);
  if (beyond !== undefined)
    throw new LowbitError("E_VALUE", `${what}: expected a weight that stays within float32 in the rotated basis, got ${beyond}. Scale it.`);
  return { data: w.data, shape: [w.rows, w.k], stride: [w.k, 1], offset: 0 };
}

const configOf = ({ kind, n, block, seed }: RotationConfig): RotationConfig => ({ kind, n, block, seed });

/**
 * MR-GPTQ as a quantizer, for any format; opaque ones in natural order, without a search.
 * @throws as gptq; E_SHAPE where the block does not divide k, E_UNSUPPORTED where there is no Hadamard matrix of its
 * size
 * @example quantize(w, mxfp4, mrgptq({ hessian: stats }))
 */
export function mrgptq(options: MrGptqOptions): SteppedQuantizer {
  return mrgptqIn(undefined, options);
}

/** MR-GPTQ in a workspace, see gptqIn: the rotated Hessian is made once too. */
export function mrgptqIn(workspace: GptqWorkspace | undefined, options: MrGptqOptions): SteppedQuantizer {
  let turned: Float64Array | undefined;
  const { block, seed, search, ...rest } = options;
  const base = (opaque: boolean): GptqOptions => ({
    ...rest,
    actOrder: options.actOrder ?? !opaque,
    ...(search === null || (opaque && search === undefined) ? {} : { search: search ?? { method: "mse" } }),
  });
  gptq(base(false)); // checks the options
  const steps = function* (weight: Tensor, format: Format): Steps<PackedTensor> {
    const k = weight.shape.slice(1).reduce((n, d) => n * d, 1);
    const at = options.name === undefined ? "" : ` of layer "${options.name}"`;
    const rotation = hadamardRotation(k, { block: blockOf(format, k, block, "mrgptq"), seed: seed ?? null });
    const hessian = turned ?? rotateHessian(hessianOf(options.hessian, k, at, options.minRows), rotation);
    if (workspace !== undefined) turned = hessian;
    const packed = yield* gptqIn(workspace, { ...base(format.kind === "opaque"), hessian }).steps(
      rotated(weight, rotation, "mrgptq"),
      format,
    );
    return { ...packed, shape: weight.shape.slice(), recipe: { ...packed.recipe, algorithm: "mrgptq", rotation: configOf(rotation) } };
  };
  return { algorithm: "mrgptq", steps, quantizeWeight: (weight, format) => runSteps(steps(weight, format), options) };
}

/**
 * Round to nearest in a rotated basis, without data. The same recipe and reading back as mrgptq.
 * @example const packed = quantize(w, mxfp4, rotatedRtn({ seed: 7, block: 32 })); // no calibration data
 */
export function rotatedRtn(options: Omit<RtnOptions, "seed"> & Pick<MrGptqOptions, "block" | "seed"> = {}): WeightQuantizer {
  const { block, seed, ...rest } = options;
  const inner = rtn({ ...rest });
  return {
    algorithm: "rotated-rtn",
    quantizeWeight(weight, format) {
      const k = weight.shape.slice(1).reduce((n, d) => n * d, 1);
      const rotation = hadamardRotation(k, { block: blockOf(format, k, block, "rotatedRtn"), seed: seed ?? null });
      const packed = inner.quantizeWeight(rotated(weight, rotation, "rotatedRtn"), format);
      return {
        ...packed,
        shape: weight.shape.slice(),
        recipe: { ...packed.recipe, algorithm: "rotated-rtn", rotation: configOf(rotation) },
      };
    },
  };
}

/** Which random signs are tried in front of a Hadamard transform. */
export interface RotationSearch extends RunOptions {
  /** Hadamard blocks; default: the block of the format. */
  readonly block?: number;
  /** Sign vectors tried besides no signs; default 8. */
  readonly count?: number;
  /** Seed of the first; the next ones follow. Default 1. */
  readonly seed?: number;
  /** Errors of the outputs on these inputs, instead of the weights. */
  readonly hessian?: LayerStatistics | Float64Array;
}

/** The signs that `searchRotation` found, and the errors of all that it tried. */
export interface FoundRotation {
  /** To pass as `seed` to mrgptq and rotatedRtn; null: no signs. */
  readonly seed: number | null;
  readonly error: number;
  /** Of no signs, then of each seed. */
  readonly errors: readonly number[];
}

/**
 * The random signs with the least error of rounding to nearest in the rotated basis: what SpinQuant (arXiv 2405.16406)
 * learns, tried out instead. Never worse than none.
 * @throws LowbitError as mrgptq; RangeError for count; E_ABORTED
 * @example
 * const { seed } = searchRotation(w, mxfp4, { hessian: stats, count: 4 });
 * quantize(w, mxfp4, mrgptq({ hessian: stats, seed }))
 */
export function searchRotation(weight: Tensor, format: Format, options: RotationSearch = {}): FoundRotation {
  const { count = 8, seed: first = 1, block } = options;
  if (!Number.isSafeInteger(count) || count < 0 || count > 10_000)
    throw new RangeError(`searchRotation count: expected an integer in 0..10000, got ${count}.`);
  const w = weightMatrix(weight, "searchRotation");
  const hessian = options.hessian === undefined ? null : hessianOf(options.hessian, w.k, "");
  const seeds = [null, ...Array.from({ length: count }, (_, i) => first + i)];
  const errors = seeds.map((seed, i) => {
    checkAborted(options.signal, "searchRotation");
    options.onProgress?.({ stage: "rotation", done: i, total: seeds.length });
    const values = dequantizeOriginal(rotatedRtn({ seed, ...(block === undefined ? {} : { block }) }).quantizeWeight(weight, format));
    return hessian ? outputError(w.data, values, w.rows, hessian) : w.data.reduce((n, v, at) => n + (v - values[at]) ** 2, 0);
  });
  const error = Math.min(...errors);
  return { seed: seeds[errors.indexOf(error)], error, errors };
}

/**
 * Values of a packed weight in the basis it was given in: the rotation and the channel scales of its recipe are undone.
 * @example
 * const rotated = quantize(w, mxfp4, rotatedRtn({ seed: 7 }));
 * dequantizeOriginal(rotated).length // 16384: near w; `dequantize` gives the rotated values
 */
export function dequantizeOriginal(w: PackedTensor): Float32Array<ArrayBuffer> {
  const rotation = w.recipe.rotation as RotationConfig | undefined;
  const channels = w.recipe.channelScales as readonly number[] | undefined;
  if (rotation === undefined && channels === undefined) return dequantize(w);
  const values = dequantize(w, { dtype: "float64" });
  if (rotation !== undefined) rotationOf(rotation).applyInverse(values);
  if (channels !== undefined) for (let i = 0; i < values.length; i++) values[i] /= channels[i % w.k];
  return Float32Array.from(values);
}
