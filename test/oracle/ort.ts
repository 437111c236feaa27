// Weights as onnxruntime's Python tools and MLAS make them, written from the rules alone, block by block, every float32
// step rounded by a Float32Array cell. Imports nothing of the library. MatMulNBits in 4 bits with its packed bytes is
// in matmulnbits.ts, int8 in int8.ts.

const cell = new Float32Array(1);
const f32 = (x: number): number => {
  cell[0] = x;
  return cell[0];
};
const roundf = (x: number): number => Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
/** numpy's rint: half to even, by comparing the two neighbours. */
function rint(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}
const clip = (x: number, low: number, high: number): number => (x <= low ? low : x > high ? high : x);

/** float16 of a float32, half to even, by its definition: 10 bits of fraction, exponents -14..15, subnormals below. */
export function half(x: number): number {
  const a = Math.abs(x);
  if (a === 0) return x;
  const e = Math.max(-14, Math.floor(Math.log2(a)) + (2 ** Math.floor(Math.log2(a)) > a ? -1 : 0));
  const unit = 2 ** (e - 10);
  return Math.sign(x) * rint(a / unit) * unit;
}

export interface OrtBlock {
  /** Unsigned; a symmetric block counts from its most negative code. */
  readonly codes: number[];
  readonly scale: number;
  readonly zeroPoint: number;
}

/** One block of MatMulNBits of `bits` bits (MLAS quantizeAndTranspose); `stored` rounds a scale to its type. */
export function nbitsBlock(values: readonly number[], bits: number, symmetric: boolean, stored: (scale: number) => number): OrtBlock {
  const top = 2 ** bits - 1;
  const mid = 2 ** (bits - 1);
  let min = Math.min(...values);
  let max = Math.max(...values);
  let scale: number;
  let zeroPoint = mid;
  if (symmetric) scale = stored(f32((Math.abs(max) > Math.abs(min) ? max : min) / -mid));
  else {
    min = Math.min(min, 0);
    max = Math.max(max, 0);
    const unrounded = f32(f32(max - min) / top);
    zeroPoint = clip(roundf(unrounded !== 0 ? f32(0 - f32(min / unrounded)) : min), 0, top);
    scale = stored(unrounded);
  }
  const reciprocal = scale !== 0 ? f32(1 / scale) : 0;
  return { codes: values.map((x) => clip(roundf(f32(f32(x * reciprocal) + zeroPoint)), 0, top)), scale, zeroPoint };
}

/**
 * One block of quantize_qdq_matmul_4bits: signed codes around 0 where symmetric, else unsigned ones around a zero
 * point.
 */
export function qdqBlock(values: readonly number[], symmetric: boolean): OrtBlock {
  const { scale, zeroPoint: zero } = nbitsBlock(values, 4, symmetric, f32);
  const zeroPoint = symmetric ? 0 : zero;
  const reciprocal = scale !== 0 ? f32(1 / scale) : 0;
  const [low, high] = symmetric ? [-8, 7] : [0, 15];
  return { codes: values.map((x) => clip(roundf(f32(x * reciprocal)) + zeroPoint, low, high)), scale, zeroPoint };
}

/** Ranges of quant_utils.py: plain, symmetric, reduced. */
const RANGES: Record<string, readonly (readonly [number, number])[]> = {
  int8: [[-128, 127], [-127, 127], [-64, 64]],
  uint8: [[0, 255], [0, 254], [0, 127]],
  int16: [[-32768, 32767], [-32767, 32767], [-16384, 16384]],
  uint16: [[0, 65535], [0, 65534], [0, 32767]],
  int4: [[-8, 7], [-8, 7], [-4, 3]],
  uint4: [[0, 15], [0, 15], [0, 7]],
}; // prettier-ignore

export interface TensorOptions {
  readonly type: string;
  readonly symmetric: boolean;
  readonly reduceRange: boolean;
}

/** compute_scale_zp and quantize_nparray for one tensor or channel; codes as numbers. */
export function quantUtils(values: readonly number[], { type, symmetric, reduceRange }: TensorOptions): OrtBlock {
  let rmin = Math.min(0, ...values);
  let rmax = Math.max(0, ...values);
  if (symmetric) {
    rmax = Math.max(-rmin, rmax);
    rmin = -rmax;
  }
  const [plain, balanced, reduced] = RANGES[type];
  const [qmin, qmax] = reduceRange ? reduced : symmetric ? balanced : plain;
  let scale = f32(rmax - rmin) / (qmax - qmin);
  let zeroPoint = 0;
  if (scale < 2 ** -126) scale = 1;
  else zeroPoint = symmetric ? rint((qmin + qmax) / 2) : rint(qmin - rmin / scale);
  scale = f32(scale);
  return { codes: values.map((x) => clip(rint(f32(x / scale)) + zeroPoint, plain[0], plain[1])), scale, zeroPoint };
}

/**
 * Decision thresholds of bitsandbytes between neighbouring values, as its kernels compare: above the threshold is the
 * upper value.
 */
const NF4 = [
  -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984, -0.13791173323988914,
  -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
  0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
]; // prettier-ignore

/** dQuantizeFP4 of bitsandbytes: the magnitude by a tree of comparisons, the sign above it. */
function fp4(x: number): number {
  const sign = x < 0 ? 8 : 0;
  const a = Math.abs(x);
  const [t0, t1, t2, t3, t4, t5, t6] = [0.29166667, 0.583333, 0.8333333, 0.4166667, 0.0859375, 0.20833333, 0.00260417].map(f32);
  if (a > t0) {
    if (a > t1) return sign + (a > t2 ? 3 : 2);
    return sign + (a > t3 ? 5 : 4);
  }
  if (a > t4) return sign + (a > t5 ? 7 : 6);
  return sign + (a > t6 ? 1 : 0);
}

/** One block of MatMulBnb4: largest magnitude and codes. */
export function bnb4Block(values: readonly number[], type: "nf4" | "fp4"): { codes: number[]; absmax: number } {
  const absmax = Math.max(...values.map(Math.abs));
  const reciprocal = absmax !== 0 ? f32(1 / absmax) : 0;
  const code = type === "fp4" ? fp4 : (x: number) => NF4.filter((t) => x > f32(t)).length;
  return { codes: values.map((x) => code(f32(x * reciprocal))), absmax };
}
