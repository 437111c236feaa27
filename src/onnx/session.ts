// onnxruntime-node in this process, for calibration, passes and choices by outputs: the optional peer, imported when it
// is needed, and the little of its API that is used. Node only. Verification has it in a process of its own
// (verify/process.ts).
import { LowbitError } from "../../formats/core/errors.ts";
import { halfTable } from "./file/half.ts";
import { runtimeTensor, type TensorMaker } from "./runtime-tensor.ts";
import type { FeedTensor, Feeds, InputMetadata } from "./verify/feeds.ts";

/** A value as the runtime gives it; `data` is missing for sequences and maps. */
export interface RuntimeTensor {
  readonly type: string;
  readonly data?: FeedTensor["data"];
  readonly dims: readonly number[];
}

export interface Session {
  /** Undefined in runtimes before 1.21. */
  readonly inputs: readonly InputMetadata[] | undefined;
  readonly outputNames: readonly string[];
  /** @param fetches the outputs wanted; default all @throws LowbitError E_RUNTIME */
  run(feeds: Feeds, fetches?: readonly string[]): Promise<Record<string, RuntimeTensor>>;
  release(): Promise<void>;
}

export interface SessionSettings {
  /** What an error begins with. */
  readonly label: string;
  /** Threads inside an operator. Default: the runtime's own choice. */
  readonly threads?: number;
  /** What to do where a run fails. */
  readonly remedy: string;
}

interface Opened {
  readonly outputNames: readonly string[];
  readonly inputMetadata?: readonly InputMetadata[];
  run(feeds: Record<string, unknown>, fetches: readonly string[]): Promise<Record<string, RuntimeTensor>>;
  release(): Promise<void>;
}

/** A runtime's module: onnxruntime-web, onnxruntime-node. */
export interface RuntimeModule {
  readonly InferenceSession: { readonly create: (...args: never[]) => unknown };
  readonly Tensor: abstract new (...args: never[]) => unknown;
}

/** What is used of it. */
interface Runtime extends TensorMaker {
  readonly InferenceSession: { create(model: string | Uint8Array, options: object): Promise<Opened> };
}

const PACKAGE = "onnxruntime-node";
let provided: Runtime | undefined;

/**
 * Gives calibration, passes and choices by outputs a runtime to run models in, instead of onnxruntime-node: where that
 * cannot be, in browsers and workers. Verification has runtimes of its own.
 * @param runtime a module such as onnxruntime-web; undefined: onnxruntime-node again
 * @throws TypeError for what is no such module
 * @example import * as ort from "onnxruntime-web"; useRuntime(ort);
 */
export function useRuntime(runtime: RuntimeModule | undefined): void {
  if (runtime !== undefined && (typeof runtime?.InferenceSession?.create !== "function" || typeof runtime.Tensor !== "function"))
    throw new TypeError("useRuntime: expected a module with InferenceSession and Tensor (onnxruntime-web), got something else.");
  provided = runtime as unknown as Runtime | undefined;
}

/** Does the runtime read files? One that was given may be in a browser. */
export const takesPaths = (): boolean => provided === undefined;

const firstLine = (error: unknown): string => (error as Error).message.split("\n")[0];

async function loadRuntime(label: string): Promise<Runtime> {
  if (provided !== undefined) return provided;
  try {
    // A variable, so that bundlers leave the optional peer alone.
    const name = PACKAGE;
    const module = (await import(/* @vite-ignore */ name)) as Runtime & { default?: Runtime };
    return module.InferenceSession === undefined ? module.default! : module;
  } catch (cause) {
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected the package ${PACKAGE}, got ${firstLine(cause)}. Install it: npm install ${PACKAGE}`,
      { cause },
    );
  }
}

/** Names, types and shapes of feeds, for messages. */
export const describeFeeds = (feeds: Feeds): string =>
  Object.entries(feeds)
    .map(([name, feed]) => `${name} ${feed.type}[${feed.dims.join(", ")}]`)
    .join("; ");

/** Opens a model for runs. @param model a path, or bytes @throws LowbitError E_RUNTIME */
export async function openSession(model: string | Uint8Array, settings: SessionSettings): Promise<Session> {
  const { label, threads, remedy } = settings;
  const runtime = await loadRuntime(label);
  const options = { logSeverityLevel: 4, ...(threads === undefined ? {} : { intraOpNumThreads: threads }) };
  const opened = await runtime.InferenceSession.create(model, options).catch((cause: unknown) => {
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected a model that onnxruntime loads, got ${firstLine(cause)}. Check the model with lowbit inspect.`,
      { cause },
    );
  });
  return {
    inputs: opened.inputMetadata,
    outputNames: opened.outputNames,
    async run(feeds, fetches = opened.outputNames) {
      try {
        const tensors = Object.entries(feeds).map(([name, feed]) => [name, runtimeTensor(runtime, feed.type, feed.data, feed.dims)]);
        return await opened.run(Object.fromEntries(tensors) as Record<string, unknown>, fetches);
      } catch (cause) {
        throw new LowbitError(
          "E_RUNTIME",
          `${label}: expected a run with inputs ${describeFeeds(feeds)}, got ${firstLine(cause)}. ${remedy}`,
          { cause },
        );
      }
    },
    release: () => opened.release(),
  };
}

/** The numbers of a float value as float32; null for other types. */
export function floatValues(value: RuntimeTensor): Float32Array | null {
  const { data } = value;
  if (data instanceof Float32Array) return data;
  if (data instanceof Float64Array) return Float32Array.from(data);
  if (value.type !== "float16" || data === undefined) return null;
  const table = halfTable();
  // Some runtimes return Float16Array (values), others codes.
  return data instanceof Uint16Array ? Float32Array.from(data, (code) => table[code]) : Float32Array.from(data as ArrayLike<number>);
}
