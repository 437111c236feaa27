// Products and convolutions of codes on a device, as dynamic quantization has them: codes of uint8 by the range of
// their values, exact sums, and what scales them.
import { convFields, convFilters, convName, convShader } from "../../../kernels/wgsl/nn/window.ts";
import { itemGroups } from "../../../kernels/wgsl/nn/shader.ts";
import { binary, constant, select, unary, type Value as Expression } from "../../../kernels/wasm/nn/values.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { outSize, windowShape, type Window } from "../ops/conv.ts";
import type { CodeUnit } from "../ops/operator.ts";
import { product } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { emitChain, isFull, type DeviceEmit } from "./emit.ts";
import { emitReduce } from "./moves.ts";
import { countOf, isTensor, type Held, type Recorder, type Tensor } from "./recorder.ts";
import { windowWords } from "./windows.ts";

const within255 = (v: Expression): Expression => binary("atMost", binary("atLeast", v, constant(0)), constant(255));

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
  const zero = emitChain(r, ([least, by]) => within255(unary("round", binary("div", unary("neg", ends([least, least])[1]), by))), [
    low,
    scale,
  ])!;
  const codes = emitChain(r, ([v, by, at]) => within255(binary("add", unary("round", binary("div", v, by)), at)), [x, scale, zero])!;
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
function windowIn(unit: CodeUnit, x: Tensor, node: NodeProto): { readonly window: Window; readonly sizes: readonly number[] } | undefined {
  if (unit.kind === "product") {
    const one = [1, 1] as const;
    const pads = [[0, 0], [0, 0]] as const; // prettier-ignore
    const window = { batch: x.size / unit.matrix.k, channels: unit.matrix.k, size: one, kernel: one, strides: one, dilations: one, pads };
    return { window, sizes: one };
  }
  const { kernel } = unit.filters;
  if (x.dims.length < 3 || x.dims.length > 4 || (x.dims.length === 3 && kernel[0] !== 1)) return undefined;
  const window = windowShape(x, node, kernel.slice(4 - x.dims.length));
  return { window, sizes: outSize(window, node) };
}

/** `lowbit.Scaled` on codes of the device: codes, zero point, scales, bias, more scales. */
export const scaled =
  (unit: CodeUnit): DeviceEmit =>
  (r, [x, zero, scales, bias, more], node) => {
    if (unit.codes === undefined || !isTensor(x) || x.type !== "uint8" || !isTensor(zero) || zero.size !== 1) return undefined;
    const isConv = unit.kind === "conv";
    const { groups, width: depth, outputs } = isConv ? unit.filters : { groups: 1, width: unit.matrix.k, outputs: unit.matrix.n };
    const along = (v: Held | undefined): boolean => v === undefined || (isFull(v) && [1, outputs].includes(countOf(v)));
    const found = windowIn(unit, x, node);
    if (found === undefined || scales === undefined || ![scales, bias, more].every(along)) return undefined;
    if (x.dims[isConv ? 1 : x.dims.length - 1] !== groups * depth) return undefined;
    const { window, sizes } = found;
    const flat = (v: Held): Held => ({ ...v, dims: [countOf(v)] });
    const factor = more === undefined ? r.place(scales) : emitChain(r, ([a, b]) => binary("mul", a, b), [flat(scales), flat(more)])!;
    const filters = outputs / groups;
    const spec = { filters: convFilters(filters), bias: bias !== undefined, transposed: false, codes: true };
    const [weights, added] = [placedCodes(r, unit.codes), bias && r.place(bias)];
    const y = r.tensor(isConv ? [x.dims[0], outputs, ...sizes.slice(4 - x.dims.length)] : [...x.dims.slice(0, -1), outputs]);
    const count = window.batch * groups * Math.ceil(filters / spec.filters) * product(sizes);
    const offsets = { ox: x.offset, ow: 0, ob: added?.offset ?? 0, oz: zero.offset, oa: factor.offset };
    const strides = { sa: factor.size === 1 ? 0 : 1, sb: added?.size === 1 ? 0 : 1 };
    r.dispatch(
      { family: "conv", spec, name: convName(spec), code: () => convShader(spec) },
      {
        fields: convFields(spec),
        params: { count, groups, depth, filters, ...windowWords(window, sizes), ...offsets, ...strides },
        bound: { x, w: weights, zero, factor, ...(added && { bias: added }), y },
        groups: itemGroups(count),
      },
    );
    if (more !== undefined) r.free(factor);
    return [y];
  };

export const CODES: readonly (readonly [string, DeviceEmit])[] = [["DynamicQuantizeLinear", dynamic]];
