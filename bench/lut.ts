// Look-up and ternary products against the dot products on the same weights: N = K = 4096, blocks of 32 and one scale
// per row, one row of activations and sixteen, with the engine's features and on SIMD128 alone. What
// src/backends/wasm/lut.ts takes by default follows from these ratios.
import { format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

const [N, K] = [4096, 4096];

export async function lut(options: { readonly seconds: number; readonly quick: boolean }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const missing: string[] = [];
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const data = Float32Array.from({ length: N * K }, () => Math.random() + Math.random() - 1);
  const x = Float32Array.from({ length: 16 * K }, () => Math.random() - 0.5);
  const names = ["bipolar1_b32", "bipolar1_row", "int2_b32", "int2_row", "ternary_b32", "ternary_row", "int3_b32", "int4_b32"];
  const weights = new Map(names.map((name) => [name, quantize(tensor(data, [N, K]), format(name))]));
  for (const features of ["auto", "simd"] as const) {
    const backend = await wasm({ features });
    if (features === "auto" && !backend.features.relaxed) {
      missing.push("relaxed SIMD: not in this engine");
      continue;
    }
    const arch = features === "auto" ? "relaxed" : "SIMD128";
    for (const m of options.quick ? [1] : [1, 16]) {
      const candidates: Candidate[] = [];
      for (const [name, w] of weights)
        for (const kernel of name.startsWith("ternary") ? (["dot", "lookup", "ternary"] as const) : (["dot", "lookup"] as const)) {
          const layer = prepareMatmul(w, { backend, activations: "int8", kernel });
          const [a, y] = [x.slice(0, m * K), new Float32Array(m * N)];
          candidates.push({ name: `${name} ${kernel}, M = ${m}, ${arch}`, ops: 2 * m * N * K, run: () => layer.run(a, m, y) });
        }
      const measured = await measure(candidates, options.seconds);
      rows.push(...measured);
      for (const row of measured) {
        const dot = row.name.replace(/ (lookup|ternary),/, " dot,");
        if (dot !== row.name) ratios[`${row.name}: speed of dot`] = measured.find((r) => r.name === dot)!.cpuMs / row.cpuMs;
      }
    }
    backend.dispose();
  }
  return { rows, ratios, missing };
}
