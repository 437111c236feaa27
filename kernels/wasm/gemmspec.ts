// What an integer product is printed from (gemm.ts, operands.ts), and the layout of its weight records that follows.
import { fieldLayout } from "./fields.ts";

/**
 * The inner product. `dot`: relaxed dot with i32 accumulation (one instruction where the CPU has VNNI or sdot). `madd16`: relaxed dot to i16
 * accumulators, widened before they can overflow (fastest where V8 emulates the former). `simd`: i32x4.dot_i16x8_s, baseline SIMD128.
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
  readonly mr: number;
  /** Row vectors per tile: 4 (all 16 rows) or 2. */
  readonly nv: 2 | 4;
  /** Operands are decoded once per block into a panel that all tiles read: for products of several tiles (mr > 1). */
  readonly panel: boolean;
  readonly shared: boolean;
}

/** Bytes of one (16 rows x group) record of W, and where its parts are. */
export function weightRecord(spec: Pick<GemmSpec, "bits" | "group" | "zeroPoint" | "add">): {
  readonly codes: number;
  readonly zeroPoint: number;
  readonly add: number;
  readonly bytes: number;
} {
  const layout = fieldLayout(spec.bits);
  const codes = (spec.group / (4 * layout.quads)) * layout.vectors * 64;
  const zeroPoint = codes + 64;
  const add = zeroPoint + (spec.zeroPoint ? 64 : 0);
  return { codes, zeroPoint, add, bytes: add + (spec.add ? 64 : 0) };
}
