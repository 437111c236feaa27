// lowbit search-bench: what each precision of a vector index costs and keeps on the user's own vectors.
import { LowbitError } from "../../../formats/core/errors.ts";
import { checkOutput } from "../../files/outputs.ts";
import { writeFileWhole } from "../../interop/source.ts";
import { wasm } from "../../backends/wasm/backend.ts";
import { readNpyTensor } from "../../onnx/calibrate/npy.ts";
import { comparePrecisions, paretoSvg, type Comparison, type Trial } from "../../search/compare.ts";
import type { Fit, Metric } from "../../search/types.ts";
import { json, table } from "../report.ts";
import { EXIT, numberOption, usageError, type CommandSpec } from "../spec.ts";

const TRIALS = "float32,float16,float8_e4m3fn,int8,int4,ternary,binary,int8+float32,int4+float32,int4+int8,binary+int8";
const METRICS: readonly string[] = ["cosine", "dot", "euclidean"];

export const searchBenchCommand: CommandSpec = {
  name: "search-bench",
  summary: "Tries vector indexes in several precisions on your vectors: bytes, recall and time of each.",
  positionals: ["VECTORS"],
  options: {
    queries: {
      value: "FILE",
      help: "queries, a .npy file like VECTORS; default: up to 100 vectors, evenly spaced, which are left out of the index",
    },
    metric: { value: "METRIC", help: "cosine (default), dot or euclidean" },
    k: { value: "N", help: "neighbours that are looked for; default 10" },
    trials: { value: "LIST", help: `indexes to try, separated by commas; default ${TRIALS}` },
    threads: { value: "N", help: "threads; default 1" },
    svg: { value: "OUT", help: "write the plot of recall against bytes as SVG" },
    force: { help: "overwrite an existing OUT" },
  },
  notes: [
    "VECTORS is a .npy file of float32 or float64 [count, dims].",
    "A trial is PRECISION[+RESCORE][@FIT]: any format of lowbit formats, the precision of a second stage, and pcaN, rotation or firstN for N dimensions in the first",
    "stage. For example int4+float32, float8_e4m3fn@pca192, binary@first256+int8. The last column marks those that no other beats in both bytes and recall.",
  ].join("\n"),
  run: async (args, context) => {
    const [input] = args.positionals;
    const metric = args.text("metric") ?? "cosine";
    if (!METRICS.includes(metric)) throw usageError(`--metric: expected cosine, dot or euclidean, got ${JSON.stringify(metric)}.`);
    const k = numberOption(args, "k", "a positive integer", (v) => Number.isSafeInteger(v) && v > 0) ?? 10;
    const threads = numberOption(args, "threads", "an integer from 1 to 256", (v) => Number.isSafeInteger(v) && v > 0 && v <= 256) ?? 1;
    const trials = (args.text("trials") ?? TRIALS).split(",").map(parseTrial);
    const svg = args.text("svg");
    if (svg !== undefined) checkOutput(svg, [input], args.flag("force"));
    const all = await readVectors(input);
    const given = args.text("queries");
    const other = given === undefined ? null : await readVectors(given);
    if (other !== null && other.dims !== all.dims)
      throw new LowbitError("E_SHAPE", `--queries: expected ${all.dims} numbers a vector, as ${input} has, got ${other.dims}.`);
    const { vectors, queries } = other === null ? heldOut(all.data, all.dims) : { vectors: all.data, queries: other.data };
    const backend = await wasm({ threads });
    const rows = comparePrecisions(vectors, queries, {
      dims: all.dims,
      metric: metric as Metric,
      k,
      trials,
      backend,
      signal: context.signal,
    });
    backend.dispose();
    const facts = { input, vectors: vectors.length / all.dims, queries: queries.length / all.dims, dims: all.dims, metric, k, threads };
    if (svg !== undefined)
      await writeFileWhole(
        svg,
        [new TextEncoder().encode(paretoSvg(rows, `Recall@${k} and size: ${facts.vectors} vectors of ${all.dims} numbers`))],
        args.flag("force"),
      );
    context.print(args.json ? json({ command: "search-bench", ...facts, rows }) : report(facts, rows));
    return EXIT.ok;
  },
};

/** PRECISION[@FIT][+RESCORE], the two suffixes in any order. @throws LowbitError E_CLI */
function parseTrial(name: string): Trial {
  const [, precision, suffixes] = /^([^+@]+)((?:[+@][^+@]+)*)$/.exec(name.trim()) ?? [];
  if (precision === undefined) throw usageError(`--trials: expected PRECISION[+RESCORE][@FIT], got ${JSON.stringify(name)}.`);
  let rescore: string | undefined;
  let fit: Fit | undefined;
  for (const suffix of suffixes.match(/[+@][^+@]+/g) ?? []) {
    if (suffix[0] === "+") rescore = suffix.slice(1);
    else fit = parseFit(suffix.slice(1));
  }
  return {
    name: name.trim(),
    options: { precision, ...(rescore === undefined ? {} : { rescore }), ...(fit === undefined ? {} : { fit }) },
  };
}

function parseFit(text: string): Fit {
  const [, word, digits] = /^(pca|rotation|first)([0-9]*)$/.exec(text) ?? [];
  if (word === undefined || (word === "first" && digits === ""))
    throw usageError(`--trials: expected pcaN, rotation or firstN after @, got ${JSON.stringify(text)}.`);
  const method = word === "first" ? "truncate" : (word as Fit["method"]);
  return { method, ...(digits === "" ? {} : { dims: Number(digits) }) };
}

/** @throws LowbitError E_IO, E_CONTAINER, E_SHAPE */
async function readVectors(path: string): Promise<{ data: Float32Array; dims: number }> {
  const { type, data, dims } = await readNpyTensor(path);
  if (dims.length !== 2 || dims[0] < 1 || dims[1] < 1)
    throw new LowbitError("E_SHAPE", `${path}: expected vectors [count, dims], got shape [${dims.join(", ")}].`);
  if (type !== "float32" && type !== "float64")
    throw new LowbitError(
      "E_CONTAINER",
      `${path}: expected float32 or float64, got ${type}. Write it with numpy.save(path, x.astype("float32")).`,
    );
  return { data: data instanceof Float32Array ? data : Float32Array.from(data as ArrayLike<number>), dims: dims[1] };
}

/** Up to 100 vectors, at most a tenth, as queries; the others are the index. */
function heldOut(all: Float32Array, dims: number): { vectors: Float32Array; queries: Float32Array } {
  const rows = all.length / dims;
  const count = Math.max(1, Math.min(100, Math.floor(rows / 10)));
  if (rows < 2) throw new LowbitError("E_SHAPE", `search-bench: expected at least two vectors, got ${rows}.`);
  const chosen = new Set(Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * rows) / count)));
  const vectors = new Float32Array((rows - count) * dims);
  const queries = new Float32Array(count * dims);
  let [v, q] = [0, 0];
  for (let r = 0; r < rows; r++) {
    const row = all.subarray(r * dims, (r + 1) * dims);
    if (chosen.has(r)) queries.set(row, dims * q++);
    else vectors.set(row, dims * v++);
  }
  return { vectors, queries };
}

function report(
  facts: { vectors: number; queries: number; dims: number; metric: string; k: number; threads: number },
  rows: readonly Comparison[],
): string {
  const columns = [
    { title: "index" },
    { title: "bytes/vector", right: true },
    { title: `recall@${facts.k}`, right: true },
    { title: "search ms", right: true },
    { title: "build ms", right: true },
    { title: "best" },
  ];
  const cells = rows.map((row) => [
    row.name,
    row.bytesPerVector.toFixed(1),
    row.recall.toFixed(4),
    row.searchMs.toFixed(3),
    row.buildMs.toFixed(0),
    row.best ? "*" : "",
  ]);
  const { vectors, queries, dims, metric, threads } = facts;
  return `${vectors} vectors of ${dims} numbers, ${queries} queries, ${metric}, ${threads} thread${threads === 1 ? "" : "s"}; recall against exact float32\n\n${table(columns, cells)}\n`;
}
