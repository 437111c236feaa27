// Small models with weights in every place, in every dtype and in many formats of every target: the file and the report
// as text against stored text; the same files dequantized again and inspected. That such files run and compute what they
// must is in targets, dynamic, q4 and requantize tests; here nothing of them may change unseen.
import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { ONNX_DTYPES } from "../../src/onnx/dtypes.ts";
import {
  dequantizeWeights,
  quantizeModelBytes,
  readModelBytes,
  summarizeModel,
  writeModelBytes,
  type QuantizeBytesOptions,
} from "../../src/onnx/index.ts";
import { encode } from "./build.ts";
import { modelText, reportText, storedTexts } from "./printed.ts";
import { SPECIMENS } from "./specimens.ts";

const hash = (text: string): string => createHash("sha256").update(text).digest("hex").slice(0, 12);

async function made(name: string, options: QuantizeBytesOptions): Promise<{ bytes: Uint8Array; text: string }> {
  const input = encode(SPECIMENS.get(name)!());
  try {
    const { bytes, report } = await quantizeModelBytes(input, { ...options, allowUnchanged: true });
    return { bytes, text: `${modelText(bytes)}\n${reportText(report)}` };
  } catch (error) {
    return { bytes: input, text: `refused: ${(error as Error).message}` };
  }
}

const full = storedTexts("targets");
/** Long texts are kept as their hash, a line each. */
const hashes = storedTexts("targets-more");

describe("dtypes", () => {
  for (const dtype of ONNX_DTYPES)
    test(dtype, async () => {
      const lines: string[] = [];
      for (const name of SPECIMENS.keys()) {
        const { bytes, text } = await made(name, { dtype });
        if (["q8", "q4f16", "bnb4"].includes(dtype)) full(`${dtype}, ${name}`, text);
        const again = readModelBytes(bytes);
        const notes = dequantizeWeights(again);
        const float = `${modelText(writeModelBytes(again))}\n${notes.join("\n")}`;
        lines.push([name, hash(text), hash(float), hash(JSON.stringify(summarizeModel(readModelBytes(bytes))))].join(" "));
      }
      hashes(dtype, lines.join("\n"));
    });
});

const OPTIONS: readonly QuantizeBytesOptions[] = [
  { dtype: "q4", symmetric: false },
  { dtype: "q4", blockSize: 16, accuracyLevel: 4 },
  { dtype: "q2", blockSize: 128, symmetric: false },
  { dtype: "q8-block", symmetric: false, accuracyLevel: 0 },
  { dtype: "q4f16", symmetric: false, blockSize: 64 },
  { dtype: "bnb4", blockSize: 16 },
  { dtype: "q8", perChannel: true },
  { dtype: "q8", perChannel: false, symmetric: false },
  { dtype: "int8", reduceRange: true },
  { dtype: "uint8", symmetric: true, perChannel: true },
  { dtype: "uint8", reduceRange: true },
  { dtype: "q4", opTypes: ["MatMul", "Gather"] },
  { dtype: "q8", algorithm: "mse" },
  { dtype: "q8", rules: [{ match: "*", dtype: "q4" }] },
  { dtype: "q4", keepOps: ["Gemm", "Conv"], algorithm: "mse", symmetric: false },
  { format: "int3_b32" },
  { format: "int8_row" },
  { format: "mxfp4" },
  { format: "nvfp4" },
  { format: "nf4_b64" },
  { format: "float8_e4m3fn_row" },
  { format: "float6_e2m3fn_b32" },
  { format: "bfloat16" },
  { format: "ggml_q4_k" },
  { format: "uint4_b32", target: "stored" },
  { format: "int8", target: "stored", opTypes: ["Gather", "LSTM"] },
  { format: "int8_row", target: "qdq" },
  { format: "int8", target: "qdq", opTypes: ["Gather", "ConvTranspose"] },
  { format: "int4_b32", target: "qdq" },
  { format: "uint4_b32_zp", target: "qdq" },
  { format: "int3_b32", target: "qdq" },
  { format: "float8_e5m2_row", target: "qdq" },
  { format: "int8_row", target: "dynamic" },
  { format: "int4_b64", target: "matmulnbits" },
  { format: "int3_b32", target: "matmulnbits" },
  { format: "nf4_b64", target: "bnb4" },
];

/** Where a weight comes from is a matter of the dtypes above, what layer it is of these. */
const LAYERS = [...SPECIMENS.keys()].filter((name) => !/^(weight behind|weight in|weight that|opset|an? |nothing|two const)/.test(name));

describe("options and formats", () => {
  for (const options of OPTIONS)
    test(JSON.stringify(options), async () => {
      const lines: string[] = [];
      for (const name of LAYERS) {
        const { bytes, text } = await made(name, options);
        const again = readModelBytes(bytes);
        dequantizeWeights(again);
        lines.push([name, hash(text), hash(modelText(writeModelBytes(again)))].join(" "));
      }
      hashes(JSON.stringify(options), lines.join("\n"));
      expect(new Set(lines.map((line) => line.split(" ").at(-2))).size).toBeGreaterThan(1);
    });
});
