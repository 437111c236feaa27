// Weights that no array holds: rows are read from the file in bands, as many at a time as suit the memory. Runs of
// stored values become runs of a band, whatever the operator's storage: rows that lie one after the other (Gemm,
// Gather, Conv), or columns (MatMul).
import type { BandSource } from "../tensor/quantize/bands.ts";
import type { TensorProto } from "./file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import { halfTable } from "./file/half.ts";
import type { OnnxModel } from "./file/model.ts";
import { tensorDims, tensorPayload } from "./file/model.ts";
import type { Payload } from "./file/source.ts";
import { ARRAY_MAX, isFloatType, readFloats, type Scratch } from "./file/values.ts";
import { constantView } from "./graph/constant-values.ts";
import type { ConstantView } from "./graph/constant-types.ts";
import type { Layer } from "./layers.ts";
import { commonStride, type LayerMatrix } from "./matrix.ts";

/** Bytes as float32 from which a weight is read in bands, and those of a band. Tests lower them. */
export const BANDS = { above: ARRAY_MAX, bytes: 64 << 20 };

const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Is the weight too large to be read as one array? */
export const isLarge = ({ shape }: Pick<ConstantView, "shape">): boolean => 4 * count(shape) > BANDS.above;

/** Stored values that can be read in parts: fixed widths, one after the other. */
interface Stored {
  readonly length: number;
  /** Values [at, at + n) into `out` from `to`. */
  read(at: number, n: number, out: Float32Array, to: number): void;
}

const WIDTHS: ReadonlyMap<number, number> = new Map([
  [T.FLOAT, 4],
  [T.FLOAT16, 2],
  [T.BFLOAT16, 2],
  [T.DOUBLE, 8],
]);
/** Fields of TensorProto that hold values in fixed widths: float_data, raw_data (and external data), double_data. */
const FIXED: ReadonlySet<number> = new Set([4, 9, 10]);

function tensorPart(model: OnnxModel, tensor: TensorProto): Payload | undefined {
  const payload = isFloatType(tensor.dataType) ? tensorPayload(model, tensor) : undefined;
  return payload !== undefined && FIXED.has(payload.field) ? payload : undefined;
}

/** The bytes of a constant that can be read in parts: in fixed widths, one value after the other. */
export const storedPayload = (model: OnnxModel, { source }: ConstantView): Payload | undefined =>
  source.kind === "stored" ? tensorPart(model, source.tensor) : undefined;

/** Bytes into float32 values. */
function convert(type: number, bytes: Uint8Array, out: Float32Array, to: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const n = bytes.length / WIDTHS.get(type)!;
  if (type === T.FLOAT16) {
    const table = halfTable();
    for (let i = 0; i < n; i++) out[to + i] = table[view.getUint16(2 * i, true)];
  } else if (type === T.BFLOAT16) {
    const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
    for (let i = 0; i < n; i++) bits[to + i] = view.getUint16(2 * i, true) << 16;
  } else for (let i = 0; i < n; i++) out[to + i] = view.getFloat64(8 * i, true);
}

function storedValues(type: number, payload: Payload): Stored {
  const width = WIDTHS.get(type)!;
  const { source, offset } = payload;
  let scratch = new Uint8Array(0);
  return {
    length: payload.length / width,
    read(at, n, out, to) {
      const plain = type === T.FLOAT;
      const bytes = n * width;
      if (!plain && scratch.length < bytes) scratch = new Uint8Array(bytes);
      const into = plain ? new Uint8Array(out.buffer, out.byteOffset + 4 * to, bytes) : scratch;
      const got = source.read(offset + at * width, bytes, into);
      if (!plain) convert(type, got, out, to);
      else if (got.buffer !== into.buffer) into.set(got);
    },
  };
}

/** Why a large weight cannot be read in bands; undefined where it can, or need not. */
export function bandReason(model: OnnxModel, layer: Layer, matrix: LayerMatrix): string | undefined {
  const { weight } = layer;
  if (weight === null || !isLarge(weight)) return undefined;
  if (storedPayload(model, weight) === undefined)
    return weight.source.kind === "stored"
      ? "the weight passes 2 GiB and is not stored as raw or external data"
      : `the weight passes 2 GiB and is not stored as it is read (${weight.via?.opType ?? "sparse"})`;
  return readsBands(model, layer, matrix) ? undefined : "the weight passes 2 GiB and neither its rows nor its columns lie together";
}

/** Bytes as float32 of what is read of a file at a time where values are only looked at. */
const PART = 1 << 20;

/** Is it read in parts? What is in memory is there already, unless no array holds it. */
const inPieces = (payload: Payload | undefined, shape: readonly number[]): payload is Payload =>
  payload !== undefined && (isLarge({ shape }) || payload.source.fd !== undefined);

/**
 * Visits all numbers of a constant, in the order in which they are stored: all at once, or of a file in parts.
 * What was visited before may be overwritten.
 */
export function forValues(model: OnnxModel, constant: ConstantView, visit: (values: Float32Array) => void): void {
  const payload = storedPayload(model, constant);
  if (inPieces(payload, constant.shape)) inParts(constant.tensor.dataType, payload, visit);
  else visit(constantView(model, constant).data);
}

/** The same of a float tensor. */
export function forFloats(model: OnnxModel, tensor: TensorProto, visit: (values: Float32Array) => void, scratch?: Scratch): void {
  const payload = isLarge({ shape: tensorDims(tensor) }) ? tensorPart(model, tensor) : undefined;
  if (payload === undefined) visit(readFloats(model, tensor, scratch));
  else inParts(tensor.dataType, payload, visit);
}

function inParts(type: number, payload: Payload, visit: (values: Float32Array) => void): void {
  const stored = storedValues(type, payload);
  const part = new Float32Array(Math.min(stored.length, PART / 4));
  for (let at = 0; at < stored.length; at += part.length) {
    const n = Math.min(part.length, stored.length - at);
    stored.read(at, n, part, 0);
    visit(part.subarray(0, n));
  }
}

/** The first number of a constant that satisfies `wanted`, in the order in which they are stored. */
export function findValue(model: OnnxModel, constant: ConstantView, wanted: (value: number) => boolean): number | undefined {
  let found: number | undefined;
  forValues(model, constant, (values) => (found ??= values.find(wanted)));
  return found;
}

/** Can the rows of a layer's matrix be read a few at a time? */
export function readsBands(model: OnnxModel, { weight }: Layer, { rowOffsets, columnOffsets }: LayerMatrix): boolean {
  return (
    storedPayload(model, weight!) !== undefined && (commonStride(columnOffsets) === 1 || commonStride(rowOffsets.subarray(0, 2)) === 1)
  );
}

/** The rows of a layer's matrix in bands. @param bytes of a band as float32 */
export function layerBands(model: OnnxModel, layer: Layer, matrix: LayerMatrix, bytes: number = BANDS.bytes): BandSource {
  const weight = layer.weight!;
  const { rows, k, shape, factor, rowOffsets, columnOffsets } = matrix;
  const { read } = storedValues(weight.tensor.dataType, storedPayload(model, weight)!);
  const bandRows = Math.min(rows, Math.max(16, Math.floor(bytes / 4 / k / 16) * 16));
  const data = new Float32Array(bandRows * k);
  const inRows = commonStride(columnOffsets) === 1;
  /** How many rows from `row` on lie `step` apart, up to `end`. */
  const runFrom = (row: number, end: number, step: number): number => {
    let n = 1;
    while (row + n < end && rowOffsets[row + n] - rowOffsets[row + n - 1] === step) n++;
    return n;
  };
  return {
    shape: [rows, ...shape.slice(1)],
    rows,
    k,
    bandRows,
    band(row, rowCount) {
      for (let r = row; r < row + rowCount;) {
        const n = runFrom(r, row + rowCount, inRows ? k : 1);
        if (inRows) read(rowOffsets[r], n * k, data, (r - row) * k);
        else for (let j = 0; j < k; j++) read(rowOffsets[r] + columnOffsets[j], n, data, j * rowCount + r - row);
        r += n;
      }
      const values = data.subarray(0, rowCount * k);
      if (factor !== 1) for (let i = 0; i < values.length; i++) values[i] *= factor;
      return { data: values, ...strided(rowCount, k, inRows, shape), offset: 0 };
    },
  };
}

/** Shape and strides of a band, which is row-major, or column-major for a matrix that is stored so. */
function strided(rows: number, k: number, inRows: boolean, shape: readonly number[]): { shape: number[]; stride: number[] } {
  const inner = shape.slice(1);
  const step = inRows ? 1 : rows;
  return { shape: [rows, ...inner], stride: [inRows ? k : 1, ...inner.map((_, i) => step * count(inner.slice(i + 1)))] };
}
