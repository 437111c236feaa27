// Perplexity of the shared model kjv-llama in every mode, as onnxruntime-node runs it: non-overlapping windows of 256 tokens, each token
// predicted from those before it. Also the bytes of its MatMul weights against float32.
//   npx tsx bench/accuracy-kjv.ts [--modes fp32,q4,q4-asym,...] [--windows 208]
// The model is looked for in ../shared/models (LOWBIT_MODELS overrides). fp32: 24.4285.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { QuantizeModelOptions } from "../src/onnx/index.ts";
import { quantizeModel } from "../src/onnx/index.ts";
import { modelPath } from "../test/helpers/shared.ts";
import { perplexity } from "../test/onnx/perplexity.ts";

const MODES: Record<string, QuantizeModelOptions | null> = {
  fp32: null,
  q4: { dtype: "q4" },
  "q4-asym": { dtype: "q4", symmetric: false },
  "q4-acc4": { dtype: "q4", accuracyLevel: 4 },
  "q4-b16": { dtype: "q4", blockSize: 16 },
  "q4-b128": { dtype: "q4", blockSize: 128 },
  int8: { dtype: "int8" },
  "int8-channel": { dtype: "int8", perChannel: true },
  uint8: { dtype: "uint8" },
  q8: { dtype: "q8" },
  fp16: { dtype: "fp16" },
};

const option = (name: string): string | undefined => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? undefined : process.argv[at + 1];
};

const model = modelPath("kjv-llama/kjv_llama.onnx");
const tokens = modelPath("kjv-llama/val.u16");
if (model === null || tokens === null) throw new Error("kjv-llama is not there: set LOWBIT_MODELS to the folder that holds it");
const folder = mkdtempSync(join(tmpdir(), "lowbit-kjv-"));
const windows = Number(option("windows") ?? 208);
console.log("mode            perplexity  file bytes  MatMul weight bytes (of fp32)   quantize s");
for (const mode of (option("modes") ?? Object.keys(MODES).join()).split(",")) {
  const options = MODES[mode];
  if (options === undefined) throw new Error(`unknown mode ${mode}: ${Object.keys(MODES).join(", ")}`);
  let path = model;
  let figures = `${String(readFileSync(model).length).padStart(10)}`;
  if (options !== null) {
    path = join(folder, `${mode}.onnx`);
    const report = await quantizeModel(model, path, options);
    const matmuls = report.layers.filter((layer) => layer.opType === "MatMul" && layer.format !== null);
    const before = matmuls.reduce((sum, layer) => sum + layer.bytesBefore, 0);
    const after = matmuls.reduce((sum, layer) => sum + layer.bytesAfter, 0);
    figures = `${String(report.fileBytesAfter).padStart(10)}  ${String(after).padStart(10)} (${(after / before).toFixed(4)}, ${matmuls.length} layers)     ${report.seconds.toFixed(2)}`;
  }
  console.log(`${mode.padEnd(14)}  ${(await perplexity(path, readFileSync(tokens), windows)).toFixed(4).padStart(10)}  ${figures}`);
}
rmSync(folder, { recursive: true, force: true });
