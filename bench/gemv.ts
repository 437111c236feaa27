// GEMV: one row of activations, N = K = 4096, block 32 unless the format says otherwise. Weights in the last-level
// cache, and from memory (eight weights in turn). Ratios to onnxruntime-node MatMulNBits (accuracy level 4: int8, 0:
// float32), onnxruntime-web and a read loop of the same run.
import { format, type BlockFormat } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type Activations, type SyncLayer } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { matMulNBits, onnxruntime, optional } from "./peers.ts";
import { readLoop, threadRoofs } from "./roofs.ts";

const N = 4096;
const K = 4096;

const noise = (n: number, seed: number): Float32Array => {
  let s = seed >>> 0;
  const next = (): number => (s = (Math.imul(s, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return Float32Array.from({ length: n }, () => next() + next() + next() + next() - 2);
};

function blockFormat(name: string): BlockFormat {
  return format(name) as BlockFormat;
}

export async function gemv(options: { readonly seconds: number; readonly quick: boolean }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const missing: string[] = [];
  const backend = await wasm();
  const two = await optional("2 threads", () => wasm({ threads: 2 }), missing);
  const x = noise(K, 1);
  const data = noise(N * K, 2).map((v) => v * 0.05);
  const weights = tensor(data, [N, K]);
  const ops = 2 * N * K;
  const layers = new Map<string, SyncLayer>();
  const cases: [string, string, Activations, ("int8" | undefined)?][] = [
    ["int4 a8", "int4_b32", "int8"], ["int4 a16", "int4_b32", "int16"], ["int4 f32", "int4_b32", "float32"], ["int2 a8", "int2_b32", "int8"],
    ["int3 a8", "int3_b32", "int8"], ["int5 a8", "int5_b32", "int8"], ["int6 a8", "int6_b32", "int8"], ["int8 a8", "int8_b32", "int8"],
    ["uint4 zero points a8", "uint4_b32_zp", "int8"], ["float4 a8", "float4_e2m1fn_b32", "int8"], ["mxfp4 a8", "float4_e2m1fn_b32_float8_e8m0fnu", "int8"],
    ["nvfp4 a8", "float4_e2m1fn_b16", "int8"], ["iq4_nl a8", "iq4_nl_b32", "int8"], ["nf4 a8", "nf4_b32", "int8"], ["nf4 a8 int8 table", "nf4_b32", "int8", "int8"],
    ["nf4 f32", "nf4_b32", "float32"], ["float8 f32", "float8_e4m3fn_b32", "float32"], ["posit8 f32", "posit8_es2_b32", "float32"],
    ["bfloat16 f32", "bfloat16", "float32"], ["float32", "float32", "float32"],
  ]; // prettier-ignore
  const candidates: Candidate[] = [];
  const y = new Float32Array(N);
  for (const [name, formatName, activations, codebook] of cases) {
    const f = format(formatName);
    const w = quantize(weights, f);
    const layer = prepareMatmul(w, { backend, activations, codebook: codebook ?? "int16" });
    layers.set(name, layer);
    candidates.push({ name, ops, run: () => layer.run(x, 1, y) });
    if (two !== null) {
      const other = prepareMatmul(w, { backend: two, activations, codebook: codebook ?? "int16" });
      candidates.push({ name: `${name}, 2 threads`, ops, threads: 2, run: () => other.run(x, 1, y) });
    }
  }
  const int4Bytes = (N * K) / 2 + (N * K) / 8;
  candidates.push(readLoop("read loop, same bytes", int4Bytes));
  const roofsOfTwo = two === null ? null : await threadRoofs(int4Bytes);
  candidates.push(...(roofsOfTwo?.candidates ?? []));
  // peers on the same codes
  const int4 = quantize(weights, blockFormat("int4_b32"));
  const nibbles = new Uint8Array(int4.codes.length);
  for (let i = 0; i < nibbles.length; i++) nibbles[i] = int4.codes[i] ^ 0x88; // two's complement to offset 8
  const scales = new Float32Array(int4.scales!.slice().buffer);
  const sessions: (() => Promise<ArrayLike<number>>)[] = [];
  for (const level of [4, 0]) {
    const name = `onnxruntime-node acc ${level}`;
    const run = await optional(name, () => onnxruntime("node", matMulNBits(1, N, K, nibbles, scales, level), x, [1, K]), missing);
    if (run === null) continue;
    sessions.push(run);
    candidates.push({ name, ops, run });
    const theirs = await run();
    const ours = layers.get(level === 4 ? "int4 a8" : "int4 f32")!.run(x, 1);
    let error = 0;
    let size = 0;
    for (let i = 0; i < N; i++) {
      error += (theirs[i] - ours[i]) ** 2;
      size += theirs[i] ** 2;
    }
    if (!(Math.sqrt(error / size) < 2e-2))
      throw new Error(`${name} computes something else: relative difference ${Math.sqrt(error / size)}`);
  }
  if (!options.quick) {
    const run = await optional("onnxruntime-web", () => onnxruntime("web", matMulNBits(1, N, K, nibbles, scales, 4), x, [1, K]), missing);
    if (run !== null) candidates.push({ name: "onnxruntime-web", ops, run });
  }
  const rows = await measure(candidates, options.seconds);

  // from memory: eight weights in turn
  const copies = 8;
  const rotate = (name: string, formatName: string, activations: Activations): Candidate => {
    const w = quantize(weights, format(formatName));
    const set = Array.from({ length: copies }, () => prepareMatmul(w, { backend, activations }));
    let i = 0;
    return { name, ops, cold: true, run: () => set[i++ % copies].run(x, 1, y) };
  };
  const memory: Candidate[] = [
    rotate("int4 a8, from memory", "int4_b32", "int8"),
    rotate("float8 f32, from memory", "float8_e4m3fn_tensor", "float32"),
    rotate("float32, from memory", "float32", "float32"),
    readLoop("read loop, from memory", int4Bytes, copies),
  ];
  const ort = await optional(
    "onnxruntime-node acc 4, from memory",
    () => Promise.all(Array.from({ length: copies }, () => onnxruntime("node", matMulNBits(1, N, K, nibbles, scales, 4), x, [1, K]))),
    missing,
  );
  if (ort !== null) {
    let i = 0;
    memory.push({ name: "onnxruntime-node acc 4, from memory", ops, cold: true, run: () => ort[i++ % copies]() });
  }
  rows.push(...(await measure(memory, options.seconds)));
  const best = (name: string): number => rows.find((row) => row.name === name)?.cpuMs ?? NaN;
  const ratios: Record<string, number> = {
    "int4 a8: speed of onnxruntime-node acc 4": best("onnxruntime-node acc 4") / best("int4 a8"),
    "int4 a8: speed of onnxruntime-web": best("onnxruntime-web") / best("int4 a8"),
    "int4 a8 from memory: share of the read loop": best("read loop, from memory") / best("int4 a8, from memory"),
    "int4 a8 from memory: speed of onnxruntime-node acc 4": best("onnxruntime-node acc 4, from memory") / best("int4 a8, from memory"),
    "int4 a16: speed of onnxruntime-node acc 0": best("onnxruntime-node acc 0") / best("int4 a16"),
    "float8 from memory: speed of float32": best("float32, from memory") / best("float8 f32, from memory"),
  };
  for (const [name] of cases) if (name !== "int4 a8") ratios[`${name}: time of int4 a8`] = best(name) / best("int4 a8");
  for (const { name } of rows.filter((row) => row.name.endsWith(", 2 threads"))) {
    const alone = name.slice(0, -", 2 threads".length);
    ratios[`${alone}: 2 threads to one`] = best(alone) / best(name);
  }
  roofsOfTwo?.dispose();
  backend.dispose();
  two?.dispose();
  return { rows, ratios, missing };
}
