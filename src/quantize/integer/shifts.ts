// Products without multiplications: weights that are powers of two by shifts (ShiftAddViT, arXiv 2306.06446), binary
// queries and keys by Hamming distances, ternary weights by additions (BitNet b1.58, MatMul-free LM,
// arXiv 2406.02528). These are the references, in exact integers; packed products of the same formats (float4_e3m0,
// ternary) run on the kernels of every backend and give the same numbers.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor, BlockFormat } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/index.ts";
import { float32 } from "../../../formats/float32.ts";
import { ternary } from "../../../formats/ternary.ts";
import { quantize } from "../../tensor/quantize/index.ts";
import { matrixView, readRows, tensor, type Tensor } from "../../tensor/tensor.ts";

/** Weights [n, k]: sign * 2^exponent, sign -1, 0 or 1. */
export interface ShiftWeights {
  readonly n: number;
  readonly k: number;
  readonly signs: Int8Array;
  /** 0 to 15. */
  readonly exponents: Uint8Array;
}

const checkProduct = (what: string, x: ArrayLike<number>, m: number, n: number, k: number, weights: ArrayLike<number>): void => {
  if (x.length !== m * k || weights.length !== n * k)
    throw new LowbitError("E_SHAPE", `${what}: expected [${m}, ${k}] times [${n}, ${k}], got ${x.length} and ${weights.length} numbers.`);
};

/**
 * y[m, n] = x[m, k] * w^T by shifts and additions; sums wrap at 32 bits.
 * @throws LowbitError E_SHAPE; RangeError for exponents above 15
 * @example
 * const w = { n: 1, k: 2, signs: Int8Array.of(1, -1), exponents: Uint8Array.of(3, 0) }; // 8 and -1
 * shiftProduct(Int8Array.of(5, 2), 1, w) // [38]
 */
export function shiftProduct(x: Int8Array, m: number, { n, k, signs, exponents }: ShiftWeights): Int32Array {
  checkProduct("shiftProduct", x, m, n, k, signs);
  if (exponents.length !== signs.length || exponents.some((e) => e > 15))
    throw new RangeError("shiftProduct: expected an exponent from 0 to 15 for every sign. Take powers of two over the smallest one.");
  const y = new Int32Array(m * n);
  for (let r = 0; r < m; r++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let i = 0; i < k; i++) {
        const at = j * k + i;
        const shifted = x[r * k + i] << exponents[at];
        if (signs[at] > 0) sum = (sum + shifted) | 0;
        else if (signs[at] < 0) sum = (sum - shifted) | 0;
      }
      y[r * n + j] = sum;
    }
  return y;
}

/**
 * y[m, n] = x[m, k] * w^T of weights -1, 0 and 1, by additions. @throws LowbitError E_SHAPE
 * @example ternaryProduct(Int8Array.of(5, 2, 7), 1, Int8Array.of(1, 0, -1), 1, 3) // [-2]
 */
export function ternaryProduct(x: Int8Array, m: number, w: Int8Array, n: number, k: number): Int32Array {
  checkProduct("ternaryProduct", x, m, n, k, w);
  const y = new Int32Array(m * n);
  for (let r = 0; r < m; r++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let i = 0; i < k; i++) {
        const sign = w[j * k + i];
        if (sign > 0) sum += x[r * k + i];
        else if (sign < 0) sum -= x[r * k + i];
      }
      y[r * n + j] = sum | 0;
    }
  return y;
}

const TERNARY: BlockFormat = /* @__PURE__ */ defineBlock({ element: ternary, scales: [{ format: float32, span: "tensor" }] });

/**
 * Ternary weights of BitNet b1.58 and MatMul-free LM: gamma = max(mean |w|, 1e-5), codes clip(rne(w / gamma), -1, 1),
 * one scale for all. Products by it are those of `ternary` on every backend.
 * @throws LowbitError as `quantize`
 * @example unpack(absmeanTernary(tensor(Float32Array.of(0.9, -0.1, -1.4, 0.6), [1, 4]))) // [1, 0, 3, 1]: 3 is -1
 */
export function absmeanTernary(weight: Tensor): PackedTensor {
  const view = matrixView(weight);
  const values = new Float64Array(view.rows * view.k);
  readRows(view, 0, view.rows, values);
  let sum = 0;
  for (const v of values) sum += Math.abs(v);
  const gamma = Math.fround(Math.max(values.length === 0 ? 0 : sum / values.length, 1e-5));
  // some |w| is at least the mean: the scale, the largest magnitude, is gamma
  const clipped = Float32Array.from(values, (v) => Math.max(-gamma, Math.min(gamma, v)));
  const packed = quantize(tensor(clipped, [view.rows, view.k]), TERNARY);
  return { ...packed, recipe: { ...packed.recipe, algorithm: "absmean" } };
}

/**
 * Rows of numbers as their signs, 32 to a word, a bit set where a number is negative.
 * @throws LowbitError E_SHAPE
 * @example packSigns(Float32Array.of(1, -1, -1, 2), 4) // [0b0110]
 */
export function packSigns(x: Float32Array, d: number): Uint32Array {
  if (!Number.isSafeInteger(d) || d < 1 || x.length % d !== 0)
    throw new LowbitError("E_SHAPE", `packSigns: expected rows of ${d} numbers, got ${x.length} numbers. Give whole rows.`);
  const words = Math.ceil(d / 32);
  const out = new Uint32Array((x.length / d) * words);
  for (let i = 0; i < x.length; i++) {
    const [r, j] = [Math.floor(i / d), i % d];
    if (x[i] < 0) out[r * words + (j >> 5)] |= 1 << (j & 31);
  }
  return out;
}

const bits = (v: number): number => {
  let x = v - ((v >>> 1) & 0x55555555);
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  return Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
};

/**
 * Attention scores of binary queries and keys: the dot product of their signs, d - 2 * the Hamming distance. [queries,
 * keys], each from -d to d.
 * @param q @param k signs by `packSigns`
 * @throws LowbitError E_SHAPE
 * @example
 * const q = packSigns(Float32Array.of(1, -1, 1), 3);
 * const keys = packSigns(Float32Array.of(1, -1, 1, -1, 1, 1), 3);
 * hammingScores(q, keys, 3) // [3, -1]
 */
export function hammingScores(q: Uint32Array, k: Uint32Array, d: number): Int32Array {
  const words = Math.ceil(d / 32);
  if (!(d >= 1) || q.length % words !== 0 || k.length % words !== 0)
    throw new LowbitError(
      "E_SHAPE",
      `hammingScores: expected rows of ${words} words for ${d} signs, got ${q.length} and ${k.length} words.`,
    );
  const [m, n] = [q.length / words, k.length / words];
  const out = new Int32Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let distance = 0;
      for (let w = 0; w < words; w++) distance += bits(q[i * words + w] ^ k[j * words + w]);
      out[i * n + j] = d - 2 * distance;
    }
  return out;
}

/** What a layer could be computed by, as measured. */
export interface Primitive {
  readonly name: string;
  /** Latency, in any unit that all share. */
  readonly ms: number;
  /** Loss that it brings, as measured or predicted; losses add up. */
  readonly loss: number;
}

/** What the losses of chosen primitives may come to. */
export interface MixtureOptions {
  /** Bound on the sum of losses; default none. */
  readonly maxLoss?: number;
  /** Bound on the loss of each layer; default none. */
  readonly layerLoss?: number;
}

/** The primitive chosen for each layer, with the time and loss of all. */
export interface Mixture {
  /** The primitive of each layer. */
  readonly chosen: ReadonlyMap<string, Primitive>;
  readonly ms: number;
  readonly loss: number;
}

/**
 * The primitive of every layer (multiplications, shifts, additions ...) that makes the whole fastest within its loss:
 * from the most exact ones on, the exchange that saves the most time for the loss it brings, until none fits.
 * @throws RangeError for layers without primitives, losses and latencies that are no numbers; LowbitError E_UNSUPPORTED
 * where no choice is within the bounds
 * @example
 * const rows = [
 *   { name: "multiply", ms: 4, loss: 0 },
 *   { name: "shift", ms: 1, loss: 0.02 },
 * ];
 * planMixture(new Map([["query", rows], ["mlp", rows]]), { maxLoss: 0.03 }).ms // 5: one layer may shift
 */
export function planMixture(
  layers: ReadonlyMap<string, readonly Primitive[]>,
  { maxLoss = Infinity, layerLoss = Infinity }: MixtureOptions = {},
): Mixture {
  const chosen = new Map<string, Primitive>();
  const fitting = new Map<string, Primitive[]>();
  for (const [name, primitives] of layers) {
    if (primitives.length === 0 || primitives.some(({ ms, loss }) => !(ms >= 0) || !(loss >= 0)))
      throw new RangeError(`planMixture ${name}: expected primitives with a latency and a loss from 0, got ${JSON.stringify(primitives)}.`);
    const within = primitives.filter(({ loss }) => loss <= layerLoss).sort((a, b) => a.loss - b.loss || a.ms - b.ms);
    if (within.length === 0)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `planMixture ${name}: expected a primitive with a loss of at most ${layerLoss}, got none. Raise layerLoss.`,
      );
    fitting.set(name, within);
    chosen.set(name, within[0]);
  }
  const total = (of: "ms" | "loss"): number => [...chosen.values()].reduce((sum, primitive) => sum + primitive[of], 0);
  if (total("loss") > maxLoss)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `planMixture: expected a sum of losses of at most ${maxLoss}, got ${total("loss")} from the most exact primitives. Raise maxLoss.`,
    );
  for (;;) {
    let best: { name: string; to: Primitive; gain: number } | null = null;
    const spent = total("loss");
    for (const [name, within] of fitting) {
      const now = chosen.get(name)!;
      for (const to of within) {
        const [saved, cost] = [now.ms - to.ms, to.loss - now.loss];
        if (saved <= 0 || spent + cost > maxLoss) continue;
        const gain = cost <= 0 ? Infinity : saved / cost;
        if (best === null || gain > best.gain || (gain === best.gain && to.ms < best.to.ms)) best = { name, to, gain };
      }
    }
    if (best === null) return { chosen, ms: total("ms"), loss: total("loss") };
    chosen.set(best.name, best.to);
  }
}
