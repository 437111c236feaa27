// Integer quantization as graphs spell it: DynamicQuantizeLinear, QuantizeLinear, DequantizeLinear, MatMulInteger. Plain loops.
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { NumberArray, Value } from "../value.ts";
import { empty, floatData, floats } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import type { Inputs, Operators } from "./operator.ts";
import { axisOf, fail, need, product } from "./operator.ts";

/** Round half to even. */
function round(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** ONNX DynamicQuantizeLinear: uint8 over the range of x with 0 in it, in float32 arithmetic. */
function dynamic(inputs: Inputs, node: NodeProto): Value[] {
  const x = need(inputs, 0, node);
  const data = floatData(x, node.opType);
  let low = 0;
  let high = 0;
  for (const v of data) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const scale = high === low ? 1 : Math.fround(Math.fround(high - low) / 255);
  const zero = Math.min(255, Math.max(0, round(Math.fround(-low / scale))));
  const y = empty("uint8", x.dims);
  for (let i = 0; i < data.length; i++) (y.data as Uint8Array)[i] = Math.min(255, Math.max(0, round(Math.fround(data[i] / scale)) + zero));
  return [y, { type: "float32", dims: [], data: Float32Array.of(scale) }, { type: "uint8", dims: [], data: Uint8Array.of(zero) }];
}

/** Sizes around the axis of the scales: one scale for all, or one per index of the axis. */
function scaleAt(x: Value, scale: Value, node: NodeProto): (i: number) => number {
  if (scale.data.length === 1) return () => 0;
  const axis = axisOf(attributeInt(node, "axis", 1), x.dims.length, node);
  if (scale.dims.length !== 1 || scale.dims[0] !== x.dims[axis])
    throw fail(node, `a scale, or ${x.dims[axis]} along axis ${axis}`, `[${scale.dims.join(", ")}]`);
  const inner = product(x.dims.slice(axis + 1));
  return (i) => Math.floor(i / inner) % x.dims[axis];
}

function dequantize(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const scale = need(inputs, 1, node);
  const s = floatData(scale, node.opType);
  const zeros = inputs[2]?.data as NumberArray | undefined;
  const at = scaleAt(x, scale, node);
  const codes = x.data as NumberArray;
  const out = floats(x.dims);
  for (let i = 0; i < codes.length; i++) out.data[i] = (codes[i] - (zeros?.[at(i)] ?? 0)) * s[at(i)];
  return out;
}

const zeroOf = (value: Value | undefined, node: NodeProto): number => {
  if (value === undefined) return 0;
  if (value.data.length !== 1) throw fail(node, "one zero point", `[${value.dims.join(", ")}]`);
  return Number(value.data[0]);
};

/** int32 = (A - a) (B - b), zero points per tensor, those of B per column too. */
function matMulInteger(inputs: Inputs, node: NodeProto): Value {
  const a = need(inputs, 0, node);
  const b = need(inputs, 1, node);
  if (a.dims.length < 2 || b.dims.length < 2) throw fail(node, "matrices", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
  const [m, k] = a.dims.slice(-2);
  const [kb, n] = b.dims.slice(-2);
  const batch = broadcastDims(a.dims.slice(0, -2), b.dims.slice(0, -2));
  if (batch === null || k !== kb) throw fail(node, "shapes that multiply", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
  const ia = broadcastIndex(a.dims.slice(0, -2), batch);
  const ib = broadcastIndex(b.dims.slice(0, -2), batch);
  const za = zeroOf(inputs[2], node);
  const columns = inputs[3] !== undefined && inputs[3].data.length > 1 ? (inputs[3].data as NumberArray) : null;
  if (columns !== null && columns.length !== n) throw fail(node, `${n} zero points of B`, String(columns.length));
  const zb = columns === null ? zeroOf(inputs[3], node) : 0;
  const x = a.data as NumberArray;
  const y = b.data as NumberArray;
  const out = empty("int32", [...batch, m, n]);
  const to = out.data as Int32Array;
  for (let c = 0; c < ia.length; c++)
    for (let i = 0; i < m; i++)
      for (let j = 0; j < k; j++) {
        const v = x[(ia[c] * m + i) * k + j] - za;
        const from = (ib[c] * k + j) * n;
        const base = (c * m + i) * n;
        for (let l = 0; l < n; l++) to[base + l] += v * (y[from + l] - (columns === null ? zb : columns[l]));
      }
  return out;
}

const perAxis = (node: NodeProto): string | undefined => (attributeInt(node, "block_size", 0) === 0 ? undefined : "with blocks");

export const quantized: Operators = {
  DynamicQuantizeLinear: { run: dynamic },
  DequantizeLinear: { run: dequantize, missing: perAxis },
  MatMulInteger: { run: matMulInteger },
};
