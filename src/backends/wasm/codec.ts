// Bulk conversion on the WebAssembly backend: encode, decode, pack, unpack, largest magnitudes and ranges of blocks,
// and the steps of `quantize` and `dequantize` that go over every value. Arrays pass through engine memory in pieces
// that stay in the cache; one thread. Every result equals that of the loops of formats/core and src/tensor bit for bit:
// what has no kernel with that property runs those loops.
import { decodeArray, encodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { codeArray, packCodes, packedBytes, unpackCodes, unpackInto, type Codes } from "../../../formats/core/pack.ts";
import type { EncodeOptions, NumberFormat } from "../../../formats/core/types.ts";
import { BITS_SLACK, BITS_STEP, packsBits } from "../../../kernels/wasm/convert/bits.ts";
import { nibbleTile } from "../../../kernels/wasm/convert/nibbles.ts";
import { CODEC_STEP } from "../../../kernels/wasm/convert/codec.ts";
import type { Space } from "../../../kernels/wasm/engine/engine.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { blockDecoder, blockEncoder } from "./blocks.ts";
import { encodeBlocks } from "./search.ts";
import { createTools, PIECE, roundUp, words } from "./converters.ts";
import type { BulkCodec } from "../types.ts";

/** The codec of a runtime; nothing is built or allocated before the first use. */
export function createCodec(runtime: Runtime): BulkCodec {
  const tools = createTools(runtime);
  const { encoder, decoder } = tools;
  const check = tools.check;
  const floats = (what: string, x: Float32Array): void => {
    if (!(x instanceof Float32Array)) throw new TypeError(`${what}: expected a Float32Array. Convert it with Float32Array.from(x).`);
  };

  function encode(format: NumberFormat, values: Float32Array, options: EncodeOptions = {}, out?: Codes): Codes {
    check();
    floats("encode values", values);
    const found = encoder(format, options);
    if (found === null) return encodeArray(format, values, out, options);
    const n = values.length;
    const codes = out ?? codeArray(format.bits, n);
    // arrays of another kind or length are judged, and served, by the general loop
    if (codes.constructor !== codeArray(format.bits, 0).constructor || codes.length < n) return encodeArray(format, values, codes, options);
    const { space, run, tables } = found;
    const x = space.scratch("codec values", 4 * PIECE);
    const c = space.scratch("codec codes", 2 * PIECE + BITS_SLACK);
    for (let from = 0; from < n; from += PIECE) {
      const count = Math.min(PIECE, n - from);
      const padded = roundUp(count, CODEC_STEP);
      const staged = new Float32Array(space.buffer, x, padded);
      staged.set(values.subarray(from, from + count));
      if (padded > count) staged.fill(staged[count - 1], count);
      // a refused value: the general loop finds it and words the error
      if ((run(x, c, padded, tables) as number) < 0) return encodeArray(format, values, codes, options);
      codes.set(words(space, format.bits, c, count), from);
    }
    return codes;
  }

  function decode(format: NumberFormat, codes: ArrayLike<number>, out?: Float32Array): Float32Array {
    check();
    const found = decoder(format);
    const n = codes.length;
    const values = out ?? new Float32Array(n);
    // arrays of another kind or length are judged, and served, by the general loop
    if (found === null || !(codes instanceof (format.bits <= 8 ? Uint8Array : Uint16Array)) || values.length < n)
      return decodeArray(format, codes, values);
    const { space, run, tables } = found;
    const x = space.scratch("codec values", 4 * PIECE);
    const c = space.scratch("codec codes", 2 * PIECE + BITS_SLACK);
    for (let from = 0; from < n; from += PIECE) {
      const count = Math.min(PIECE, n - from);
      const padded = roundUp(count, CODEC_STEP);
      const staged = words(space, format.bits, c, padded);
      staged.set(codes.subarray(from, from + count));
      if (padded > count) staged.fill(0, count);
      if (union(run(c, x, padded, tables) as number, format.bits) >= 2 ** format.bits) return decodeArray(format, codes, values);
      values.set(new Float32Array(space.buffer, x, count), from);
    }
    return values;
  }

  function pack(codes: ArrayLike<number>, bits: number): Uint8Array {
    check();
    if (!packsBits(bits) || !(codes instanceof (bits <= 8 ? Uint8Array : Uint16Array))) return packCodes(codes, bits);
    const n = codes.length;
    const out = new Uint8Array(packedBytes(n, bits));
    const space = tools.space();
    const c = space.scratch("codec codes", 2 * PIECE + BITS_SLACK);
    const p = space.scratch("codec packed", 2 * PIECE + BITS_SLACK);
    const run = tools.bits(space, bits).pack;
    for (let from = 0; from < n; from += PIECE) {
      const count = Math.min(PIECE, n - from);
      const padded = roundUp(count, BITS_STEP);
      const staged = words(space, bits, c, padded);
      staged.set(codes.subarray(from, from + count));
      if (padded > count) staged.fill(0, count);
      // a code that does not fit: the general loop finds it and words the error
      if (union(run(c, p, padded) as number, bits) >= 2 ** bits) return packCodes(codes, bits);
      out.set(new Uint8Array(space.buffer, p, packedBytes(count, bits)), (from * bits) / 8);
    }
    return out;
  }

  function unpack(bytes: Uint8Array, bits: number, count: number): Codes {
    check();
    if (!(packsBits(bits) && Number.isSafeInteger(count) && count >= 0 && bytes.length >= packedBytes(count, bits)))
      return unpackCodes(bytes, bits, count);
    const out = codeArray(bits, count);
    const space = tools.space();
    const c = space.scratch("codec codes", 2 * PIECE + BITS_SLACK);
    for (let from = 0; from < count; from += PIECE) {
      const part = Math.min(PIECE, count - from);
      unpackStaged(space, bytes, (from * bits) / 8, bits, part, c);
      out.set(words(space, bits, c, part), from);
    }
    return out;
  }

  /** Unpacks `count` codes (at most PIECE) that start at a byte, into engine memory. */
  function unpackStaged(space: Space, bytes: Uint8Array, at: number, bits: number, count: number, to: number): void {
    if (!packsBits(bits)) {
      unpackInto(bytes, at, bits, words(space, bits, to, count), 0, count);
      return;
    }
    const p = space.scratch("codec packed", 2 * PIECE + BITS_SLACK);
    new Uint8Array(space.buffer, p, packedBytes(count, bits)).set(bytes.subarray(at, at + packedBytes(count, bits)));
    tools.bits(space, bits).unpack(p, to, roundUp(count, BITS_STEP));
  }

  /**
   * Statistics of blocks of `size` values, the last one as short as it is; `name` is the kernel, which fills `outs`.
   */
  function statistics(name: "absmax" | "range", x: Float32Array, size: number, outs: readonly Float32Array[]): void {
    check();
    floats(`${name} x`, x);
    if (!Number.isSafeInteger(size) || size < 1) throw new RangeError(`${name} blockSize: expected an integer from 1 on, got ${size}.`);
    const blocks = Math.ceil(x.length / size);
    for (const out of outs)
      if (out.length < blocks) throw new LowbitError("E_SHAPE", `${name}: expected room for ${blocks} blocks, got ${out.length}.`);
    const space = tools.space();
    const run = tools.blocks(space)[name];
    const blocksAtOnce = Math.max(1, Math.floor(PIECE / size));
    const values = space.scratch("codec values", 4 * Math.max(PIECE, Math.min(size, x.length)) + 64);
    const results = outs.map((_, i) => space.scratch(`codec statistics ${i}`, 4 * PIECE));
    for (let b = 0; b < blocks; b += blocksAtOnce) {
      const part = x.subarray(b * size, (b + blocksAtOnce) * size);
      new Float32Array(space.buffer, values, part.length).set(part);
      const whole = Math.floor(part.length / size);
      const rest = part.length - whole * size;
      if (whole > 0) run(values, ...results, whole, size);
      if (rest > 0) run(values + 4 * whole * size, ...results.map((at) => at + 4 * whole), 1, rest);
      const count = whole + (rest > 0 ? 1 : 0);
      outs.forEach((out, i) => out.set(new Float32Array(space.buffer, results[i], count), b));
    }
  }

  function absmax(x: Float32Array, blockSize: number, out?: Float32Array): Float32Array {
    const found = out ?? new Float32Array(Math.ceil(x.length / blockSize));
    statistics("absmax", x, blockSize, [found]);
    return found;
  }

  return {
    encode,
    decode,
    pack,
    unpack,
    absmax,
    range: (x, blockSize, least, largest) => statistics("range", x, blockSize, [least, largest]),
    encodeBlocks: (format, x, importance) => encodeBlocks(tools.space, runtime.shared, format, x, importance),
    blockEncoder: (policy) => blockEncoder(tools, policy),
    blockDecoder: (element, role) => blockDecoder(tools, element, role),
    nibbles: nibbleTile,
  };
}

/** The OR of the codes of which a kernel returned the OR, lane by lane. */
function union(all: number, bits: number): number {
  const half = all | (all >>> 16);
  return bits <= 8 ? (half | (half >>> 8)) & 255 : half & 65535;
}
