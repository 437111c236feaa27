// Accuracy of the quantizers on kjv-llama: perplexity with dequantized weights through onnxruntime-node, beside the bounds that the project sets.
// Run: npx tsx bench/accuracy-gptq.ts [case ...]. The model lies beside the project (test/helpers/shared.ts). Takes about half a minute a row.
import { cpus, loadavg } from "node:os";
import { quantize, type Format, type WeightQuantizer } from "../src/index.ts";
import { format } from "../formats/index.ts";
import { dequantizeOriginal, gptq, mrgptq, rtn, type LayerStatistics } from "../src/quantize/index.ts";
import { calibrateKjv, loadKjv, perplexity, weightOf, withWeights } from "./kjv.ts";

const search = { method: "mse" as const };
type Make = (hessian: LayerStatistics, name: string) => WeightQuantizer;
interface Row {
  readonly id: string;
  readonly format: string;
  readonly what: string;
  readonly bound?: number;
  readonly make: Make;
}

const rows: readonly Row[] = [
  { id: "rtn4", format: "uint4_b32_zp", what: "RTN", make: () => rtn() },
  {
    id: "gptq4",
    format: "uint4_b32_zp",
    what: "GPTQ, damp 0.05",
    bound: 24.5,
    make: (hessian, name) => gptq({ hessian, name, damp: 0.05 }),
  },
  { id: "gptq4-default", format: "uint4_b32_zp", what: "GPTQ", make: (hessian, name) => gptq({ hessian, name }) },
  { id: "rtn3", format: "uint3_b32_zp", what: "RTN", make: () => rtn() },
  {
    id: "gptq3",
    format: "uint3_b32_zp",
    what: "GPTQ act-order",
    bound: 24.72,
    make: (hessian, name) => gptq({ hessian, name, actOrder: true }),
  },
  { id: "rtn2", format: "uint2_b32_zp", what: "RTN", make: () => rtn() },
  {
    id: "gptq2",
    format: "uint2_b32_zp",
    what: "GPTQ act-order, damp 0.1",
    bound: 26.4,
    make: (hessian, name) => gptq({ hessian, name, actOrder: true, damp: 0.1 }),
  },
  { id: "rtnnv", format: "nvfp4", what: "RTN", make: () => rtn() },
  {
    id: "mrnv",
    format: "nvfp4",
    what: "MR-GPTQ, Hadamard 128, natural order",
    bound: 24.524,
    make: (hessian, name) => mrgptq({ hessian, name, block: 128, actOrder: false }),
  },
  { id: "rtnmx", format: "mxfp4", what: "RTN", make: () => rtn() },
  {
    id: "mrmx",
    format: "mxfp4",
    what: "MR-GPTQ, Hadamard 128, natural order",
    bound: 24.577,
    make: (hessian, name) => mrgptq({ hessian, name, block: 128, actOrder: false }),
  },
  {
    id: "mrnv-act",
    format: "nvfp4",
    what: "MR-GPTQ, block of the format, act-order",
    make: (hessian, name) => mrgptq({ hessian, name }),
  },
  { id: "search4", format: "uint4_b32_zp", what: "RTN with MSE scales", make: () => rtn({ search }) },
];

const kjv = loadKjv();
if (kjv === null) throw new Error("kjv-llama is not beside the project: set LOWBIT_MODELS");
const only = process.argv.slice(2);
console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
const seconds = (since: number) => ((performance.now() - since) / 1000).toFixed(1);
let since = performance.now();
const statistics = await calibrateKjv(kjv, 128);
console.log(`calibration: 128 windows of 256 tokens, ${statistics.size} inputs, ${seconds(since)} s`);
console.log(`${"format".padEnd(14)} ${"quantizer".padEnd(40)} perplexity   bound  quantize s`);
for (const row of rows) {
  if (only.length > 0 && !only.includes(row.id)) continue;
  since = performance.now();
  const values = new Map<string, Float32Array>();
  for (const layer of kjv.layers) {
    const q = row.make(statistics.get(layer.input)!, layer.name);
    values.set(layer.name, dequantizeOriginal(quantize(weightOf(kjv, layer), format(row.format) as Format, q)));
  }
  const took = seconds(since);
  const result = await perplexity(kjv, withWeights(kjv, values));
  const verdict = row.bound === undefined ? "" : `${row.bound} ${result <= row.bound ? "met" : "MISSED"}`;
  console.log(`${row.format.padEnd(14)} ${row.what.padEnd(40)} ${result.toFixed(4)}  ${verdict.padStart(12)}  ${took}`);
}
