// verifyModels: runs two models on the same inputs in onnxruntime-node and compares every output. Node only; onnxruntime-node is an optional
// peer, imported when this is called.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type { FeedTensor, Feeds, InputHint, InputMetadata } from "./feeds.ts";
import { inputDims, inputHints, randomSource, randomTensor } from "./feeds.ts";
import { halfTable } from "../file/half.ts";
import { summarizeModel } from "../inspect.ts";
import { readModel, readModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";

export interface VerifyOptions {
  /** Random inputs to run. Default 4. */
  samples?: number;
  /** Default 1. */
  seed?: number;
  /** Inputs to run instead of random ones. */
  inputs?: readonly Feeds[];
  /** Below this SQNR of any output the models do not agree. Default 10 dB. */
  minSqnrDb?: number;
  /** Sizes of symbolic dims, by name or as "input:axis". */
  dims?: Readonly<Record<string, number>>;
  /** Threads of the runtime inside an operator. Default: its own choice. */
  threads?: number;
}

export interface OutputComparison {
  readonly name: string;
  readonly type: string;
  /** Shape of the last sample's output. */
  readonly dims: readonly number[];
  /** 10 log10(sum a^2 / sum (a - b)^2) over all samples; Infinity where the outputs are equal, -Infinity where one is not finite alone. */
  readonly sqnrDb: number;
  readonly cosine: number;
  readonly maxAbsError: number;
  /** Share of rows along the last axis with the same largest element; null where there is no such axis. */
  readonly argmaxAgreement: number | null;
}

export interface VerifyReport {
  readonly samples: number;
  readonly seed: number;
  readonly minSqnrDb: number;
  readonly outputs: readonly OutputComparison[];
  /** Every output reaches minSqnrDb. */
  readonly ok: boolean;
  /** Shapes of the inputs that were run. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
}

/** The part of onnxruntime's API that is used. */
interface RuntimeTensor {
  readonly type: string;
  readonly data: ArrayLike<number | bigint | string>;
  readonly dims: readonly number[];
}
interface RuntimeSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata?: readonly (InputMetadata & { readonly isTensor?: boolean })[];
  run(feeds: Record<string, unknown>): Promise<Record<string, RuntimeTensor>>;
  release(): Promise<void>;
}
interface Runtime {
  readonly InferenceSession: { create(model: string | Uint8Array, options?: object): Promise<RuntimeSession> };
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => unknown;
}

const PACKAGE = "onnxruntime-node";

async function loadRuntime(): Promise<Runtime> {
  try {
    // A variable, so that bundlers leave the optional peer alone.
    const name = PACKAGE;
    const module = (await import(/* @vite-ignore */ name)) as Runtime & { default?: Runtime };
    return module.InferenceSession === undefined ? module.default! : module;
  } catch (cause) {
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected the package ${PACKAGE}, got ${(cause as Error).message.split("\n")[0]}. Install it: npm install ${PACKAGE}`,
      { cause },
    );
  }
}

/** Asks for the runtime before work that verification follows. @throws LowbitError E_RUNTIME where onnxruntime-node is missing */
export async function checkRuntime(): Promise<void> {
  await loadRuntime();
}

async function openSession(
  runtime: Runtime,
  model: string | Uint8Array,
  label: string,
  threads: number | undefined,
): Promise<RuntimeSession> {
  try {
    return await runtime.InferenceSession.create(model, {
      logSeverityLevel: 4,
      ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
    });
  } catch (cause) {
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected a model that onnxruntime loads, got ${(cause as Error).message}. The model is not usable.`,
      { cause },
    );
  }
}

async function runSession(runtime: Runtime, session: RuntimeSession, feeds: Feeds, label: string): Promise<Record<string, RuntimeTensor>> {
  try {
    const tensors = Object.entries(feeds).map(([name, feed]) => [name, new runtime.Tensor(feed.type, feed.data, feed.dims)]);
    return await session.run(Object.fromEntries(tensors) as Record<string, unknown>);
  } catch (cause) {
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected a run with inputs ${describe(feeds)}, got ${(cause as Error).message}. Give sizes with dims, or inputs.`,
      { cause },
    );
  }
}

const describe = (feeds: Feeds): string =>
  Object.entries(feeds)
    .map(([name, feed]) => `${name} ${feed.type}[${feed.dims.join(", ")}]`)
    .join("; ");

/** What the model itself says about its inputs: metadata for runtimes that give none, and hints on integer values. */
interface InputFacts {
  readonly inputs: readonly InputMetadata[];
  readonly hints: Map<string, InputHint>;
}

function readFacts(model: string | Uint8Array): InputFacts {
  const facts = (opened: OnnxModel): InputFacts => ({
    inputs: summarizeModel(opened).inputs.map(({ name, type, dims }) => ({ name, type: RUNTIME_TYPES[type] ?? type, shape: dims })),
    hints: inputHints(opened),
  });
  try {
    if (typeof model !== "string") return facts(readModelBytes(model));
    const file = readModel(model);
    try {
      return facts(file);
    } finally {
      file.close();
    }
  } catch (error) {
    // A model that the runtime loads and this package cannot read is compared without hints.
    if (isLowbitError(error)) return { inputs: [], hints: new Map() };
    throw error;
  }
}

/** ONNX's names of element types where onnxruntime has others. */
const RUNTIME_TYPES: Readonly<Record<string, string>> = { float: "float32", double: "float64" };

/**
 * Sizes that a symbolic dimension is tried with, until the first model runs: sequences and audio frames; images first where the first input
 * has four dimensions or more (a strip of 16 pixels would leave a convolutional model two positions to differ in).
 */
const SIZES = [16, 64, 320, 224, 128, 512, 576, 256, 32, 8, 1];
const IMAGE_SIZES = [320, 224, 256, 512, 64, 128, 32, 16, 8, 1];

/** Random inputs of which the first is known to run. */
async function randomFeeds(
  runtime: Runtime,
  session: RuntimeSession,
  facts: InputFacts,
  options: VerifyOptions,
  label: string,
): Promise<Feeds[]> {
  // Runtimes before 1.21 do not describe their inputs.
  const metadata = session.inputMetadata ?? facts.inputs;
  if (metadata.length !== session.inputNames.length) {
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected a description of the inputs ${session.inputNames.join(", ")}, got none. Install a newer ${PACKAGE}, or give inputs.`,
    );
  }
  const samples = options.samples ?? 4;
  // Symbolic sizes: one for the first input, one for the others (states and the like have a batch there, not a length).
  const make = (size: number, others: number): Feeds[] => {
    const random = randomSource(options.seed ?? 1);
    return Array.from({ length: samples }, () =>
      Object.fromEntries(
        metadata.map((input, i) => [
          input.name,
          randomTensor(input, inputDims(input, options.dims ?? {}, i === 0 ? size : others), facts.hints.get(input.name), random),
        ]),
      ),
    );
  };
  const symbolic = metadata.some((input) => input.shape.some((dim) => typeof dim !== "number" || dim < 0));
  let first: unknown;
  const sizes = (metadata[0]?.shape.length ?? 0) >= 4 ? IMAGE_SIZES : SIZES;
  for (const size of symbolic ? sizes : [1]) {
    for (const others of symbolic && metadata.length > 1 ? [size, 1] : [size]) {
      const feeds = make(size, others);
      try {
        await runSession(runtime, session, feeds[0], label);
        return feeds;
      } catch (error) {
        first ??= error;
      }
    }
  }
  throw first;
}

/** Running sums of one output. */
interface Sums {
  type: string;
  dims: readonly number[];
  signal: number;
  noise: number;
  other: number;
  dot: number;
  maxAbsError: number;
  rows: number;
  agreeing: number;
}

function numbers(tensor: RuntimeTensor): ArrayLike<number> {
  if (tensor.type === "float16" && !(tensor.data instanceof Float32Array)) {
    const table = halfTable();
    // Some runtimes return Float16Array (values), others codes.
    return tensor.data instanceof Uint16Array ? Float32Array.from(tensor.data, (code) => table[code]) : (tensor.data as ArrayLike<number>);
  }
  if (tensor.data instanceof BigInt64Array || tensor.data instanceof BigUint64Array)
    return Float64Array.from(tensor.data as ArrayLike<bigint> & Iterable<bigint>, Number);
  return tensor.data as ArrayLike<number>;
}

function accumulate(sums: Sums, a: ArrayLike<number>, b: ArrayLike<number>, width: number): void {
  for (let i = 0; i < a.length; i++) {
    const x = Number(a[i]);
    const y = Number(b[i]);
    if (x === y || (Number.isNaN(x) && Number.isNaN(y))) {
      if (Number.isFinite(x)) {
        sums.signal += x * x;
        sums.other += x * x;
        sums.dot += x * x;
      }
      continue;
    }
    const error = Math.abs(x - y);
    sums.signal += Number.isFinite(x) ? x * x : 0;
    sums.other += Number.isFinite(y) ? y * y : 0;
    sums.dot += Number.isFinite(x * y) ? x * y : 0;
    sums.noise += Number.isFinite(error) ? error * error : Infinity;
    sums.maxAbsError = Math.max(sums.maxAbsError, Number.isNaN(error) ? Infinity : error);
  }
  if (width < 2) return;
  for (let row = 0; row + width <= a.length; row += width) {
    let bestA = 0;
    let bestB = 0;
    for (let i = 1; i < width; i++) {
      if (a[row + i] > a[row + bestA]) bestA = i;
      if (b[row + i] > b[row + bestB]) bestB = i;
    }
    sums.rows++;
    if (bestA === bestB) sums.agreeing++;
  }
}

/**
 * Compares two models, usually an original and its quantized form, on the same inputs.
 * @param a path or bytes of the reference
 * @param b path or bytes of the model to judge
 * @throws LowbitError E_RUNTIME where onnxruntime-node is missing, a model does not load or does not run; E_VERIFY where the models' inputs or outputs differ in name or shape
 */
export async function verifyModels(a: string | Uint8Array, b: string | Uint8Array, options: VerifyOptions = {}): Promise<VerifyReport> {
  const samples = options.samples ?? 4;
  if (!Number.isInteger(samples) || samples < 1) throw new RangeError(`samples: expected a positive integer, got ${samples}`);
  const runtime = await loadRuntime();
  const labelOf = (model: string | Uint8Array, name: string): string => (typeof model === "string" ? model : name);
  const labelA = labelOf(a, "first model");
  const labelB = labelOf(b, "second model");
  const sessionA = await openSession(runtime, a, labelA, options.threads);
  let sessionB: RuntimeSession | undefined;
  try {
    sessionB = await openSession(runtime, b, labelB, options.threads);
    for (const [what, left, right] of [
      ["inputs", sessionA.inputNames, sessionB.inputNames],
      ["outputs", sessionA.outputNames, sessionB.outputNames],
    ] as const) {
      const missing = left.filter((name) => !right.includes(name));
      if (missing.length > 0 || left.length !== right.length) {
        throw new LowbitError(
          "E_VERIFY",
          `verify: expected the same ${what} in both models, got ${left.join(", ")} and ${right.join(", ")}. They are not two forms of one model.`,
        );
      }
    }
    const feeds = options.inputs ?? (await randomFeeds(runtime, sessionA, readFacts(a), options, labelA));
    if (feeds.length === 0) throw new RangeError("inputs: expected at least one set of feeds, got none");
    const all = new Map<string, Sums>();
    for (const feed of feeds) {
      const resultA = await runSession(runtime, sessionA, feed, labelA);
      const resultB = await runSession(runtime, sessionB, feed, labelB);
      for (const name of sessionA.outputNames) {
        const left = resultA[name];
        const right = resultB[name];
        if (left.dims.join() !== right.dims.join()) {
          throw new LowbitError(
            "E_VERIFY",
            `output ${name}: expected the same shape from both models, got [${left.dims.join(", ")}] and [${right.dims.join(", ")}]. The second model computes something else.`,
          );
        }
        const sums = all.get(name) ?? {
          type: left.type,
          dims: left.dims,
          signal: 0,
          noise: 0,
          other: 0,
          dot: 0,
          maxAbsError: 0,
          rows: 0,
          agreeing: 0,
        };
        all.set(name, sums);
        sums.dims = left.dims;
        if (left.type === "string") sums.noise += Array.from(left.data).some((text, i) => text !== right.data[i]) ? Infinity : 0;
        else accumulate(sums, numbers(left), numbers(right), left.dims.at(-1) ?? 1);
      }
    }
    const minSqnrDb = options.minSqnrDb ?? 10;
    const outputs = [...all].map(([name, sums]) => compare(name, sums));
    return {
      samples: feeds.length,
      seed: options.seed ?? 1,
      minSqnrDb,
      outputs,
      ok: outputs.every((output) => output.sqnrDb >= minSqnrDb),
      inputs: Object.fromEntries(Object.entries(feeds[0]).map(([name, feed]: [string, FeedTensor]) => [name, feed.dims])),
    };
  } finally {
    await sessionA.release();
    await sessionB?.release();
  }
}

function compare(name: string, sums: Sums): OutputComparison {
  const { signal, noise, other, dot } = sums;
  return {
    name,
    type: sums.type,
    dims: sums.dims,
    sqnrDb: noise === 0 ? Infinity : noise === Infinity ? -Infinity : 10 * Math.log10(signal / noise),
    cosine: noise === 0 ? 1 : signal === 0 || other === 0 ? 0 : dot / Math.sqrt(signal * other),
    maxAbsError: sums.maxAbsError,
    argmaxAgreement: sums.rows === 0 ? null : sums.agreeing / sums.rows,
  };
}
