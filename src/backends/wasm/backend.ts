// The WebAssembly backend: packed weights in engine memory, kernels generated for their format's properties, one thread or several.
// Integer activations run on integer kernels, float32 ones on float kernels; explain() says which kernel a layer got and why.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { floatName, gemmName } from "../../../kernels/names.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import { activationModule } from "../../../kernels/wasm/dot/activations.ts";
import { chooseDot, type DotChoice } from "../../../kernels/wasm/products/choose.ts";
import { compileRefusal, wasmFeatures, type WasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { decodeExponent, FLOAT_ARGUMENTS, floatModule, floatPackModule } from "../../../kernels/wasm/float/float.ts";
import { floatPlan, floatRows, floatSpec, type FloatPlan } from "../../../kernels/wasm/float/floatplan.ts";
import { gemmModule, WORK_ARGUMENTS } from "../../../kernels/wasm/dot/gemm.ts";
import { activationRecord, correctionFactor, totalCorrection, zipsPlanes, type GemmSpec } from "../../../kernels/wasm/dot/gemmspec.ts";
import { panelBytes } from "../../../kernels/wasm/dot/operands.ts";
import { packFloat, packWeight } from "../../../kernels/wasm/products/pack.ts";
import { resultStride } from "../../../kernels/wasm/products/tiles.ts";
import type { Kernel } from "../../../kernels/wasm/engine/engine.ts";
import { recordJob } from "../../../kernels/wasm/engine/items.ts";
import { createRuntime, kernel, type Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { fastest, tileCandidates, tuneKey } from "../../../kernels/wasm/products/tuner.ts";
import { checkRun, disposed } from "../layer.ts";
import { packWarm, passRows, stage, weightMemory, type Product } from "./product.ts";
import { integerProduct, refusedKernel } from "./lut.ts";
import { weightSource } from "../source.ts";
import { startPool } from "./threads.ts";
import { inTurns } from "./turns.ts";
import { prepareBitplanes, type BitplaneLayer } from "./bitplane.ts";
import { createCodec } from "./codec.ts";
import { float64Algebra, type Float64Algebra } from "./float64.ts";
import { fwht, prepareInteger, type IntegerLayer } from "./ops.ts";
import type { Backend, BulkCodec, PrepareOptions, SyncLayer } from "../types.ts";

export interface WasmOptions {
  /** Threads, the calling one included; default 1. More than one needs shared memory (in a page: cross-origin isolation). */
  readonly threads?: number;
  /** Most bytes of one memory; default and maximum 4 GiB. */
  readonly memoryLimit?: number;
  /** Script of the workers, for pages whose content policy forbids inline ones: a file that holds `workerScript()`. */
  readonly workerUrl?: string | URL;
  /** A job without progress for this long is given up, ms; default 10000. */
  readonly timeoutMs?: number;
  /** Measure tiles at the first product of each kind and keep the fastest; default false. Results do not change. */
  readonly tune?: boolean;
  /** Leave engine features unused: "simd" runs baseline SIMD128 kernels only. Default "auto". */
  readonly features?: "auto" | "simd";
}

export interface WasmBackend extends Backend<SyncLayer> {
  readonly threads: number;
  readonly features: WasmFeatures;
  /** Bytes of engine memory in use. */
  readonly bytes: number;
  /** Kinds of product whose tile was chosen by measuring (option `tune`). */
  readonly tuned: number;
  /** An int8 weight [n, k] for exact products with int8 or uint8 activations. @throws LowbitError E_SHAPE, E_DEVICE */
  prepareInteger(w: Int8Array, n: number, k: number): IntegerLayer;
  /**
   * A weight [n, k] given by codes of a small integer or bipolar format, as bit planes: exact products with codes of any such format.
   * @throws LowbitError E_SHAPE, E_UNSUPPORTED, E_DEVICE
   */
  prepareBitplanes(codes: ArrayLike<number>, n: number, k: number, format: NumberFormat): BitplaneLayer;
  /**
   * Fast Walsh-Hadamard transform (Sylvester order) of every row of n = 2^p values of x, in place; multiplied by `scale`, default 1 / sqrt(n), with which it is
   * its own inverse. @throws LowbitError E_SHAPE
   */
  fwht(x: Float32Array, n: number, scale?: number): Float32Array;
  /** Bulk conversion on the calling thread, bit-identical to the library's loops; what `quantize` and `dequantize` take as `{ backend }`. */
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
 * @throws LowbitError E_UNSUPPORTED where the engine has no SIMD, compiles no modules, cannot share memory or may start no workers; E_DEVICE where workers do not start
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
  return createBackend(
    createRuntime({
      features,
      pool,
      tune: options.tune === true,
      ...(options.memoryLimit === undefined ? {} : { memoryLimit: options.memoryLimit }),
    }),
  );
}

/** A one-thread backend, made at once; what `backend: "wasm"` stands for. Shared by all its users, so it cannot be disposed. */
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
  return {
    name: "wasm",
    threads: runtime.threads,
    features: runtime.features,
    get bytes() {
      return runtime.spaces.reduce((sum, space) => sum + space.arena.used, 0);
    },
    get tuned() {
      return runtime.tiles?.size ?? 0;
    },
    prepare: (w, options) => prepare(runtime, w, options),
    prepareBitplanes: (codes, n, k, format) => prepareBitplanes(runtime, codes, n, k, format),
    prepareInteger: (w, n, k) => prepareInteger(runtime, w, n, k),
    codec,
    encode: codec.encode,
    decode: codec.decode,
    float64: float64Algebra(runtime),
    fwht: (x, n, scale = 1 / Math.sqrt(n)) => fwht(runtime, x, n, scale),
    dispose,
    [Symbol.dispose]: dispose,
  };
}

function prepare(runtime: Runtime, w: PackedTensor, options: PrepareOptions): SyncLayer {
  if (!runtime.live) throw disposed();
  const activations = options.activations ?? "float32";
  if (activations !== "float32" && activations !== "int8" && activations !== "int16")
    throw new TypeError(`prepareMatmul activations: expected "float32", "int16" or "int8", got ${String(activations)}.`);
  const { codebook = "int16" } = options;
  if (!["exact", "int16", "int8"].includes(codebook))
    throw new TypeError(`prepareMatmul codebook: expected "exact", "int16" or "int8", got ${String(codebook)}.`);
  const source = weightSource(w);
  const note = source.note === undefined ? [] : [source.note];
  let product: Product;
  if (options.kernel !== undefined && activations !== "int8") throw refusedKernel(options.kernel, 'activations other than "int8"');
  if (activations === "float32") product = floatProduct(runtime, source, w.format.name, []);
  else {
    const choice = chooseDot(source, {
      activationBits: activations === "int8" ? 8 : 16,
      features: runtime.features,
      shared: runtime.shared,
      codebook,
    });
    const label = w.format.name;
    if (typeof choice === "string") {
      if (options.kernel !== undefined) throw refusedKernel(options.kernel, choice);
      product = floatProduct(runtime, source, label, [`no integer product (${choice}): activations stay float32`]);
    } else product = integerProduct(runtime, source, options, label, () => dotProduct(runtime, source, choice, activations, label));
  }
  const { rows: n, k } = w;
  try {
    packWarm(product, n, k);
  } catch (error) {
    product.space.arena.free(product.address);
    throw error;
  }
  let live = true;
  const run = (x: Float32Array, m: number, out?: Float32Array): Float32Array => {
    if (!live || !runtime.live) throw disposed();
    const y = checkRun(x, m, n, k, out);
    const { space } = product;
    // rows at once: bounded scratch for products of any height
    const most = Math.max(48, Math.floor(rowBudget / (4 * (resultStride(n, 2) + 2 * k))));
    product.tune?.(x, Math.min(m, most));
    for (let from = 0; from < m;) {
      const count = passRows(m - from, most);
      const rows = product.rows(count);
      const stride = resultStride(n, rows);
      const c = space.scratch("c", 4 * rows * stride);
      product.multiply(count === m ? x : x.subarray(from * k, (from + count) * k), count, c, stride);
      const result = new Float32Array(space.buffer, c, rows * stride);
      if (stride === n) y.set(result.subarray(0, count * n), from * n);
      else for (let r = 0; r < count; r++) y.set(result.subarray(r * stride, r * stride + n), (from + r) * n);
      from += count;
    }
    return y;
  };
  const dispose = (): void => {
    if (!live) return;
    live = false;
    if (runtime.live) product.space.arena.free(product.address);
  };
  return {
    n,
    k,
    run,
    async runAsync(x, m, out) {
      if (!live || !runtime.live) throw disposed();
      return inTurns(runtime, { n, k }, run, x, m, out);
    },
    explain: () => ({
      backend: "wasm",
      kernel: product.name(1),
      activations: product.activations,
      reasons: [...note, ...product.reasons, `rows of activations at once: ${product.name(1)} for one, ${product.name(64)} for many`],
    }),
    dispose,
    [Symbol.dispose]: dispose,
  };
}

/** A panel and a tile's activations share the first-level cache. */
const PANEL_BYTES = 12 * 1024;

/** Bytes of scratch for activations and results of one pass. */
const rowBudget = 192 * 1024 * 1024;

interface DotProduct extends Product {
  multiplyWith(spec: GemmSpec, x: Float32Array, m: number, c: number, stride: number, blocks?: number): void;
}

function dotProduct(runtime: Runtime, source: WeightSource, choice: DotChoice, activations: "int8" | "int16", label: string): Product {
  const { plan, shape } = choice;
  const { space, address } = weightMemory(runtime, shape.bytes);
  const standard = choice.spec;
  const tileOf = (m: number): GemmSpec =>
    runtime.tiles === null ? standard(m) : (runtime.tiles.get(tuneKey(standard(m), m)) ?? standard(m));
  /** Compiled code by spec, which is one object per kernel. */
  const compiled = new Map<GemmSpec, { quantize: Kernel; gemm: Kernel }>();
  const compile = (spec: GemmSpec): { quantize: Kernel; gemm: Kernel } => {
    let found = compiled.get(spec);
    if (found === undefined) {
      const quantizer = {
        style: spec.style,
        inOrder: zipsPlanes(spec),
        activationBits: spec.activationBits,
        mr: spec.mr,
        totals: totalCorrection(spec),
        shared: runtime.shared,
      };
      const quantize = kernel("activations", quantizer, () => activationModule(quantizer));
      found = { quantize, gemm: kernel("gemm", spec, () => gemmModule(spec)) };
      compiled.set(spec, found);
    }
    return found;
  };
  const rowsOf = (spec: GemmSpec, m: number): number => Math.ceil(m / spec.mr) * spec.mr;
  const product: DotProduct = {
    space,
    address,
    activations,
    name: (m) => gemmName(tileOf(m), label),
    reasons: choice.reasons,
    rows: (m) => rowsOf(tileOf(m), m),
    tune(x, m) {
      if (runtime.tiles === null || runtime.tiles.has(tuneKey(standard(m), m))) return;
      const count = Math.min(m, 64);
      const part = x.subarray(0, count * source.k);
      const candidates = tileCandidates(standard(m), count);
      // results of the measured runs are thrown away
      const most = Math.max(...candidates.map((spec) => rowsOf(spec, count)));
      const stride = resultStride(source.rows, most);
      const c = space.scratch("tune", 4 * stride * most);
      runtime.tiles.set(
        tuneKey(standard(m), m),
        fastest(candidates, (spec) => product.multiplyWith(spec, part, count, c, stride)),
      );
    },
    pack: () => packWeight(source, plan, shape, space.buffer, address),
    kernel: () => compile(tileOf(1)).gemm,
    multiply: (x, m, c, stride, blocks) => product.multiplyWith(tileOf(m), x, m, c, stride, blocks),
    multiplyWith(spec, x, m, c, stride, blocks = shape.blocks) {
      const { mr } = spec;
      const record = activationRecord(spec);
      const tiles = Math.ceil(m / mr);
      const padded = tiles * mr;
      const { groups, group, span } = shape;
      const { quantize, gemm } = compile(spec);
      const a = space.scratch("a", tiles * groups * record.bytes);
      const staged = stage(space, x, m, padded, { k: source.k, span, group, groups });
      const tileBytes = groups * record.bytes;
      const factor = correctionFactor(spec, plan.shift);
      const records = recordJob({ x: staged, a, tiles, mr, groups, group, bytes: record.bytes, factor });
      runtime.work(space, quantize, records.items, records.args, 0);
      const chunk = spec.panel
        ? Math.max(1, Math.floor(PANEL_BYTES / panelBytes(spec)))
        : mr === 1
          ? groups
          : Math.max(1, Math.floor(1024 / group));
      const values = {
        a,
        w: address,
        c,
        ldc: 4 * stride,
        groups,
        tiles,
        chunk,
        aStride: tileBytes,
        blocks: shape.blocks,
      };
      runtime.work(
        space,
        gemm,
        blocks,
        Int32Array.from(WORK_ARGUMENTS, (name) => values[name]),
        spec.panel ? chunk * panelBytes(spec) : 0,
      );
    },
  };
  return product;
}

function floatProduct(runtime: Runtime, source: WeightSource, label: string, reasons: readonly string[]): Product {
  const plan: FloatPlan = floatPlan(source);
  const { relaxed } = runtime.features;
  const tableBytes = plan.table === null ? 0 : 1024;
  const { space, address } = weightMemory(runtime, plan.bytes + tableBytes);
  const { group } = plan.layout;
  const spec = (m: number) => floatSpec(plan, floatRows(m, relaxed), relaxed, runtime.shared);
  /** Compiled code by rows per tile. */
  const compiled: Kernel[] = [];
  const compile = (m: number): Kernel => (compiled[floatRows(m, relaxed)] ??= kernel("float", spec(m), () => floatModule(spec(m))));
  const tilesOf = (m: number): number => Math.ceil(m / floatRows(m, relaxed));
  return {
    space,
    address,
    activations: "float32",
    name: (m) => floatName(spec(m), label),
    reasons: [...reasons, plan.reason],
    rows: (m) => tilesOf(m) * floatRows(m, relaxed),
    pack() {
      packFloat(source, plan, space.buffer, address);
      if (plan.table !== null) new Float32Array(space.buffer, address + plan.bytes, 256).set(plan.table);
    },
    kernel: () => compile(1),
    multiply(x, m, c, stride, blocks = plan.blocks) {
      const mr = floatRows(m, relaxed);
      const tiles = tilesOf(m);
      const padded = tiles * mr;
      const width = plan.groups * group;
      const built = compile(m);
      const staged = stage(space, x, m, padded, { k: source.k, span: plan.span, group, groups: plan.groups });
      let a = staged;
      let unscale = 1;
      if (mr > 1) {
        a = space.scratch("a", 4 * padded * width);
        const packing = { mr, shared: runtime.shared };
        const records = recordJob({ x: staged, a, tiles, mr, groups: plan.groups, group, bytes: 4 * mr * group });
        runtime.work(
          space,
          kernel("float pack", packing, () => floatPackModule(packing)),
          records.items,
          records.args,
          0,
        );
      } else if (plan.layout.scale && !plan.scaleFirst)
        unscale = normalise(new Float32Array(space.buffer, staged, width), decodeExponent(plan.decode) !== 0);
      // chunks of rows that the second-level cache holds, of one size, and enough of them that threads end together
      const least = runtime.threads === 1 ? 1 : Math.ceil((32 * runtime.threads) / blocks);
      const tilesPerChunk = Math.ceil(tiles / Math.min(tiles, Math.max(least, Math.ceil((mr * tiles) / 192))));
      const chunk = Math.max(1, Math.floor(256 / group));
      const values = {
        blocks,
        a,
        w: address,
        c,
        ldc: 4 * stride,
        groups: plan.groups,
        tiles,
        chunk: tilesPerChunk * 65536 + chunk,
        aStride: 4 * mr * width,
        table: address + plan.bytes,
      };
      const args = Int32Array.from(FLOAT_ARGUMENTS, (name) => values[name]);
      runtime.work(space, built, blocks * Math.ceil(tiles / tilesPerChunk), args, mr === 1 ? 0 : 64 * group * chunk);
      if (unscale !== 1) {
        const y = new Float32Array(space.buffer, c, source.rows);
        for (let i = 0; i < y.length; i++) y[i] *= unscale;
      }
    },
  };
}

/** Activations whose products with elements that are not yet scaled stay far from both ends of float32. */
const CALM = 2 ** 64;

/**
 * Multiplies a row by a power of two so that its largest magnitude is near 2^40, and returns the factor that undoes it: where the row is so large or small that sums could
 * overflow, or products underflow, before a group's scale is applied, and for `fields` always. Those are moved into a float32 as 2^-112 or 2^-120 of their value until a group
 * ends: this keeps their products above the subnormal range.
 */
function normalise(row: Float32Array, fields: boolean): number {
  let amax = 0;
  for (let i = 0; i < row.length; i++) {
    const magnitude = Math.abs(row[i]);
    if (magnitude > amax) amax = magnitude;
  }
  if (amax === 0 || !Number.isFinite(amax) || (!fields && amax < CALM && amax > 1 / CALM)) return 1;
  const power = Math.min(126, Math.max(-126, 40 - Math.floor(Math.log2(amax))));
  const factor = 2 ** power;
  for (let i = 0; i < row.length; i++) row[i] *= factor;
  return 2 ** -power;
}
