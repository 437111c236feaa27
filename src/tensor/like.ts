// Tensors of other libraries as views: { data, dims } of onnxruntime and transformers.js, { data, shape, stride, offset
// } of scijs. Floats are not copied; other numbers become floats that hold them exactly.
import { LowbitError } from "../../formats/core/errors.ts";
import { decodeArray } from "../../formats/core/bulk.ts";
import { float16 } from "../../formats/float16.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { dequantize, type DequantizeOptions } from "./dequantize.ts";
import { tensor as tensorOf, type Tensor, type TensorData } from "./tensor.ts";

/** Numbers as other libraries hold them. */
export type NumberData =
  | TensorData
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array
  | readonly number[];

/** A tensor of onnxruntime or transformers.js (`dims`), or an ndarray (`shape`, `stride`, `offset`). */
export interface TensorLike {
  readonly data: unknown;
  readonly dims?: readonly number[];
  readonly shape?: readonly number[];
  readonly stride?: readonly number[];
  readonly offset?: number;
  /** Element type, as onnxruntime names it: "float16" says that a Uint16Array holds codes. */
  readonly type?: string;
}

const describe = (x: unknown): string => (x === null ? "null" : typeof x === "object" ? (x.constructor?.name ?? "object") : typeof x);

/** The numbers of `data` as floats: float32 where those hold every value of the type, else float64. */
function floats(data: unknown, type: string | undefined): TensorData {
  if (data instanceof Float32Array || data instanceof Float64Array) return data;
  // Float16Array of newer engines
  if (describe(data) === "Float16Array") return Float32Array.from(data as ArrayLike<number>);
  if (data instanceof Uint16Array && type === "float16") return decodeArray(float16, data, new Float32Array(data.length)) as Float32Array;
  if (data instanceof BigInt64Array || data instanceof BigUint64Array)
    return Float64Array.from(data as ArrayLike<bigint>, (v) => {
      if (BigInt(Number(v)) !== v) throw new RangeError(`tensor data: expected integers that float64 holds, got ${v}. Scale them first.`);
      return Number(v);
    });
  if (data instanceof Int32Array || data instanceof Uint32Array) return Float64Array.from(data);
  if (ArrayBuffer.isView(data) && !(data instanceof DataView)) return Float32Array.from(data as unknown as ArrayLike<number>);
  if (Array.isArray(data) && data.every((v) => typeof v === "number")) return Float64Array.from(data);
  throw new TypeError(
    `tensor data: expected numbers in a typed array, got ${describe(data)}. Read the data of the tensor from its device first.`,
  );
}

/** A view of a tensor-like. @throws TypeError, LowbitError E_SHAPE */
export function fromLike(like: TensorLike): Tensor {
  const shape = like.dims ?? like.shape;
  if (shape === undefined || !Array.isArray(Array.from(shape)))
    throw new TypeError(
      `tensor: expected { data, dims } or { data, shape, stride, offset }, got ${Object.keys(like).slice(0, 6).join(", ") || "nothing"}.`,
    );
  const data = floats(like.data, like.type);
  const { stride, offset = 0 } = like;
  if (like.dims !== undefined || stride === undefined) return tensorOf(data, [...shape]);
  const view = { data, shape: [...shape], stride: [...stride], offset };
  const reach = view.shape.reduce(
    ([lo, hi], d, i) => (view.stride[i] < 0 ? [lo + (d - 1) * view.stride[i], hi] : [lo, hi + (d - 1) * view.stride[i]]),
    [offset, offset],
  );
  const whole = view.stride.length === view.shape.length && [...view.shape, ...view.stride, offset].every(Number.isSafeInteger);
  if (!whole || view.shape.length < 1 || view.shape.some((d) => d < 1) || reach[0] < 0 || reach[1] >= data.length)
    throw new LowbitError(
      "E_SHAPE",
      `tensor view: expected elements within the ${data.length} numbers of data, got [${view.shape.join(", ")}] by [${view.stride.join(", ")}] from ${offset}.`,
    );
  return view;
}

/**
 * A row-major tensor over `data`; no copy. Or a view of a tensor of another library: `{ data, dims }` of onnxruntime
 * and transformers.js, an ndarray of any strides. Floats are viewed, other numbers converted to floats that hold them
 * (float16 codes by `type: "float16"`).
 * @param shape one to eight positive sizes whose product is data.length
 * @throws TypeError if data is no Float32Array or Float64Array; LowbitError E_SHAPE if the sizes disagree
 * @example
 * tensor(new Float32Array(6), [2, 3]).shape // [2, 3]
 * tensor({ data: Float32Array.of(1, 2), dims: [1, 2] }).shape // [1, 2]: a tensor of onnxruntime
 */
export function tensor<T extends TensorData>(data: T, shape: readonly number[]): Tensor<T>;
export function tensor(like: TensorLike): Tensor;
export function tensor(data: TensorData | TensorLike, shape?: readonly number[]): Tensor {
  const isLike = shape === undefined && typeof data === "object" && data !== null && !ArrayBuffer.isView(data) && "data" in data;
  return isLike ? fromLike(data) : tensorOf(data as TensorData, shape as readonly number[]);
}

/**
 * The values of a packed tensor as an ndarray of scijs, in its shape: `ndarray(t.data, t.shape, t.stride, t.offset)`
 * makes it one with methods.
 * @example const { data, shape, stride, offset } = toNdarray(packed);
 */
export function toNdarray(w: PackedTensor, options: DequantizeOptions & { readonly dtype: "float64" }): Tensor<Float64Array>;
export function toNdarray(w: PackedTensor, options?: DequantizeOptions): Tensor<Float32Array>;
export function toNdarray(w: PackedTensor, options: DequantizeOptions = {}): Tensor {
  return tensorOf(dequantize(w, options as { dtype?: "float32" }), w.shape);
}
