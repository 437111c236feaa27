// Operators of integer quantization on kernels: codes of values and values of codes, convolutions and products of codes
// by constant weights. Zero points and scales may be computed by the model: what depends on them is written as a call
// between the jobs, so that a recorded run repeats it.
import { codesJob, decodeRows, encodeRows, longRows, range, rangeJob, type Code, type Coded } from "../../../kernels/wasm/conv/codes.ts";
import type { Rows } from "../../../kernels/wasm/nn/rows.ts";
import type { WindowShape } from "../../backends/wasm/nn/convolution.ts";
import { integerConvolution, zeroOffsets, type Finished, type IntegerConvPlan } from "../../backends/wasm/nn/integer.ts";
import { TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { INTEGER_DOMAIN } from "../../onnx/integer/functions.ts";
import { outSize, windowShape } from "../ops/conv.ts";
import type { CodeUnit, Inputs } from "../ops/operator.ts";
import { axisOf, fail, product } from "../ops/operator.ts";
import { dynamicScale } from "../../backends/range.ts";
import type { NumberArray, Value } from "../value.ts";
import { elementType } from "../value.ts";
import { emitLinear } from "./integer-functions.ts";
import { elementsOf, isPlaceable, isSlot, slotBytes, type Emit, type Machine, type Slot, type SlotType } from "./machine.ts";

const CODES: ReadonlySet<string> = new Set<Code>(["int8", "uint8", "int16", "uint16"]);
const CODED: ReadonlySet<string> = new Set<Coded>(["int8", "uint8", "int16", "uint16", "int32"]);

const isCodes = (value: Value | undefined): value is Value => value !== undefined && (value.type === "int8" || value.type === "uint8");

const numberOf = (value: Value | undefined): number => (value === undefined ? 0 : Number(value.data[0]));

/** DynamicQuantizeLinear: codes, scale, zero point. */
const dynamicCodes: Emit = (m, [x]) => {
  if (!isPlaceable(x) || elementsOf(x) === 0) return undefined;
  const count = elementsOf(x);
  const from = m.place(x);
  const [y, scale, zero] = [m.slot(x.dims, "uint8"), m.slot([]), m.slot([], "uint8")];
  const { items } = rangeJob(from, count, 0);
  const [ranges, word] = [m.slot([2 * items]), m.slot([], "int32")];
  m.job(m.memory.kernel(range, { shared: m.memory.shared }), rangeJob(from, count, ranges.address));
  m.call(() => {
    let [low, high] = [0, 0];
    const found = m.memory.floats(ranges.address, 2 * items);
    for (let i = 0; i < items; i++) {
      low = Math.min(low, found[2 * i]);
      high = Math.max(high, found[2 * i + 1]);
    }
    const made = dynamicScale(low, high);
    (scale.data as Float32Array)[0] = made.scale;
    (zero.data as Uint8Array)[0] = (word.data as Int32Array)[0] = made.zero;
  });
  const { rows, width } = longRows(count);
  const one = (address: number): Rows => ({ address, outer: 0, inner: 0 });
  const at = { x: { address: from, outer: 0, inner: 4 * width }, y: { address: y.address, outer: 0, inner: width } };
  const job = codesJob({ rows, width, ...at, scale: one(scale.address), zero: one(word.address) });
  m.job(m.memory.kernel(encodeRows, { to: "uint8", shared: m.memory.shared }), job);
  m.free(ranges);
  m.free(word);
  return [y, scale, zero];
};

/** How values lie under the scales of an axis: rows of `width` under one scale each, `per` of them in turn. */
function scaledRows(x: Value, scale: Value, node: NodeProto): { rows: number; width: number; per: number } | undefined {
  const count = elementsOf(x);
  if (attributeInt(node, "block_size", 0) !== 0 || count === 0 || scale.type !== "float32") return undefined;
  if (elementsOf(scale) === 1) return { ...longRows(count), per: 1 };
  const axis = axisOf(attributeInt(node, "axis", 1), x.dims.length, node);
  if (scale.dims.length !== 1 || scale.dims[0] !== x.dims[axis]) return undefined;
  const width = product(x.dims.slice(axis + 1));
  return { rows: count / width, width, per: x.dims[axis] };
}

/** Zero points as int32, one for each scale. */
function placeZeros(m: Machine, zeros: Value | undefined, count: number): Slot | undefined {
  if (zeros !== undefined && elementsOf(zeros) !== count) return undefined;
  const words = m.slot([count], "int32");
  m.call(() => {
    const into = words.data as Int32Array;
    if (zeros === undefined) into.fill(0);
    else into.set(zeros.data as NumberArray);
  });
  return words;
}

/** Codes of values, or values of codes. */
function between(m: Machine, x: Value, scale: Value, zeros: Value | undefined, to: SlotType, node: NodeProto): Slot | undefined {
  const cut = scaledRows(x, scale, node);
  const count = elementsOf(scale);
  const words = cut && placeZeros(m, zeros, count);
  if (cut === undefined || words === undefined) return undefined;
  const { rows, width, per } = cut;
  const y = m.slot(x.dims, to);
  const lies = (value: Value, address: number): Rows => {
    const bytes = width * slotBytes(value.type as SlotType);
    return { address, outer: per * bytes, inner: bytes };
  };
  const each = (address: number): Rows => ({ address, outer: 0, inner: count === 1 ? 0 : 4 });
  const job = codesJob({
    ...{ rows, width, per },
    x: lies(x, m.place(x)),
    y: lies(y, y.address),
    scale: each(m.place(scale)),
    zero: each(words.address),
  });
  const { shared } = m.memory;
  if (to === "float32") m.job(m.memory.kernel(decodeRows, { from: x.type as Coded, shared }), job);
  else m.job(m.memory.kernel(encodeRows, { to: to as Code, shared }), job);
  m.free(words);
  return y;
}

const quantizeLinear: Emit = (m, [x, scale, zeros], node) => {
  if (!isPlaceable(x) || scale === undefined) return undefined;
  const type = zeros?.type ?? elementType(attributeInt(node, "output_dtype", 0)) ?? "uint8";
  if (!CODES.has(type) || zeros?.bits !== undefined) return undefined;
  const y = between(m, x, scale, zeros, type as Code, node);
  return y && [y];
};

const dequantizeLinear: Emit = (m, [x, scale, zeros], node) => {
  if (x === undefined || scale === undefined || !CODED.has(x.type) || !(isSlot(x) || elementsOf(x) >= 256)) return undefined;
  const y = between(m, x, scale, zeros, "float32", node);
  return y && [y];
};

const ONE: Value = { type: "float32", dims: [], data: Float32Array.of(1) };

/** Integers of the feeds, such as masks, that are worth a place in the arena. */
const WORTH = 64;

/** Cast of codes, sums and integers of the feeds to float32. */
const cast: Emit = (m, [x], node) => {
  if (x?.type === "int64" && !m.isRecording && elementsOf(x) >= WORTH && attributeInt(node, "to", 0) === Number(T.FLOAT)) {
    const y = m.slot(x.dims);
    const from = x.data as BigInt64Array;
    m.call(() => {
      const into = y.data as Float32Array;
      for (let i = 0; i < from.length; i++) into[i] = Number(from[i]);
    });
    return [y];
  }
  if (!isSlot(x) || attributeInt(node, "to", 0) !== Number(T.FLOAT) || elementsOf(x) === 0) return undefined;
  if (x.type === "float32") return [m.view(x, x.dims)];
  const y = between(m, x, ONE, undefined, "float32", node);
  return y && [y];
};

export const INTEGERS: readonly (readonly [string, Emit])[] = [
  ["DynamicQuantizeLinear", dynamicCodes],
  ["QuantizeLinear", quantizeLinear],
  ["DequantizeLinear", dequantizeLinear],
  ["com.microsoft.QuantizeLinear", quantizeLinear],
  ["com.microsoft.DequantizeLinear", dequantizeLinear],
  ["Cast", cast],
];

/** What becomes of the sums of a product of codes. */
export interface Sums {
  readonly finished: Finished;
  /** int32 addends, one for each filter or column. */
  readonly integers?: NumberArray;
  /** Writes the factors of filters or columns, each time anew; sums that stay integers have none. */
  readonly factors?: (into: Float32Array) => void;
  /** float32, as many as there are filters or columns. */
  readonly bias?: Value;
}

/** Slots for what is added to and multiplied with the sums of `columns` filters. */
function terms(m: Machine, columns: number, { integers, factors, bias }: Sums, zeros: (into: Int32Array) => void) {
  const offsets = m.slot([columns], "int32");
  const scales = factors === undefined ? undefined : m.slot([columns]);
  // whole blocks of a constant lie where they are
  const isPlaced = bias !== undefined && m.isConstant(bias) && elementsOf(bias) === columns;
  const added = bias === undefined || isPlaced ? undefined : m.slot([columns]);
  m.call(() => {
    const into = (offsets.data as Int32Array).fill(0);
    if (integers !== undefined) into.set(integers);
    zeros(into);
    if (scales !== undefined) factors!(scales.data as Float32Array);
    if (added !== undefined) spread(bias!, added.data as Float32Array);
  });
  return {
    at: { offsets: offsets.address, factors: scales?.address ?? 0, bias: isPlaced ? m.place(bias) : (added?.address ?? 0) },
    free: () => [offsets, scales, added].forEach((slot) => slot !== undefined && m.free(slot)),
  };
}

type ConvUnit = Extract<CodeUnit, { kind: "conv" }>;
type ProductUnit = Extract<CodeUnit, { kind: "product" }>;

const MOST_PLANS = 16;

function planOf(m: Machine, { filters, plans }: ConvUnit, shape: WindowShape, unsigned: boolean): IntegerConvPlan {
  const key = `${JSON.stringify(shape)} ${String(unsigned)}`;
  const known = plans.get(key);
  if (known !== undefined) return known;
  const plan = integerConvolution(m.memory, filters, shape, unsigned);
  if (plans.size >= MOST_PLANS) plans.clear();
  plans.set(key, plan);
  return plan;
}

/** The convolution of codes x less their zero point. @throws LowbitError E_SHAPE */
function emitConv(m: Machine, unit: ConvUnit, x: Value, zero: Value | undefined, node: NodeProto, sums: Sums): Slot {
  const { filters } = unit;
  const { groups, width, kernel } = filters;
  const own = x.dims.length === 3 ? [kernel[1]] : [...kernel];
  if (x.dims.length < 3 || x.dims.length > 4 || (x.dims.length === 3 && kernel[0] !== 1) || x.dims[1] !== groups * width)
    throw fail(node, `an image of ${groups * width} channels`, `[${x.dims.join(", ")}]`);
  const shape = windowShape(x, node, own);
  // says what is wrong with the image
  outSize(shape, node);
  const unsigned = x.type === "uint8";
  const plan = planOf(m, unit, shape, unsigned);
  const spatial = x.dims.length === 3 ? [plan.output[1]] : [...plan.output];
  const y = m.slot([shape.batch, filters.outputs, ...spatial], sums.finished.to);
  if (elementsOf(y) === 0) return y;
  const from = m.place(x);
  const table = m.slot([plan.table.length], "int32");
  const scratch = plan.scratchBytes === 0 ? undefined : m.slot([plan.scratchBytes], "uint8");
  const fill = m.slot([], "uint8");
  const added = terms(m, filters.outputs, sums, (into) => zeroOffsets(filters, unsigned, numberOf(zero), into));
  const { jobs, setZero } = plan.jobs(
    { x: from, y: y.address, table: table.address, scratch: scratch?.address ?? 0, fill: fill.address, ...added.at },
    sums.finished,
  );
  m.call(() => {
    const code = numberOf(zero);
    (table.data as Int32Array).set(plan.table);
    (fill.data as Uint8Array)[0] = code & 255;
    setZero(code);
  });
  for (const job of jobs) m.job(job.kernel, job);
  added.free();
  for (const slot of [table, scratch, fill]) if (slot !== undefined) m.free(slot);
  return y;
}

/** The product of rows of codes x less their zero point: [.., k] to [.., n]. @throws LowbitError E_SHAPE */
function emitProduct(m: Machine, { matrix, plans }: ProductUnit, x: Value, zero: Value | undefined, node: NodeProto, sums: Sums): Slot {
  if (x.dims.at(-1) !== matrix.k) throw fail(node, `[.., ${matrix.k}] of int8 or uint8`, `${x.type} [${x.dims.join(", ")}]`);
  const y = m.slot([...x.dims.slice(0, -1), matrix.n], sums.finished.to);
  if (elementsOf(y) === 0) return y;
  const rows = elementsOf(y) / matrix.n;
  const plan = plans.get(rows) ?? matrix.product(rows);
  if (plans.size >= MOST_PLANS) plans.clear();
  plans.set(rows, plan);
  const from = m.place(x);
  const scratch = m.slot([plan.scratchBytes], "uint8");
  const added = terms(m, plan.columns, sums, (into) => plan.zeroOffsets(numberOf(zero), into));
  const at = { x: from, y: y.address, scratch: scratch.address, ...added.at };
  const { jobs, setZero } = plan.jobs(at, x.type === "uint8", sums.finished);
  m.call(() => setZero(numberOf(zero)));
  for (const job of jobs) m.job(job.kernel, job);
  added.free();
  m.free(scratch);
  return y;
}

function emitSums(m: Machine, unit: CodeUnit, [x, zero]: Inputs, node: NodeProto, sums: Sums): Slot | undefined {
  if (!isCodes(x)) return undefined;
  if (zero !== undefined && elementsOf(zero) !== 1) throw fail(node, "one zero point of activations", String(elementsOf(zero)));
  return unit.kind === "conv" ? emitConv(m, unit, x, zero, node, sums) : emitProduct(m, unit, x, zero, node, sums);
}

const countOf = (unit: CodeUnit): number => (unit.kind === "conv" ? unit.filters.outputs : unit.matrix.n);

/** Whether a value has one number for each filter or column, or one for all. */
function isAlong(value: Value, unit: CodeUnit, rank: number): boolean {
  const { dims } = value;
  const count = elementsOf(value);
  if (value.type !== "float32" || dims.length > rank) return false;
  if (count === 1) return true;
  const place = unit.kind === "conv" ? dims.length - (rank - 1) : dims.length - 1;
  return count === countOf(unit) && place >= 0 && dims[place] === count;
}

/** The numbers of a value along filters or columns. */
function spread(value: Value, into: Float32Array, times = 1, over = 1): void {
  const data = value.data as Float32Array;
  const count = data.length;
  const { fround } = Math;
  if (count === 1) {
    into.fill(fround(fround(data[0] * times) / over));
    return;
  }
  // what is stored is rounded
  if (over === 1) for (let i = 0; i < count; i++) into[i] = data[i] * times;
  else for (let i = 0; i < count; i++) into[i] = fround(data[i] * times) / over;
  into.fill(0, count);
}

/** Functions of integer-only models, and whether they give bytes. */
const LINEAR: ReadonlyMap<string, boolean> = new Map([
  [`${INTEGER_DOMAIN}.Linear`, false],
  [`${INTEGER_DOMAIN}.LinearUint8`, true],
]);

/**
 * Products of codes as nodes have them: sums of integers, codes (QLinearConv, QLinearMatMul), and sums scaled by what
 * follows (`lowbit.Scaled`: codes, zero point, scales, bias, more scales).
 */
export function emitCodes(m: Machine, operator: string, unit: CodeUnit, inputs: Inputs, node: NodeProto): Slot | undefined {
  const [x] = inputs;
  if (operator === "ConvInteger" || operator === "MatMulInteger")
    return emitSums(m, unit, [x, inputs[2]], node, { finished: { to: "int32", bias: false } });
  if (unit.kind === "product" && LINEAR.has(operator)) return emitLinear(m, unit, LINEAR.get(operator)!, inputs, node);
  if (operator === "lowbit.Scaled") {
    const [, zero, scales, bias, more] = inputs;
    const rank = x?.dims.length ?? 0;
    if (scales === undefined || ![scales, bias, more].every((value) => value === undefined || isAlong(value, unit, rank))) return undefined;
    const [along, one] = more === undefined || elementsOf(scales) > 1 ? [scales, more] : [more, scales];
    if (one !== undefined && elementsOf(one) !== 1) return undefined;
    return emitSums(m, unit, [x, zero], node, {
      finished: { to: "float32", bias: bias !== undefined },
      factors(into) {
        spread(along, into, one === undefined ? 1 : numberOf(one));
      },
      ...(bias === undefined ? {} : { bias }),
    });
  }
  const [xScale, wScale, yScale, yZero, bias] = [1, 4, 6, 7, 8].map((i) => inputs[i]);
  const count = countOf(unit);
  if (!isCodes(yZero) || [xScale, wScale, yScale].some((scale) => scale?.type !== "float32")) return undefined;
  if (elementsOf(xScale!) !== 1 || elementsOf(yScale!) !== 1 || elementsOf(yZero) !== 1 || ![1, count].includes(elementsOf(wScale!)))
    return undefined;
  if (bias !== undefined && elementsOf(bias) !== count) throw fail(node, `${count} biases`, String(elementsOf(bias)));
  return emitSums(m, unit, [x, inputs[2]], node, {
    finished: { to: yZero.type as "int8" | "uint8", bias: false, yZero: numberOf(yZero) },
    factors: (into) => spread(wScale!, into, numberOf(xScale), numberOf(yScale)),
    ...(bias === undefined ? {} : { integers: bias.data as NumberArray }),
  });
}
