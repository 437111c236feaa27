// QLoRA with TensorFlow.js, in Node. After `npm run build`:
//   node examples/qlora.mjs                          a small model, trained here first, adapted to another text; --quick: a few steps
//   node examples/qlora.mjs DIR TEXT [steps]         the Llama-style model in DIR (kjv_llama.onnx, tokenizer.json), adapted to TEXT
// In Chromium: node examples/qlora/serve.mjs
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-layers"; // registers the gradients of tfjs
import { setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { adapt, letters } from "./qlora/adapt.mjs";

const root = new URL("..", import.meta.url);
/** What the small model learns first, and what it is adapted to. */
export const TEXTS = ["docs/numerics.md", "src/tensor/tensor.ts"];

/** tfjs's WebAssembly backend from the installed package. */
export async function startBackend() {
  setWasmPaths(fileURLToPath(new URL("node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", root)));
  await tf.setBackend("wasm");
}

/** The weights of an ONNX decoder by the names of its MatMuls. Gains of norms are folded into the matrices. */
export async function onnxDecoder(dir) {
  const { applyPasses, modelLayers, readModel, readWeight } = await import("lowbit/onnx");
  const model = await readModel(join(dir, "kjv_llama.onnx"));
  await applyPasses(model, ["fold-norm"], { verify: false });
  const weights = new Map();
  for (const layer of modelLayers(model)) {
    const { data, stride, offset } = readWeight(model, layer);
    const dense = new Float32Array(layer.rows * layer.k);
    for (let r = 0; r < layer.rows; r++)
      for (let c = 0; c < layer.k; c++) dense[r * layer.k + c] = data[offset + r * stride[0] + c * stride[1]];
    if (layer.opType === "Gather") weights.set("embedding", dense);
    else if (layer.opType === "MatMul") weights.set(layer.name.replace(/\/node$/, ""), dense);
  }
  return weights;
}

async function tokensOf(dir, text) {
  const { Tokenizer } = await import("@huggingface/tokenizers");
  const { ids } = new Tokenizer(JSON.parse(readFileSync(join(dir, "tokenizer.json"), "utf8")), {}).encode(text);
  return Int32Array.from(ids);
}

export async function onnxExample({ dir, text, steps, log }) {
  const weights = await onnxDecoder(dir);
  const config = { width: 256, hidden: 768, heads: 4, layers: 4, vocabulary: 2048, context: 64, batch: 4, rank: 8 };
  return adapt({ config, weights, tokens: await tokensOf(dir, text), steps, rate: 1e-3, log });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [dir, file, steps = "60"] = process.argv.slice(2);
  await startBackend();
  if (dir === undefined || dir === "--quick") {
    const texts = TEXTS.map((path) => readFileSync(new URL(path, root), "utf8"));
    await letters({ texts, log: console.log, ...(dir === "--quick" ? { baseSteps: 2, steps: 2, windows: 1 } : {}) });
  } else await onnxExample({ dir, text: readFileSync(file, "utf8"), steps: Number(steps), log: console.log });
}
