// Two precisions in one weight or activation matrix, after COMET (Fine-grained Mixed-Precision Quantization, spec B10):
// the channels with outliers, found by calibration, are gathered in few blocks at the front; those take the wide
// format, the rest the narrow one, and a product runs over two contiguous ranges of K. The order is folded into
// whatever produces the inputs (`permuteRows`), or gathered at run time. Not here: which layers to split (plan.ts).
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { quantize, type WeightQuantizer } from "../tensor/quantize/index.ts";
import { matrixView, readRows, type Tensor } from "../tensor/tensor.ts";
import { channelAmax, type Linear, type Linear64 } from "./equalize.ts";
import { weightMatrix } from "./grid.ts";
import { dequantizeOriginal } from "./mrgptq.ts";
import { timesInverse } from "./refit.ts";
import { algebraFor, type AlgebraOptions } from "./simd.ts";
import { transposed } from "./linalg.ts";
import type { LayerStatistics } from "./statistics.ts";

/** An order of the k channels, the first `wide` of which take the wide format. */
export interface ChannelSplit {
  readonly k: number;
  readonly block: number;
  /** order[position] is the channel that stands there. */
  readonly order: Int32Array<ArrayBuffer>;
  /** Channels at the front in the wide format: whole blocks, or all. */
  readonly wide: number;
  /** Blocks of the wide format, and how many blocks hold an outlier while the channels are in their own order. */
  readonly wideBlocks: number;
  readonly blocksBefore: number;
}

/** Which channels are outliers, and in what blocks they are gathered. */
export interface SplitOptions {
  /** Channels per block; default 128. */
  readonly block?: number;
  /**
   * A channel is an outlier where its largest magnitude exceeds this many times the median channel's; default 4: beyond
   * it, a block with the channel in it loses two bits on all others.
   */
  readonly threshold?: number;
  /** Blocks of the wide format, instead of by threshold. */
  readonly wideBlocks?: number;
}

/**
 * Gathers outlier channels at the front.
 * @param source largest magnitude of each channel, or the statistics of the inputs
 * @throws RangeError for options or magnitudes that are not finite
 * @example outlierSplit([1, 40, 1, 1, 1, 30, 1, 1], { block: 2 }).wideBlocks // 1: both loud channels lie in it
 */
export function outlierSplit(source: ArrayLike<number> | LayerStatistics, options: SplitOptions = {}): ChannelSplit {
  const amax = "max" in source ? channelAmax(source) : Float64Array.from(source);
  const k = amax.length;
  const { block = 128, threshold = 4 } = options;
  if (k === 0 || !amax.every((v) => v >= 0 && v < Infinity))
    throw new RangeError("outlierSplit: expected a finite magnitude >= 0 for each channel, got something else.");
  if (!Number.isSafeInteger(block) || block < 1) throw new RangeError(`outlierSplit block: expected a positive integer, got ${block}.`);
  if (!(threshold > 0)) throw new RangeError(`outlierSplit threshold: expected a number above 0, got ${threshold}.`);
  const blocks = Math.ceil(k / block);
  const sorted = amax.slice().sort();
  const limit = threshold * ((sorted[(k - 1) >> 1] + sorted[k >> 1]) / 2);
  const outliers: number[] = [];
  for (let j = 0; j < k; j++) if (amax[j] > limit) outliers.push(j);
  const wideBlocks = options.wideBlocks ?? Math.ceil(outliers.length / block);
  if (!Number.isSafeInteger(wideBlocks) || wideBlocks < 0 || wideBlocks > blocks)
    throw new RangeError(`outlierSplit wideBlocks: expected an integer in 0..${blocks}, got ${wideBlocks}.`);
  const wide = Math.min(k, wideBlocks * block);
  const falling = Array.from({ length: k }, (_, j) => j).sort((a, b) => amax[b] - amax[a] || a - b);
  // The front by falling magnitude, the rest as it was. Nothing is moved where everything has one format.
  const moved = wide > 0 && wide < k;
  const front = new Set(moved ? falling.slice(0, wide) : []);
  const order = Int32Array.from([...front, ...Array.from({ length: k }, (_, j) => j).filter((j) => !front.has(j))]);
  return { k, block, order, wide, wideBlocks, blocksBefore: new Set(outliers.map((j) => Math.floor(j / block))).size };
}

/**
 * Columns of `weight` in the order given: position p holds column order[p].
 * @example permuteColumns(tensor(Float32Array.of(1, 2, 3), [1, 3]), [2, 0, 1]).data // [3, 1, 2]
 */
export function permuteColumns(weight: Tensor, order: ArrayLike<number>): Tensor {
  const view = matrixView(weight);
  const { rows, k } = view;
  checkOrder(order, k, "permuteColumns");
  const from = new Float64Array(rows * k);
  readRows(view, 0, rows, from);
  const data = new Float64Array(rows * k);
  for (let r = 0; r < rows; r++) for (let p = 0; p < k; p++) data[r * k + p] = from[r * k + order[p]];
  return { data, shape: [rows, k], stride: [k, 1], offset: 0 };
}

/**
 * The layer before, with its outputs in the order given: what folds a permutation of channels away.
 * @example permuteRows({ weight: Float32Array.of(1, 2, 3, 4), rows: 2, k: 2 }, [1, 0]).weight // [3, 4, 1, 2]
 */
export function permuteRows(layer: Linear, order: ArrayLike<number>): Linear64 {
  const { rows, k, bias } = layer;
  checkOrder(order, rows, "permuteRows");
  const weight = new Float64Array(rows * k);
  for (let p = 0; p < rows; p++) weight.set(layer.weight.subarray(order[p] * k, (order[p] + 1) * k), p * k);
  return { weight, rows, k, bias: bias ? Float64Array.from({ length: rows }, (_, p) => bias[order[p]]) : null };
}

function checkOrder(order: ArrayLike<number>, k: number, what: string): void {
  const seen = new Uint8Array(k);
  let found = 0;
  for (let p = 0; p < order.length; p++) if (order[p] >= 0 && order[p] < k && Number.isInteger(order[p]) && !seen[order[p]]++) found++;
  if (order.length !== k || found !== k)
    throw new LowbitError(
      "E_SHAPE",
      `${what}: expected an order of ${k} channels, each once, got ${order.length} with ${found} different.`,
    );
}

/**
 * Statistics of some channels, in the order of the list. @throws RangeError for a channel that there is not
 * @example selectChannels(stats, [7, 3]).k // 2
 */
export function selectChannels(statistics: LayerStatistics, channels: ArrayLike<number>): LayerStatistics {
  const { k, hessian } = statistics;
  const n = channels.length;
  for (let p = 0; p < n; p++)
    if (!(Number.isInteger(channels[p]) && channels[p] >= 0 && channels[p] < k))
      throw new RangeError(`selectChannels: expected channels in 0..${k - 1}, got ${channels[p]}.`);
  const pick = (from: Float64Array) => Float64Array.from({ length: n }, (_, p) => from[channels[p]]);
  let selected: Float64Array<ArrayBuffer> | null = null;
  if (hessian) {
    selected = new Float64Array(n * n);
    for (let p = 0; p < n; p++) for (let q = 0; q < n; q++) selected[p * n + q] = hessian[channels[p] * k + channels[q]];
  }
  const { rows, weight } = statistics;
  const [sum, sumAbs, sumSquares] = [pick(statistics.sum), pick(statistics.sumAbs), pick(statistics.sumSquares)];
  return { k: n, rows, weight, hessian: selected, sum, sumAbs, sumSquares, min: pick(statistics.min), max: pick(statistics.max) };
}

/**
 * A matrix in two formats: parts[0] holds the channels order[0 .. wide), parts[1] the rest; one part where one format
 * takes all.
 */
export interface MixedTensor {
  readonly kind: "mixed";
  readonly shape: readonly number[];
  readonly rows: number;
  readonly k: number;
  readonly split: ChannelSplit;
  readonly parts: readonly PackedTensor[];
}

/** How the parts of a weight of two formats are quantized. */
export interface MixedOptions extends AlgebraOptions {
  /** Quantizer of a part, given its weight and the statistics of its channels; default round-to-nearest. */
  readonly quantizer?: (part: { readonly weight: Tensor; readonly statistics?: LayerStatistics }, format: Format) => WeightQuantizer;
  /**
   * Statistics of all inputs, in their own order. With a Hessian the narrow part makes up for the error of the wide one
   * (least squares).
   */
  readonly statistics?: LayerStatistics;
  /** Ridge of that, as a share of the mean diagonal; default 0.01. */
  readonly ridge?: number;
}

/**
 * Quantizes [rows, k] with the first `split.wide` channels of the order in formats[0] and the rest in formats[1]. Works
 * for weights and for activations [tokens, k].
 * @throws LowbitError as `quantize` and the quantizers; E_SHAPE where the split is of another k
 * @example
 * const split = outlierSplit(stats, { block: 32, wideBlocks: 1 }); // the 32 loudest channels keep 8 bits
 * const { parts } = quantizeMixed(w, split, [format("int8_row"), format("int4_b32")]);
 * parts.map(({ shape }) => shape) // [[64, 32], [64, 224]]
 */
export function quantizeMixed(
  weight: Tensor,
  split: ChannelSplit,
  formats: readonly [wide: Format, narrow: Format],
  options: MixedOptions = {},
): MixedTensor {
  const { rows, k } = matrixView(weight);
  if (split.k !== k) throw new LowbitError("E_SHAPE", `quantizeMixed: expected a split of ${k} channels, got one of ${split.k}.`);
  const { statistics } = options;
  if (statistics && statistics.k !== k)
    throw new LowbitError("E_CALIBRATION", `quantizeMixed: expected statistics of ${k} inputs, got ${statistics.k}.`);
  const { wide, order } = split;
  const data = weightMatrix(permuteColumns(weight, order), "quantizeMixed").data;
  const ranges = [
    { from: 0, to: wide, format: formats[0] },
    { from: wide, to: k, format: formats[1] },
  ].filter((r) => r.to > r.from);
  const parts: PackedTensor[] = [];
  let error: Float64Array | null = null; // of the wide part, [rows, wide]
  for (const { from, to, format } of ranges) {
    const n = to - from;
    const own = new Float64Array(rows * n);
    for (let r = 0; r < rows; r++) own.set(data.subarray(r * k + from, r * k + to), r * n);
    if (error !== null && statistics?.hessian) {
      const h = statistics.hessian;
      const [across, block] = [new Float64Array(from * n), new Float64Array(n * n)];
      for (let p = 0; p < from; p++) for (let q = 0; q < n; q++) across[p * n + q] = h[order[p] * k + order[from + q]];
      for (let p = 0; p < n; p++) for (let q = 0; q < n; q++) block[p * n + q] = h[order[from + p] * k + order[from + q]];
      // min over V of ||E x_wide + (W - V) x_narrow||^2: V = W + E H_wn (H_nn + ridge)^-1
      const right = new Float64Array(rows * n);
      algebraFor(options, "quantizeMixed").product(right, 0, n, rows, n, transposed(error, rows, from), 0, rows, across, 0, n, from, 1);
      const change = timesInverse(right, rows, block, n, options.ridge ?? 0.01, "", options);
      for (let i = 0; i < own.length; i++) own[i] += change[i];
    }
    const part = {
      weight: { data: own, shape: [rows, n], stride: [n, 1], offset: 0 } as Tensor,
      ...(statistics ? { statistics: selectChannels(statistics, order.subarray(from, to)) } : {}),
    };
    const packed = quantize(part.weight, format, options.quantizer ? options.quantizer(part, format) : {});
    if (from === 0 && to < k) {
      const values = partValues(packed);
      error = own.map((v, i) => v - values[i]);
    }
    parts.push(packed);
  }
  return { kind: "mixed", shape: weight.shape.slice(), rows, k, split, parts };
}

const partValues = (p: PackedTensor) =>
  p.recipe.rotation || p.recipe.channelScales ? Float64Array.from(dequantizeOriginal(p)) : dequantize(p, { dtype: "float64" });

/**
 * Values [rows * k] with the channels in their own order.
 * @example
 * const mixed = quantizeMixed(w, outlierSplit(stats, { block: 32 }), [format("int8_row"), format("int4_b32")]);
 * dequantizeMixed(mixed).length // 16384
 */
export function dequantizeMixed(mixed: MixedTensor): Float64Array<ArrayBuffer> {
  const { rows, k, split } = mixed;
  const out = new Float64Array(rows * k);
  let at = 0;
  for (const part of mixed.parts) {
    const values = partValues(part);
    for (let r = 0; r < rows; r++) for (let p = 0; p < part.k; p++) out[r * k + split.order[at + p]] = values[r * part.k + p];
    at += part.k;
  }
  return out;
}

/**
 * Bytes of codes, scales and offsets.
 * @example storedBytes(quantize(w, format("int4_b32"))) // 10240: 64 * 256 codes of 4 bits, 512 scales of 4 bytes
 */
export const storedBytes = (p: PackedTensor): number =>
  p.codes.length + (p.scales?.length ?? 0) + (p.superScales?.length ?? 0) + (p.offsets?.length ?? 0);

/**
 * Bytes of the parts, and two or four per channel for an order that is not the channels' own.
 * @example
 * const mixed = quantizeMixed(w, outlierSplit(stats, { block: 32 }), [format("int8_row"), format("int4_b32")]);
 * (8 * mixedBytes(mixed)) / w.data.length // bits per weight
 */
export const mixedBytes = ({ parts, k }: MixedTensor): number =>
  parts.reduce((n, p) => n + storedBytes(p), parts.length > 1 ? k * (k <= 65536 ? 2 : 4) : 0);

/**
 * The inputs [m, k] of each part: x W^T is the sum of the products of the parts, whose layers are prepared like any
 * other.
 * @throws LowbitError E_SHAPE
 * @example
 * const mixed = quantizeMixed(w, outlierSplit(stats, { block: 32 }), [format("int8_row"), format("int4_b32")]);
 * const parts = splitColumns(tensor(x, [1, 256]), mixed);
 * await Promise.all(parts.map((part, i) => matmul(part, mixed.parts[i]))) // their sum is the product
 */
export function splitColumns(x: Tensor, w: Pick<MixedTensor, "split" | "parts">): Tensor<Float32Array<ArrayBuffer>>[] {
  const all = permuteColumns(x, w.split.order);
  const [m, k] = all.shape;
  let at = 0;
  return w.parts.map((part) => {
    const data = new Float32Array(m * part.k);
    for (let t = 0; t < m; t++) for (let p = 0; p < part.k; p++) data[t * part.k + p] = all.data[t * k + at + p];
    at += part.k;
    return { data, shape: [m, part.k], stride: [part.k, 1], offset: 0 };
  });
}
