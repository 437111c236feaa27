// Random cases against a transcription of the authors' code: the same codes, and with this library's default group
// scales an output error that is as good on average.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, unpack, wasm } from "../../src/index.ts";
import { gptq, layerStatistics } from "../../src/quantize/index.ts";
import { gptqAuthors, type AuthorsCase } from "../oracle/gptq-authors.ts";
import { gaussianWeights, inputs, type InputKind } from "../helpers/layers.ts";
import { random } from "../helpers/random.ts";

const KINDS: readonly InputKind[] = ["ar", "iid", "power", "outliers"];

function layer(seed: number) {
  const rng = random(seed);
  const k = [32, 64, 128, 256][rng.integer(4)];
  const rows = 3 + rng.integer(10);
  const x = inputs(KINDS[seed % 4], [k + 20, 3 * k, k >> 1][rng.integer(3)], k, seed);
  // Now and then an input that is never active.
  if (rng.integer(3) === 0) for (let t = 0; t < x.length / k; t++) x[t * k + 5] = 0;
  const acc = layerStatistics(k);
  acc.add(x);
  const groups = [-1, 16, 32, 64, 128].filter((g) => g <= k);
  const c: AuthorsCase = {
    bits: 2 + rng.integer(4),
    sym: rng.integer(2) === 0,
    group: groups[rng.integer(groups.length)],
    actOrder: rng.integer(2) === 0,
    staticGroups: rng.integer(2) === 0,
    damp: [0.01, 0.05, 0.1, 1e-3][rng.integer(4)],
    blockSize: [128, 32, 64][rng.integer(3)],
  };
  return {
    k,
    rows,
    stats: acc.finish(),
    w: gaussianWeights(rows, k, seed + 1000),
    c: c.group > 0 && c.actOrder ? { ...c, staticGroups: true } : c,
  };
}

const matrix = (data: ArrayLike<number>, k: number) =>
  Array.from({ length: data.length / k }, (_, r) => Array.from({ length: k }, (_, j) => data[r * k + j]));

function error(w: ArrayLike<number>, q: ArrayLike<number>, rows: number, k: number, h: Float64Array): number {
  let sum = 0;
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < k; i++) {
      const d = w[r * k + i] - q[r * k + i];
      for (let j = 0; j < k; j++) sum += d * h[i * k + j] * (w[r * k + j] - q[r * k + j]);
    }
  return sum;
}

test("120 random cases: codes of the authors' code, with one thread and with two", async () => {
  const backend = await wasm({ threads: 2 });
  const seen = new Set<string>();
  const ratios: number[] = [];
  for (let seed = 0; seed < 120; seed++) {
    const { k, rows, stats, w, c } = layer(seed);
    const want = gptqAuthors(matrix(w, k), matrix(stats.hessian!, k), c);
    const span = c.group < 0 ? "row" : `b${c.group}`;
    const fmt = format(c.sym ? `int${c.bits}_${span}` : `uint${c.bits}_${span}_zp`);
    const options = { hessian: stats, damp: c.damp, blockSize: c.blockSize, actOrder: c.actOrder, staticGroups: c.staticGroups };
    const rules = c.sym ? { rangeRule: "gptq" as const } : {};
    const t = tensor(w, [rows, k]);
    const packed = quantize(t, fmt, gptq({ ...options, ...rules, groupScales: "blockStart", ...(seed % 2 ? { backend } : {}) }));
    const shift = c.sym ? 2 ** (c.bits - 1) : 0;
    const codes = Array.from(unpack(packed), (v) => (v + shift) % 2 ** c.bits);
    const flat = want.codes.flat();
    const differ = codes.filter((v, i) => v !== flat[i]).length;
    const reference = error(w, want.values.flat(), rows, k, stats.hessian!);
    // The same codes, or an output error that is not above the reference's.
    if (differ > 0) expect(error(w, dequantize(packed, { dtype: "float64" }), rows, k, stats.hessian!), `seed ${seed} ${JSON.stringify(c)}`).toBeLessThanOrEqual(reference); // prettier-ignore
    expect(differ, `seed ${seed} ${JSON.stringify(c)}`).toBe(0);
    seen.add(`${c.sym} ${c.group > 0} ${c.actOrder} ${c.staticGroups}`);
    const current = quantize(t, fmt, gptq({ ...options, ...rules }));
    ratios.push(error(w, dequantize(current, { dtype: "float64" }), rows, k, stats.hessian!) / reference);
  }
  backend.dispose();
  expect(seen.size).toBe(14); // all but activation order with dynamic groups, which needs an index per column
  const mean = ratios.reduce((s, v) => s + v / ratios.length, 0);
  expect(mean).toBeLessThan(1.005);
});
