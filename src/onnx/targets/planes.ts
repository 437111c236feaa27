// Codes of any width up to 16 bits as ONNX tensors that hold no bit more than they must, and the nodes that read them
// as numbers. A byte of 1-, 2- or 4-bit codes is looked up as 8, 4 or 2 numbers at once; other widths are split into
// such planes (3 = 2 + 1, 5 = 4 + 1, ...). All nodes have constant inputs: a runtime folds them when it loads the
// model. Opset 7 and later.
import { decodeArray } from "../../../formats/core/bulk.ts";
import { codeArray, packedBytes, packInto, unpackInto, type Codes } from "../../../formats/core/pack.ts";
import type { NumberFormat } from "../../../formats/core/types.ts";
import type { AttributeProto, NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { intAttribute, intsAttribute, makeNode } from "../graph/graph.ts";
import type { TargetContext } from "./target.ts";

/** Where nodes and tensors of one graph are gathered. */
export interface Sink {
  readonly nodes: NodeProto[];
  readonly tensors: TensorProto[];
}

/** Widths of the planes of a code, lowest bits first. */
const PLANES: readonly (readonly number[])[] = [[], [1], [2], [2, 1], [4], [4, 1], [4, 2], [4, 2, 1], [8]];

/** The lowest opset whose Cast reads an element type as float. */
const CAST_SINCE: ReadonlyMap<number, number> = new Map([
  [T.FLOAT, 1],
  [T.FLOAT16, 6],
  [T.INT8, 6],
  [T.UINT8, 6],
  [T.BFLOAT16, 13],
  [T.FLOAT8E4M3FN, 19],
  [T.FLOAT8E4M3FNUZ, 19],
  [T.FLOAT8E5M2, 19],
  [T.FLOAT8E5M2FNUZ, 19],
]);

/** Does a runtime have the format as an element type whose bytes are its codes? */
const isTyped = (format: NumberFormat, opset: number): boolean =>
  format.onnx !== undefined && format.bits >= 8 && opset >= (CAST_SINCE.get(format.onnx) ?? Infinity);

/** Why codes of a format cannot be stored; undefined where they can. */
export const planesReason = (format: NumberFormat, opset: number): string | undefined =>
  isTyped(format, opset) || (format.bits <= 16 && format.table !== null)
    ? undefined
    : `${format.name} has ${format.bits} bits and no table that nodes could look up`;

export const int64Tensor = (context: TargetContext, base: string, values: readonly number[]): TensorProto =>
  makeTensor(context.model, context.names.take(base), T.INT64, [values.length], new Uint8Array(BigInt64Array.from(values, BigInt).buffer));

const shared = new WeakMap<TargetContext, Map<string, string>>();

/** Shapes, bounds and indices in the main graph, where every graph sees them: one tensor for all that ask for it. */
export function sharedInts(context: TargetContext, what: string, values: readonly number[]): string {
  const known = shared.get(context) ?? new Map<string, string>();
  shared.set(context, known);
  const key = values.join();
  let name = known.get(key);
  if (name === undefined) {
    const tensor = int64Tensor(context, `lowbit_${what}${values.length > 8 ? "" : `_${values.join("_")}`}`, values);
    context.scopes[0].graph.initializer.push(tensor);
    known.set(key, (name = tensor.name));
  }
  return name;
}

/** Nodes on constants, each one line: their outputs get names after `base`. */
export function constantNodes(context: TargetContext, sink: Sink, base: string) {
  const add = (opType: string, inputs: readonly string[], what: string, attributes: readonly AttributeProto[] = []): string => {
    const output = context.names.take(`${base}_${what}`);
    sink.nodes.push(makeNode(opType, inputs, [output], { name: context.names.take(`${base}_${what}_node`), attributes }));
    return output;
  };
  const constant = (tensor: TensorProto): string => {
    sink.tensors.push(tensor);
    return tensor.name;
  };
  return {
    add,
    constant,
    cast: (x: string, to: number, what: string) => add("Cast", [x], what, [intAttribute("to", to)]),
    reshape: (x: string, dims: readonly number[], what: string) => add("Reshape", [x, sharedInts(context, "shape", dims)], what),
    gather: (x: string, indices: string, axis: number, what: string) => add("Gather", [x, indices], what, [intAttribute("axis", axis)]),
    transpose: (x: string, perm: readonly number[], what: string) => add("Transpose", [x], what, [intsAttribute("perm", perm)]),
    /** The first `count` elements of a vector. */
    head(x: string, count: number, what: string): string {
      if (context.opset() < 10) return add("Slice", [x], what, [intsAttribute("starts", [0]), intsAttribute("ends", [count])]);
      const bounds = [0, count].map((v) => sharedInts(context, "bound", [v]));
      return add("Slice", [x, ...bounds], what);
    },
  };
}

/** Look-up tables of a model, one per format and plane, in the main graph, where every graph sees them. */
export interface Tables {
  get(key: string, make: () => { readonly values: Float32Array | Int32Array; readonly dims: readonly number[] }): string;
}

export function lookUpTables(context: TargetContext): Tables {
  const made = new Map<string, string>();
  return {
    get(key, make) {
      let name = made.get(key);
      if (name === undefined) {
        const { values, dims } = make();
        const type = values instanceof Int32Array ? T.INT32 : T.FLOAT;
        const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
        const tensor = makeTensor(context.model, context.names.take(`lowbit_${key}`), type, dims, bytes);
        context.scopes[0].graph.initializer.push(tensor);
        made.set(key, (name = tensor.name));
      }
      return name;
    },
  };
}

/** What a byte of a plane stands for: [256, codes per byte], `of(part)` for each part of a code. */
function byteTable<A extends Float32Array | Int32Array>(out: A, width: number, of: (part: number) => number): A {
  const perByte = 8 / width;
  for (let byte = 0, i = 0; byte < 256; byte++) for (let j = 0; j < perByte; j++) out[i++] = of((byte >> (j * width)) & (2 ** width - 1));
  return out;
}

const valuesOf = (format: NumberFormat): Float64Array => {
  const codes = codeArray(format.bits, 2 ** format.bits);
  for (let i = 0; i < codes.length; i++) codes[i] = i;
  return decodeArray(format, codes, new Float64Array(codes.length));
};

/** Is every value the sum of what its planes stand for (as integers' are)? */
function isAdditive(values: Float64Array, widths: readonly number[]): boolean {
  return values.every((value, code) => {
    let sum = values[0];
    let shift = 0;
    for (const width of widths) {
      sum += values[code & ((2 ** width - 1) << shift)] - values[0];
      shift += width;
    }
    return Object.is(sum, value); // no sum is -0 but that of nothing
  });
}

export interface StoredCodes {
  /** The decoded numbers, float32, of the dims asked for. */
  readonly value: string;
  /** The tensors that hold the codes: one, or its planes. */
  readonly tensors: readonly TensorProto[];
}

/** Stores codes [product of dims] and adds the nodes that decode them. */
export function storeCodes(
  context: TargetContext,
  sink: Sink,
  tables: Tables,
  what: { readonly base: string; readonly format: NumberFormat; readonly codes: Codes; readonly dims: readonly number[] },
): StoredCodes {
  const { base, format, codes, dims } = what;
  const { model, names } = context;
  const build = constantNodes(context, sink, base);
  const tensorOf = (suffix: string, type: number, shape: readonly number[], bytes: Uint8Array): TensorProto => {
    const tensor = makeTensor(model, names.take(`${base}${suffix}`), type, shape, bytes);
    sink.tensors.push(tensor);
    return tensor;
  };
  const bytes = new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength);
  if (isTyped(format, context.opset())) {
    const tensor = tensorOf("", format.onnx!, dims, bytes);
    return { value: format.onnx === T.FLOAT ? tensor.name : build.cast(tensor.name, T.FLOAT, "float"), tensors: [tensor] };
  }
  const values = valuesOf(format);
  const valueTable = () => tables.get(`${format.name}_values`, () => ({ values: Float32Array.from(values), dims: [values.length] }));
  if (format.bits >= 8) {
    const tensor = tensorOf("", format.bits === 8 ? T.UINT8 : T.UINT16, dims, bytes);
    return { value: build.gather(valueTable(), build.cast(tensor.name, T.INT32, "codes"), 0, "float"), tensors: [tensor] };
  }
  const widths = PLANES[format.bits];
  const additive = isAdditive(values, widths);
  const count = codes.length;
  const tensors: TensorProto[] = [];
  let sum = "";
  let shift = 0;
  widths.forEach((width, p) => {
    const at = shift;
    const parts = widths.length === 1 ? codes : codes.map((code) => (code >> at) & (2 ** width - 1));
    const packed = new Uint8Array(packedBytes(count, width));
    packInto(parts, 0, count, width, packed, 0);
    const tensor = tensorOf(widths.length === 1 ? "" : `_bits${at}`, T.UINT8, [packed.length], packed);
    tensors.push(tensor);
    const table = additive
      ? tables.get(`${format.name}_plane${p}`, () => ({
          values: byteTable(new Float32Array(256 * (8 / width)), width, (part) => values[part << at] - (p === 0 ? 0 : values[0])),
          dims: [256, 8 / width],
        }))
      : tables.get(`codes_${width}_at_${at}`, () => ({
          values: byteTable(new Int32Array(256 * (8 / width)), width, (part) => part << at),
          dims: [256, 8 / width],
        }));
    let plane = build.gather(table, build.cast(tensor.name, T.INT32, `bytes${at}`), 0, `parts${at}`);
    const whole = packed.length * (8 / width) === count;
    if (!whole) plane = build.head(build.reshape(plane, [-1], `all${at}`), count, `used${at}`);
    else if (widths.length > 1) plane = build.reshape(plane, [-1], `flat${at}`);
    sum = sum === "" ? plane : build.add("Add", [sum, plane], `sum${at}`);
    shift += width;
  });
  const shaped = build.reshape(sum, dims, "shaped");
  return { value: additive ? shaped : build.gather(valueTable(), shaped, 0, "float"), tensors };
}

/** The codes again from what `storeCodes` stored: `bytes` of its tensors in order. */
export function loadCodes(format: NumberFormat, count: number, bytes: readonly Uint8Array[]): Codes {
  const out = codeArray(format.bits, count);
  if (format.bits >= 8) {
    new Uint8Array(out.buffer).set(bytes[0]);
    return out;
  }
  let shift = 0;
  PLANES[format.bits].forEach((width, p) => {
    const part = codeArray(width, count);
    unpackInto(bytes[p], 0, width, part, 0, count);
    for (let i = 0; i < count; i++) out[i] |= part[i] << shift;
    shift += width;
  });
  return out;
}
