// Runs of a model in onnxruntime-node for those who change or choose by its outputs: passes, sensitivity, budgets. Node only; the runtime is an
// optional peer, imported when a session is opened.
import { temporaryFolder } from "./calibrate/node.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { OnnxModel } from "./file/model.ts";
import { halfTable } from "./file/half.ts";
import { payloadBytes } from "./file/encode.ts";
import { EXTERNAL_ABOVE, writeModel, writeModelBytes } from "./file/io.ts";
import type { Feeds, InputMetadata } from "./verify/feeds.ts";
import { inputDims, inputHints, randomSource, randomTensor } from "./verify/feeds.ts";

/** A value that the model gave, as numbers. */
export interface RunValue {
  readonly data: ArrayLike<number>;
  readonly dims: readonly number[];
}

export interface RunSession {
  readonly inputs: readonly InputMetadata[];
  readonly outputNames: readonly string[];
  /** @param names outputs wanted; default all @throws LowbitError E_RUNTIME */
  run(feeds: Feeds, names?: readonly string[]): Promise<Map<string, RunValue>>;
  release(): Promise<void>;
}

interface RuntimeTensor {
  readonly type: string;
  readonly data: ArrayLike<number | bigint>;
  readonly dims: readonly number[];
}
interface RuntimeSession {
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly InputMetadata[];
  run(feeds: Record<string, unknown>, names?: readonly string[]): Promise<Record<string, RuntimeTensor>>;
  release(): Promise<void>;
}
interface Runtime {
  readonly InferenceSession: { create(model: string | Uint8Array, options: object): Promise<RuntimeSession> };
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
      `run: expected the package ${PACKAGE}, got ${(cause as Error).message.split("\n")[0]}. Install it: npm install ${PACKAGE}`,
      { cause },
    );
  }
}

function numbers(value: RuntimeTensor): ArrayLike<number> {
  const { data } = value;
  if (value.type === "float16" && data instanceof Uint16Array) {
    const table = halfTable();
    return Float32Array.from(data, (code) => table[code]);
  }
  if (data instanceof BigInt64Array || data instanceof BigUint64Array) return Float64Array.from(data as Iterable<bigint>, Number);
  return data as ArrayLike<number>;
}

const firstLine = (error: unknown): string => (error as Error).message.split("\n")[0];

async function open(runtime: Runtime, model: string | Uint8Array): Promise<RuntimeSession> {
  try {
    return await runtime.InferenceSession.create(model, { logSeverityLevel: 4 });
  } catch (cause) {
    throw new LowbitError("E_RUNTIME", `run: expected a model that onnxruntime loads, got ${firstLine(cause)}.`, { cause });
  }
}

/**
 * Opens a model: bytes, a path, or one in memory (through a temporary folder where it is too large for one file).
 * @throws LowbitError E_RUNTIME where the runtime is missing or refuses the model
 */
export async function openRun(model: string | Uint8Array | OnnxModel): Promise<RunSession> {
  const runtime = await loadRuntime();
  const session = await (typeof model === "string" || model instanceof Uint8Array
    ? open(runtime, model)
    : payloadBytes(model) < EXTERNAL_ABOVE
      ? open(runtime, writeModelBytes(model))
      : openLarge(runtime, model));
  return {
    inputs: session.inputMetadata,
    outputNames: session.outputNames,
    async run(feeds, names) {
      try {
        const tensors = Object.entries(feeds).map(([name, feed]) => [name, new runtime.Tensor(feed.type, feed.data, feed.dims)]);
        const result = await session.run(Object.fromEntries(tensors) as Record<string, unknown>, names ?? session.outputNames);
        return new Map(Object.entries(result).map(([name, value]) => [name, { data: numbers(value), dims: value.dims }]));
      } catch (cause) {
        const shapes = Object.entries(feeds).map(([name, feed]) => `${name} ${feed.type}[${feed.dims.join(", ")}]`);
        throw new LowbitError(
          "E_RUNTIME",
          `run: expected a run with inputs ${shapes.join("; ")}, got ${firstLine(cause)}. Give other inputs.`,
          {
            cause,
          },
        );
      }
    },
    release: () => session.release(),
  };
}

async function openLarge(runtime: Runtime, model: OnnxModel): Promise<RuntimeSession> {
  const folder = temporaryFolder("lowbit-run-");
  try {
    const path = folder.file("model.onnx");
    await writeModel(model, path, { externalData: true });
    return await open(runtime, path);
  } finally {
    // The runtime has read the weights; what it maps stays until it lets go.
    folder.remove();
  }
}

/** Sizes that a symbolic dimension is tried with, until the model runs; images first where the first input has four dimensions. */
const SIZES = [16, 64, 320, 224, 128, 512, 576, 256, 32, 8, 1];
const IMAGE_SIZES = [64, 224, 320, 256, 512, 128, 32, 16, 8, 1];

/**
 * Seeded random inputs with which the model runs.
 * @throws LowbitError E_RUNTIME, the first fault, where no sizes work
 */
export async function randomFeeds(session: RunSession, model: OnnxModel, samples: number, seed = 1): Promise<Feeds[]> {
  const hints = inputHints(model);
  const make = (size: number, others: number): Feeds[] => {
    const random = randomSource(seed);
    return Array.from({ length: samples }, () =>
      Object.fromEntries(
        session.inputs.map((input, i) => [
          input.name,
          randomTensor(input, inputDims(input, {}, i === 0 ? size : others), hints.get(input.name), random),
        ]),
      ),
    );
  };
  const symbolic = session.inputs.some((input) => input.shape.some((dim) => typeof dim !== "number" || dim < 0));
  const sizes = !symbolic ? [1] : (session.inputs[0]?.shape.length ?? 0) >= 4 ? IMAGE_SIZES : SIZES;
  let first: unknown;
  for (const size of sizes) {
    for (const others of session.inputs.length > 1 ? [size, 1] : [size]) {
      const feeds = make(size, others);
      try {
        await session.run(feeds[0]);
        return feeds;
      } catch (error) {
        first ??= error;
      }
    }
  }
  throw first;
}
