// HQQ: scales stay, zero points are fitted without data so that the p-norm (p < 1) of the weight error is small:
// half-quadratic splitting. Source: Badri and Shaji, "Half-Quadratic Quantization of LLMs", 2023, and dropbox/hqq. Zero
// points are real numbers where the format stores them in a floating format; where it stores integers they are rounded
// at the end, and part of the gain is lost.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { BlockGrid, columnFormat, weightMatrix } from "./grid.ts";
import { checkAborted, runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";

/** Half-quadratic quantization: the norm and the steps of its solver. */
export interface HqqOptions extends RunOptions {
  /** Exponent p of the norm; default 0.7. */
  readonly norm?: number;
  /** First penalty; default 10. */
  readonly beta?: number;
  /** Growth of the penalty per iteration; default 1.01. */
  readonly kappa?: number;
  /** Default 20. */
  readonly iterations?: number;
}

/**
 * HQQ as a quantizer, for formats with zero points.
 * @throws RangeError for options; at use E_UNSUPPORTED for a format without zero points
 * @example quantize(w, defineBlock({ element: uint4, scales: [{ format: float16, span: 64 }],
 *   offset: { role: "zeroPoint", levels: [{ format: float16, span: 64 }] } }), hqq())
 */
export function hqq(options: HqqOptions = {}): SteppedQuantizer {
  const { signal, onProgress, ...given } = options;
  const o = { norm: 0.7, beta: 10, kappa: 1.01, iterations: 20, ...given };
  if (!(o.norm > 0 && o.norm <= 1)) throw new RangeError(`hqq norm: expected a number in (0, 1], got ${o.norm}.`);
  if (!(o.beta > 0 && o.beta < Infinity)) throw new RangeError(`hqq beta: expected a number above 0, got ${o.beta}.`);
  if (!(o.kappa >= 1 && o.kappa < 10)) throw new RangeError(`hqq kappa: expected a number in [1, 10), got ${o.kappa}.`);
  if (!(Number.isInteger(o.iterations) && o.iterations >= 0 && o.iterations <= 1000))
    throw new RangeError(`hqq iterations: expected an integer in 0..1000, got ${o.iterations}.`);
  const steps = function* (weight: Tensor, format: Format): Steps<PackedTensor> {
    checkAborted(signal, "hqq");
    const target = columnFormat(format, "hqq");
    if (target.kind !== "block" || target.offset?.role !== "zeroPoint")
      throw new LowbitError(
        "E_UNSUPPORTED",
        `hqq: expected a format with zero points, got ${format.name}. Use uint4_b64_zp, or a block format with float16 zero points.`,
      );
    const w = weightMatrix(weight, "hqq");
    const grid = new BlockGrid(target, w.rows, w.k);
    grid.fill(w.data);
    const cells = gather(grid, w.data);
    let done = 0;
    for (const [cell, x] of cells) {
      if (++done % PAUSE === 0) yield { stage: "hqq", done, total: cells.size };
      const z = fitZero(x, grid.stored[cell], grid.zero[cell], grid.qmin, grid.qmax, o, (v) => {
        grid.setZero(cell, v);
        return grid.zero[cell];
      });
      grid.setZero(cell, z);
    }
    const codes = grid.quantizeAll(w.data);
    return grid.pack(codes, w.shape, { version: 1, algorithm: "hqq", ...o });
  };
  return { algorithm: "hqq", steps, quantizeWeight: (weight, format) => runSteps(steps(weight, format), { signal, onProgress }) };
}

/** Cells between two pauses. */
const PAUSE = 4096;

/** The values of every cell. */
function gather(grid: BlockGrid, data: Float64Array): Map<number, Float64Array> {
  const { rows, k, cells } = grid;
  const out = new Map<number, Float64Array>();
  for (let r0 = 0; r0 < cells.gridRows; r0++)
    for (let g = 0; g < cells.gridK; g++) {
      const list: number[] = [];
      for (let r = r0 * cells.rows; r < Math.min(rows, (r0 + 1) * cells.rows); r++)
        for (let j = g * cells.k; j < Math.min(k, (g + 1) * cells.k); j++) list.push(data[r * k + j]);
      out.set(r0 * cells.gridK + g, Float64Array.from(list));
    }
  return out;
}

const MAGIC = 6755399441055744;

/** The zero point whose stored form gives the smallest mean absolute error met on the way; the start is among them. */
function fitZero(
  x: Float64Array,
  s: number,
  start: number,
  qmin: number,
  qmax: number,
  o: Required<Omit<HqqOptions, keyof RunOptions>>,
  stored: (z: number) => number,
): number {
  const n = x.length;
  const code = (v: number, z: number) => Math.min(qmax, Math.max(qmin, v / s + z)) + MAGIC - MAGIC;
  const error = (z: number) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += Math.abs(x[i] - (code(x[i], z) - z) * s);
    return sum;
  };
  let best = start;
  let least = error(start);
  // Rules give whole zero points; the iteration starts from the real one.
  let z = -Math.min(0, ...x) / s + qmin;
  let beta = o.beta;
  for (let it = 0; it < o.iterations; it++) {
    const kept = stored(z);
    const e = error(kept);
    if (e < least) [least, best] = [e, kept];
    let sum = 0;
    for (let i = 0; i < n; i++) {
      const q = code(x[i], z);
      const d = x[i] - (q - z) * s;
      const a = Math.abs(d);
      const shrunk = a === 0 ? 0 : Math.max(0, a - a ** (o.norm - 1) / beta);
      sum += q - (x[i] - Math.sign(d) * shrunk) / s;
    }
    z = sum / n;
    beta *= o.kappa;
  }
  const kept = stored(z);
  return error(kept) < least ? kept : best;
}
