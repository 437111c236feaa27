// The planner on kjv-llama: formats per layer at 3.0 stored bits per weight (codes, scales and zero points), GPTQ in each, importance of the layers
// measured by quantizing one at a time to two bits on calibration text. Run: npx tsx bench/accuracy-plan.ts [bits per weight]
import { cpus, loadavg } from "node:os";
import { format } from "../formats/index.ts";
import { dequantize, quantize, type Format } from "../src/index.ts";
import { gptq, plan, relativeLoss, storedBits, type PlanLayer } from "../src/quantize/index.ts";
import { calibrateKjv, loadKjv, perplexity, weightOf, withWeights } from "./kjv.ts";

const bitsPerWeight = Number(process.argv[2] ?? 3);
const PROBE_WINDOWS = 16;
const kjv = loadKjv();
if (kjv === null) throw new Error("kjv-llama is not beside the project: set LOWBIT_MODELS");
console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
const statistics = await calibrateKjv(kjv, 128);
const candidates = ["uint2_b64_float16_zp", "uint2_b32_float16_zp", "uint3_row_float16_zp", "uint3_b128_float16_zp", "uint3_b64_float16_zp", "uint4_b128_float16_zp"].map((n) => format(n)); // prettier-ignore
const quantizer = (layer: PlanLayer) => gptq({ hessian: layer.statistics!, name: layer.name, actOrder: true, damp: 0.05 });
const layers = kjv.layers.map((l): PlanLayer => ({ name: l.name, weight: weightOf(kjv, l), statistics: statistics.get(l.input) }));

const text = kjv.calibration;
const probe = format("uint2_b32_float16_zp") as Format;
const base = Math.log(await perplexity(kjv, kjv.bytes, PROBE_WINDOWS, text));
const weighted: PlanLayer[] = [];
for (const layer of layers) {
  const packed = quantize(layer.weight, probe, quantizer(layer));
  const loss = Math.log(await perplexity(kjv, withWeights(kjv, new Map([[layer.name, dequantize(packed)]])), PROBE_WINDOWS, text)) - base;
  // A layer that the probe leaves unhurt still counts a little.
  weighted.push({ ...layer, importance: Math.max(loss, 1e-4) / relativeLoss(layer, packed) });
}
for (const [what, list] of [
  ["importance 1", layers],
  ["measured importance", weighted],
] as const) {
  const p = await plan(list, { candidates, bitsPerWeight, quantizer });
  const values = new Map<string, Float32Array>();
  for (const [i, l] of p.layers.entries()) values.set(l.name, dequantize(quantize(list[i].weight, l.format, quantizer(list[i]))));
  const result = await perplexity(kjv, withWeights(kjv, values));
  const counts = new Map<string, number>();
  for (const l of p.layers) counts.set(l.format.name, (counts.get(l.format.name) ?? 0) + 1);
  console.log(`${what}: ${p.bitsPerWeight.toFixed(3)} stored bits per weight, perplexity ${result.toFixed(4)} (bound 24.9 at 3.0)`);
  console.log(`  ${[...counts].map(([n, c]) => `${c} x ${n} (${storedBits(format(n), 256, 256).toFixed(2)})`).join(", ")}`);
}
