// Codes on a device: of values by a scale or by their own range, values of codes, products and convolutions with exact
// sums, and what scales these or makes codes of them.
import { chainShaderSpec, chainWordsOf } from "../../../kernels/wgsl/nn/chain.ts";
import { convFilters } from "../../../kernels/wgsl/nn/window.ts";
import { binary, constant, operand, select, unary, type Value as Expression } from "../../../kernels/wasm/nn/values.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { outSize, windowShape, type Window } from "../ops/conv.ts";
import type { CodeUnit } from "../ops/operator.ts";
import { axisOf } from "../ops/operator.ts";
import { BOUNDS } from "../ops/quantized.ts";
import { elementType, type Value } from "../value.ts";
import { emitChain, isFloat, isFull, multiply, type DeviceEmit, type HeldInputs } from "./emit.ts";
import { emitReduce } from "./moves.ts";
import { countOf, isCodes, isTensor, type After, type CodeType, type Held, type Recorder, type Tensor } from "./recorder.ts";
import { emitConv } from "./windows.ts";

const within = (type: CodeType, v: Expression): Expression => {
  const [low, high] = BOUNDS.get(type)!;
  return binary("atMost", binary("atLeast", v, constant(low)), constant(high));
};

/** Codes of v times or over its scale. */
const rounded = (type: CodeType, v: Expression, zero: Expression | undefined): Expression =>
  within(type, zero === undefined ? unary("round", v) : binary("add", unary("round", v), zero));

/** The greatest or least value of all. */
function extreme(r: Recorder, op: "max" | "min", x: Held): Tensor {
  const count = countOf(x);
  // an invocation each reads some
  let run = Math.min(count, 512);
  while (count % run !== 0) run--;
  const rows = emitReduce(r, op, x, run, 1, [count / run]);
  const one = emitReduce(r, op, rows, rows.size, 1, []);
  r.free(rows);
  return one;
}

/** DynamicQuantizeLinear, in float32 as src/backends/range.ts has it. */
const dynamic: DeviceEmit = (r, [x]) => {
  if (!isFull(x) || x.dims.length === 0) return undefined;
  const [high, low] = [extreme(r, "max", x), extreme(r, "min", x)];
  const ends = ([most, least]: readonly Expression[]): Expression[] => [
    binary("atLeast", most, constant(0)),
    binary("atMost", least, constant(0)),
  ];
  const scale = emitChain(
    r,
    (args) => {
      const [top, bottom] = ends(args);
      return select(binary("eq", top, bottom), constant(1), binary("div", binary("sub", top, bottom), constant(255)));
    },
    [high, low],
  )!;
  const zero = emitChain(r, ([least, by]) => rounded("uint8", binary("div", unary("neg", ends([least, least])[1]), by), undefined), [
    low,
    scale,
  ])!;
  const codes = emitChain(r, ([v, by, at]) => rounded("uint8", binary("div", v, by), at), [x, scale, zero])!;
  for (const value of [high, low]) r.free(value);
  return [{ ...codes, type: "uint8" }, scale, { ...zero, type: "uint8" }];
};

const weightsOf = new WeakMap<Int16Array, Value>();

/** Constant codes on the device, once. */
function placedCodes(r: Recorder, codes: Int16Array): Tensor {
  const value = weightsOf.get(codes) ?? { type: "float32", dims: [codes.length], data: codes };
  weightsOf.set(codes, value);
  r.constant(value);
  return r.place(value);
}

/** The window of a convolution, or of a product: its rows are images of one place. */
function windowIn(unit: CodeUnit, x: Held, node: NodeProto): { readonly window: Window; readonly sizes: readonly number[] } | undefined {
  if (unit.kind === "product") {
    const one = [1, 1] as const;
    const pads = [[0, 0], [0, 0]] as const; // prettier-ignore
    const window = {
      batch: countOf(x) / unit.matrix.k,
      channels: unit.matrix.k,
      size: one,
      kernel: one,
      strides: one,
      dilations: one,
      pads,
    };
    return { window, sizes: one };
  }
  const { kernel } = unit.filters;
  if (x.dims.length < 3 || x.dims.length > 4 || (x.dims.length === 3 && kernel[0] !== 1)) return undefined;
  const window = windowShape(x, node, kernel.slice(4 - x.dims.length));
  const sizes = outSize(window, node);
  // what is wrong is the loops' to say
  return sizes.some((d) => d < 1) ? undefined : { window, sizes };
}

interface Summed {
  readonly x: Held;
  readonly zero: Held;
  /** One for all, or for each filter or column. */
  readonly factor: Tensor;
  /** float32 behind the factor, or int32 in the sums. */
  readonly bias?: Held | undefined;
  /** What is made of the sums. */
  readonly after?: { readonly type: CodeType; readonly of: After };
}

/** Sums of codes; undefined where they are none of this kernel. */
function sums(r: Recorder, unit: CodeUnit, { x, zero, factor, bias, after }: Summed, node: NodeProto): Tensor | undefined {
  if (unit.codes === undefined || (x.type !== "uint8" && x.type !== "int8") || countOf(x) === 0 || countOf(zero) !== 1) return undefined;
  const isConv = unit.kind === "conv";
  const { groups, width: depth, outputs } = isConv ? unit.filters : { groups: 1, width: unit.matrix.k, outputs: unit.matrix.n };
  const found = x.dims[isConv ? 1 : x.dims.length - 1] === groups * depth ? windowIn(unit, x, node) : undefined;
  if (found === undefined) return undefined;
  const { window, sizes } = found;
  const filters = outputs / groups;
  const integers = bias?.type === "int32";
  const spec = { filters: convFilters(filters), bias: bias !== undefined, transposed: false, codes: true, integers };
  const [from, own, weights, added] = [r.place(x), r.place(zero), placedCodes(r, unit.codes), bias && r.place(bias)];
  const dims = isConv ? [x.dims[0], outputs, ...sizes.slice(4 - x.dims.length)] : [...x.dims.slice(0, -1), outputs];
  const y = r.tensor(dims, after?.type);
  const offsets = { ox: from.offset, ow: 0, ob: added?.offset ?? 0, oz: own.offset, oa: factor.offset, sa: factor.size === 1 ? 0 : 1, sb: added?.size === 1 ? 0 : 1 }; // prettier-ignore
  const bound = { x: from, w: weights, zero: own, factor, ...(added && { bias: added }), y };
  emitConv(r, spec, { window, sizes, groups, depth, filters, offsets, bound }, after?.of);
  return y;
}

const countIn = (unit: CodeUnit): number => (unit.kind === "conv" ? unit.filters.outputs : unit.matrix.n);

const isAlong = (v: Held | undefined, unit: CodeUnit): boolean => v === undefined || [1, countIn(unit)].includes(countOf(v));

/** `lowbit.Scaled` on codes of the device: codes, zero point, scales, bias, more scales. */
export const scaled =
  (unit: CodeUnit): DeviceEmit =>
  (r, [x, zero, scales, bias, more], node) => {
    if (!isTensor(x) || !isTensor(zero) || scales === undefined) return undefined;
    if (![scales, bias, more].every((v) => v === undefined || (isFull(v) && isAlong(v, unit)))) return undefined;
    const flat = (v: Held): Held => ({ ...v, dims: [countOf(v)] });
    const factor = more === undefined ? r.place(scales) : emitChain(r, ([a, b]) => binary("mul", a, b), [flat(scales), flat(more)])!;
    const y = sums(r, unit, { x, zero, factor, bias }, node);
    if (more !== undefined) r.free(factor);
    return y && [y];
  };

const factorsOf = new WeakMap<NodeProto, Value>();

/** What sums are multiplied by: made here, for a device's division may be off by a bit; of constant scales once. */
function factorOf(r: Recorder, scales: readonly Value[], node: NodeProto): Tensor {
  const isFixed = scales.every((v) => r.isConstant(v));
  const known = isFixed ? factorsOf.get(node) : undefined;
  const [[x], w, [y]] = scales.map(({ data }) => data as Float32Array);
  const value: Value = known ?? { type: "float32", dims: [w.length], data: w.map((s) => Math.fround(x * s) / y) };
  if (isFixed) {
    factorsOf.set(node, value);
    r.constant(value);
  }
  return r.place(value);
}

/** Scales as factors are made of: numbers in JavaScript. */
const areKnown = (scales: HeldInputs): scales is Value[] => scales.every((v) => isFloat(v) && !isTensor(v));

const [V, Z] = [operand(0), operand(1)];

/** QLinearConv and QLinearMatMul: codes, weights and results, each with scale and zero point, an int32 bias. */
export const qlinear =
  (unit: CodeUnit): DeviceEmit =>
  (r, inputs, node) => {
    const [x, xScale, zero, , ws, , yScale, yZero, bias] = inputs;
    const scales = [xScale, ws, yScale];
    if (x === undefined || zero === undefined || !isCodes(yZero) || ![xScale, yScale, yZero].every((v) => v && countOf(v) === 1))
      return undefined;
    if (!areKnown(scales) || !isAlong(ws, unit)) return undefined;
    if (bias !== undefined && (bias.type !== "int32" || countOf(bias) !== countIn(unit))) return undefined;
    const { type } = yZero;
    const code = r.place(yZero);
    const spec = chainShaderSpec(rounded(type, V, Z), ["same", "one"]);
    const none = [0, 0, 0, 0];
    const { params } = chainWordsOf([1, 1, 1, 1], [{ strides: none, offset: 0 }, { strides: none, offset: code.offset }]); // prettier-ignore
    const after = { type, of: { spec, own: 0, params, bound: { x1: code } } };
    const y = sums(r, unit, { x, zero, factor: factorOf(r, scales, node), bias, after }, node);
    return y && [y];
  };

/** Scales or zero points as they broadcast to x; undefined where they are of blocks, or of another number. */
function along(x: Held, v: Held, node: NodeProto): Held | undefined {
  if (attributeInt(node, "block_size", 0) !== 0) return undefined;
  if (countOf(v) === 1) return { ...v, dims: [] };
  const axis = axisOf(attributeInt(node, "axis", 1), x.dims.length, node);
  return v.dims.length === 1 && v.dims[0] === x.dims[axis]
    ? { ...v, dims: [v.dims[0], ...x.dims.slice(axis + 1).map(() => 1)] }
    : undefined;
}

/** Codes as the floats that they are. */
const asFloats = (r: Recorder, v: Held): Tensor => ({ ...r.place(v), type: "float32" });

/** Codes of values (`to` says the type), or values of codes. */
const between =
  (isDecoding: boolean): DeviceEmit =>
  (r, [x, scale, zeros], node) => {
    if (x === undefined || !(isDecoding ? isCodes(x) && countOf(x) > 0 : isFull(x)) || !isFull(scale)) return undefined;
    const to = zeros?.type ?? elementType(attributeInt(node, "output_dtype", 0)) ?? "uint8";
    if ((zeros !== undefined && !isCodes(zeros)) || (!isDecoding && !BOUNDS.has(to))) return undefined;
    const given = [scale, ...(zeros === undefined ? [] : [zeros])].map((v) => along(x, v, node));
    if (!given.every((v) => v !== undefined)) return undefined;
    const values = [x, ...given].map((v) => asFloats(r, v));
    if (isDecoding) {
      const y = emitChain(r, ([v, s, z]) => binary("mul", z === undefined ? v : binary("sub", v, z), s), values);
      return y && [y];
    }
    const y = emitChain(r, ([v, s, z]) => rounded(to as CodeType, binary("div", v, s), z), values);
    return y && [{ ...y, type: to as CodeType }];
  };

/** Sums of products of bytes that float32 holds. */
const EXACT = 2 ** 24 / 255 ** 2;

const isByte = (v: Held | undefined): v is Held & { readonly type: "int8" | "uint8" } => isCodes(v) && v.type.endsWith("t8");

/** QLinearMatMul of two computed matrices. */
const codesByCodes: DeviceEmit = (r, [a, aScale, aZero, b, bScale, bZero, yScale, yZero], node) => {
  if (!isByte(a) || !isByte(b) || !isByte(yZero) || (a.dims.at(-1) ?? 0) > EXACT) return undefined;
  const scales = [aScale, bScale, yScale];
  if (![...scales, aZero, bZero, yZero].every((v) => v !== undefined && countOf(v) === 1)) return undefined;
  if (!areKnown(scales)) return undefined;
  const [x, w] = [[a, aZero!] as const, [b, bZero!] as const].map(([v, zero]) =>
    emitChain(r, ([code, z]) => binary("sub", code, z), [asFloats(r, v), { ...asFloats(r, zero), dims: [] }]),
  );
  const [sum] = (x && w && multiply(r, [x, w], node)) ?? [];
  const given = [sum, factorOf(r, scales, node), { ...asFloats(r, yZero), dims: [] }];
  const y = emitChain(r, ([v, f, z]) => rounded(yZero.type, binary("mul", v, f), z), given);
  for (const value of [x, w, sum]) if (value !== undefined) r.free(value);
  return y && [{ ...y, type: yZero.type }];
};

export const CODES: readonly (readonly [string, DeviceEmit])[] = [
  ["DynamicQuantizeLinear", dynamic],
  ["QLinearMatMul", codesByCodes],
  ...["", "com.microsoft."].flatMap((domain): [string, DeviceEmit][] => [
    [`${domain}QuantizeLinear`, between(false)],
    [`${domain}DequantizeLinear`, between(true)],
  ]),
];
