// Sparse weights on the WebAssembly backend: products that multiply only what is not zero (kernels/wasm/sparse).
import type { PackedTensor } from "../../../formats/core/types.ts";
import type { DotOperand } from "../../../kernels/wasm/engine/features.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Space } from "../../../kernels/wasm/engine/engine.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { resultStride } from "../../../kernels/wasm/products/tiles.ts";
import { SPARSE_PACK_ARGUMENTS, sparsePack } from "../../../kernels/wasm/sparse/pack.ts";
import {
  isBytes,
  sparse,
  SPARSE_ARGUMENTS,
  sparseElement,
  sparsePadding,
  sparseTile,
  type SparseSpec,
} from "../../../kernels/wasm/sparse/sparse.ts";
import { sparseStream, type Matrix, type SparseStream } from "../../../kernels/wasm/sparse/stream.ts";
import { sparseName } from "../../../kernels/wasm/sparse/variants.ts";
import { disposed } from "../layer.ts";
import { checkInteger, checkIntegerRun } from "../operations.ts";
import { weightSource } from "../source.ts";
import type { SyncLayer } from "../types.ts";
import { productLayer } from "./layer.ts";
import { rowsOut, type IntegerLayer } from "./ops.ts";
import { weightMemory, type Product } from "./product.ts";
import { prepareTwoFour } from "./two-four.ts";

/** A stream in memory, and products on it. */
interface Placed {
  readonly space: Space;
  readonly address: number;
  readonly spec: SparseSpec;
  readonly stream: SparseStream;
  /** Rows of c for m rows: whole tiles. */
  rows(m: number): number;
  /**
   * x: address of m rows of k activations, 16 bytes behind them are read; c: rows `stride` numbers apart, at least n
   * padded to 16.
   */
  multiply(x: number, m: number, c: number, stride: number): void;
}

function typeOf(values: Matrix["values"], dot: DotOperand): SparseSpec["type"] {
  if (values instanceof Float32Array) return "float32";
  return dot === "u8" ? "bytes-u" : dot === "s8" ? "bytes-s" : "words";
}

function place(runtime: Runtime, matrix: Matrix): Placed {
  const { k, values } = matrix;
  const { shared, features } = runtime;
  const type = typeOf(values, features.dot);
  const stream = sparseStream(matrix, type);
  const { block, groups, starts, bytes } = stream;
  const spec: SparseSpec = { type, block, relaxed: type === "float32" ? features.relaxed : isBytes(type), shared };
  const at = Math.ceil(starts.byteLength / 64) * 64;
  const { space, address } = weightMemory(runtime, at + Math.max(64, bytes.length));
  new Uint32Array(space.buffer, address, starts.length).set(starts);
  new Uint8Array(space.buffer, address + at, bytes.length).set(bytes);
  const tile = sparseTile(spec);
  // columns that complete a block are multiplied by zero
  const padding = sparsePadding(type);
  const tileBytes = tile * sparseElement(type) * Math.ceil(k / padding) * padding;
  const rows = (m: number): number => Math.ceil(m / tile) * tile;
  return {
    space,
    address,
    spec,
    stream,
    rows,
    multiply(x, m, c, stride) {
      const tiles = rows(m) / tile;
      const a = space.scratch("sparse a", tiles * tileBytes);
      const pack = { x, a, rows: m, k, tileBytes };
      const packArgs = Int32Array.from(SPARSE_PACK_ARGUMENTS, (name) => pack[name]);
      runtime.work(space, kernel(sparsePack, { type, block, shared }), tiles, packArgs, 0);
      // parts of the groups for each tile, so that threads end together
      const parts = runtime.threads === 1 ? 1 : Math.min(groups, Math.ceil((8 * runtime.threads) / tiles));
      const per = Math.ceil(groups / parts);
      const values = { stream: address + at, starts: address, a, c, ldc: 4 * stride, groups, per, parts, tileBytes };
      const args = Int32Array.from(SPARSE_ARGUMENTS, (name) => values[name]);
      runtime.work(space, kernel(sparse, spec), tiles * parts, args, 0);
    },
  };
}

/** How a sparse weight is prepared for products. */
export interface SparseOptions {
  /** Default float32. */
  readonly activations?: "float32" | "int8";
}

/** A packed weight with zeros as a layer. @throws LowbitError E_DEVICE, E_UNSUPPORTED; TypeError */
export function prepareSparse(runtime: Runtime, w: PackedTensor, { activations = "float32" }: SparseOptions = {}): SyncLayer {
  if (activations === "int8") return prepareTwoFour(runtime, w);
  if (activations !== "float32")
    throw new TypeError(`prepareSparse activations: expected "float32" or "int8", got ${String(activations)}.`);
  if (!runtime.live) throw disposed();
  const { rows: n, k } = w;
  const source = weightSource(w);
  const values = new Float32Array(n * k);
  const row = new Float64Array(k);
  for (let r = 0; r < n; r++) {
    source.decode(r, row);
    values.set(row, r * k);
  }
  const placed = place(runtime, { values, n, k });
  const { space, spec, stream } = placed;
  const share = ((100 * stream.kept) / (n * k)).toFixed(1);
  const reason = `${share} % of the weights are not zero, in ${stream.block === "4x1" ? "blocks of 4 rows" : "rows"}; values decoded to float32`;
  const product: Product = {
    space,
    address: placed.address,
    activations: "float32",
    name: () => sparseName(spec),
    reasons: [reason],
    rows: placed.rows,
    pack: () => undefined,
    kernel: () => kernel(sparse, spec),
    multiply(x, m, c, stride) {
      let at = x;
      if (typeof at !== "number") {
        const staged = space.scratch("x", 4 * m * k);
        new Float32Array(space.buffer, staged, m * k).set(at);
        space.record = null;
        at = staged;
      }
      placed.multiply(at, m, c, stride);
    },
  };
  return productLayer(runtime, product, n, k);
}

/** An int8 weight [n, k] with zeros for exact products. @throws LowbitError E_SHAPE, E_DEVICE */
export function prepareSparseInteger(runtime: Runtime, w: Int8Array, n: number, k: number): IntegerLayer {
  if (!runtime.live) throw disposed();
  checkInteger(w, n, k);
  const placed = place(runtime, { values: w, n, k });
  const { space } = placed;
  let live = true;
  const dispose = (): void => {
    if (live && runtime.live) space.arena.free(placed.address);
    live = false;
  };
  return {
    n,
    k,
    run(a, m, out = new Int32Array(m * n)) {
      if (!live || !runtime.live) throw disposed();
      checkIntegerRun(a, m, n, k, out);
      // uint8 as int8 less 128 would need sums of rows: the words of a tile hold either, but packing reads signed bytes
      if (a instanceof Uint8Array) throw new TypeError("sparse product: expected an Int8Array of activations, got a Uint8Array.");
      const x = space.scratch("x", m * k + 16);
      new Int8Array(space.buffer, x, m * k).set(a);
      const rows = placed.rows(m);
      const stride = resultStride(n, rows);
      const c = space.scratch("c", 4 * rows * stride);
      placed.multiply(x, m, c, stride);
      return rowsOut(new Int32Array(space.buffer, c, rows * stride), stride, n, out);
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
