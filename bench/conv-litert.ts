// npm run bench -- conv-litert [layer ...]: int8 convolutions beside LiteRT.js (@litertjs/core of bench/peers: XNNPACK
// as WebAssembly), both in headless Chromium on one thread, by turns. LiteRT's tensors of a page are not int8, so that
// its layer is what four more of them take in a chain between QUANTIZE and DEQUANTIZE; ours goes through
// `prepareConv2d` of the built package (npm run build), copies in and out included.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromiumPath, inChromium } from "./chromium.ts";
import { load } from "./peers.ts";

interface Layer {
  readonly name: string;
  readonly channels: number;
  readonly size: number;
  readonly kernel: number;
  readonly depthwise: boolean;
}

const LAYERS: readonly Layer[] = [
  { name: "1x1-128-56", channels: 128, size: 56, kernel: 1, depthwise: false },
  { name: "1x1-256-14", channels: 256, size: 14, kernel: 1, depthwise: false },
  { name: "depthwise-64-112", channels: 64, size: 112, kernel: 3, depthwise: true },
  { name: "depthwise-256-28", channels: 256, size: 28, kernel: 3, depthwise: true },
  { name: "3x3-64-56", channels: 64, size: 56, kernel: 3, depthwise: false },
  { name: "3x3-128-28", channels: 128, size: 28, kernel: 3, depthwise: false },
  { name: "3x3-256-14", channels: 256, size: 14, kernel: 3, depthwise: false },
];

/** What is used of the package flatbuffers. */
interface Builder {
  createString(text: string): number;
  startVector(size: number, count: number, align: number): void;
  addInt8(v: number): void;
  addInt32(v: number): void;
  addInt64(v: bigint): void;
  addFloat32(v: number): void;
  addOffset(v: number): void;
  endVector(): number;
  startObject(fields: number): void;
  addFieldInt8(field: number, v: number, standard: number): void;
  addFieldInt32(field: number, v: number, standard: number): void;
  addFieldOffset(field: number, v: number, standard: number): void;
  endObject(): number;
  finish(root: number, identifier: string): void;
  asUint8Array(): Uint8Array;
}

const INT8 = 9;
const FLOAT32 = 0;
const INT32 = 2;
const OPERATORS = { conv: 3, depthwise: 4, dequantize: 6, quantize: 114 } as const;
const STEP = 1 / 16;

/**
 * Codes [outputs, height, width, in of a group] of a layer: 127 in every row, so that it is `factor` that scales it.
 */
function codesOf({ channels, kernel, depthwise }: Layer, random: () => number): Int8Array {
  const row = kernel * kernel * (depthwise ? 1 : channels);
  return Int8Array.from({ length: channels * row }, (_, i) => (i % row === 0 ? 127 : Math.round(254 * random()) - 127));
}

const factorOf = ({ channels, kernel, depthwise }: Layer): number => 1 / Math.sqrt(kernel * kernel * (depthwise ? 1 : channels)) / 64;

/**
 * A .tflite model of `count` equal layers of int8, float32 outside. Fields are numbered as in TensorFlow's schema.fbs.
 */
function chain(b: Builder, layer: Layer, count: number, codes: Int8Array): Uint8Array {
  const { channels, size, kernel, depthwise } = layer;
  const list = (values: ArrayLike<number>, bytes: 1 | 4 | 8, add: (v: number) => void): number => {
    b.startVector(bytes, values.length, bytes === 1 ? 16 : bytes);
    for (let i = values.length - 1; i >= 0; i--) add(values[i]);
    return b.endVector();
  };
  const ints = (values: readonly number[]): number => list(values, 4, (v) => b.addInt32(v));
  const offsets = (values: readonly number[]): number => list(values, 4, (v) => b.addOffset(v));
  const buffers: number[] = [];
  const buffer = (bytes: Int8Array | null): number => {
    const data = bytes === null ? 0 : list(bytes, 1, (v) => b.addInt8(v));
    b.startObject(1);
    b.addFieldOffset(0, data, 0);
    return buffers.push(b.endObject()) - 1;
  };
  buffer(null);
  const tensors: number[] = [];
  const tensor = (dims: readonly number[], type: number, data: Int8Array | null, scales: readonly number[], dimension = 0): number => {
    const at = data === null ? 0 : buffer(data);
    const shape = ints(dims);
    const name = b.createString(`t${tensors.length}`);
    let quantization = 0;
    if (scales.length > 0) {
      const scale = list(scales, 4, (v) => b.addFloat32(v));
      const zero = list(new Array<number>(scales.length).fill(0), 8, (v) => b.addInt64(BigInt(v)));
      b.startObject(7);
      b.addFieldOffset(2, scale, 0);
      b.addFieldOffset(3, zero, 0);
      b.addFieldInt32(6, dimension, 0);
      quantization = b.endObject();
    }
    b.startObject(8);
    b.addFieldOffset(0, shape, 0);
    b.addFieldInt8(1, type, 0);
    b.addFieldInt32(2, at, 0);
    b.addFieldOffset(3, name, 0);
    b.addFieldOffset(4, quantization, 0);
    return tensors.push(b.endObject()) - 1;
  };
  const names = [depthwise ? OPERATORS.depthwise : OPERATORS.conv, OPERATORS.quantize, OPERATORS.dequantize].map((code) => {
    b.startObject(4);
    b.addFieldInt8(0, code, 0);
    b.addFieldInt32(2, code === OPERATORS.quantize ? 1 : 3, 1);
    b.addFieldInt32(3, code, 0);
    return b.endObject();
  });
  const operators: number[] = [];
  const operator = (code: number, inputs: readonly number[], output: number, options = 0, kind = 0): void => {
    const [from, to] = [ints(inputs), ints([output])];
    b.startObject(9);
    b.addFieldInt32(0, code, 0);
    b.addFieldOffset(1, from, 0);
    b.addFieldOffset(2, to, 0);
    b.addFieldInt8(3, kind, 0);
    b.addFieldOffset(4, options, 0);
    operators.push(b.endObject());
  };
  const image = [1, size, size, channels];
  const input = tensor(image, FLOAT32, null, []);
  let x = tensor(image, INT8, null, [STEP]);
  operator(1, [input], x);
  const filterDims = depthwise ? [1, kernel, kernel, channels] : [channels, kernel, kernel, channels];
  const factor = factorOf(layer);
  // TensorFlow has channels last in depthwise filters too
  const area = kernel * kernel;
  const w = depthwise ? codes.map((_, i) => codes[(i % channels) * area + Math.floor(i / channels)]) : codes;
  for (let i = 0; i < count; i++) {
    const scales = new Array<number>(channels).fill(factor);
    const filter = tensor(filterDims, INT8, w, scales, depthwise ? 3 : 0);
    const bias = tensor([channels], INT32, new Int8Array(4 * channels), new Array<number>(channels).fill(factor * STEP));
    const y = tensor(image, INT8, null, [STEP]);
    b.startObject(7);
    b.addFieldInt8(0, 0, 0); // SAME
    b.addFieldInt32(1, 1, 0);
    b.addFieldInt32(2, 1, 0);
    if (depthwise) b.addFieldInt32(3, 1, 0);
    const options = b.endObject();
    operator(0, [x, filter, bias], y, options, depthwise ? 2 : 1);
    x = y;
  }
  const output = tensor(image, FLOAT32, null, []);
  operator(2, [x], output);
  const [all, from, to, steps] = [offsets(tensors), ints([input]), ints([output]), offsets(operators)];
  b.startObject(5);
  b.addFieldOffset(0, all, 0);
  b.addFieldOffset(1, from, 0);
  b.addFieldOffset(2, to, 0);
  b.addFieldOffset(3, steps, 0);
  const graph = offsets([b.endObject()]);
  const [operatorCodes, data] = [offsets(names), offsets(buffers)];
  b.startObject(8);
  b.addFieldInt32(0, 3, 0);
  b.addFieldOffset(1, operatorCodes, 0);
  b.addFieldOffset(2, graph, 0);
  b.addFieldOffset(4, data, 0);
  b.finish(b.endObject(), "TFL3");
  return b.asUint8Array();
}

const CHAINS = [1, 5] as const;

const page = `<!doctype html><script type="importmap">{"imports":{"@litertjs/wasm-utils":"./wasm-utils/dist/index.js"}}</script><script type="module">
import { loadLiteRt, loadAndCompile, Tensor } from "./core/dist/index.js";
import { format } from "./lowbit/formats/index.js";
import { prepareConv2d, quantize, tensor, wasm } from "./lowbit/index.js";
const best = async (runs, ms) => {
  const least = runs.map(() => Infinity);
  for (const end = performance.now() + ms; performance.now() < end;)
    for (const [i, run] of runs.entries()) { const t = performance.now(); await run(); least[i] = Math.min(least[i], performance.now() - t); }
  return least;
};
let backend;
window.begin = async () => { await loadLiteRt(new URL("./core/wasm/litert_wasm_internal.js", location.href).href); backend = await wasm(); };
window.measureLayer = async ({ name, channels, size, kernel, depthwise, factor }, ms) => {
  const image = new Float32Array(size * size * channels).map(() => Math.round(64 * Math.random() - 32) / 16);
  const models = await Promise.all(${JSON.stringify(CHAINS)}.map(async (count) =>
    loadAndCompile(new Uint8Array(await (await fetch(name + "-" + count + ".tflite")).arrayBuffer()), { accelerator: "wasm", cpuOptions: { numThreads: 1 } })));
  const input = new Tensor(image, [1, size, size, channels]);
  const theirs = models.map((model) => async () => { for (const y of await model.run(input)) y.delete(); });
  const values = Float32Array.from(new Int8Array(await (await fetch(name + ".codes")).arrayBuffer()), (v) => v * factor);
  const group = depthwise ? 1 : channels;
  const area = kernel * kernel;
  // ours has channels first: filters [outputs, in, height, width]
  const moved = values.map((_, i) => values[i - (i % (group * area)) + (i % area) * group + Math.floor((i % (group * area)) / area)]);
  const w = quantize(tensor(moved, [channels, group, kernel, kernel]), format("int8_row"));
  const layer = prepareConv2d(w, { pads: "same", groups: depthwise ? channels : 1, backend });
  const x = Int8Array.from(image, (_, i) => 16 * image[(i % (size * size)) * channels + Math.floor(i / (size * size))]);
  const out = new Int8Array(x.length);
  const ours = () => layer.runCodes(x, [1, channels, size, size], { input: { scale: 1 / 16, zeroPoint: 0 }, output: { scale: 1 / 16, zeroPoint: 0 } }, out);
  ours();
  const [y] = await models[0].run(input);
  const given = y.toTypedArray();
  const off = given.reduce((most, v, i) => Math.max(most, Math.abs(16 * v - out[(i % channels) * size * size + Math.floor(i / channels)])), 0);
  y.delete();
  const [one, five, own] = await best([...theirs, ours], ms);
  input.delete();
  layer.dispose();
  return { one, five, own, off };
};
window.ready = true;
</script>`;

export async function convLitert(args: readonly string[]): Promise<void> {
  const strange = args.filter((name) => !LAYERS.some((layer) => layer.name === name));
  if (strange.length > 0)
    throw new RangeError(`conv-litert: expected some of ${LAYERS.map(({ name }) => name).join(", ")}, got ${strange.join(", ")}.`);
  const chromium = chromiumPath("conv-litert");
  const here = dirname(fileURLToPath(import.meta.url));
  const built = join(here, "..", "dist", "esm");
  if (!existsSync(join(built, "index.js"))) throw new Error("conv-litert: expected dist/esm, found none. Run npm run build.");
  const { Builder } = (await load("flatbuffers")) as { Builder: new (bytes: number) => Builder };
  const peers = process.env.LOWBIT_PEERS ?? join(here, "peers");
  const root = join(peers, "node_modules", "@litertjs");
  const layers = LAYERS.filter(({ name }) => args.length === 0 || args.includes(name));
  const files: Record<string, string | Uint8Array> = { "index.html": page };
  for (const name of readdirSync(built, { recursive: true, encoding: "utf8" }))
    if (name.endsWith(".js")) files[`lowbit/${name}`] = readFileSync(join(built, name));
  let state = 1;
  const random = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  for (const layer of layers) {
    const codes = codesOf(layer, random);
    files[`${layer.name}.codes`] = new Uint8Array(codes.buffer);
    for (const count of CHAINS) files[`${layer.name}-${count}.tflite`] = chain(new Builder(1 << 20), layer, count, codes).slice();
  }
  await inChromium(chromium, root, files, "isolated/index.html", async (tab) => {
    await tab.evaluate("window.begin()");
    for (const layer of layers) {
      const given = JSON.stringify({ ...layer, factor: factorOf(layer) });
      const { one, five, own, off } = (await tab.evaluate(`window.measureLayer(${given}, 4000)`)) as Times;
      if (!(off <= 1)) throw new Error(`conv-litert ${layer.name}: expected the codes of LiteRT.js within 1, got ${off}.`);
      const theirs = (five - one) / (CHAINS[1] - CHAINS[0]);
      console.log(
        `${layer.name.padEnd(17)} ${own.toFixed(3)} ms, LiteRT.js ${theirs.toFixed(3)} ms: ${(theirs / own).toFixed(2)} times as fast`,
      );
    }
  });
}

interface Times {
  readonly one: number;
  readonly five: number;
  readonly own: number;
  /** The largest difference of two codes of the first layer. */
  readonly off: number;
}
