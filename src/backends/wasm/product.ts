// What the families of packed products on the WebAssembly backend share: a weight in memory with the product on it, and staged activations.
import type { Space } from "../../../kernels/wasm/engine.ts";
import type { Explanation } from "../types.ts";

/** A weight in memory and the product on it: x * w^T goes to c. */
export interface Product {
  readonly space: Space;
  readonly address: number;
  readonly name: (m: number) => string;
  readonly activations: Explanation["activations"];
  readonly reasons: readonly string[];
  /** Padded rows of c for m rows of x. */
  rows(m: number): number;
  /** `stride`: floats between rows of c, at least n padded to 16. */
  multiply(x: Float32Array, m: number, c: number, stride: number): void;
  /** Measures tiles for m rows where tuning is on and this kind of product has no choice yet. */
  tune?(x: Float32Array, m: number): void;
}

/** Copies x [m, k] to [m][groups * group] with zeros between a short group and the next. */
export function stage(
  space: Space,
  x: Float32Array,
  m: number,
  k: number,
  span: number,
  group: number,
  groups: number,
  rows: number,
): number {
  const width = groups * group;
  const address = space.scratch("x", 4 * width * rows);
  const target = new Float32Array(space.buffer, address, width * rows);
  if (span === group) {
    if (width === k) target.set(x);
    else
      for (let r = 0; r < m; r++) {
        target.set(x.subarray(r * k, (r + 1) * k), r * width);
        target.fill(0, r * width + k, (r + 1) * width);
      }
  } else {
    target.fill(0);
    for (let r = 0; r < m; r++)
      for (let g = 0; g < groups; g++) {
        const from = r * k + g * span;
        target.set(x.subarray(from, Math.min(from + span, (r + 1) * k)), r * width + g * group);
      }
  }
  if (rows > m) target.fill(0, m * width);
  return address;
}
