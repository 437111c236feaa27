// Runs of a model in onnxruntime-node for those who change or choose by its outputs: passes, sensitivity, budgets. Node
// only; the runtime is an optional peer, imported when a session is opened.
import { temporaryFolder } from "./calibrate/node.ts";
import type { OnnxModel } from "./file/model.ts";
import { payloadBytes } from "./file/encode.ts";
import { EXTERNAL_ABOVE, writeModel, writeModelBytes } from "./file/io.ts";
import type { Session } from "./session.ts";
import { openSession } from "./session.ts";
import type { Feeds, InputMetadata } from "./verify/feeds.ts";
import { inputDims, inputHints, randomSource, randomTensor } from "./verify/feeds.ts";
import { numbers } from "./verify/numbers.ts";
import type { OutputTensor } from "./verify/runtimes.ts";

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

const SETTINGS = { label: "run", remedy: "Give other inputs." };

/**
 * Opens a model: bytes, a path, or one in memory (through a temporary folder where it is too large for one file).
 * @throws LowbitError E_RUNTIME where the runtime is missing or refuses the model
 */
export async function openRun(model: string | Uint8Array | OnnxModel): Promise<RunSession> {
  const session = await (typeof model === "string" || model instanceof Uint8Array
    ? openSession(model, SETTINGS)
    : payloadBytes(model) < EXTERNAL_ABOVE
      ? openSession(writeModelBytes(model), SETTINGS)
      : openLarge(model));
  return {
    inputs: session.inputs ?? [],
    outputNames: session.outputNames,
    async run(feeds, names) {
      const result = await session.run(feeds, names);
      return new Map(Object.entries(result).map(([name, value]) => [name, { data: numbers(value as OutputTensor), dims: value.dims }]));
    },
    release: () => session.release(),
  };
}

async function openLarge(model: OnnxModel): Promise<Session> {
  const folder = temporaryFolder("lowbit-run-");
  try {
    const path = folder.file("model.onnx");
    await writeModel(model, path, { externalData: true });
    return await openSession(path, SETTINGS);
  } finally {
    // The runtime has read the weights; what it maps stays until it lets go.
    folder.remove();
  }
}

/**
 * Sizes that a symbolic dimension is tried with, until the model runs; images first where the first input has four
 * dimensions.
 */
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
