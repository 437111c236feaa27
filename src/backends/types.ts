// The contract between the tensor API and a backend: prepare a packed weight once, then run products on it.
import type { PackedTensor } from "../../formats/core/types.ts";

/** How activations enter the product. `float32`: as they are. `int16`, `int8`: quantized on the fly per block (error near 1e-5, 4e-3). */
export type Activations = "float32" | "int16" | "int8";

export interface PrepareOptions {
  /** Default "float32". */
  readonly activations?: Activations;
  /** Allow an approximate int8 table for codebook formats; default exact. */
  readonly codebook?: "exact" | "int8";
}

/** Which kernel runs and why. */
export interface Explanation {
  readonly backend: string;
  readonly kernel: string;
  readonly activations: Activations;
  readonly reasons: readonly string[];
}

/** A prepared weight [n, k]. `runAsync` works on every backend. */
export interface AsyncLayer {
  readonly n: number;
  readonly k: number;
  /** y[m, n] = x[m, k] * w^T. @throws LowbitError E_SHAPE, E_DISPOSED */
  runAsync(x: Float32Array, m: number, out?: Float32Array): Promise<Float32Array>;
  explain(): Explanation;
  /** Frees what the backend holds. Safe to call twice. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/** A layer of a backend that can answer at once. */
export interface SyncLayer extends AsyncLayer {
  run(x: Float32Array, m: number, out?: Float32Array): Float32Array;
}

export interface Backend<L extends AsyncLayer = AsyncLayer> {
  readonly name: string;
  /** @throws LowbitError E_UNSUPPORTED, E_DEVICE */
  prepare(w: PackedTensor, options: PrepareOptions): L;
}
