// npm run bench -- gguf-encode [type ...]: the k-quants' encoders, one thread, 2^20 normal values: by kernels (the bulk
// codec), by the plain loops and, where LOWBIT_GGML_ENCODE names the program that bench/peers/ggml-encode.c says how to
// build, ggml's own encoder in C. Ratios are ours over the C encoder's time, and our squared error over its.
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { scratchFolder } from "../scripts/scratch.mjs";
import { format, type OpaqueFormat } from "../formats/index.ts";
import { wasm } from "../src/index.ts";
import { gaussian, seededRandom } from "../src/quantize/random.ts";
import { measure, type Row } from "./measure.ts";

const TYPES = ["q4_k", "q6_k", "q5_k", "q3_k", "q2_k"];

const squaredError = (x: Float32Array, y: Float32Array): number => x.reduce((sum, v, i) => sum + (v - y[i]) ** 2, 0);

export async function ggufEncode(options: {
  readonly seconds: number;
  readonly cases: readonly string[];
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const { codec } = await wasm();
  const normal = gaussian(seededRandom(1));
  // weights as models have them
  const x = Float32Array.from({ length: 1 << 20 }, () => 0.03 * normal());
  const part = x.subarray(0, x.length / 8);
  const program = process.env.LOWBIT_GGML_ENCODE;
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const folder = scratchFolder("encode");
  try {
    const [input, output] = ["x.f32", "x.bin"].map((name) => join(folder, name));
    writeFileSync(input, new Uint8Array(x.buffer));
    for (const type of options.cases.length > 0 ? options.cases : TYPES) {
      const f = format(`ggml_${type}`) as OpaqueFormat;
      const times = await measure(
        [
          { name: `${type}: kernels`, run: () => codec.encodeBlocks(f, x) },
          { name: `${type}: plain loops, an eighth`, run: () => f.encodeBytes(part) },
        ],
        options.seconds,
      );
      rows.push(...times);
      if (program === undefined) continue;
      // by turns, the best of each: a second process cannot be a row of measure()
      let [ours, theirs] = [Infinity, Infinity];
      for (let turn = 0; turn < 4; turn++) {
        const start = performance.now();
        codec.encodeBlocks(f, x);
        ours = Math.min(ours, performance.now() - start);
        const said = execFileSync(program, [type, input, output, "3"], { encoding: "utf8" });
        theirs = Math.min(theirs, Number(/best ([\d.]+) ms/.exec(said)![1]));
      }
      ratios[`${type}: time over ggml's C encoder`] = ours / theirs;
      const [mine, its] = [codec.encodeBlocks(f, x), new Uint8Array(readFileSync(output))].map((bytes) => f.decodeBytes(bytes));
      ratios[`${type}: squared error over ggml's`] = squaredError(x, mine) / squaredError(x, its);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return { rows, ratios, missing: program === undefined ? ["ggml's C encoder: build bench/peers/ggml-encode.c"] : [] };
}
