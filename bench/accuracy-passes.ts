// kjv-llama with passes before quantization: perplexity of the stored values through onnxruntime-node, beside the bounds that the project sets. Rotations
// are fused into the weights of the graph; statistics come from the rotated model, on calibration text. Run: npx tsx bench/accuracy-passes.ts [row ...]
import { cpus, loadavg } from "node:os";
import { format } from "../formats/index.ts";
import { quantize, type WeightQuantizer } from "../src/index.ts";
import { applyPasses, modelLayers, readModelBytes, writeModelBytes, type PassRequest } from "../src/onnx/index.ts";
import { dequantizeOriginal, gptq, rtn, type LayerStatistics } from "../src/quantize/index.ts";
import { calibrateKjv, loadKjv, perplexity, weightOf, withWeights, type Kjv } from "./kjv.ts";

interface Row {
  readonly id: string;
  readonly format: string;
  readonly passes: readonly PassRequest[];
  readonly what: string;
  readonly bound?: number;
  /** undefined: round to nearest, without statistics. */
  readonly make?: (hessian: LayerStatistics, name: string) => WeightQuantizer;
}

const rotated = (block: number | "full"): PassRequest[] => ["fold-norm", { name: "rotate", block, online: ["*down_proj*"] }];
const search = { method: "mse" as const };
const ordered = (hessian: LayerStatistics, name: string): WeightQuantizer => gptq({ hessian, name, actOrder: true, damp: 0.05, search });
const natural = (hessian: LayerStatistics, name: string): WeightQuantizer => gptq({ hessian, name, damp: 0.05, search });

const rows: readonly Row[] = [
  { id: "nv", format: "nvfp4", passes: [], what: "RTN" },
  { id: "nv-rot", format: "nvfp4", passes: rotated(128), what: "rotate 128, RTN" },
  { id: "nv-rot-gptq", format: "nvfp4", passes: rotated(128), what: "rotate 128, GPTQ", bound: 24.49, make: natural },
  { id: "nv-rot-gptq-order", format: "nvfp4", passes: rotated(128), what: "rotate 128, GPTQ act-order", bound: 24.49, make: ordered },
  { id: "nv-gptq-order", format: "nvfp4", passes: [], what: "GPTQ act-order", bound: 24.49, make: ordered },
  { id: "mx", format: "mxfp4", passes: [], what: "RTN" },
  { id: "mx-rot", format: "mxfp4", passes: rotated(128), what: "rotate 128, RTN" },
  { id: "mx-rot-gptq", format: "mxfp4", passes: rotated(128), what: "rotate 128, GPTQ", bound: 24.55, make: natural },
  { id: "mx-rot-gptq-order", format: "mxfp4", passes: rotated(128), what: "rotate 128, GPTQ act-order", bound: 24.55, make: ordered },
  { id: "mx-rot32-gptq-order", format: "mxfp4", passes: rotated(32), what: "rotate 32, GPTQ act-order", bound: 24.55, make: ordered },
];

const kjv = loadKjv();
if (kjv === null) throw new Error("kjv-llama is not beside the project: set LOWBIT_MODELS");
const only = process.argv.slice(2);
console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
console.log(`${"row".padEnd(22)} ${"format".padEnd(8)} ${"what".padEnd(32)} perplexity   bound`);
const names = new Set(kjv.layers.map(({ name }) => name));
const models = new Map<string, { kjv: Kjv; statistics?: Map<string, LayerStatistics> }>();
for (const row of rows) {
  if (only.length > 0 && !only.includes(row.id)) continue;
  const key = JSON.stringify(row.passes);
  let entry = models.get(key);
  if (entry === undefined) {
    const model = readModelBytes(kjv.bytes);
    await applyPasses(model, row.passes);
    const bytes = writeModelBytes(model);
    const layers = modelLayers(model)
      .filter(({ name }) => names.has(name))
      .map(({ name, activation, weight, k, rows: n }) => ({ name, input: activation, weight: weight.name, k, n }));
    models.set(key, (entry = { kjv: { ...kjv, model: readModelBytes(bytes), bytes, layers } }));
  }
  const { kjv: own } = entry;
  if (row.make !== undefined) entry.statistics ??= await calibrateKjv(own, 128, own.bytes);
  const values = new Map<string, Float32Array>();
  for (const layer of own.layers) {
    const quantizer = row.make === undefined ? rtn() : row.make(entry.statistics!.get(layer.input)!, layer.name);
    values.set(layer.name, dequantizeOriginal(quantize(weightOf(own, layer), format(row.format), quantizer)));
  }
  const result = await perplexity(own, withWeights(own, values));
  const verdict = row.bound === undefined ? "" : `${row.bound} ${result <= row.bound ? "met" : "MISSED"}`;
  console.log(`${row.id.padEnd(22)} ${row.format.padEnd(8)} ${row.what.padEnd(32)} ${result.toFixed(4)}  ${verdict.padStart(12)}`);
}
