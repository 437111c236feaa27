// Calibration statistics of convolutions: the patches that a 2-D Conv multiplies (im2col) go through layerStatistics,
// one Hessian per group, because weights of one group never see the channels of another. Order of a patch: channel,
// kernel row, kernel column, that of a weight [O, C / group, kh, kw]. Source: ONNX Conv (strides, pads, dilations,
// group). Not here: auto_pad (resolve it to pads first), transposed and 3-D convolutions.
import { LowbitError } from "../../formats/core/errors.ts";
import { layerStatistics, type LayerStatistics, type StatisticsOptions } from "./statistics.ts";

/** A 2-D convolution; of a 1-D one the height is 1. */
export interface ConvGeometry {
  /** Input channels, all groups together. */
  readonly channels: number;
  /** [height, width] */
  readonly kernel: readonly [number, number];
  /** Default [1, 1]. */
  readonly strides?: readonly [number, number];
  /** [top, left, bottom, right], filled with zeros; default none. */
  readonly pads?: readonly [number, number, number, number];
  /** Default [1, 1]. */
  readonly dilations?: readonly [number, number];
  /** Default 1; equal to `channels` for a depthwise convolution. */
  readonly group?: number;
}

/** Which patches of an image count as tokens. */
export interface PatchOptions {
  /** Takes every n-th patch only, counted through the batch: neighbours in a large map say much the same. Default 1. */
  readonly every?: number;
}

type Dims = readonly [number, number, number, number];

function resolve(g: ConvGeometry): Required<ConvGeometry> {
  const r = { strides: [1, 1] as const, pads: [0, 0, 0, 0] as const, dilations: [1, 1] as const, group: 1, ...g };
  const whole = (what: string, list: readonly number[], length: number, least: number) => {
    if (list.length !== length || list.some((v) => !Number.isSafeInteger(v) || v < least))
      throw new RangeError(`convolution ${what}: expected ${length} integers >= ${least}, got ${list.join(", ")}.`);
  };
  whole("channels", [r.channels], 1, 1);
  whole("kernel", r.kernel, 2, 1);
  whole("strides", r.strides, 2, 1);
  whole("pads", r.pads, 4, 0);
  whole("dilations", r.dilations, 2, 1);
  whole("group", [r.group], 1, 1);
  if (r.channels % r.group !== 0) throw new RangeError(`convolution group: expected a divisor of ${r.channels} channels, got ${r.group}.`);
  return r;
}

/** Height and width of the output. @throws LowbitError E_SHAPE where the kernel does not fit the padded input */
function outputSize(g: Required<ConvGeometry>, dims: Dims): [number, number] {
  const size = (axis: 0 | 1) =>
    Math.floor((dims[2 + axis] + g.pads[axis] + g.pads[2 + axis] - g.dilations[axis] * (g.kernel[axis] - 1) - 1) / g.strides[axis]) + 1;
  const out: [number, number] = [size(0), size(1)];
  if (dims[1] !== g.channels || out[0] < 1 || out[1] < 1)
    throw new LowbitError(
      "E_SHAPE",
      `convolution input: expected [n, ${g.channels}, h, w] with room for a kernel of ${g.kernel.join(" x ")}, got [${dims.join(", ")}].`,
    );
  return out;
}

/**
 * The patches of one group as rows: [n * outputHeight * outputWidth, channels / group * kh * kw], padding as zeros.
 * @param x row-major [n, channels, height, width]
 * @throws RangeError for a bad geometry, LowbitError E_SHAPE
 * @example
 * im2col(Float32Array.of(1, 2, 3, 4), [1, 1, 2, 2], { channels: 1, kernel: [1, 2] }) // [1, 2, 3, 4]: windows of 1 x 2
 */
export function im2col(
  x: Float32Array,
  dims: Dims,
  geometry: ConvGeometry,
  group = 0,
  { every = 1 }: PatchOptions = {},
): Float32Array<ArrayBuffer> {
  const g = resolve(geometry);
  const [outHeight, outWidth] = outputSize(g, dims);
  const [n, channels, height, width] = dims;
  if (x.length !== n * channels * height * width)
    throw new LowbitError(
      "E_SHAPE",
      `im2col: expected ${n * channels * height * width} numbers for [${dims.join(", ")}], got ${x.length}.`,
    );
  if (!Number.isSafeInteger(group) || group < 0 || group >= g.group)
    throw new RangeError(`im2col group: expected 0..${g.group - 1}, got ${group}.`);
  if (!Number.isSafeInteger(every) || every < 1) throw new RangeError(`im2col every: expected a positive integer, got ${every}.`);
  const [kh, kw] = g.kernel;
  const each = channels / g.group;
  const k = each * kh * kw;
  const patches = n * outHeight * outWidth;
  const out = new Float32Array(Math.ceil(patches / every) * k);
  // where each value of a patch lies after its first, for patches that lie within the map: most of them
  const offsets = new Int32Array(k);
  for (let c = 0, q = 0; c < each; c++)
    for (let i = 0; i < kh; i++)
      for (let j = 0; j < kw; j++, q++) offsets[q] = (c * height + i * g.dilations[0]) * width + j * g.dilations[1];
  const [bottom, right] = [height - (kh - 1) * g.dilations[0], width - (kw - 1) * g.dilations[1]];
  for (let p = 0, at = 0; p < patches; p += every) {
    const image = Math.floor(p / (outHeight * outWidth));
    const top = (Math.floor(p / outWidth) % outHeight) * g.strides[0] - g.pads[0];
    const left = (p % outWidth) * g.strides[1] - g.pads[1];
    if (top >= 0 && left >= 0 && top < bottom && left < right) {
      const first = ((image * channels + group * each) * height + top) * width + left;
      for (let q = 0; q < k; q++) out[at + q] = x[first + offsets[q]];
      at += k;
      continue;
    }
    for (let c = 0; c < each; c++) {
      const plane = (image * channels + group * each + c) * height * width;
      for (let i = 0; i < kh; i++) {
        const y = top + i * g.dilations[0];
        for (let j = 0; j < kw; j++, at++) {
          const z = left + j * g.dilations[1];
          if (y >= 0 && y < height && z >= 0 && z < width) out[at] = x[plane + y * width + z];
        }
      }
    }
  }
  return out;
}

/** A running collection of the statistics of a convolution's inputs. */
export interface ConvStatisticsAccumulator {
  /** Length of a patch: channels / group * kh * kw. */
  readonly k: number;
  /**
   * @param x row-major [n, channels, height, width]
   * @throws LowbitError E_CALIBRATION for NaN or infinities, E_SHAPE
   */
  add(x: Float32Array, dims: Dims, options?: PatchOptions): void;
  /** One for each group. @throws LowbitError E_CALIBRATION without any input */
  finish(): LayerStatistics[];
}

/**
 * Statistics of a convolution, one per group. Group g belongs to rows g * O / group ... of the weight [O, k]. Memory: 8
 * k^2 bytes a group.
 * @throws RangeError for a bad geometry
 * @example
 * const acc = convStatistics({ channels: 2, kernel: [3, 3], pads: [1, 1, 1, 1] });
 * acc.add(new Float32Array(2 * 8 * 8), [1, 2, 8, 8]);
 * acc.finish()[0].k // 18: 2 * 3 * 3
 */
export function convStatistics(geometry: ConvGeometry, options: StatisticsOptions = {}): ConvStatisticsAccumulator {
  const g = resolve(geometry);
  const k = (g.channels / g.group) * g.kernel[0] * g.kernel[1];
  const groups = Array.from({ length: g.group }, () => layerStatistics(k, options));
  return {
    k,
    add(x, dims, patches) {
      groups.forEach((statistics, i) => statistics.add(im2col(x, dims, g, i, patches)));
    },
    finish: () => groups.map((statistics) => statistics.finish()),
  };
}
