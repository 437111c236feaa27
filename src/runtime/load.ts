// loadModel: a model out of a file, bytes, a Blob or the network as a session: ONNX on this runtime, in parts or as
// a whole on onnxruntime where operators are missing; GGUF as the decoder that it is.
import { LowbitError } from "../../formats/core/errors.ts";
import { reference } from "../backends/reference.ts";
import { TURN_MS, turn } from "../backends/turn.ts";
import type { Backend, SyncLayer } from "../backends/types.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import type { WebGpuBackend } from "../backends/webgpu/backend.ts";
import { gpuRuntime } from "../backends/webgpu/door.ts";
import type { ByteSource, RangeReader } from "../interop/source.ts";
import { readModel } from "../onnx/file/io.ts";
import type { OnnxModel } from "../onnx/file/model.ts";
import { checkAborted, type Progress, type RunOptions } from "../quantize/steps.ts";
import { makePlan, missingOperators, readGraph } from "./compile/plan.ts";
import type { OnnxRuntime } from "./foreign.ts";
import type { ActivationChoice } from "./ops/operator.ts";
import { describe, ownSession, type DeviceSession, type Place, type Session } from "./session.ts";
import { fetchSource, isGguf, readWhole, toBlobBytes, withExternal } from "./sources.ts";

/**
 * A path (Node), a URL (also as a string with http: or https:), the bytes of a model, a Blob, or for GGUF anything
 * that reads ranges.
 */
export type ModelSource = string | URL | Uint8Array | ArrayBuffer | Blob | RangeReader;

/** Where a model runs, and what it may fall back to. */
export interface LoadOptions extends RunOptions {
  /** Where the model runs. Default "wasm", one thread. */
  readonly backend?: "wasm" | "reference" | Backend<SyncLayer>;
  /**
   * A model with operators that are missing here runs in onnxruntime: these in parts of their own where most of its
   * products can run here, else all of it. "onnxruntime" imports onnxruntime-node in Node and onnxruntime-web
   * elsewhere; where a bundler must know of it, give the module itself. Default: an error that lists them.
   */
  readonly fallback?: "onnxruntime" | OnnxRuntime;
  /**
   * How activations enter products with quantized weights: "auto" (default) is float32, but int8 where the node itself
   * allows it (`accuracy_level` 4 of MatMulNBits). "int8" is the fastest, near 2e-2 of the logits' rms; "int16" near
   * 1e-5.
   */
  readonly activations?: ActivationChoice;
  /** Measure each step for `explain()`. */
  readonly profile?: boolean;
  /** Files of external data by the name that the model has for them, for models that are no path and no URL. */
  readonly externalData?: Readonly<Record<string, Uint8Array | Blob>>;
  /** Keep what comes from a URL in the Cache API, under this name. Default: not kept. */
  readonly cache?: string;
  /** Stages: "read" counts bytes, "prepare" nodes of the graph or tensors of a GGUF file. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends loading with E_ABORTED; what was made by then is freed. */
  readonly signal?: AbortSignal;
}

/** Options of a model that runs on a GPU. */
export interface DeviceLoadOptions extends Omit<LoadOptions, "backend"> {
  /**
   * `await webgpu()` of lowbit/webgpu: weights, activations and caches stay on the device; operators that have no
   * kernel there run on WebAssembly, with copies.
   */
  readonly backend: WebGpuBackend;
}

type AnyOptions = LoadOptions | DeviceLoadOptions;

/**
 * Loads a model to be run on packed weights.
 * @throws LowbitError E_UNSUPPORTED with the list of operators that are missing, E_ONNX, E_CONTAINER, E_IO, E_RUNTIME,
 * E_ABORTED; TypeError for another source or option
 * @example
 * const session = await loadModel("model.onnx");
 * const image = { type: "float32", data: new Float32Array(784), dims: [1, 1, 28, 28] };
 * const { logits } = await session.run({ image });
 * logits.dims // [1, 10]
 */
export async function loadModel(source: ModelSource, options: DeviceLoadOptions): Promise<DeviceSession>;
export async function loadModel(source: ModelSource, options?: LoadOptions): Promise<Session>;
export async function loadModel(source: ModelSource, options: AnyOptions = {}): Promise<Session | DeviceSession> {
  return load(source, options, true);
}

/**
 * `loadModel` for feeds of other libraries: names of open sizes need not agree, as in onnxruntime. `fallback` gets
 * parts of models; those that it is to run whole are E_UNSUPPORTED.
 */
export const loadForeign = (source: string | Uint8Array, options: LoadOptions): Promise<Session> =>
  load(source, options, false) as Promise<Session>;

type AnyBackend = Backend<SyncLayer> | WebGpuBackend;

const isWebGpu = (backend: AnyBackend): backend is WebGpuBackend => gpuRuntime(backend) !== undefined;

/** Where a plan runs: kernels for a device come with the first model on one. */
export async function placeOf(backend: AnyBackend): Promise<Place> {
  if (!isWebGpu(backend)) return { host: backend, products: backend };
  return (await import("./webgpu/engine.ts")).deviceOf(backend);
}

/** Formats of ggml come with the first GGUF file. */
const loadGguf = async (source: ByteSource, backend: AnyBackend, options: AnyOptions): Promise<Session | DeviceSession> =>
  (await import("./gguf/load.ts")).loadGguf(source, await placeOf(backend), options);

const isRanges = (x: unknown): x is RangeReader =>
  typeof x === "object" && x !== null && typeof (x as RangeReader).read === "function" && typeof (x as RangeReader).size === "number";

const isUrl = (source: unknown): source is string | URL =>
  source instanceof URL ? source.protocol !== "file:" : typeof source === "string" && /^(https?|blob|data):/i.test(source);

function checkOptions({ fallback }: AnyOptions): void {
  const isModule = typeof fallback === "object" && fallback !== null && "InferenceSession" in fallback;
  if (fallback !== undefined && fallback !== "onnxruntime" && !isModule)
    throw new TypeError(`loadModel fallback: expected "onnxruntime", its module or none, got ${String(fallback)}.`);
}

async function load(source: ModelSource, options: AnyOptions, agree: boolean): Promise<Session | DeviceSession> {
  const backend = backendOf(options.backend ?? "wasm");
  checkOptions(options);
  checkAborted(options.signal, "loadModel");
  if (source instanceof URL && source.protocol === "file:") return load(decodeURIComponent(source.pathname), options, agree);
  if (isUrl(source)) {
    const fetched = await fetchSource(source, options);
    if (fetched.kind === "ranges") return loadGguf(fetched.reader, backend, options);
    const given = options.externalData;
    return loadBytes(fetched.bytes, backend, options, { agree, external: (name) => external(given, name) ?? fetched.beside(name) });
  }
  if (typeof source === "string")
    return /\.gguf$/i.test(source) ? loadGguf(source, backend, options) : loadPath(source, backend, options, agree);
  if (source instanceof Blob && (await isGguf(source))) return loadGguf(source, backend, options);
  if (isRanges(source)) {
    if (await isGguf(source)) return loadGguf(source, backend, options);
    source = await readWhole(source, options);
  }
  if (!(source instanceof Uint8Array) && !(source instanceof ArrayBuffer) && !(source instanceof Blob))
    throw new TypeError(`loadModel source: expected a path, a URL, bytes, a Blob or a reader of ranges, got ${typeof source}.`);
  const bytes = await toBlobBytes(source);
  if (await isGguf(bytes)) return loadGguf(bytes, backend, options);
  return loadBytes(bytes, backend, options, { agree, external: (name) => external(options.externalData, name) });
}

const external = (given: LoadOptions["externalData"], name: string): Promise<Uint8Array> | undefined =>
  given !== undefined && Object.hasOwn(given, name) ? toBlobBytes(given[name]) : undefined;

async function loadPath(path: string, backend: AnyBackend, options: AnyOptions, agree: boolean): Promise<Session | DeviceSession> {
  const file = readModel(path);
  try {
    return await sessionOf(file, path, backend, options, { agree });
  } finally {
    file.close();
  }
}

interface BytesOptions {
  readonly agree: boolean;
  /** The bytes of a file of external data; undefined where it is not known. */
  readonly external: (name: string) => Promise<Uint8Array> | undefined;
}

async function loadBytes(bytes: Uint8Array, backend: AnyBackend, options: AnyOptions, how: BytesOptions): Promise<Session | DeviceSession> {
  const { model, files } = await withExternal(bytes, how.external);
  return sessionOf(model, bytes, backend, options, { agree: how.agree, files });
}

/** Lets the event loop have its turns, tells of progress, and ends on the signal. */
export function pacing({ signal, onProgress }: RunOptions): (done: number, total: number) => Promise<void> {
  let since = performance.now();
  return async (done, total) => {
    if (performance.now() - since > TURN_MS) {
      onProgress?.({ stage: "prepare", done, total });
      await turn();
      since = performance.now();
    }
    checkAborted(signal, "loadModel");
  };
}

interface How {
  readonly agree: boolean;
  /** External data beside bytes, for the runtime that the model falls back to. */
  readonly files?: ReadonlyMap<string, Uint8Array>;
}

async function sessionOf(
  model: OnnxModel,
  source: string | Uint8Array,
  backend: AnyBackend,
  options: AnyOptions,
  { agree, files }: How,
): Promise<Session | DeviceSession> {
  const profile = options.profile === true;
  const open = async (part: OnnxModel, { flat, stored }: ReturnType<typeof readGraph>): Promise<Session | DeviceSession> => {
    const { host, products, engine } = await placeOf(backend);
    const activations = options.activations ?? "auto";
    const plan = await makePlan(part, { flat, stored }, { backend: host, products, activations, pace: pacing(options) });
    options.onProgress?.({ stage: "prepare", done: flat.nodes.length, total: flat.nodes.length });
    return ownSession({ ...describe(part), agree }, plan, { backend: host, profile, engine: engine?.(plan) });
  };
  const graph = readGraph(model);
  const missing = missingOperators(model, graph.flat);
  if (missing.length === 0) return open(model, graph);
  const { fallback } = options;
  const described = { ...describe(model), agree };
  const init = { missing, profile, device: isWebGpu(backend), open: (part: OnnxModel) => open(part, readGraph(part)) };
  const session =
    fallback === undefined
      ? null
      : await (await import("./parts.ts")).fallbackSession(model, described, init, { fallback, source, files, whole: agree });
  if (session === null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `model: expected operators of the runtime, got also ${missing.join(", ")}. Load it with { fallback: "onnxruntime" }.`,
    );
  if (options.signal?.aborted) await session.release();
  checkAborted(options.signal, "loadModel");
  return session;
}

function backendOf(backend: NonNullable<AnyOptions["backend"]>): AnyBackend {
  if (backend === "wasm") return wasmSync();
  if (backend === "reference") return reference;
  if (typeof backend?.prepare === "function") return backend;
  throw new TypeError(`loadModel backend: expected "wasm", "reference" or a backend object, got ${String(backend)}.`);
}
