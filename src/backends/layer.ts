// Checks that every backend's layers share.
import { LowbitError } from "../../formats/core/errors.ts";
import type { MixedChannels } from "./types.ts";

/** Validates the activations of `run`. @throws LowbitError E_SHAPE; TypeError */
export function checkActivations(x: Float32Array, m: number, k: number): void {
  if (!(x instanceof Float32Array)) throw new TypeError("run x: expected a Float32Array of activations [m, k].");
  if (!Number.isSafeInteger(m) || m < 1) throw new LowbitError("E_SHAPE", `run m: expected a positive number of rows, got ${m}.`);
  if (x.length !== m * k)
    throw new LowbitError(
      "E_SHAPE",
      `run x: expected ${m} x ${k} = ${m * k} activations, got ${x.length}. The contracted side of the weight is k = ${k}.`,
    );
}

/** Validates the output of `run`. @throws LowbitError E_SHAPE */
export function checkOutput(out: Float32Array | undefined, m: number, n: number): void {
  if (out !== undefined && (!(out instanceof Float32Array) || out.length !== m * n))
    throw new LowbitError(
      "E_SHAPE",
      `run out: expected a Float32Array of ${m} x ${n} = ${m * n}, got ${out?.length}. Leave it out to have one made.`,
    );
}

/** Validates the arguments of `run` and returns the output array [m, n]. @throws LowbitError E_SHAPE; TypeError */
export function checkRun(x: Float32Array, m: number, n: number, k: number, out: Float32Array | undefined): Float32Array {
  checkActivations(x, m, k);
  checkOutput(out, m, n);
  return out ?? new Float32Array(m * n);
}

/** @throws RangeError, TypeError for a Hadamard transform of activations that a product cannot do */
export function checkHadamard(n: number, k: number, activations: string): void {
  if (!Number.isSafeInteger(n) || n < 4 || n > 4096 || (n & (n - 1)) !== 0 || k % n !== 0)
    throw new RangeError(`prepareMatmul hadamard: expected a power of two from 4 to 4096 that divides k = ${k}, got ${n}.`);
  if (activations === "float32")
    throw new TypeError(
      'prepareMatmul hadamard: expected integer activations, got "float32". Rotate float32 activations with backend.fwht.',
    );
}

/** `MixedChannels` of a weight: whole groups of channels, and the order of those of x where it is not the weight's. */
export interface Mixture {
  readonly wide: number;
  readonly order: Int32Array | null;
}

export const UNMIXED: Mixture = { wide: 0, order: null };

/**
 * `span`: channels that share an activation scale.
 * @throws LowbitError E_SHAPE, E_UNSUPPORTED; TypeError, RangeError
 */
export function checkMixed(
  mixed: MixedChannels | undefined,
  { k, span, activations, hadamard }: { k: number; span: number; activations: string; hadamard: number | undefined },
): Mixture {
  if (mixed === undefined) return UNMIXED;
  if (activations !== "int4" && activations !== "int6")
    throw new TypeError(`prepareMatmul mixed: expected activations "int4" or "int6" beside it, got "${activations}".`);
  if (hadamard !== undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      "prepareMatmul mixed: expected no hadamard, which spreads outliers over all channels, got both. Take one of them.",
    );
  const { wide } = mixed;
  if (!Number.isSafeInteger(wide) || wide < 0 || wide > k)
    throw new RangeError(`prepareMatmul mixed: expected 0 to k = ${k} wide channels, got ${String(wide)}.`);
  const whole = Math.min(k, span === 0 ? wide : Math.ceil(wide / span) * span);
  if (mixed.order === undefined) return { wide: whole, order: null };
  const order = Int32Array.from(mixed.order);
  const seen = new Uint8Array(k);
  order.forEach((channel) => (seen[channel] = 1));
  if (order.length !== k || seen.includes(0))
    throw new LowbitError("E_SHAPE", `prepareMatmul mixed: expected an order of ${k} channels, each once, got ${order.length}.`);
  return { wide: whole, order: order.every((channel, p) => channel === p) ? null : order };
}

/** Rows of x with channel order[p] at place p. */
export function arranged(x: Float32Array, order: Int32Array, out = new Float32Array(x.length)): Float32Array {
  const k = order.length;
  for (let from = 0; from < x.length; from += k) for (let p = 0; p < k; p++) out[from + p] = x[from + order[p]];
  return out;
}

export function disposed(): LowbitError {
  return new LowbitError("E_DISPOSED", "layer: expected a live layer, got one that was disposed. Prepare the weight again.");
}
