// Operations of the WebAssembly backend beside packed products: integer products and the Walsh-Hadamard transform.
import { hadamard } from "../../../kernels/wasm/convert/hadamard.ts";
import {
  INT8_SUMS_ARGUMENTS,
  INT8_CHUNK,
  INT8_PACK_ARGUMENTS,
  INT8_ROWS,
  INT8_SLAB,
  int8,
  int8Pack,
  int8Quad,
  packInt8,
  type Int8Spec,
} from "../../../kernels/wasm/dot/int8.ts";
import { resultStride, tileRows } from "../../../kernels/wasm/products/tiles.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { disposed } from "../layer.ts";
import { checkFwht, checkInteger, checkIntegerRun } from "../operations.ts";

/** An int8 weight [n, k] prepared for exact integer products. */
export interface IntegerLayer {
  readonly n: number;
  readonly k: number;
  /** y[m, n] = a[m, k] * w^T in int32; sums wrap at 32 bits. @throws LowbitError E_SHAPE, E_DISPOSED */
  run(a: Int8Array | Uint8Array, m: number, out?: Int32Array): Int32Array;
  dispose(): void;
  [Symbol.dispose](): void;
}

/** Rows of n numbers, `stride` apart, one after the other. */
export function rowsOut(result: Int32Array, stride: number, n: number, out: Int32Array): Int32Array {
  if (stride === n) out.set(result.subarray(0, out.length));
  else for (let at = 0, r = 0; at < out.length; at += n, r++) out.set(result.subarray(r * stride, r * stride + n), at);
  return out;
}

/** @throws LowbitError E_SHAPE, E_DEVICE */
export function prepareInteger(runtime: Runtime, w: Int8Array, n: number, k: number): IntegerLayer {
  if (!runtime.live) throw disposed();
  checkInteger(w, n, k);
  const style = runtime.features.dot === "u8" ? "dot" : "simd";
  const blocks = Math.ceil(n / 16);
  const quads = Math.ceil(k / 4);
  const weightBytes = blocks * quads * 64;
  const { space, address } = runtime.allocate(weightBytes + blocks * 64);
  const sums = packInt8(w, n, k, style, new Uint8Array(space.buffer, address, weightBytes));
  const scaled = new Int32Array(space.buffer, address + weightBytes, blocks * 16).fill(0);
  scaled.set(sums.map((sum) => 128 * sum));
  let live = true;
  const dispose = (): void => {
    if (live && runtime.live) space.arena.free(address);
    live = false;
  };
  return {
    n,
    k,
    run(a, m, out = new Int32Array(m * n)) {
      if (!live || !runtime.live) throw disposed();
      checkIntegerRun(a, m, n, k, out);
      const mr = tileRows(m, INT8_ROWS[style]);
      const unroll = runtime.features.relaxed ? 8 : 1;
      const spec: Int8Spec = { style, unsigned: a instanceof Uint8Array, mr, unroll, shared: runtime.shared };
      const built = kernel(int8, spec);
      const tiles = Math.ceil(m / mr);
      const rows = tiles * mr;
      const width = 4 * quads;
      const staged = space.scratch("x", rows * width);
      const x = new Uint8Array(space.buffer, staged, rows * width);
      const source = new Uint8Array(a.buffer, a.byteOffset, a.length);
      if (width === k && rows === m) x.set(source);
      else {
        x.fill(0);
        for (let r = 0; r < m; r++) x.set(source.subarray(r * k, (r + 1) * k), r * width);
      }
      const aStride = quads * mr * int8Quad(style);
      const packed = space.scratch("a", tiles * aStride);
      const rowSums = space.scratch("row sums", 4 * rows);
      const operands = { x: staged, a: packed, rowSums, quads, aStride };
      runtime.work(
        space,
        kernel(int8Pack, spec),
        tiles,
        Int32Array.from(INT8_PACK_ARGUMENTS, (name) => operands[name]),
        0,
      );
      const stride = resultStride(n, rows);
      const c = space.scratch("c", 4 * rows * stride);
      const slab = Math.ceil(INT8_SLAB / mr);
      for (let from = 0; from < tiles; from += slab) {
        const values = {
          a: packed + from * aStride,
          w: address,
          c: c + 4 * from * mr * stride,
          ldc: 4 * stride,
          quads,
          blocks,
          tiles: Math.min(slab, tiles - from),
          aStride,
          rowSums: rowSums + 4 * from * mr,
          columnSums: address + weightBytes,
        };
        runtime.work(
          space,
          built,
          blocks,
          Int32Array.from(INT8_SUMS_ARGUMENTS, (name) => values[name]),
          style === "simd" ? 128 * INT8_CHUNK : 0,
        );
      }
      return rowsOut(new Int32Array(space.buffer, c, rows * stride), stride, n, out);
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}

/** Rows per pass of the transform: 4 MB of scratch. */
const FWHT_BYTES = 4 * 1024 * 1024;

/** Elements of an item of work for a thread. */
const FWHT_ITEM = 16384;

/**
 * Walsh-Hadamard transform of every row of n values, in place. @throws LowbitError E_SHAPE
 */
export function fwht(runtime: Runtime, x: Float32Array, n: number, scale: number): Float32Array {
  if (!runtime.live) throw disposed();
  checkFwht(x, n);
  if (x.length === 0) return x;
  const { space, address } = runtime.allocate(Math.min(4 * x.length, Math.max(4 * n, FWHT_BYTES)));
  try {
    const spec = { n, shared: runtime.shared };
    const transform = kernel(hadamard, spec);
    const factor = new Int32Array(Float32Array.of(scale).buffer)[0];
    const per = Math.max(1, Math.floor(FWHT_ITEM / n));
    const rows = Math.max(1, Math.floor(FWHT_BYTES / (4 * n)));
    for (let from = 0; from < x.length; from += rows * n) {
      const part = x.subarray(from, from + rows * n);
      const target = new Float32Array(space.buffer, address, part.length);
      target.set(part);
      const count = part.length / n;
      runtime.work(space, transform, Math.ceil(count / per), Int32Array.of(address, count, per, factor), 0);
      part.set(new Float32Array(space.buffer, address, part.length));
    }
  } finally {
    space.arena.free(address);
  }
  return x;
}
