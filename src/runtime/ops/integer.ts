// Products and convolutions of small integers by constant weights, made ready for the backend's kernels: exact int32
// sums, finished there too.
import { engineMemory, hasEngineMemory } from "../../backends/wasm/memory.ts";
import { packFilters, packMatrix } from "../../backends/wasm/nn/integer.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { NumberArray, Value } from "../value.ts";
import type { CodeUnit, PrepareContext, Prepared, Run } from "./operator.ts";
import { fail, ints } from "./operator.ts";

const BYTES: ReadonlySet<string> = new Set(["int8", "uint8"]);

/** The matrix [k, n] as int8 rows along k, codes of uint8 less 128. */
function byRows(w: Value, less: number): Int8Array {
  const [k, n] = w.dims;
  const rows = new Int8Array(n * k);
  const from = w.data as NumberArray;
  for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) rows[j * k + i] = from[i * n + j] - less;
  return rows;
}

/** The codes at `at(row, i)` of rows, less their zero points, where products run on a device; in whole words. */
function forDevice(
  { backend, products }: PrepareContext,
  rows: number,
  width: number,
  zeros: ArrayLike<number>,
  at: (row: number, i: number) => number,
): Int16Array | undefined {
  if (products === backend) return undefined;
  const out = new Int16Array(2 * Math.ceil((rows * width) / 2));
  for (let r = 0; r < rows; r++) for (let i = 0; i < width; i++) out[r * width + i] = at(r, i) - zeros[zeros.length === 1 ? 0 : r];
  return out;
}

/** What the kernels do not take has its reason said. */
const refuse: Run = (inputs, node) => {
  const [x] = inputs;
  throw fail(node, "codes of int8 or uint8", x === undefined ? "none" : `${x.type} [${x.dims.join(", ")}]`);
};

export const preparedCodes = (codes: CodeUnit, weight: number): Prepared => ({
  run: refuse,
  kernel: codes.kind === "conv" ? "int8 conv" : "int8",
  drops: [weight],
  codes,
});

/** Inputs of an operator: of its weight and of the weight's zero points. */
interface Operands {
  readonly weight: number;
  readonly zero: number;
}

/** Zero points that are constants, or none; undefined where they are computed, or are not one or `count`. */
function constantZeros(node: NodeProto, context: PrepareContext, i: number, count: number): ArrayLike<number> | undefined {
  if ((node.input[i] ?? "") === "") return [0];
  const zeros = context.constant(i);
  if (zeros === undefined || (zeros.data.length !== 1 && zeros.data.length !== count)) return undefined;
  return zeros.data as NumberArray;
}

/**
 * A node whose second matrix is constant, made ready for the kernel of integers; undefined for others, and backends
 * without one.
 */
export const prepareProduct =
  ({ weight, zero }: Operands) =>
  (node: NodeProto, context: PrepareContext): Prepared | undefined => {
    const { backend } = context;
    const w = context.constant(weight);
    if (!hasEngineMemory(backend) || w?.dims.length !== 2 || !BYTES.has(w.type) || w.data.length === 0) return undefined;
    const [k, n] = w.dims;
    const zeros = constantZeros(node, context, zero, n);
    if (zeros === undefined) return undefined;
    const less = w.type === "uint8" ? 128 : 0;
    const relative = Array.from(zeros, (z) => z - less);
    const matrix = context.own(packMatrix(engineMemory(backend), byRows(w, less), n, k, relative));
    const from = w.data as NumberArray;
    const codes = forDevice(context, n, k, zeros, (j, i) => from[i * n + j]);
    return preparedCodes({ kind: "product", matrix, plans: new Map(), codes }, weight);
  };

/** The same of constant filters [outputs, channels / groups, ...kernel] in one or two dimensions. */
export const prepareConv =
  ({ weight, zero }: Operands) =>
  (node: NodeProto, context: PrepareContext): Prepared | undefined => {
    const { backend } = context;
    const w = context.constant(weight);
    if (!hasEngineMemory(backend) || w === undefined || !BYTES.has(w.type) || w.data.length === 0) return undefined;
    const [outputs, width, ...spatial] = w.dims;
    const groups = attributeInt(node, "group", 1);
    const given = ints(node, "kernel_shape");
    if (spatial.length < 1 || spatial.length > 2 || groups < 1 || outputs % groups !== 0) return undefined;
    if (given !== undefined && given.join() !== spatial.join()) return undefined;
    const zeros = constantZeros(node, context, zero, outputs);
    if (zeros === undefined) return undefined;
    const kernel = spatial.length === 1 ? ([1, spatial[0]] as const) : ([spatial[0], spatial[1]] as const);
    const codes = w.data as NumberArray;
    const filters = context.own(packFilters(engineMemory(backend), { codes, zeros, outputs, groups, width, kernel }));
    const taps = codes.length / outputs;
    const kept = forDevice(context, outputs, taps, zeros, (o, i) => codes[o * taps + i]);
    return preparedCodes({ kind: "conv", filters, plans: new Map(), codes: kept }, weight);
  };
