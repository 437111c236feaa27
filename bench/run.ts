// npm run bench -- gemv|gemm|fwht|codec|lut|bitplane|cold|load|ops|nodes|search|webgpu|decode|encode|conv
// |integer|low-bit|sparse|tuner|gguf-encode [case ...]
// [--json] [--seconds S] [--quick]: best and median of interleaved rounds, ratios to roofs and peers of the same
// process. npm run bench -- accuracy-gptq|accuracy-activations|accuracy-ocr|accuracy-static|gguf-llama|gguf-wllama|
// cache-perplexity [case ...]: quantized models on data that calibration never saw, beside their bounds; decode-wllama:
// the decoder of `decode` beside llama.cpp in Chromium; onnx-1gib,
// large: time, memory; conv-litert: convolutions beside LiteRT.js in Chromium; retrieval: vectors of real models,
// packed, in a task; zoo: real models from npm packages, in several dtypes and runtimes. --publish writes the figures
// into docs/public/bench.json, which the benchmark page of the site shows. --quick leaves the slowest peers out. Use
// Node 24 for the figures of relaxed SIMD: `npx -p node@24 npm run bench -- gemv`.
import { parseArgs } from "node:util";
import { machine } from "./measure.ts";

const reports: Record<string, (args: string[]) => Promise<void>> = {
  "accuracy-ocr": async (args) => (await import("./accuracy-ocr.ts")).accuracyOcr(args),
  "accuracy-activations": async (args) => (await import("./accuracy-activations.ts")).accuracyActivations(args),
  "accuracy-static": async (args) => (await import("./accuracy-static.ts")).accuracyStatic(args),
  "onnx-1gib": async (args) => (await import("./onnx-1gib.ts")).onnxGib(args),
  "cache-perplexity": async (args) => (await import("./cache-perplexity.ts")).cachePerplexity(args),
  "gguf-llama": async (args) => (await import("./gguf-llama.ts")).ggufLlama(args),
  "decode-wllama": async () => (await import("./decode-wllama.ts")).decodeWllama(),
  "gguf-wllama": async (args) => (await import("./gguf-wllama.ts")).ggufWllama(args),
  "conv-litert": async (args) => (await import("./conv-litert.ts")).convLitert(args),
  zoo: async (args) => (await import("./zoo.ts")).zoo(args),
  retrieval: async (args) => (await import("./retrieval.ts")).retrieval(args),
  large: async (args) => (await import("./large.ts")).large(args),
  "accuracy-gptq": async (args) => (await import("./accuracy-gptq.ts")).accuracyGptq(args),
};
const [first = "", ...others] = process.argv.slice(2);
if (Object.hasOwn(reports, first)) {
  await reports[first](others);
  process.exit(0);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: "boolean", default: false },
    seconds: { type: "string", default: "4" },
    quick: { type: "boolean", default: false },
    publish: { type: "boolean", default: false },
  },
});
const families: Record<string, () => Promise<(o: { seconds: number; quick: boolean; cases: readonly string[] }) => Promise<object>>> = {
  gemv: async () => (await import("./gemv.ts")).gemv,
  gemm: async () => (await import("./gemm.ts")).gemm,
  fwht: async () => (await import("./fwht.ts")).fwht,
  codec: async () => (await import("./codec.ts")).codec,
  lut: async () => (await import("./lut.ts")).lut,
  bitplane: async () => (await import("./bitplane.ts")).bitplane,
  ops: async () => (await import("./ops.ts")).opsBench,
  webgpu: async () => (await import("./webgpu.ts")).webgpuBench,
  cold: async () => (await import("./cold.ts")).cold,
  load: async () => (await import("./load.ts")).load,
  decode: async () => (await import("./decode.ts")).decode,
  conv: async () => (await import("./conv.ts")).convBench,
  encode: async () => (await import("./encode.ts")).encode,
  integer: async () => (await import("./integer.ts")).integer,
  "low-bit": async () => (await import("./low-bit.ts")).lowBit,
  nodes: async () => (await import("./nodes.ts")).nodes,
  search: async () => (await import("./search.ts")).searchBench,
  tuner: async () => (await import("./tuner.ts")).tunerBench,
  sparse: async () => (await import("./sparse.ts")).sparseBench,
  lossless: async () => (await import("./lossless.ts")).lossless,
  tfjs: async () => (await import("./tfjs.ts")).tfjs,
  "gguf-encode": async () => (await import("./gguf-encode.ts")).ggufEncode,
};
const family = families[positionals[0] ?? ""];
if (family === undefined) {
  console.error(`bench: expected one of ${Object.keys(families).join(", ")}, got ${positionals[0] ?? "nothing"}.`);
  process.exit(2);
}
const before = machine();
const result = (await (
  await family()
)({ seconds: Number(values.seconds), quick: values.quick, cases: positionals.slice(1) })) as {
  rows: { name: string; bestMs: number; medianMs: number; cpuMs: number; gops?: number; gbs?: number; gvalues?: number }[];
  ratios: Record<string, number>;
  missing: string[];
  /** Where it ran, if that is not this machine's CPU. */
  device?: string;
};
const after = machine();
if (values.publish) {
  const { publish } = await import("./publish.ts");
  console.log(publish(positionals, `${values.seconds}${values.quick ? " --quick" : ""}`, before, result));
}
if (values.json) console.log(JSON.stringify({ family: positionals[0], machine: before, loadAfter: after.load, ...result }, null, 2));
else {
  console.log(`${before.node} V8 ${before.v8} ${before.cpu} x ${before.cores}, load ${before.load.join(" ")} -> ${after.load.join(" ")}`);
  if (result.device !== undefined) console.log(`device: ${result.device}`);
  for (const row of result.rows)
    console.log(
      `${row.name.padEnd(48)} best ${row.bestMs.toFixed(3).padStart(9)} ms  median ${row.medianMs.toFixed(3).padStart(9)} ms  cpu ${row.cpuMs.toFixed(3).padStart(9)} ms` +
        (row.gops === undefined ? "" : `  ${row.gops.toFixed(1).padStart(7)} Gop/s`) +
        (row.gbs === undefined ? "" : `  ${row.gbs.toFixed(1).padStart(7)} GB/s`) +
        (row.gvalues === undefined ? "" : `  ${row.gvalues.toFixed(2).padStart(6)} Gvalues/s`),
    );
  for (const [name, ratio] of Object.entries(result.ratios))
    console.log(`${name.padEnd(60)} ${Number.isNaN(ratio) ? "not measured" : ratio.toFixed(3)}`);
  for (const line of result.missing) console.log(`missing: ${line}`);
}
process.exit(0);
