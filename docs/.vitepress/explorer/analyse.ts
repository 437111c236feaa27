// Figures of a tensor that the explorer shows beside the ranking of formats: moments of all values, and how dot
// products
// drift with their length in accumulators of few bits. Pure functions, tested in Node.
import { bfloat16, float16, type NumberFormat } from "../../../formats/index.ts";
import { gaussian, seededRandom } from "../../../src/quantize/random.ts";

export interface Profile {
  readonly values: number;
  readonly min: number;
  readonly max: number;
  readonly rms: number;
  /** Fourth moment over squared second of what is finite; 3 for Gaussian data. */
  readonly kurtosis: number;
  readonly zeros: number;
  readonly notFinite: number;
}

export function profileOf(data: ArrayLike<number>): Profile {
  let [m2, m4, min, max, zeros, notFinite] = [0, 0, Infinity, -Infinity, 0, 0];
  for (let i = 0; i < data.length; i++) {
    const v = data[i];
    const s = v * v;
    if (!(s < Infinity)) {
      notFinite++;
      continue;
    }
    if (v === 0) zeros++;
    if (v < min) min = v;
    if (v > max) max = v;
    m2 += s;
    m4 += s * s;
  }
  const n = Math.max(1, data.length - notFinite);
  return { values: data.length, min, max, rms: Math.sqrt(m2 / n), kurtosis: m4 / n / (m2 / n) ** 2, zeros, notFinite };
}

/** Evenly spaced rows that hold at most `values` values, at least one. */
export function sampleRows(rows: number, k: number, values: number): number[] {
  const count = Math.max(Math.min(rows, 1), Math.min(rows, Math.floor(values / Math.max(1, k))));
  return Array.from({ length: count }, (_, i) => Math.floor((i * rows) / count));
}

export interface DriftRow {
  /** Terms of the dot products. */
  readonly length: number;
  /** Root mean square of the error over that of the exact result, by accumulator. */
  readonly errors: Readonly<Record<"float32" | "bfloat16" | "float16", number>>;
}

const LENGTHS = [16, 64, 256, 1024, 4096];
/** Products of each length; enough for two digits. */
const PRODUCTS = 24;

/** Dot products of rows with normal vectors, summed one after the other and rounded after every term. */
export function drift(values: Float32Array, rows: number, k: number): DriftRow[] {
  const random = gaussian(seededRandom(1));
  const narrow = (f: NumberFormat) => (x: number) => f.decode(f.encode(x));
  const rounders = { float32: Math.fround, bfloat16: narrow(bfloat16), float16: narrow(float16) };
  const all = values.length;
  return LENGTHS.filter((length) => length <= all && rows > 0 && k > 0).map((length) => {
    const errors = { float32: 0, bfloat16: 0, float16: 0 };
    let power = 0;
    for (let p = 0; p < PRODUCTS; p++) {
      const from = Math.floor((p * (all - length)) / PRODUCTS);
      const sums = { float32: 0, bfloat16: 0, float16: 0 };
      let exact = 0;
      for (let i = 0; i < length; i++) {
        const term = values[from + i] * random();
        exact += term;
        for (const name of ["float32", "bfloat16", "float16"] as const) sums[name] = rounders[name](sums[name] + term);
      }
      power += exact * exact;
      for (const name of ["float32", "bfloat16", "float16"] as const) errors[name] += (sums[name] - exact) ** 2;
    }
    const relative = (squares: number): number => (power === 0 ? 0 : Math.sqrt(squares / power));
    return {
      length,
      errors: { float32: relative(errors.float32), bfloat16: relative(errors.bfloat16), float16: relative(errors.float16) },
    };
  });
}
