// The numbers of quantized weights in the operators that hold them: codes, scales and zero points to float32, one
// rounding each, as onnxruntime computes them. Layouts: onnxruntime docs/ContribOperators.md (MatMulNBits, MatMulBnb4,
// GatherBlockQuantized).
import { bnb_fp4 } from "../../../formats/bnb_fp4.ts";
import { nf4 } from "../../../formats/nf4.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";

/** A constant input of a node, as numbers. */
export interface Numbers {
  readonly data: ArrayLike<number>;
  readonly shape: readonly number[];
  readonly dataType: number;
}

const fround = Math.fround;

/** Code `i` of a row of packed bytes, lowest bits first. */
const codeAt = (bytes: ArrayLike<number>, at: number, i: number, bits: number): number => {
  const perByte = 8 / bits;
  return (bytes[at + Math.floor(i / perByte)] >> ((i % perByte) * bits)) & (2 ** bits - 1);
};

export interface BlocksOf {
  readonly rows: number;
  readonly k: number;
  readonly bits: number;
  readonly blockSize: number;
}

/**
 * MatMulNBits: the weight as [K, N], the operand of a MatMul.
 * @param zeroPoints packed (uint8), or of the scales' type, one a block
 */
export function nbitsValues(
  { rows, k, bits, blockSize }: BlocksOf,
  codes: Numbers,
  scales: Numbers,
  zeroPoints: Numbers | null,
): Float32Array<ArrayBuffer> {
  const blocks = Math.ceil(k / blockSize);
  const blob = (blockSize * bits) / 8;
  const zeroBytes = Math.ceil((blocks * bits) / 8);
  const out = new Float32Array(rows * k);
  for (let n = 0; n < rows; n++)
    for (let b = 0; b < blocks; b++) {
      const scale = scales.data[n * blocks + b];
      const zero =
        zeroPoints === null
          ? 2 ** (bits - 1)
          : zeroPoints.dataType === T.UINT8
            ? codeAt(zeroPoints.data, n * zeroBytes, b, bits)
            : zeroPoints.data[n * blocks + b];
      const at = (n * blocks + b) * blob;
      for (let j = b * blockSize; j < Math.min(k, (b + 1) * blockSize); j++)
        out[j * rows + n] = fround(codeAt(codes.data, at, j - b * blockSize, bits) - zero) * scale;
    }
  return out;
}

/** QMoE: the weights of all experts as [rows, k]; scales and zero points lie in order, without gaps between rows. */
export function blockValues(
  { rows, k, bits, blockSize }: BlocksOf,
  codes: Numbers,
  scales: Numbers,
  zeroPoints: Numbers | null,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(rows * k);
  for (let i = 0; i < out.length; i++) {
    const block = Math.floor(i / blockSize);
    const zero = zeroPoints === null ? 2 ** (bits - 1) : codeAt(zeroPoints.data, 0, block, bits);
    out[i] = fround(codeAt(codes.data, 0, i, bits) - zero) * scales.data[block];
  }
  return out;
}

/**
 * MatMulBnb4: the weight as [K, N]. The first of two codes lies in the high nibble; blocks run over the flattened [N,
 * K].
 */
export function bnb4Values(
  { rows, k, blockSize }: Omit<BlocksOf, "bits">,
  codes: Numbers,
  absmax: Numbers,
  quantType: number,
): Float32Array<ArrayBuffer> {
  const { table } = quantType === 0 ? bnb_fp4 : nf4;
  const out = new Float32Array(rows * k);
  for (let i = 0; i < out.length; i++) {
    const code = (codes.data[i >> 1] >> (i & 1 ? 0 : 4)) & 15;
    out[(i % k) * rows + Math.floor(i / k)] = table![code] * absmax.data[Math.floor(i / blockSize)];
  }
  return out;
}

/**
 * GatherBlockQuantized: the table in its own shape.
 * @param perByte codes in an element of `codes`: 2 where 4-bit codes are stored as uint8
 */
export function tableValues(
  codes: Numbers,
  scales: Numbers,
  zeroPoints: Numbers | null,
  { axis, blockSize, perByte, zero }: { axis: number; blockSize: number; perByte: number; zero: number },
): { values: Float32Array<ArrayBuffer>; shape: number[] } {
  const shape = codes.shape.map((size, i) => (i === codes.shape.length - 1 ? size * perByte : size));
  const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const size = shape[axis];
  const blocks = Math.ceil(size / blockSize);
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
  const bits = 8 / perByte;
  const read = (data: ArrayLike<number>, i: number, width: number): number =>
    perByte === 1 ? data[i] : codeAt(data, Math.floor(i / width) * Math.ceil(width / perByte), i % width, bits);
  for (let i = 0; i < values.length; i++) {
    const along = Math.floor(i / inner) % size;
    const group = (Math.floor(i / (inner * size)) * blocks + Math.floor(along / blockSize)) * inner + (i % inner);
    const code = read(codes.data, i, values.length); // rows are whole bytes
    values[i] = fround(code - (zeroPoints === null ? zero : read(zeroPoints.data, group, blocks))) * scales.data[group];
  }
  return { values, shape };
}

/**
 * Integer weights with one scale and zero point per tensor or per output channel.
 * @param axis the axis of the channels
 */
export function integerValues(codes: Numbers, scales: Numbers, zeroPoints: Numbers | null, axis: number): Float32Array<ArrayBuffer> {
  const inner = codes.shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const channels = codes.shape[axis] ?? 1;
  const pick = ({ data }: Numbers, channel: number): number => data[data.length === 1 ? 0 : channel];
  return Float32Array.from(codes.data, (code, i) => {
    const channel = Math.floor(i / inner) % channels;
    return fround(code - (zeroPoints === null ? 0 : pick(zeroPoints, channel))) * pick(scales, channel);
  });
}
