// Accuracy of the quantizers on kjv-llama: perplexity with dequantized weights through onnxruntime-node, beside the bounds that the project sets.
// Run: npx tsx bench/accuracy-gptq.ts [case ...], about half a minute a row; with --held-out [format ...] options are chosen on calibration text that calibration
// does not use, and only the choice is evaluated. The model lies beside the project (test/helpers/shared.ts).
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

/** Options to choose from without looking at the evaluation text: by perplexity on a part of the calibration text that calibration does not use. */
interface Family {
  readonly format: string;
  readonly bound: number;
  readonly options: readonly (readonly [what: string, make: Make])[];
}
const CALIBRATION_WINDOWS = 128;
const HELD_OUT = { first: 400, count: 96 };
const orders = [false, true].flatMap((actOrder) =>
  [0.01, 0.05, 0.1].map((damp): readonly [string, Make] => [
    `GPTQ${actOrder ? " act-order," : ","} damp ${damp}`,
    (hessian, name) => gptq({ hessian, name, damp, actOrder }),
  ]),
);
const rotations = [undefined, 128].flatMap((block) =>
  [false, true].map((actOrder): readonly [string, Make] => [
    `MR-GPTQ, ${block ? `Hadamard ${block}` : "format's block"}, ${actOrder ? "act-order" : "natural"}`,
    (hessian, name) => mrgptq({ hessian, name, actOrder, ...(block ? { block } : {}) }),
  ]),
);
const families: readonly Family[] = [
  { format: "uint4_b32_zp", bound: 24.5, options: orders },
  { format: "uint3_b32_zp", bound: 24.72, options: orders },
  { format: "uint2_b32_zp", bound: 26.4, options: orders },
  { format: "nvfp4", bound: 24.524, options: rotations },
  { format: "mxfp4", bound: 24.577, options: rotations },
];

const kjv = loadKjv();
if (kjv === null) throw new Error("kjv-llama is not beside the project: set LOWBIT_MODELS");
const only = process.argv.slice(2).filter((v) => v !== "--held-out");
console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
const seconds = (since: number) => ((performance.now() - since) / 1000).toFixed(1);
let since = performance.now();
const statistics = await calibrateKjv(kjv, CALIBRATION_WINDOWS);
console.log(`calibration: ${CALIBRATION_WINDOWS} windows of 256 tokens, ${statistics.size} inputs, ${seconds(since)} s`);

function quantized(name: string, make: Make): Uint8Array {
  const values = new Map<string, Float32Array>();
  for (const layer of kjv!.layers) {
    const q = make(statistics.get(layer.input)!, layer.name);
    values.set(layer.name, dequantizeOriginal(quantize(weightOf(kjv!, layer), format(name) as Format, q)));
  }
  return withWeights(kjv!, values);
}

const verdict = (result: number, bound?: number) =>
  (bound === undefined ? "" : `${bound} ${result <= bound ? "met" : "MISSED"}`).padStart(12);

if (process.argv.includes("--held-out")) {
  const text = kjv.calibration.subarray(256 * HELD_OUT.first, 256 * (HELD_OUT.first + HELD_OUT.count) + 1);
  console.log(
    `options by perplexity on calibration windows ${HELD_OUT.first}..${HELD_OUT.first + HELD_OUT.count - 1}; * the one chosen, and its perplexity on the evaluation text`,
  );
  for (const family of families) {
    if (only.length > 0 && !only.includes(family.format)) continue;
    let best: { what: string; make: Make; held: number } | undefined;
    const lines: string[] = [];
    for (const [what, make] of family.options) {
      const held = await perplexity(kjv, quantized(family.format, make), Infinity, text);
      lines.push(`${family.format.padEnd(14)}   ${what.padEnd(40)} ${held.toFixed(4)}`);
      if (best === undefined || held < best.held) best = { what, make, held };
    }
    lines.forEach((line) => console.log(line));
    const result = await perplexity(kjv, quantized(family.format, best!.make));
    console.log(
      `${family.format.padEnd(14)} * ${best!.what.padEnd(40)} ${best!.held.toFixed(4)}  ${result.toFixed(4)}  ${verdict(result, family.bound)}`,
    );
  }
} else {
  console.log(`${"format".padEnd(14)} ${"quantizer".padEnd(40)} perplexity   bound  quantize s`);
  for (const row of rows) {
    if (only.length > 0 && !only.includes(row.id)) continue;
    since = performance.now();
    const bytes = quantized(row.format, row.make);
    const took = seconds(since);
    const result = await perplexity(kjv, bytes);
    console.log(`${row.format.padEnd(14)} ${row.what.padEnd(40)} ${result.toFixed(4)}  ${verdict(result, row.bound)}  ${took}`);
  }
}
