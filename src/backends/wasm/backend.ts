// The WebAssembly backend: packed weights in engine memory, kernels generated for their format's properties, one thread
// or several. Integer activations run on integer kernels, float32 ones on float kernels; explain() says which kernel a
// layer got and why.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { compileRefusal, wasmFeatures, type WasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { createRuntime, type Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import type { LosslessTensor } from "../../../formats/core/huffman.ts";
import type { Backend, BulkCodec, SyncLayer } from "../types.ts";
import { prepareBitplanes, type BitplaneLayer } from "./bitplane.ts";
import { createCodec } from "./codec.ts";
import { tunedTiles } from "./dot.ts";
import { float64Algebra, type Float64Algebra } from "./float64.ts";
import { prepare } from "./layer.ts";
import { decodeLossless, prepareLossless } from "./lossless.ts";
import { shareMemory } from "./memory.ts";
import { fwht, prepareInteger, type IntegerLayer } from "./ops.ts";
import { prepareSparse, prepareSparseInteger, type SparseOptions } from "./sparse.ts";
import { tuneLayers, tuningOf, useTuning, type TuneReport, type Tuning } from "./tuning.ts";
import { startPool } from "./threads.ts";

/** Threads, memory and features of the WebAssembly backend. */
export interface WasmOptions {
  /**
   * Threads, the calling one included; default 1. More than one needs shared memory (in a page: cross-origin
   * isolation).
   */
  readonly threads?: number;
  /** Most bytes of one memory; default and maximum 4 GiB. */
  readonly memoryLimit?: number;
  /**
   * Script of the workers, for pages whose content policy forbids inline ones: a file that holds `workerScript()`.
   */
  readonly workerUrl?: string | URL;
  /** A job without progress for this long is given up, ms; default 10000. */
  readonly timeoutMs?: number;
  /**
   * Measure tiles at the first product of each kind and keep the fastest; default false. Results do not change. What
   * `tuning()` of an earlier backend gave is taken without measuring, on the same engine.
   */
  readonly tune?: boolean | Tuning;
  /** Leave engine features unused: "simd" runs baseline SIMD128 kernels only. Default "auto". */
  readonly features?: "auto" | "simd";
}

/** The WebAssembly backend: kernels made for each weight, on one thread or several; see `wasm`. */
export interface WasmBackend extends Backend<SyncLayer> {
  readonly threads: number;
  readonly features: WasmFeatures;
  /** Bytes of engine memory in use. */
  readonly bytes: number;
  /** Kinds of product whose tile was chosen by measuring (option `tune`). */
  readonly tuned: number;
  /** The choices so far with their gains, as plain JSON for a file or IndexedDB; `wasm({ tune })` takes it. */
  tuning(): Tuning;
  /**
   * Measures every kind of integer product of a model's layers, at most two dozen tiles each, none for `limitMs`
   * (30000) or longer: the default stays unless another is clearly faster. Needs `tune`.
   */
  tuneLayers(layers: Iterable<SyncLayer>, options?: { readonly rows?: readonly number[]; readonly limitMs?: number }): TuneReport;
  /**
   * An int8 weight [n, k] for exact products with int8 or uint8 activations. @throws LowbitError E_SHAPE, E_DEVICE
   */
  prepareInteger(w: Int8Array, n: number, k: number): IntegerLayer;
  /**
   * A weight [n, k] given by codes of a small integer or bipolar format, as bit planes: exact products with codes of
   * any such format.
   * @throws LowbitError E_SHAPE, E_UNSUPPORTED, E_DEVICE
   */
  prepareBitplanes(codes: ArrayLike<number>, n: number, k: number, format: NumberFormat): BitplaneLayer;
  /**
   * A lossless bfloat16 weight [n, k] for products with float32 activations: it stays compressed, and blocks of rows
   * are decoded as products reach them. @throws LowbitError E_DEVICE
   */
  prepareLossless(w: LosslessTensor): SyncLayer;
  /** The bit patterns of a lossless bfloat16 weight, on all threads. @throws LowbitError E_DEVICE, E_SHAPE */
  decodeLossless(w: LosslessTensor, out?: Uint16Array): Uint16Array;
  /**
   * A packed weight [n, k] with zeros (`prune`) for products that multiply only what is not zero, with float32
   * activations: faster than a dense product from some 60 % of zeros on. Rows in blocks of four where they keep the
   * same columns. `activations: "int8"`: a 2:4 weight of 4 bits (`prune(w, "2:4", { format: format("int4_b32") })`),
   * of which places and codes of two in four are read; sums of blocks are exact integers, as with dense weights.
   * @throws LowbitError E_UNSUPPORTED for int8 activations and other weights, E_DEVICE
   */
  prepareSparse(w: PackedTensor, options?: SparseOptions): SyncLayer;
  /**
   * An int8 weight [n, k] with zeros for exact products with int8 activations. @throws LowbitError E_SHAPE, E_DEVICE
   */
  prepareSparseInteger(w: Int8Array, n: number, k: number): IntegerLayer;
  /**
   * Fast Walsh-Hadamard transform (Sylvester order) of every row of n = 2^p values of x, in place; multiplied by
   * `scale`, default 1 / sqrt(n), with which it is its own inverse. @throws LowbitError E_SHAPE
   */
  fwht(x: Float32Array, n: number, scale?: number): Float32Array;
  /**
   * Bulk conversion on the calling thread, bit-identical to the library's loops; what `quantize` and `dequantize`
   * take as `{ backend }`.
   */
  readonly codec: BulkCodec;
  /** Codes of all values, as `encodeArray`: `codec.encode`. @throws LowbitError E_VALUE, E_SHAPE */
  readonly encode: BulkCodec["encode"];
  /** Values of all codes, as `decodeArray`: `codec.decode`. @throws RangeError, LowbitError E_SHAPE */
  readonly decode: BulkCodec["decode"];
  /** float64 products for the algebra of the quantizers: pass the backend to `gptq`, `calibrate` and their kin. */
  readonly float64: Float64Algebra;
  /** Ends workers and drops memory; layers prepared with it are disposed. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/**
 * Makes a WebAssembly backend.
 * @throws LowbitError E_UNSUPPORTED where the engine has no SIMD, compiles no modules, cannot share memory or may start
 * no workers; E_DEVICE where workers do not start
 * @example const backend = await wasm({ threads: 2 });
 */
export async function wasm(options: WasmOptions = {}): Promise<WasmBackend> {
  const { threads = 1 } = options;
  if (!Number.isSafeInteger(threads) || threads < 1 || threads > 256)
    throw new RangeError(`wasm threads: expected an integer from 1 to 256, got ${threads}.`);
  const features = enabledFeatures(options);
  if (threads > 1 && !features.sharedMemory)
    throw new LowbitError(
      "E_UNSUPPORTED",
      "wasm threads: expected shared memory, got none here. Use threads: 1, or serve the page cross-origin isolated.",
    );
  const pool =
    threads === 1
      ? null
      : await startPool({
          threads,
          ...(options.timeoutMs === undefined ? {} : { timeoutMs: options.timeoutMs }),
          ...(options.workerUrl === undefined ? {} : { workerUrl: options.workerUrl }),
        });
  const runtime = createRuntime({
    features,
    pool,
    tune: options.tune !== undefined && options.tune !== false,
    ...(options.memoryLimit === undefined ? {} : { memoryLimit: options.memoryLimit }),
  });
  if (typeof options.tune === "object") useTuning(runtime, options.tune);
  return createBackend(runtime);
}

/**
 * A one-thread backend, made at once; what `backend: "wasm"` stands for. Shared by all its users, so it cannot be
 * disposed.
 */
export function wasmSync(): WasmBackend {
  single ??= createBackend(createRuntime({ features: enabledFeatures({}), pool: null }));
  return single;
}
let single: WasmBackend | null = null;

/** A one-thread backend that uses the given features only, for tests of kernels that this engine would not choose. */
export function wasmWith(features: WasmFeatures): WasmBackend {
  return createBackend(createRuntime({ features, pool: null }));
}

function enabledFeatures(options: WasmOptions): WasmFeatures {
  const found = wasmFeatures();
  if (!found.simd)
    throw new LowbitError("E_UNSUPPORTED", "wasm: expected an engine with SIMD128, got one without. Use the reference backend.");
  const refusal = compileRefusal();
  if (refusal !== null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `wasm: expected to compile WebAssembly, got a refusal (${refusal.message}). Add 'wasm-unsafe-eval' to script-src of the page's Content-Security-Policy, or use the reference backend.`,
      { cause: refusal },
    );
  return options.features === "simd" ? { ...found, relaxed: false, dot: "none" } : found;
}

/** A backend on a runtime of one's own making (a pool, features, limits). */
export function createBackend(runtime: Runtime): WasmBackend {
  const dispose = (): void => runtime.dispose();
  const codec = createCodec(runtime);
  const backend: WasmBackend = {
    name: "wasm",
    threads: runtime.threads,
    features: runtime.features,
    get bytes() {
      return runtime.spaces.reduce((sum, space) => sum + space.arena.used, 0);
    },
    get tuned() {
      return tunedTiles(runtime)?.size ?? 0;
    },
    prepare: (w, options) => prepare(runtime, w, options),
    prepareBitplanes: (codes, n, k, format) => prepareBitplanes(runtime, codes, n, k, format),
    tuning: () => tuningOf(runtime),
    tuneLayers: (layers, options = {}) => tuneLayers(runtime, layers, options),
    prepareSparse: (w, options) => prepareSparse(runtime, w, options),
    prepareSparseInteger: (w, n, k) => prepareSparseInteger(runtime, w, n, k),
    prepareLossless: (w) => prepareLossless(runtime, w),
    decodeLossless: (w, out) => decodeLossless(runtime, w, out),
    prepareInteger: (w, n, k) => prepareInteger(runtime, w, n, k),
    codec,
    encode: codec.encode,
    decode: codec.decode,
    float64: float64Algebra(runtime),
    fwht: (x, n, scale = 1 / Math.sqrt(n)) => fwht(runtime, x, n, scale),
    dispose,
    [Symbol.dispose]: dispose,
  };
  shareMemory(backend, runtime);
  return backend;
}
