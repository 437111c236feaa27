// Models with the traits of those that users found wrong on WebGPU (sentence encoders whose q4 and q8 give embeddings
// near cosine 0 there: transformers.js 1728; several int8 models, dequantized otherwise than in WebAssembly: 1512,
// which onnxruntime 32578 explains: DequantizeLinear of computed codes with one scale (of a table, of activations);
// dynamic 8-bit products in the build ort.all; q8 decoders: 1286, 1317), through `verify --runtimes web,webgpu` in
// headless Chromium. Where a build of onnxruntime-web disagrees, the node must be named, and the table of known faults
// must have said so before. npx tsx scripts/verify-webgpu.ts [WORD of a case ...]
import {
  quantizeModelBytes,
  readModelBytes,
  runtimeTraps,
  verifyModels,
  type Feeds,
  type ConvertOptions as QuantizeOptions,
  type RuntimeCell,
} from "../src/onnx/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "../test/onnx/build.ts";

const [V, D, TOKENS] = [64, 96, 8];
const axes = (...values: number[]) => ({ ints: values });

/** Embedding, RMS norm, attention over the text in both directions, mean, length 1: a sentence encoder of one layer. */
function encoder(): Uint8Array {
  const dense = (name: string, seed: number) =>
    raw(
      name,
      [D, D],
      weights(D * D, seed).map((x) => 2 * x),
    );
  return encode(
    model(
      graph({
        input: [value("input_ids", T.INT64, [1, TOKENS])],
        output: [value("sentence_embedding", T.FLOAT, [1, D])],
        initializer: [
          raw(
            "table",
            [V, D],
            weights(V * D, 1).map((x) => 5 * x),
          ),
          dense("wq", 2),
          dense("wk", 3),
          dense("wv", 4),
          dense("wo", 5),
          raw("two", [], Float32Array.of(2)),
          raw("epsilon", [], Float32Array.of(1e-6)),
          raw("scale", [], Float32Array.of(1 / Math.sqrt(D))),
        ],
        node: [
          node("Gather", ["table", "input_ids"], ["e"]),
          node("Pow", ["e", "two"], ["squares"]),
          node("ReduceMean", ["squares"], ["mean"], { axes: axes(-1), keepdims: 1n }),
          node("Add", ["mean", "epsilon"], ["variance"]),
          node("Sqrt", ["variance"], ["rms"]),
          node("Div", ["e", "rms"], ["n"], {}, "norm"),
          node("MatMul", ["n", "wq"], ["q"], {}, "q_proj"),
          node("MatMul", ["n", "wk"], ["k"], {}, "k_proj"),
          node("MatMul", ["n", "wv"], ["v"], {}, "v_proj"),
          node("Transpose", ["k"], ["kt"], { perm: axes(0, 2, 1) }),
          node("MatMul", ["q", "kt"], ["scores"], {}, "qk"),
          node("Mul", ["scores", "scale"], ["scaled"]),
          node("Softmax", ["scaled"], ["p"], { axis: -1n }),
          node("MatMul", ["p", "v"], ["mixed"], {}, "pv"),
          node("MatMul", ["mixed", "wo"], ["o"], {}, "o_proj"),
          node("Add", ["o", "e"], ["r"]),
          node("ReduceMean", ["r"], ["pooled"], { axes: axes(1), keepdims: 0n }),
          node("LpNormalization", ["pooled"], ["sentence_embedding"], { axis: -1n, p: 2n }),
        ],
      }),
    ),
  );
}

/** Calibration data of static codes. */
const TEXTS: Feeds[] = [3, 5].map((step) => ({
  input_ids: { type: "int64", data: BigInt64Array.from({ length: TOKENS }, (_, i) => BigInt((i * step + 1) % V)), dims: [1, TOKENS] },
}));

const CASES: readonly { readonly name: string; readonly original: Uint8Array; readonly options: QuantizeOptions }[] = [
  { name: "encoder, q4", original: encoder(), options: { dtype: "q4" } },
  { name: "encoder, q8", original: encoder(), options: { dtype: "q8" } },
  { name: "encoder, q8, blocks", original: encoder(), options: { dtype: "q8-block" } },
  { name: "encoder, int8, one scale for a weight", original: encoder(), options: { dtype: "int8", perChannel: false } },
  { name: "encoder, static uint8", original: encoder(), options: { activations: "uint8", calibration: TEXTS } },
];
const only = process.argv.slice(2).filter((arg) => !arg.startsWith("-"));

const where = ({ runtime, version, state, agreementDb, parting, note, error }: RuntimeCell): string =>
  `  ${runtime} ${version}${note === undefined ? "" : ` (${note})`}: ${state === "ran" ? `${agreementDb.toFixed(0)} dB to node` : `${state}, ${error ?? ""}`}` +
  (parting === undefined ? "" : `, parts at ${parting.node ?? "no node"} (${parting.opType ?? ""})`);

let wrong = 0;
for (const { name, original, options } of CASES.filter((one) => only.length === 0 || only.some((word) => one.name.includes(word)))) {
  const { bytes } = await quantizeModelBytes(original, options);
  const report = await verifyModels(original, bytes, { samples: 2, minSqnrDb: 0, runtimes: ["web", "webgpu"] });
  const cells = report.matrix!.cells;
  console.log(
    `${name}: ${report.matrix!.ok ? "all agree" : "a runtime disagrees"}\n${cells
      .filter((cell) => cell.runtime !== "node")
      .map((cell) => `  ${cell.model.padEnd(9)}${where(cell)}`)
      .join("\n")}`,
  );
  const traps = runtimeTraps(readModelBytes(bytes)).filter(({ effect }) => effect === "wrong" || effect === "does not load");
  for (const cell of cells) {
    const known = cell.model === "model" && traps.some(({ runtime }) => runtime.endsWith("(JSEP)") && cell.runtime === "webgpu-jsep");
    if (cell.state === "ran" && !cell.ok && (cell.parting?.node ?? null) === null) {
      console.log(`FAILED ${name}: ${cell.model} differs in ${cell.runtime}, and no node is named`);
      wrong++;
    }
    if ((!cell.ok || cell.state === "refused") && !known) {
      console.log(`FAILED ${name}: ${cell.model} in ${cell.runtime} is wrong, and no known fault says so: add a row to traps.ts`);
      wrong++;
    }
    if (cell.ok && known && cell.state === "ran")
      console.log(`  note: the known fault of ${cell.runtime} ${cell.version} does not show here`);
  }
}
process.exit(wrong > 0 ? 1 : 0);
