// What an integer product is printed from (gemm.ts, gemmtile.ts, operands.ts), and what follows from it: the layout of
// weight and activation records, the planes that are joined on the way, and the correction for the shift of the
// weights.
import { fieldLayout } from "../products/fields.ts";

/**
 * The inner product. `dot`: relaxed dot with i32 accumulation (one instruction where the CPU has VNNI or sdot).
 * `madd16`: relaxed dot to i16 accumulators, widened before they can overflow (fastest where V8 emulates the former).
 * `simd`: i32x4.dot_i16x8_s, baseline SIMD128.
 */
export type DotStyle = "dot" | "madd16" | "simd";

/** Everything the code depends on; plain data, printed into the kernel's name and cache key. */
export interface GemmSpec {
  readonly style: DotStyle;
  /** Relaxed multiply-add and swizzle may be used. */
  readonly relaxed: boolean;
  /** Bits of an activation: 8 or 16. */
  readonly activationBits: 8 | 16;
  /** Bits of a stored weight field. */
  readonly bits: number;
  /** Per weight plane: a 16-entry table, or null for the field itself; and its largest operand. */
  readonly planes: readonly { readonly table: readonly number[] | null; readonly max: number }[];
  readonly radix: number;
  /** Elements of a group, padded to whole quads of the field layout. */
  readonly group: number;
  readonly zeroPoint: boolean;
  /** Values are 2 * operand - shift. */
  readonly doubled: boolean;
  readonly add: boolean;
  /** Scales are stored as float16. */
  readonly half?: boolean;
  readonly mr: number;
  /** Row vectors per tile: 4 (all 16 rows) or 2. */
  readonly nv: 2 | 4;
  /** Operands are decoded once per block into a panel that all tiles read: for products of several tiles (mr > 1). */
  readonly panel: boolean;
  readonly shared: boolean;
}

/** Bytes of one (16 rows x group) record of W, and where its parts are. */
export function weightRecord(spec: Pick<GemmSpec, "bits" | "group" | "zeroPoint" | "add" | "half">): {
  readonly codes: number;
  readonly zeroPoint: number;
  readonly add: number;
  readonly bytes: number;
} {
  const layout = fieldLayout(spec.bits);
  const codes = (spec.group / (4 * layout.quads)) * layout.vectors * 64;
  const zeroPoint = codes + (spec.half === true ? 32 : 64);
  const add = zeroPoint + (spec.zeroPoint ? 64 : 0);
  return { codes, zeroPoint, add, bytes: add + (spec.add ? 64 : 0) };
}

/** Smallest padded group for a span of `n` elements in fields of `bits`. */
export function paddedGroup(bits: number, n: number): number {
  const period = 4 * fieldLayout(bits).quads;
  return Math.ceil(n / period) * period;
}

/** Bytes of one (mr rows x group) record of activations: scales, corrections, sums, then quads. */
export function activationRecord(spec: Pick<GemmSpec, "style" | "activationBits" | "group" | "mr">): {
  readonly header: number;
  /** Bytes of one quad of one row. */
  readonly quad: number;
  readonly bytes: number;
} {
  const header = 16 * spec.mr; // f32 scale, i32 correction low, i32 correction high, f32 sum: mr each
  const quad = spec.style === "simd" ? 8 : spec.activationBits / 2;
  return { header, quad, bytes: header + (spec.group / 4) * quad * spec.mr };
}

/**
 * i16 products: the two planes of a table are zipped to signed i16 operands where activations have 8 bits (16-bit ones
 * would overflow i32; there the planes stay apart). The shift is then in the sign of the high byte, and an accumulator
 * holds k in pairs, two rows of W at once.
 */
export function zipsPlanes(spec: Pick<GemmSpec, "style" | "activationBits" | "planes">): boolean {
  return spec.style === "simd" && spec.planes.length === 2 && spec.activationBits === 8;
}

/** Accumulator index of a weight factor radix^pw * 256^pa. */
export interface PlaneOrders {
  readonly factors: readonly number[];
  index(pa: number, pw: number): number;
}

export function planeOrders(activationPlanes: number, weightPlanes: number, radix: number): PlaneOrders {
  const factor = (pa: number, pw: number): number => 256 ** pa * radix ** pw;
  const factors: number[] = [];
  for (let pa = 0; pa < activationPlanes; pa++)
    for (let pw = 0; pw < weightPlanes; pw++) if (!factors.includes(factor(pa, pw))) factors.push(factor(pa, pw));
  factors.sort((a, b) => a - b);
  return { factors, index: (pa, pw) => factors.indexOf(factor(pa, pw)) };
}

/**
 * i16 sums of two planes are joined by the multiplication that widens them. Three (65536 is no i16) stay apart to the
 * end.
 */
export function widensPlanes({ style, activationBits, planes }: GemmSpec): boolean {
  return style === "madd16" && planes.length + activationBits / 8 - 1 <= 2;
}

/**
 * A record's correction is one for the sum of all planes, or one for each plane of activations: see `activations.ts`.
 */
export function totalCorrection(spec: GemmSpec): boolean {
  return spec.zeroPoint || spec.doubled || spec.style === "simd" || widensPlanes(spec);
}

/**
 * The factor of the activation sum in a record's corrections. The shift of two planes of weights belongs to the higher
 * one.
 */
export function correctionFactor(spec: GemmSpec, shift: number): number {
  if (spec.zeroPoint) return -1;
  if (zipsPlanes(spec)) return 0;
  return widensPlanes(spec) ? -shift * spec.radix ** (spec.planes.length - 1) : -shift;
}
