// GEMM: int4 weights (N = K = 4096, block 32) for 16, 64 and 256 rows, int8 x int8 and float32 at 1024. Ratios to the
// relaxed-dot and multiply-add peaks of the same run, to onnxruntime-node and -web, tfjs-backend-wasm and jax-js.
import { format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type Activations } from "../src/index.ts";
import { wasmFeatures } from "../kernels/wasm/engine/features.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { jax, matMul, matMulInteger, matMulNBits, onnxruntime, optional, tfjs } from "./peers.ts";
import { dotI16, dotRelaxed, dotRelaxed16, f32Madd, f32MulAdd, threadRoofs } from "./roofs.ts";

const noise = (n: number): Float32Array => Float32Array.from({ length: n }, () => Math.random() + Math.random() - 1);

export async function gemm(options: { readonly seconds: number; readonly quick: boolean }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const missing: string[] = [];
  const rows: Row[] = [];
  // first of the peers: it reads the globals that others change
  await optional("jax-js", () => jax(new Float32Array(4), new Float32Array(4), 2, 2, 2), missing);
  const backend = await wasm();
  const two = await optional("2 threads", () => wasm({ threads: 2 }), missing);
  const { relaxed } = wasmFeatures();
  const roofs = (): Candidate[] => [dotI16(), f32MulAdd(), ...(relaxed ? [dotRelaxed(), dotRelaxed16(), f32Madd()] : [])];
  const best = (name: string): number => rows.find((row) => row.name === name)?.cpuMs ?? NaN;
  const rate = (name: string): number => rows.find((row) => row.name === name)?.gops ?? NaN;
  const ratios: Record<string, number> = {};

  const [N, K] = [4096, 4096];
  const w = quantize(tensor(noise(N * K), [N, K]), format("int4_b32"));
  const nibbles = w.codes.map((b) => b ^ 0x88);
  const scales = new Float32Array(w.scales!.slice().buffer);
  rows.push(...(await measure(roofs(), 0.5)));
  const peak = Math.max(
    rate("roof relaxed_dot_i8x16_i7x16_add") || 0,
    rate("roof i16x8.relaxed_dot_i8x16_i7x16 + add") || 0,
    rate("roof i32x4.dot_i16x8_s + add"),
  );
  for (const m of [16, 64, 256]) {
    const x = noise(m * K);
    const y = new Float32Array(m * N);
    const ops = 2 * m * N * K;
    const candidates: Candidate[] = [];
    for (const activations of ["int8", "int16", "float32"] as Activations[]) {
      const layer = prepareMatmul(w, { backend, activations });
      candidates.push({ name: `int4 ${activations} m=${m}`, ops, run: () => layer.run(x, m, y) });
    }
    for (const activations of two === null ? [] : (["int8", "int16"] as Activations[])) {
      const layer = prepareMatmul(w, { backend: two!, activations });
      candidates.push({ name: `int4 ${activations} m=${m}, 2 threads`, ops, threads: 2, run: () => layer.run(x, m, y) });
    }
    for (const level of [4, 0]) {
      const run = await optional(
        "onnxruntime-node",
        () => onnxruntime("node", matMulNBits(m, N, K, nibbles, scales, level), x, [m, K]),
        missing,
      );
      if (run !== null) candidates.push({ name: `onnxruntime-node acc ${level} m=${m}`, ops, run });
    }
    if (!options.quick) {
      const run = await optional("onnxruntime-web", () => onnxruntime("web", matMulNBits(m, N, K, nibbles, scales, 4), x, [m, K]), missing);
      if (run !== null) candidates.push({ name: `onnxruntime-web m=${m}`, ops, run });
    }
    rows.push(...(await measure(candidates, options.seconds)));
    ratios[`int4 int8 m=${m}: share of the dot peak`] = rate(`int4 int8 m=${m}`) / peak;
    ratios[`int4 int16 m=${m}: share of the dot peak`] = rate(`int4 int16 m=${m}`) / peak;
    ratios[`int4 int8 m=${m}: speed of onnxruntime-web`] = best(`onnxruntime-web m=${m}`) / best(`int4 int8 m=${m}`);
    ratios[`int4 int8 m=${m}: speed of onnxruntime-node acc 4`] = best(`onnxruntime-node acc 4 m=${m}`) / best(`int4 int8 m=${m}`);
  }

  for (const n of options.quick ? [1024] : [256, 1024, 2048]) {
    const a = noise(n * n);
    const b = noise(n * n);
    const ops = 2 * n ** 3;
    const layer = prepareMatmul(quantize(tensor(b, [n, n]), format("float32")), { backend });
    const y = new Float32Array(n * n);
    const candidates: Candidate[] = [...(n === 1024 ? roofs() : []), { name: `float32 ${n}`, ops, run: () => layer.run(a, n, y) }];
    const peers: [string, () => Promise<() => unknown>][] = [
      ["tfjs-wasm", () => tfjs(a, b, n, n, n)],
      ["jax-js", () => jax(a, b, n, n, n)],
      ["onnxruntime-web", () => onnxruntime("web", matMul(n, n, n, b), a, [n, n])],
      ["onnxruntime-node", () => onnxruntime("node", matMul(n, n, n, b), a, [n, n])],
    ];
    for (const [name, make] of peers) {
      const run = await optional(name, make, missing);
      if (run !== null) candidates.push({ name: `${name} float32 ${n}`, ops, run });
    }
    if (two !== null) {
      const other = prepareMatmul(quantize(tensor(b, [n, n]), format("float32")), { backend: two });
      candidates.push({ name: `float32 ${n}, 2 threads`, ops, threads: 2, run: () => other.run(a, n, y) });
    }
    if (n === 1024) {
      const int8 = prepareMatmul(quantize(tensor(b, [n, n]), format("int8_row")), { backend, activations: "int8" });
      candidates.push({ name: "int8 row weights, int8 activations 1024", ops, run: () => int8.run(a, n, y) });
      const w8 = Int8Array.from(b, (v) => v * 100);
      const integer = backend.prepareInteger(w8, n, n);
      const bytes = Uint8Array.from(a, (v) => v * 100 + 128);
      const sums = new Int32Array(n * n);
      candidates.push({ name: "uint8 x int8 1024", ops, run: () => integer.run(bytes, n, sums) });
      if (two !== null) {
        const rowWeights = prepareMatmul(quantize(tensor(b, [n, n]), format("int8_row")), { backend: two, activations: "int8" });
        const threaded = two.prepareInteger(w8, n, n);
        candidates.push(
          { name: "int8 row weights, int8 activations 1024, 2 threads", ops, threads: 2, run: () => rowWeights.run(a, n, y) },
          { name: "uint8 x int8 1024, 2 threads", ops, threads: 2, run: () => threaded.run(bytes, n, sums) },
        );
      }
      const web = await optional("onnxruntime-web", () => onnxruntime("web", matMulInteger(n, n, n, w8), bytes, [n, n]), missing);
      if (web !== null) candidates.push({ name: "onnxruntime-web MatMulInteger 1024", ops, run: web });
    }
    rows.push(...(await measure(candidates, options.seconds)));
    const roof = Math.max(rate("roof f32 mul+add"), rate("roof f32 relaxed_madd") || 0);
    ratios[`float32 ${n}: share of the multiply-add roof`] = rate(`float32 ${n}`) / roof;
    for (const [name] of peers) ratios[`float32 ${n}: speed of ${name}`] = best(`${name} float32 ${n}`) / best(`float32 ${n}`);
    if (n === 1024) {
      ratios["int8 1024: share of the dot_i16x8 peak"] = rate("uint8 x int8 1024") / rate("roof i32x4.dot_i16x8_s + add");
      ratios["int8 1024: share of the dot peak"] = rate("uint8 x int8 1024") / peak;
      ratios["int8 1024: speed of onnxruntime-web"] = best("onnxruntime-web MatMulInteger 1024") / best("uint8 x int8 1024");
    }
  }
  const roofsOfTwo = two === null ? null : await threadRoofs(1 << 20);
  rows.push(...(await measure(roofsOfTwo?.candidates ?? [], 0.5)));
  roofsOfTwo?.dispose();
  for (const { name } of rows.filter((row) => row.name.endsWith(", 2 threads"))) {
    const alone = name.slice(0, -", 2 threads".length);
    ratios[`${alone}: 2 threads to one`] = best(alone) / best(name);
  }
  backend.dispose();
  two?.dispose();
  return { rows, ratios, missing };
}
