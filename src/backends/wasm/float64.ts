// float64 products C += alpha A^T B on the threads of a WebAssembly backend, for the algebra of the quantizers: arrays
// made by `allocate` are worked on in place, others are copied in and out. Results do not depend on the number of
// threads.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Space } from "../../../kernels/wasm/engine/engine.ts";
import { float64, MAX_DEPTH, PRODUCT_SLACK, productJob, productPanelBytes } from "../../../kernels/wasm/float/float64.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { disposed } from "../layer.ts";

/** Rows of A, B and C that a product reads and writes. */
export interface Float64Operand {
  readonly data: Float64Array;
  /** Index of its first number, and numbers from one row to the next. */
  readonly at: number;
  readonly ld: number;
}

export interface Float64Algebra {
  readonly threads: number;
  /** n zeros in the backend's memory. @throws LowbitError E_DEVICE, E_DISPOSED */
  allocate(n: number): { readonly data: Float64Array; free(): void };
  /**
   * C[i, j] += alpha * sum over p < depth of A[p, i] * B[p, j], i < m, j < n. With `lower` only j <= i is needed: the
   * rest is left or changed.
   * @throws LowbitError E_DEVICE, E_DISPOSED
   */
  product(
    c: Float64Operand,
    a: Float64Operand,
    b: Float64Operand,
    size: { readonly m: number; readonly n: number; readonly depth: number },
    alpha: number,
    lower: boolean,
  ): void;
}

/** Bytes of a result that is copied out at once. */
const OUT_BYTES = 32 * 1024 * 1024;

export function float64Algebra(runtime: Runtime): Float64Algebra {
  /** Arrays in shared memory, whose buffers stay what they are when it grows. */
  const owners = new WeakMap<object, Space>();
  const live = () => {
    if (!runtime.live) throw disposed();
  };

  const place = (space: Space, operand: Float64Operand, name: string, rows: number, columns: number): { address: number; ld: number } => {
    const { data, at, ld } = operand;
    if (owners.get(data.buffer) === space) return { address: data.byteOffset + 8 * at, ld };
    const address = space.scratch(name, 8 * rows * columns + PRODUCT_SLACK);
    const to = new Float64Array(space.buffer, address, rows * columns);
    for (let r = 0; r < rows; r++) to.set(data.subarray(at + r * ld, at + r * ld + columns), r * columns);
    return { address, ld: columns };
  };

  return {
    threads: runtime.threads,
    allocate(n) {
      live();
      const { space, address } = runtime.allocate(8 * n + PRODUCT_SLACK);
      const data = new Float64Array(space.buffer, address, n).fill(0);
      // Memory that is not shared may move: a backend of one thread hands out plain arrays.
      if (!runtime.shared) {
        space.arena.free(address);
        return { data: new Float64Array(n), free: () => undefined };
      }
      owners.set(data.buffer, space);
      let held = true;
      return {
        data,
        free() {
          if (held && runtime.live) space.arena.free(address);
          held = false;
        },
      };
    },
    product(c, a, b, { m, n, depth }, alpha, lower) {
      live();
      if (m === 0 || n === 0 || depth === 0) return;
      const space = owners.get(c.data.buffer) ?? owners.get(a.data.buffer) ?? owners.get(b.data.buffer) ?? spaceOf(runtime);
      const built = kernel(float64, { shared: runtime.shared });
      const inPlace = owners.get(c.data.buffer) === space;
      for (let p = 0; p < depth; p += MAX_DEPTH) {
        const d = Math.min(MAX_DEPTH, depth - p);
        const left = place(space, { ...a, at: a.at + p * a.ld }, "float64 a", d, m);
        const right = place(space, { ...b, at: b.at + p * b.ld }, "float64 b", d, n);
        const common = { b: right.address, ldb: right.ld, lda: left.ld, depth: d, alpha };
        if (inPlace) {
          const target = { c: c.data.byteOffset + 8 * c.at, ldc: c.ld, a: left.address };
          const { items, args } = productJob({ ...common, ...target, m, n, lower }, runtime.threads);
          runtime.work(space, built, items, args, productPanelBytes(d));
          continue;
        }
        // Bands of rows; those of a lower triangle end at their own diagonal.
        const band = Math.max(4, Math.min(m, Math.floor(OUT_BYTES / 8 / n / 4) * 4));
        for (let i = 0; i < m; i += band) {
          const rows = Math.min(band, m - i);
          const width = lower ? Math.min(n, i + rows) : n;
          const address = space.scratch("float64 c", 8 * rows * width);
          new Float64Array(space.buffer, address, rows * width).fill(0);
          const target = { c: address, ldc: width, a: left.address + 8 * i };
          const { items, args } = productJob({ ...common, ...target, m: rows, n: width, lower: lower && i === 0 }, runtime.threads);
          runtime.work(space, built, items, args, productPanelBytes(d));
          const out = new Float64Array(space.buffer, address, rows * width);
          for (let r = 0; r < rows; r++) {
            const to = c.at + (i + r) * c.ld;
            const end = lower ? Math.min(width, i + r + 1) : width;
            for (let j = 0, from = r * width; j < end; j++) c.data[to + j] += out[from + j];
          }
        }
      }
    },
  };
}

/** The first space, made by a small allocation where there is none yet. */
function spaceOf(runtime: Runtime): Space {
  const first = runtime.spaces.at(0);
  if (first !== undefined) return first;
  const { space, address } = runtime.allocate(64);
  space.arena.free(address);
  if (runtime.spaces.at(0) === undefined) throw new LowbitError("E_DEVICE", "WebAssembly memory: expected one, got none.");
  return space;
}
