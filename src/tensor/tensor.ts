// A tensor is a strided view of numbers, structurally a scijs ndarray: an ndarray is accepted as it is. No copy is made
// here.
import { LowbitError } from "../../formats/core/errors.ts";

/** Values of a tensor, row-major. */
export type TensorData = Float32Array | Float64Array;

/**
 * A view { data, shape, stride, offset }: element [i, j, ...] is data[offset + i * stride[0] + j * stride[1] + ...].
 */
export interface Tensor<T extends TensorData = TensorData> {
  readonly data: T;
  readonly shape: readonly number[];
  readonly stride: readonly number[];
  readonly offset: number;
}

/**
 * A row-major tensor over `data`; no copy.
 * @param shape one to eight positive sizes whose product is data.length
 * @throws TypeError if data is no Float32Array or Float64Array; LowbitError E_SHAPE if the sizes disagree
 * @example tensor(new Float32Array(6), [2, 3])
 */
export function tensor<T extends TensorData>(data: T, shape: readonly number[]): Tensor<T> {
  if (!(data instanceof Float32Array || data instanceof Float64Array))
    throw new TypeError(
      `tensor data: expected a Float32Array or Float64Array, got ${describe(data)}. Convert it with Float32Array.from(data).`,
    );
  if (!Array.isArray(shape)) throw new TypeError(`tensor shape: expected an array of sizes, got ${describe(shape)}. Pass [rows, k].`);
  const count = shape.reduce((n, d) => n * d, 1);
  if (shape.length < 1 || shape.length > 8 || shape.some((d) => !Number.isSafeInteger(d) || d < 1) || count !== data.length)
    throw new LowbitError(
      "E_SHAPE",
      `tensor shape: expected 1 to 8 positive sizes with product ${data.length}, got [${shape.join(", ")}]. Pass the sizes of the data, outermost first.`,
    );
  const stride = new Array<number>(shape.length);
  for (let i = shape.length - 1, s = 1; i >= 0; i--) {
    stride[i] = s;
    s *= shape[i];
  }
  return { data, shape: [...shape], stride, offset: 0 };
}

/**
 * The view with its dimensions permuted; default: reversed. A weight stored [k, n] becomes the matrix [n, k] that
 * `quantize` takes.
 * @throws LowbitError E_SHAPE if axes is no permutation
 * @example transpose(tensor(new Float32Array(6), [2, 3])).shape // [3, 2], of the same memory
 */
export function transpose<T extends TensorData>(t: Tensor<T>, axes?: readonly number[]): Tensor<T> {
  const order = axes ?? t.shape.map((_, i) => t.shape.length - 1 - i);
  const sorted = [...order].sort((a, b) => a - b);
  if (order.length !== t.shape.length || sorted.some((a, i) => a !== i))
    throw new LowbitError("E_SHAPE", `transpose axes: expected a permutation of 0..${t.shape.length - 1}, got [${order.join(", ")}].`);
  return { data: t.data, shape: order.map((a) => t.shape[a]), stride: order.map((a) => t.stride[a]), offset: t.offset };
}

/**
 * A tensor seen as a matrix [rows, k]: element [r, j] is data[offset + r * rowStride + (kOffsets ? kOffsets[j] : j *
 * kStride)].
 */
export interface MatrixView {
  readonly data: TensorData;
  readonly rows: number;
  readonly k: number;
  readonly offset: number;
  readonly rowStride: number;
  readonly kStride: number;
  /** Where the inner dimensions do not collapse into one stride. */
  readonly kOffsets: Float64Array | null;
  /** Rows that lie in no array (`data` is empty): copies [row, row + count) as [count, k] into `out`. */
  readonly read?: (row: number, count: number, out: TensorData) => void;
}

/**
 * [k] is one row; [rows, k] itself; more dimensions are [shape[0], product of the rest].
 * @throws TypeError if t is no tensor; RangeError for strides that are no integers; LowbitError E_SHAPE if the view
 * leaves its data
 */
export function matrixView(t: Tensor): MatrixView {
  const { data, shape, stride, offset } = checkTensor(t);
  const inner = shape.length === 1 ? [0] : shape.map((_, i) => i).slice(1);
  const rows = shape.length === 1 ? 1 : shape[0];
  const k = inner.reduce((n, i) => n * shape[i], 1);
  const rowStride = shape.length === 1 ? 0 : stride[0];
  // Dimensions of size 1 have no say; the others collapse if each stride is the next one's times its size.
  const live = inner.filter((i) => shape[i] > 1);
  const kStride = live.length === 0 ? 1 : stride[live[live.length - 1]];
  const collapses = live.every((d, i) => i === live.length - 1 || stride[d] === stride[live[i + 1]] * shape[live[i + 1]]);
  let kOffsets: Float64Array | null = null;
  if (!collapses) {
    kOffsets = new Float64Array(k);
    for (let j = 0; j < k; j++) {
      let rest = j;
      for (let i = inner.length - 1; i >= 0; i--) {
        const d = inner[i];
        kOffsets[j] += (rest % shape[d]) * stride[d];
        rest = Math.floor(rest / shape[d]);
      }
    }
  }
  return { data, rows, k, offset, rowStride, kStride, kOffsets };
}

function checkTensor(t: Tensor): Tensor {
  const ok =
    typeof t === "object" &&
    t !== null &&
    (t.data instanceof Float32Array || t.data instanceof Float64Array) &&
    Array.isArray(t.shape) &&
    Array.isArray(t.stride) &&
    t.stride.length === t.shape.length &&
    t.shape.length > 0;
  if (!ok)
    throw new TypeError(
      `tensor: expected { data: Float32Array | Float64Array, shape, stride, offset }, got ${describe(t)}. Make one with tensor(data, shape).`,
    );
  let [lo, hi] = [t.offset, t.offset];
  for (const [i, d] of t.shape.entries()) {
    if (!Number.isSafeInteger(d) || d < 1)
      throw new LowbitError("E_SHAPE", `tensor shape: expected positive sizes, got [${t.shape.join(", ")}].`);
    if (!Number.isSafeInteger(t.stride[i]))
      throw new RangeError(
        `tensor stride: expected integers, got [${t.stride.join(", ")}]. Strides count elements; make the view with tensor() and transpose().`,
      );
    if (t.stride[i] < 0) lo += (d - 1) * t.stride[i];
    else hi += (d - 1) * t.stride[i];
  }
  if (!(Number.isSafeInteger(lo) && Number.isSafeInteger(hi) && lo >= 0 && hi < t.data.length))
    throw new LowbitError(
      "E_SHAPE",
      `tensor view: expected elements within the ${t.data.length} numbers of data, got indices ${lo}..${hi}. Check shape, stride and offset.`,
    );
  return t;
}

function describe(x: unknown): string {
  return x === null ? "null" : typeof x === "object" ? (x.constructor?.name ?? "object") : typeof x;
}

/**
 * Copies rows [row, row + count) as [count, k] into out, which is row-major. Rows are read together so that a
 * transposed source is read by cache lines.
 */
export function readRows(m: MatrixView, row: number, count: number, out: TensorData): void {
  if (m.read !== undefined) {
    m.read(row, count, out);
    return;
  }
  const { data, k, kOffsets, kStride, rowStride } = m;
  const base = m.offset + row * rowStride;
  if (kOffsets !== null) {
    for (let r = 0; r < count; r++) for (let j = 0; j < k; j++) out[r * k + j] = data[base + r * rowStride + kOffsets[j]];
  } else if (kStride === 1) {
    for (let r = 0; r < count; r++) {
      const from = base + r * rowStride;
      out.set(data.subarray(from, from + k), r * k);
    }
  } else {
    for (let j = 0; j < k; j++) {
      const from = base + j * kStride;
      for (let r = 0; r < count; r++) out[r * k + j] = data[from + r * rowStride];
    }
  }
}
