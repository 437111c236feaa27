// dequantize: the values of a packed tensor, by the loops of formats/core/packed.ts or, with a backend, by its kernels; the numbers are the same.
import { dequantize as plain, elementOf, rowScales } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import type { BulkCodec } from "../backends/types.ts";

export interface DequantizeOptions {
  /** "float64" where float32 cannot hold the values (wide posits); default "float32". */
  readonly dtype?: "float32" | "float64";
  /** A backend that converts in bulk, `await wasm()`: faster, same values. Opaque formats and float64 do without. */
  readonly backend?: { readonly codec: BulkCodec };
}

/** Values per call of the backend. */
const PANEL = 1 << 18;

/**
 * The values of a packed tensor, row-major [rows * k] (in the order of its shape). Computed in binary64 and rounded once.
 * @example dequantize(w, { backend: await wasm() })
 */
export function dequantize(w: PackedTensor, options?: DequantizeOptions & { readonly dtype?: "float32" }): Float32Array<ArrayBuffer>;
export function dequantize(w: PackedTensor, options: DequantizeOptions & { readonly dtype: "float64" }): Float64Array<ArrayBuffer>;
export function dequantize(w: PackedTensor, options: DequantizeOptions = {}): Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer> {
  const { backend, dtype } = options;
  if (dtype === "float64") return plain(w, { dtype });
  if (backend !== undefined && (dtype ?? "float32") === "float32") {
    const out = byBackend(w, backend.codec);
    if (out !== null) return out;
  }
  return plain(w, { ...(dtype === undefined ? {} : { dtype }) });
}

function byBackend(w: PackedTensor, codec: BulkCodec): Float32Array<ArrayBuffer> | null {
  const { format, rows, k, rowBytes } = w;
  const element = elementOf(w);
  if (element === null) return null;
  const block = format.kind === "block" ? format : null;
  // a mean belongs to the scales: rowScales adds it
  const role =
    block?.offset === undefined || block.offset.role === "mean" ? "none" : block.offset.role === "zeroPoint" ? "zeroPoint" : "add";
  const decode = codec.blockDecoder(element, role);
  if (decode === null) return null;
  const out = new Float32Array(rows * k);
  const levels = block === null ? null : rowScales(w, block);
  const span = levels === null ? k : Math.min(levels.span, k);
  const blocks = levels === null ? 1 : levels.blocks;
  const step = Math.min(rows, Math.max(1, Math.floor(PANEL / k)));
  const scale = new Float64Array(step * blocks).fill(1);
  const offset = role === "none" ? null : new Float64Array(step * blocks);
  const unused = new Float64Array(blocks);
  for (let row = 0; row < rows; row += step) {
    const count = Math.min(step, rows - row);
    for (let r = 0; levels !== null && r < count; r++) {
      const from = r * blocks;
      levels.fill(row + r, scale.subarray(from, from + blocks), offset === null ? unused : offset.subarray(from, from + blocks));
    }
    const panel = { rows: count, k, span, scale: scale.subarray(0, count * blocks), offset: offset?.subarray(0, count * blocks) ?? null };
    if (!decode(w.codes.subarray(row * rowBytes), rowBytes, panel, out.subarray(row * k, (row + count) * k))) return null;
  }
  return out;
}
