// The matrix of verification: each model in each runtime, every cell in a process (or browser) of its own, on the same
// inputs. A cell says whether the model loads, how far its outputs are from the float32 reference in onnxruntime-node
// and from the same file there, and what it took.
import { isLowbitError } from "../../../formats/core/errors.ts";
import { readModel, readModelBytes } from "../file/io.ts";
import type { Sums } from "./compare.ts";
import { addSample, finish, newSums } from "./compare.ts";
import type { Explained } from "./explain.ts";
import { arithmeticOf, explained } from "./explain.ts";
import type { Feeds } from "./feeds.ts";
import type { OutputKind } from "./kinds.ts";
import type { Parting } from "./parting.ts";
import { findParting, valueSqnr } from "./parting.ts";
import type { OutputTensor, RuntimeEntry } from "./runtimes.ts";
import { runtimeEntry } from "./table.ts";

/** One model in one runtime. */
export interface RuntimeCell {
  readonly model: "reference" | "model";
  readonly runtime: string;
  readonly version: string;
  /** What must be known of the runtime, such as a software adapter. */
  readonly note?: string;
  /** "refused": it does not load or run there. "unproved": this machine cannot show it (no float16 in the adapter). */
  readonly state: "ran" | "refused" | "unproved";
  readonly error?: string;
  /** Milliseconds of loading, of the first run, and the median of those after it. */
  readonly loadMs: number;
  readonly firstMs: number;
  readonly ms: number;
  /** Largest resident memory of its process; null where nobody knows. */
  readonly peakBytes: number | null;
  /** Worst output: SQNR against the float32 reference in onnxruntime-node (exact for the reference there). */
  readonly sqnrDb: number;
  /** Worst output: SQNR against the same file in onnxruntime-node, and what its arithmetic explains. */
  readonly agreementDb: number;
  readonly explained: Explained;
  /** It ran, and agrees by as much as its arithmetic explains. */
  readonly ok: boolean;
  /** Where it parts from onnxruntime-node. */
  readonly parting?: Parting;
}

/** Models in every runtime: what runs, and what disagrees. */
export interface RuntimeMatrix {
  readonly runtimes: readonly string[];
  readonly cells: readonly RuntimeCell[];
  /** The judged model runs in every runtime, and none disagrees. */
  readonly ok: boolean;
}

export interface MatrixOptions {
  readonly runtimes: readonly RuntimeEntry[];
  readonly feeds: readonly Feeds[];
  /** Kinds of outputs, by name. */
  readonly kinds: ReadonlyMap<string, OutputKind>;
  readonly threads?: number;
  /** Called before each cell. */
  readonly onCell?: (cell: { readonly model: string; readonly runtime: string }) => void;
}

type Outputs = ReadonlyMap<string, OutputTensor | null>;

/** What one cell did. */
interface Ran extends Pick<RuntimeCell, "version" | "note" | "state" | "error" | "loadMs" | "firstMs" | "ms" | "peakBytes"> {
  /** By sample; empty where it did not run. */
  readonly outputs: readonly Outputs[];
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN;

async function runCell(entry: RuntimeEntry, model: string | Uint8Array, options: MatrixOptions): Promise<Ran> {
  const { feeds, threads } = options;
  const runtime = await entry.start({ fresh: true, threads });
  const about = { version: runtime.version, ...(runtime.note === undefined ? {} : { note: runtime.note }) };
  try {
    const session = await runtime.open(model, { threads });
    const first = await session.run(feeds[0]);
    const outputs: Outputs[] = [];
    const times: number[] = [];
    for (const feed of feeds) {
      const result = await session.run(feed);
      outputs.push(result.outputs);
      times.push(result.ms);
    }
    const peakBytes = await runtime.peakBytes();
    return { ...about, state: "ran", loadMs: session.loadMs, firstMs: first.ms, ms: median(times), peakBytes, outputs };
  } catch (cause) {
    const error = (cause as Error).message.split("\n")[0];
    const half = runtime.half === false && /f16|float16|half/i.test(error);
    const state = half ? "unproved" : "refused";
    return { ...about, state, error, loadMs: NaN, firstMs: NaN, ms: NaN, peakBytes: null, outputs: [] };
  } finally {
    await runtime.close();
  }
}

/** Outputs of two runs compared: the worst SQNR, its output, and whether all are within `db`. */
function agreement(
  a: readonly Outputs[],
  b: readonly Outputs[],
  kinds: MatrixOptions["kinds"],
  db: number,
): { db: number; output: string; ok: boolean } {
  const all = new Map<string, Sums>();
  let differs: string | undefined;
  a.forEach((sample, i) => {
    for (const [name, left] of sample) {
      const right = b[i].get(name) ?? null;
      if (left === null || right === null) continue;
      if (left.dims.join() !== right.dims.join()) differs ??= name;
      else {
        const sums = all.get(name) ?? newSums(name);
        all.set(name, sums);
        addSample(sums, left, right);
      }
    }
  });
  if (differs !== undefined) return { db: -Infinity, output: differs, ok: false };
  const figures = [...all.values()].map((sums) => finish(sums, kinds.get(sums.name), { minSqnrDb: db }));
  // NaN in the first is its own fault, which the comparison of the models has named.
  const shown = figures.filter(({ sqnrDb }) => !Number.isNaN(sqnrDb));
  const worst = shown.reduce((least, one) => (one.sqnrDb < least.sqnrDb ? one : least), shown[0]);
  const failing = shown.filter(({ ok, noEvidence, sqnrDb }) => (noEvidence === "constant" ? sqnrDb < db : !ok));
  return { db: worst?.sqnrDb ?? NaN, output: (failing[0] ?? worst)?.name ?? "", ok: failing.length === 0 };
}

function arithmetic(model: string | Uint8Array): Explained["arithmetic"] {
  try {
    const opened = typeof model === "string" ? readModel(model) : readModelBytes(model);
    try {
      return arithmeticOf(opened);
    } finally {
      if ("close" in opened) (opened as { close(): void }).close();
    }
  } catch (error) {
    // A model that runtimes load and this package cannot read: the widest bound.
    if (isLowbitError(error)) return "8-bit activations";
    throw error;
  }
}

/** The sample on which an output differs most. */
function worstSample(a: readonly Outputs[], b: readonly Outputs[], output: string): { index: number; sqnrDb: number } {
  const figures = a.map((sample, index) => ({ index, sqnrDb: valueSqnr(sample.get(output), b[index].get(output)) ?? Infinity }));
  return figures.reduce((least, one) => (one.sqnrDb < least.sqnrDb ? one : least));
}

/**
 * The node where a cell parts from onnxruntime-node, looked for at optimisation level disabled, whose values nothing
 * fuses.
 */
async function partingOf(
  model: string | Uint8Array,
  entry: RuntimeEntry,
  base: Ran,
  ran: Ran,
  found: { output: string; limitDb: number },
  options: MatrixOptions,
): Promise<Parting> {
  const { index, sqnrDb } = worstSample(base.outputs, ran.outputs, found.output);
  const trusted = await runtimeEntry(entry.name === "node-disabled" ? "node" : "node-disabled").start({ fresh: true });
  try {
    const other = await entry.start({ fresh: true });
    try {
      return await findParting(model, { ...found, sqnrDb, feeds: options.feeds[index] }, { trusted, other });
    } finally {
      await other.close();
    }
  } finally {
    await trusted.close();
  }
}

/**
 * Runs both models in every runtime.
 * @param a path or bytes of the float32 reference
 * @param b path or bytes of the model to judge
 * @throws LowbitError E_RUNTIME where a runtime does not start
 */
export async function compareRuntimes(a: string | Uint8Array, b: string | Uint8Array, options: MatrixOptions): Promise<RuntimeMatrix> {
  const base = runtimeEntry("node");
  const entries = [base, ...options.runtimes.filter((entry) => entry !== base)];
  const cells: RuntimeCell[] = [];
  let reference: Ran | undefined;
  for (const [model, source] of [
    ["reference", a],
    ["model", b],
  ] as const) {
    const kind = arithmetic(source);
    let own: Ran | undefined;
    let limit: Explained | undefined;
    for (const entry of entries) {
      options.onCell?.({ model, runtime: entry.name });
      const ran = await runCell(entry, source, options);
      own ??= ran;
      reference ??= ran;
      const { outputs, ...about } = ran;
      const cell = { model, runtime: entry.name, ...about };
      if (outputs.length === 0 || own.outputs.length === 0 || reference.outputs.length === 0) {
        cells.push({ ...cell, sqnrDb: NaN, agreementDb: NaN, explained: limit ?? explained(kind, NaN), ok: ran.state === "unproved" });
        continue;
      }
      const sqnrDb = agreement(reference.outputs, outputs, options.kinds, -Infinity).db;
      limit ??= explained(kind, sqnrDb);
      const same = agreement(own.outputs, outputs, options.kinds, limit.db);
      const parting = same.ok ? undefined : await partingOf(source, entry, own, ran, { output: same.output, limitDb: limit.db }, options);
      cells.push({ ...cell, sqnrDb, agreementDb: same.db, explained: limit, ok: same.ok, ...(parting === undefined ? {} : { parting }) });
    }
  }
  // A reference that is too large for a runtime is why people quantize.
  const ok = cells.every((cell) => cell.ok || (cell.model === "reference" && cell.state === "refused"));
  return { runtimes: entries.map(({ name }) => name), cells, ok };
}
