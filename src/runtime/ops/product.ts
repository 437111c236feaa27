// Products. Constant weights become packed layers of the backend, whatever they are stored as; products of two computed values are plain loops.
import { defineBlock } from "../../../formats/define/index.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { float32 } from "../../../formats/float32.ts";
import { int2 } from "../../../formats/int2.ts";
import { int4 } from "../../../formats/int4.ts";
import { int8 } from "../../../formats/int8.ts";
import { uint2 } from "../../../formats/uint2.ts";
import { uint4 } from "../../../formats/uint4.ts";
import { uint8 } from "../../../formats/uint8.ts";
import type { SyncLayer } from "../../backends/types.ts";
import { gatherRows } from "../../tensor/gather.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { Value } from "../value.ts";
import { floatData, floats, integers } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import type { Inputs, Operator, Operators, PrepareContext } from "./operator.ts";
import { fail, need, product } from "./operator.ts";

const bytesOf = (data: ArrayBufferView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** A float32 weight, rows contiguous along k. `stored` is [k, n] (MatMul) or [n, k]. */
function floatWeight(stored: Float32Array, n: number, k: number, isTransposed: boolean): PackedTensor {
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
function runLayer(layer: SyncLayer, x: Value, bias: Value | undefined, node: NodeProto): Value {
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

/** [.., m, k] x [.., k, n], with vectors as numpy has them. */
function matmul(inputs: Inputs, node: NodeProto): Value {
  const a = need(inputs, 0, node);
  const b = need(inputs, 1, node);
  const x = floatData(a, node.opType);
  const y = floatData(b, node.opType);
  const da = a.dims.length === 1 ? [1, ...a.dims] : a.dims;
  const db = b.dims.length === 1 ? [...b.dims, 1] : b.dims;
  const [m, k] = da.slice(-2);
  const [kb, n] = db.slice(-2);
  const batch = broadcastDims(da.slice(0, -2), db.slice(0, -2));
  if (batch === null || k !== kb) throw fail(node, "shapes that multiply", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
  const ia = broadcastIndex(da.slice(0, -2), batch);
  const ib = broadcastIndex(db.slice(0, -2), batch);
  const dims = [...batch, ...(a.dims.length === 1 ? [] : [m]), ...(b.dims.length === 1 ? [] : [n])];
  const out = floats(dims);
  const row = new Float64Array(n);
  for (let c = 0; c < product(batch); c++)
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

const matMul: Operator = {
  run: matmul,
  prepare(_, context) {
    const w = context.constant(1);
    if (w?.dims.length !== 2 || !(w.data instanceof Float32Array) || w.data.length === 0) return undefined;
    const layer = context.keep(context.backend.prepare(floatWeight(w.data, w.dims[1], w.dims[0], false), {}));
    return { run: (inputs, node) => runLayer(layer, need(inputs, 0, node), undefined, node), kernel: layer.explain().kernel, drops: [1] };
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
    const w = context.constant(1);
    if (w?.dims.length !== 2 || !(w.data instanceof Float32Array) || w.data.length === 0) return undefined;
    const isRows = attributeInt(node, "transB", 0) !== 0;
    const [n, k] = isRows ? w.dims : [w.dims[1], w.dims[0]];
    const layer = context.keep(context.backend.prepare(floatWeight(w.data, n, k, isRows), {}));
    const flip = attributeInt(node, "transA", 0) !== 0;
    return {
      run: (inputs, of) => {
        const a = need(inputs, 0, of);
        return finishGemm(runLayer(layer, flip ? transposed(a) : a, undefined, of), inputs, of);
      },
      kernel: layer.explain().kernel,
      drops: [1],
    };
  },
};

const SIGNED: ReadonlyMap<number, NumberFormat> = new Map([
  [2, int2],
  [4, int4],
  [8, int8],
]);
const UNSIGNED: ReadonlyMap<number, NumberFormat> = new Map([
  [2, uint2],
  [4, uint4],
  [8, uint8],
]);

/** The codes, scales and zero points of MatMulNBits or GatherBlockQuantized as a packed tensor: bytes go over as they are. */
function nbitsWeight(
  codes: Value,
  scales: Value,
  zeros: Value | undefined,
  size: { n: number; k: number; bits: number; block: number },
): PackedTensor {
  const { n, k, bits, block } = size;
  const from = bytesOf(codes.data);
  const stride = from.length / n;
  const rowBytes = Math.ceil((k * bits) / 8);
  // Unsigned codes around the middle are two's complement with the top bit of each flipped.
  const flip = zeros === undefined ? [0xaa, 0x88, 0x80][Math.log2(bits) - 1] : 0;
  const out = new Uint8Array(n * rowBytes);
  for (let r = 0; r < n; r++) for (let i = 0; i < rowBytes; i++) out[r * rowBytes + i] = from[r * stride + i] ^ flip;
  const tail = (k * bits) % 8;
  if (tail !== 0) for (let r = 1; r <= n; r++) out[r * rowBytes - 1] &= 2 ** tail - 1;
  const element = (zeros === undefined ? SIGNED : UNSIGNED).get(bits)!;
  const level = [{ format: float32, span: block }];
  const format: BlockFormat = defineBlock({
    element,
    scales: level,
    ...(zeros === undefined ? {} : { offset: { role: "zeroPoint" as const, levels: [{ format: element, span: block }] } }),
  });
  return {
    format,
    shape: [n, k],
    rows: n,
    k,
    rowBytes,
    codes: out,
    scales: bytesOf(scales.data),
    superScales: null,
    offsets: zeros === undefined ? null : bytesOf(zeros.data),
    recipe: { version: 1, algorithm: "onnx" },
  };
}

const NBITS_SIZES = (node: NodeProto) => ({
  n: attributeInt(node, "N", 0),
  k: attributeInt(node, "K", 0),
  bits: attributeInt(node, "bits", 4),
  block: attributeInt(node, "block_size", 32),
});

function prepareNBits(node: NodeProto, context: PrepareContext) {
  const [codes, scales, zeros] = [1, 2, 3].map((i) => context.constant(i));
  if (codes === undefined || scales === undefined || !(scales.data instanceof Float32Array)) return undefined;
  if (zeros === undefined ? (node.input[3] ?? "") !== "" : zeros.type !== "uint8") return undefined;
  const size = NBITS_SIZES(node);
  const blocks = Math.ceil(size.k / size.block);
  if (codes.data.length !== (size.n * blocks * size.block * size.bits) / 8)
    throw fail(node, "codes [N, blocks, bytes]", `[${codes.dims.join(", ")}]`);
  if (scales.data.length !== size.n * blocks) throw fail(node, `${size.n * blocks} scales`, `${scales.data.length}`);
  const layer = context.keep(context.backend.prepare(nbitsWeight(codes, scales, zeros, size), {}));
  return {
    run: (inputs: Inputs, of: NodeProto) => runLayer(layer, need(inputs, 0, of), inputs[5], of),
    kernel: layer.explain().kernel,
    drops: [1, 2, 3],
  };
}

const unprepared = (inputs: Inputs, node: NodeProto): never => {
  throw fail(node, "constant codes, float32 scales and uint8 zero points", inputs.map((v) => v?.type ?? "none").join(", "));
};

const oddBits = (node: NodeProto): string | undefined => {
  const { bits } = NBITS_SIZES(node);
  if (!SIGNED.has(bits)) return `with ${bits} bits`;
  return (node.input[4] ?? "") === "" || node.opType !== "MatMulNBits" ? undefined : "with g_idx";
};

const gatherNBits: Operator = {
  missing(node) {
    if (attributeInt(node, "gather_axis", 0) !== 0 || attributeInt(node, "quantize_axis", 1) !== 1) return "along other axes than 0 and 1";
    return oddBits(node);
  },
  run: unprepared,
  prepare(node, context) {
    const [data, scales, zeros] = [0, 2, 3].map((i) => context.constant(i));
    if (data?.type !== "uint8" || data.dims.length !== 2 || !(scales?.data instanceof Float32Array)) return undefined;
    if (zeros === undefined ? (node.input[3] ?? "") !== "" : zeros.type !== "uint8") return undefined;
    const bits = attributeInt(node, "bits", 4);
    const size = { n: data.dims[0], k: (data.dims[1] * 8) / bits, bits, block: attributeInt(node, "block_size", 128) };
    const packed = nbitsWeight(data, scales, zeros, size);
    return {
      run(inputs, of) {
        const ids = need(inputs, 1, of);
        const out = floats([...ids.dims, size.k]);
        if (ids.data.length > 0)
          gatherRows(
            packed,
            integers(ids).map((id) => (id < 0 ? id + size.n : id)),
            out.data,
          );
        return out;
      },
      kernel: "packed rows",
      drops: [0, 2, 3],
    };
  },
};

export const products: Operators = {
  MatMul: matMul,
  Gemm: gemm,
  "com.microsoft.MatMulNBits": { run: unprepared, missing: oddBits, prepare: prepareNBits },
  "com.microsoft.GatherBlockQuantized": gatherNBits,
};
