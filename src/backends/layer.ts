// Checks that every backend's layers share.
import { LowbitError } from "../../formats/core/errors.ts";

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

export function disposed(): LowbitError {
  return new LowbitError("E_DISPOSED", "layer: expected a live layer, got one that was disposed. Prepare the weight again.");
}
