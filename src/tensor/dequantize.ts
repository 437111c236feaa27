// dequantize: the values of a packed tensor, by the loops of formats/core/packed.ts or, with a backend, by its kernels;
// the numbers are the same.
import { isA } from "../../formats/core/check.ts";
import { dequantize as plain, dequantizeRows, elementOf, rowScales } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import type { BulkCodec } from "../backends/types.ts";

/** What `dequantize` gives, and where it is computed. */
export interface DequantizeOptions {
  /** "float64" where float32 cannot hold the values (wide posits); default "float32". */
  readonly dtype?: "float32" | "float64";
  /** A backend that converts in bulk, `await wasm()`: faster, same values. Opaque formats and float64 do without. */
  readonly backend?: { readonly codec: BulkCodec };
}

/** Values per call of the backend. */
const PANEL = 1 << 18;

/**
 * The values of a packed tensor, row-major [rows * k] (in the order of its shape). Computed in binary64 and rounded
 * once.
 * @example
 * dequantize(quantize(tensor(Float32Array.of(1, -7, 3, 7), [1, 4]), format("int4_row"))) // [1, -7, 3, 7]
 * dequantize(packed, { backend: await wasm() }).length // 16384: by SIMD, the same bits
 */
export function dequantize(w: PackedTensor, options?: DequantizeOptions & { readonly dtype?: "float32" }): Float32Array<ArrayBuffer>;
export function dequantize(w: PackedTensor, options: DequantizeOptions & { readonly dtype: "float64" }): Float64Array<ArrayBuffer>;
export function dequantize(w: PackedTensor, options: DequantizeOptions = {}): Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer> {
  checkArguments(w, options);
  const { backend, dtype } = options;
  if (dtype === "float64") return plain(w, { dtype });
  if (backend === undefined || (dtype ?? "float32") !== "float32") return plain(w, { ...(dtype === undefined ? {} : { dtype }) });
  const { rows, k } = w;
  const out = new Float32Array(rows * k);
  const decode = rowDecoder(w, backend.codec);
  const step = Math.min(rows, Math.max(1, Math.floor(PANEL / k)));
  for (let row = 0; row < rows; row += step) {
    const count = Math.min(step, rows - row);
    decode(row, count, out.subarray(row * k, (row + count) * k));
  }
  return out;
}

/** @throws TypeError for what is no packed tensor, or no options */
function checkArguments(w: PackedTensor, options: DequantizeOptions): void {
  if (typeof w !== "object" || w === null || typeof w.format !== "object" || !Number.isSafeInteger(w.rows) || !ArrayBuffer.isView(w.codes))
    throw new TypeError(`dequantize: expected a packed tensor, got ${isA(w)}. Make one with quantize or fromBytes.`);
  if (typeof options !== "object" || options === null || Array.isArray(options))
    throw new TypeError(`dequantize options: expected an object of dtype and backend, got ${isA(options)}.`);
  const unknown = Object.keys(options).find((key) => key !== "dtype" && key !== "backend");
  if (unknown !== undefined)
    throw new TypeError(`dequantize options: expected dtype and backend, got ${unknown.slice(0, 40)}. Is it misspelt?`);
  const { dtype, backend } = options;
  if (dtype !== undefined && dtype !== "float32" && dtype !== "float64")
    throw new TypeError(`dequantize dtype: expected "float32" or "float64", got ${String(dtype)}. Leave it out for float32.`);
  if (backend !== undefined && typeof (backend as { codec?: { range?: unknown } } | null)?.codec?.range !== "function")
    throw new TypeError("dequantize backend: expected a backend that converts in bulk, got none. Pass await wasm(), or leave it out.");
}

/** Decodes rows [row, row + count) as values [count, k] into out. */
export type RowDecoder = (row: number, count: number, out: Float32Array) => void;

/**
 * The decoder of a packed tensor by panels of rows: kernels of the codec where they are exact, else the plain loops.
 */
export function rowDecoder(w: PackedTensor, codec: BulkCodec | null): RowDecoder {
  const slow: RowDecoder = (row, count, out) => dequantizeRows(w, row, count, out);
  const { format, k, rowBytes } = w;
  const element = elementOf(w);
  if (element === null || codec === null) return slow;
  const block = format.kind === "block" ? format : null;
  // a mean belongs to the scales: rowScales adds it
  const role =
    block?.offset === undefined || block.offset.role === "mean" ? "none" : block.offset.role === "zeroPoint" ? "zeroPoint" : "add";
  const decode = codec.blockDecoder(element, role);
  if (decode === null) return slow;
  const levels = block === null ? null : rowScales(w, block);
  const span = levels === null ? k : Math.min(levels.span, k);
  const blocks = levels === null ? 1 : levels.blocks;
  const unused = new Float64Array(blocks);
  let scale = new Float64Array(0);
  let offset = new Float64Array(0);
  return (row, count, out) => {
    if (scale.length < count * blocks) {
      scale = new Float64Array(count * blocks).fill(1);
      offset = new Float64Array(role === "none" ? 0 : count * blocks);
    }
    for (let r = 0; levels !== null && r < count; r++) {
      const from = r * blocks;
      levels.fill(row + r, scale.subarray(from, from + blocks), role === "none" ? unused : offset.subarray(from, from + blocks));
    }
    const zero = role === "none" ? null : offset.subarray(0, count * blocks);
    const panel = { rows: count, k, span, scale: scale.subarray(0, count * blocks), offset: zero };
    if (!decode(w.codes.subarray(row * rowBytes), rowBytes, panel, out)) slow(row, count, out);
  };
}
