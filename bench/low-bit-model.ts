// A model whose linear layers see activations of few bits, as standard ONNX operators: what the integer products of
// this library make of activations (a scale per row and block of channels, codes rne(x / scale)), written as Abs,
// ReduceMax, Div, Round, Mul in float32 before every MatMul by a constant weight. So any runtime gives the perplexity
// of those products: an integer sum times two scales is the float sum up to its rounding.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { readFloats } from "../src/onnx/file/values.ts";
import { readModelBytes, writeModelBytes, type Feeds } from "../src/onnx/index.ts";
import { hadamard, outlierSplit, type ChannelSplit } from "../src/quantize/index.ts";
import { node, raw, T, type AttributeValue } from "../test/onnx/build.ts";

export interface LowBitActivations {
  /** Of most blocks. */
  readonly bits: number;
  /** Channels that share a scale. */
  readonly block: number;
  /** Share of the blocks of a layer that keep 8 bits (rounded down), the channels with the largest magnitudes. */
  readonly wideShare?: number;
  /** Length of the Walsh-Hadamard transform of blocks of channels that have few bits. */
  readonly hadamard?: number;
}

export interface LowBitModel {
  readonly bytes: Uint8Array;
  /** Blocks of channels in all, and those of 8 bits. */
  readonly blocks: number;
  readonly wide: number;
}

/** Inputs of the products by constant weights, in order. */
function linearInputs(nodes: readonly NodeProto[], constants: ReadonlySet<string>): string[] {
  return [...new Set(nodes.filter((n) => n.opType === "MatMul" && constants.has(n.input[1])).map((n) => n.input[0]))];
}

/** The largest magnitude of each channel of what enters linear layers, by the name of the value. */
export async function channelMagnitudes(model: Uint8Array, feeds: readonly Feeds[]): Promise<Map<string, Float64Array>> {
  const read = readModelBytes(new Uint8Array(model));
  const graph = read.proto.graph!;
  const names = linearInputs(graph.node, new Set(graph.initializer.map(({ name }) => name)));
  graph.output.push(...names.map((name) => create(ValueInfoProtoSchema, { name })));
  const session = await InferenceSession.create(writeModelBytes(read), { logSeverityLevel: 4 });
  const found = new Map<string, Float64Array>();
  for (const feed of feeds) {
    const tensors = Object.fromEntries(
      Object.entries(feed).map(([name, t]) => [name, new Tensor(t.type as "int64", t.data as BigInt64Array, t.dims)]),
    );
    const results = await session.run(tensors, names);
    for (const name of names) {
      const { data, dims } = results[name];
      const k = dims.at(-1)!;
      const amax = found.get(name) ?? new Float64Array(k);
      (data as Float32Array).forEach((v, i) => (amax[i % k] = Math.max(amax[i % k], Math.abs(v))));
      found.set(name, amax);
    }
  }
  await session.release();
  return found;
}

/** The model with activations of few bits; weights stay float32, their channels in the order that splits have. */
export function lowBitModel(model: Uint8Array, magnitudes: ReadonlyMap<string, Float64Array>, settings: LowBitActivations): LowBitModel {
  const read = readModelBytes(new Uint8Array(model));
  const graph = read.proto.graph!;
  const constants = new Map(graph.initializer.map((t) => [t.name, t]));
  const nodes: NodeProto[] = [];
  const added: TensorProto[] = [];
  const put = (opType: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): string => {
    nodes.push(node(opType, input, [output], attributes, output));
    return output;
  };
  const constant = (tensor: TensorProto): string => (added.push(tensor), tensor.name);
  const integers = (name: string, values: ArrayLike<number>): string =>
    constant(raw(name, [values.length], BigInt64Array.from(Array.from(values), BigInt), T.INT64));
  const floats = (name: string, dims: number[], values: ArrayLike<number>): string =>
    constant(raw(name, dims, Float32Array.from(Array.from(values))));
  const axes = { axis: integers("fq/last", [-1]), tiny: floats("fq/tiny", [], [1e-30]) };
  const made = new Map<string, { name: string; split: ChannelSplit }>();
  const turned = new Set<string>();
  let [blocks, wide] = [0, 0];

  /** Codes of few bits of blocks of channels, as values. */
  const activation = (x: string, amax: Float64Array): { name: string; split: ChannelSplit } => {
    const { block, bits, wideShare = 0, hadamard: turn = 0 } = settings;
    const k = amax.length;
    const count = k / block;
    const split = outlierSplit(amax, { block, wideBlocks: Math.floor(wideShare * count) });
    [blocks, wide] = [blocks + count, wide + split.wideBlocks];
    let at = x;
    if (split.wide > 0) at = put("Gather", [at, integers(`${x}/order`, split.order)], `${x}/ordered`, { axis: -1n });
    if (turn > 0) at = put("MatMul", [at, floats(`${x}/rotation`, [k, k], rotation(k, split.wide, turn))], `${x}/rotated`);
    at = put("Reshape", [at, integers(`${x}/blocks`, [0, 0, count, block])], `${x}/parts`);
    const most = Array.from({ length: count }, (_, b) => 2 ** ((b < split.wideBlocks ? 8 : bits) - 1) - 1);
    const amaxes = put("ReduceMax", [put("Abs", [at], `${x}/abs`)], `${x}/amax`, { axes: { ints: [-1] }, keepdims: 1n });
    const scale = put("Max", [put("Div", [amaxes, floats(`${x}/most`, [count, 1], most)], `${x}/s`), axes.tiny], `${x}/scale`);
    const codes = put("Round", [put("Div", [at, scale], `${x}/over`)], `${x}/codes`);
    at = put("Reshape", [put("Mul", [codes, scale], `${x}/values`), integers(`${x}/whole`, [0, 0, k])], `${x}/low`);
    return { name: at, split };
  };
  for (const own of graph.node) {
    const amax = own.opType === "MatMul" && constants.has(own.input[1]) ? magnitudes.get(own.input[0]) : undefined;
    if (amax !== undefined) {
      const x = own.input[0];
      const seen = made.get(x) ?? activation(x, amax);
      made.set(x, seen);
      own.input[0] = seen.name;
      const weight = constants.get(own.input[1])!;
      if (turned.has(weight.name)) throw new Error(`low-bit model: weight ${weight.name} has two readers`);
      turned.add(weight.name);
      reorder(weight, readFloats(read, weight).slice(), seen.split, settings.hadamard ?? 0);
    }
    nodes.push(own);
  }
  graph.node = nodes;
  graph.initializer.push(...added);
  return { bytes: writeModelBytes(read), blocks, wide };
}

/** Ones for the wide channels, blocks of a Hadamard matrix for the others. */
function rotation(k: number, wide: number, size: number): Float32Array {
  const turn = hadamard(size);
  const out = new Float32Array(k * k);
  for (let i = 0; i < k; i++)
    if (i < wide) out[i * k + i] = 1;
    else {
      const first = wide + Math.floor((i - wide) / size) * size;
      for (let j = 0; j < size; j++) out[i * k + first + j] = turn[((i - wide) % size) * size + j] / Math.sqrt(size);
    }
  return out;
}

/** A weight [k, n] for channels in another order, rotated as they are. */
function reorder(weight: TensorProto, data: Float32Array, { order, wide, k }: ChannelSplit, size: number): void {
  const n = data.length / k;
  const moved = new Float32Array(data.length);
  for (let p = 0; p < k; p++) moved.set(data.subarray(order[p] * n, (order[p] + 1) * n), p * n);
  if (size > 0) {
    const turn = rotation(k, wide, size);
    const sums = new Float64Array(data.length);
    for (let i = 0; i < k; i++)
      for (let p = 0; p < k; p++) {
        const h = turn[p * k + i];
        if (h !== 0) for (let j = 0; j < n; j++) sums[i * n + j] += h * moved[p * n + j];
      }
    moved.set(sums);
  }
  weight.floatData = [];
  weight.rawData = new Uint8Array(moved.buffer);
}

/** The same model with what enters linear layers as it was before it was rounded (models without an order). */
export function withoutRounding(model: Uint8Array): Uint8Array {
  const read = readModelBytes(new Uint8Array(model));
  for (const own of read.proto.graph!.node) own.input.forEach((name, i) => (own.input[i] = name.replace(/\/low$/, "")));
  return writeModelBytes(read);
}

/**
 * The model with keys and values of attention in 4 bits, as a cache of int4 holds them (kernels/wasm/nn/cache.ts): 16
 * codes, a scale and a zero point per token and head. `holds`: names of the values, [batch, heads, tokens, size].
 */
export function cachedModel(model: Uint8Array, holds: RegExp): Uint8Array {
  const read = readModelBytes(new Uint8Array(model));
  const graph = read.proto.graph!;
  const nodes: NodeProto[] = [];
  const put = (opType: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): string => {
    nodes.push(node(opType, input, [output], attributes, output));
    return output;
  };
  const number = (name: string, v: number): string => {
    graph.initializer.push(raw(name, [], Float32Array.of(v)));
    return name;
  };
  const [zero, steps, tiny] = [number("cache/zero", 0), number("cache/steps", 15), number("cache/tiny", 1e-30)];
  const last = { axes: { ints: [-1] }, keepdims: 1n };
  const rounded = (x: string): string => {
    const most = put("Max", [put("ReduceMax", [x], `${x}/max`, last), zero], `${x}/most`);
    const least = put("Min", [put("ReduceMin", [x], `${x}/min`, last), zero], `${x}/least`);
    const scale = put("Max", [put("Div", [put("Sub", [most, least], `${x}/span`), steps], `${x}/step`), tiny], `${x}/scale`);
    const point = put("Round", [put("Div", [put("Neg", [least], `${x}/less`), scale], `${x}/share`)], `${x}/point`);
    const code = put("Add", [put("Round", [put("Div", [x, scale], `${x}/over`)], `${x}/near`), point], `${x}/code`);
    return put("Mul", [put("Sub", [put("Clip", [code, zero, steps], `${x}/bound`), point], `${x}/centred`), scale], `${x}/cached`);
  };
  const replaced = new Map<string, string>();
  for (const own of graph.node) {
    own.input.forEach((name, i) => (own.input[i] = replaced.get(name) ?? name));
    nodes.push(own);
    if (holds.test(own.output[0])) replaced.set(own.output[0], rounded(own.output[0]));
  }
  if (replaced.size === 0) throw new Error(`cached model: expected values named like ${String(holds)}, got none`);
  graph.node = nodes;
  return writeModelBytes(read);
}
