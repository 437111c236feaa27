// 4-bit blocks along K in the layout and arithmetic of onnxruntime's MLAS (quantizeAndTranspose): byte for byte what its Python tool writes.
// Every step is float32. Symmetric: the extreme of larger magnitude, sign kept, maps to code 0 (-8): scale = extreme / -8, zero point 8.
// Asymmetric: zero is inside [min, max], scale = (max - min) / 15. Codes round half away from zero.
import { encodeHalf, halfTable } from "../half.ts";

export interface NBitsShape {
  readonly k: number;
  readonly n: number;
  /** Elements between neighbours along k and along n. */
  readonly strideK: number;
  readonly strideN: number;
  readonly blockSize: number;
  readonly symmetric: boolean;
  /** Scales are stored as float16 and rounded before codes are made. */
  readonly halfScales: boolean;
}

export interface NBits {
  /** [n, blocks, blockSize / 2] */
  readonly codes: Uint8Array;
  /** [n, blocks], float32 or float16, little-endian */
  readonly scales: Uint8Array;
  /** [n, ceil(blocks / 2)], or null where symmetric */
  readonly zeroPoints: Uint8Array | null;
  readonly format: string;
  /** Sum of squares of the weights, and of the errors. */
  readonly signal: number;
  readonly noise: number;
}

const fround = Math.fround;
/** Columns worked on together: their 2 x 16 bytes of codes stay in the first-level cache while a block's rows stream by. */
const TILE = 256;

export function quantizeNBits(values: Float32Array, shape: NBitsShape): NBits {
  const { k, n, strideK, strideN, blockSize, symmetric, halfScales } = shape;
  const blocks = Math.ceil(k / blockSize);
  const rowBytes = (blocks * blockSize) / 2;
  const codes = new Uint8Array(n * rowBytes);
  const scales = new Float32Array(n * blocks);
  // A zero point that no block uses is 8, as in the tool's output.
  const zeroPoints = symmetric ? null : new Uint8Array(n * Math.ceil(blocks / 2)).fill(0x88);
  const low = new Float32Array(TILE);
  const high = new Float32Array(TILE);
  const scale = new Float32Array(TILE);
  const reciprocal = new Float32Array(TILE);
  const zero = new Float32Array(TILE);
  const half = halfScales ? halfTable() : null;
  let signal = 0;
  let noise = 0;

  for (let n0 = 0; n0 < n; n0 += TILE) {
    const width = Math.min(TILE, n - n0);
    for (let block = 0; block < blocks; block++) {
      const k0 = block * blockSize;
      const k1 = Math.min(k, k0 + blockSize);
      const first = k0 * strideK + n0 * strideN;
      for (let j = 0; j < width; j++) low[j] = high[j] = symmetric ? values[first + j * strideN] : 0;
      for (let row = k0; row < k1; row++) {
        let at = row * strideK + n0 * strideN;
        for (let j = 0; j < width; j++, at += strideN) {
          const value = values[at];
          if (value < low[j]) low[j] = value;
          if (value > high[j]) high[j] = value;
        }
      }
      for (let j = 0; j < width; j++) {
        let s: number;
        if (symmetric) s = fround((Math.abs(high[j]) > Math.abs(low[j]) ? high[j] : low[j]) / -8);
        else s = fround(fround(high[j] - low[j]) / 15);
        if (half !== null) s = half[encodeHalf(s)];
        scale[j] = s;
        reciprocal[j] = s === 0 ? 0 : 1 / s;
        scales[(n0 + j) * blocks + block] = s;
        if (zeroPoints === null) zero[j] = 8;
        else {
          const z = s === 0 ? low[j] : fround(0 - fround(low[j] / s));
          zero[j] = Math.max(0, Math.min(15, Math.floor(z + 0.5)));
          const at = (n0 + j) * Math.ceil(blocks / 2) + (block >> 1);
          zeroPoints[at] = block & 1 ? (zeroPoints[at] & 15) | (zero[j] << 4) : (zeroPoints[at] & 240) | zero[j];
        }
      }
      for (let row = k0; row < k1; row++) {
        const shift = (row & 1) * 4;
        let at = row * strideK + n0 * strideN;
        let to = n0 * rowBytes + (row >> 1);
        for (let j = 0; j < width; j++, at += strideN, to += rowBytes) {
          const value = values[at];
          const v = fround(fround(value * reciprocal[j]) + zero[j]);
          // roundf, then clamp to 0..15: below 0.5 everything is 0, so truncation of v + 0.5 is enough.
          const code = v >= 15 ? 15 : v > 0 ? (v + 0.5) | 0 : 0;
          codes[to] |= code << shift;
          const error = value - (code - zero[j]) * scale[j];
          signal += value * value;
          noise += error * error;
        }
      }
      // An odd K leaves the high nibble of the last byte: the zero point stands there, as in the tool's output.
      if (k1 === k && (k & 1) === 1) {
        for (let j = 0; j < width; j++) codes[(n0 + j) * rowBytes + (k >> 1)] |= zero[j] << 4;
      }
    }
  }
  const stored = half === null ? scales : Uint16Array.from(scales, encodeHalf);
  const suffix = `b${blockSize}${half === null ? "" : "_float16"}`;
  return {
    codes,
    scales: new Uint8Array(stored.buffer),
    zeroPoints,
    format: symmetric ? `int4_${suffix}` : `uint4_${suffix}_zp`,
    signal,
    noise,
  };
}
