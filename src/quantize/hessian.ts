// The Hessian of a layer's inputs as GPTQ and its relatives take it: checked, with dead inputs, in the order of work,
// factored with as much damping as it needs.
import { LowbitError } from "../../formats/core/errors.ts";
import type { WeightMatrix } from "./grid.ts";
import type { HeldRoom } from "./gptq-workspace.ts";
import { gptqFactorSteps } from "./linalg.ts";
import type { LayerStatistics } from "./statistics.ts";
import type { Steps } from "./steps.ts";

/** The matrix of the statistics, checked. */
export function hessianOf(source: LayerStatistics | Float64Array, k: number, at: string, minRows?: number): Float64Array {
  const fail = (expected: string, got: string, remedy: string) =>
    new LowbitError("E_CALIBRATION", `hessian${at}: expected ${expected}, got ${got}. ${remedy}`);
  if (source instanceof Float64Array) {
    if (source.length !== k * k) throw fail(`${k} x ${k} numbers`, String(source.length), "Was it collected for another layer?");
    const odd = asymmetry(source, k);
    if (odd !== null) throw fail("a symmetric matrix of finite numbers", odd, "Pass both triangles of sum x x^T.");
    return source;
  }
  if (source.hessian === null) throw fail("statistics with a Hessian", "channel sums only", "Collect with { hessian: true }.");
  if (source.k !== k) throw fail(`inputs of length ${k}`, String(source.k), "Were the statistics collected for another layer?");
  const least = minRows ?? Math.ceil(k / 8);
  if (source.rows < least)
    throw fail(
      `at least ${least} calibration tokens for ${k} inputs`,
      String(source.rows),
      "Calibrate on more data, or lower minRows knowing that the Hessian is nearly singular.",
    );
  if (source.rows > 1) {
    let varies = false;
    for (let j = 0; j < k && !varies; j++) varies = source.max[j] > source.min[j];
    if (!varies) throw fail("inputs that vary", `${source.rows} equal tokens`, "Is the calibration data constant?");
  }
  return source.hessian;
}

/**
 * The first entries that no sum of x x^T has: not finite off the diagonal, or not equal across it. A triangle alone
 * would be rounding to nearest in silence.
 */
function asymmetry(h: Float64Array, k: number): string | null {
  const T = 32;
  for (let i0 = 0; i0 < k; i0 += T)
    for (let j0 = 0; j0 <= i0; j0 += T)
      for (let i = i0; i < Math.min(k, i0 + T); i++)
        for (let j = j0; j < Math.min(i, j0 + T); j++) {
          const [a, b] = [h[i * k + j], h[j * k + i]];
          if (a === b) continue;
          const size = Math.sqrt(Math.abs(h[i * k + i] * h[j * k + j]));
          if (!(Math.abs(a - b) <= 1e-5 * Math.max(size, Math.abs(a)))) return `${a} at [${i}, ${j}] and ${b} at [${j}, ${i}]`;
        }
  return null;
}

export interface Prepared {
  /** Diagonal with 1 for dead inputs. */
  readonly diagonal: Float64Array;
  readonly dead: number;
  readonly order: Int32Array;
}

/** Dead inputs: their weights become 0, as in the authors' code. Order of the columns. */
export function prepare(h: Float64Array, w: WeightMatrix, actOrder: boolean, at: string): Prepared {
  const { rows, k } = w;
  const diagonal = new Float64Array(k);
  let dead = 0;
  for (let j = 0; j < k; j++) {
    const d = h[j * k + j];
    if (!(d >= 0 && d < Infinity))
      throw new LowbitError(
        "E_CALIBRATION",
        `hessian${at}: expected finite diagonal entries >= 0, got ${d} at ${j}. Was it made from finite activations?`,
      );
    diagonal[j] = d === 0 ? 1 : d;
    if (d !== 0) continue;
    dead++;
    for (let row = 0; row < rows; row++) w.data[row * k + j] = 0;
  }
  if (dead === k)
    throw new LowbitError(
      "E_CALIBRATION",
      `hessian${at}: expected some inputs above zero, got ${k} dead inputs. Does any calibration data reach the layer?`,
    );
  const order = Int32Array.from({ length: k }, (_, j) => j);
  if (actOrder) order.sort((a, b) => diagonal[b] - diagonal[a] || a - b);
  return { diagonal, dead, order };
}

/** Damping as a share of the mean diagonal, and how often it is raised tenfold. */
interface Damping {
  readonly damp: number;
  readonly dampRetries: number;
}

/** U with (H + damp I)^-1 = U^T U, in the order of work. @throws LowbitError E_CALIBRATION when no damping helps */
export function* factorize(
  h: Float64Array,
  diagonal: Float64Array,
  order: Int32Array,
  k: number,
  { damp: least, dampRetries }: Damping,
  at: string,
  { algebra, factor, scratch }: HeldRoom,
  layer: string | undefined,
): Steps<{ factor: Float64Array; damp: number }> {
  let mean = 0;
  for (let j = 0; j < k; j++) mean += diagonal[j] / k;
  let damp = least;
  let bad = -1;
  for (let attempt = 0; attempt <= dampRetries; attempt++) {
    for (let i = 0; i < k; i++) {
      const from = order[i] * k;
      for (let j = 0; j < k; j++) factor[i * k + j] = h[from + order[j]];
      factor[i * k + i] = diagonal[order[i]] + damp * mean;
    }
    const steps = gptqFactorSteps(factor, k, algebra, scratch);
    for (;;) {
      const next = steps.next();
      bad = next.value;
      if (next.done) break;
      // Every 1024 columns or so: a factor of fewer is quick.
      if (next.value >= 1024 && next.value % 1024 < 64) yield { stage: "gptq factor", done: next.value, total: 2 * k, layer };
    }
    if (bad < 0) return { factor, damp };
    damp = Math.max(damp * 10, 1e-8);
  }
  throw new LowbitError(
    "E_CALIBRATION",
    `hessian${at}: expected a positive definite matrix, got a bad pivot at input ${order[bad]} even with damp ${damp / 10}. Calibrate on more varied data, or raise damp.`,
  );
}
