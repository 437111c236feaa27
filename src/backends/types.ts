// The contract between the tensor API and a backend: prepare a packed weight once, then run products on it.
import type { Codes } from "../../formats/core/pack.ts";
import type { NibbleTile } from "../../kernels/wasm/convert/nibbles.ts";
import type { EncodeOptions, NumberFormat, OpaqueFormat, Overflow, PackedTensor, Rounding } from "../../formats/core/types.ts";

/**
 * How activations enter the product. `float32`: as they are. `int16`, `int8`: quantized on the fly per block (error
 * near 1e-5, 4e-3); `int6`, `int4`: to 31 and 7 codes on each side of zero, as fast as int8.
 */
export type Activations = "float32" | "int16" | "int8" | "int6" | "int4";

/** Channels that keep 8 bits, see `PrepareOptions.mixed`; what `outlierSplit` returns is one. */
export interface MixedChannels {
  /**
   * How many: the first ones of the weight, rounded up to whole groups of it (blocks of its format; 128 where a row has
   * one scale).
   */
  readonly wide: number;
  /** order[p]: the channel of x at place p of the weight (`permuteColumns`). Default: x has the weight's order. */
  readonly order?: ArrayLike<number>;
}

/** How a packed weight is prepared for products: the activations, and what is added to results. */
export interface PrepareOptions {
  /** Default "float32". */
  readonly activations?: Activations;
  /**
   * Formats whose values lie on no even grid (nf4, af4, bnb_fp4) under integer activations on the WebAssembly backend:
   * `int16` (default) and `int8` keep the table as fixed point of 16 or 7 bits and multiply integers, each value off by
   * what `explain()` says (nf4: 1.2e-4 and 6 % of itself at most); `exact` keeps the values, and with them float32
   * activations. Formats on a grid are exact either way, and so is every format under float32 activations.
   */
  readonly codebook?: "exact" | "int16" | "int8";
  /**
   * A family of integer kernels on the WebAssembly backend instead of its own choice: `dot` (products of fields),
   * `lookup` (sums of activations looked up per bit plane, weights of 1..4 bits), `ternary` (the same under two masks).
   * All give the same numbers; needs int8 activations.
   */
  readonly kernel?: "dot" | "lookup" | "ternary";
  /**
   * Activations are multiplied by a Walsh-Hadamard matrix in blocks of this many channels (a power of two from 4 to
   * 4096 that divides k, over the square root of its size) before they are quantized, so that weights rotated by it
   * (MR-GPTQ, `mrgptq`; a signed transform without its signs) need no rotation in the model. Integer activations, on
   * WebAssembly and the reference. Default none.
   */
  readonly hadamard?: number;
  /**
   * Activations "int4" or "int6" in which some channels keep 8 bits, in one product (COMET's FMPQ): those with
   * outliers, gathered at the front of the weight. On WebAssembly and the reference. Default none.
   * @example prepareMatmul(w, { backend, activations: "int4", mixed: outlierSplit(magnitudes, { block: 128 }) })
   */
  readonly mixed?: MixedChannels;
}

/** Which kernel runs and why. */
export interface Explanation {
  readonly backend: string;
  readonly kernel: string;
  readonly activations: Activations | "float16";
  readonly reasons: readonly string[];
}

/** A prepared weight [n, k]. `runAsync` works on every backend. */
export interface AsyncLayer {
  readonly n: number;
  readonly k: number;
  /**
   * y[m, n] = x[m, k] * w^T. On WebAssembly the calling thread computes too, and long products run band by band, so
   * that its event loop turns in between.
   * @throws LowbitError E_SHAPE, E_DISPOSED
   */
  runAsync(x: Float32Array, m: number, out?: Float32Array): Promise<Float32Array>;
  explain(): Explanation;
  /** Frees what the backend holds. Safe to call twice. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/** A layer of a backend that can answer at once. */
export interface SyncLayer extends AsyncLayer {
  run(x: Float32Array, m: number, out?: Float32Array): Float32Array;
}

/** `O`: what the backend's layers take beside the usual options. */
export interface Backend<L extends AsyncLayer = AsyncLayer, O extends object = PrepareOptions> {
  readonly name: string;
  /** @throws LowbitError E_UNSUPPORTED, E_DEVICE */
  prepare(w: PackedTensor, options: O): L;
}

/** How the values of a block become codes, see `BulkCodec.blockEncoder`. */
export interface ElementPolicy {
  readonly element: NumberFormat;
  readonly rounding: Rounding;
  readonly overflow: Overflow;
  /** What is encoded: float32(x * p), float32(x / p), or x / p in binary64. */
  readonly arithmetic: "multiply" | "quotient" | "exact";
  /** -0 becomes +0 before that. */
  readonly positiveZero: boolean;
  /** Integers: x / p is rounded half to even, z is added, and the sum lies between these bounds. */
  readonly integer: { readonly min: number; readonly max: number } | null;
}

/**
 * A panel of rows of k values in blocks of `span` (the last one of a row as short as it is), with parameters
 * [rows][blocks].
 */
export interface BlockPanel {
  readonly rows: number;
  readonly k: number;
  readonly span: number;
  /** Scale, factor or divisor of each block. Encoding: NaN makes all codes of the block those of zero. */
  readonly scale: Float64Array;
  /** Zero point or addend of each block. */
  readonly offset: Float64Array | null;
}

/**
 * Packs the codes of x [rows][k] into `out`, row r from byte r * rowBytes on; false, with nothing written, where it
 * would not be exact.
 */
export type BlockEncoder = (x: Float32Array, panel: BlockPanel, out: Uint8Array, rowBytes: number) => boolean;

/** The inverse: rows of packed codes to values [rows][k]; false, with nothing written, where it would not be exact. */
export type BlockDecoder = (bytes: Uint8Array, rowBytes: number, panel: BlockPanel, out: Float32Array) => boolean;

/** Conversion in bulk. Every result is, bit for bit, the one of the library's own loops. */
export interface BulkCodec {
  /** Codes of all values: `encodeArray`. @throws LowbitError E_VALUE for a value that the policies refuse, E_SHAPE */
  encode(format: NumberFormat, values: Float32Array, options?: EncodeOptions, out?: Codes): Codes;
  /** Values of all codes: `decodeArray`. @throws RangeError for a code that does not fit, LowbitError E_SHAPE */
  decode(format: NumberFormat, codes: ArrayLike<number>, out?: Float32Array): Float32Array;
  /** `packCodes`. @throws RangeError for a code that does not fit */
  pack(codes: ArrayLike<number>, bits: number): Uint8Array;
  /** `unpackCodes`. @throws LowbitError E_SHAPE */
  unpack(bytes: Uint8Array, bits: number, count: number): Codes;
  /**
   * The largest magnitude of every `blockSize` values, the last block as short as it is; NaN where a block holds one.
   */
  absmax(x: Float32Array, blockSize: number, out?: Float32Array): Float32Array;
  /** The least and the largest value of every `blockSize` values; both NaN where a block holds one. */
  range(x: Float32Array, blockSize: number, least: Float32Array, largest: Float32Array): void;
  /** `format.encodeBytes`: blocks of an opaque format. @throws LowbitError E_SHAPE, E_VALUE */
  encodeBlocks(format: OpaqueFormat, x: Float32Array, importance?: Float32Array): Uint8Array;
  /** The encoder of panels of blocks, or null where there is none that is exact. */
  blockEncoder(policy: ElementPolicy): BlockEncoder | null;
  /**
   * The decoder of panels of blocks: (element - offset) * scale for a zero point, element * scale + offset for an
   * addend.
   */
  blockDecoder(element: NumberFormat, role: "none" | "zeroPoint" | "add"): BlockDecoder | null;
  /**
   * Room for the loops of 4-bit blocks in arithmetic "ort", valid until the next call; null where the engine has no
   * memory for it.
   */
  readonly nibbles: (k: number, blockSize: number, inRows: boolean) => NibbleTile | null;
}
