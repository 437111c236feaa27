// AdaRound: for every weight, learns whether to round down or up so that the layer's output keeps, with the scales
// fixed. One linear layer has a closed form gradient through its Hessian, so no samples are stored and no autograd is
// needed. Source: Nagel et al., arXiv 2004.10568: rectified sigmoid, regulariser 1 - |2h - 1|^beta with beta falling,
// Adam. Afterwards single roundings are flipped while that lowers the same error.
import { LowbitError } from "../../formats/core/errors.ts";
import { codeArray } from "../../formats/core/pack.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { hessianOf } from "./hessian.ts";
import { BlockGrid, columnFormat, weightMatrix, type ScaleOptions } from "./grid.ts";
import { transposed } from "./linalg.ts";
import { scaleRecipe } from "./rtn.ts";
import { resolveSearch, searchScales, type ScaleSearch } from "./search.ts";
import { algebraFor, type AlgebraOptions } from "./simd.ts";
import { outputError, type LayerStatistics } from "./statistics.ts";
import { runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";

/** Learned rounding: the layer's Hessian and the steps of its descent. */
export interface AdaRoundOptions extends ScaleOptions, RunOptions, AlgebraOptions {
  readonly hessian: LayerStatistics | Float64Array;
  /** Default 1000 full-gradient steps. */
  readonly iterations?: number;
  /** Of Adam; default 0.05. */
  readonly learningRate?: number;
  /** Weight of the regulariser against the output error in units of one step at a mean input; default 0.1. */
  readonly lambda?: number;
  /** Scales by search first; default: mean squared error. null: by the format's rule. */
  readonly search?: ScaleSearch | null;
  /** Fewest calibration tokens; default k / 8. */
  readonly minRows?: number;
  readonly name?: string;
}

/**
 * AdaRound as a quantizer, for integer elements. Never worse than rounding to nearest with the same scales, on the
 * calibration inputs.
 * @throws LowbitError E_CALIBRATION as gptq; E_UNSUPPORTED for elements that are no integers
 * @example quantize(w, format("int4_row"), adaround({ hessian: stats, iterations: 50 }))
 */
export function adaround(options: AdaRoundOptions): SteppedQuantizer {
  if (options?.hessian === undefined || options.hessian === null)
    throw new TypeError("adaround: expected options.hessian, got none. Collect it with layerStatistics(k).");
  const o = { iterations: 1000, learningRate: 0.05, lambda: 0.1, ...options };
  if (!(Number.isInteger(o.iterations) && o.iterations >= 0))
    throw new RangeError(`adaround iterations: expected an integer >= 0, got ${o.iterations}.`);
  if (!(o.learningRate > 0 && o.learningRate < 10))
    throw new RangeError(`adaround learningRate: expected a number in (0, 10), got ${o.learningRate}.`);
  if (!(o.lambda >= 0 && o.lambda < Infinity)) throw new RangeError(`adaround lambda: expected a number >= 0, got ${o.lambda}.`);
  const search = o.search === null ? null : resolveSearch(o.search ?? { method: "mse" });
  const steps = (weight: Tensor, format: Format) => adaroundSteps(weight, format, o, search);
  return { algorithm: "adaround", steps, quantizeWeight: (weight, format) => runSteps(steps(weight, format), options) };
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
/** Rectified sigmoid: zeta 1.1, gamma -0.1. */
const stretched = (v: number) => Math.min(1, Math.max(0, 1.2 * sigmoid(v) - 0.1));

function* adaroundSteps(
  weight: Tensor,
  format: Format,
  o: AdaRoundOptions & { iterations: number; learningRate: number; lambda: number },
  search: Required<ScaleSearch> | null,
): Steps<PackedTensor> {
  const target = columnFormat(format, "adaround");
  const at = o.name === undefined ? "" : ` of layer "${o.name}"`;
  const w = weightMatrix(weight, `adaround${at}`);
  const { rows, k } = w;
  const h = hessianOf(o.hessian, k, at, o.minRows);
  const grid = new BlockGrid(target, rows, k, { scaleRule: o.scaleRule, rangeRule: o.rangeRule });
  if (!grid.integer)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `adaround: expected integer elements, got ${grid.element.name}. Use gptq, which takes any format.`,
    );
  grid.fill(w.data);
  if (search && target.kind === "block") searchScales(grid, w.data, 0, k, search);
  const n = rows * k;
  // In units of one step: position inside the cell, and the code below.
  const step = Float64Array.from({ length: n }, (_, i) => grid.stored[grid.cellOf(Math.floor(i / k), i % k)]);
  const zero = Float64Array.from({ length: n }, (_, i) => grid.zero[grid.cellOf(Math.floor(i / k), i % k)]);
  const low = new Float64Array(n);
  const fixed = new Float64Array(n).fill(NaN);
  const v = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const q = w.data[i] / step[i] + zero[i];
    low[i] = Math.floor(q);
    const beyond = (code: number): boolean => Math.abs(Math.fround((code - zero[i]) * step[i])) === Infinity;
    if (low[i] < grid.qmin || low[i] + 1 > grid.qmax) fixed[i] = Math.min(grid.qmax, Math.max(grid.qmin, Math.round(q)));
    // of two codes beside a weight near the largest float32 one may stand for none
    else if (beyond(low[i]) || beyond(low[i] + 1)) fixed[i] = low[i] + (beyond(low[i]) ? 1 : 0);
    const start = Math.min(0.99, Math.max(0.01, q - low[i]));
    v[i] = -Math.log(1.2 / (start + 0.1) - 1);
  }
  let mean = 0;
  for (let j = 0; j < k; j++) mean += h[j * k + j] / k;
  if (!(mean > 0 && mean < Infinity))
    throw new LowbitError("E_CALIBRATION", `adaround${at}: expected inputs above zero, got a Hessian with mean diagonal ${mean}.`);
  const { product } = algebraFor(o, `adaround${at}`);
  const d = new Float64Array(n);
  const gradient = new Float64Array(n);
  const [m1, m2] = [new Float64Array(n), new Float64Array(n)];
  const code = (i: number, up: number) => (Number.isNaN(fixed[i]) ? low[i] + up : fixed[i]);
  const errors = (up: (i: number) => number) => {
    for (let i = 0; i < n; i++) d[i] = (code(i, up(i)) - zero[i]) * step[i] - w.data[i];
  };
  const multiply = () => {
    gradient.fill(0);
    product(gradient, 0, k, rows, k, transposed(d, rows, k), 0, rows, h, 0, k, k, 1);
  };
  for (let it = 0; it < o.iterations; it++) {
    errors((i) => stretched(v[i]));
    multiply();
    const warm = it < 0.2 * o.iterations;
    const progress = (it / o.iterations - 0.2) / 0.8;
    const beta = 2 + 9 * (1 + Math.cos(Math.PI * progress));
    for (let i = 0; i < n; i++) {
      if (!Number.isNaN(fixed[i])) continue;
      const s = sigmoid(v[i]);
      const hi = stretched(v[i]);
      let g = (2 * gradient[i]) / (mean * step[i]);
      if (!warm) {
        const c = 2 * hi - 1;
        g -= o.lambda * beta * 2 * Math.sign(c) * Math.abs(c) ** (beta - 1);
      }
      // Outside the rectified range the gradient is zero; at its ends it may still lead back in.
      const slope = 1.2 * s * (1 - s);
      const gv = (hi === 0 && g > 0) || (hi === 1 && g < 0) ? 0 : g * slope;
      m1[i] = 0.9 * m1[i] + 0.1 * gv;
      m2[i] = 0.999 * m2[i] + 0.001 * gv * gv;
      const bias1 = m1[i] / (1 - 0.9 ** (it + 1));
      const bias2 = m2[i] / (1 - 0.999 ** (it + 1));
      v[i] -= (o.learningRate * bias1) / (Math.sqrt(bias2) + 1e-12);
      v[i] = Math.min(8, Math.max(-8, v[i]));
    }
    if (it % 25 === 24) yield { stage: "adaround", done: it + 1, total: o.iterations, layer: o.name };
  }
  // Hard roundings, learned and nearest; a copy of each is polished, and the better one kept.
  const nearest = Float64Array.from({ length: n }, (_, i) => (w.data[i] / step[i] + zero[i] - low[i] > 0.5 ? 1 : 0));
  const candidates = [v.map((x) => (stretched(x) >= 0.5 ? 1 : 0)), nearest].map((start) => {
    const up = start.slice();
    errors((i) => up[i]);
    multiply();
    polish(up, d, gradient, h, step, fixed, rows, k);
    const values = Float64Array.from(up, (u, i) => (code(i, u) - zero[i]) * step[i]);
    return { up, error: outputError(w.data, values, rows, h, o) };
  });
  const best = candidates[0].error <= candidates[1].error ? candidates[0] : candidates[1];
  const codes = codeArray(grid.element.bits, n);
  const mask = 2 ** grid.element.bits - 1;
  let changed = 0;
  for (let i = 0; i < n; i++) {
    codes[i] = code(i, best.up[i]) & mask;
    if (Number.isNaN(fixed[i]) && best.up[i] !== nearest[i]) changed++;
  }
  return grid.pack(codes, w.shape, {
    version: 1,
    algorithm: "adaround",
    ...scaleRecipe(target, o),
    ...(search ? { search } : {}),
    iterations: o.iterations,
    learningRate: o.learningRate,
    lambda: o.lambda,
    error: best.error,
    roundingsChanged: changed / n,
  });
}

/**
 * Flips single roundings while the output error falls: with r = D H, changing entry j by t changes the error by 2 t r_j
 * + t^2 H_jj.
 */
function polish(
  up: Float64Array,
  d: Float64Array,
  r: Float64Array,
  h: Float64Array,
  step: Float64Array,
  fixed: Float64Array,
  rows: number,
  k: number,
): void {
  for (let row = 0; row < rows; row++)
    for (let pass = 0; pass < 20; pass++) {
      let flips = 0;
      for (let j = 0; j < k; j++) {
        const i = row * k + j;
        if (!Number.isNaN(fixed[i])) continue;
        const t = up[i] ? -step[i] : step[i];
        if (2 * t * r[i] + t * t * h[j * k + j] >= -1e-12 * h[j * k + j] * t * t) continue;
        up[i] = 1 - up[i];
        d[i] += t;
        for (let c = 0; c < k; c++) r[row * k + c] += t * h[j * k + c];
        flips++;
      }
      if (flips === 0) break;
    }
}
