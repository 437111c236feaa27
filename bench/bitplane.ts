// Bit-plane products of 1- and 2-bit words, N = K = 4096, 16 rows: against the byte kernels on the same widths (int8
// activations).
import { format, type NumberFormat } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

export async function bitplane(options: {
  readonly seconds: number;
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const backend = await wasm();
  const [m, n, k] = [16, 4096, 4096];
  const ops = 2 * m * n * k;
  const candidates: Candidate[] = [];
  const out = new Int32Array(m * n);
  for (const [a, w] of [
    ["bipolar1", "bipolar1"],
    ["bipolar2", "bipolar1"],
    ["bipolar2", "bipolar2"],
    ["uint4", "bipolar1"],
  ] as const) {
    const [fa, fw] = [format(a) as NumberFormat, format(w) as NumberFormat];
    const codes = (count: number, f: NumberFormat): Uint8Array =>
      Uint8Array.from({ length: count }, () => Math.floor(Math.random() * 2 ** f.bits));
    const layer = backend.prepareBitplanes(codes(n * k, fw), n, k, fw);
    const x = codes(m * k, fa);
    candidates.push({ name: `bit planes ${a} x ${w}`, ops, run: () => layer.run(x, m, fa, out) });
  }
  const data = Float32Array.from({ length: n * k }, () => Math.random() - 0.5);
  const x = Float32Array.from({ length: m * k }, () => Math.random() - 0.5);
  const y = new Float32Array(m * n);
  for (const name of ["int2_row", "bipolar1_row"]) {
    const layer = prepareMatmul(quantize(tensor(data, [n, k]), format(name)), { backend, activations: "int8" });
    candidates.push({ name: `bytes int8 x ${name}`, ops, run: () => layer.run(x, m, y) });
  }
  const rows = await measure(candidates, options.seconds);
  const ms = (name: string): number => rows.find((row) => row.name === name)?.cpuMs ?? NaN;
  const bytes = ms("bytes int8 x bipolar1_row");
  const ratios = Object.fromEntries(
    rows.filter((r) => r.name.startsWith("bit planes")).map((r) => [`${r.name}: speed of the byte kernel`, bytes / r.cpuMs]),
  );
  backend.dispose();
  return { rows, ratios, missing: [] };
}
