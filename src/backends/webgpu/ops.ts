// Operations of the WebGPU backend beside packed products: exact integer products, the Walsh-Hadamard transform, bulk
// decoding and encoding. All are asynchronous; arguments are checked as on the WebAssembly backend.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { decodeExpr, encodeExpr, REFUSED, type Expr } from "../../../formats/core/expr.ts";
import { codeArray, packCodes, packedBytes, unpackCodes, type Codes } from "../../../formats/core/pack.ts";
import type { EncodeOptions, NumberFormat } from "../../../formats/core/types.ts";
import { packPlanes } from "../../../kernels/planes.ts";
import type { GpuBuffer } from "../../../kernels/wgsl/api.ts";
import { CODEC_SIZE, codecShaderName, decodeShader, encodeShader, type CodecShader } from "../../../kernels/wgsl/codec.ts";
import { hadamardGroups, hadamardPasses, hadamardShader, hadamardShaderName } from "../../../kernels/wgsl/hadamard.ts";
import {
  INTEGER_COLUMNS,
  integerGroups,
  integerRows,
  integerShader,
  integerShaderName,
  integerStep,
  integerWeightWords,
  packIntegerWeight,
  type IntegerSpec,
} from "../../../kernels/wgsl/integer.ts";
import type { GpuRuntime, Pipeline } from "../../../kernels/wgsl/runtime.ts";
import { disposed } from "../layer.ts";
import { checkCodes, checkFwht, checkInteger, checkIntegerRun, checkRows, checkSizes, planeWords } from "../operations.ts";

/** Calls f with uniform buffers of the given words; they go when its promise has settled. */
async function withParams<T>(
  runtime: GpuRuntime,
  what: string,
  params: readonly (readonly number[])[],
  f: (buffers: GpuBuffer[]) => Promise<T>,
): Promise<T> {
  const buffers = params.map(() => runtime.allocate(32, `${what} (params)`, "uniform"));
  try {
    params.forEach((words, i) =>
      runtime.write(buffers[i], 0, Uint32Array.from([...words, ...new Array<number>(8 - words.length).fill(0)])),
    );
    return await f(buffers);
  } finally {
    for (const buffer of buffers) runtime.release(buffer);
  }
}

const f32 = new Float32Array(1);
const bitsOf = (value: number): number => {
  f32[0] = value;
  return new Uint32Array(f32.buffer)[0];
};

// ---- Walsh-Hadamard
// ---------------------------------------------------------------------------------------------------------------------

/** Values per submission: 16 MiB, and never above what a binding takes. */
const FWHT_VALUES = 2 ** 22;

/** Every row of n values of x, in place. @throws (rejects) LowbitError E_SHAPE, E_DEVICE, E_DISPOSED */
export async function fwht(runtime: GpuRuntime, x: Float32Array, n: number, scale: number): Promise<Float32Array> {
  if (!runtime.live) throw disposed();
  checkFwht(x, n);
  const rows = Math.floor(Math.min(FWHT_VALUES, runtime.limits.binding / 4) / n);
  if (rows === 0)
    throw new LowbitError(
      "E_DEVICE",
      `fwht: expected a device that binds rows of ${4 * n} bytes, got a limit of ${runtime.limits.binding}.`,
    );
  const passes = hadamardPasses(n);
  const pipelines: Pipeline[] = [];
  for (const { spec } of passes) {
    pipelines.push(await runtime.pipeline("hadamard", spec, () => ({ name: hadamardShaderName(spec), code: hadamardShader(spec) })));
  }
  for (let from = 0; from < x.length; from += rows * n) {
    const piece = x.subarray(from, Math.min(x.length, from + rows * n));
    const params = passes.map(({ distance }, i) => [piece.length, distance, bitsOf(i === passes.length - 1 ? scale : 1)]);
    const result = await withParams(runtime, "fwht", params, (buffers) =>
      runtime.submit("fwht", (job) => {
        const buffer = runtime.scratch("fwht", piece.byteLength);
        runtime.write(buffer, 0, piece);
        passes.forEach((pass, i) => job.dispatch(pipelines[i], { x: buffer, params: buffers[i] }, hadamardGroups(pass.spec, piece.length)));
        return job.read(buffer, 0, piece.byteLength);
      }),
    );
    piece.set(new Float32Array(result));
  }
  return x;
}

// ---- codecs
// ---------------------------------------------------------------------------------------------------------------------

/** Values per submission: whole words of codes, 16 MiB of values. */
const CODEC_VALUES = 2 ** 22;

function expression(expr: Expr | null, format: NumberFormat, what: string): Expr {
  if (expr !== null) return expr;
  throw new LowbitError(
    "E_UNSUPPORTED",
    `${what}: expected a format of at most 16 bits and a policy that is a function of the value, got ${format.name} of ${format.bits} bits. Use ${what}Array.`,
  );
}

/** Shaders by format object and policies: an expression is built once. */
const shaders = new WeakMap<NumberFormat, Map<string, CodecShader>>();
function shaderOf(format: NumberFormat, key: string, build: () => CodecShader): CodecShader {
  let own = shaders.get(format);
  if (own === undefined) shaders.set(format, (own = new Map()));
  let found = own.get(key);
  if (found === undefined) own.set(key, (found = build()));
  return found;
}

const pieceLength = (runtime: GpuRuntime): number => Math.min(CODEC_VALUES, Math.floor(runtime.limits.binding / 128) * 32);

async function codecRun(
  runtime: GpuRuntime,
  op: "decode" | "encode",
  format: NumberFormat,
  shader: CodecShader,
  input: Uint8Array | Float32Array,
  inputName: "codes" | "values",
  count: number,
  groups: number,
  outBytes: number,
): Promise<{ data: ArrayBuffer; refused: number }> {
  const pipeline = await runtime.pipeline("codec", { code: shader.code }, () => ({
    name: codecShaderName(op, format.name),
    code: shader.code,
  }));
  return withParams(runtime, op, [[count]], async ([params]) =>
    runtime.submit(op, (job) => {
      // bindings are whole words
      const bytes = Math.ceil(input.byteLength / 4) * 4;
      const source = runtime.scratch(`${op} ${inputName}`, bytes);
      const target = runtime.scratch(`${op} result`, outBytes);
      const refused = runtime.scratch("refused", 16);
      runtime.write(refused, 0, Uint32Array.of(REFUSED));
      if (input.byteLength % 4 === 0) runtime.write(source, 0, input);
      else {
        const whole = new Uint8Array(bytes);
        whole.set(input as Uint8Array);
        runtime.write(source, 0, whole);
      }
      const bindings: Record<string, GpuBuffer> = {
        params,
        refused,
        [inputName]: source,
        [inputName === "codes" ? "values" : "codes"]: target,
      };
      if (shader.tables.length > 0) {
        bindings.tables = runtime.scratch("codec tables", shader.tables.byteLength);
        runtime.write(bindings.tables, 0, shader.tables);
      }
      job.dispatch(pipeline, bindings, Math.ceil(groups / CODEC_SIZE));
      const data = job.read(target, 0, outBytes);
      const status = job.read(refused, 0, 4);
      return Promise.all([data, status]).then(([d, s]) => ({ data: d, refused: new Uint32Array(s)[0] }));
    }),
  );
}

/**
 * The float32 values of codes, as `decodeArray`. @throws (rejects) LowbitError E_UNSUPPORTED above 16 bits, E_SHAPE,
 * E_DEVICE, E_DISPOSED
 */
export async function decode(
  runtime: GpuRuntime,
  format: NumberFormat,
  codes: Codes,
  out: Float32Array = new Float32Array(codes.length),
): Promise<Float32Array> {
  if (!runtime.live) throw disposed();
  if (out.length < codes.length)
    throw new LowbitError("E_SHAPE", `decode out: expected room for ${codes.length} values, got ${out.length}.`);
  const shader = shaderOf(format, "decode", () => decodeShader(format.bits, expression(decodeExpr(format), format, "decode")));
  const most = pieceLength(runtime);
  for (let from = 0; from < codes.length; from += most) {
    const piece = codes.subarray(from, Math.min(codes.length, from + most));
    const { data } = await codecRun(
      runtime,
      "decode",
      format,
      shader,
      packCodes(piece, format.bits),
      "codes",
      piece.length,
      piece.length,
      4 * piece.length,
    );
    out.set(new Float32Array(data), from);
  }
  return out;
}

/**
 * The codes of float32 values, as `encodeArray` under the same policies.
 * @throws (rejects) LowbitError E_VALUE for a value that they refuse, E_UNSUPPORTED above 16 bits and for stochastic
 * rounding, E_SHAPE, E_DEVICE, E_DISPOSED
 */
export async function encode(
  runtime: GpuRuntime,
  format: NumberFormat,
  values: Float32Array,
  options: EncodeOptions = {},
  out: Codes = codeArray(format.bits, values.length),
): Promise<Codes> {
  if (!runtime.live) throw disposed();
  if (!(values instanceof Float32Array)) throw new TypeError("encode values: expected a Float32Array.");
  const key = `encode ${options.rounding},${options.overflow},${options.infinity},${options.nan}`;
  const shader = shaderOf(format, key, () => encodeShader(format.bits, expression(encodeExpr(format, options), format, "encode")));
  if (out.length < values.length || out.BYTES_PER_ELEMENT * 8 < format.bits)
    throw new LowbitError("E_SHAPE", `encode out: expected room for ${values.length} codes of ${format.bits} bits, got ${out.length}.`);
  const most = pieceLength(runtime);
  for (let from = 0; from < values.length; from += most) {
    const piece = values.subarray(from, Math.min(values.length, from + most));
    const bytes = packedBytes(piece.length, format.bits);
    const words = Math.ceil(bytes / 4);
    const { data, refused } = await codecRun(runtime, "encode", format, shader, piece, "values", piece.length, words, 4 * words);
    // the array encoder words the error, with the index
    if (refused !== REFUSED) encodeArray(format, values.subarray(0, from + refused + 1), undefined, options);
    out.set(unpackCodes(new Uint8Array(data, 0, bytes), format.bits, piece.length), from);
  }
  return out;
}

// ---- integer products
// ---------------------------------------------------------------------------------------------------------------------

/** A weight [n, k] of integers on the device: exact products, sums wrap at 32 bits. */
interface IntegerWeight {
  /** `a`: [row][vector][plane] of vec4u; `planes` of a and of the weight; rowTerms: one word per row. */
  run(
    spec: IntegerSpec,
    a: Uint8Array,
    m: number,
    planes: readonly [number, number],
    slope: number,
    rowTerms: Int32Array,
    columnTerms: Int32Array,
    out: Int32Array,
  ): Promise<Int32Array>;
  dispose(): void;
}

async function integerWeight(
  runtime: GpuRuntime,
  what: string,
  word: (row: number, at: number) => number,
  n: number,
  k: number,
  layout: { readonly kind: IntegerSpec["kind"]; readonly bits: number },
): Promise<IntegerWeight> {
  const bytesOf = (rows: number): number => 4 * integerWeightWords(rows, k, layout.kind, layout.bits);
  const perBlock = bytesOf(INTEGER_COLUMNS);
  const blocks = Math.floor(runtime.limits.binding / perBlock);
  if (blocks === 0)
    throw new LowbitError(
      "E_DEVICE",
      `${what}: expected a device that binds ${perBlock} bytes, got a limit of ${runtime.limits.binding}. Split k.`,
    );
  // above the limit of a binding a weight is several, by rows of W
  const parts: { from: number; count: number; buffer: GpuBuffer }[] = [];
  const dispose = (): void => {
    for (const { buffer } of parts) runtime.release(buffer);
    parts.length = 0;
  };
  try {
    for (let from = 0; from < n; from += blocks * INTEGER_COLUMNS) {
      const count = Math.min(n - from, blocks * INTEGER_COLUMNS);
      const packed = new Uint32Array(bytesOf(count) / 4);
      packIntegerWeight((row, at) => word(from + row, at), count, k, layout, packed);
      await runtime.guard(what, () => {
        const buffer = runtime.allocate(packed.byteLength, what);
        parts.push({ from, count, buffer });
        runtime.write(buffer, 0, packed);
      });
    }
  } catch (error) {
    dispose();
    throw error;
  }
  const vectors = Math.ceil(k / integerStep(layout.kind));
  return {
    dispose,
    async run(spec, a, m, [p, q], slope, rowTerms, columnTerms, out) {
      const pipeline = await runtime.pipeline("integer", spec, () => ({ name: integerShaderName(spec), code: integerShader(spec) }));
      const widest = Math.max(...parts.map((p) => p.count));
      const rowBytes = a.length / m;
      // rows at once: what bindings of x and y take
      const most = Math.floor(Math.min(runtime.limits.binding, 2 ** 26) / Math.max(rowBytes, 4 * widest));
      if (most === 0)
        throw new LowbitError("E_DEVICE", `${what}: expected a device that binds a row, got a limit of ${runtime.limits.binding}.`);
      for (let top = 0; top < m; top += most) {
        const rows = Math.min(most, m - top);
        for (const { from, count, buffer } of parts) {
          const stride = Math.ceil(count / INTEGER_COLUMNS) * INTEGER_COLUMNS;
          const result = await withParams(runtime, what, [[rows, count, stride, vectors, slope >>> 0, p, q]], ([params]) =>
            runtime.submit(what, (job) => {
              const x = runtime.scratch("integer a", rows * rowBytes);
              const y = runtime.scratch("integer y", 4 * rows * count);
              const [own, columns] = [runtime.scratch("row terms", 4 * rows), runtime.scratch("column terms", 4 * count)];
              runtime.write(x, 0, a.subarray(top * rowBytes, (top + rows) * rowBytes));
              runtime.write(own, 0, rowTerms.subarray(top, top + rows));
              runtime.write(columns, 0, columnTerms.subarray(from, from + count));
              job.dispatch(
                pipeline,
                { params, a: x, w: buffer, rowTerms: own, columnTerms: columns, y },
                integerGroups(spec, rows, stride),
              );
              return job.read(y, 0, 4 * rows * count);
            }),
          );
          const values = new Int32Array(result);
          for (let r = 0; r < rows; r++) out.set(values.subarray(r * count, (r + 1) * count), (top + r) * n + from);
        }
      }
      return out;
    },
  };
}

/** A weight [n, k] of small words as bit planes on the device. */
export interface GpuBitplaneLayer {
  readonly n: number;
  readonly k: number;
  /**
   * y[m, n] = a[m, k] * w^T on the integer values of the codes; sums wrap at 32 bits.
   * @param a codes of `format`, m * k
   * @throws (rejects) LowbitError E_SHAPE, E_UNSUPPORTED, E_DEVICE, E_DISPOSED
   */
  runAsync(a: ArrayLike<number>, m: number, format: NumberFormat, out?: Int32Array): Promise<Int32Array>;
  dispose(): void;
  [Symbol.dispose](): void;
}

/** @throws (rejects) LowbitError E_SHAPE, E_UNSUPPORTED, E_DEVICE, E_DISPOSED */
export async function prepareBitplanes(
  runtime: GpuRuntime,
  codes: ArrayLike<number>,
  n: number,
  k: number,
  format: NumberFormat,
): Promise<GpuBitplaneLayer> {
  if (!runtime.live) throw disposed();
  checkSizes(n, k, "prepareBitplanes");
  const weight = planeWords(format, "prepareBitplanes format");
  checkCodes(codes, n * k, weight.bits, "prepareBitplanes codes");
  const sums = new Int32Array(n);
  for (let r = 0; r < n; r++) for (let i = 0; i < k; i++) sums[r] += codes[r * k + i] ^ weight.flip;
  const device = await integerWeight(runtime, "bit planes", (r, i) => codes[r * k + i] ^ weight.flip, n, k, {
    kind: "planes",
    bits: weight.bits,
  });
  let live = true;
  const dispose = (): void => {
    live = false;
    device.dispose();
  };
  return {
    n,
    k,
    async runAsync(a, m, activationFormat, out = new Int32Array(m * n)) {
      if (!live || !runtime.live) throw disposed();
      const activation = planeWords(activationFormat, "run format");
      checkRows(m, out.length, m * n);
      checkCodes(a, m * k, activation.bits, "run a");
      const packed = new Uint8Array(m * Math.ceil(k / 128) * 16 * activation.bits);
      const rowSums = packPlanes(a, m, k, activation, packed);
      // (sa ua + ba)(sw uw + bw) summed over k
      const constant = Math.imul(Math.imul(activation.base, weight.base), k);
      const rowTerms = rowSums.map((s) => Math.imul(Math.imul(activation.slope, weight.base), s) + constant);
      const columnTerms = sums.map((s) => Math.imul(Math.imul(weight.slope, activation.base), s));
      const spec = { kind: "planes", single: activation.bits * weight.bits === 1, rows: integerRows(m) } as const;
      return device.run(
        spec,
        packed,
        m,
        [activation.bits, weight.bits],
        Math.imul(activation.slope, weight.slope),
        rowTerms,
        columnTerms,
        out,
      );
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}

/** An int8 weight [n, k] on the device. */
export interface GpuIntegerLayer {
  readonly n: number;
  readonly k: number;
  /**
   * y[m, n] = a[m, k] * w^T in int32; sums wrap at 32 bits.
   * @throws (rejects) LowbitError E_SHAPE, E_DEVICE, E_DISPOSED
   */
  runAsync(a: Int8Array | Uint8Array, m: number, out?: Int32Array): Promise<Int32Array>;
  dispose(): void;
  [Symbol.dispose](): void;
}

/** @throws (rejects) LowbitError E_SHAPE, E_DEVICE, E_DISPOSED */
export async function prepareInteger(runtime: GpuRuntime, w: Int8Array, n: number, k: number): Promise<GpuIntegerLayer> {
  if (!runtime.live) throw disposed();
  checkInteger(w, n, k);
  const sums = new Int32Array(n);
  for (let r = 0; r < n; r++) for (let i = 0; i < k; i++) sums[r] += w[r * k + i];
  const device = await integerWeight(runtime, "int8 weight", (r, i) => w[r * k + i], n, k, { kind: "bytes", bits: 8 });
  const none = new Int32Array(n);
  let live = true;
  const dispose = (): void => {
    live = false;
    device.dispose();
  };
  return {
    n,
    k,
    async runAsync(a, m, out = new Int32Array(m * n)) {
      if (!live || !runtime.live) throw disposed();
      checkIntegerRun(a, m, n, k, out);
      // uint8 is int8 + 128 with the top bit flipped: the 128 goes into the columns
      const unsigned = a instanceof Uint8Array;
      const rowBytes = Math.ceil(k / 16) * 16;
      const packed = new Uint8Array(m * rowBytes);
      for (let r = 0; r < m; r++) for (let i = 0; i < k; i++) packed[r * rowBytes + i] = unsigned ? a[r * k + i] ^ 128 : a[r * k + i];
      const columnTerms = unsigned ? sums.map((s) => Math.imul(128, s)) : none;
      return device.run({ kind: "bytes", rows: integerRows(m) }, packed, m, [1, 1], 1, new Int32Array(m), columnTerms, out);
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
