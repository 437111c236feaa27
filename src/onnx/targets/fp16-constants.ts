// Constants in float16: what it can hold of them, and the conversion. float16 ends at 65504, keeps 11 bits from 6.1e-5
// up, and has nothing between 0 and 6e-8. A magnitude beyond 65504 is clamped only where it stands for infinity: in
// masks, and in bounds of Clip.
import type { TensorProto } from "../file/gen/onnx_pb.ts";
import { encodeHalf, halfTable } from "../file/half.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Scratch } from "../file/values.ts";
import { elementCount } from "../file/values.ts";
import { forFloats } from "../bands.ts";

/** The largest float16. */
export const HALF_MAX = 65504;
/** What masks are clamped to: two of them and a score can still be added. */
const MASK = 30000;
/** A single constant that would become 0 becomes this, as in transformers.js' converter: an epsilon stays one. */
const LEAST = 1e-7;
/** Magnitudes from here on stand for infinity wherever they are. */
const INFINITE = 1e9;
/** Root mean square below which float16's steps of 6e-8 leave less than 40 dB. */
const FINE = 2 ** -19;

export interface ConstantRange {
  /** Finite magnitudes beyond float16. */
  readonly beyond: number;
  /** All of these stand for infinity, whoever reads them. */
  readonly infinite: boolean;
  /** All of these are negative: in a sum or a choice they are a mask. */
  readonly negative: boolean;
  /** Too small to keep its values apart in float16. */
  readonly tiny: boolean;
}

/** The range of a float tensor. */
function constantRange(model: OnnxModel, tensor: TensorProto, scratch: Scratch): ConstantRange {
  let beyond = 0;
  let least = Infinity;
  let positive = 0;
  let square = 0;
  let count = 0;
  const add = (values: Float32Array): void => {
    for (let i = 0; i < values.length; i++) {
      const magnitude = Math.abs(values[i]);
      if (magnitude > HALF_MAX) {
        if (magnitude === Infinity) continue;
        beyond++;
        if (values[i] > 0) positive++;
        if (magnitude < least) least = magnitude;
      } else if (magnitude > 0) {
        square += magnitude * magnitude;
        count++;
      }
    }
  };
  forFloats(model, tensor, add, scratch);
  return {
    beyond,
    infinite: beyond > 0 && least >= INFINITE,
    negative: beyond > 0 && positive === 0,
    tiny: beyond === 0 && Math.sqrt(square / count) < FINE,
  };
}

/** Magnitudes below `low` become `low`; those above `above` become `high`. */
export interface Clamp {
  readonly low: number;
  readonly above: number;
  readonly high: number;
}

export interface Half {
  readonly codes: Uint16Array;
  readonly signal: number;
  readonly noise: number;
  readonly clamped: number;
}

/**
 * The bounds of a constant: its own where it is a mask, those of float16 else, or those that the caller set for all.
 */
export const clampOf = (length: number, mask: boolean, forced: readonly [number, number] | undefined): Clamp =>
  forced === undefined
    ? { low: length === 1 ? LEAST : 0, above: HALF_MAX, high: mask ? MASK : HALF_MAX }
    : { low: forced[0], above: forced[1], high: forced[1] };

/** A constant of `count` values rounded to float16: all at once, or of a large one part by part. */
export function constantToHalf(model: OnnxModel, tensor: TensorProto, bounds: (count: number) => Clamp, scratch: Scratch): Half {
  const count = elementCount(tensor);
  const clamp = bounds(count);
  let whole: Half | undefined;
  let at = 0;
  const add = (values: Float32Array): void => {
    const { codes, signal, noise, clamped } = toHalf(values, clamp);
    if (values.length === count) {
      whole = { codes, signal, noise, clamped };
      return;
    }
    whole ??= { codes: new Uint16Array(count), signal: 0, noise: 0, clamped: 0 };
    whole.codes.set(codes, at);
    whole = { codes: whole.codes, signal: whole.signal + signal, noise: whole.noise + noise, clamped: whole.clamped + clamped };
    at += values.length;
  };
  forFloats(model, tensor, add, scratch);
  return whole!;
}

/** Rounds to float16. Magnitudes outside the bounds are clamped; zero, infinities and NaN stay. */
export function toHalf(values: Float32Array, { low, above, high }: Clamp): Half {
  const codes = new Uint16Array(values.length);
  const table = halfTable();
  let signal = 0;
  let noise = 0;
  let clamped = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const magnitude = Math.abs(value);
    let bounded = value;
    if (magnitude < low && magnitude > 0) bounded = value > 0 ? low : -low;
    else if (magnitude > above && magnitude < Infinity) bounded = value > 0 ? high : -high;
    if (bounded !== value && magnitude > 0 && magnitude < Infinity) clamped++;
    const code = encodeHalf(bounded);
    codes[i] = code;
    if (magnitude < Infinity) {
      const error = value - table[code];
      signal += value * value;
      noise += error * error;
    }
  }
  return { codes, signal, noise, clamped };
}

/** Ranges of constants, each read once. */
export function constantRanges(model: OnnxModel): (tensor: TensorProto) => ConstantRange {
  const known = new Map<TensorProto, ConstantRange>();
  const scratch: Scratch = { bytes: new Uint8Array(0) };
  return (tensor) => {
    let range = known.get(tensor);
    if (range === undefined) known.set(tensor, (range = constantRange(model, tensor, scratch)));
    return range;
  };
}
