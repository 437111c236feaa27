// How activations are quantized for integer products: part of what a product means, so that every backend does the
// same. Groups along k take a scale each; whether a weight takes integer activations at all follows from its values.
// Float steps are float32 throughout.
import type { WeightSource } from "./weight.ts";
import { latticePlan, tablePlan } from "./plan.ts";

/** Bits of integer activations. Codes of fewer than 8 are multiplied as bytes. */
export type ActivationBits = 4 | 6 | 8 | 16;

/** Bits by the name that users give. */
export const ACTIVATION_BITS: ReadonlyMap<string, ActivationBits> = new Map([
  ["int4", 4],
  ["int6", 6],
  ["int8", 8],
  ["int16", 16],
]);

/** Largest magnitude of a code: 7, 31, 127, or 127 * 256 + 127 so that both bytes of a 16-bit code stay signed. */
export const activationMax = (bits: ActivationBits): number => (bits === 16 ? 127 * 257 : 2 ** (bits - 1) - 1);

/**
 * Elements of k that one activation scale covers: the weight's own span up to `cap`; a longer span is cut into equal
 * parts (a row into parts of 128), so that integer sums fit an int32 and outliers stay local. 0 where a span has no
 * divisor from 16 to 128.
 */
export function groupSpan(span: number, k: number, cap = 256): number {
  const length = Math.max(1, Math.min(span, k));
  if (length <= cap) return length;
  const most = Math.min(cap, 128);
  if (span >= k) return most;
  for (let n = most; n >= 16; n--) if (span % n === 0) return n;
  return length <= 256 ? length : 0;
}

/** Why a weight keeps float32 activations, or null where it takes integer ones. */
export function integerRefusal(source: WeightSource): string | null {
  const { values, bits } = source;
  if (values === null || bits > 8) return "codes wider than 8 bits";
  if (latticePlan(values) === null && tablePlan(values, 2) === null)
    return bits > 4 ? "values on no grid of 255 steps, and more than 16 of them" : "codes that are not finite";
  if (groupSpan(source.span, source.k) === 0) return `blocks of ${source.span} cannot be cut into equal groups of at most 256`;
  return null;
}

/**
 * Replaces the activations of one row by their quantized values, code * scale: scale = amax / max, code = rne(x /
 * scale), both in float32. A group that holds NaN or an infinity becomes NaN.
 */
export function quantizeActivations(x: Float32Array, bits: ActivationBits, span: number, out: Float64Array): void {
  const max = activationMax(bits);
  for (let from = 0; from < x.length; from += span) {
    const to = Math.min(x.length, from + span);
    let amax = 0;
    for (let i = from; i < to; i++) {
      const magnitude = Math.abs(x[i]);
      if (magnitude > amax || Number.isNaN(magnitude)) amax = magnitude;
      if (Number.isNaN(amax)) break;
    }
    const scale = Math.fround(amax / max);
    for (let i = from; i < to; i++) {
      if (!Number.isFinite(scale)) out[i] = NaN;
      else if (scale === 0) out[i] = 0;
      else {
        const ratio = Math.fround(x[i] / scale);
        const down = Math.floor(ratio);
        const rest = ratio - down;
        const code = rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
        out[i] = Math.max(-max, Math.min(max, code)) * scale;
      }
    }
  }
}
