// lowbit/webgpu: the WebGPU backend. The same packed tensors and the same calls as on WebAssembly, with kernels printed in WGSL; inputs and results may stay on the
// device. In Node it takes the optional package `webgpu` (dawn). Device limits are kept: large weights are split by rows, large activations too.
import { decodeExpr } from "../../formats/core/expr.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { elementOf } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { groupSpan, integerRefusal } from "../../kernels/activations.ts";
import { shaderName } from "../../kernels/names.ts";
import { activationGroups, layoutShader, quantizeShader, type LayoutSpec, type QuantizeSpec } from "../../kernels/wgsl/activations.ts";
import type { GpuAdapter, GpuBinding, GpuBuffer, GpuDevice, GpuRoot } from "../../kernels/wgsl/api.ts";
import { GEMM_COLUMNS, gemmGroups, gemmShader, type GemmSpec } from "../../kernels/wgsl/gemm.ts";
import { gemvGroups, gemvShader, type GemvSpec } from "../../kernels/wgsl/gemv.ts";
import { isInteger, PARAMS, productSpec, type Epilogue, type ProductSpec } from "../../kernels/wgsl/product.ts";
import { createGpuRuntime, type GpuRuntime, type Job, type Pipeline, type RuntimeOptions } from "../../kernels/wgsl/runtime.ts";
import { CHUNK, floatWeight, integerWeight, rowBytes, rowPacker, type WeightPlan } from "../../kernels/wgsl/weight.ts";
import { disposed } from "./layer.ts";
import { weightSource } from "./source.ts";
import type { Activations, AsyncLayer, Backend, Explanation, PrepareOptions } from "./types.ts";
import { connect } from "./webgpu-device.ts";

export type { GpuAdapter, GpuBuffer, GpuDevice, GpuRoot } from "../../kernels/wgsl/api.ts";
export type { Epilogue } from "../../kernels/wgsl/product.ts";

export interface WebGpuOptions {
  /** A device of your own; it is not destroyed with the backend. */
  readonly device?: GpuDevice;
  /** An adapter to ask for a device. In Node pass `gpu` too: dawn needs it to stay alive. */
  readonly adapter?: GpuAdapter;
  /** `navigator.gpu`, or what `create()` of the package `webgpu` returned. */
  readonly gpu?: GpuRoot;
}

export interface GpuPrepareOptions extends Omit<PrepareOptions, "activations"> {
  /** "float16": activations are stored as float16, a GPUBuffer of them holds float16; sums stay float32. Default "float32". */
  readonly activations?: Activations | "float16";
  /** Added to every row of the result: n values. */
  readonly bias?: Float32Array;
  /** Applied to the result, after the bias. */
  readonly epilogue?: Epilogue;
}

/** A prepared weight on the device. */
export interface GpuLayer extends AsyncLayer {
  /**
   * y[m, n] = x[m, k] * w^T. A GPUBuffer x holds m * k float32 (float16 where the layer's activations are), usage STORAGE.
   * @throws (rejects) LowbitError E_SHAPE, E_DISPOSED, E_DEVICE
   */
  runAsync(x: Float32Array | GpuBuffer, m: number, out?: Float32Array): Promise<Float32Array>;
  /**
   * The same, with the result left on the device: m * n float32 in `out` (usage STORAGE), or in a new buffer that belongs to the caller. The promise settles once
   * the commands are submitted; later work on the same device sees the result.
   * @throws (rejects) LowbitError E_SHAPE, E_DISPOSED, E_DEVICE
   */
  runBuffer(x: Float32Array | GpuBuffer, m: number, out?: GpuBuffer): Promise<GpuBuffer>;
}

export interface WebGpuBackend extends Backend<GpuLayer> {
  readonly device: GpuDevice;
  /** Buffers on the device that the backend made and holds, and their bytes. */
  readonly buffers: number;
  readonly bytes: number;
  /** @throws LowbitError E_UNSUPPORTED, E_SHAPE, E_DEVICE */
  prepare(w: PackedTensor, options: GpuPrepareOptions): GpuLayer;
  /** A storage buffer with these bytes, padded to 16; it belongs to the caller. */
  upload(data: ArrayBufferView): GpuBuffer;
  /** `count` float32 of a buffer with usage COPY_SRC. @throws (rejects) LowbitError E_DEVICE */
  read(buffer: GpuBuffer, count: number): Promise<Float32Array>;
  /** Frees buffers and device; layers prepared with it are disposed. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/**
 * Makes a WebGPU backend.
 * @throws (rejects) LowbitError E_DEVICE where there is no adapter or device
 * @example const backend = await webgpu();
 */
export async function webgpu(options: WebGpuOptions = {}): Promise<WebGpuBackend> {
  const { device, own } = await connect(options);
  return createWebGpu(device, { own });
}

/** A backend on a device, with limits and features that tests lower. */
export function createWebGpu(device: GpuDevice, options: RuntimeOptions): WebGpuBackend {
  const runtime = createGpuRuntime(device, options);
  const dispose = (): void => runtime.dispose();
  return {
    name: "webgpu",
    device,
    get buffers() {
      return runtime.buffers;
    },
    get bytes() {
      return runtime.bytes;
    },
    prepare: (w, given) => prepare(runtime, w, given),
    upload(data) {
      if (!runtime.live) throw disposed();
      const buffer = runtime.allocate(data.byteLength, "upload");
      runtime.surrender(buffer);
      const rest = data.byteLength % 4;
      const whole = new Uint8Array(data.byteLength + (rest === 0 ? 0 : 4 - rest));
      whole.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      runtime.write(buffer, 0, whole);
      return buffer;
    },
    async read(buffer, count) {
      if (!runtime.live) throw disposed();
      return new Float32Array(await runtime.submit("read", (job) => job.read(buffer, 0, 4 * count)));
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}

/** Rows [first, first + rows) of a weight in buffers of their own. */
interface Part {
  readonly first: number;
  readonly rows: number;
  readonly buffers: Readonly<Record<string, GpuBuffer>>;
}

/** Bytes packed before they are written to the device. */
const BATCH = 4 * 1024 * 1024;

const EPILOGUES: readonly string[] = ["relu", "gelu", "geluTanh", "silu"];

function check(w: PackedTensor, options: GpuPrepareOptions): void {
  const { activations = "float32", bias, epilogue } = options;
  if (!["float32", "float16", "int16", "int8"].includes(activations))
    throw new TypeError(`prepareMatmul activations: expected "float32", "float16", "int16" or "int8", got ${String(activations)}.`);
  if (epilogue !== undefined && !EPILOGUES.includes(epilogue))
    throw new TypeError(`prepareMatmul epilogue: expected one of ${EPILOGUES.join(", ")}, got ${String(epilogue)}.`);
  if (bias !== undefined && (!(bias instanceof Float32Array) || bias.length !== w.rows))
    throw new LowbitError("E_SHAPE", `prepareMatmul bias: expected a Float32Array of n = ${w.rows}, got ${bias?.length}.`);
}

/** Buffers for the rows of a weight, within the limits of a binding. */
function placeWeight(runtime: GpuRuntime, w: PackedTensor, plan: WeightPlan, own: GpuBuffer[]): Part[] {
  const { rows } = w;
  const per = rowBytes(plan);
  const limit = Math.min(runtime.limits.binding, runtime.limits.buffer);
  const most = Math.floor(limit / Math.max(per.w, per.scales, per.offsets));
  if (most < 1)
    throw new LowbitError(
      "E_DEVICE",
      `prepareMatmul: expected a row of at most ${limit} bytes (one binding of this device), got ${Math.max(per.w, per.scales, per.offsets)}. Split the weight along k.`,
    );
  const step = most >= GEMM_COLUMNS ? most - (most % GEMM_COLUMNS) : most;
  const pack = rowPacker(weightSource(w), plan);
  const parts: Part[] = [];
  for (let first = 0; first < rows; first += step) {
    const count = Math.min(step, rows - first);
    const buffers: Record<string, GpuBuffer> = {};
    for (const name of ["w", "scales", "offsets"] as const)
      if (per[name] > 0) own.push((buffers[name] = runtime.allocate(per[name] * count, `weight (${name})`)));
    const batch = Math.max(1, Math.floor(BATCH / per.w));
    for (let from = 0; from < count; from += batch) {
      const packed = pack(first + from, Math.min(batch, count - from));
      for (const [name, buffer] of Object.entries(buffers)) runtime.write(buffer, from * per[name as "w"], packed[name as "w"]);
    }
    parts.push({ first, rows: count, buffers });
  }
  return parts;
}

function prepare(runtime: GpuRuntime, w: PackedTensor, options: GpuPrepareOptions): GpuLayer {
  if (!runtime.live) throw disposed();
  check(w, options);
  const asked = options.activations ?? "float32";
  const { rows: n, k } = w;
  const source = weightSource(w);
  const reasons: string[] = [];
  const quantized = asked === "int8" || asked === "int16";
  const refusal = quantized ? integerRefusal(source) : null;
  if (refusal !== null) reasons.push(`no integer product (${refusal}): activations stay float32`);
  const used = refusal === null ? asked : "float32";
  const integer = used === "int8" || used === "int16" ? integerWeight(source) : null;
  const bits = used === "int8" ? 8 : used === "int16" ? 16 : null;
  const element = elementOf(w);
  const plan = integer ?? floatWeight(source, element === null ? null : decodeExpr(element));
  if (integer === null && bits !== null) reasons.push(`values of a table: activations rounded to ${used}, products in float32`);
  reasons.push(plan.reason);
  const shared = { bias: options.bias !== undefined, epilogue: options.epilogue ?? null };
  const x = integer !== null ? (used as "int8" | "int16") : used === "float16" ? "float16" : "float32";
  const base = productSpec(plan, x, { ...shared, subgroups: false });
  /** Activations as they come would do: nothing to convert, to quantize or to pad. */
  const direct = integer === null && bits === null && k === plan.chunks * CHUNK && (plan.group === 0 || plan.group === plan.span);
  const part = bits === null ? k : groupSpan(source.span, k);

  const gemv = (m: number): GemvSpec => ({
    ...base,
    subgroups: runtime.subgroups,
    m: m <= 2 ? m : 4,
    n: m === 1 ? 4 : 2,
    size: plan.chunks >= 64 ? 64 : 32,
  });
  const gemm = (m: number): GemmSpec => ({ ...base, m: m <= 16 ? 16 : 64 });
  const name = (m: number): string => {
    const asks = bits !== null && integer === null ? (used as "int8" | "int16") : base.x;
    if (m <= 4) return shaderName(gemv(m), w.format.name, "gemv", [gemv(m).m, gemv(m).n], asks);
    return shaderName(base, w.format.name, "gemm", [gemm(m).m, GEMM_COLUMNS], asks);
  };
  /** The pipeline of a product of m rows and how many workgroups a part of it takes. */
  const product = async (m: number): Promise<{ readonly pipeline: Pipeline; groups(rows: number): number }> => {
    if (m <= 4) {
      const spec = gemv(m);
      const pipeline = await runtime.pipeline("gemv", spec, () => ({ name: name(m), code: gemvShader(spec) }));
      return { pipeline, groups: (rows) => gemvGroups(spec, rows) };
    }
    const spec = gemm(m);
    const pipeline = await runtime.pipeline("gemm", spec, () => ({ name: name(m), code: gemmShader(spec) }));
    return { pipeline, groups: (rows) => gemmGroups(spec, m, rows) };
  };
  const quantizer: QuantizeSpec | null =
    bits === null ? null : { bits, output: integer === null ? "values" : "codes", group: integer === null ? 0 : plan.group };
  const quantize = (): Promise<Pipeline | null> =>
    quantizer === null
      ? Promise.resolve(null)
      : runtime.pipeline("quantize", quantizer, () => ({ name: `a${bits}_quantize_${quantizer.output}__wgsl`, code: quantizeShader(quantizer) }));
  const arrange = (given: "float32" | "float16"): Promise<Pipeline | null> => {
    const padded = integer === null && (k !== plan.chunks * CHUNK || (plan.group !== 0 && plan.group !== plan.span));
    if (integer !== null || (!padded && given === (x as string))) return Promise.resolve(null);
    const spec: LayoutSpec = { from: given, to: x as "float32" | "float16" };
    return runtime.pipeline("layout", spec, () => ({ name: `${spec.from}_layout_${spec.to}__wgsl`, code: layoutShader(spec) }));
  };

  const own: GpuBuffer[] = [];
  let parts: Part[] = [];
  let fixed: Record<string, GpuBuffer> = {};
  let live = true;
  const dispose = (): void => {
    live = false;
    for (const buffer of own.splice(0)) runtime.release(buffer);
    parts = [];
    fixed = {};
  };
  // faults of allocation reach whoever runs the layer
  const ready = runtime.guard(`prepareMatmul ${w.format.name} [${n}, ${k}]`, () => {
    try {
      parts = placeWeight(runtime, w, plan, own);
      const more: [string, Uint32Array | Float32Array | undefined | null][] = [["codebook", plan.table], ["bias", options.bias]]; // prettier-ignore
      for (const [label, data] of more) {
        if (data === null || data === undefined) continue;
        own.push((fixed[label] = runtime.allocate(data.byteLength, label)));
        runtime.write(fixed[label], 0, data);
      }
    } catch (error) {
      dispose();
      throw error;
    }
  });
  ready.catch(() => {});
