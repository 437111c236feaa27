// npm run bench -- conv [case ...]: integer convolutions of uint8 images and int8 filters, results as uint8, on one
// thread, beside float32 convolutions of the same sizes: this library's, and onnxruntime-web's and -node's Conv, whose
// operands are in place too. Layers of MobileNet (1 x 1, depthwise) and of 3 x 3 networks; bytes of activations that are
// packed beside those of an unrolled image (im2col).
import type { AttributeValue } from "../test/onnx/build.ts";
import { encode, graph, model, node, raw, T, value } from "../test/onnx/build.ts";
import { engineMemory, type EngineMemory } from "../src/backends/wasm/memory.ts";
import { convolution, runJobs, type ConvShape } from "../src/backends/wasm/nn/convolution.ts";
import { integerConvolution, packFilters } from "../src/backends/wasm/nn/integer.ts";
import { wasm } from "../src/index.ts";
import { seededRandom } from "../src/quantize/random.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { load } from "./peers.ts";

interface Layer {
  readonly name: string;
  readonly channels: number;
  readonly outputs: number;
  readonly size: number;
  readonly kernel: 1 | 3 | 5;
  readonly stride?: 1 | 2;
  readonly depthwise?: boolean;
}

const LAYERS: readonly Layer[] = [
  { name: "1x1 32-64 112", channels: 32, outputs: 64, size: 112, kernel: 1 },
  { name: "1x1 128-128 56", channels: 128, outputs: 128, size: 56, kernel: 1 },
  { name: "1x1 256-512 14", channels: 256, outputs: 512, size: 14, kernel: 1 },
  { name: "depthwise 3x3 64 112", channels: 64, outputs: 64, size: 112, kernel: 3, depthwise: true },
  { name: "depthwise 3x3 256 28", channels: 256, outputs: 256, size: 28, kernel: 3, depthwise: true },
  { name: "3x3 3-32 224 /2", channels: 3, outputs: 32, size: 224, kernel: 3, stride: 2 },
  { name: "3x3 64-64 56", channels: 64, outputs: 64, size: 56, kernel: 3 },
  { name: "3x3 128-128 28", channels: 128, outputs: 128, size: 28, kernel: 3 },
  { name: "3x3 256-256 14", channels: 256, outputs: 256, size: 14, kernel: 3 },
];

function shapeOf({ channels, outputs, size, kernel, stride = 1, depthwise = false }: Layer): ConvShape {
  const pad = (kernel - 1) / 2;
  return {
    batch: 1,
    channels,
    outputs,
    groups: depthwise ? channels : 1,
    size: [size, size],
    kernel: [kernel, kernel],
    strides: [stride, stride],
    dilations: [1, 1],
    pads: [
      [pad, pad],
      [pad, pad],
    ],
  };
}

const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const filterDims = ({ channels, outputs, groups, kernel }: ConvShape): number[] => [outputs, channels / groups, ...kernel];

/** A layer on codes, and the same on floats, in place. */
function own(memory: EngineMemory, shape: ConvShape, random: () => number) {
  const { batch, channels, outputs, groups, size, kernel } = shape;
  const codes = Int8Array.from({ length: count(filterDims(shape)) }, () => Math.round(254 * random()) - 127);
  const filters = packFilters(memory, { codes, zeros: [0], outputs, groups, width: channels / groups, kernel });
  const integer = integerConvolution(memory, filters, shape, true);
  const float = convolution(memory, shape);
  const [elements, results] = [batch * channels * count(size), batch * outputs * count(integer.output)];
  const place = (bytes: number): number => memory.allocate(bytes + 64).address;
  const put = (words: Int32Array): number => {
    const at = place(words.byteLength);
    new Int32Array(memory.buffer, at, words.length).set(words);
    return at;
  };
  const factors = place(4 * outputs);
  memory.floats(factors, outputs).fill(1e-3);
  const made = integer.jobs(
    {
      ...{ x: place(elements), y: place(results), table: put(integer.table), scratch: place(integer.scratchBytes), fill: place(4) },
      ...{ offsets: put(new Int32Array(outputs)), factors, bias: 0 },
    },
    { to: "uint8", bias: false, yZero: 128 },
  );
  made.setZero(128);
  const jobs = float.jobs({
    ...{ x: place(4 * elements), y: place(4 * results), w: place(4 * codes.length), bias: place(4 * outputs) },
    ...{ table: put(float.table), scratch: place(float.scratchBytes) },
  });
  return {
    integer: () => runJobs(memory, made.jobs),
    float: () => runJobs(memory, jobs),
    ops: (2 * results * codes.length) / outputs,
    // the panel of 12 KB of each thread beside the padded image
    packed: integer.scratchBytes + 12288,
    unrolled: (count(integer.output) * codes.length * groups) / outputs,
  };
}

interface Foreign {
  InferenceSession: { create(source: unknown, options: object): Promise<{ run(feeds: object): Promise<unknown> }> };
  Tensor: new (type: string, data: unknown, dims: readonly number[]) => object;
  env: { wasm: { numThreads?: number } };
}

/** A model of one Conv of float32. */
async function foreign(name: string, shape: ConvShape): Promise<() => Promise<unknown>> {
  const loaded = (await load(name)) as unknown as Foreign & { default?: Foreign };
  const ort = loaded.InferenceSession === undefined ? loaded.default! : loaded;
  const dims = [shape.batch, shape.channels, ...shape.size];
  const ints = (list: readonly number[]): AttributeValue => ({ ints: [...list] });
  const attributes = {
    ...{ strides: ints(shape.strides), pads: ints([shape.pads[0][0], shape.pads[1][0], shape.pads[0][1], shape.pads[1][1]]) },
    group: BigInt(shape.groups),
  };
  const w = raw("w", filterDims(shape), new Float32Array(count(filterDims(shape))).fill(0.01));
  const b = raw("b", [shape.outputs], new Float32Array(shape.outputs));
  const made = node("Conv", ["x", "w", "b"], ["y"], attributes);
  const output = [value("y", T.FLOAT, ["a", "b", "c", "d"])];
  const proto = encode(
    model(graph({ input: [value("x", T.FLOAT, dims)], output, initializer: [w, b], node: [made] }), { opset: 17, ir: 8 }),
  );
  const isWeb = name === "onnxruntime-web";
  if (isWeb) ort.env.wasm.numThreads = 1;
  const options = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3, executionProviders: [isWeb ? "wasm" : "cpu"] };
  const session = await ort.InferenceSession.create(proto, options);
  const x = new ort.Tensor("float32", new Float32Array(count(dims)).fill(0.5), dims);
  return () => session.run({ x });
}

export async function convBench(options: { readonly seconds: number; readonly cases: readonly string[] }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const memory = engineMemory(await wasm({ threads: 1 }));
  const random = seededRandom(1);
  const [rows, ratios, missing]: [Row[], Record<string, number>, string[]] = [[], {}, []];
  for (const layer of LAYERS) {
    if (options.cases.length > 0 && !options.cases.some((part) => layer.name.includes(part))) continue;
    const shape = shapeOf(layer);
    const mine = own(memory, shape, random);
    const { ops } = mine;
    const candidates: Candidate[] = [
      { name: `${layer.name}: int8`, run: mine.integer, ops },
      { name: `${layer.name}: float32`, run: mine.float, ops },
    ];
    // one of them a process: both packages register backends in one list
    const peer = process.env.LOWBIT_CONV_PEER ?? "onnxruntime-web";
    try {
      candidates.push({ name: `${layer.name}: ${peer} float32`, run: await foreign(peer, shape), ops });
    } catch (error) {
      missing.push(`${peer}: ${(error as Error).message}`);
    }
    const times = await measure(candidates, options.seconds / 4);
    rows.push(...times);
    times.slice(1).forEach((row) => (ratios[`${row.name}: time over int8`] = row.bestMs / times[0].bestMs));
    if (layer.kernel > 1 && layer.depthwise !== true) ratios[`${layer.name}: packed bytes over im2col's`] = mine.packed / mine.unrolled;
  }
  return { rows, ratios, missing };
}
