// Fake quantization: the values of a tensor as a format holds them, with a gradient straight through the rounding
// (Bengio et al., arXiv 1308.3432; Jacob et al., 1712.05877; Krishnamoorthi, 1806.08342).
import * as tf from "@tensorflow/tfjs-core";
import { isA } from "../../formats/core/check.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { elementOf, rowScales } from "../../formats/core/packed.ts";
import type { BlockFormat, Format, NumberFormat, PackedTensor } from "../../formats/core/types.ts";
import { dequantize } from "../tensor/dequantize.ts";
import { quantize, type QuantizeOptions } from "../tensor/quantize/index.ts";
import { affineRule } from "../tensor/quantize/scales.ts";
import { tensor } from "../tensor/tensor.ts";
import { backend } from "./weights.ts";

/** How a tensor of TensorFlow.js is rounded to a format while it stays float32. */
export interface FakeQuantizeOptions extends Omit<QuantizeOptions, "backend"> {
  /**
   * The axis of output channels: its entries are the rows that a format sees, all other axes together are k. Default:
   * k is the last axis, all others are rows. A dense kernel [inputs, outputs] has `outputs: 1`, a convolution's
   * [height, width, inputs, outputs] `outputs: 3`.
   */
  readonly outputs?: number;
  /**
   * Default "straight": dx = dy. "clipped": dx is zero where x lies more than half a step beyond the numbers that
   * the format holds with the scale of its block.
   */
  readonly gradient?: "straight" | "clipped";
  /**
   * The range of all values, in place of the extremes of x: what `movingRange` gives. For integer formats with one
   * scale a tensor; values beyond it are clipped, and the gradient there is zero.
   */
  readonly range?: readonly [min: number, max: number];
}

/** A tensor as a matrix [rows, k]: `rows` axis first, and the way back. */
interface Layout {
  readonly rows: number;
  readonly k: number;
  toMatrix(values: Float32Array): Float32Array;
  fromMatrix(values: Float32Array): Float32Array;
}

function layoutOf(shape: readonly number[], outputs: number | undefined): Layout {
  const size = shape.reduce((n, d) => n * d, 1);
  const same = (values: Float32Array) => values;
  if (outputs === undefined) {
    const k = shape.at(-1) ?? 1;
    return { rows: size / k, k, toMatrix: same, fromMatrix: same };
  }
  if (!Number.isInteger(outputs) || outputs < -shape.length || outputs >= shape.length)
    throw new RangeError(`fakeQuantize outputs: expected an axis of [${shape.join(", ")}], got ${outputs}.`);
  const axis = outputs < 0 ? outputs + shape.length : outputs;
  const rows = shape[axis];
  const inner = shape.slice(axis + 1).reduce((n, d) => n * d, 1);
  const k = size / rows;
  if (axis === 0) return { rows, k, toMatrix: same, fromMatrix: same };
  const move = (values: Float32Array, back: boolean): Float32Array => {
    const out = new Float32Array(size);
    for (let i = 0; i < size; i++) {
      const row = Math.floor(i / inner) % rows;
      const at = row * k + Math.floor(i / (inner * rows)) * inner + (i % inner);
      if (back) out[i] = values[at];
      else out[at] = values[i];
    }
    return out;
  };
  return { rows, k, toMatrix: (v) => move(v, false), fromMatrix: (v) => move(v, true) };
}

/** The ends of what a format holds, each half a step beyond its last number: what rounds to that one is not clipped. */
function roundedEnds({ limits, order }: NumberFormat): readonly [number, number] {
  const values = order?.values;
  if (values === undefined || values.length < 2) return [limits.min, limits.max];
  const [first, second] = values;
  const [before, last] = values.subarray(-2);
  return [first - (second - first) / 2, last + (last - before) / 2];
}

/** 1 where a value lies within what its block can hold, else 0. */
export function withinRange(w: PackedTensor, values: Float32Array): Float32Array {
  const inside = new Float32Array(values.length).fill(1);
  const element = elementOf(w);
  if (element === null) return inside;
  const [min, max] = roundedEnds(element);
  const { rows, k, format } = w;
  const block = format.kind === "block" ? format : null;
  const levels = block === null ? null : rowScales(w, block);
  const span = levels?.span ?? k;
  const [scale, offset] = [new Float64Array(levels?.blocks ?? 1).fill(1), new Float64Array(levels?.blocks ?? 1)];
  for (let r = 0; r < rows; r++) {
    levels?.fill(r, scale, offset);
    for (let j = 0; j < k; j++) {
      const b = Math.floor(j / span);
      const ends =
        block?.offset?.role === "zeroPoint"
          ? [(min - offset[b]) * scale[b], (max - offset[b]) * scale[b]]
          : [min * scale[b] + offset[b], max * scale[b] + offset[b]];
      const v = values[r * k + j];
      if (v < Math.min(...ends) || v > Math.max(...ends)) inside[r * k + j] = 0;
    }
  }
  return inside;
}

/** Scale, zero point and codes of an integer format with one scale a tensor, for a range that is given. */
function rangeParameters(format: Format, [min, max]: readonly [number, number]) {
  const block = format.kind === "block" ? format : null;
  const whole = block?.element.kind === "int" && block.scales.length === 1 && block.scales[0].span === "tensor";
  if (!whole || (block.offset !== undefined && block.offset.role !== "zeroPoint"))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `fakeQuantize range: expected an integer format with one scale a tensor, got ${format.name}. Use one such as uint8_tensor_zp, or leave range out.`,
    );
  if (!(Number.isFinite(min) && Number.isFinite(max) && min <= max))
    throw new RangeError(`fakeQuantize range: expected [min, max] of finite numbers, got [${min}, ${max}].`);
  const { element, rangeRule } = block as BlockFormat;
  const rule = affineRule({ element, rangeRule, zeroPoint: block.offset !== undefined, steps: "exact", reduceRange: false });
  const { scale, zeroPoint } = rule({ min: Math.min(min, 0), max: Math.max(max, 0) });
  const low = rangeRule === "narrow" && element.limits.min < 0 ? -element.limits.max : element.limits.min;
  return { scale: Math.fround(scale), low: low - zeroPoint, high: element.limits.max - zeroPoint };
}

function rangeQuantize(x: tf.Tensor, format: Format, range: readonly [number, number]): tf.Tensor {
  const { scale, low, high } = rangeParameters(format, range);
  return tf.customGrad((input, save) => {
    const t = input as tf.Tensor;
    (save as tf.GradSaveFunc)([t]);
    const value = tf.tidy(() => tf.mul(tf.clipByValue(tf.round(tf.div(t, scale)), low, high), scale));
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) =>
      tf.tidy(() => {
        const [kept] = saved;
        const inside = tf.logicalAnd(tf.greaterEqual(kept, low * scale), tf.lessEqual(kept, high * scale));
        return tf.mul(dy, tf.cast(inside, "float32"));
      });
    return { value, gradFunc };
  })(x);
}

/**
 * The values of x after quantization to a format, float32, in the shape of x. The gradient passes the rounding
 * unchanged, so that what was quantized can be trained (quantization-aware training). Every format and every option of
 * `quantize`; with `rounding: "stochastic"` and `random` the expected value is x. Values are read back from the
 * backend, except with `range`, which tfjs's own operations compute.
 * @throws LowbitError E_VALUE where x has NaN or infinities and the format none, E_SHAPE, E_UNSUPPORTED as quantize
 * @example
 * const kernel = tf.randomNormal([256, 64]); // [inputs, outputs]
 * fakeQuantize(kernel, format("int8_row"), { outputs: 1 }).shape // [256, 64], the gradient straight through
 */
export function fakeQuantize(x: tf.Tensor, format: Format, options: FakeQuantizeOptions = {}): tf.Tensor {
  if (!(x instanceof tf.Tensor)) throw new TypeError(`fakeQuantize x: expected a tensor of tfjs, got ${isA(x)}.`);
  const { outputs, gradient = "straight", range, ...rules } = options;
  if (gradient !== "straight" && gradient !== "clipped")
    throw new TypeError(`fakeQuantize gradient: expected "straight" or "clipped", got ${String(gradient)}.`);
  if (range !== undefined) return rangeQuantize(tf.cast(x, "float32"), format, range);
  return tf.tidy(() =>
    tf.customGrad((input, save) => {
      const t = input as tf.Tensor;
      const layout = layoutOf(t.shape, outputs);
      const values = layout.toMatrix(t.dataSync() as Float32Array);
      const w = quantize(tensor(values, [layout.rows, layout.k]), format, { ...rules, backend: backend() });
      const value = tf.tensor(layout.fromMatrix(dequantize(w, { backend: backend() })), t.shape, "float32");
      if (gradient === "straight") return { value, gradFunc: (dy: tf.Tensor) => dy.clone() };
      const inside = tf.tensor(layout.fromMatrix(withinRange(w, values)), t.shape, "float32");
      (save as tf.GradSaveFunc)([inside]);
      return { value, gradFunc: (dy: tf.Tensor, saved: tf.Tensor[]) => tf.mul(dy, saved[0]) };
    })(tf.cast(x, "float32")),
  );
}

/** The range of activations over training steps. */
export interface MovingRange {
  /** Takes the extremes of a batch in and gives the range. */
  observe(x: tf.Tensor): readonly [min: number, max: number];
  /** The range so far; undefined before the first batch. */
  readonly current: readonly [min: number, max: number] | undefined;
}

/**
 * The exponential moving average of the extremes of batches: the range for `fakeQuantize` of activations (Jacob et al.,
 * 3.1). The first batch counts whole.
 * @param decay how much of the range so far stays with each batch, default 0.99
 * @throws RangeError for the decay
 * @example
 * const seen = movingRange();
 * const activations = tf.randomNormal([8, 16]);
 * fakeQuantize(activations, format("uint8_tensor_zp"), { range: seen.observe(activations) })
 */
export function movingRange({ decay = 0.99 }: { readonly decay?: number } = {}): MovingRange {
  if (!(decay >= 0 && decay < 1)) throw new RangeError(`movingRange decay: expected a number in [0, 1), got ${decay}.`);
  let current: readonly [number, number] | undefined;
  return {
    observe(x) {
      const [min, max] = tf.tidy(() => [tf.min(x).dataSync()[0], tf.max(x).dataSync()[0]]);
      current = current === undefined ? [min, max] : [decay * current[0] + (1 - decay) * min, decay * current[1] + (1 - decay) * max];
      return current;
    },
    get current() {
      return current;
    },
  };
}
