// Walsh-Hadamard transform of 4096 rows of n values: the kernel, and the same butterflies in plain JavaScript on a
// Float32Array.
import { wasm } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { readLoop } from "./roofs.ts";

function plain(x: Float32Array, n: number): void {
  const scale = 1 / Math.sqrt(n);
  for (let row = 0; row < x.length; row += n) {
    for (let h = 1; h < n; h *= 2)
      for (let i = row; i < row + n; i += 2 * h)
        for (let j = i; j < i + h; j++) {
          const a = x[j];
          const b = x[j + h];
          x[j] = a + b;
          x[j + h] = a - b;
        }
    for (let i = row; i < row + n; i++) x[i] *= scale;
  }
}

export async function fwht(options: {
  readonly seconds: number;
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const backend = await wasm();
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const total = 1 << 20;
  rows.push(...(await measure([readLoop("read loop, same bytes", 4 * total)], 0.3)));
  for (const n of [64, 256, 1024, 4096]) {
    const x = Float32Array.from({ length: total }, () => Math.random() - 0.5);
    const ops = total * Math.log2(n);
    const candidates: Candidate[] = [
      { name: `fwht ${n}`, ops, bytes: 8 * total, run: () => backend.fwht(x, n) },
      { name: `plain JavaScript ${n}`, ops, bytes: 8 * total, run: () => plain(x, n) },
    ];
    const measured = await measure(candidates, options.seconds / 4);
    rows.push(...measured);
    ratios[`fwht ${n}: speed of plain JavaScript`] = measured[1].cpuMs / measured[0].cpuMs;
  }
  backend.dispose();
  return { rows, ratios, missing: [] };
}
