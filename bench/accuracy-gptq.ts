// Accuracy of the quantizers on kjv-llama: files written by quantizeModel, run by onnxruntime-node, perplexity of text that calibration never saw, beside the
// bounds that the project sets. Calibration: 128 windows of 256 tokens of calibration.u16; one in eight batches is held out, where options that are left open are chosen.
// Run: npm run bench -- accuracy-gptq [case ...], half a minute to two minutes a row. The model lies beside the project (test/helpers/shared.ts).
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { quantizeModel, type Feeds, type QuantizeModelOptions } from "../src/onnx/index.ts";
import { modelPath } from "../test/helpers/shared.ts";
import { perplexity } from "../test/onnx/perplexity.ts";

interface Row {
  readonly id: string;
  readonly options: QuantizeModelOptions;
  readonly bound?: number;
}

const search = { method: "mse" } as const;
const stored = (id: string, format: string, rest: Partial<QuantizeModelOptions> = {}, bound?: number): Row => ({
  id,
  options: { format, target: "stored", opTypes: ["MatMul"], ...rest },
  ...(bound === undefined ? {} : { bound }),
});

const ROWS: readonly Row[] = [
  { id: "rtn4", options: { dtype: "q4", symmetric: false } },
  {
    id: "gptq4",
    options: { dtype: "q4", symmetric: false, algorithm: { name: "gptq", damp: 0.05, actOrder: false, polish: true } },
    bound: 24.48,
  },
  { id: "gptq4-open", options: { dtype: "q4", symmetric: false, algorithm: "gptq" } },
  stored("rtn3", "uint3_b32_zp"),
  stored("gptq3", "uint3_b32_zp", { algorithm: { name: "gptq", damp: 0.05, actOrder: true, polish: true } }),
  stored("refit3", "uint3_b32_zp", { algorithm: { name: "refit", damp: 0.1, actOrder: true, polish: true }, sequential: true }, 24.68),
  stored("rtn2", "uint2_b32_zp"),
  stored("gptq2", "uint2_b32_zp", { algorithm: { name: "gptq", damp: 0.1, actOrder: true, polish: true } }),
  stored(
    "refit2",
    "uint2_b32_zp",
    { algorithm: { name: "refit", damp: 0.1, actOrder: true, polish: true }, sequential: true, calibrate: { holdOut: 0 } },
    26,
  ),
  stored("rtnnv", "nvfp4"),
  stored("mrnv", "nvfp4", { algorithm: { name: "mrgptq", block: 128, damp: 0.05, actOrder: false, polish: true } }, 24.49),
  stored("rtnmx", "mxfp4"),
  stored("gptqmx", "mxfp4", { algorithm: { name: "gptq", damp: 0.05, actOrder: false, search, polish: true } }),
  stored("mrmx", "mxfp4", { algorithm: { name: "mrgptq", block: 128, damp: 0.05, actOrder: false, polish: true } }, 24.55),
];

const WINDOW = 256;
const WINDOWS = 128;
const BATCH = 8;

/** Windows of the calibration text as feeds. */
function calibrationFeeds(path: string): Feeds[] {
  const raw = readFileSync(path);
  const tokens = new Uint16Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  return Array.from({ length: WINDOWS / BATCH }, (_, i) => {
    const part = tokens.subarray(i * BATCH * WINDOW, (i + 1) * BATCH * WINDOW);
    return { ids: { type: "int64", data: BigInt64Array.from(part, BigInt), dims: [BATCH, WINDOW] } };
  });
}

export async function accuracyGptq(only: readonly string[]): Promise<void> {
  const unknown = only.filter((id) => !ROWS.some((row) => row.id === id));
  if (unknown.length > 0)
    throw new Error(`accuracy-gptq: expected cases of ${ROWS.map((row) => row.id).join(", ")}, got ${unknown.join(", ")}`);
  const [model, calibration, text] = ["kjv_llama.onnx", "calibration.u16", "val.u16"].map((name) => modelPath(`kjv-llama/${name}`));
  if (model === null || calibration === null || text === null) throw new Error("kjv-llama is not beside the project: set LOWBIT_MODELS");
  const folder = mkdtempSync(join(tmpdir(), "lowbit-accuracy-"));
  const feeds = calibrationFeeds(calibration);
  const tokens = readFileSync(text);
  console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
  console.log(`case         perplexity        bound    weight bytes (packed size)   file bytes  quantize s   options`);
  try {
    for (const { id, options, bound } of ROWS) {
      if (only.length > 0 && !only.includes(id)) continue;
      const path = join(folder, `${id}.onnx`);
      const report = await quantizeModel(model, path, { ...options, calibration: feeds });
      const result = await perplexity(path, tokens, Infinity);
      const verdict = bound === undefined ? "" : `${bound} ${result <= bound ? "met" : "MISSED"}`;
      const what = JSON.stringify({ ...options, target: undefined, opTypes: undefined });
      console.log(
        `${id.padEnd(12)} ${result.toFixed(4)}  ${verdict.padStart(12)}  ${String(report.weightBytesAfter).padStart(14)}               ${String(report.fileBytesAfter).padStart(12)}  ${report.seconds.toFixed(1).padStart(10)}   ${what}`,
      );
      rmSync(path);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
