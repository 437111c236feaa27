// Products and lookups on weights that operators of com.microsoft hold as codes: MatMulNBits, GatherBlockQuantized,
// MatMulBnb4. Codes go into packed tensors as they are.
import { defineBlock, defineCodebook } from "../../../formats/define/index.ts";
import { bnb_fp4 } from "../../../formats/bnb_fp4.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { decodeArray } from "../../../formats/core/bulk.ts";
import { float32 } from "../../../formats/float32.ts";
import { nf4 } from "../../../formats/nf4.ts";
import { uint2 } from "../../../formats/uint2.ts";
import { uint4 } from "../../../formats/uint4.ts";
import { uint8 } from "../../../formats/uint8.ts";
import { unpackCodes } from "../../../formats/core/pack.ts";
import { readByRows, rowsOfWeight } from "../../backends/source.ts";
import type { PrepareOptions } from "../../backends/types.ts";
import { gatherRows } from "../../tensor/gather.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { TensorParts, Value } from "../value.ts";
import { floats, integers } from "../value.ts";
import type { Inputs, Operator, Operators, PrepareContext, Prepared, Run, TableRows } from "./operator.ts";
import { fail, need } from "./operator.ts";
import { bytesOf, floatWeight, runLayer } from "./product.ts";

/** Codes without zero points: integers around the middle code. */
const CENTRED: ReadonlyMap<number, NumberFormat> = new Map(
  [2, 4, 8].map((bits) => {
    const middle = 2 ** (bits - 1);
    return [bits, defineCodebook({ name: `int${bits}_centred`, bits, values: Array.from({ length: 2 * middle }, (_, i) => i - middle) })];
  }),
);
const UNSIGNED: ReadonlyMap<number, NumberFormat> = new Map([
  [2, uint2],
  [4, uint4],
  [8, uint8],
]);

export const CODE_BITS: ReadonlySet<number> = new Set(CENTRED.keys());

interface Sizes {
  readonly n: number;
  readonly k: number;
  readonly bits: number;
  readonly block: number;
}

const packedBytes = ({ n, k, bits }: Sizes): number => n * Math.ceil((k * bits) / 8);

/** Rows of blocks without padding, in whole bytes. */
const hasWholeRows = ({ k, bits, block }: Sizes): boolean => k % block === 0 && (k * bits) % 8 === 0;

/**
 * Codes as rows of whole bytes: `from` itself where it has no other ones, else in what `out` gives, of `packedBytes`.
 */
function wholeRows(from: Uint8Array, size: Sizes, out: (bytes: number) => Uint8Array): Uint8Array {
  if (hasWholeRows(size)) return from;
  const { n, k, bits } = size;
  const [stride, rowBytes] = [from.length / n, Math.ceil((k * bits) / 8)];
  const codes = out(packedBytes(size));
  for (let r = 0; r < n; r++) codes.set(from.subarray(r * stride, r * stride + rowBytes), r * rowBytes);
  const tail = (k * bits) % 8;
  if (tail !== 0) for (let r = 1; r <= n; r++) codes[r * rowBytes - 1] &= 2 ** tail - 1;
  return codes;
}

/** The format of blocks of codes of MatMulNBits or GatherBlockQuantized. */
function nbitsFormat({ bits, block }: Sizes, zeros: Value | undefined): BlockFormat {
  const element = (zeros === undefined ? CENTRED : UNSIGNED).get(bits)!;
  const zeroFormat = zeros?.data instanceof Float32Array ? float32 : element;
  return defineBlock({
    element,
    scales: [{ format: float32, span: block }],
    ...(zeros === undefined ? {} : { offset: { role: "zeroPoint" as const, levels: [{ format: zeroFormat, span: block }] } }),
  });
}

/** Codes (rows of whole bytes), scales and zero points as a packed tensor. */
function nbitsWeight(codes: Uint8Array, scales: Uint8Array, zeros: Value | undefined, size: Sizes): PackedTensor {
  const { n, k, bits } = size;
  return {
    format: nbitsFormat(size, zeros),
    shape: [n, k],
    rows: n,
    k,
    rowBytes: Math.ceil((k * bits) / 8),
    codes,
    scales,
    superScales: null,
    offsets: zeros === undefined ? null : bytesOf(zeros.data),
    recipe: { version: 1, algorithm: "onnx" },
  };
}

/**
 * One expert of QMoE: codes [experts, n, bytes], scales [experts, n, blocks], zero points [experts, n, bytes], or
 * [experts, bytes] with a block a row. @throws LowbitError E_SHAPE
 */
export function expertCodes(
  node: NodeProto,
  { codes, scales, zeros }: { readonly codes: Value; readonly scales: Value; readonly zeros: Value | undefined },
  expert: number,
  experts: number,
  size: Sizes,
): PackedTensor {
  const { n, k, bits, block } = size;
  const one = <T extends Uint8Array | Float32Array>(data: T): T => {
    const length = data.length / experts;
    return data.subarray(expert * length, (expert + 1) * length) as T;
  };
  const blocks = Math.ceil(k / block);
  if (!hasWholeRows(size)) throw fail(node, `rows of whole blocks of ${block}`, `rows of ${k}`);
  const scale = scales.data as Float32Array;
  if (scale.length !== experts * n * blocks) throw fail(node, `${experts * n * blocks} scales`, `${scale.length}`);
  const zeroBytes = blocks === 1 ? Math.ceil((n * bits) / 8) : n * Math.ceil((blocks * bits) / 8);
  if (zeros !== undefined && zeros.data.length !== experts * zeroBytes)
    throw fail(node, `${experts * zeroBytes} bytes of zero points`, `${zeros.data.length}`);
  const zero = zeros && { ...zeros, data: one(zeros.data as Uint8Array) };
  // a zero point a row: those of several rows share a byte
  const rows = zero && blocks === 1 ? { ...zero, data: unpackCodes(zero.data, bits, n) } : zero;
  return nbitsWeight(one(codes.data as Uint8Array), bytesOf(one(scale)), rows, size);
}

const NBITS_SIZES = (node: NodeProto): Sizes => ({
  n: attributeInt(node, "N", 0),
  k: attributeInt(node, "K", 0),
  bits: attributeInt(node, "bits", 4),
  block: attributeInt(node, "block_size", 32),
});

const blocksOf = ({ n, k, block }: Sizes): number => n * Math.ceil(k / block);

/** Bytes of the codes as the model has them: [N, blocks, bytes]. */
const codeBytes = (size: Sizes): number => (blocksOf(size) * size.block * size.bits) / 8;

function checkSizes(node: NodeProto, size: Sizes, codes: number, scales: number): void {
  if (codes !== codeBytes(size)) throw fail(node, `${codeBytes(size)} bytes of codes [N, blocks, bytes]`, String(codes));
  if (scales !== blocksOf(size)) throw fail(node, `${blocksOf(size)} scales`, `${scales}`);
}

/**
 * The packed tensor of a MatMulNBits node: read in parts where the backend copies it, else whole; undefined where its
 * weight is none of constants. It is good until the next one is made. @throws LowbitError E_SHAPE
 */
function packNBits(node: NodeProto, context: PrepareContext, constant: (name: string) => Value | undefined): PackedTensor | undefined {
  const [codesName, scalesName, zerosName] = [1, 2, 3].map((i) => node.input[i] ?? "");
  const zeros = constant(zerosName);
  if (zeros === undefined ? zerosName !== "" : zeros.type !== "uint8" && zeros.type !== "float32") return undefined;
  const size = NBITS_SIZES(node);
  const [codeParts, scaleParts] = [context.parts(codesName, "uint8"), context.parts(scalesName, "float32")];
  if (codeParts !== undefined && scaleParts !== undefined && hasWholeRows(size)) {
    checkSizes(node, size, codeParts.size, scaleParts.size / 4);
    return partedWeight(codeParts, scaleParts, zeros, size);
  }
  const scales = constant(scalesName);
  if (scales === undefined || !(scales.data instanceof Float32Array)) return undefined;
  const codes = context.bytes(codesName) ?? (constant(codesName)?.data as Uint8Array | undefined);
  if (!(codes instanceof Uint8Array)) return undefined;
  checkSizes(node, size, codes.length, scales.data.length);
  const own = context.scratch(packedBytes(size));
  const rows = wholeRows(codes, size, () => own);
  if (rows !== own) own.set(rows);
  return nbitsWeight(own, bytesOf(scales.data), zeros, size);
}

/**
 * A weight that stays in the model's file until its rows are packed; read whole by who asks for all codes or scales.
 */
function partedWeight(codes: TensorParts, scales: TensorParts, zeros: Value | undefined, size: Sizes): PackedTensor {
  const all = ({ size: bytes, read }: TensorParts): Uint8Array => {
    const out = new Uint8Array(bytes);
    read(0, out);
    return out;
  };
  const packed = nbitsWeight(new Uint8Array(0), new Uint8Array(0), zeros, size);
  const blocks = blocksOf(size) / size.n;
  const weight: PackedTensor = {
    ...packed,
    get codes() {
      return all(codes);
    },
    get scales() {
      return all(scales);
    },
  };
  readByRows(weight, {
    codes: (row, _, into) => codes.read(row * packed.rowBytes, into),
    scales: (row, _, into) => scales.read(4 * row * blocks, bytesOf(into)),
  });
  return weight;
}

/** accuracy_level 4 allows int8 activations. */
const nbitsOptions = (node: NodeProto, context: PrepareContext): PrepareOptions =>
  context.productOptions(attributeInt(node, "accuracy_level", 0) === 4 ? "int8" : "float32");

function prepareNBits(node: NodeProto, context: PrepareContext): Prepared | undefined {
  const options = nbitsOptions(node, context);
  const { bits, block } = NBITS_SIZES(node);
  const key = `${node.input.slice(1, 4).join(" ")} ${bits} ${block} ${JSON.stringify(options)}`;
  const weight = packNBits(node, context, (name) => context.constant(node.input.indexOf(name)));
  if (weight === undefined) return undefined;
  const layer = context.layer(key, () => context.products.prepare(weight, options));
  return {
    run: (inputs: Inputs, of: NodeProto) => runLayer(layer, need(inputs, 0, of), inputs[5], of),
    kernel: layer.explain().kernel,
    drops: [1, 2, 3],
    layer,
  };
}

const joinBytes = (parts: readonly Uint8Array[]): Uint8Array => {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
};

/** Weights of one format, the rows of one after those of the other. */
function stackedWeight(parts: readonly PackedTensor[]): PackedTensor {
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const readers = parts.map(rowsOfWeight);
  // not spread: that would read the first part
  const { format, k, rowBytes, recipe } = parts[0];
  const common = { format, shape: [rows, k], rows, k, rowBytes, superScales: null, offsets: null, recipe };
  if (!readers.every((reader) => reader !== undefined))
    return { ...common, codes: joinBytes(parts.map(({ codes }) => codes)), scales: joinBytes(parts.map(({ scales }) => scales!)) };
  /** The rows of each part that are asked for. */
  const visit = (row: number, count: number, each: (part: number, from: number, to: number, at: number) => void): void => {
    let first = 0;
    parts.forEach((part, i) => {
      const [from, to] = [Math.max(row, first), Math.min(row + count, first + part.rows)];
      if (from < to) each(i, from - first, to - first, from - row);
      first += part.rows;
    });
  };
  const weight: PackedTensor = {
    ...common,
    get codes() {
      return joinBytes(parts.map(({ codes }) => codes));
    },
    get scales() {
      return joinBytes(parts.map(({ scales }) => scales!));
    },
  };
  readByRows(weight, {
    codes: (row, count, into) => {
      const width = into.length / count;
      visit(row, count, (i, from, to, at) => readers[i].codes(from, to - from, into.subarray(at * width, (at + to - from) * width)));
    },
    scales: (row, count, into) => {
      const width = into.length / count;
      visit(row, count, (i, from, to, at) => readers[i].scales!(from, to - from, into.subarray(at * width, (at + to - from) * width)));
    },
  });
  return weight;
}

/**
 * Several MatMulNBits nodes of one input, without zero points and biases, as one product: its columns are theirs, one
 * node after the other.
 */
export function joinNBits(nodes: readonly NodeProto[], context: PrepareContext, constant: (name: string) => Value | undefined) {
  const parts = nodes.map((node) => {
    const part = packNBits(node, context, constant)!;
    // the next one takes the memory of this one
    return rowsOfWeight(part) === undefined ? { ...part, codes: part.codes.slice() } : part;
  });
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const options = nbitsOptions(nodes[0], context);
  const key = `${nodes.map((node) => node.input[1]).join(" ")} ${JSON.stringify(options)}`;
  const widths = parts.map((part) => part.rows);
  const layer = context.layer(key, () => context.products.prepare(stackedWeight(parts), options));
  const run: Run = (inputs, node) => {
    const y = runLayer(layer, need(inputs, 0, node), undefined, node);
    let start = 0;
    return widths.map((width) => {
      const out = floats([...y.dims.slice(0, -1), width]);
      const count = out.data.length / width;
      for (let r = 0; r < count; r++)
        out.data.set((y.data as Float32Array).subarray(r * rows + start, r * rows + start + width), r * width);
      start += width;
      return out;
    });
  };
  return { run, kernel: layer.explain().kernel, layer, widths };
}

const unprepared = (inputs: Inputs, node: NodeProto): never => {
  throw fail(node, "constant codes, float32 scales and uint8 zero points", inputs.map((v) => v?.type ?? "none").join(", "));
};

const oddBits = (node: NodeProto): string | undefined => {
  const { bits } = NBITS_SIZES(node);
  if (!CENTRED.has(bits)) return `with ${bits} bits`;
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
    const codes = wholeRows(bytesOf(data.data), size, (bytes) => new Uint8Array(bytes));
    const packed = nbitsWeight(codes, bytesOf(scales.data), zeros, size);
    const rows: TableRows = {
      ids: 1,
      width: size.k,
      read: (ids, out) => void gatherRows(packed, ids.map((id) => (id < 0 ? id + size.n : id)), out), // prettier-ignore
    };
    return {
      rows,
      run(inputs, of) {
        const ids = need(inputs, 1, of);
        const out = floats([...ids.dims, size.k]);
        if (ids.data.length > 0) rows.read(integers(ids), out.data);
        return out;
      },
      kernel: "packed rows",
      drops: [0, 2, 3],
    };
  },
};

/**
 * MatMulBnb4: codes of the flattened [N, K], the first of a byte in its high nibble, a scale for each block of them.
 */
function bnb4Weight(
  codes: Uint8Array,
  absmax: Float32Array,
  element: NumberFormat,
  size: { n: number; k: number; block: number },
): PackedTensor {
  const { n, k, block } = size;
  if (k % block === 0) {
    const swapped = codes.map((byte) => (byte << 4) | (byte >> 4));
    return {
      format: defineBlock({ element, scales: [{ format: float32, span: block }] }),
      shape: [n, k],
      rows: n,
      k,
      rowBytes: k / 2,
      codes: swapped,
      scales: bytesOf(absmax),
      superScales: null,
      offsets: null,
      recipe: { version: 1, algorithm: "onnx" },
    };
  }
  // blocks that go on from one row to the next are no blocks of a matrix: values
  const table = decodeArray(
    element,
    Uint8Array.from({ length: 16 }, (_, i) => i),
    new Float64Array(16),
  );
  const values = Float32Array.from(
    { length: n * k },
    (_, i) => table[(codes[i >> 1] >> (i & 1 ? 0 : 4)) & 15] * absmax[Math.floor(i / block)],
  );
  return floatWeight(values, n, k, true);
}

const bnb4: Operator = {
  run: unprepared,
  missing(node) {
    if (attributeInt(node, "transB", 1) !== 1) return "with a transposed weight";
    return attributeInt(node, "training_mode", 0) !== 0 ? "in training" : undefined;
  },
  prepare(node, context) {
    const [codes, absmax] = [1, 2].map((i) => context.constant(i));
    if (!(codes?.data instanceof Uint8Array) || !(absmax?.data instanceof Float32Array)) return undefined;
    const size = { n: attributeInt(node, "N", 0), k: attributeInt(node, "K", 0), block: attributeInt(node, "block_size", 64) };
    const elements = size.n * size.k;
    if (codes.data.length !== Math.ceil(elements / 2) || absmax.data.length !== Math.ceil(elements / size.block))
      throw fail(
        node,
        `codes of [${size.n}, ${size.k}] in blocks of ${size.block}`,
        `${codes.data.length} bytes, ${absmax.data.length} scales`,
      );
    const element = attributeInt(node, "quant_type", 1) === 1 ? nf4 : bnb_fp4;
    const from = codes.data;
    const scales = absmax.data;
    const options = context.productOptions("float32");
    const layer = context.layer(`${node.input.slice(1, 3).join(" ")} ${JSON.stringify(options)}`, () =>
      context.products.prepare(bnb4Weight(from, scales, element, size), options),
    );
    return {
      run: (inputs, of) => runLayer(layer, need(inputs, 0, of), undefined, of),
      kernel: layer.explain().kernel,
      drops: [1, 2],
      layer,
    };
  },
};

export const codes: Operators = {
  "com.microsoft.MatMulNBits": { run: unprepared, missing: oddBits, prepare: prepareNBits },
  "com.microsoft.GatherBlockQuantized": gatherNBits,
  "com.microsoft.MatMulBnb4": bnb4,
};
