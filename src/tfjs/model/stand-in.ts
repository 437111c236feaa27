// Tensors of tfjs whose values stay packed. Their data lies in a backend of ours, from which tfjs moves data to the
// backend in use where an operation asks for it; products, reshapes and lookups of rows are taken before that and
// computed from the packed weight. What has no such kernel gets the decoded values, once, and the weight is dense then.
import * as tf from "@tensorflow/tfjs-core";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { dequantize } from "../../tensor/dequantize.ts";
import { gatherRows } from "../../tensor/gather.ts";
import { packedMatMul, type PackedOptions } from "../matmul.ts";
import { backend, panels } from "../weights.ts";

/** A packed weight and the axis of the tensor that its rows are. */
interface Held {
  readonly w: PackedTensor;
  readonly rows: 0 | 1;
  readonly options: PackedOptions;
  references: number;
}

const held = new Map<object, Held>();

function values({ w, rows }: Held): Float32Array {
  const dense = dequantize(w, { backend: backend() });
  if (rows === 0) return dense;
  const out = new Float32Array(dense.length);
  for (let r = 0; r < w.rows; r++) for (let j = 0; j < w.k; j++) out[j * w.rows + r] = dense[r * w.k + j];
  return out;
}

const found = (dataId: object): Held => {
  const entry = held.get(dataId);
  if (entry === undefined) throw new Error("a packed weight that was disposed");
  return entry;
};

/** What of a backend tfjs asks for data that lie elsewhere. */
const storage = {
  readSync: (dataId: object) => values(found(dataId)),
  read: (dataId: object) => Promise.resolve(values(found(dataId))),
  refCount: (dataId: object) => held.get(dataId)?.references ?? 0,
  incRef: (dataId: object) => void found(dataId).references++,
  disposeData(dataId: object, force = false) {
    const entry = held.get(dataId);
    if (entry === undefined) return true;
    if (!force && --entry.references > 0) return false;
    held.delete(dataId);
    return true;
  },
  numDataIds: () => held.size,
};

/** A tensor [inputs, outputs] (rows 1) or [outputs, inputs] (rows 0) that stands for a packed weight. */
export function standIn(w: PackedTensor, rows: 0 | 1, options: PackedOptions): tf.Tensor {
  const dataId = {};
  held.set(dataId, { w, rows, options, references: 1 });
  const shape = rows === 0 ? [w.rows, w.k] : [w.k, w.rows];
  return tf.engine().makeTensorFromDataId(dataId, shape, "float32", storage as unknown as tf.KernelBackend);
}

/** Is the weight of a tensor still packed? */
export const isPacked = (t: tf.TensorInfo): boolean => held.has(t.dataId);

type Inputs = Readonly<Record<string, tf.TensorInfo | undefined>>;
type Attributes = Readonly<Record<string, unknown>>;
type Taken = (inputs: Inputs, attrs: Attributes) => tf.TensorInfo | null;

/** a[..., m, k] times a weight; null where it is no product of rows. */
function product(inputs: Inputs, attrs: Attributes): tf.Tensor | null {
  const [a, b] = [inputs.a as tf.Tensor, inputs.b!];
  const entry = held.get(b.dataId);
  if (entry === undefined || attrs.transposeA === true || b.shape.slice(0, -2).some((d) => d !== 1)) return null;
  const { w, rows, options } = entry;
  const forward = (rows === 0) === (attrs.transposeB === true);
  if (forward) return packedMatMul(a, w, options);
  // x W: the sum over panels of rows
  return tf.tidy(() => {
    const flat = tf.reshape(a, [-1, w.rows]) as tf.Tensor2D;
    let sum: tf.Tensor | undefined;
    panels(w, (row, count, part) => {
      const slice = tf.slice(flat, [0, row], [flat.shape[0], count]);
      const term = tf.matMul(slice, tf.tensor2d(part.slice(), [count, w.k]));
      sum = sum === undefined ? term : tf.add(sum, term);
    });
    return tf.reshape(sum!, [...a.shape.slice(0, -1), w.k]);
  });
}

const ACTIVATIONS: ReadonlyMap<string, (x: tf.Tensor, inputs: Inputs, attrs: Attributes) => tf.Tensor> = new Map([
  ["linear", (x) => x],
  ["relu", (x) => tf.relu(x)],
  ["relu6", (x) => tf.relu6(x)],
  ["elu", (x) => tf.elu(x)],
  ["sigmoid", (x) => tf.sigmoid(x)],
  ["prelu", (x, { preluActivationWeights }) => tf.prelu(x, preluActivationWeights as tf.Tensor)],
  ["leakyrelu", (x, _, { leakyreluAlpha }) => tf.leakyRelu(x, leakyreluAlpha as number)],
]);

function fused(inputs: Inputs, attrs: Attributes): tf.TensorInfo | null {
  const activation = ACTIVATIONS.get((attrs.activation as string | null | undefined) ?? "linear");
  if (activation === undefined || !held.has(inputs.b!.dataId)) return null;
  return tf.tidy(() => {
    const y = product(inputs, attrs);
    if (y === null) return null as unknown as tf.Tensor;
    return activation(inputs.bias === undefined || inputs.bias === null ? y : tf.add(y, inputs.bias as tf.Tensor), inputs, attrs);
  });
}

/** The same data under another shape. */
function reshaped(x: tf.TensorInfo, shape: readonly number[]): tf.TensorInfo | null {
  if (!held.has(x.dataId)) return null;
  storage.incRef(x.dataId);
  return { dataId: x.dataId, shape: [...shape], dtype: x.dtype };
}

const TAKEN: readonly (readonly [kernel: string, take: Taken])[] = [
  ["BatchMatMul", product],
  ["_FusedMatMul", fused],
  ["Identity", ({ x }) => reshaped(x!, x!.shape)],
  ["Reshape", ({ x }, { shape }) => reshaped(x!, inferred(x!, shape as number[]))],
  ["GatherV2", lookup],
];

/** A shape with at most one -1. */
function inferred({ shape }: tf.TensorInfo, wanted: readonly number[]): number[] {
  const known = wanted.reduce((n, d) => (d === -1 ? n : n * d), 1);
  const size = shape.reduce((n, d) => n * d, 1);
  return wanted.map((d) => (d === -1 ? size / known : d));
}

/** Rows of an embedding. */
function lookup({ x, indices }: Inputs, { axis = 0, batchDims = 0 }: Attributes): tf.TensorInfo | null {
  const entry = held.get(x!.dataId);
  if (entry?.rows !== 0 || axis !== 0 || batchDims !== 0 || x!.shape.length !== 2) return null;
  const ids = (indices as tf.Tensor).dataSync();
  return tf.tensor(gatherRows(entry.w, ids).data, [...indices!.shape, entry.w.k]);
}

const wrapped = new Set<string>();

/** Puts ours before the kernels of the backend in use, which take what is not packed as before. */
export function takeProducts(): void {
  const name = tf.getBackend();
  if (wrapped.has(name)) return;
  wrapped.add(name);
  for (const [kernelName, take] of TAKEN) {
    const own = tf.getKernel(kernelName, name);
    if (own === undefined) continue;
    const kernelFunc: tf.KernelFunc = (call) => {
      const inputs = call.inputs as Inputs;
      const packed = Object.values(inputs).some((t) => t !== undefined && t !== null && held.has(t.dataId));
      const taken = packed ? take(inputs, (call.attrs ?? {}) as Attributes) : null;
      return taken ?? own.kernelFunc(call);
    };
    tf.unregisterKernel(kernelName, name);
    tf.registerKernel({ ...own, kernelFunc });
  }
}
