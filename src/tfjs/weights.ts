// What products on tfjs keep of a packed weight: layers of our WebAssembly backend, made once per weight and freed with
// it, and rows decoded in panels.
import { LowbitError } from "../../formats/core/errors.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { wasmSync, type WasmBackend } from "../backends/wasm/backend.ts";
import type { Activations, SyncLayer } from "../backends/types.ts";
import { rowDecoder, type RowDecoder } from "../tensor/dequantize.ts";

let engine: WasmBackend | undefined;

/** The backend whose kernels compute on tfjs's cpu and wasm backends: one thread, unless `useBackend` gave another. */
export const backend = (): WasmBackend => (engine ??= wasmSync());

/**
 * Another backend for the products of this module: one with threads. Layers that are prepared already stay where they
 * are.
 * @example useBackend(await wasm({ threads: 4 }));
 */
export function useBackend(other: WasmBackend): void {
  engine = other;
}

interface Disposable {
  dispose(): void;
}

const prepared = new WeakMap<PackedTensor, Map<string, Disposable>>();
const decoders = new WeakMap<PackedTensor, RowDecoder>();
const collected = new FinalizationRegistry<Map<string, Disposable>>((layers) => {
  for (const layer of layers.values()) layer.dispose();
});

/** What is made of a weight once, by a key that says what it is, and freed with it. */
export function keptOf<Kept extends Disposable>(w: PackedTensor, key: string, make: () => Kept): Kept {
  let layers = prepared.get(w);
  if (layers === undefined) {
    prepared.set(w, (layers = new Map()));
    collected.register(w, layers);
  }
  const layer = (layers.get(key) as Kept | undefined) ?? make();
  layers.set(key, layer);
  return layer;
}

/**
 * The layer of a weight, prepared at its first use. Values on no even grid (nf4) keep float32 activations: their table
 * is not rounded unasked.
 */
export const layerOf = (w: PackedTensor, activations: Activations): SyncLayer =>
  keptOf(w, activations, () => backend().prepare(w, { activations, codebook: "exact" }));

/**
 * Frees what products keep beside a packed weight; the next one prepares it again.
 * @example
 * packedMatMul(tf.ones([1, 256]), packed).dispose();
 * releasePacked(packed);
 */
export function releasePacked(w: PackedTensor): void {
  for (const layer of prepared.get(w)?.values() ?? []) layer.dispose();
  prepared.get(w)?.clear();
}

/** Values that a panel of decoded rows may have: 1 MiB. */
const PANEL = 1 << 18;

/** Rows of a weight in panels: `each(row, count, values)`; the values are good until the next panel. */
export function panels(w: PackedTensor, each: (row: number, count: number, values: Float32Array) => void): void {
  let decode = decoders.get(w);
  if (decode === undefined) decoders.set(w, (decode = rowDecoder(w, backend().codec)));
  const count = Math.min(w.rows, Math.max(1, Math.floor(PANEL / w.k)));
  const values = new Float32Array(count * w.k);
  for (let row = 0; row < w.rows; row += count) {
    const n = Math.min(count, w.rows - row);
    const part = n === count ? values : values.subarray(0, n * w.k);
    decode(row, n, part);
    each(row, n, part);
  }
}

/** @throws TypeError where w is no packed tensor, LowbitError E_UNSUPPORTED for weights in another basis than x */
export function checkWeight(what: string, w: PackedTensor): void {
  if (typeof w !== "object" || w === null || !(w.codes instanceof Uint8Array) || !Number.isSafeInteger(w.k))
    throw new TypeError(
      `${what} w: expected a packed tensor, got ${w === null ? "null" : typeof w}. Make one with quantize(tensor, format).`,
    );
  for (const basis of ["rotation", "channelScales"])
    if (w.recipe[basis] !== undefined)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${what} w: expected a weight for inputs as they are, got one with ${basis}. Quantize it without, or change the inputs and take the field from the recipe.`,
      );
}
