// 8-bit codes of a weight in the arithmetic of onnxruntime's quantizer (quant_utils.compute_scale_zp and quantize_data): the layout stays,
// one scale for the tensor or one per channel. Ranges: signed symmetric -127..127, else -128..127; unsigned symmetric 0..254 (zero point
// 127), else 0..255. Zero is always inside the range.

export interface Int8Shape {
  /** Channels, and elements from one channel to the next and between neighbours inside: channels 1 is the whole tensor. */
  readonly channels: number;
  readonly signed: boolean;
  readonly symmetric: boolean;
}

export interface Int8Weight {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  /** One byte per scale: int8 or uint8, as the codes. */
  readonly zeroPoints: Uint8Array;
  readonly signal: number;
  readonly noise: number;
}

const FLT_MIN = 2 ** -126;
/** Adding and subtracting 1.5 * 2^52 rounds a double below 2^51 to the nearest whole number, ties to even. */
const MAGIC = 1.5 * 2 ** 52;
const rint = (value: number): number => value + MAGIC - MAGIC;

/**
 * Quantizes `values`, seen as [outer, channels, inner] (channel c of outer o starts at (o * channels + c) * inner): a matrix [K, N] by column
 * is outer K, inner 1; a convolution weight by output channel is outer 1, inner I * kh * kw.
 */
export function quantizeInt8(values: Float32Array, inner: number, shape: Int8Shape): Int8Weight {
  const { channels, signed, symmetric } = shape;
  const outer = values.length / (channels * inner);
  const low = new Float32Array(channels);
  const high = new Float32Array(channels);
  for (let o = 0, i = 0; o < outer; o++) {
    for (let c = 0; c < channels; c++) {
      let min = low[c];
      let max = high[c];
      for (let end = i + inner; i < end; i++) {
        const value = values[i];
        if (value < min) min = value;
        if (value > max) max = value;
      }
      low[c] = min;
      high[c] = max;
    }
  }
  const codeMin = signed ? -128 : 0;
  const codeMax = codeMin + 255;
  const rangeMin = signed ? (symmetric ? -127 : -128) : 0;
  const rangeMax = signed ? 127 : symmetric ? 254 : 255;
  const scales = new Float32Array(channels);
  const zeros = new Int32Array(channels);
  for (let c = 0; c < channels; c++) {
    const extreme = Math.max(-low[c], high[c]);
    const min = symmetric ? -extreme : low[c];
    const max = symmetric ? extreme : high[c];
    const scale = Math.fround(max - min) / (rangeMax - rangeMin);
    if (scale < FLT_MIN) scales[c] = 1;
    else {
      scales[c] = scale;
      zeros[c] = symmetric ? (rangeMin + rangeMax) >> 1 : rint(rangeMin - min / scale);
    }
  }
  const codes = new Uint8Array(values.length);
  let signal = 0;
  let noise = 0;
  for (let o = 0, i = 0; o < outer; o++) {
    for (let c = 0; c < channels; c++) {
      const scale = scales[c];
      const zero = zeros[c];
      for (let end = i + inner; i < end; i++) {
        const value = values[i];
        let code = rint(Math.fround(value / scale)) + zero;
        if (code < codeMin) code = codeMin;
        else if (code > codeMax) code = codeMax;
        codes[i] = code; // modulo 256: two's complement of the signed codes
        const error = value - (code - zero) * scale;
        signal += value * value;
        noise += error * error;
      }
    }
  }
  return { codes, scales, zeroPoints: Uint8Array.from(zeros), signal, noise };
}

/** [rows, columns] transposed. */
export function transposed(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = values[r * columns + c];
  return out;
}
