// What the families of packed products on the WebAssembly backend share: a weight in memory with the product on it, and
// staged activations.
import type { Kernel, Space } from "../../../kernels/wasm/engine/engine.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { resultStride } from "../../../kernels/wasm/products/tiles.ts";
import type { Explanation } from "../types.ts";

/**
 * Rows of activations [m, k]: an array, or the address of float32 in the product's own memory, which it reads where
 * they lie if their layout allows.
 */
export type Rows = Float32Array | number;

/** Rows [from, from + count). */
export const rowsFrom = (x: Rows, from: number, count: number, k: number): Rows =>
  typeof x === "number" ? x + 4 * from * k : x.length === count * k ? x : x.subarray(from * k, (from + count) * k);

/** Memory for a weight and the product on it: x * w^T goes to c. */
export interface Product {
  readonly space: Space;
  readonly address: number;
  readonly name: (m: number) => string;
  readonly activations: Explanation["activations"];
  readonly reasons: readonly string[];
  /** Padded rows of c for m rows of x. */
  rows(m: number): number;
  /** Writes the weight; zeros stand in its place before. */
  pack(): void;
  /** The kernel for one row. */
  kernel(): Kernel;
  /**
   * `stride`: floats between rows of c, at least n padded to 16. `blocks`: of 16 rows of the weight, the first ones;
   * default all.
   */
  multiply(x: Rows, m: number, c: number, stride: number, blocks?: number): void;
  /** Measures tiles for m rows where tuning is on and this kind of product has no choice yet. */
  tune?(x: Rows, m: number): void;
}

/** Zeros in memory for a weight. @throws LowbitError E_DEVICE */
export function weightMemory(runtime: Runtime, bytes: number): { readonly space: Space; readonly address: number } {
  const marks = new Map(runtime.spaces.map((space) => [space, space.arena.mark]));
  const memory = runtime.allocate(bytes);
  const { space, address } = memory;
  // memory that was never in use is zeros: it is not touched before it is needed
  const end = Math.min(address + bytes, marks.get(space) ?? 0);
  if (end > address) new Uint8Array(space.buffer, address, end - address).fill(0);
  return memory;
}

/**
 * V8 hands a kernel to its optimising compiler after some 13 MB of baseline code run: about so many elements of k of a
 * block.
 */
const WARM_ELEMENTS = 2 ** 18;

/** Small weights do not reach it in a reasonable number of products. */
const WARM_PRODUCTS = 48;

const warmed = new WeakSet<Kernel>();

/**
 * Packs the weight, and makes the code for one row before the first call that matters: a kernel that is new to the
 * process runs on zeros until V8 takes it up for optimisation, which goes on beside the packing.
 */
export function packWarm(product: Product, n: number, k: number): void {
  const stride = resultStride(n, 1);
  const x = new Float32Array(k);
  const c = product.space.scratch("c", 4 * stride * product.rows(1));
  const multiply = (blocks: number): void => product.multiply(x, 1, c, stride, blocks);
  const kernel = product.kernel();
  if (!warmed.has(kernel)) {
    warmed.add(kernel);
    const blocks = Math.min(Math.ceil(n / 16), Math.ceil(WARM_ELEMENTS / k));
    const products = Math.min(WARM_PRODUCTS, Math.ceil(WARM_ELEMENTS / (blocks * k)));
    for (let i = 0; i < products; i++) multiply(blocks);
  }
  product.pack();
  // brings back what packing pushed out of the caches
  multiply(1);
}

/** How k is cut for a kernel: `groups` of `span` elements (the last one as long as it is), each padded to `group`. */
export interface Groups {
  readonly k: number;
  readonly span: number;
  readonly group: number;
  readonly groups: number;
}

/**
 * Rows of the next pass of `left`, at most `most`, or one more: a single row at the end would take other kernels than
 * several, with another order of float32 sums.
 */
export const passRows = (left: number, most: number): number => (left <= most + 1 ? left : most);

/**
 * The address of x [m, k] as [rows][groups * group], with zeros where a group is padded: a copy in scratch space, or x
 * itself where nothing is padded. Rows from m on hold zeros in a copy and whatever lies behind x otherwise; no result
 * depends on them.
 */
export function stage(space: Space, x: Rows, m: number, rows: number, { k, span, group, groups }: Groups): number {
  const width = groups * group;
  const plain = span === group && width === k;
  if (typeof x === "number" && plain && x + 4 * rows * k <= space.buffer.byteLength) return x;
  const address = space.scratch("x", 4 * width * rows);
  space.record = null;
  const source = typeof x === "number" ? new Float32Array(space.buffer, x, m * k) : x;
  const target = new Float32Array(space.buffer, address, width * rows);
  if (plain) target.set(source);
  else if (span === group)
    for (let r = 0; r < m; r++) {
      target.set(source.subarray(r * k, (r + 1) * k), r * width);
      target.fill(0, r * width + k, (r + 1) * width);
    }
  else {
    target.fill(0);
    for (let r = 0; r < m; r++)
      for (let g = 0; g < groups; g++) {
        const from = r * k + g * span;
        target.set(source.subarray(from, Math.min(from + span, (r + 1) * k)), r * width + g * group);
      }
  }
  if (rows > m) target.fill(0, m * width);
  return address;
}
