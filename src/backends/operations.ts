// Checks of the operations that backends offer beside packed products, so that every backend refuses the same arguments
// in the same words.
import { LowbitError } from "../../formats/core/errors.ts";
import type { NumberFormat } from "../../formats/core/types.ts";
import { affineWords, type AffineWords } from "../../kernels/planes.ts";

/** How the values of a format of small integers follow from its codes. @throws LowbitError E_UNSUPPORTED */
export function planeWords(format: NumberFormat, what: string): AffineWords {
  const found = format.table === null || format.bits > 8 ? null : affineWords(format.table, format.bits);
  if (found === null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${what}: expected a format of at most 8 bits whose values are evenly spaced integers in the order of its codes, got ${format.name}. Use prepareMatmul.`,
    );
  return found;
}

/** @throws LowbitError E_SHAPE, RangeError */
export function checkCodes(codes: ArrayLike<number>, count: number, bits: number, what: string): void {
  if (codes.length !== count) throw new LowbitError("E_SHAPE", `${what}: expected ${count} codes, got ${codes.length}.`);
  for (let i = 0; i < count; i++)
    if (codes[i] >>> bits !== 0 || !Number.isInteger(codes[i]))
      throw new RangeError(`${what}[${i}]: expected a code of ${bits} bits, got ${codes[i]}.`);
}

/** @throws LowbitError E_SHAPE */
export function checkSizes(n: number, k: number, what: string): void {
  if (!Number.isSafeInteger(n) || !Number.isSafeInteger(k) || n < 1 || k < 1)
    throw new LowbitError("E_SHAPE", `${what}: expected positive sizes, got [${n}, ${k}].`);
}

/** @throws LowbitError E_SHAPE */
export function checkRows(m: number, length: number, expected: number): void {
  if (!Number.isSafeInteger(m) || m < 1) throw new LowbitError("E_SHAPE", `run m: expected a positive number of rows, got ${m}.`);
  if (length !== expected) throw new LowbitError("E_SHAPE", `run out: expected ${expected} values, got ${length}.`);
}

/** An int8 weight [n, k]. @throws LowbitError E_SHAPE, TypeError */
export function checkInteger(w: Int8Array, n: number, k: number): void {
  if (!(w instanceof Int8Array)) throw new TypeError("prepareInteger w: expected an Int8Array.");
  if (!Number.isSafeInteger(n) || !Number.isSafeInteger(k) || n < 1 || k < 1 || w.length !== n * k)
    throw new LowbitError("E_SHAPE", `prepareInteger w: expected ${n} x ${k} values, got ${w.length}.`);
}

/** Activations [m, k] of an int8 weight. @throws LowbitError E_SHAPE, TypeError */
export function checkIntegerRun(a: Int8Array | Uint8Array, m: number, n: number, k: number, out: Int32Array): void {
  if (!(a instanceof Int8Array || a instanceof Uint8Array)) throw new TypeError("run a: expected an Int8Array or Uint8Array.");
  if (!Number.isSafeInteger(m) || m < 1 || a.length !== m * k || out.length !== m * n)
    throw new LowbitError("E_SHAPE", `run: expected a of ${m} x ${k} and out of ${m} x ${n}, got ${a.length} and ${out.length}.`);
}

/** Rows of n values for the Walsh-Hadamard transform. @throws LowbitError E_SHAPE, TypeError */
export function checkFwht(x: Float32Array, n: number): void {
  if (!(x instanceof Float32Array)) throw new TypeError("fwht x: expected a Float32Array.");
  if (!Number.isSafeInteger(n) || n < 4 || n > 2 ** 20 || (n & (n - 1)) !== 0)
    throw new LowbitError("E_SHAPE", `fwht n: expected a power of two from 4 to 2^20, got ${n}.`);
  if (x.length % n !== 0) throw new LowbitError("E_SHAPE", `fwht x: expected rows of ${n}, got ${x.length} values.`);
}
