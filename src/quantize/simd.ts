// The products of the quantizers by SIMD where the engine has it. `fastProduct` takes arrays that lie anywhere: tiles
// are copied into the kernel's memory, multiplied there and added to C. `openAlgebra` hands out arrays in WebAssembly
// memory, on which products work in place: in a memory of its own (one thread), or in that of a backend (its threads).
// Without WebAssembly, and for products too small to pay for copying, the plain loop. All sum in float64.
import { engine, type WasmFunction, type WasmMemory } from "../../kernels/wasm/engine/engine.ts";
import {
  float64Module,
  MAX_DEPTH,
  PRODUCT_SLACK,
  productJob,
  productPanelBytes,
  type ProductPlace,
} from "../../kernels/wasm/float/float64.ts";
import { jobBytes, writeJob } from "../../kernels/wasm/engine/items.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Float64Algebra } from "../backends/wasm/float64.ts";
import { algebraOf, tnProductPlain, type Algebra, type TnProduct } from "./linalg.ts";

/** Where heavy algebra runs: a backend made by `await wasm({ threads })`. Default: one thread of the caller. */
export interface AlgebraOptions {
  readonly backend?: { readonly name: string; readonly float64?: Float64Algebra } | undefined;
}

/** @throws LowbitError E_UNSUPPORTED for a backend without float64 products */
export function threadsOf({ backend }: AlgebraOptions, what: string): Float64Algebra | null {
  if (backend === undefined) return null;
  if (typeof backend !== "object" || backend === null)
    throw new TypeError(`${what} backend: expected one made by await wasm({ threads }), got ${String(backend)}.`);
  if (backend.float64 === undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${what} backend: expected one with float64 products, got ${backend.name}. Pass await wasm({ threads }), or leave it out.`,
    );
  return backend.float64;
}

/** Numbers below which arrays stay outside WebAssembly. */
const SMALL = 1 << 20;

/** Tiles of `fastProduct`. */
const ROWS = 128;
const COLUMNS = 256;

interface Kernel {
  readonly memory: WasmMemory;
  /** First byte after arguments and panel. */
  readonly free: number;
  run(place: ProductPlace): void;
}

const PANEL = jobBytes(1);
const START = PANEL + Math.ceil(productPanelBytes(MAX_DEPTH) / 64) * 64;
const PAGE = 65536;

let bytes: Uint8Array<ArrayBuffer> | null | undefined;

/** A memory of up to so many bytes is kept for the next one who needs one: until it is collected it takes its room. */
const SPARE = 64 << 20;
let spare: Kernel | undefined;

/** The spare memory, grown where it is too small, or a new one. */
function takeKernel(size: number): Kernel | null {
  const kept = spare;
  spare = undefined;
  if (kept === undefined) return openKernel(size);
  const pages = Math.ceil((START + size) / PAGE) - kept.memory.buffer.byteLength / PAGE;
  try {
    if (pages > 0) kept.memory.grow(pages);
    return kept;
  } catch {
    return openKernel(size); // no room to grow in
  }
}

function giveBack(kernel: Kernel): void {
  if (kernel.memory.buffer.byteLength <= SPARE) spare ??= kernel;
}

/** A kernel with room for `size` bytes; null where the engine has no WebAssembly with SIMD, or no memory left. */
function openKernel(size: number): Kernel | null {
  if (bytes === undefined) {
    bytes = engine === undefined ? null : float64Module({ shared: false });
    if (bytes !== null && !engine.validate(bytes)) bytes = null;
  }
  const pages = Math.ceil((START + size) / PAGE);
  if (bytes === null || pages > 65536) return null;
  try {
    const memory = new engine.Memory({ initial: pages, maximum: 65536 });
    const work: WasmFunction = new engine.Instance(new engine.Module(bytes), { m: { m: memory } }).exports.work;
    let args = new Int32Array(memory.buffer, 0, PANEL / 4);
    return {
      memory,
      free: START,
      run(place) {
        if (args.length === 0) args = new Int32Array(memory.buffer, 0, PANEL / 4); // the memory has grown
        const job = productJob(place, 1);
        writeJob(args, job.args, job.items, 1);
        work(0, PANEL, 0);
      },
    };
  } catch {
    // No memory left for it: the plain product gives the same numbers, up to the order of its sums.
    return null;
  }
}

interface Staging extends Kernel {
  readonly a: Float64Array;
  readonly b: Float64Array;
  readonly c: Float64Array;
}

let staging: Staging | null | undefined;

function stage(): Staging | null {
  if (staging !== undefined) return staging;
  const sizes = [ROWS * MAX_DEPTH, COLUMNS * MAX_DEPTH, ROWS * COLUMNS];
  const kernel = openKernel(8 * (sizes[0] + sizes[1] + sizes[2]) + PRODUCT_SLACK);
  if (kernel === null) return (staging = null);
  let at = kernel.free;
  const [a, b, c] = sizes.map((n) => {
    const array = new Float64Array(kernel.memory.buffer, at, n);
    at += 8 * n;
    return array;
  });
  return (staging = { ...kernel, a, b, c });
}

/** As `tnProductPlain`, up to the order of the sums. */
export const fastProduct: TnProduct = (c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha) => {
  const kernel = m * n * depth < 32768 || m < 4 ? null : stage();
  if (kernel === null) {
    tnProductPlain(c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha);
    return;
  }
  for (let p0 = 0; p0 < depth; p0 += MAX_DEPTH) {
    const d = Math.min(MAX_DEPTH, depth - p0);
    for (let j0 = 0; j0 < n; j0 += COLUMNS) {
      const nc = Math.min(COLUMNS, n - j0);
      for (let p = 0, from = bAt + p0 * ldb + j0; p < d; p++, from += ldb) kernel.b.set(b.subarray(from, from + nc), p * nc);
      for (let i0 = 0; i0 < m; i0 += ROWS) {
        const mc = Math.min(ROWS, m - i0);
        for (let p = 0, from = aAt + p0 * lda + i0; p < d; p++, from += lda) kernel.a.set(a.subarray(from, from + mc), p * mc);
        kernel.c.fill(0, 0, mc * nc);
        kernel.run({
          a: kernel.a.byteOffset,
          lda: mc,
          b: kernel.b.byteOffset,
          ldb: nc,
          c: kernel.c.byteOffset,
          ldc: nc,
          m: mc,
          n: nc,
          depth: d,
          alpha,
          lower: false,
        });
        for (let i = 0; i < mc; i++) {
          const to = cAt + (i0 + i) * ldc + j0;
          const from = i * nc;
          for (let j = 0; j < nc; j++) c[to + j] += kernel.c[from + j];
        }
      }
    }
  }
};

/** An algebra with arrays of its own; `close` gives their memory back. */
export interface OpenAlgebra extends Algebra {
  /** n zeros. */
  array(n: number): Float64Array;
  close(): void;
}

/**
 * An algebra with room for arrays of `total` numbers in all, `count` of them.
 * @throws LowbitError E_DEVICE where a backend has no memory left
 */
export function openAlgebra(total: number, count: number, options: AlgebraOptions, what: string): OpenAlgebra {
  const threads = threadsOf(options, what);
  if (threads !== null && threads.threads > 1) {
    const held: { free(): void }[] = [];
    return {
      ...overBackend(threads),
      array(n) {
        const { data, free } = threads.allocate(n);
        held.push({ free });
        return data;
      },
      close() {
        for (const { free } of held.splice(0)) free();
      },
    };
  }
  // A memory takes address space until it is collected: not for small work.
  const kernel = total < SMALL ? null : takeKernel(8 * total + count * (PRODUCT_SLACK + 64));
  if (kernel === null) return { ...algebraOf(fastProduct), array: (n) => new Float64Array(n), close: () => undefined };
  let at = kernel.free;
  let open = true;
  const { buffer } = kernel.memory;
  const inside = (x: Float64Array) => x.buffer === buffer;
  const run = (place: ProductPlace): void => {
    for (let p = 0; p < place.depth; p += MAX_DEPTH)
      kernel.run({
        ...place,
        a: place.a + 8 * p * place.lda,
        b: place.b + 8 * p * place.ldb,
        depth: Math.min(MAX_DEPTH, place.depth - p),
      });
  };
  return {
    product(c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha) {
      if (!inside(c) || !inside(a) || !inside(b)) fastProduct(c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha);
      else if (m > 0 && n > 0)
        run({
          ...{ a: a.byteOffset + 8 * aAt, lda, b: b.byteOffset + 8 * bAt, ldb, c: c.byteOffset + 8 * cAt, ldc },
          ...{ m, n, depth, alpha, lower: false },
        });
    },
    lower(c, cAt, ldc, n, a, aAt, lda, b, bAt, ldb, depth, alpha) {
      if (!inside(c) || !inside(a) || !inside(b)) algebraOf(fastProduct).lower(c, cAt, ldc, n, a, aAt, lda, b, bAt, ldb, depth, alpha);
      else if (n > 0)
        run({
          ...{ a: a.byteOffset + 8 * aAt, lda, b: b.byteOffset + 8 * bAt, ldb, c: c.byteOffset + 8 * cAt, ldc },
          ...{ m: n, n, depth, alpha, lower: true },
        });
    },
    array(n) {
      const data = new Float64Array(buffer, at, n).fill(0);
      at += Math.ceil((8 * n + PRODUCT_SLACK) / 64) * 64;
      return data;
    },
    close() {
      if (open) giveBack(kernel);
      open = false;
    },
  };
}

/** The products of a backend; small ones stay on the caller's thread. */
export function overBackend(threads: Float64Algebra): Algebra {
  return {
    product(c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha) {
      if (m * n * depth < 32768) fastProduct(c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha);
      else
        threads.product(
          { data: c, at: cAt, ld: ldc },
          { data: a, at: aAt, ld: lda },
          { data: b, at: bAt, ld: ldb },
          { m, n, depth },
          alpha,
          false,
        );
    },
    lower(c, cAt, ldc, n, a, aAt, lda, b, bAt, ldb, depth, alpha) {
      threads.product(
        { data: c, at: cAt, ld: ldc },
        { data: a, at: aAt, ld: lda },
        { data: b, at: bAt, ld: ldb },
        { m: n, n, depth },
        alpha,
        true,
      );
    },
  };
}

/** The algebra for arrays of the caller's: a backend's threads, or one. */
export function algebraFor(options: AlgebraOptions, what: string): Algebra {
  const threads = threadsOf(options, what);
  return threads !== null && threads.threads > 1 ? overBackend(threads) : algebraOf(fastProduct);
}
