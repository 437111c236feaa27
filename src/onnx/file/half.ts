// Fast float32 <-> float16 conversion of arrays, round to nearest even (IEEE 754-2019 4.3.1), bit for bit what
// formats/float16 does one by one. Used where millions of weights are converted; the format's codec stays the
// definition (test/onnx/half.test.ts compares them).
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The float16 code nearest to a float32; overflow gives infinity, NaN stays NaN (quiet). */
export function encodeHalf(value: number): number {
  float[0] = value;
  const x = bits[0];
  const sign = (x >>> 16) & 0x8000;
  const magnitude = x & 0x7fffffff;
  if (magnitude >= 0x7f800000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and above round to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14 the result is subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low mantissa bits of
    // a float32 in [0.5, 1).
    float[0] = Math.abs(value) + 0.5;
    return sign | (bits[0] - 0x3f000000);
  }
  // Rebias the exponent by 127 - 15 = 112 and round the 13 dropped bits to even: add 0xfff plus the last kept bit.
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

let table: Float32Array | undefined;

/** All 65,536 float16 values as float32, by code. */
export function halfTable(): Float32Array {
  if (table !== undefined) return table;
  table = new Float32Array(65536);
  for (let code = 0; code < 65536; code++) {
    const exponent = (code >>> 10) & 31;
    const fraction = code & 1023;
    const magnitude =
      exponent === 31 ? (fraction === 0 ? Infinity : NaN) : exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
    table[code] = code < 0x8000 ? magnitude : -magnitude;
  }
  return table;
}
