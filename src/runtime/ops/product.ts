// Products. Constant weights become packed layers of the backend, whatever they are stored as; products of two computed
// values are plain loops.
import type { PackedTensor } from "../../../formats/core/types.ts";
import { float32 } from "../../../formats/float32.ts";
import type { SyncLayer } from "../../backends/types.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { Value } from "../value.ts";
import { floatData, floats } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import type { Inputs, Operator, Operators, PrepareContext } from "./operator.ts";
import { fail, need } from "./operator.ts";

export const bytesOf = (data: ArrayBufferView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** A float32 weight, rows contiguous along k. `stored` is [k, n] (MatMul) or [n, k]. */
export function floatWeight(stored: Float32Array, n: number, k: number, isTransposed: boolean): PackedTensor {
  let rows = stored;
  if (!isTransposed) {
    rows = new Float32Array(n * k);
    for (let j = 0; j < k; j++) for (let i = 0; i < n; i++) rows[i * k + j] = stored[j * n + i];
  }
  return {
    format: float32,
    shape: [n, k],
    rows: n,
    k,
    rowBytes: k * 4,
    codes: bytesOf(rows),
    scales: null,
    superScales: null,
    offsets: null,
    recipe: { version: 1, algorithm: "onnx" },
  };
}

/** A layer on rows of x [.., k], with bias added. */
export function runLayer(layer: SyncLayer, x: Value, bias: Value | undefined, node: NodeProto): Value {
  const data = floatData(x, node.opType);
  if (x.dims.at(-1) !== layer.k) throw fail(node, `rows of ${layer.k}`, `[${x.dims.join(", ")}]`);
  const out = floats([...x.dims.slice(0, -1), layer.n]);
  const m = data.length / layer.k;
  if (m > 0) layer.run(data, m, out.data);
  if (bias !== undefined) {
    const b = floatData(bias, node.opType);
    for (let i = 0; i < out.data.length; i++) out.data[i] += b[i % b.length];
  }
  return out;
}

/** y [m, n] = x [m, k] times the transpose of a weight [n, k]. */
export type RowProduct = (x: Float32Array, m: number) => Float32Array;

/** By loops, of a weight that is computed. */
export const loopProduct =
  (w: Float32Array, n: number, k: number): RowProduct =>
  (x, m) => {
    const y = new Float32Array(m * n);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let l = 0; l < k; l++) sum += x[i * k + l] * w[j * k + l];
        y[i * n + j] = sum;
      }
    return y;
  };

/** By a layer; no rows give none. */
export const layerProduct =
  (layer: SyncLayer): RowProduct =>
  (x, m) =>
    m === 0 ? new Float32Array(0) : layer.run(x, m, new Float32Array(m * layer.n));

/** Sizes of [.., m, k] x [.., k, n], with vectors as numpy has them. */
export interface ProductDims {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  /** Of the result. */
  readonly dims: number[];
  /** The matrix of each operand that the results' matrices are made of, one after the other. */
  readonly ia: ArrayLike<number>;
  readonly ib: ArrayLike<number>;
}

/** @throws LowbitError E_SHAPE */
export function productDims(a: readonly number[], b: readonly number[], node: NodeProto): ProductDims {
  const da = a.length === 1 ? [1, ...a] : a;
  const db = b.length === 1 ? [...b, 1] : b;
  const [m, k] = da.slice(-2);
  const [kb, n] = db.slice(-2);
  const batch = da.length < 2 || db.length < 2 ? null : broadcastDims(da.slice(0, -2), db.slice(0, -2));
  if (batch === null || k !== kb) throw fail(node, "shapes that multiply", `[${a.join(", ")}] and [${b.join(", ")}]`);
  const [ia, ib] = [da, db].map((dims) => broadcastIndex(dims.slice(0, -2), batch));
  return { m, k, n, ia, ib, dims: [...batch, ...(a.length === 1 ? [] : [m]), ...(b.length === 1 ? [] : [n])] };
}

function matmul(inputs: Inputs, node: NodeProto): Value {
  const a = need(inputs, 0, node);
  const b = need(inputs, 1, node);
  const x = floatData(a, node.opType);
  const y = floatData(b, node.opType);
  const { m, k, n, ia, ib, dims } = productDims(a.dims, b.dims, node);
  const out = floats(dims);
  const row = new Float64Array(n);
  for (let c = 0; c < ia.length; c++)
    for (let i = 0; i < m; i++) {
      row.fill(0);
      for (let j = 0; j < k; j++) {
        const v = x[(ia[c] * m + i) * k + j];
        const from = (ib[c] * k + j) * n;
        for (let l = 0; l < n; l++) row[l] += v * y[from + l];
      }
      out.data.set(row, (c * m + i) * n);
    }
  return out;
}

/**
 * The layer of input 1, a constant matrix: [n, k] (`isRows`) or [k, n]. Weights that the model has as codes stay codes.
 */
function constantLayer(context: PrepareContext, name: string, isRows: boolean): SyncLayer | undefined {
  const { products: backend } = context;
  const key = `${name} ${isRows}`;
  const weight = context.weight(1);
  const made = weight?.isRows === isRows ? weight.made : undefined;
  if (made !== undefined) return context.layer(key, () => made);
  if (weight?.isRows === isRows) {
    const packed = weight.packed();
    const options = context.productOptions("float32");
    // nodes that share a weight may read values of which other channels are wide
    if (packed.shape.length === 2) return context.layer(`${key} ${JSON.stringify(options)}`, () => backend.prepare(packed, options));
  }
  const w = context.constant(1);
  if (w?.dims.length !== 2 || !(w.data instanceof Float32Array) || w.data.length === 0) return undefined;
  const [n, k] = isRows ? w.dims : [w.dims[1], w.dims[0]];
  return context.layer(key, () => backend.prepare(floatWeight(w.data as Float32Array, n, k, isRows), {}));
}

const matMul: Operator = {
  run: matmul,
  prepare(of, context) {
    const layer = constantLayer(context, of.input[1], false);
    if (layer === undefined) return undefined;
    return {
      run: (inputs, node) => runLayer(layer, need(inputs, 0, node), undefined, node),
      kernel: layer.explain().kernel,
      drops: [1],
      layer,
    };
  },
};

function transposed(x: Value): Value {
  const data = floatData(x, "Gemm");
  const [rows, columns] = x.dims;
  const out = floats([columns, rows]);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out.data[c * rows + r] = data[r * columns + c];
  return out;
}

function finishGemm(y: Value, inputs: Inputs, node: NodeProto): Value {
  const out = y.data as Float32Array;
  const alpha = attributeFloat(node, "alpha", 1);
  const beta = attributeFloat(node, "beta", 1);
  if (alpha !== 1) for (let i = 0; i < out.length; i++) out[i] *= alpha;
  if (inputs[2] === undefined) return y;
  const c = floatData(inputs[2], "Gemm");
  if (broadcastDims(inputs[2].dims, y.dims)?.join() !== y.dims.join())
    throw fail(node, `C for [${y.dims.join(", ")}]`, `[${inputs[2].dims.join(", ")}]`);
  const index = broadcastIndex(inputs[2].dims, y.dims);
  for (let i = 0; i < out.length; i++) out[i] += beta * c[index[i]];
  return y;
}

const gemm: Operator = {
  run(inputs, node) {
    const a = attributeInt(node, "transA", 0) !== 0 ? transposed(need(inputs, 0, node)) : need(inputs, 0, node);
    const b = attributeInt(node, "transB", 0) !== 0 ? transposed(need(inputs, 1, node)) : need(inputs, 1, node);
    return finishGemm(matmul([a, b], node), inputs, node);
  },
  prepare(node, context) {
    const layer = constantLayer(context, node.input[1], attributeInt(node, "transB", 0) !== 0);
    if (layer === undefined) return undefined;
    const flip = attributeInt(node, "transA", 0) !== 0;
    return {
      run: (inputs, of) => {
        const a = need(inputs, 0, of);
        return finishGemm(runLayer(layer, flip ? transposed(a) : a, undefined, of), inputs, of);
      },
      kernel: layer.explain().kernel,
      drops: [1],
      layer,
    };
  },
};

export const products: Operators = {
  MatMul: matMul,
  Gemm: gemm,
};
