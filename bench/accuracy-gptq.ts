// Weights of kjv-llama in every way: files written by quantizeModel, run by onnxruntime-node, perplexity of text that
// neither calibration nor any choice saw, beside the bounds that the project sets. Calibration: 128 windows of 256
// tokens, where a row says no other number; one batch in eight is held out, where quantizeModel chooses what a row leaves open. --choose compares the
// forms of a row (`other`) on further training text instead, 64 windows: so options are to be chosen, never by the
// figures.
// Run: npm run bench -- accuracy-gptq [case ...] [--choose], one to two minutes of processor time a row. The model lies
// beside the project (test/helpers/shared.ts).
import { rmSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { scratchFolder } from "../scripts/scratch.mjs";
import { format } from "../formats/index.ts";
import { modelLayers, quantizeModel, readModel, type LayerReport, type QuantizeModelOptions } from "../src/onnx/index.ts";
import type { WeightQuantizer } from "../src/index.ts";
import { prune, storedBits } from "../src/quantize/index.ts";
import { perplexity } from "../test/onnx/perplexity.ts";
import { loadKjv, type Kjv } from "./kjv.ts";

interface Row {
  readonly id: string;
  /** null: the float model. */
  readonly options: QuantizeModelOptions | null;
  readonly bound?: number;
  /** Bits per weight that the file must keep to. */
  readonly bits?: number;
  /** Windows of calibration text. */
  readonly windows?: number;
  /** Other forms, for --choose. */
  readonly other?: readonly QuantizeModelOptions[];
}

const stored = (name: string, rest: Partial<QuantizeModelOptions> = {}): QuantizeModelOptions => ({
  format: name,
  target: "stored",
  opTypes: ["MatMul"],
  ...rest,
});
const asymmetric: QuantizeModelOptions = { dtype: "q4", symmetric: false };
const rotated: QuantizeModelOptions["passes"] = ["fold-norm", { name: "rotate", block: 128, online: ["*down_proj*"] }];
const ordered = { damp: 0.1, actOrder: true, polish: true };
const natural = { block: 128, damp: 0.05, actOrder: false, polish: true };

/** 2:4 by magnitude, then rounding to nearest. */
const magnitude: WeightQuantizer = { algorithm: "prune", quantizeWeight: (weight, to) => prune(weight, "2:4", { format: to }) };

const ROWS: readonly Row[] = [
  { id: "fp32", options: null },
  { id: "fp16", options: { dtype: "fp16" } },
  { id: "int8", options: { dtype: "int8" } },
  { id: "q4", options: { dtype: "q4" } },
  { id: "rtn4", options: asymmetric },
  { id: "q4-gptq", options: { dtype: "q4", algorithm: "gptq" } },
  {
    id: "gptq4",
    options: { ...asymmetric, algorithm: "gptq" },
    other: [{ ...asymmetric, algorithm: { name: "gptq", damp: 0.05, actOrder: false, polish: true } }],
  },
  {
    id: "refit4",
    options: { ...asymmetric, algorithm: "refit" },
    bound: 24.48,
    other: [{ ...asymmetric, algorithm: "gptq" }],
  },
  { id: "rtn3", options: stored("uint3_b32_zp") },
  { id: "gptq3", options: stored("uint3_b32_zp", { algorithm: "gptq" }) },
  {
    id: "refit3",
    options: stored("uint3_b32_zp", { algorithm: "refit" }),
    bound: 24.68,
    other: [stored("uint3_b32_zp", { algorithm: { name: "refit", ...ordered } })],
  },
  { id: "rtn2", options: stored("uint2_b32_zp") },
  { id: "gptq2", options: stored("uint2_b32_zp", { algorithm: "gptq" }) },
  {
    id: "refit2",
    options: stored("uint2_b32_zp", { algorithm: { name: "refit", ...ordered }, calibrate: { holdOut: 0 } }),
    bound: 26,
    other: [stored("uint2_b32_zp", { algorithm: { name: "refit", ...ordered } }), stored("uint2_b32_zp", { algorithm: "refit" })],
  },
  { id: "rtnnv", options: stored("nvfp4") },
  { id: "mrnv-open", options: stored("nvfp4", { algorithm: "mrgptq" }) },
  {
    id: "mrnv",
    options: stored("nvfp4", { algorithm: { name: "mrgptq", ...natural }, calibrate: { holdOut: 0 } }),
    bound: 24.49,
    other: [
      stored("nvfp4", { algorithm: "mrgptq" }),
      stored("nvfp4", { algorithm: "gptq" }),
      stored("nvfp4", { algorithm: "gptq", passes: rotated }),
    ],
  },
  { id: "rtnmx", options: stored("mxfp4") },
  {
    id: "mrmx",
    options: stored("mxfp4", { algorithm: { name: "mrgptq", ...natural }, calibrate: { holdOut: 0 } }),
    bound: 24.55,
    other: [
      stored("mxfp4", { algorithm: "mrgptq" }),
      stored("mxfp4", { algorithm: "gptq" }),
      stored("mxfp4", { algorithm: "gptq", passes: rotated }),
    ],
  },
  { id: "magnitude24", options: { dtype: "q4", algorithm: () => magnitude } },
  {
    id: "sparse24",
    options: {
      dtype: "q4",
      algorithm: { name: "gptq", prune: { pattern: "2:4" }, damp: 0.01, actOrder: false },
      calibrate: { holdOut: 0 },
    },
  },
  {
    id: "budget3-128",
    options: { budget: { bitsPerWeight: 3 } },
    bits: 3,
  },
  {
    // where most weights have two bits, more text helps: twice as long
    id: "budget3",
    windows: 384,
    options: { budget: { bitsPerWeight: 3 } },
    bound: 24.78,
    bits: 3,
    other: [
      { budget: { bitsPerWeight: 3 }, algorithm: "refit" },
      { budget: { bitsPerWeight: 3 }, algorithm: { name: "refit", ...ordered } },
      { budget: { bitsPerWeight: 3 }, algorithm: { name: "refit", ...ordered }, calibrate: { holdOut: 0 } },
    ],
  },
];

const WINDOWS = 128;
const BATCH = 8;

/** Bytes that the packed weights take, from their formats. */
function packedBytes(path: string, layers: readonly LayerReport[]): number {
  const model = readModel(path);
  try {
    const sizes = new Map(modelLayers(model).map(({ name, rows, k }) => [name, [rows, k] as const]));
    const bytes = layers.map(({ name, format: of }) => {
      const [rows, k] = sizes.get(name) ?? [0, 0];
      return of === null || of === "float16" || rows === 0 ? 0 : (storedBits(format(of as "int4"), rows, k) * rows * k) / 8;
    });
    return bytes.reduce((a, b) => a + b, 0);
  } finally {
    model.close();
  }
}

const show = (options: QuantizeModelOptions | null): string => JSON.stringify({ ...options, target: undefined, opTypes: undefined });

export async function accuracyGptq(args: readonly string[]): Promise<void> {
  const only = args.filter((arg) => arg !== "--choose");
  const unknown = only.filter((id) => !ROWS.some((row) => row.id === id));
  if (unknown.length > 0)
    throw new Error(`accuracy-gptq: expected cases of ${ROWS.map((row) => row.id).join(", ")}, or --choose, got ${unknown.join(", ")}`);
  const kjv = loadKjv();
  const folder = scratchFolder("accuracy");
  console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
  try {
    for (const row of ROWS.filter(({ id }) => only.length === 0 || only.includes(id))) {
      if (!args.includes("--choose")) await evaluate(row, kjv, join(folder, `${row.id}.onnx`));
      else if (row.other !== undefined) await choose(row, kjv, join(folder, `${row.id}.onnx`));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function choose({ id, options, windows = WINDOWS, other = [] }: Row, kjv: Kjv, path: string): Promise<void> {
  for (const form of [options!, ...other]) {
    await quantizeModel(kjv.path, path, { ...form, calibration: kjv.feeds(windows, BATCH) });
    const result = await perplexity(path, kjv.heldOut, Infinity);
    console.log(`${id.padEnd(8)} on held-out training text ${result.toFixed(4)}   ${show(form)}`);
    rmSync(path);
  }
}

async function evaluate({ id, options, windows = WINDOWS, bound, bits }: Row, kjv: Kjv, path: string): Promise<void> {
  const used = process.cpuUsage();
  const report = options === null ? null : await quantizeModel(kjv.path, path, { ...options, calibration: kjv.feeds(windows, BATCH) });
  const { user, system } = process.cpuUsage(used);
  const result = await perplexity(report === null ? kjv.path : path, kjv.evaluation, Infinity);
  const verdict = bound === undefined ? "" : ` (at most ${bound}: ${result <= bound ? "met" : "MISSED"})`;
  console.log(`${id.padEnd(8)} perplexity ${result.toFixed(4)}${verdict}   ${show(options)}`);
  if (report === null) return;
  const packed = packedBytes(kjv.path, report.layers);
  const before = report.layers.filter((layer) => layer.format !== null).reduce((sum, layer) => sum + layer.bytesBefore, 0);
  const each = (32 * report.weightBytesAfter) / before;
  const kept = bits === undefined ? "" : `, at most ${bits}: ${each <= bits ? "met" : "MISSED"}`;
  const held = report.layers.map(({ outputSqnrDb }) => outputSqnrDb).filter((db) => db !== undefined);
  console.log(
    `         weights ${report.weightBytesAfter} bytes in the file, ${(report.weightBytesAfter / packed).toFixed(4)} of packed, ${each.toFixed(3)} bits each${kept}; file ${report.fileBytesAfter}; quantized in ${report.seconds.toFixed(1)} s, ${((user + system) / 1e6).toFixed(1)} s of processor${held.length > 0 ? `; outputs held out ${Math.min(...held).toFixed(1)} to ${Math.max(...held).toFixed(1)} dB` : ""}`,
  );
  rmSync(path);
}
