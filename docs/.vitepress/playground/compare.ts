// Two forms of a model on the same inputs, in every runtime asked for: the figures of `lowbit verify`, in a page.
import { readModelBytes } from "../../../src/onnx/file/io.ts";
import { modelInputs } from "../../../src/onnx/calibrate/feeds.ts";
import type { ReportContent, ShownCell } from "../../../src/onnx/report/html.ts";
import { addSample, finish, newSums, type Sums } from "../../../src/onnx/verify/compare.ts";
import { inputHints, type Feeds } from "../../../src/onnx/verify/feeds.ts";
import { kindsByGraph } from "../../../src/onnx/verify/kinds.ts";
import { randomFeeds } from "../../../src/onnx/verify/random.ts";
import { runtimeTraps } from "../../../src/onnx/verify/traps.ts";
import type { RuntimeName } from "./protocol";
import { open, type Outputs } from "./runtimes";

export interface CompareOptions {
  readonly runtimes: readonly RuntimeName[];
  /** null: random ones. */
  readonly feeds: readonly Feeds[] | null;
  readonly samples: number;
  readonly seed: number;
  onProgress(done: number, total: number, text: string): void;
}

export type Comparison = NonNullable<ReportContent["verify"]>;

/** Least SQNR of outputs that pass, as in `lowbit verify`. */
const MIN_SQNR = 10;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN;
const message = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split("\n")[0];

interface Ran {
  readonly outputs: readonly Outputs[];
  readonly ms: number;
}

async function runAll(runtime: RuntimeName, model: Uint8Array, feeds: readonly Feeds[]): Promise<Ran> {
  const session = await open(runtime, model);
  try {
    await session.run(feeds[0]); // warms up
    const outputs: Outputs[] = [];
    const times: number[] = [];
    for (const feed of feeds) {
      const from = performance.now();
      outputs.push(await session.run(feed));
      times.push(performance.now() - from);
    }
    return { outputs, ms: median(times) };
  } finally {
    await session.close();
  }
}

function gather(a: readonly Outputs[], b: readonly Outputs[]): Map<string, Sums> {
  const all = new Map<string, Sums>();
  a.forEach((outputs, i) => {
    for (const [name, left] of outputs) {
      const right = b[i].get(name) ?? null;
      if (left === null || right === null) continue;
      if (left.dims.join() !== right.dims.join())
        throw new Error(`output ${name}: expected one shape, got [${left.dims.join(", ")}] and [${right.dims.join(", ")}].`);
      const sums = all.get(name) ?? newSums(name);
      all.set(name, sums);
      addSample(sums, left, right);
    }
  });
  return all;
}

/** SQNR of the worst output. */
function worst(a: readonly Outputs[], b: readonly Outputs[]): number {
  const limits = { minSqnrDb: MIN_SQNR };
  return [...gather(a, b).values()].map((sums) => finish(sums, undefined, limits).sqnrDb).reduce((m, db) => (db < m ? db : m), Infinity);
}

/** Runs both models in every runtime; the first that runs the float model is the reference. */
export async function compare(float: Uint8Array, quantized: Uint8Array, options: CompareOptions): Promise<Comparison> {
  const { runtimes, samples, seed, onProgress } = options;
  const model = readModelBytes(float);
  const inputs = modelInputs(model);
  const [first] = runtimes;
  onProgress(0, 1, "choosing inputs");
  let notes: readonly string[] = [];
  let feeds = options.feeds;
  if (feeds === null) {
    const session = await open(first, float);
    try {
      const drawn = await randomFeeds({ inputs, hints: inputHints(model), run: (feed) => session.run(feed) }, { samples, seed, dims: {} });
      [feeds, notes] = [drawn.feeds, drawn.notes];
    } finally {
      await session.close();
    }
  }
  const chosen = feeds.slice(0, samples);
  const total = 2 * runtimes.length;
  let done = 0;
  const cells: ShownCell[] = [];
  let reference: Ran | undefined;
  let judged: Ran | undefined;
  for (const runtime of runtimes) {
    let here: Ran | undefined; // the quantized model in the first runtime is what others are compared with
    for (const which of ["reference", "model"] as const) {
      onProgress(done++, total, `${which === "reference" ? "the float model" : "the quantized model"} in ${runtime}`);
      const about = { model: which, runtime, peakBytes: null };
      try {
        here = await runAll(runtime, which === "reference" ? float : quantized, chosen);
        if (which === "reference") reference ??= here;
        const same = which === "reference" ? reference! : (judged ??= here);
        const sqnrDb = worst(reference!.outputs, here.outputs);
        cells.push({ ...about, state: "ran", ok: sqnrDb >= MIN_SQNR, sqnrDb, agreementDb: worst(same.outputs, here.outputs), ms: here.ms });
      } catch (error) {
        const lost = { sqnrDb: NaN, agreementDb: NaN, ms: NaN };
        cells.push({ ...about, ...lost, state: "refused", ok: false, error: message(error) });
        if (which === "reference" && reference === undefined && runtime === runtimes.at(-1)) throw error;
      }
    }
  }
  if (reference === undefined || judged === undefined)
    throw new Error(`expected a runtime that runs both models, got ${cells.map((c) => `${c.runtime}: ${c.error ?? "ran"}`).join("; ")}`);
  const kinds = kindsByGraph(model);
  const outputs = [...gather(reference.outputs, judged.outputs).values()].map((sums) =>
    finish(sums, kinds.get(sums.name), { minSqnrDb: MIN_SQNR }),
  );
  return {
    samples: chosen.length,
    seed,
    minSqnrDb: MIN_SQNR,
    outputs,
    ok: outputs.every(({ ok }) => ok),
    inputs: Object.fromEntries(Object.entries(chosen[0]).map(([name, { dims }]) => [name, dims])),
    random: options.feeds === null,
    notes,
    warnings: outputs
      .filter(({ noEvidence }) => noEvidence !== null)
      .map(({ name, judgement }) => `output ${name}: ${judgement.text}. Give inputs of your own.`),
    traps: runtimeTraps(readModelBytes(quantized)),
    matrix: { cells },
  };
}
