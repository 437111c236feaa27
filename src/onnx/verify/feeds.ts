// Random inputs for a model, from its metadata: shapes, types, and what the graph says about integer inputs (indices
// into a table, values that are compared with a constant). Seeded: the same seed gives the same inputs on every
// machine.
import { buildScopes, isDefaultDomain, resolveConstant } from "../graph/graph.ts";
import { encodeHalf } from "../file/half.ts";
import type { OnnxModel } from "../file/model.ts";
import { tensorDims } from "../file/model.ts";
import { readInts } from "../file/values.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";

/** A tensor as onnxruntime takes it. Float16 data are codes. */
export interface FeedTensor {
  readonly type: string;
  readonly data: ArrayLike<number> | BigInt64Array | BigUint64Array | readonly string[];
  readonly dims: readonly number[];
}

/** Inputs of one run, by name. */
export type Feeds = Readonly<Record<string, FeedTensor>>;

export interface InputMetadata {
  readonly name: string;
  readonly type: string;
  /** A number, or a name where the dimension is symbolic ("" or "?" without a name). */
  readonly shape: readonly (number | string)[];
}

/** What the graph tells about an integer input. */
export interface InputHint {
  /** Values below this are valid indices. */
  readonly below?: number;
  /** A constant that the input is compared with. */
  readonly equals?: number;
}

/** Looks at who reads the inputs, through Identity, Cast, Reshape and the like. */
export function inputHints(model: OnnxModel): Map<string, InputHint> {
  const [main, ...inner] = buildScopes(model);
  const hints = new Map<string, InputHint>();
  const through = new Set(["Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten"]);
  for (const input of main.graph.input) {
    const names = new Set([input.name]);
    let hint: InputHint = {};
    for (const scope of [main, ...inner]) {
      for (const node of scope.graph.node) {
        if (!isDefaultDomain(node)) continue;
        if (through.has(node.opType) && names.has(node.input[0])) names.add(node.output[0]);
        if (node.opType === "Gather" && names.has(node.input[1])) {
          const table = resolveConstant(scope, node.input[0]);
          if (table !== null && table.tensor.dims.length > 0)
            hint = { ...hint, below: Math.min(hint.below ?? Infinity, tensorDims(table.tensor)[0]) };
        }
        if (node.opType === "Equal" && hint.equals === undefined) {
          const side = names.has(node.input[0]) ? 1 : names.has(node.input[1]) ? 0 : -1;
          const constant = side < 0 ? null : resolveConstant(scope, node.input[side]);
          const type = constant?.tensor.dataType;
          if (constant !== null && (type === T.INT64 || type === T.INT32)) hint = { ...hint, equals: readInts(model, constant.tensor)[0] };
        }
      }
    }
    if (hint.below !== undefined || hint.equals !== undefined) hints.set(input.name, hint);
  }
  return hints;
}

/** Uniform numbers in [0, 1) (mulberry32). */
export function randomSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Sizes of an input's dims. A number stays; `dims` decides by the symbolic name or "input:axis"; names with "batch"
 * (and unnamed first dims) are 1, with "past" `past`; sums of names are added up; every other symbolic size is `size`.
 */
export function inputDims(input: InputMetadata, dims: Readonly<Record<string, number>>, size: number, past = 0): number[] {
  // names come from the model
  const asked = (name: string): number | undefined => (Object.hasOwn(dims, name) ? dims[name] : undefined);
  const byName = (name: string, axis: number): number => {
    const given = asked(name) ?? asked(`${input.name}:${axis}`);
    if (given !== undefined) return given;
    if (/^\d+$/.test(name)) return Number(name);
    if (/past/i.test(name)) return past;
    if (/batch/i.test(name) || axis === 0) return 1;
    return size;
  };
  return input.shape.map((dim, axis) => {
    if (typeof dim === "number" && dim >= 0 && asked(`${input.name}:${axis}`) === undefined) return dim;
    const name = String(dim);
    if (asked(name) !== undefined || !name.includes("+")) return byName(name, axis);
    return name.split("+").reduce((sum, part) => sum + byName(part.trim(), axis === 0 ? 1 : axis), 0);
  });
}

/** A bool of one element that switches something; masks of one element are masks. */
export const isFlag = (input: InputMetadata, dims: readonly number[]): boolean =>
  input.type === "bool" && !/mask/i.test(input.name) && dims.every((dim) => dim === 1);

/** How one sample is drawn. */
export interface SampleStyle {
  /** Distribution of floats. Default "normal": mean 0, deviation 1. "uniform" is in [0, 1). */
  readonly distribution?: "normal" | "uniform";
  /** Factor on floats. Default 1. */
  readonly scale?: number;
  /** Value of a bool of one element. Default false. */
  readonly flag?: boolean;
  /** Bools of more elements (masks): all true (default), or a quarter of them false, never the first of a row. */
  readonly holes?: boolean;
}

/** Values for one input: floats by style, indices valid, masks all ones, other integers 0 or 1. */
export function randomTensor(
  input: InputMetadata,
  dims: readonly number[],
  hint: InputHint | undefined,
  random: () => number,
  style: SampleStyle = {},
): FeedTensor {
  const count = dims.reduce((a, b) => a * b, 1);
  const mask = /mask/i.test(input.name);
  const scale = style.scale ?? 1;
  const normal = (): number => scale * Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const uniform = (): number => scale * random();
  const integer = (): number => {
    if (hint?.equals !== undefined) return hint.equals;
    if (hint?.below !== undefined) return Math.floor(random() * hint.below);
    return mask ? 1 : Math.floor(random() * 2);
  };
  const fill = <A extends { [i: number]: unknown }>(array: A, make: () => A[number]): A => {
    for (let i = 0; i < count; i++) array[i] = make();
    return array;
  };
  const float = mask ? () => 1 : style.distribution === "uniform" ? uniform : normal;
  const row = dims.at(-1) ?? 1;
  const data = ((): FeedTensor["data"] => {
    switch (input.type) {
      case "float32":
        return fill(new Float32Array(count), float);
      case "float64":
        return fill(new Float64Array(count), float);
      case "float16":
        return fill(new Uint16Array(count), () => encodeHalf(float()));
      case "int64":
        return fill(new BigInt64Array(count), () => BigInt(integer()));
      case "uint64":
        return fill(new BigUint64Array(count), () => BigInt(integer()));
      case "int32":
        return fill(new Int32Array(count), integer);
      case "uint32":
        return fill(new Uint32Array(count), integer);
      case "int16":
        return fill(new Int16Array(count), integer);
      case "uint16":
        return fill(new Uint16Array(count), integer);
      case "int8":
        return fill(new Int8Array(count), integer);
      case "uint8":
        return fill(new Uint8Array(count), mask ? () => 1 : () => Math.floor(random() * 256));
      case "bool":
        if (isFlag(input, dims)) return fill(new Uint8Array(count), () => (style.flag ? 1 : 0));
        return new Uint8Array(count).map((_, i) => (style.holes && i % row !== 0 && random() < 0.25 ? 0 : 1));
      default:
        return fill([] as string[], () => "");
    }
  })();
  return { type: input.type, data, dims };
}
