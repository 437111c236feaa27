// Products and lookups on weights that operators of com.microsoft hold as codes: MatMulNBits, GatherBlockQuantized, MatMulBnb4. Codes go into packed tensors as they are.
import { defineBlock } from "../../../formats/define/index.ts";
import { bnb_fp4 } from "../../../formats/bnb_fp4.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { decodeArray } from "../../../formats/core/bulk.ts";
import { float32 } from "../../../formats/float32.ts";
import { int2 } from "../../../formats/int2.ts";
import { int4 } from "../../../formats/int4.ts";
import { int8 } from "../../../formats/int8.ts";
import { nf4 } from "../../../formats/nf4.ts";
import { uint2 } from "../../../formats/uint2.ts";
import { uint4 } from "../../../formats/uint4.ts";
import { uint8 } from "../../../formats/uint8.ts";
import { gatherRows } from "../../tensor/gather.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { Value } from "../value.ts";
import { floats, integers } from "../value.ts";
import type { ActivationChoice, Inputs, Operator, Operators, PrepareContext, Prepared, Run, TableRows } from "./operator.ts";
import { fail, need } from "./operator.ts";
import { bytesOf, floatWeight, runLayer } from "./product.ts";

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

interface Sizes {
  readonly n: number;
  readonly k: number;
  readonly bits: number;
  readonly block: number;
}

const packedBytes = ({ n, k, bits }: Sizes): number => n * Math.ceil((k * bits) / 8);

/** The codes, scales and zero points of MatMulNBits or GatherBlockQuantized as a packed tensor in `out`, of `packedBytes`. */
function nbitsWeight(from: Uint8Array, scales: Value, zeros: Value | undefined, size: Sizes, out: Uint8Array): PackedTensor {
  const { n, k, bits, block } = size;
  const stride = from.length / n;
  const rowBytes = Math.ceil((k * bits) / 8);
  // Unsigned codes around the middle are two's complement with the top bit of each flipped.
  const flip = zeros === undefined ? [0xaa, 0x88, 0x80][Math.log2(bits) - 1] : 0;
  if (stride === rowBytes && out.length % 4 === 0 && from.byteOffset % 4 === 0 && out.byteOffset % 4 === 0) {
    const words = new Int32Array(from.buffer, from.byteOffset, from.length / 4);
    const to = new Int32Array(out.buffer, out.byteOffset, out.length / 4);
    const mask = Math.imul(flip, 0x01010101);
    for (let i = 0; i < to.length; i++) to[i] = words[i] ^ mask;
  } else for (let r = 0; r < n; r++) for (let i = 0; i < rowBytes; i++) out[r * rowBytes + i] = from[r * stride + i] ^ flip;
  const tail = (k * bits) % 8;
  if (tail !== 0) for (let r = 1; r <= n; r++) out[r * rowBytes - 1] &= 2 ** tail - 1;
  const element = (zeros === undefined ? SIGNED : UNSIGNED).get(bits)!;
  const level = [{ format: float32, span: block }];
  const zeroFormat = zeros?.data instanceof Float32Array ? float32 : element;
  const format: BlockFormat = defineBlock({
    element,
    scales: level,
    ...(zeros === undefined ? {} : { offset: { role: "zeroPoint" as const, levels: [{ format: zeroFormat, span: block }] } }),
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

const NBITS_SIZES = (node: NodeProto): Sizes => ({
  n: attributeInt(node, "N", 0),
  k: attributeInt(node, "K", 0),
  bits: attributeInt(node, "bits", 4),
  block: attributeInt(node, "block_size", 32),
});

/** The packed tensor of a MatMulNBits node, its codes in `out`; undefined where its weight is none of constants. @throws LowbitError E_SHAPE */
function packNBits(
  node: NodeProto,
  context: PrepareContext,
  constant: (name: string) => Value | undefined,
  out: (bytes: number) => Uint8Array,
): PackedTensor | undefined {
  const [scales, zeros] = [2, 3].map((i) => constant(node.input[i] ?? ""));
  if (scales === undefined || !(scales.data instanceof Float32Array)) return undefined;
  if (zeros === undefined ? (node.input[3] ?? "") !== "" : zeros.type !== "uint8" && zeros.type !== "float32") return undefined;
  const codes = context.bytes(node.input[1] ?? "") ?? (constant(node.input[1] ?? "")?.data as Uint8Array | undefined);
  if (!(codes instanceof Uint8Array)) return undefined;
  const size = NBITS_SIZES(node);
  const blocks = Math.ceil(size.k / size.block);
  const wanted = (size.n * blocks * size.block * size.bits) / 8;
  if (codes.length !== wanted) throw fail(node, `${wanted} bytes of codes [N, blocks, bytes]`, String(codes.length));
  if (scales.data.length !== size.n * blocks) throw fail(node, `${size.n * blocks} scales`, `${scales.data.length}`);
  return nbitsWeight(codes, scales, zeros, size, out(packedBytes(size)));
}

/** accuracy_level 4 allows int8 activations. */
const nbitsActivations = (node: NodeProto, { activations }: PrepareContext): Exclude<ActivationChoice, "auto"> =>
  activations !== "auto" ? activations : attributeInt(node, "accuracy_level", 0) === 4 ? "int8" : "float32";

function prepareNBits(node: NodeProto, context: PrepareContext): Prepared | undefined {
  const activations = nbitsActivations(node, context);
  const { bits, block } = NBITS_SIZES(node);
  const key = `${node.input.slice(1, 4).join(" ")} ${bits} ${block} ${activations}`;
  const weight = packNBits(node, context, (name) => context.constant(node.input.indexOf(name)), context.scratch);
  if (weight === undefined) return undefined;
  const layer = context.layer(key, () => context.backend.prepare(weight, { activations }));
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

/** Several MatMulNBits nodes of one input, without zero points and biases, as one product: its columns are theirs, one node after the other. */
export function joinNBits(nodes: readonly NodeProto[], context: PrepareContext, constant: (name: string) => Value | undefined) {
  const sizes = nodes.map(NBITS_SIZES);
  const codes = context.scratch(sizes.reduce((sum, size) => sum + packedBytes(size), 0));
  let at = 0;
  const parts = nodes.map((node) => packNBits(node, context, constant, (bytes) => codes.subarray(at, (at += bytes)))!);
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const scales = joinBytes(parts.map((part) => part.scales!));
  const activations = nbitsActivations(nodes[0], context);
  const key = `${nodes.map((node) => node.input[1]).join(" ")} ${activations}`;
  const widths = parts.map((part) => part.rows);
  const layer = context.layer(key, () =>
    context.backend.prepare({ ...parts[0], shape: [rows, parts[0].k], rows, codes, scales }, { activations }),
  );
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
    const packed = nbitsWeight(bytesOf(data.data), scales, zeros, size, new Uint8Array(packedBytes(size)));
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

/** MatMulBnb4: codes of the flattened [N, K], the first of a byte in its high nibble, a scale for each block of them. */
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
    const layer = context.layer(node.input.slice(1, 3).join(" "), () =>
      context.backend.prepare(bnb4Weight(from, scales, element, size), {
        activations: context.activations === "auto" ? "float32" : context.activations,
      }),
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
