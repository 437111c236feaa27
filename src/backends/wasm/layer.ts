// A prepared weight on the WebAssembly backend: which product it gets, and running it on arrays (`run`, `runAsync`) or
// in place (memory.ts).
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { chooseDot } from "../../../kernels/wasm/products/choose.ts";
import { resultStride } from "../../../kernels/wasm/products/tiles.ts";
import type { Job } from "../../../kernels/wasm/engine/engine.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { checkHadamard, checkMixed, checkRun, disposed } from "../layer.ts";
import { weightSource } from "../source.ts";
import type { PrepareOptions, SyncLayer } from "../types.ts";
import { dotProduct } from "./dot.ts";
import { floatProduct } from "./float.ts";
import { integerProduct, refusedKernel } from "./lut.ts";
import { placeLayer, type ResultPart } from "./memory.ts";
import { ACTIVATION_BITS, groupSpan } from "../../../kernels/activations.ts";
import { packWarm, passRows, rowsFrom, type Product, type Rows } from "./product.ts";
import { inTurns } from "./turns.ts";

/** Bytes of scratch for activations and results of one pass. */
const rowBudget = 192 * 1024 * 1024;

export function prepare(runtime: Runtime, w: PackedTensor, options: PrepareOptions): SyncLayer {
  if (!runtime.live) throw disposed();
  const activations = options.activations ?? "float32";
  if (activations !== "float32" && !ACTIVATION_BITS.has(activations))
    throw new TypeError(`prepareMatmul activations: expected "float32", "int16", "int8", "int6" or "int4", got ${String(activations)}.`);
  const { codebook = "int16" } = options;
  if (!["exact", "int16", "int8"].includes(codebook))
    throw new TypeError(`prepareMatmul codebook: expected "exact", "int16" or "int8", got ${String(codebook)}.`);
  const source = weightSource(w);
  const note = source.note === undefined ? [] : [source.note];
  let product: Product;
  const { hadamard, mixed } = options;
  const { k } = source;
  if (hadamard !== undefined) checkHadamard(hadamard, k, activations);
  const mixture = checkMixed(mixed, { k, span: groupSpan(source.span, k), activations, hadamard });
  if (options.kernel !== undefined && activations !== "int8") throw refusedKernel(options.kernel, 'activations other than "int8"');
  if (activations === "float32") product = floatProduct(runtime, source, w.format.name, []);
  else {
    const choice = chooseDot(source, {
      activationBits: activations === "int16" ? 16 : 8,
      features: runtime.features,
      shared: runtime.shared,
      codebook,
    });
    const label = w.format.name;
    if (typeof choice === "string") {
      if (options.kernel !== undefined) throw refusedKernel(options.kernel, choice);
      // float32 activations would have to be moved, or turned, too
      if (hadamard !== undefined || mixture.order !== null)
        throw new LowbitError(
          "E_UNSUPPORTED",
          `prepareMatmul ${hadamard === undefined ? "mixed" : "hadamard"}: expected a weight with an integer product, got ${choice}. Take a format of integers, as int4_b32.`,
        );
      product = floatProduct(runtime, source, label, [`no integer product (${choice}): activations stay float32`]);
    } else
      product = integerProduct(runtime, source, hadamard === undefined ? options : { ...options, kernel: "dot" }, label, () =>
        dotProduct(runtime, source, choice, { activations, hadamard: hadamard ?? 0, ...mixture }, label),
      );
  }
  return productLayer(runtime, product, w.rows, w.k, note);
}

/** Packs the weight of a product, and makes the layer [n, k] that runs it. */
export function productLayer(runtime: Runtime, product: Product, n: number, k: number, note: readonly string[] = []): SyncLayer {
  try {
    packWarm(product, n, k);
  } catch (error) {
    product.space.arena.free(product.address);
    throw error;
  }
  let live = true;
  const check = (): void => {
    if (!live || !runtime.live) throw disposed();
  };
  const { space } = product;
  // rows at once: bounded scratch for products of any height
  const most = Math.max(48, Math.floor(rowBudget / (4 * (resultStride(n, 2) + 2 * k))));
  /**
   * Products of all rows in passes: the first of `count` rows of each goes to `put`, from `c` on, `stride` floats
   * apart. `at`: where a result may be left, or 0.
   */
  const multiply = (x: Rows, m: number, at: number, put: (from: number, count: number, c: number, stride: number) => void): void => {
    product.tune?.(x, Math.min(m, most));
    for (let from = 0; from < m;) {
      const count = passRows(m - from, most);
      const rows = product.rows(count);
      const stride = resultStride(n, rows);
      const inPlace = at !== 0 && rows === count && stride === n;
      const c = inPlace ? at + 4 * from * n : space.scratch("c", 4 * rows * stride);
      product.multiply(rowsFrom(x, from, count, k), count, c, stride);
      if (!inPlace) put(from, count, c, stride);
      from += count;
    }
  };
  /** Copies rows of a result from scratch space to the memory of their columns. */
  const leave = (to: Uint8Array, parts: readonly ResultPart[], from: number, count: number, c: number, stride: number): void => {
    const source = new Uint8Array(space.buffer);
    for (const { address, width } of parts) {
      // rows without a gap between them are one
      const times = stride === width ? 1 : count;
      const bytes = (4 * width * count) / times;
      for (let r = 0; r < times; r++) {
        const at = address + 4 * (from + r) * width;
        const row = c + 4 * r * stride;
        // a view for each row was a sixth of the garbage of reading a prompt
        if (to.buffer === source.buffer) to.copyWithin(at, row, row + bytes);
        else to.set(source.subarray(row, row + bytes), at);
      }
      c += 4 * width;
    }
  };
  const run = (x: Float32Array, m: number, out?: Float32Array): Float32Array => {
    check();
    const y = checkRun(x, m, n, k, out);
    const parts = [{ address: y.byteOffset, width: n }];
    multiply(x, m, 0, (...rows) => leave(new Uint8Array(y.buffer), parts, ...rows));
    return y;
  };
  /**
   * The last product in place, where it was jobs of fixed arguments, and what copies their result out of scratch space:
   * repeated, it allocates little else.
   */
  let recorded: {
    readonly x: number;
    readonly m: number;
    readonly y: number | readonly ResultPart[];
    readonly moves: number;
    readonly jobs: readonly Job[];
    readonly copies: (() => void) | null;
  } | null = null;
  const runAt = (x: number, m: number, y: number | readonly ResultPart[]): void => {
    check();
    if (recorded !== null && recorded.x === x && recorded.m === m && recorded.y === y && recorded.moves === space.moves) {
      const { jobs, copies } = recorded;
      for (let i = 0; i < jobs.length; i++) runtime.work(space, jobs[i].kernel, jobs[i].items, jobs[i].args, jobs[i].panelBytes);
      copies?.();
      return;
    }
    const home = runtime.home();
    // a weight in another memory reads and writes this one from outside
    const rows = space === home ? x : new Float32Array(home.buffer, x, m * k);
    product.tune?.(rows, Math.min(m, most));
    space.record = space === home ? [] : null;
    const { moves } = space;
    const parts = typeof y === "number" ? [{ address: y, width: n }] : y;
    let copies: (() => void) | null = null;
    try {
      multiply(rows, m, space === home && typeof y === "number" ? y : 0, (from, count, c, stride) => {
        // a next pass takes the same scratch space: copies between its jobs are no jobs
        if (count < m) space.record = null;
        copies = () => leave(new Uint8Array(home.buffer), parts, from, count, c, stride);
        copies();
      });
      // scratch space that moved under way leaves the first jobs with an address of before: the next call is recorded
      // instead
      recorded = space.record === null || space.moves !== moves ? null : { x, m, y, moves, jobs: space.record, copies };
    } finally {
      space.record = null;
    }
  };
  const dispose = (): void => {
    if (!live) return;
    live = false;
    if (runtime.live) product.space.arena.free(product.address);
  };
  const layer: SyncLayer = {
    n,
    k,
    run,
    async runAsync(x, m, out) {
      if (!live || !runtime.live) throw disposed();
      return inTurns(runtime, { n, k }, run, x, m, out);
    },
    explain: () => ({
      backend: "wasm",
      kernel: product.name(1),
      activations: product.activations,
      reasons: [...note, ...product.reasons, `rows of activations at once: ${product.name(1)} for one, ${product.name(64)} for many`],
    }),
    dispose,
    [Symbol.dispose]: dispose,
  };
  placeLayer(layer, runAt);
  return layer;
}
