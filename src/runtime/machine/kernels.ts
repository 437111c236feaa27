// Operators on the kernels of a backend's memory: each takes values and gives slots, or undefined where these shapes
// and types are none of its kernel (then its loops run).
import { chain, chainJob, chainSpec } from "../../../kernels/wasm/nn/chain.ts";
import { norm, normJob } from "../../../kernels/wasm/nn/norm.ts";
import { rotary, rotaryJob } from "../../../kernels/wasm/nn/rotary.ts";
import { everyRow, rowsAt } from "../../../kernels/wasm/nn/rows.ts";
import { softmax, softmaxJob } from "../../../kernels/wasm/nn/softmax.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { placed } from "../../backends/wasm/memory.ts";
import type { SyncLayer } from "../../backends/types.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { headOf, rotaryRows } from "../ops/attention.ts";
import type { Inputs, Run } from "../ops/operator.ts";
import { axisOf, product } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { EXPRESSIONS, runChain } from "./chains.ts";
import { binary, constant, operand, unary } from "../../../kernels/wasm/nn/values.ts";
import { INTEGER_FUNCTIONS } from "./integer-functions.ts";
import { INTEGERS } from "./integers.ts";
import { MOVES } from "./moves.ts";
import { elementsOf, isFloatSlot, isPlaceable, isSlot, type Emit, type Machine, type Slot } from "./machine.ts";

const isFloat = (value: Value | undefined): value is Value => value?.type === "float32";

/** A product with a constant weight, and its bias. `last`: of the last row only. */
export function emitProduct(m: Machine, layer: SyncLayer, x: Value | undefined, bias: Value | undefined, last = false): Slot | undefined {
  if (!isFloat(x) || elementsOf(x) === 0 || x.dims.at(-1) !== layer.k) return undefined;
  const rows = last ? 1 : elementsOf(x) / layer.k;
  const from = m.place(x) + (last ? 4 * (elementsOf(x) - layer.k) : 0);
  const y = m.slot(last ? [...x.dims.slice(0, -1).map(() => 1), layer.n] : [...x.dims.slice(0, -1), layer.n]);
  const { runAt } = placed(layer);
  m.call(() => runAt(from, rows, y.address));
  if (bias === undefined) return y;
  const sum = runChain(m, ([a, b]) => binary("add", a, b), [y, bias]);
  if (sum !== null) m.free(y);
  return sum ?? undefined;
}

/** Joined products, all with biases or none: of one row without them parts are views, else they have their own rows. */
export function emitJoined(m: Machine, layer: SyncLayer, widths: readonly number[], [x, ...biases]: Inputs): Slot[] | undefined {
  if (!isFloat(x) || elementsOf(x) === 0 || x.dims.at(-1) !== layer.k) return undefined;
  const outer = x.dims.slice(0, -1);
  const rows = product(outer);
  if (rows > 1 && biases.length === 0) {
    const from = m.place(x);
    const slots = widths.map((width) => m.slot([...outer, width]));
    const parts = slots.map(({ address }, i) => ({ address, width: widths[i] }));
    const { runAt } = placed(layer);
    m.call(() => runAt(from, rows, parts));
    return slots;
  }
  const y = emitProduct(m, layer, x, undefined)!;
  const add = chainSpec([binary("add", operand(0), operand(1))], ["vector", "vector"], { shared: m.memory.shared, relaxed: false });
  let next = 0;
  const parts = widths.map((width, i) => {
    const start = next;
    next += width;
    if (biases.length === 0) return m.view(y, [...outer, width], start);
    const part = m.slot([...outer, width]);
    const sums = { address: y.address + 4 * start, outer: 0, inner: 4 * layer.n };
    m.job(m.memory.kernel(chain, add), chainJob(rows, width, [sums, everyRow(m.place(biases[i]!)), rowsAt(part.address, width, rows)]));
    return part;
  });
  m.free(y);
  return parts;
}

export interface NormOf {
  readonly kind: "rms" | "layer";
  readonly x: Value;
  readonly skip?: Value;
  readonly addend?: Value;
  readonly scale: Value;
  readonly shift?: Value;
  readonly epsilon: number;
  readonly width: number;
}

/** Norm of rows; with a skip or an addend also the sum, as second result. */
export function emitNorm(m: Machine, of: NormOf, keepSum: boolean): [Slot, Slot | undefined] | undefined {
  const { kind, x, skip, addend, scale, shift, epsilon, width } = of;
  const all = [x, skip, addend, scale, shift];
  if (all.some((v) => v !== undefined && !isFloat(v)) || elementsOf(x) === 0 || elementsOf(scale) !== width) return undefined;
  if (skip !== undefined && elementsOf(skip) !== elementsOf(x)) return undefined;
  const rows = elementsOf(x) / width;
  const y = m.slot(x.dims);
  const sum = keepSum && (skip !== undefined || addend !== undefined) ? m.slot(x.dims) : undefined;
  const at = (value: Value | undefined) => (value === undefined ? undefined : m.place(value));
  const spec = {
    kind,
    skip: skip !== undefined,
    addend: addend !== undefined,
    scale: true,
    shift: shift !== undefined,
    shared: m.memory.shared,
  };
  m.job(
    m.memory.kernel(norm, spec),
    normJob({
      rows,
      width,
      epsilon,
      x: rowsAt(m.place(x), width, rows),
      y: rowsAt(y.address, width, rows),
      ...(skip === undefined ? {} : { skip: rowsAt(m.place(skip), width, rows) }),
      ...(sum === undefined ? {} : { sum: rowsAt(sum.address, width, rows) }),
      ...(addend === undefined ? {} : { addend: at(addend)! }),
      scale: at(scale)!,
      ...(shift === undefined ? {} : { shift: at(shift)! }),
    }),
  );
  return [y, sum];
}

const plainNorm =
  (kind: "rms" | "layer"): Emit =>
  (m, inputs, node) => {
    const [x, scale, shift] = inputs;
    if (!isPlaceable(x) || scale === undefined) return undefined;
    const width = product(x.dims.slice(axisOf(attributeInt(node, "axis", -1), x.dims.length, node)));
    const epsilon = attributeFloat(node, "epsilon", 1e-5);
    const made = emitNorm(m, { kind, x, scale, ...(shift === undefined ? {} : { shift }), epsilon, width }, false);
    return made && [made[0]];
  };

const skipNorm =
  (kind: "rms" | "layer"): Emit =>
  (m, inputs, node) => {
    const [x, skip, scale] = inputs;
    const shift = kind === "layer" ? inputs[3] : undefined;
    const addend = inputs[kind === "layer" ? 4 : 3];
    if (!isFloat(x) || !isFloat(skip) || scale === undefined || !(isPlaceable(x) || isPlaceable(skip))) return undefined;
    const of: NormOf = {
      kind,
      ...{ x, skip, scale, width: x.dims.at(-1)! },
      ...(shift === undefined ? {} : { shift }),
      ...(addend === undefined ? {} : { addend }),
      epsilon: attributeFloat(node, "epsilon", kind === "layer" ? 1e-12 : 1e-5),
    };
    const made = emitNorm(m, of, (node.output[3] ?? "") !== "");
    return made && [made[0], undefined, undefined, made[1]];
  };

/** Softmax over the last axis. */
const emitSoftmax: Emit = (m, [x], node) => {
  if (!isPlaceable(x) || elementsOf(x) === 0 || axisOf(attributeInt(node, "axis", -1), x.dims.length, node) !== x.dims.length - 1)
    return undefined;
  const width = x.dims.at(-1)!;
  const rows = elementsOf(x) / width;
  const y = m.slot(x.dims);
  const job = softmaxJob({ rows, width, x: rowsAt(m.place(x), width, rows), y: rowsAt(y.address, width, rows) });
  m.job(m.memory.kernel(softmax, { shared: m.memory.shared }), job);
  return [y];
};

/** com.microsoft.RotaryEmbedding of [B, S, heads * size] by positions of each token. */
const emitRotary: Emit = (m, [x, positions, cos, sin], node) => {
  if (!isFloatSlot(x) || !isFloat(cos) || !isFloat(sin) || positions === undefined || x.dims.length !== 3 || elementsOf(x) === 0)
    return undefined;
  const [batch, tokens, width] = x.dims;
  const rotated = 2 * cos.dims.at(-1)!;
  const size = headOf(x, node, rotated);
  const list = rotaryRows(positions, x.dims, cos.dims[0]);
  // what is wrong is the loops' to say
  if (size === undefined || rotated > size || list === undefined || elementsOf(sin) !== elementsOf(cos)) return undefined;
  const at = m.slot([list.length]);
  new Int32Array(m.memory.buffer, at.address, list.length).set(list);
  const y = m.slot(x.dims);
  const heads = width / size;
  const rows = (address: number) => ({ address, outer: 4 * width, inner: 4 * size });
  m.job(
    m.memory.kernel(rotary, { interleaved: attributeInt(node, "interleaved", 0) !== 0, shared: m.memory.shared }),
    rotaryJob({ tokens: batch * tokens, heads, width: size, rotated, x: rows(x.address), y: rows(y.address), cos: m.place(cos), sin: m.place(sin), positions: at.address }), // prettier-ignore
  );
  m.free(at);
  return [y];
};

/** Data of a value whose shape alone is asked for. */
const NOTHING = new Float32Array(0);

/** Another shape for the same values: the shape is what the operator's loops say of them. */
const sameValues =
  (run: Run): Emit =>
  (m, inputs, node) => {
    const [x] = inputs;
    if (!isSlot(x)) return undefined;
    const shaped = run([{ type: x.type, dims: x.dims, data: NOTHING }, ...inputs.slice(1)], node) as Value;
    return [m.view(x, shaped.dims)];
  };

const chained: Emit = (m, inputs, node) => {
  const build = EXPRESSIONS.get(node.domain === "" || node.domain === "ai.onnx" ? node.opType : `${node.domain}.${node.opType}`)!;
  const values = inputs.filter((v) => v !== undefined);
  const slot = runChain(m, (args) => build(args, node), values);
  return slot === null ? undefined : [slot];
};

/** BatchNormalization of one image, rounded as onnxruntime does: its four vectors have a number for each channel. */
const batchNorm: Emit = (m, [x, ...vectors], node) => {
  if (!isPlaceable(x) || x.dims.length < 2 || x.dims[0] !== 1 || vectors.length !== 4) return undefined;
  if (vectors.some((v) => !isFloat(v) || isSlot(v) || elementsOf(v) !== x.dims[1])) return undefined;
  const dims = x.dims.map((d, axis) => (axis === 1 ? d : 1));
  const y = runChain(
    m,
    ([v, scale, shift, mean, variance]) => {
      const deviation = unary("sqrt", binary("add", variance, constant(attributeFloat(node, "epsilon", 1e-5))));
      const factor = binary("mul", binary("div", constant(1), deviation), scale);
      return binary("add", binary("mul", v, factor), binary("sub", shift, binary("mul", mean, factor)));
    },
    [x, ...vectors.map((v) => ({ ...v!, dims }))],
  );
  return y === null ? undefined : [y];
};

const SHAPES = ["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"];

/** The kernels of operators, by name. */
export function emitters(loops: ReadonlyMap<string, { readonly run: Run }>): ReadonlyMap<string, Emit> {
  return new Map<string, Emit>([
    ...[...EXPRESSIONS.keys()].map((name): [string, Emit] => [name, chained]),
    ...SHAPES.map((name): [string, Emit] => [name, sameValues(loops.get(name)!.run)]),
    ...MOVES,
    ...INTEGERS,
    ...INTEGER_FUNCTIONS,
    ["Softmax", emitSoftmax],
    ["BatchNormalization", batchNorm],
    ["LayerNormalization", plainNorm("layer")],
    ["SimplifiedLayerNormalization", plainNorm("rms")],
    ["RMSNormalization", plainNorm("rms")],
    ["com.microsoft.SkipLayerNormalization", skipNorm("layer")],
    ["com.microsoft.SkipSimplifiedLayerNormalization", skipNorm("rms")],
    ["com.microsoft.RotaryEmbedding", emitRotary],
  ]);
}

/**
 * com.microsoft.RotaryEmbedding [1, S, heads * size] of tokens that follow `past` others, whatever positions are fed.
 */
export function emitTurn(m: Machine, [x, , cos, sin]: Inputs, node: NodeProto, pasts: readonly (() => number)[]): Slot | undefined {
  if (!isFloat(x) || !isFloat(cos) || !isFloat(sin) || x.dims.length !== 3 || x.dims[0] !== pasts.length) return undefined;
  const [, tokens, width] = x.dims;
  const rotated = 2 * cos.dims.at(-1)!;
  const size = headOf(x, node, rotated);
  if (size === undefined || rotated > size) return undefined;
  const y = m.slot(x.dims);
  const rows = (address: number) => ({ address, outer: 4 * width, inner: 4 * size });
  const [from, tables] = [m.place(x), { cos: m.place(cos), sin: m.place(sin) }];
  const kernel = m.memory.kernel(rotary, { interleaved: attributeInt(node, "interleaved", 0) !== 0, shared: m.memory.shared });
  pasts.forEach((past, b) => {
    const shift = 4 * b * tokens * width;
    const places = { x: rows(from + shift), y: rows(y.address + shift), ...tables };
    m.moving(kernel, past, (first) => rotaryJob({ tokens, heads: width / size, width: size, rotated, first, ...places }));
  });
  return y;
}
