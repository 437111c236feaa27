// The fast path of `arithmetic: "ort"` for 4-bit integer blocks along k: the common case of ONNX weights, float32 data
// of any stride, read in place. Same codes and scales, bit for bit, as the general loops of quantize.ts
// (test/tensor/nibbles.test.ts); it also sums the error. Every step is float32 (onnxruntime's MLAS,
// quantizeAndTranspose). Symmetric: the extreme of larger magnitude, sign kept, is code 0 (-8):
// scale = extreme / -8. Asymmetric: zero lies inside [min, max], scale = (max - min) / 15. Codes round half away from
// zero.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { codeArray } from "../../../formats/core/pack.ts";
import { packedSizes } from "../../../formats/core/packed.ts";
import type { NibbleTile } from "../../../kernels/wasm/convert/nibbles.ts";
import type { BlockFormat, PackedTensor, QuantConfig } from "../../../formats/core/types.ts";
import type { MatrixView } from "../tensor.ts";
import type { Policy } from "./policy.ts";

/** A packed tensor with the sums of squares of the weights and of their errors. */
export interface Measured {
  readonly packed: PackedTensor;
  readonly signal: number;
  readonly noise: number;
}

const fround = Math.fround;
/** Rows worked on together: 256 x 32 values of a transposed source are 32 KiB, so the second pass finds them near. */
const TILE = 256;

/** Below it every code stands for a finite float32. */
const LARGEST_SCALE = 2 ** 123;
/** SIMD codes double the reciprocals. */
const LARGEST_RECIPROCAL = 2 ** 126;

/** Is this the case that `quantizeNibbles` is for? */
export function nibblesFit(m: MatrixView, format: BlockFormat, policy: Policy): boolean {
  const [scale, second] = format.scales;
  const offset = format.offset;
  const zeroPoint = offset?.role === "zeroPoint" && offset.levels[0].span === scale.span && offset.levels[0].format.bits === 4;
  const { steps, rangeRule, overflow, scaleRule, reduceRange } = policy;
  if (steps !== "nbits" || overflow !== "saturate" || scaleRule !== "max" || reduceRange) return false;
  return (
    m.data instanceof Float32Array &&
    m.read === undefined &&
    m.kOffsets === null &&
    format.element.kind === "int" &&
    format.element.bits === 4 &&
    second === undefined &&
    scale.format.kind === "float" &&
    typeof scale.span === "number" &&
    scale.span % 2 === 0 &&
    (offset === undefined
      ? rangeRule === "ort" && format.element.limits.min < 0
      : rangeRule === "minmax" && zeroPoint && format.element.limits.min === 0)
  );
}

/**
 * Makes room for the inner loops in SIMD, `nibbleTile` of kernels/wasm/convert/nibbles.ts; handed in, so that who does
 * not use it does not load it.
 */
export type MakeTile = (k: number, blockSize: number, inRows: boolean) => NibbleTile | null;

/**
 * Quantizes a matrix [rows, k].
 * @param m a view for which `nibblesFit`
 * @param makeTile the inner loops in SIMD: same codes and scales, sums added in another order
 * @returns null where a value is not finite, or so large that a code might stand for one that is not
 */
export function quantizeNibbles(
  m: MatrixView,
  shape: readonly number[],
  format: BlockFormat,
  recipe: QuantConfig,
  makeTile?: MakeTile,
): Measured | null {
  const values = m.data as Float32Array;
  const ints = new Int32Array(values.buffer, values.byteOffset, values.length);
  const { rows: n, k, kStride: strideK, rowStride: strideN } = m;
  const level = format.scales[0];
  const blockSize = level.span as number;
  const symmetric = format.offset === undefined;
  const { rowBytes, codes: codeBytes } = packedSizes(format, shape);
  const codes = new Uint8Array(codeBytes);
  const blocks = Math.ceil(k / blockSize);
  const scales = new Float32Array(n * blocks);
  const zeroBytes = Math.ceil(blocks / 2);
  const zeroPoints = symmetric ? null : new Uint8Array(n * zeroBytes);
  // SIMD codes fill whole bytes, and a single column leaves its lanes empty
  const simd =
    makeTile !== undefined && k % 2 === 0 && n >= 4 && (strideK === 1 || strideN === 1) ? makeTile(k, blockSize, strideK === 1) : null;
  const tile = simd !== null ? simd.width : strideK === 1 ? 1 : TILE;
  const low = simd?.low ?? new Float32Array(tile);
  const high = simd?.high ?? new Float32Array(tile);
  const lowKeys = new Int32Array(low.buffer, low.byteOffset, tile);
  const highKeys = new Int32Array(high.buffer, high.byteOffset, tile);
  const block: BlockState = {
    values,
    strideN,
    scale: simd?.scale ?? new Float32Array(tile),
    reciprocal: simd?.reciprocal ?? new Float32Array(tile),
    zero: simd?.zero ?? new Float32Array(tile),
    sums: new Float64Array(2),
  };
  const { scale, reciprocal, zero } = block;
  const blockBytes = blockSize / 2;
  // Codes are gathered here and copied block by block: their final rows are a power of two apart and would fight for
  // the same cache sets.
  const gathered = new Uint8Array(tile * blockBytes);
  const narrow = level.format.bits < 32 ? codeArray(level.format.bits, tile) : null;
  // Symmetric codes are two's complement: the unsigned code with its top bit flipped.
  const flip = symmetric ? 0x88 : 0;
  const largest = simd !== null ? LARGEST_RECIPROCAL : Number.MAX_VALUE;

  for (let n0 = 0; n0 < n; n0 += tile) {
    const width = Math.min(tile, n - n0);
    const base = m.offset + n0 * strideN;
    for (let b = 0; b < blocks; b++) {
      const from = base + b * blockSize * strideK;
      const count = Math.min(blockSize, k - b * blockSize);
      simd?.stage(values, from, strideK, strideN, count, width, b === 0);
      let fits: ReturnType<NibbleTile["scales"]> = "plain";
      if (simd !== null) {
        if (symmetric) simd.extremes(count, width);
        else simd.ranges(count, width);
        fits = simd.scales(width, symmetric);
      } else if (symmetric) {
        lowKeys.fill(-0x80000000);
        let i = 0;
        for (; i + 3 < count; i += 4) extremeKeys4(ints, from + i * strideK, strideK, strideN, width, lowKeys);
        for (; i < count; i++) extremeKeys(ints, from + i * strideK, strideN, width, lowKeys);
        // Back from key to float bits: rotate right.
        for (let j = 0; j < width; j++) {
          const key = lowKeys[j] ^ 0x80000000;
          lowKeys[j] = (key >>> 1) | (key << 31);
          scale[j] = low[j] / -8;
        }
      } else {
        lowKeys.fill(0);
        highKeys.fill(0);
        for (let i = 0; i < count; i++) rangeKeys(ints, from + i * strideK, strideN, width, lowKeys, highKeys);
        for (let j = 0; j < width; j++) {
          lowKeys[j] ^= (lowKeys[j] >> 31) & 0x7fffffff;
          highKeys[j] ^= (highKeys[j] >> 31) & 0x7fffffff;
          scale[j] = fround(high[j] - low[j]) / 15;
        }
      }
      if (simd === null && zeroPoints !== null) zeroPointsOf(low, scale, width, zero);
      if (narrow !== null) {
        // Codes are found with the scale as it is stored, zero points with the scale before.
        encodeArray(level.format, scale, narrow, { overflow: "saturate" });
        for (let j = 0; j < width; j++) scale[j] = level.format.decode(narrow[j]);
      }
      let plain = fits === "plain";
      if (fits === "wide" && narrow === null) return null;
      for (let j = 0; j < width; j++) {
        const s = scale[j];
        scales[(n0 + j) * blocks + b] = s;
        if (zeroPoints !== null) zeroPoints[(n0 + j) * zeroBytes + (b >> 1)] |= zero[j] << ((b & 1) * 4);
        if (simd !== null && narrow === null) continue;
        if (!(Math.abs(s) < LARGEST_SCALE)) return null;
        reciprocal[j] = s === 0 ? 0 : 1 / s;
        if (!(Math.abs(reciprocal[j]) <= largest)) plain = false;
        if (zeroPoints === null) zero[j] = 8;
        if (narrow !== null && !inRange(low[j], symmetric ? -low[j] : high[j], reciprocal[j], zero[j])) plain = false;
      }
      if (simd !== null && plain) {
        simd.encode(count, width, b * blockBytes, flip * 0x01010101);
        continue;
      }
      let i = 0;
      if (plain) for (; i + 1 < count; i += 2) encodePair(block, from + i * strideK, strideK, width, gathered, i >> 1, blockBytes, flip);
      for (; i < count; i++) encodeOne(block, from + i * strideK, width, gathered, i, blockBytes, flip);
      const used = (count + 1) >> 1;
      const target = simd?.codes ?? codes;
      const step = simd?.rowStride ?? rowBytes;
      for (let j = 0, at = 0, to = (simd !== null ? 0 : n0 * rowBytes) + b * blockBytes; j < width; j++, at += blockBytes, to += step) {
        for (let byte = 0; byte < used; byte++) target[to + byte] = gathered[at + byte];
      }
    }
    if (simd !== null)
      for (let j = 0; j < width; j++)
        codes.set(simd.codes.subarray(j * simd.rowStride, j * simd.rowStride + rowBytes), (n0 + j) * rowBytes);
  }
  let stored: Uint8Array = new Uint8Array(scales.buffer);
  if (narrow !== null) {
    const half = codeArray(level.format.bits, scales.length);
    encodeArray(level.format, scales, half, { overflow: "saturate" });
    stored = new Uint8Array(half.buffer);
  }
  const packed: PackedTensor = {
    format,
    shape,
    rows: n,
    k,
    rowBytes,
    codes,
    scales: stored,
    superScales: null,
    offsets: zeroPoints,
    recipe,
  };
  const [signal, noise] = simd?.sums ?? [0, 0];
  return { packed, signal: block.sums[0] + signal, noise: block.sums[1] + noise };
}

/** The zero points of a row of blocks. */
function zeroPointsOf(low: Float32Array, scale: Float32Array, width: number, zero: Float32Array): void {
  for (let j = 0; j < width; j++) {
    const z = scale[j] === 0 ? 0 : fround(0 - fround(low[j] / scale[j]));
    zero[j] = Math.max(0, Math.min(15, Math.floor(z + 0.5)));
  }
}

/**
 * Do all values of a block come out in [-0.5, 30]? A scale that is rounded coarsely (subnormal in its format) or
 * saturates may put them outside.
 */
function inRange(low: number, high: number, reciprocal: number, zero: number): boolean {
  const a = fround(fround(low * reciprocal) + zero);
  const b = fround(fround(high * reciprocal) + zero);
  return Math.min(a, b) >= -0.5 && Math.max(a, b) <= 30;
}

// ---- inner loops: one call per row of a tile, so that each is compiled for itself
// ------------------------------------------------

/**
 * The value of largest magnitude, the negative one of two equal: float bits rotated left by one (magnitude above, sign
 * lowest) order so as unsigned numbers; the top bit is flipped to compare them as signed ones. Infinities and NaN come
 * out on top.
 */
function extremeKeys(ints: Int32Array, at: number, stride: number, width: number, best: Int32Array): void {
  for (let j = 0; j < width; j++, at += stride) {
    const bits = ints[at];
    best[j] = Math.max(best[j], ((bits << 1) | (bits >>> 31)) ^ 0x80000000);
  }
}

/** Four neighbours along k at once. */
function extremeKeys4(ints: Int32Array, at: number, strideK: number, stride: number, width: number, best: Int32Array): void {
  for (let j = 0; j < width; j++, at += stride) {
    const a = ints[at];
    const b = ints[at + strideK];
    const c = ints[at + 2 * strideK];
    const d = ints[at + 3 * strideK];
    const ab = Math.max(((a << 1) | (a >>> 31)) ^ 0x80000000, ((b << 1) | (b >>> 31)) ^ 0x80000000);
    const cd = Math.max(((c << 1) | (c >>> 31)) ^ 0x80000000, ((d << 1) | (d >>> 31)) ^ 0x80000000);
    best[j] = Math.max(best[j], Math.max(ab, cd));
  }
}

/**
 * Least and largest value with zero between: float bits with the magnitude of negative numbers inverted order as signed
 * numbers.
 */
function rangeKeys(ints: Int32Array, at: number, stride: number, width: number, low: Int32Array, high: Int32Array): void {
  for (let j = 0; j < width; j++, at += stride) {
    const bits = ints[at];
    const key = bits ^ ((bits >> 31) & 0x7fffffff);
    low[j] = Math.min(low[j], key);
    high[j] = Math.max(high[j], key);
  }
}

interface BlockState {
  readonly values: Float32Array;
  readonly strideN: number;
  readonly scale: Float32Array;
  readonly reciprocal: Float32Array;
  readonly zero: Float32Array;
  /** Signal and noise. */
  readonly sums: Float64Array;
}

/**
 * Codes of two neighbours along k. With finite reciprocals t is not below -0.5 (see `inRange`): truncation of t + 0.5
 * is roundf, clamped above.
 */
function encodePair(
  block: BlockState,
  at: number,
  strideK: number,
  width: number,
  out: Uint8Array,
  byte: number,
  blockBytes: number,
  flip: number,
): void {
  const { values, strideN, scale, reciprocal, zero, sums } = block;
  let signal = 0;
  let noise = 0;
  for (let j = 0, to = byte; j < width; j++, at += strideN, to += blockBytes) {
    const r = reciprocal[j];
    const z = zero[j];
    const s = scale[j];
    const a = values[at];
    const b = values[at + strideK];
    const qa = Math.min(15, (fround(fround(a * r) + z) + 0.5) | 0);
    const qb = Math.min(15, (fround(fround(b * r) + z) + 0.5) | 0);
    const ea = a - (qa - z) * s;
    const eb = b - (qb - z) * s;
    signal += a * a + b * b;
    noise += ea * ea + eb * eb;
    out[to] = (qa | (qb << 4)) ^ flip;
  }
  sums[0] += signal;
  sums[1] += noise;
}

/**
 * One k: the end of an odd row, or a scale so small that its reciprocal is infinite. An even k starts a byte whose
 * upper code is 0.
 */
function encodeOne(block: BlockState, at: number, width: number, out: Uint8Array, k: number, blockBytes: number, flip: number): void {
  const { values, strideN, scale, reciprocal, zero, sums } = block;
  for (let j = 0, to = k >> 1; j < width; j++, at += strideN, to += blockBytes) {
    const value = values[at];
    const t = fround(fround(value * reciprocal[j]) + zero[j]);
    const q = (t >= 15 ? 15 : t > 0 ? (t + 0.5) | 0 : 0) ^ (flip & 15);
    out[to] = k & 1 ? (out[to] & 15) | (q << 4) : q;
    const error = value - ((q ^ (flip & 15)) - zero[j]) * scale[j];
    sums[0] += value * value;
    sums[1] += error * error;
  }
}
