// lowbit/webgpu: the WebGPU backend. The same packed tensors and the same calls as on WebAssembly, with kernels printed
// in WGSL; inputs and results may stay on the device. In Node it takes the optional package `webgpu` (dawn). Device
// limits are kept: large weights are split by rows, large activations too.
import { decodeExpr } from "../../../formats/core/expr.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { elementOf } from "../../../formats/core/packed.ts";
import type { Codes } from "../../../formats/core/pack.ts";
import type { EncodeOptions, NumberFormat, PackedTensor } from "../../../formats/core/types.ts";
import { ACTIVATION_BITS, groupSpan, integerRefusal } from "../../../kernels/activations.ts";
import { activationGroups, layoutShader, quantizeShader, type LayoutSpec, type QuantizeSpec } from "../../../kernels/wgsl/activations.ts";
import { STORAGE, type GpuAdapter, type GpuBinding, type GpuBuffer, type GpuDevice, type GpuRoot } from "../../../kernels/wgsl/api.ts";
import { GEMM_COLUMNS, gemmGroups, gemmShader, type GemmSpec } from "../../../kernels/wgsl/gemm.ts";
import { gemvGroups, gemvRows, gemvShader, type GemvSpec } from "../../../kernels/wgsl/gemv.ts";
import { PARAMS, productSpec, shaderName, type Epilogue } from "../../../kernels/wgsl/product.ts";
import { createGpuRuntime, type GpuRuntime, type Job, type Pipeline, type RuntimeOptions } from "../../../kernels/wgsl/runtime.ts";
import { CHUNK, floatWeight, integerWeight, rowBytes, rowPacker, type WeightPlan } from "../../../kernels/wgsl/weight.ts";
import { checkActivations, checkOutput, disposed } from "../layer.ts";
import { weightSource } from "../source.ts";
import type { Activations, AsyncLayer, Backend, PrepareOptions } from "../types.ts";
import { connect } from "./device.ts";
import { placeLayer, shareRuntime } from "./door.ts";
import { decode, encode, fwht, prepareBitplanes, prepareInteger, type GpuBitplaneLayer, type GpuIntegerLayer } from "./ops.ts";

export type { GpuAdapter, GpuBuffer, GpuDevice, GpuRoot } from "../../../kernels/wgsl/api.ts";
export type { Epilogue } from "../../../kernels/wgsl/product.ts";
export type { GpuBitplaneLayer, GpuIntegerLayer } from "./ops.ts";

/**
 * GPUBuffer and GPUDevice where the platform's types are known (@webgpu/types, or lib.dom), else what the library uses
 * of them.
 */
export type DeviceBuffer = typeof globalThis extends { GPUBuffer: { prototype: infer B extends GpuBuffer } } ? B : GpuBuffer;
/** GPUDevice where the types of WebGPU are there, else what is used of it. */
export type Device = typeof globalThis extends { GPUDevice: { prototype: infer D extends GpuDevice } } ? D : GpuDevice;

/** A device or adapter of one's own, and limits of memory. */
export interface WebGpuOptions {
  /** A device of your own; it is not destroyed with the backend. */
  readonly device?: GpuDevice;
  /** An adapter to ask for a device. In Node pass `gpu` too: dawn needs it to stay alive. */
  readonly adapter?: GpuAdapter;
  /** `navigator.gpu`, or what `create()` of the package `webgpu` returned. */
  readonly gpu?: GpuRoot;
}

/** How a packed weight is prepared on the device. */
export interface GpuPrepareOptions extends Omit<PrepareOptions, "activations"> {
  /**
   * "float16": activations are stored as float16, a GPUBuffer of them holds float16; sums stay float32. Default
   * "float32".
   */
  readonly activations?: Activations | "float16";
  /** Added to every row of the result: n values. */
  readonly bias?: Float32Array;
  /** Applied to the result, after the bias. */
  readonly epilogue?: Epilogue;
}

/** A prepared weight on the device. */
export interface GpuLayer extends AsyncLayer {
  /**
   * y[m, n] = x[m, k] * w^T. A GPUBuffer x holds m * k float32 (float16 where the layer's activations are), usage
   * STORAGE.
   * @throws (rejects) LowbitError E_SHAPE, E_DISPOSED, E_DEVICE
   */
  runAsync(x: Float32Array | GpuBuffer, m: number, out?: Float32Array): Promise<Float32Array>;
  /**
   * The same, with the result left on the device: m * n float32 in `out` (usage STORAGE), or in a new buffer that
   * belongs to the caller. The promise settles once the commands are submitted; later work on the same device sees the
   * result.
   * @throws (rejects) LowbitError E_SHAPE, E_DISPOSED, E_DEVICE
   */
  runBuffer(x: Float32Array | GpuBuffer, m: number, out?: GpuBuffer): Promise<DeviceBuffer>;
}

/** The WebGPU backend: see `webgpu`. Calls are asynchronous, data may stay on the device. */
export interface WebGpuBackend extends Backend<GpuLayer, GpuPrepareOptions> {
  readonly device: Device;
  /** Buffers on the device that the backend made and holds, and their bytes. */
  readonly buffers: number;
  readonly bytes: number;
  /** A storage buffer with these bytes, padded to 16; it belongs to the caller. */
  upload(data: ArrayBufferView): DeviceBuffer;
  /** `count` float32 of a buffer with usage COPY_SRC. @throws (rejects) LowbitError E_DEVICE */
  read(buffer: GpuBuffer, count: number): Promise<Float32Array>;
  /**
   * An int8 weight [n, k] for exact products with int8 or uint8 activations.
   * @throws (rejects) LowbitError E_SHAPE, E_DEVICE
   */
  prepareInteger(w: Int8Array, n: number, k: number): Promise<GpuIntegerLayer>;
  /**
   * A weight [n, k] given by codes of a small integer or bipolar format, as bit planes: exact products with codes of
   * any such format.
   * @throws (rejects) LowbitError E_SHAPE, E_UNSUPPORTED, E_DEVICE
   */
  prepareBitplanes(codes: ArrayLike<number>, n: number, k: number, format: NumberFormat): Promise<GpuBitplaneLayer>;
  /**
   * Fast Walsh-Hadamard transform (Sylvester order) of every row of n = 2^p values of x, in place; multiplied by
   * `scale`, default 1 / sqrt(n), with which it is its own inverse. @throws (rejects) LowbitError E_SHAPE, E_DEVICE
   */
  fwht(x: Float32Array, n: number, scale?: number): Promise<Float32Array>;
  /**
   * Values of all codes of a format of at most 16 bits.
   * @throws (rejects) LowbitError E_UNSUPPORTED, E_SHAPE, E_DEVICE; RangeError
   */
  decode(format: NumberFormat, codes: Codes, out?: Float32Array): Promise<Float32Array>;
  /**
   * Codes of all values in a format of at most 16 bits.
   * @throws (rejects) LowbitError E_UNSUPPORTED, E_VALUE, E_SHAPE, E_DEVICE
   */
  encode(format: NumberFormat, values: Float32Array, options?: EncodeOptions, out?: Codes): Promise<Codes>;
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

/**
 * A backend on a device, with limits and features that tests lower.
 * @example
 * const backend = createWebGpu(device, { own: false, features: { subgroups: false } }); // a GPUDevice that you keep
 */
export function createWebGpu(device: GpuDevice, options: RuntimeOptions): WebGpuBackend {
  const runtime = createGpuRuntime(device, options);
  const dispose = (): void => runtime.dispose();
  const backend: WebGpuBackend = {
    name: "webgpu",
    device: device as Device,
    get buffers() {
      return runtime.buffers;
    },
    get bytes() {
      return runtime.bytes;
    },
    prepare: (w, given) => prepare(runtime, w, given),
    upload(data) {
      if (!runtime.live) throw disposed();
      const buffer = runtime.give(data.byteLength, "upload");
      const rest = data.byteLength % 4;
      const whole = new Uint8Array(data.byteLength + (rest === 0 ? 0 : 4 - rest));
      whole.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      runtime.write(buffer, 0, whole);
      return buffer as DeviceBuffer;
    },
    async read(buffer, count) {
      if (!runtime.live) throw disposed();
      return new Float32Array(await runtime.submit("read", (job) => job.read(buffer, 0, 4 * count)));
    },
    prepareInteger: (w, n, k) => prepareInteger(runtime, w, n, k),
    prepareBitplanes: (codes, n, k, format) => prepareBitplanes(runtime, codes, n, k, format),
    fwht: (x, n, scale = 1 / Math.sqrt(n)) => fwht(runtime, x, n, scale),
    decode: (format, codes, out) => decode(runtime, format, codes, out),
    encode: (format, values, encodeOptions, out) => encode(runtime, format, values, encodeOptions, out),
    dispose,
    [Symbol.dispose]: dispose,
  };
  shareRuntime(backend, runtime);
  return backend;
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
  if (activations !== "float32" && activations !== "float16" && !ACTIVATION_BITS.has(activations))
    throw new TypeError(
      `prepareMatmul activations: expected "float32", "float16", "int16", "int8", "int6" or "int4", got ${String(activations)}.`,
    );
  for (const name of ["hadamard", "mixed"] as const)
    if (options[name] !== undefined)
      throw new LowbitError("E_UNSUPPORTED", `prepareMatmul ${name}: expected none on WebGPU, got one. Use backend: await wasm().`);
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
  const quantized = ACTIVATION_BITS.has(asked);
  const refusal = quantized ? integerRefusal(source) : null;
  if (refusal !== null) reasons.push(`no integer product (${refusal}): activations stay float32`);
  const used = refusal === null ? asked : "float32";
  const bits = ACTIVATION_BITS.get(used) ?? null;
  const integer = bits === null ? null : integerWeight(source);
  const element = elementOf(w);
  const plan = integer ?? floatWeight(source, element === null ? null : decodeExpr(element));
  if (integer === null && bits !== null) reasons.push(`values of a table: activations rounded to ${used}, products in float32`);
  reasons.push(...(source.note === undefined || plan.bits === 32 ? [] : [source.note]), plan.reason);
  const shared = { bias: options.bias !== undefined, epilogue: options.epilogue ?? null };
  // codes of fewer bits are bytes too
  const x = integer !== null ? (bits === 16 ? "int16" : "int8") : used === "float16" ? "float16" : "float32";
  const base = productSpec(plan, x, { ...shared, subgroups: false });
  const part = bits === null ? k : groupSpan(source.span, k);

  const gemv = (m: number): GemvSpec => ({
    ...base,
    subgroups: runtime.subgroups,
    m: m <= 2 ? m : 4,
    n: gemvRows(base, m),
    size: plan.chunks >= 64 ? 64 : 32,
  });
  const gemm = (m: number): GemmSpec => ({ ...base, m: m <= 16 ? 16 : 64 });
  const name = (m: number): string => {
    const asks = bits !== null ? used : base.x;
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
    bits === null ? null : { bits, output: integer === null ? "values" : "codes", unit: integer === null ? 0 : base.group };
  const quantize = (): Promise<Pipeline | null> =>
    quantizer === null
      ? Promise.resolve(null)
      : runtime.pipeline("quantize", quantizer, () => ({
          name: `a${bits}_quantize_${quantizer.output}${quantizer.output === "codes" ? quantizer.unit : ""}__wgsl`,
          code: quantizeShader(quantizer),
        }));
  const arrange = (given: "float32" | "float16"): Promise<Pipeline | null> => {
    const padded = integer === null && (k !== plan.chunks * CHUNK || (plan.group !== 0 && plan.group !== plan.span));
    if (integer !== null || (!padded && given === (x as string))) return Promise.resolve(null);
    const spec: LayoutSpec = { from: given, to: x as "float32" | "float16" };
    return runtime.pipeline("layout", spec, () => ({ name: `${spec.from}_layout_${spec.to}__wgsl`, code: layoutShader(spec) }));
  };

  const own: GpuBuffer[] = [];
  const fixed: Record<string, GpuBuffer> = {};
  let parts: Part[] = [];
  let live = true;
  const dispose = (): void => {
    live = false;
    for (const buffer of own.splice(0)) runtime.release(buffer);
  };
  let refused: unknown = null;
  // faults that the device finds later reach whoever runs the layer
  const ready = runtime.guard(`prepareMatmul ${w.format.name} [${n}, ${k}]`, () => {
    try {
      parts = placeWeight(runtime, w, plan, own);
      for (const [label, data] of Object.entries({ codebook: plan.table, bias: options.bias })) {
        if (data === null || data === undefined) continue;
        own.push((fixed[label] = runtime.allocate(data.byteLength, label)));
        runtime.write(fixed[label], 0, data);
      }
    } catch (error) {
      refused = error;
      dispose();
    }
  });
  ready.catch(() => {});
  if (refused !== null) throw refused;

  /** Rows of x and y that one pass takes: bindings within limits, at offsets that the device allows. */
  const slab = (m: number, xRow: number): number => {
    const rowBytes = Math.max(4 * n, xRow, 4 * plan.chunks * CHUNK);
    const most = Math.floor(Math.min(runtime.limits.binding, runtime.limits.buffer) / rowBytes);
    if (most >= m) return m;
    const unit = runtime.limits.alignment / (used === "float16" ? 2 : 4);
    if (most < unit)
      throw new LowbitError("E_DEVICE", `run: expected ${unit} rows within ${runtime.limits.binding} bytes (one binding of this device), got ${rowBytes} bytes a row. Run fewer rows at once.`); // prettier-ignore
    return most - (most % unit);
  };

  /** Everything that must be waited for before commands are recorded. */
  const compile = async (m: number, rows: number, given: "float32" | "float16") => {
    await ready;
    const last = m % rows === 0 ? rows : m % rows;
    const [quantizing, arranging, full, rest] = await Promise.all([quantize(), arrange(given), product(rows), product(last)]);
    return { quantizing, arranging, product: (count: number) => (count === rows ? full : rest) };
  };
  type Compiled = Awaited<ReturnType<typeof compile>>;

  /** Records the product of m rows of x in `from` into `to`. */
  const record = (job: Job, compiled: Compiled, from: GpuBuffer, xRow: number, to: GpuBuffer, m: number, rows: number): void => {
    const slabs = Math.ceil(m / rows);
    const width = plan.chunks * CHUNK;
    for (let s = 0; s < slabs; s++) {
      const top = s * rows;
      const count = Math.min(rows, m - top);
      const uniforms = parts.map((p) => {
        const values = { m: count, rows: p.rows, chunks: plan.chunks, groups: plan.groups, columns: n, column: p.first, k, span: plan.span, group: plan.group === 0 ? width : plan.group, per: plan.group === 0 ? plan.chunks : Math.ceil(plan.group / CHUNK), part, zero: 0 }; // prettier-ignore
        const words = Uint32Array.from(PARAMS, (key) => values[key]);
        new Float32Array(words.buffer)[PARAMS.indexOf("zero")] = plan.shift;
        return job.uniform(words);
      });
      let input: GpuBuffer | GpuBinding = { buffer: from, offset: top * xRow, size: Math.ceil((count * xRow) / 4) * 4 };
      let facts: GpuBuffer | null = null;
      if (compiled.quantizing !== null) {
        const groups = integer === null ? Math.ceil(k / part) : plan.groups;
        const bytes = integer === null ? count * k * 4 : count * width * (bits === 16 ? 2 : 1);
        const codes = runtime.scratch("codes", bytes);
        facts = runtime.scratch("facts", integer === null ? 16 : count * Math.max(plan.groups, plan.chunks) * 8);
        job.dispatch(compiled.quantizing, { params: uniforms[0], x: input, codes, values: codes, facts }, activationGroups(count * groups));
        input = { buffer: codes, offset: 0, size: Math.ceil(bytes / 16) * 16 };
      }
      if (compiled.arranging !== null) {
        const bytes = count * width * (x === "float16" ? 2 : 4);
        const values = runtime.scratch("x", bytes);
        job.dispatch(compiled.arranging, { params: uniforms[0], x: input, values }, activationGroups((count * width) / 4));
        input = { buffer: values, offset: 0, size: bytes };
      }
      const y = { buffer: to, offset: top * n * 4, size: count * n * 4 };
      const { pipeline, groups } = compiled.product(count);
      parts.forEach((p, i) =>
        job.dispatch(
          pipeline,
          { params: uniforms[i], x: input, ...(facts === null ? {} : { facts }), ...p.buffers, ...fixed, y },
          groups(p.rows),
        ),
      );
    }
  };

  const alive = (): void => {
    if (!live || !runtime.live) throw disposed();
  };
  /** x on the device: uploaded, or the caller's. */
  const place = (given: Float32Array | GpuBuffer): GpuBuffer => {
    if (!(given instanceof Float32Array)) return given;
    const buffer = runtime.scratch("input", given.byteLength);
    runtime.write(buffer, 0, given);
    return buffer;
  };
  const checkInput = (given: Float32Array | GpuBuffer, m: number): { readonly type: "float32" | "float16"; readonly row: number } => {
    alive();
    if (given instanceof Float32Array) {
      checkActivations(given, m, k);
      return { type: "float32", row: 4 * k };
    }
    if (!isBuffer(given)) throw new TypeError("run x: expected a Float32Array or a GPUBuffer of activations [m, k].");
    if (!Number.isSafeInteger(m) || m < 1) throw new LowbitError("E_SHAPE", `run m: expected a positive number of rows, got ${m}.`);
    const type = used === "float16" ? "float16" : "float32";
    const row = k * (type === "float16" ? 2 : 4);
    checkBuffer(given, m * row, `run x: expected a GPUBuffer of ${m} x ${k} ${type}`);
    return { type, row };
  };

  const layer: GpuLayer = {
    n,
    k,
    async runAsync(given, m, out) {
      const { type, row } = checkInput(given, m);
      checkOutput(out, m, n);
      const rows = slab(m, row);
      const compiled = await compile(m, rows, type);
      alive();
      const result = await runtime.submit(name(m), (job) => {
        const y = runtime.scratch("y", 4 * m * n);
        record(job, compiled, place(given), row, y, m, rows);
        return job.read(y, 0, 4 * m * n);
      });
      const y = new Float32Array(result);
      if (out === undefined) return y;
      out.set(y);
      return out;
    },
    async runBuffer(given, m, out) {
      const { type, row } = checkInput(given, m);
      if (out !== undefined) {
        if (!isBuffer(out)) throw new TypeError("run out: expected a GPUBuffer.");
        checkBuffer(out, 4 * m * n, `run out: expected a GPUBuffer of ${m} x ${n} float32`);
      }
      const rows = slab(m, row);
      const compiled = await compile(m, rows, type);
      alive();
      let made: GpuBuffer | null = null;
      try {
        return await runtime.submit(name(m), (job) => {
          const y = out ?? (made = runtime.give(4 * m * n, "result"));
          record(job, compiled, place(given), row, y, m, rows);
          return y as DeviceBuffer;
        });
      } catch (error) {
        (made as GpuBuffer | null)?.destroy();
        throw error;
      }
    },
    explain: () => ({
      backend: "webgpu",
      kernel: name(1),
      activations: used,
      reasons: [
        ...reasons,
        ...(parts.length > 1 ? [`${parts.length} parts of rows: one binding of this device sees ${runtime.limits.binding} bytes`] : []),
        `rows of activations at once: ${name(1)} for one, ${name(64)} for many`,
      ],
    }),
    dispose,
    [Symbol.dispose]: dispose,
  };
  placeLayer(layer, {
    async ready(m) {
      alive();
      const rows = slab(m, 4 * k);
      const compiled = await compile(m, rows, "float32");
      return (job, from, to) => {
        alive();
        record(job, compiled, from, 4 * k, to, m, rows);
      };
    },
  });
  return layer;
}

const isBuffer = (value: unknown): value is GpuBuffer =>
  typeof value === "object" &&
  value !== null &&
  typeof (value as GpuBuffer).mapAsync === "function" &&
  typeof (value as GpuBuffer).size === "number";

function checkBuffer(buffer: GpuBuffer, bytes: number, what: string): void {
  const whole = Math.ceil(bytes / 4) * 4;
  if (buffer.size < whole) throw new LowbitError("E_SHAPE", `${what} = ${whole} bytes, got ${buffer.size}.`);
  if ((buffer.usage & STORAGE) === 0) throw new LowbitError("E_SHAPE", `${what} with usage STORAGE, got usage ${buffer.usage}.`);
}
