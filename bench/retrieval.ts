// What packing vectors costs a task on real embeddings, not only recall of exact neighbours. Two sets that models make
// here, as [n, dims] float32:
//   images  what the last layer of fashion-cnn reads (128 numbers) of 2,000 test images; task: the share of the ten
//           nearest that show the same kind of thing (precision@10 by label)
//   text    what the head of kjv-llama reads (256 numbers) at every token of 100 windows of its training text; queries
//           are tokens of unseen text; task: the share of queries whose next token is that of the most of their ten
//           nearest (a nearest-neighbour language model)
// The projection is fitted to the stored vectors, never to queries. npm run bench -- retrieval [images] [text]
import { readFileSync } from "node:fs";
import { addOutputs, modelLayers, readModel, writeModelBytes } from "../src/onnx/index.ts";
import { createIndex, type IndexOptions } from "../src/search/index.ts";
import { modelPath } from "../test/helpers/shared.ts";
import { loadKjv } from "./kjv.ts";

/** Stored vectors and queries, and what a list of found rows is worth for a query. */
interface Task {
  readonly dims: number;
  readonly stored: Float32Array;
  readonly queries: Float32Array;
  /** The row of a query that is a stored vector itself: it is not counted. */
  readonly own: (query: number) => number | null;
  readonly score: (query: number, found: readonly number[]) => number;
}

const K = 10;
const WINDOW = 256;

/** Runs a model with the value that its last layer reads as an output; returns that for all batches, joined. */
async function lastInputs(
  path: string,
  batches: readonly { name: string; type: string; data: unknown; dims: number[] }[],
): Promise<Float32Array> {
  const model = await readModel(path);
  const { activation } = modelLayers(model).at(-1)!;
  addOutputs(model, [activation]);
  const ort = await import("onnxruntime-node");
  const session = await ort.InferenceSession.create(writeModelBytes(model));
  const parts: Float32Array[] = [];
  for (const { name, type, data, dims } of batches) {
    const result = await session.run({ [name]: new ort.Tensor(type as "float32", data as Float32Array, dims) }, [activation]);
    parts.push((result[activation].data as Float32Array).slice());
  }
  await session.release();
  const out = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  parts.reduce((at, part) => (out.set(part, at), at + part.length), 0);
  return out;
}

async function images(): Promise<Task> {
  const path = modelPath("fashion-cnn/fashion_cnn.onnx");
  if (path === null) throw new Error("fashion-cnn is not beside the project: set LOWBIT_MODELS");
  const pixels = readFileSync(modelPath("fashion-cnn/test-images.u8")!);
  const labels = readFileSync(modelPath("fashion-cnn/test-labels.u8")!);
  const data = Float32Array.from(pixels, (v) => v / 255);
  const vectors = await lastInputs(path, [{ name: "image", type: "float32", data, dims: [labels.length, 1, 28, 28] }]);
  const dims = vectors.length / labels.length;
  const score = (query: number, found: readonly number[]): number =>
    found.filter((row) => labels[row] === labels[query]).length / found.length;
  return { dims, stored: vectors, queries: vectors, own: (query) => query, score };
}

async function text(): Promise<Task> {
  const { path, feeds, evaluation } = loadKjv();
  const stored = feeds(100, 10).map(({ ids }) => ({ name: "ids", type: "int64", data: ids.data, dims: [...ids.dims] }));
  const words = new Uint16Array(evaluation.buffer.slice(evaluation.byteOffset, evaluation.byteOffset + 2 * 10 * WINDOW));
  const asked = [{ name: "ids", type: "int64", data: BigInt64Array.from(words, BigInt), dims: [10, WINDOW] }];
  const tokens = stored.flatMap(({ data }) => Array.from(data as BigInt64Array, Number));
  const [all, some] = [await lastInputs(path, stored), await lastInputs(path, asked)];
  const dims = all.length / tokens.length;
  // the last token of a window has no next one in it
  const next = (at: number, of: ArrayLike<number>): number => (at % WINDOW === WINDOW - 1 ? -1 : of[at + 1]);
  const score = (query: number, found: readonly number[]): number => {
    const votes = new Map<number, number>();
    for (const row of found) votes.set(next(row, tokens), (votes.get(next(row, tokens)) ?? 0) + 1);
    const [best] = [...votes].sort((a, b) => b[1] - a[1])[0];
    return Number(best === next(query, words));
  };
  return { dims, stored: all, queries: some, own: () => null, score };
}

/** The figures of one index: bytes a vector, recall of the float32 neighbours, the task's score. */
function judge(task: Task, name: string, options: Omit<IndexOptions, "dims">, truth: readonly (readonly number[])[] | null) {
  const { dims, stored, queries, own, score } = task;
  using index = createIndex(stored, { dims, ...options });
  const found = index.searchMany(queries, { k: K + 1 }).map(({ ids }, i) => [...ids].filter((id) => id !== own(i)).slice(0, K));
  const wanted = truth ?? found;
  const mean = (value: (i: number) => number): number => found.reduce((sum, _, i) => sum + value(i), 0) / found.length;
  const recall = mean((i) => wanted[i].filter((id) => found[i].includes(id)).length / K);
  const bytes = bytesOf(index.formats[0].name, index.projection?.to ?? dims);
  return { name, bytes, recall, score: mean((i) => score(i, found[i])), found };
}

/** Bytes of the codes of a vector and its scale. */
function bytesOf(format: string, dims: number): number {
  if (format === "float32") return 4 * dims;
  const bits = format.startsWith("float8") || format.startsWith("int8") ? 8 : format.startsWith("int4") ? 4 : 1;
  return (dims * bits) / 8 + (bits > 1 ? 4 : 0);
}

const TASKS = { images, text } as const;

export async function retrieval(wanted: readonly string[]): Promise<void> {
  for (const [name, make] of Object.entries(TASKS)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    const task = await make();
    const { dims, stored, queries } = task;
    console.log(`${name}: ${stored.length / dims} vectors of ${dims}, ${queries.length / dims} queries`);
    const half = { method: "pca", dims: dims / 2 } as const;
    const float = judge(task, "float32", { precision: "float32" }, null);
    const rows = [
      float,
      judge(task, "float8_e4m3fn", { precision: "float8_e4m3fn" }, float.found),
      judge(task, "float32, PCA to half", { precision: "float32", fit: half }, float.found),
      judge(task, "float8_e4m3fn, PCA to half", { precision: "float8_e4m3fn", fit: half }, float.found),
      judge(task, "int8, PCA to half", { precision: "int8", fit: half }, float.found),
      judge(task, "int4", { precision: "int4" }, float.found),
      judge(task, "int4, PCA to half", { precision: "int4", fit: half }, float.found),
    ];
    for (const row of rows)
      console.log(
        `  ${row.name.padEnd(30)} ${((4 * dims) / row.bytes).toFixed(1).padStart(5)}x smaller  recall@10 ${row.recall.toFixed(4)}  ` +
          `task ${row.score.toFixed(4)} (${(100 * (row.score / float.score - 1)).toFixed(2)} % to float32)`,
      );
  }
}
