// prepareConv2d: 2-D convolution by a packed filter on exact integer sums. The filter has one scale for each output
// channel (or one for all), so that a sum of products of codes is scaled once; activations are uint8 codes, made of the
// range of x (ONNX DynamicQuantizeLinear), or codes that the caller has.
import { LowbitError } from "../../formats/core/errors.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { convSize, referenceConv, type ConvGeometry, type ConvOutput, type IntegerFilters } from "../backends/conv2d.ts";
import { disposed } from "../backends/layer.ts";
import { weightSource } from "../backends/source.ts";
import type { Backend } from "../backends/types.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import { placedConv } from "../backends/wasm/conv2d.ts";
import { engineMemory, hasEngineMemory } from "../backends/wasm/memory.ts";

type Pair = readonly [number, number];

/** Steps, padding and what is folded into a convolution by packed filters. */
export interface Conv2dOptions {
  /** Default 1. */
  readonly strides?: number | Pair;
  /** Default 1. */
  readonly dilations?: number | Pair;
  /**
   * Zeros around the image: on all sides, or [[top, bottom], [left, right]]; "same" as TensorFlow has it. Default
   * "valid": none.
   */
  readonly pads?: "valid" | "same" | number | readonly [Pair, Pair];
  /** Default 1; as many as channels: depthwise. */
  readonly groups?: number;
  /**
   * "nchw" (default): x and y [batch, channels, height, width], the filter [outputs, channels / groups, height, width].
   * "nhwc": channels last, the filter [outputs, height, width, channels / groups].
   */
  readonly layout?: "nchw" | "nhwc";
  /** One number for each output. */
  readonly bias?: Float32Array;
  /** Bounds of the results. Default "none". */
  readonly activation?: "none" | "relu" | "relu6";
  /** Default "reference". "wasm" is one thread; `await wasm({ threads })` makes a backend with more. */
  readonly backend?: "reference" | "wasm" | Backend;
}

/** What codes mean: (code - zeroPoint) * scale. */
export interface CodeScale {
  readonly scale: number;
  readonly zeroPoint: number;
}

/** Sizes of an image in the order of the layout: [batch, channels, height, width], or channels last. */
export type ImageShape = readonly [number, number, number, number];

/** A packed filter that was prepared once and runs on any image: see `prepareConv2d`. */
export interface Conv2dLayer {
  readonly outputs: number;
  readonly channels: number;
  /** Sizes of the result, in the same order. @throws LowbitError E_SHAPE */
  outputShape(shape: ImageShape): [number, number, number, number];
  /** The convolution of values: their uint8 codes are made of their range. @throws LowbitError E_SHAPE, E_DISPOSED */
  run(x: Float32Array, shape: ImageShape, out?: Float32Array): Float32Array;
  /**
   * The convolution of codes, its result as codes of `out`'s type: rounded once, half to even.
   * @throws LowbitError E_SHAPE, E_VALUE, E_DISPOSED
   */
  runCodes<Codes extends Uint8Array | Int8Array>(
    x: Uint8Array | Int8Array,
    shape: ImageShape,
    meaning: { readonly input: CodeScale; readonly output: CodeScale },
    out: Codes,
  ): Codes;
  /** Frees the packed filter. Safe to call twice. */
  dispose(): void;
  [Symbol.dispose](): void;
}

const pair = (value: number | Pair | undefined): Pair => (typeof value === "number" ? [value, value] : (value ?? [1, 1]));
const shape = (expected: string, got: string): LowbitError => new LowbitError("E_SHAPE", `prepareConv2d ${expected}, got ${got}.`);

/** The step that all values are multiples of; undefined where there is none. */
function stepOf(values: Float64Array): number | undefined {
  let step = Infinity;
  for (const v of values) if (v !== 0 && Number.isFinite(v)) step = Math.min(step, Math.abs(v));
  return step === Infinity ? 1 : values.every((v) => !Number.isFinite(v) || Number.isInteger(v / step)) ? step : undefined;
}

const unsupported = (expected: string, got: string): LowbitError =>
  new LowbitError(
    "E_UNSUPPORTED",
    `prepareConv2d w: expected ${expected}, got ${got}. Quantize it with a scale for each output: quantize(filter, format("int8_row")).`,
  );

/** Codes less zero points, [outputs, k], and factors. */
function integersOf(w: PackedTensor): { readonly codes: Int16Array; readonly factors: Float32Array } {
  const source = weightSource(w);
  const { rows, k, values, span, role } = source;
  const { name } = w.format;
  if (values === null || role === "add" || span < k) throw unsupported("integers under one scale for each output", name);
  const step = stepOf(values);
  if (step === undefined) throw unsupported("values on an even grid", name);
  const codes = new Int16Array(rows * k);
  const factors = new Float32Array(rows);
  const [row, scales, zeros] = [new Uint16Array(k), new Float64Array(1), new Float64Array(1)];
  for (let r = 0; r < rows; r++) {
    source.codes(r, row);
    source.scales(r, scales);
    if (role !== "none") source.offsets(r, zeros);
    factors[r] = scales[0] * step;
    for (let i = 0; i < k; i++) {
      const v = (values[row[i]] - zeros[0]) / step;
      if (!Number.isInteger(v) || v < -255 || v > 255)
        throw unsupported("integers of -255 to 255 less their zero points", `${name} with ${v}`);
      codes[r * k + i] = v;
    }
  }
  return { codes, factors };
}

/** [outputs, height, width, channels] as [outputs, channels, height, width]. */
function planesFirst(codes: Int16Array, outputs: number, area: number, channels: number): Int16Array {
  const out = new Int16Array(codes.length);
  for (let o = 0; o < outputs; o++)
    for (let p = 0; p < area; p++)
      for (let c = 0; c < channels; c++) out[(o * channels + c) * area + p] = codes[(o * area + p) * channels + c];
  return out;
}

function filtersOf(w: PackedTensor, { groups = 1, layout = "nchw", bias }: Conv2dOptions): IntegerFilters {
  if (w.shape.length !== 4) throw shape("w: expected a filter of four dimensions", `[${w.shape.join(", ")}]. Quantize it in that shape`);
  const isRows = layout === "nhwc";
  const [outputs, ...others] = w.shape;
  const [width, height, columns] = isRows ? [others[2], others[0], others[1]] : others;
  if (!Number.isInteger(groups) || groups < 1 || outputs % groups !== 0)
    throw shape(`groups: expected a divisor of ${outputs} outputs`, String(groups));
  if (bias !== undefined && (!(bias instanceof Float32Array) || bias.length !== outputs))
    throw shape(`bias: expected a Float32Array of ${outputs}`, bias instanceof Float32Array ? String(bias.length) : typeof bias);
  const { codes, factors } = integersOf(w);
  return {
    codes: isRows ? planesFirst(codes, outputs, height * columns, width) : codes,
    ...{ outputs, groups, width, kernel: [height, columns], factors, bias: bias ?? null },
  };
}

/** Before and after an axis of `size`. */
function padsOf(pads: Conv2dOptions["pads"] = "valid", size: Pair, kernel: Pair, strides: Pair, dilations: Pair): [Pair, Pair] {
  if (typeof pads === "number") return [[pads, pads], [pads, pads]]; // prettier-ignore
  if (typeof pads === "object") return [pads[0], pads[1]];
  const along = (d: 0 | 1): Pair => {
    if (pads !== "same") return [0, 0];
    const total = Math.max(0, (Math.ceil(size[d] / strides[d]) - 1) * strides[d] + dilations[d] * (kernel[d] - 1) + 1 - size[d]);
    return [Math.floor(total / 2), Math.ceil(total / 2)];
  };
  return [along(0), along(1)];
}

const BOUNDS: ReadonlyMap<string, { low?: number; high?: number }> = new Map([
  ["none", {}],
  ["relu", { low: 0 }],
  ["relu6", { low: 0, high: 6 }],
]);

function checkOptions({ pads = "valid", layout = "nchw", activation = "none", ...options }: Conv2dOptions): void {
  const whole = (name: string, list: readonly number[], least: number): void => {
    if (!list.every((v) => Number.isInteger(v) && v >= least))
      throw new RangeError(`prepareConv2d ${name}: expected integers from ${least}, got ${list.join(", ")}.`);
  };
  whole("strides", pair(options.strides), 1);
  whole("dilations", pair(options.dilations), 1);
  if (typeof pads === "number") whole("pads", [pads], 0);
  else if (typeof pads === "object") whole("pads", pads.flat(), 0);
  else if (pads !== "valid" && pads !== "same") throw new TypeError(`prepareConv2d pads: expected "valid", "same", a number or pairs, got ${String(pads)}.`); // prettier-ignore
  if (layout !== "nchw" && layout !== "nhwc")
    throw new TypeError(`prepareConv2d layout: expected "nchw" or "nhwc", got ${String(layout)}.`);
  if (!BOUNDS.has(activation))
    throw new TypeError(`prepareConv2d activation: expected "none", "relu" or "relu6", got ${String(activation)}.`);
}

/**
 * Prepares a packed filter of integers (int8, int4, int2 and others on an even grid, a scale for each output) for
 * convolutions whose sums are exact: groups, depthwise, strides, dilations, pads, both layouts.
 * @throws LowbitError E_UNSUPPORTED for filters of other forms, E_SHAPE, E_DEVICE; TypeError, RangeError for options
 * @example
 * const w = quantize(tensor(new Float32Array(4 * 27).fill(1), [4, 3, 3, 3]), format("int8_row"));
 * const layer = prepareConv2d(w, { pads: 1, activation: "relu" });
 * layer.run(new Float32Array(3 * 8 * 8), [1, 3, 8, 8]).length // 256: [1, 4, 8, 8]
 */
export function prepareConv2d(w: PackedTensor, options: Conv2dOptions = {}): Conv2dLayer {
  checkOptions(options);
  const { backend = "reference", layout = "nchw", activation = "none", pads } = options;
  const filters = filtersOf(w, options);
  const { outputs, groups, width, kernel } = filters;
  const [strides, dilations] = [pair(options.strides), pair(options.dilations)];
  const isRows = layout === "nhwc";
  const channels = groups * width;
  const chosen = backend === "wasm" ? wasmSync() : backend;
  if (chosen !== "reference" && !(typeof chosen === "object" && chosen !== null && hasEngineMemory(chosen)))
    throw new TypeError(`prepareConv2d backend: expected "reference", "wasm" or a WebAssembly backend, got ${typeof chosen}.`);
  const placed = chosen === "reference" ? null : placedConv(engineMemory(chosen), filters);
  let live = true;
  const geometry = (sizes: ImageShape, given: number, what: string): ConvGeometry => {
    const [batch, a, b, c] = sizes;
    const [own, size]: [number, Pair] = isRows ? [c, [a, b]] : [a, [b, c]];
    if (sizes.length !== 4 || own !== channels || !sizes.every((d) => Number.isInteger(d) && d >= 0))
      throw shape(`${what}: expected ${isRows ? `[batch, height, width, ${channels}]` : `[batch, ${channels}, height, width]`}`, `[${sizes.join(", ")}]`); // prettier-ignore
    if (given !== batch * a * b * c)
      throw shape(`${what}: expected ${batch * a * b * c} elements for [${sizes.join(", ")}]`, String(given));
    return { batch, channels, size, strides, dilations, pads: padsOf(pads, size, kernel, strides, dilations), isRows };
  };
  const resultOf = (image: ConvGeometry): [number, number, number, number] => {
    let size: [number, number];
    try {
      size = convSize(image, kernel);
    } catch (error) {
      throw new LowbitError("E_SHAPE", `prepareConv2d x: ${(error as Error).message}.`);
    }
    return isRows ? [image.batch, ...size, outputs] : [image.batch, outputs, ...size];
  };
  const run = (x: Parameters<typeof referenceConv>[1], image: ConvGeometry, y: ConvOutput): void => {
    if (!live) throw disposed();
    if (y.data.length === 0) return;
    if (placed === null) referenceConv(filters, x, image, y);
    else placed.run(x, image, y);
  };
  const sized = <A extends { readonly length: number }>(out: A, sizes: readonly number[]): A => {
    const count = sizes.reduce((p, q) => p * q, 1);
    if (out.length !== count) throw shape(`out: expected ${count} elements for [${sizes.join(", ")}]`, String(out.length));
    return out;
  };
  const dispose = (): void => {
    if (live) placed?.dispose();
    live = false;
  };
  return {
    outputs,
    channels,
    outputShape: (sizes) => resultOf(geometry(sizes, sizes.reduce((p, q) => p * q, 1), "shape")), // prettier-ignore
    run(x, sizes, out) {
      if (!(x instanceof Float32Array)) throw new TypeError("prepareConv2d run x: expected a Float32Array. Codes go to runCodes.");
      const image = geometry(sizes, x.length, "x");
      const result = resultOf(image);
      const data = sized(out ?? new Float32Array(result.reduce((p, q) => p * q, 1)), result);
      run({ data: x, scale: 1, zero: 0 }, image, { data, scale: 1, zero: 0, bounds: BOUNDS.get(activation)! });
      return data;
    },
    runCodes(x, sizes, { input, output }, out) {
      const image = geometry(sizes, x.length, "x");
      const data = sized(out, resultOf(image));
      for (const [name, { scale, zeroPoint }, codes] of [["input", input, x], ["output", output, out]] as const) {
        const [least, most] = codes instanceof Uint8Array ? [0, 255] : [-128, 127];
        if (!(scale > 0) || !Number.isFinite(scale) || !Number.isInteger(zeroPoint) || zeroPoint < least || zeroPoint > most)
          throw new LowbitError("E_VALUE", `prepareConv2d ${name}: expected a positive scale and a zero point of ${least} to ${most}, got ${scale} and ${zeroPoint}.`);
      } // prettier-ignore
      const { low, high } = BOUNDS.get(activation)!;
      const code = (value: number): number => Math.round(Math.fround(value / output.scale)) + output.zeroPoint;
      const bounds = { ...(low === undefined ? {} : { low: code(low) }), ...(high === undefined ? {} : { high: code(high) }) };
      const [own, over] = [Math.fround(input.scale), Math.fround(output.scale)];
      run({ data: x, scale: own, zero: input.zeroPoint }, image, { data, scale: over, zero: output.zeroPoint, bounds });
      return out;
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
