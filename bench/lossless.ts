// Lossless bfloat16 weights (Huffman-coded exponents): decoding to bfloat16, and products beside those of the plain
// weight. Gaussian weights, whose exponents carry what those of trained ones do.
import { losslessBits, losslessTensor, prepareLossless, prepareMatmul, unpackLossless, wasm } from "../src/index.ts";
import { gaussian, seededRandom } from "../src/quantize/random.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

export async function lossless(options: {
  readonly seconds: number;
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const backend = await wasm();
  const [n, k] = [2048, 4096];
  const draw = gaussian(seededRandom(1));
  const word = new DataView(new ArrayBuffer(4));
  const bits = Uint16Array.from({ length: n * k }, () => (word.setFloat32(0, 0.02 * draw()), word.getUint16(0)));
  const w = losslessTensor(bits, [n, k]);
  const out = new Uint16Array(n * k);
  const [layer, plain] = [prepareLossless(w, { backend }), prepareMatmul(unpackLossless(w, { backend }), { backend })];
  if (!losslessBits(w, { backend }).every((v, i) => v === bits[i])) throw new Error("bits differ");
  const candidates: Candidate[] = [{ name: "decode to bfloat16", bytes: 2 * n * k, run: () => backend.decodeLossless(w, out) }];
  for (const m of [1, 64]) {
    const x = Float32Array.from({ length: m * k }, () => Math.random() - 0.5);
    const y = new Float32Array(m * n);
    const ops = 2 * m * n * k;
    candidates.push({ name: `lossless, ${m} rows`, ops, run: () => layer.run(x, m, y) });
    candidates.push({ name: `bfloat16, ${m} rows`, ops, run: () => plain.run(x, m, y) });
  }
  const rows = await measure(candidates, options.seconds);
  const ms = (name: string): number => rows.find((row) => row.name === name)?.cpuMs ?? NaN;
  const ratios = {
    "bytes of bfloat16": w.byteLength / (2 * n * k),
    "decode, GB/s of bfloat16": (2 * n * k) / ms("decode to bfloat16") / 1e6,
    "product of 1 row: speed of bfloat16": ms("bfloat16, 1 rows") / ms("lossless, 1 rows"),
    "product of 64 rows: speed of bfloat16": ms("bfloat16, 64 rows") / ms("lossless, 64 rows"),
  };
  backend.dispose();
  return { rows, ratios, missing: [] };
}
