// npm run bench -- sparse [int8|float32|2of4 ...]: sparse products beside dense ones. int8: blocks of 4x1 and 16x1 at
// 128 rows. float32: without structure, as a 1x1 convolution over 28 x 28 places. 2of4: int4 weights of which two in
// four are stored beside all of them, int8 activations; "memory": weights in turn that no cache holds.
import { format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type WasmBackend } from "../src/index.ts";
import { prune, seededRandom, type SparsityPattern } from "../src/quantize/index.ts";
import { dequantize } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

export async function sparseBench(options: {
  readonly seconds: number;
  readonly cases: readonly string[];
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const backend = await wasm();
  const random = seededRandom(1);
  const candidates: Candidate[] = [];
  const ratios: [string, string, string][] = [];
  const wanted = (name: string): boolean => options.cases.length === 0 || options.cases.includes(name);
  if (wanted("int8")) {
    const [m, n, k] = [128, 1024, 1024];
    const w = Int8Array.from({ length: n * k }, () => Math.floor(255 * random()) - 127);
    const a = Int8Array.from({ length: m * k }, () => Math.floor(255 * random()) - 127);
    const y = new Int32Array(m * n);
    const dense = backend.prepareInteger(w, n, k);
    candidates.push({ name: "int8 dense", ops: 2 * m * n * k, run: () => dense.run(a, m, y) });
    for (const [pattern, sparsity] of [["4x1", 0.8], ["16x1", 0.8], ["1x4", 0.8], ["4x1", 0.9], ["16x1", 0.9]] as const) {
      const kept = Int8Array.from(dequantize(prune(tensor(Float32Array.from(w), [n, k]), pattern, { sparsity })));
      const layer = backend.prepareSparseInteger(kept, n, k);
      const name = `int8 ${pattern}, ${100 * sparsity} % zeros`;
      candidates.push({ name, ops: 2 * m * n * k * (1 - sparsity), run: () => layer.run(a, m, y) });
      ratios.push([name, "int8 dense", "of dense int8"]);
    } // prettier-ignore
  }
  if (wanted("float32")) {
    const [m, n, k] = [784, 256, 256];
    const w = tensor(Float32Array.from({ length: n * k }, () => random() - 0.5), [n, k]); // prettier-ignore
    const x = Float32Array.from({ length: m * k }, () => random() - 0.5);
    const y = new Float32Array(m * n);
    const dense = prepareMatmul(quantize(w, format("float32")), { backend });
    candidates.push({ name: "float32 dense", ops: 2 * m * n * k, run: () => dense.run(x, m, y) });
    for (const [pattern, sparsity] of [
      ["unstructured", 0.8],
      ["4x1", 0.8],
      ["unstructured", 0.9],
    ] as [SparsityPattern, number][]) {
      const layer = backend.prepareSparse(prune(w, pattern, { sparsity }));
      const name = `float32 ${pattern}, ${100 * sparsity} % zeros`;
      candidates.push({ name, ops: 2 * m * n * k * (1 - sparsity), run: () => layer.run(x, m, y) });
      ratios.push([name, "float32 dense", "of dense float32"]);
    }
  }
  if (wanted("2of4")) twoOfFour(backend, candidates, ratios);
  const rows = await measure(candidates, options.seconds);
  const ms = (name: string): number => rows.find((row) => row.name === name)?.cpuMs ?? NaN;
  backend.dispose();
  return { rows, ratios: Object.fromEntries(ratios.map(([a, b, what]) => [`${a}: speed ${what}`, ms(b) / ms(a)])), missing: [] };
}

/** Layers that take turns: 60 MB of dense weights. */
const TURNS = 6;

function twoOfFour(backend: WasmBackend, candidates: Candidate[], ratios: [string, string, string][]): void {
  const [n, k] = [4096, 4096];
  const random = seededRandom(2);
  const dense = tensor(Float32Array.from({ length: n * k }, () => random() - 0.5), [n, k]); // prettier-ignore
  const w = prune(dense, "2:4", { format: format("int4_b32") });
  const layers = {
    dense: Array.from({ length: TURNS }, () => prepareMatmul(w, { backend, activations: "int8" })),
    "2:4": Array.from({ length: TURNS }, () => backend.prepareSparse(w, { activations: "int8" })),
  };
  for (const [place, turns] of [
    ["one weight", 1],
    ["memory", TURNS],
  ] as const)
    for (const m of turns === 1 ? [1, 4, 32] : [1]) {
      const x = Float32Array.from({ length: m * k }, () => random() - 0.5);
      const y = new Float32Array(m * n);
      const name = (of: string): string => `int4 ${of}, ${m} row${m === 1 ? "" : "s"}, ${place}`;
      for (const of of ["dense", "2:4"] as const) {
        let at = 0;
        candidates.push({ name: name(of), ops: 2 * m * n * k, run: () => layers[of][at++ % turns].run(x, m, y) });
      }
      ratios.push([name("2:4"), name("dense"), "of dense int4"]);
    }
}
