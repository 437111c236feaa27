// MatMulNBits weights as onnxruntime's MLAS makes them (4 bits, quantizeAndTranspose), written from the rule alone,
// column by column, with every float32 step rounded by a Float32Array cell. Imports nothing of the library.

const cell = new Float32Array(1);
const f32 = (x: number): number => {
  cell[0] = x;
  return cell[0];
};
/** C's roundf: half away from zero. */
const roundf = (x: number): number => Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
const clamp = (x: number): number => (x <= 0 ? 0 : x > 15 ? 15 : x);

export interface MatMulNBitsOracle {
  /** [n][block][k in block]: codes 0..15 */
  readonly codes: number[][][];
  readonly scales: number[][];
  readonly zeroPoints: number[][];
  /** The three inputs of the operator, as bytes. */
  readonly b: Uint8Array;
  readonly zp: Uint8Array;
}

/** w: [k][n], row-major. */
export function matMulNBitsOracle(w: Float32Array, k: number, n: number, blockSize: number, symmetric: boolean): MatMulNBitsOracle {
  const blocks = Math.ceil(k / blockSize);
  const codes: number[][][] = [];
  const scales: number[][] = [];
  const zeroPoints: number[][] = [];
  const b = new Uint8Array((n * blocks * blockSize) / 2);
  const zpRow = Math.ceil(blocks / 2);
  const zp = new Uint8Array(n * zpRow);
  for (let col = 0; col < n; col++) {
    codes.push([]);
    scales.push([]);
    zeroPoints.push([]);
    for (let block = 0; block < blocks; block++) {
      const column: number[] = [];
      for (let i = block * blockSize; i < Math.min(k, (block + 1) * blockSize); i++) column.push(w[i * n + col]);
      let min = Math.min(...column);
      let max = Math.max(...column);
      let scale: number;
      let zero = 8;
      if (symmetric) scale = f32((Math.abs(max) > Math.abs(min) ? max : min) / -8);
      else {
        min = Math.min(min, 0);
        max = Math.max(max, 0);
        scale = f32(f32(max - min) / 15);
        zero = clamp(roundf(scale !== 0 ? f32(0 - f32(min / scale)) : min));
      }
      const reciprocal = scale !== 0 ? f32(1 / scale) : 0;
      const block16 = column.map((x) => clamp(roundf(f32(f32(x * reciprocal) + zero))));
      codes[col].push(block16);
      scales[col].push(scale);
      zeroPoints[col].push(zero);
      for (let i = 0; i < blockSize; i++) {
        // After an odd K the zero point fills the byte; after an even one zeros follow.
        const odd = block16.length % 2 === 1 && i === block16.length;
        const code = i < block16.length ? block16[i] : odd ? zero : 0;
        b[((col * blocks + block) * blockSize + i) >> 1] |= code << ((i & 1) * 4);
      }
      zp[col * zpRow + (block >> 1)] |= zero << ((block & 1) * 4);
    }
    if (blocks % 2 === 1) zp[col * zpRow + zpRow - 1] |= 8 << 4;
  }
  return { codes, scales, zeroPoints, b, zp };
}
