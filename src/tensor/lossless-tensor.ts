// bfloat16 weights that stay losslessly compressed in memory (DFloat11, arXiv 2504.11651): some 66 % of their bytes,
// and bit for bit the same values. Exponents are canonical Huffman codes by tensor, a stream for each row; sign and
// mantissa are bytes. Products decode blocks of rows as they go (src/backends/wasm/lossless.ts).
import { bfloat16 } from "../../formats/bfloat16.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { canonical, huffmanLengths, type LosslessTensor } from "../../formats/core/huffman.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { reversed } from "../../kernels/wasm/lossless/tables.ts";
import { reference } from "../backends/reference.ts";
import type { Backend, SyncLayer } from "../backends/types.ts";

/** Bytes that a decoder may read beyond the last stream. */
const TAIL = 16;

/** A backend that runs lossless weights as they are; others get them decoded. */
export interface LosslessBackend {
  prepareLossless(w: LosslessTensor): SyncLayer;
  decodeLossless(w: LosslessTensor, out?: Uint16Array): Uint16Array;
}

/**
 * Compresses a bfloat16 matrix [rows, k] (more dimensions: [shape[0], rest]; one: a row).
 * @param bits bfloat16 bit patterns, row-major; any of the 65536
 * @throws TypeError, LowbitError E_SHAPE where shape and length differ, E_UNSUPPORTED above 2^32 bytes of codes
 * @example
 * const w = losslessTensor(new Uint16Array(64 * 256).fill(0x3f80), [64, 256]);
 * w.byteLength < 2 * 64 * 256 // true: about 0.66 for the weights of models
 */
export function losslessTensor(bits: Uint16Array, shape: readonly number[]): LosslessTensor {
  if (!(bits instanceof Uint16Array)) throw new TypeError("losslessTensor: expected a Uint16Array of bfloat16 bit patterns.");
  const count = shape.reduce((n, d) => n * d, 1);
  if (shape.length < 1 || shape.some((d) => !Number.isSafeInteger(d) || d < 1) || count !== bits.length)
    throw new LowbitError("E_SHAPE", `losslessTensor: expected sizes with product ${bits.length}, got [${shape.join(", ")}].`);
  const rows = shape.length === 1 ? 1 : shape[0];
  const k = count / rows;
  const counts = new Float64Array(256);
  for (let i = 0; i < count; i++) counts[(bits[i] >> 7) & 255]++;
  const symbols = [...counts.keys()].filter((s) => counts[s] > 0);
  const lengths = huffmanLengths(counts);
  // a lone symbol: one bit each, so that its stream is like any other
  if (symbols.length === 1) lengths[symbols[0]] = 1;
  const { codes } = canonical(lengths, symbols);
  const words = codes.map((code, s) => reversed(code, lengths[s]));
  const most = Math.ceil(counts.reduce((sum, c, s) => sum + c * lengths[s], 0) / 8) + rows + TAIL;
  if (most > 0xffffffff)
    throw new LowbitError("E_UNSUPPORTED", `losslessTensor: expected at most 4 GiB of codes, got ${most} bytes. Split the weight by rows.`);
  const stream = new Uint8Array(most);
  const starts = new Uint32Array(rows);
  const signMantissa = new Uint8Array(count);
  let to = 0;
  for (let r = 0; r < rows; r++) {
    starts[r] = to;
    let acc = 0;
    let have = 0;
    for (let i = r * k; i < (r + 1) * k; i++) {
      const v = bits[i];
      signMantissa[i] = ((v >> 8) & 128) | (v & 127);
      const s = (v >> 7) & 255;
      // fewer than 8 bits wait in acc, and a code has at most 24
      acc |= words[s] << have;
      for (have += lengths[s]; have >= 8; have -= 8) {
        stream[to++] = acc;
        acc >>>= 8;
      }
    }
    if (have > 0) stream[to++] = acc;
  }
  const exponents = stream.slice(0, to + TAIL);
  const byteLength = lengths.length + exponents.length + starts.byteLength + signMantissa.length;
  return { kind: "lossless", shape: [...shape], rows, k, lengths, exponents, starts, signMantissa, byteLength };
}

/**
 * The bit patterns of a lossless tensor, row-major. `backend`: of `wasm()`, decodes on all its threads; default:
 * here, without one.
 * @throws TypeError, LowbitError E_DEVICE
 * @example losslessBits(losslessTensor(Uint16Array.of(0x3f80, 0x4000), [1, 2])) // [0x3f80, 0x4000]: 1 and 2
 */
export function losslessBits(w: LosslessTensor, options: { readonly backend?: LosslessBackend } = {}): Uint16Array {
  if (options.backend !== undefined) return options.backend.decodeLossless(w);
  const { rows, k, lengths, exponents, starts, signMantissa } = w;
  const symbols = [...lengths.keys()].filter((s) => lengths[s] > 0);
  const { codes } = canonical(lengths, symbols);
  /** By length and code. */
  const found = new Map(symbols.map((s) => [lengths[s] * 2 ** 24 + codes[s], s]));
  const out = new Uint16Array(rows * k);
  for (let r = 0; r < rows; r++) {
    let bit = 8 * starts[r];
    for (let i = r * k; i < (r + 1) * k; i++) {
      let [code, length] = [0, 0];
      let s: number | undefined;
      while (s === undefined) {
        code = (code << 1) | ((exponents[Math.floor(bit / 8)] >> (bit % 8)) & 1);
        bit++;
        if (++length > 24)
          throw new LowbitError("E_CONTAINER", `lossless tensor: expected codes of at most 24 bits, got others in row ${r}.`);
        s = found.get(length * 2 ** 24 + code);
      }
      const m = signMantissa[i];
      out[i] = ((m & 128) << 8) | (s << 7) | (m & 127);
    }
  }
  return out;
}

/**
 * A lossless tensor decoded: packed bfloat16, for whatever takes packed tensors.
 * @example
 * const w = unpackLossless(losslessTensor(Uint16Array.of(0x3f80, 0x4000), [1, 2]));
 * dequantize(w) // [1, 2]
 */
export function unpackLossless(w: LosslessTensor, options: { readonly backend?: LosslessBackend } = {}): PackedTensor {
  const bits = losslessBits(w, options);
  const codes = new Uint8Array(2 * bits.length);
  const view = new DataView(codes.buffer);
  for (let i = 0; i < bits.length; i++) view.setUint16(2 * i, bits[i], true);
  const { shape, rows, k } = w;
  const none = { scales: null, superScales: null, offsets: null };
  return { format: bfloat16, shape, rows, k, rowBytes: 2 * k, codes, ...none, recipe: { version: 1, algorithm: "lossless" } };
}

/**
 * Prepares a lossless weight [n, k] for products x[m, k] * w^T with float32 activations. On WebAssembly it stays
 * compressed; `reference` (the default) and other backends decode it once.
 * @throws TypeError, LowbitError E_DEVICE
 * @example
 * const w = losslessTensor(new Uint16Array(64 * 256).fill(0x3f80), [64, 256]); // ones
 * const layer = prepareLossless(w, { backend: await wasm() });
 * layer.run(new Float32Array(256).fill(1), 1)[0] // 256
 */
export function prepareLossless(
  w: LosslessTensor,
  options: { readonly backend?: "reference" | LosslessBackend | Backend<SyncLayer> } = {},
): SyncLayer {
  const { backend = "reference" } = options;
  if (backend === "reference") return reference.prepare(unpackLossless(w), {});
  if (typeof backend !== "object" || backend === null)
    throw new TypeError(`prepareLossless backend: expected "reference" or a backend object, got ${String(backend)}.`);
  return "prepareLossless" in backend ? backend.prepareLossless(w) : backend.prepare(unpackLossless(w), {});
}
