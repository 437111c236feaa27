// What a quantized convolution is to a backend: integer filters with a factor each, an image of values or codes,
// results of values or codes. And the reference path: plain loops, the same integers, the same float32 steps.
import { dynamicScale, round } from "./range.ts";

type Pair = readonly [number, number];

export interface IntegerFilters {
  /** [outputs, width, kernel], less their zero points: -255 to 255. */
  readonly codes: Int16Array;
  readonly outputs: number;
  readonly groups: number;
  /** Channels in of a group. */
  readonly width: number;
  readonly kernel: Pair;
  /** What a sum is multiplied with beside the scale of the image: one of each filter. */
  readonly factors: Float32Array;
  readonly bias: Float32Array | null;
}

export interface ConvGeometry {
  readonly batch: number;
  readonly channels: number;
  readonly size: Pair;
  readonly strides: Pair;
  readonly dilations: Pair;
  readonly pads: readonly [Pair, Pair];
  /** Channels last. */
  readonly isRows: boolean;
}

/** Values, or codes with their scale and zero point. */
export interface ConvInput {
  readonly data: Float32Array | Uint8Array | Int8Array;
  readonly scale: number;
  readonly zero: number;
}

export interface ConvOutput extends ConvInput {
  /** Of values, or of codes. */
  readonly bounds: { readonly low?: number; readonly high?: number };
}

/** Sizes of a result. @throws RangeError where the image is smaller than the window */
export function convSize({ size, strides, dilations, pads }: ConvGeometry, kernel: Pair): [number, number] {
  const along = (d: 0 | 1): number => {
    const reach = size[d] + pads[d][0] + pads[d][1] - dilations[d] * (kernel[d] - 1) - 1;
    if (reach < 0) throw new RangeError(`expected an image at least as large as the window, got ${size.join(" x ")}`);
    return Math.floor(reach / strides[d]) + 1;
  };
  return [along(0), along(1)];
}

/** Codes of an image as DynamicQuantizeLinear makes them. */
function encoded({ data, scale, zero }: ConvInput): { readonly codes: ArrayLike<number>; readonly scale: number; readonly zero: number } {
  if (!(data instanceof Float32Array)) return { codes: data, scale, zero };
  let [low, high] = [0, 0];
  for (const v of data) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const made = dynamicScale(low, high);
  const codes = Uint8Array.from(data, (v) => Math.min(255, Math.max(0, round(Math.fround(v / made.scale)) + made.zero)));
  return { codes, ...made };
}

/** The result of a sum, in float32 steps. */
function finish(sum: number, factor: number, bias: number | null, y: ConvOutput): number {
  const scaled = Math.fround(Math.fround(sum) * factor);
  const value = bias === null ? scaled : Math.fround(scaled + bias);
  const { low = -Infinity, high = Infinity } = y.bounds;
  if (y.data instanceof Float32Array) return Math.fround(Math.min(high, Math.max(low, value)));
  const [least, most] = y.data instanceof Uint8Array ? [0, 255] : [-128, 127];
  return Math.min(high, most, Math.max(low, least, round(value) + y.zero));
}

/** The convolution in plain loops. */
export function referenceConv(filters: IntegerFilters, x: ConvInput, shape: ConvGeometry, y: ConvOutput): void {
  const { outputs, groups, width, kernel, codes, factors, bias } = filters;
  const { batch, channels, size, strides, dilations, pads, isRows } = shape;
  const image = encoded(x);
  const [height, columns] = convSize(shape, kernel);
  const over = y.data instanceof Float32Array ? 1 : y.scale;
  const at = (b: number, c: number, iy: number, ix: number): number =>
    isRows ? ((b * size[0] + iy) * size[1] + ix) * channels + c : ((b * channels + c) * size[0] + iy) * size[1] + ix;
  for (let b = 0; b < batch; b++)
    for (let o = 0; o < outputs; o++) {
      const first = Math.floor(o / (outputs / groups)) * width;
      const factor = Math.fround(Math.fround(image.scale * factors[o]) / over);
      const added = bias === null ? null : Math.fround(bias[o] / over);
      for (let oy = 0; oy < height; oy++)
        for (let ox = 0; ox < columns; ox++) {
          let sum = 0;
          for (let c = 0; c < width; c++)
            for (let ky = 0; ky < kernel[0]; ky++)
              for (let kx = 0; kx < kernel[1]; kx++) {
                const iy = oy * strides[0] - pads[0][0] + ky * dilations[0];
                const ix = ox * strides[1] - pads[1][0] + kx * dilations[1];
                if (iy < 0 || ix < 0 || iy >= size[0] || ix >= size[1]) continue;
                const w = codes[((o * width + c) * kernel[0] + ky) * kernel[1] + kx];
                sum += (image.codes[at(b, first + c, iy, ix)] - image.zero) * w;
              }
          const place = isRows ? ((b * height + oy) * columns + ox) * outputs + o : ((b * outputs + o) * height + oy) * columns + ox;
          y.data[place] = finish(sum, factor, added, y);
        }
    }
}
