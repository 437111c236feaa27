// Integer quantization as graphs spell it: (Dynamic)QuantizeLinear, DequantizeLinear, integer products, QLinear
// operators. Plain loops.
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import type { ElementType, NumberArray, Value } from "../value.ts";
import { elementType, empty, floatData, floats } from "../value.ts";
import { conv, plain } from "./conv.ts";
import { prepareConv, prepareProduct } from "./integer.ts";
import type { Inputs, Operators } from "./operator.ts";
import { axisOf, fail, need, product } from "./operator.ts";
import { productDims } from "./product.ts";
import { dynamicScale, round } from "../../backends/range.ts";

/** 1.5 * 2^52: adding it rounds a double to an integer. */
const MAGIC = 6755399441055744;

/** ONNX DynamicQuantizeLinear: uint8 over the range of x with 0 in it, in float32 arithmetic. */
export function dynamicCodes(inputs: Inputs, node: NodeProto): Value[] {
  const x = need(inputs, 0, node);
  const data = floatData(x, node.opType);
  let low = 0;
  let high = 0;
  for (let i = 0; i < data.length; i++) {
    const v = data[i];
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const { scale, zero } = dynamicScale(low, high);
  const y = empty("uint8", x.dims);
  const codes = y.data as Uint8Array;
  for (let i = 0; i < data.length; i++) {
    // halves to even; NaN becomes 0
    const code = Math.fround(data[i] / scale) + MAGIC - MAGIC + zero;
    codes[i] = code > 0 ? (code < 255 ? code : 255) : 0;
  }
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

/** The scale of element i: one for all, one per index of an axis, or one per block of them. */
function scaleIndex(x: Value, scale: Value, node: NodeProto): (i: number) => number {
  const block = attributeInt(node, "block_size", 0);
  if (block === 0) return scaleAt(x, scale, node);
  const axis = axisOf(attributeInt(node, "axis", 1), x.dims.length, node);
  const blocks = Math.ceil(x.dims[axis] / block);
  if (scale.dims.join() !== x.dims.with(axis, blocks).join())
    throw fail(node, `scales [${x.dims.with(axis, blocks).join(", ")}]`, `[${scale.dims.join(", ")}]`);
  const inner = product(x.dims.slice(axis + 1));
  const length = x.dims[axis];
  return (i) => (Math.floor(i / (inner * length)) * blocks + Math.floor((Math.floor(i / inner) % length) / block)) * inner + (i % inner);
}

function dequantize(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const scale = need(inputs, 1, node);
  const s = floatData(scale, node.opType);
  const zeros = inputs[2]?.data as NumberArray | undefined;
  const at = scaleIndex(x, scale, node);
  const codes = x.data as NumberArray;
  const out = floats(x.dims);
  for (let i = 0; i < codes.length; i++) out.data[i] = (codes[i] - (zeros?.[at(i)] ?? 0)) * s[at(i)];
  return out;
}

/** The least and the greatest code of a type. */
export const BOUNDS: ReadonlyMap<ElementType, readonly [number, number]> = new Map([
  ["int8", [-128, 127]],
  ["uint8", [0, 255]],
  ["int16", [-32768, 32767]],
  ["uint16", [0, 65535]],
]);

/**
 * Codes of values: round(x / scale) + zero, half to even, clamped. The type is that of the zero point, else
 * `output_dtype`, else uint8.
 */
function quantize(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const scale = need(inputs, 1, node);
  const zeros = inputs[2];
  const type = zeros?.type ?? elementType(attributeInt(node, "output_dtype", 0)) ?? "uint8";
  const at = scaleIndex(x, scale, node);
  return encodeWith(x, type, floatData(scale, node.opType), zeros?.data as NumberArray | undefined, at, node);
}

function encodeWith(
  x: Value,
  type: ElementType,
  scales: Float32Array,
  zeros: NumberArray | undefined,
  at: (i: number) => number,
  node: NodeProto,
): Value {
  const bounds = BOUNDS.get(type);
  if (bounds === undefined) throw fail(node, "a type of 8 or 16 bits", type);
  const data = floatData(x, node.opType);
  const out = empty(type, x.dims);
  for (let i = 0; i < data.length; i++) {
    const code = round(Math.fround(data[i] / scales[at(i)])) + (zeros?.[at(i)] ?? 0);
    out.data[i] = Math.min(bounds[1], Math.max(bounds[0], code));
  }
  return out;
}

const nibbles = (node: NodeProto): string | undefined => {
  const to = attributeInt(node, "output_dtype", 0);
  return to !== 0 && (elementType(to) === undefined || to === T.INT4 || to === T.UINT4) ? "to codes of other than 8 or 16 bits" : undefined;
};

const zeroOf = (value: Value | undefined, node: NodeProto): number => {
  if (value === undefined) return 0;
  if (value.data.length !== 1) throw fail(node, "one zero point", `[${value.dims.join(", ")}]`);
  return Number(value.data[0]);
};

/** int32 = (A - a) (B - b), zero points per tensor, those of B per column too. */
function matMulInteger(inputs: Inputs, node: NodeProto): Value {
  const a = need(inputs, 0, node);
  const b = need(inputs, 1, node);
  const { m, k, n, ia, ib, dims } = productDims(a.dims, b.dims, node);
  const za = zeroOf(inputs[2], node);
  const columns = inputs[3] !== undefined && inputs[3].data.length > 1 ? (inputs[3].data as NumberArray) : null;
  if (columns !== null && columns.length !== n) throw fail(node, `${n} zero points of B`, String(columns.length));
  const zb = columns === null ? zeroOf(inputs[3], node) : 0;
  const x = a.data as NumberArray;
  const y = b.data as NumberArray;
  const out = empty("int32", dims);
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

/** Integers less their zero point, as float32: exact. */
function shifted(x: Value, zero: Value | undefined, axis: number, node: NodeProto): Value {
  const zeros = zero?.data as NumberArray | undefined;
  const codes = x.data as NumberArray;
  const out = floats(x.dims);
  if (zeros === undefined || zeros.length === 1) for (let i = 0; i < codes.length; i++) out.data[i] = codes[i] - (zeros?.[0] ?? 0);
  else {
    const inner = product(x.dims.slice(axis + 1));
    if (zeros.length !== x.dims[axis]) throw fail(node, `${x.dims[axis]} zero points`, String(zeros.length));
    for (let i = 0; i < codes.length; i++) out.data[i] = codes[i] - zeros[Math.floor(i / inner) % x.dims[axis]];
  }
  return out;
}

/** int32 sums as floats times scales, then codes: `channel` gives the scale of element i of the weight. */
function requantize(y: Value, scale: (i: number) => number, to: Value, zero: Value, node: NodeProto): Value {
  const factor = floatData(to, node.opType)[0];
  const out = floats(y.dims);
  const sums = y.data as NumberArray;
  for (let i = 0; i < sums.length; i++) out.data[i] = Math.fround(sums[i] * Math.fround(scale(i) / factor));
  return encodeWith(out, zero.type, Float32Array.of(1), zero.data as NumberArray, () => 0, node);
}

const scalesOf = (x: Value, w: Value, node: NodeProto, channel: (i: number) => number): ((i: number) => number) => {
  const a = floatData(x, node.opType)[0];
  const b = floatData(w, node.opType);
  return b.length === 1 ? () => Math.fround(a * b[0]) : (i) => Math.fround(a * b[channel(i)]);
};

/** QLinearMatMul: a, its scale and zero, b, its, those of the result; an int32 bias, of QGemm. */
function qLinearMatMul(inputs: Inputs, node: NodeProto): Value {
  const v = Array.from({ length: 8 }, (_, i) => need(inputs, i, node));
  const y = matMulInteger([v[0], v[3], v[2], v[5]], node);
  const n = y.dims.at(-1)!;
  const bias = inputs[8]?.data as Int32Array | undefined;
  if (bias !== undefined && bias.length !== n) throw fail(node, `${n} biases`, String(bias.length));
  if (bias !== undefined) for (let i = 0; i < y.data.length; i++) (y.data as Int32Array)[i] += bias[i % n];
  return requantize(
    y,
    scalesOf(v[1], v[4], node, (i) => i % n),
    v[6],
    v[7],
    node,
  );
}

/** QLinearConv: x, w, the scales and zeros of both and of the result, an int32 bias. */
function qLinearConv(inputs: Inputs, node: NodeProto): Value {
  const v = Array.from({ length: 8 }, (_, i) => need(inputs, i, node));
  const bias =
    inputs[8] === undefined
      ? undefined
      : { ...inputs[8], type: "float32" as const, data: Float32Array.from(inputs[8].data as NumberArray) };
  const y = conv([shifted(v[0], v[2], 1, node), shifted(v[3], v[5], 0, node), bias], node);
  const plane = product(y.dims.slice(2));
  return requantize(
    y,
    scalesOf(v[1], v[4], node, (i) => Math.floor(i / plane) % y.dims[1]),
    v[6],
    v[7],
    node,
  );
}

function convInteger(inputs: Inputs, node: NodeProto): Value {
  const x = shifted(need(inputs, 0, node), inputs[2], 1, node);
  const y = conv([x, shifted(need(inputs, 1, node), inputs[3], 0, node)], node);
  return { type: "int32", dims: y.dims, data: Int32Array.from(y.data as Float32Array) };
}

/** MatMulIntegerToFloat: a, b, their scales, their zeros, a bias; DynamicQuantizeMatMul quantizes a itself. */
const toFloat =
  (isDynamic: boolean) =>
  (inputs: Inputs, node: NodeProto): Value => {
    const b = need(inputs, 1, node);
    const [a, aScale, aZero] = isDynamic ? dynamicCodes([inputs[0]], node) : [inputs[0]!, need(inputs, 2, node), inputs[4]];
    const [bScale, bZero, bias] = isDynamic ? [need(inputs, 2, node), inputs[3], inputs[4]] : [need(inputs, 3, node), inputs[5], inputs[6]];
    const y = matMulInteger([a, b, aZero, bZero], node);
    const n = y.dims.at(-1)!;
    const scale = scalesOf(aScale, bScale, node, (i) => i % n);
    const add = bias === undefined ? null : floatData(bias, node.opType);
    const out = floats(y.dims);
    for (let i = 0; i < out.data.length; i++) out.data[i] = (y.data as Int32Array)[i] * scale(i) + (add === null ? 0 : add[i % n]);
    return out;
  };

export const quantized: Operators = {
  DynamicQuantizeLinear: { run: dynamicCodes },
  DequantizeLinear: { run: dequantize },
  QuantizeLinear: { run: quantize, missing: nibbles },
  MatMulInteger: { run: matMulInteger, prepare: prepareProduct({ weight: 1, zero: 3 }) },
  ConvInteger: { run: convInteger, missing: plain, prepare: prepareConv({ weight: 1, zero: 3 }) },
  QLinearMatMul: { run: qLinearMatMul, prepare: prepareProduct({ weight: 3, zero: 5 }) },
  QLinearConv: { run: qLinearConv, missing: plain, prepare: prepareConv({ weight: 3, zero: 5 }) },
  "com.microsoft.QuantizeLinear": { run: quantize },
  "com.microsoft.DequantizeLinear": { run: dequantize },
  "com.microsoft.MatMulIntegerToFloat": { run: toFloat(false) },
  "com.microsoft.DynamicQuantizeMatMul": { run: toFloat(true) },
};
