// The types every layer shares: what a number format is, what a block format is. A format is data: one frozen
// descriptor from which codec, packed storage, kernels, tests, documentation and CLI rows are derived. Nothing here
// computes.

import type { BlockSearch } from "./search.ts";

/**
 * How a value between two representable neighbours is rounded. The names are those of `Intl.NumberFormat` (ECMA-402):
 * `halfEven` ties to the even code, `halfExpand` ties away from zero, `halfTrunc` ties toward zero, `halfCeil` /
 * `halfFloor` ties toward +-infinity; `trunc`, `expand`, `ceil`, `floor` are directed; `stochastic` picks the upper
 * neighbour with probability (x - lower) / gap.
 */
export type Rounding =
  "halfEven" | "halfExpand" | "halfTrunc" | "halfCeil" | "halfFloor" | "trunc" | "expand" | "ceil" | "floor" | "stochastic";

/**
 * What becomes of a value that rounds beyond the largest finite one. `wrap` (integers only) keeps the low bits, as ONNX
 * Cast does.
 */
export type Overflow = "saturate" | "inf" | "nan" | "error" | "wrap";

/** What an infinite input is: an overflow like any other, or (`keep`) the format's infinity, else its NaN. */
export type InfinityPolicy = "overflow" | "keep";

/** What becomes of NaN: the format's NaN code, an error, or a named substitute (for formats that have no NaN). */
export type NanPolicy = "nan" | "error" | "zero" | "negativeZero" | "max";

/** The policies of one encoding; what is left out is the format's own (`defaults`). */
export interface EncodeOptions {
  readonly rounding?: Rounding;
  readonly overflow?: Overflow;
  readonly infinity?: InfinityPolicy;
  readonly nan?: NanPolicy;
  /** Uniform numbers in [0, 1) for `stochastic`; required by it, so that results can be repeated. */
  readonly random?: () => number;
}

/** The policies a format uses when none is named. */
export interface EncodeDefaults {
  readonly rounding: Rounding;
  readonly overflow: Overflow;
  readonly infinity: InfinityPolicy;
  readonly nan: NanPolicy;
}

/** What a format can hold; derived from its codes. Values are exact. */
export interface Limits {
  /** Largest and smallest finite value. */
  readonly max: number;
  readonly min: number;
  /** Smallest value above zero. */
  readonly minPositive: number;
  /** Smallest positive normal number; equals minPositive where the format has no subnormals. */
  readonly minNormal: number;
  readonly hasZero: boolean;
  readonly hasNegativeZero: boolean;
  readonly hasInf: boolean;
  readonly hasNaN: boolean;
  /** Is there a code for -v for every finite v? */
  readonly symmetric: boolean;
  /** Distinct finite values (zeros of both signs count once). */
  readonly finiteValues: number;
}

/**
 * What kernels read to decode a code, derived from the values:
 * `lattice`: every value is unit * (k + shift) with k in -128..127 (integer dot products);
 * `shift`: sign, exponent and mantissa fields that move into a float32; `table`: 2^bits floats; `rule`: too wide for a
 * table.
 */
export type Access =
  | { readonly kind: "lattice"; readonly unit: number; readonly shift: number }
  | {
      readonly kind: "shift";
      readonly exponentBits: number;
      readonly mantissaBits: number;
      readonly bias: number;
      readonly signed: boolean;
      /** Exponent field 0 holds subnormals and zero. */
      readonly subnormals: boolean;
    }
  | { readonly kind: "table" }
  | { readonly kind: "rule" };

/** Bit fields of a code, most significant first, for bit cards and `lowbit formats NAME --value`. */
export interface Field {
  readonly name: "sign" | "exponent" | "mantissa" | "direction" | "regime" | "characteristic" | "dot" | "integer" | "index" | "padding";
  readonly bits: number;
}

/**
 * The exact order of a format of at most 16 bits: what encoding is derived from. Index i runs over distinct values,
 * ascending.
 */
export interface ValueOrder {
  /** Distinct finite values, ascending; -0 and +0 are one entry. */
  readonly values: Float64Array;
  /** The code that encoding produces for each value (+0 for zero). */
  readonly codes: Uint16Array;
  /** boundaries[i] lies between values[i] and values[i + 1]; the definer's, not always the arithmetic midpoint. */
  readonly boundaries: Float64Array;
}

/** A scalar format: a finite set of codes. Casting to it involves no scale. */
export interface NumberFormat {
  readonly kind: "int" | "float" | "posit" | "takum" | "logarithmic" | "bipolar" | "codebook" | "fixed";
  /** ml_dtypes / ONNX spelling: "float4_e2m1fn", "int4". */
  readonly name: string;
  readonly aliases: readonly string[];
  /** 1..32; codes are unsigned (>>> 0). */
  readonly bits: number;
  /** Where the format is defined. */
  readonly spec: string;
  readonly limits: Limits;
  readonly access: Access;
  readonly fields: readonly Field[];
  /** Where the widths of the fields depend on the code (posits). */
  readonly fieldsOf?: (code: number) => readonly Field[];
  /**
   * "word": codes read as two's complement integers have the order of the values, NaN is the smallest and equals
   * itself, and stepping wraps.
   */
  readonly ordering?: "word";
  /**
   * What the largest magnitude of a block is scaled to; default the largest number. Formats that taper (posits) keep
   * their digits around one: their largest number would leave every other value none.
   */
  readonly scaleTo?: number;
  readonly defaults: EncodeDefaults;
  /** What the format is defined by: plain JSON from which `defineFormat` makes it again (packed tensors carry it). */
  readonly definition: FormatDefinition;
  /** TensorProto data type, where there is one. */
  readonly onnx?: number;
  /** All 2^bits values by code, -0, infinities and NaN included; up to 16 bits, else null. Do not write to it. */
  readonly table: Float64Array | null;
  /** Distinct finite values in order with their decision boundaries; up to 16 bits, else null. Do not write to it. */
  readonly order: ValueOrder | null;
  /** Exact value of a code. @throws RangeError when the code is not an integer in 0..2^bits-1. */
  decode(code: number): number;
  /**
   * Code of the nearest value under the named policies, rounded ONCE from the double. @throws LowbitError E_VALUE,
   * E_UNSUPPORTED
   */
  encode(value: number, options?: EncodeOptions): number;
}

/** Plain, versioned JSON that defines a format: `kind` names the builder, the rest are its arguments. */
export interface FormatDefinition {
  readonly kind: string;
  readonly [key: string]: unknown;
}

/** How far one scale reaches: n elements along k, a row, the tensor, or a tile of rows x k. */
export type Span = number | "row" | "tensor" | readonly [rows: number, k: number];

/** One level of scales of a block format: what a scale is stored in, and how far it reaches. */
export interface ScaleLevel {
  readonly format: NumberFormat;
  readonly span: Span;
}

/**
 * How the scale of a block follows from its elements, by name. `max`: amax / element max, as a real number. The
 * power-of-two rules of microscaling, the two-level rules of NVFP4 and the searches are in
 * src/tensor/quantize/scale-rules.ts (docs/numerics.md has the table).
 */
export type ScaleRule =
  | "max"
  | "floor"
  | "ceil"
  | "rceil"
  | "nearest"
  | "even"
  | "fourThirds"
  | "mse"
  | "mseSweep"
  | "quest"
  | "torchao"
  | "te"
  | "modelopt"
  | "fourOverSix";

/**
 * How integer elements use their codes. `narrow`: scale amax / (2^(b-1)-1), the most negative code unused. `full`: amax
 * / 2^(b-1) steps over all codes, clipping the positive end. `gptq`: 2 amax / (2^b - 1). `ort`: signed extreme /
 * -2^(b-1), so the scale may be negative. Asymmetric formats: `minmax` (zero inside the range).
 */
export type RangeRule = "narrow" | "full" | "gptq" | "ort" | "minmax";

/**
 * A scaled format: value = (element - zeroPoint) * product of scales, or element * product of scales + min. With role
 * "mean" the offset belongs to the scales: value = element * (product of scales + mean).
 */
export interface BlockFormat {
  readonly kind: "block";
  readonly name: string;
  readonly aliases: readonly string[];
  readonly spec: string;
  readonly element: NumberFormat;
  /** Innermost first. */
  readonly scales: readonly ScaleLevel[];
  readonly offset?: { readonly role: "zeroPoint" | "min" | "mean"; readonly levels: readonly ScaleLevel[] };
  readonly scaleRule: ScaleRule;
  readonly rangeRule: RangeRule;
  /** Is a last block along k shorter than its span allowed? */
  readonly tail: "short" | "error";
  /** NaN or infinity in a block: an error, or (`scale`) the scale becomes NaN and with it the whole block, as in MX. */
  readonly nonFinite: "error" | "scale";
  readonly definition: FormatDefinition;
  /** Stored bits per value of a [rows, k] matrix: codes, scales and offsets. */
  bitsPerValue(rows: number, k: number): number;
}

/**
 * A format given by its bytes only (ggml blocks, OliVe pairs). Kernels use `planes` where present, else decode panels
 * to float32.
 */
export interface OpaqueFormat {
  readonly kind: "opaque";
  readonly name: string;
  readonly aliases: readonly string[];
  readonly spec: string;
  /** Elements and bytes of one block. */
  readonly blockSize: number;
  readonly blockBytes: number;
  /** Tensor type in GGUF files, where there is one. */
  readonly gguf?: number;
  readonly definition: FormatDefinition;
  /**
   * x: a whole number of blocks -> bytes. `importance` weighs the squared error of each value, for formats whose
   * encoder searches.
   * @throws LowbitError E_SHAPE, E_VALUE
   */
  encodeBytes(x: Float32Array, importance?: Float32Array): Uint8Array;
  /** bytes: a whole number of blocks -> values. @throws LowbitError E_SHAPE */
  decodeBytes(bytes: Uint8Array): Float32Array;
  /** Where the encoder searches scales: what its loops are, and encoding on other loops with the same results. */
  readonly search?: BlockSearch;
  readonly planes?: BlockFormat;
  /**
   * Where there are planes: `bytes` (a whole number of blocks) as codes of `planes.element`, and for every run of
   * `planes.scales[0].span` elements a scale and, where `planes.offset` is there, a minimum. code's value * scale +
   * minimum is what `decodeBytes` gives, before its one rounding to float32.
   */
  readPlanes?(bytes: Uint8Array, codes: Uint8Array, scales: Float64Array, mins: Float64Array): void;
}

/**
 * Any format: of single values, of blocks with scales, or of blocks known by their bytes only; `kind` tells them
 * apart.
 */
export type Format = NumberFormat | BlockFormat | OpaqueFormat;

/**
 * How the codes of a packed tensor were made: plain, versioned JSON. `algorithm` names the quantizer; the rest are its
 * options, every choice that can change a number included.
 */
export interface QuantConfig {
  readonly version: 1;
  readonly algorithm: string;
  readonly [option: string]: unknown;
}

/**
 * One quantized value, nothing loose; read-only by convention. A matrix [rows, k] with k (the contracted side)
 * contiguous; a tensor of more dimensions is viewed as [shape[0], rest]. Value = (element - zeroPoint) * product of
 * scales, or element * product of scales + offset.
 */
export interface PackedTensor {
  readonly format: Format;
  readonly shape: readonly number[];
  readonly rows: number;
  readonly k: number;
  /** Bytes of one row of codes: dense, least significant bit first, padded to a byte. */
  readonly rowBytes: number;
  readonly codes: Uint8Array;
  /** Codes of the scale formats, row-major over their grids, each grid row padded to a byte: level 0, level 1. */
  readonly scales: Uint8Array | null;
  readonly superScales: Uint8Array | null;
  readonly offsets: Uint8Array | null;
  readonly recipe: QuantConfig;
}
