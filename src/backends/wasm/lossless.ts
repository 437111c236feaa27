// Lossless bfloat16 weights on the WebAssembly backend: exponents stay Huffman codes in memory. A product decodes some
// blocks of rows into records that all layers share, on all threads, and multiplies them as any weight of 16-bit
// floats.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { LosslessTensor } from "../../../formats/core/huffman.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Space } from "../../../kernels/wasm/engine/engine.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { floatPlan } from "../../../kernels/wasm/float/floatplan.ts";
import { DECODE_ARGUMENTS, decodeScratch, losslessDecode, type DecodeSpec } from "../../../kernels/wasm/lossless/decode.ts";
import { decodeTables, TABLE_BYTES } from "../../../kernels/wasm/lossless/tables.ts";
import { disposed } from "../layer.ts";
import type { SyncLayer } from "../types.ts";
import { floatProduct } from "./float.ts";
import { productLayer } from "./layer.ts";
import { weightMemory, type Product } from "./product.ts";

/**
 * Bytes of records that are decoded at once: they stay in the cache, and a product of few rows of x reads them there.
 */
const CHUNK_BYTES = 2 ** 19;

/** A weight in memory and its decoder. */
interface Placed {
  readonly space: Space;
  readonly address: number;
  write(): void;
  /** Items of an output to address `out`, from row `first` on. */
  decode(to: Output, items: number, out: number, first: number): void;
}

/** Rows of words, or record blocks; bytes from one to the next, and how records are cut. */
interface Output {
  readonly output: DecodeSpec["output"];
  readonly stride: number;
  readonly span: number;
  readonly groupBytes: number;
}

const up = (n: number): number => Math.ceil(n / 64) * 64;

function place(runtime: Runtime, w: LosslessTensor): Placed {
  const { rows, k } = w;
  const starts = TABLE_BYTES;
  const stream = starts + up(4 * rows);
  const plain = stream + up(w.exponents.length);
  // vectors of 16 read beyond the last byte
  const { space, address } = weightMemory(runtime, plain + up(rows * k + 16));
  return {
    space,
    address,
    write() {
      const put = (at: number, bytes: Uint8Array): void => new Uint8Array(space.buffer, address + at, bytes.length).set(bytes);
      put(0, decodeTables(w.lengths));
      new Uint32Array(space.buffer, address + starts, rows).set(w.starts);
      put(stream, w.exponents);
      put(plain, w.signMantissa);
    },
    decode({ output, ...cut }, items, out, first) {
      const spec = { output, shared: runtime.shared };
      const at = { starts: address + starts, stream: address + stream, plain: address + plain, table: address };
      const values = { ...at, out, rows, k, first, ...cut };
      const args = Int32Array.from(DECODE_ARGUMENTS, (name) => values[name]);
      runtime.work(space, kernel(losslessDecode, spec), items, args, decodeScratch(spec, k));
    },
  };
}

/** A weight of words that are the upper half of a float32, of which only sizes are known. */
function source(rows: number, k: number): WeightSource {
  const word = new DataView(new ArrayBuffer(4));
  const values = Float64Array.from({ length: 65536 }, (_, code) => (word.setUint32(0, code * 65536), word.getFloat32(0)));
  const none = (): never => {
    throw new TypeError("a lossless weight is decoded by its own kernel");
  };
  return {
    ...{ rows, k, bits: 16, values, span: k, role: "none" as const, integerZeros: false },
    codes: (_, out) => void out.fill(0),
    scales: (_, out) => void out.fill(1),
    offsets: none,
    decode: none,
  };
}

/** A lossless weight as a layer: float32 activations. @throws LowbitError E_DEVICE, E_UNSUPPORTED */
export function prepareLossless(runtime: Runtime, w: LosslessTensor): SyncLayer {
  if (!runtime.live) throw disposed();
  check(w);
  const { rows: n, k } = w;
  const blocks = Math.ceil(n / 16);
  const whole = floatPlan(source(n, k));
  const blockBytes = whole.bytes / blocks;
  const chunk = Math.min(blocks, Math.max(runtime.threads, Math.floor(CHUNK_BYTES / blockBytes)));
  const placed = place(runtime, w);
  // before the first product, which would not end soon on codes of zeros
  placed.write();
  const { space } = placed;
  const records = (): number => space.scratch("lossless records", chunk * blockBytes);
  const to: Output = { output: "records", stride: blockBytes, span: whole.span, groupBytes: blockBytes / whole.groups };
  const plan = { ...whole, blocks: chunk, bytes: chunk * blockBytes };
  const reason = `exponents are Huffman codes (${((100 * w.byteLength) / (2 * n * k)).toFixed(1)} % of bfloat16), decoded ${16 * chunk} rows at a time`;
  const inner = floatProduct(runtime, source(16 * chunk, k), "bfloat16 lossless", [reason], plan, { space, address: records });
  const product: Product = {
    ...inner,
    space,
    address: placed.address,
    pack: () => undefined,
    multiply(x, m, c, stride, most = blocks) {
      for (let b = 0; b < most; b += chunk) {
        const count = Math.min(chunk, most - b);
        placed.decode(to, count, records(), 16 * b);
        inner.multiply(x, m, c + 64 * b, stride, count);
      }
    },
  };
  return productLayer(runtime, product, n, k);
}

/** Words [rows, k] of a lossless weight. @throws LowbitError E_DEVICE */
export function decodeLossless(runtime: Runtime, w: LosslessTensor, out: Uint16Array = new Uint16Array(w.rows * w.k)): Uint16Array {
  if (!runtime.live) throw disposed();
  check(w);
  const { rows, k } = w;
  if (out.length !== rows * k) throw new LowbitError("E_SHAPE", `decodeLossless out: expected ${rows * k} words, got ${out.length}.`);
  const placed = place(runtime, w);
  const { space } = placed;
  try {
    placed.write();
    // pieces that the cache holds, of whole items for every thread
    const piece = 2 * Math.max(runtime.threads, Math.floor(2 ** 18 / k));
    for (let r = 0; r < rows; r += piece) {
      const count = Math.min(piece, rows - r);
      const at = space.scratch("lossless rows", 2 * k * count);
      placed.decode({ output: "rows", stride: 2 * k, span: 0, groupBytes: 0 }, Math.ceil(count / 2), at, r);
      out.set(new Uint16Array(space.buffer, at, count * k), r * k);
    }
    return out;
  } finally {
    space.arena.free(placed.address);
  }
}

function check(w: LosslessTensor): void {
  if (w?.kind !== "lossless" || !(w.exponents instanceof Uint8Array) || w.signMantissa.length !== w.rows * w.k)
    throw new TypeError("lossless weight: expected what losslessTensor or loadLossless made, got something else.");
}
