// Bulk conversion: encode, decode, pack, unpack, statistics of blocks, quantize and dequantize on the WebAssembly
// backend, against the library's own loops, the packages of npm that convert float16, and a read loop over the same
// bytes. 2^20 values; ratios are times of the other / time of the kernel.
import { Float16Array as PonyFloat16Array } from "@petamoriken/float16";
import { format, type Format, type NumberFormat } from "../formats/index.ts";
import { decodeArray, encodeArray } from "../formats/core/bulk.ts";
import { packCodes, packedBytes, packInto, unpackCodes } from "../formats/core/pack.ts";
import { nibbleTile } from "../kernels/wasm/convert/nibbles.ts";
import { dequantize, quantize, tensor, transpose, wasm } from "../src/index.ts";
import { quantizeNibbles } from "../src/tensor/quantize/nibbles.ts";
import { matrixView } from "../src/tensor/tensor.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { load } from "./peers.ts";
import { readLoop } from "./roofs.ts";

const N = 1 << 20;
const K = 4096;
const ENCODED = ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "int8", "nf4", "posit8_es2", "float16", "bfloat16", "posit16"];
const WIDTHS = [1, 3, 4, 6, 12];
const BLOCKED = ["int4_b32", "uint4_b32_zp", "mxfp4", "nvfp4", "mxfp8_e4m3", "float8_e4m3fn_row", "nf4_b64"];

/** Weights as they come: Gaussian, a few per cent wide. */
function gaussian(): Float32Array<ArrayBuffer> {
  let seed = 42;
  const uniform = (): number => (seed = (seed * 48271) % 2147483647) / 2147483647;
  return Float32Array.from({ length: N }, () => 0.05 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

interface Rate extends Row {
  /** Values per nanosecond. */
  readonly gvalues?: number;
}

export async function codec(options: {
  readonly seconds: number;
  readonly quick: boolean;
}): Promise<{ rows: Rate[]; ratios: Record<string, number>; missing: string[] }> {
  const backend = await wasm();
  const { codec: bulk } = backend;
  const rows: Rate[] = [];
  const ratios: Record<string, number> = {};
  const missing: string[] = [];
  const x = gaussian();
  const values = new Float32Array(N);
  const seconds = options.seconds / 16;

  /** Runs a group, the kernel first; notes what the others take in units of it, and how much of the roof it reaches. */
  async function group(title: string, bytes: number, contestants: readonly (readonly [name: string, run: () => unknown])[]): Promise<void> {
    const candidates: Candidate[] = contestants.map(([name, run]) => ({ name: `${title}: ${name}`, bytes, run }));
    candidates.push(readLoop(`${title}: roof, read loop`, bytes));
    const measured = await measure(candidates, seconds);
    rows.push(...measured.map((row) => ({ ...row, gvalues: N / row.cpuMs / 1e6 })));
    const [kernel, ...others] = measured;
    for (const row of others)
      if (row.name.endsWith("read loop")) ratios[`${title}: share of the read loop`] = row.cpuMs / kernel.cpuMs;
      else ratios[`${title}: speed of ${row.name.slice(title.length + 2)}`] = row.cpuMs / kernel.cpuMs;
  }

  const Native = (globalThis as { Float16Array?: new (b: ArrayBufferLike) => { set(v: ArrayLike<number>): void } & ArrayLike<number> })
    .Float16Array;
  if (Native === undefined) missing.push("the engine's Float16Array (Node 24 has it)");
  type Three = { DataUtils: { toHalfFloat(x: number): number; fromHalfFloat(h: number): number } };
  const three = await load("three").then((m) => m as unknown as Three, () => (missing.push("three (npm install in bench/peers)"), null)); // prettier-ignore

  for (const name of ENCODED) {
    const f = format(name) as NumberFormat;
    const saturate = { overflow: "saturate" } as const;
    const bytes = 4 * N + (f.bits <= 8 ? N : 2 * N);
    const codes = encodeArray(f, x, undefined, saturate);
    const halves = f.onnx === 10 ? (codes as Uint16Array<ArrayBuffer>) : null;
    const pony = halves && new PonyFloat16Array(halves.buffer);
    const native = halves && Native ? new Native(halves.buffer) : null;
    await group(`encode ${name}`, bytes, [
      ["kernel", () => bulk.encode(f, x, saturate, codes)],
      ["encodeArray", () => encodeArray(f, x, codes, saturate)],
      ...(pony ? [["@petamoriken/float16 Float16Array.set", () => pony.set(x)] as const] : []),
      ...(native ? [["engine's Float16Array.set", () => native.set(x)] as const] : []),
      ...(halves && three
        ? [["three toHalfFloat loop (truncates)", () => x.forEach((v, i) => (halves[i] = three.DataUtils.toHalfFloat(v)))] as const]
        : []),
    ]);
    encodeArray(f, x, codes, saturate);
    await group(`decode ${name}`, bytes, [
      ["kernel", () => bulk.decode(f, codes, values)],
      ["decodeArray", () => decodeArray(f, codes, values)],
      ...(pony ? [["@petamoriken/float16 Float32Array.set", () => values.set(pony)] as const] : []),
      ...(native ? [["engine's Float32Array.set", () => values.set(native)] as const] : []),
      ...(halves && three
        ? [["three fromHalfFloat loop", () => halves.forEach((h, i) => (values[i] = three.DataUtils.fromHalfFloat(h)))] as const]
        : []),
    ]);
  }
  for (const bits of WIDTHS) {
    const codes = bits <= 8 ? new Uint8Array(N) : new Uint16Array(N);
    for (let i = 0; i < N; i++) codes[i] = (i * 40503) & (2 ** bits - 1);
    const packed = packCodes(codes, bits);
    const bytes = codes.byteLength + packed.length;
    await group(`pack ${bits} bits`, bytes, [
      ["kernel", () => bulk.pack(codes, bits)],
      ["packInto", () => packInto(codes, 0, N, bits, new Uint8Array(packedBytes(N, bits)), 0)],
      ["packCodes", () => packCodes(codes, bits)],
    ]);
    await group(`unpack ${bits} bits`, bytes, [
      ["kernel", () => bulk.unpack(packed, bits, N)],
      ["unpackCodes", () => unpackCodes(packed, bits, N)],
    ]);
  }
  for (const size of [32, 128]) {
    const out = new Float32Array(N / size);
    const most = new Float32Array(N / size);
    await group(`absmax, blocks of ${size}`, 4 * N, [
      ["kernel", () => bulk.absmax(x, size, out)],
      ["plain loop", () => plainAbsmax(x, size, out)],
    ]);
    await group(`range, blocks of ${size}`, 4 * N, [
      ["kernel", () => bulk.range(x, size, out, most)],
      ["plain loop", () => plainRange(x, size, out, most)],
    ]);
  }
  for (const name of BLOCKED) {
    const f: Format = format(name);
    const t = tensor(x, [N / K, K]);
    const w = quantize(t, f);
    const bytes = 4 * N + w.codes.length;
    await group(`quantize ${name}`, bytes, [
      ["with the backend", () => quantize(t, f, { backend })],
      ["without", () => quantize(t, f)],
    ]);
    await group(`dequantize ${name}`, bytes, [
      ["with the backend", () => dequantize(w, { backend })],
      ["without", () => dequantize(w)],
    ]);
  }
  const view = matrixView(transpose(tensor(x, [1024, 1024])));
  const recipe = { version: 1, algorithm: "rtn" } as const;
  const ort = { ...(format("int4_b32") as Extract<Format, { kind: "block" }>), rangeRule: "ort" as const };
  await group("q4 codes of MatMulNBits", 4.5 * N, [
    ["kernel", () => quantizeNibbles(view, [1024, 1024], ort, recipe, nibbleTile)],
    ["plain loops", () => quantizeNibbles(view, [1024, 1024], ort, recipe)],
  ]);
  backend.dispose();
  return { rows, ratios, missing };
}

function plainAbsmax(x: Float32Array, size: number, out: Float32Array): void {
  for (let b = 0; b < out.length; b++) {
    let most = 0;
    for (let i = b * size; i < (b + 1) * size; i++) most = Math.max(most, Math.abs(x[i]));
    out[b] = most;
  }
}

function plainRange(x: Float32Array, size: number, least: Float32Array, largest: Float32Array): void {
  for (let b = 0; b < least.length; b++) {
    let [lo, hi] = [Infinity, -Infinity];
    for (let i = b * size; i < (b + 1) * size; i++) {
      lo = Math.min(lo, x[i]);
      hi = Math.max(hi, x[i]);
    }
    least[b] = lo;
    largest[b] = hi;
  }
}
