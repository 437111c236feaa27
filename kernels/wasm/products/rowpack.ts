// Moves rows of dense codes, scales and zero points into the records of products: the same bytes as FieldWriter and
// termWriter (pack.ts) at the speed of memory, for fields of 1, 2, 4 or 8 bits that are codes with some bits turned
// over. An item is a block of 16 rows.
import type { WeightSource } from "../../weight.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";

type RowBits = 1 | 2 | 4 | 8;

/**
 * What codes of a matrix are turned over by to be the fields of a plan, where the kernel takes them: dense codes that
 * are fields but for that, groups without padding; else null.
 */
export function rowBits(
  source: WeightSource,
  { bits, remap }: { readonly bits: number; readonly remap: ArrayLike<number> | null },
): { readonly bits: RowBits; readonly flip: number } | null {
  if (source.dense === undefined || bits !== source.bits || (bits !== 1 && bits !== 2 && bits !== 4 && bits !== 8)) return null;
  const flip = remap === null ? 0 : remap[0];
  if (remap !== null) for (let code = 0; code < 2 ** bits; code++) if (remap[code] !== (code ^ flip)) return null;
  return { bits, flip };
}

/** Groups for a block of scales; 0 where blocks are no whole groups, or groups are padded. */
export function groupsPerBlock(
  { k, span: block }: Pick<WeightSource, "k" | "span">,
  { span, group, groups }: { readonly span: number; readonly group: number; readonly groups: number },
): number {
  const per = Math.ceil(k / block) === 1 ? groups : block / span;
  return span === group && Number.isInteger(per) ? per : 0;
}

export interface RowPackSpec {
  readonly bits: RowBits;
  /** Scales become float16, which they are: see `scalesFitHalf`. */
  readonly half: boolean;
  /** Elements of a record, a multiple of 32 / bits. */
  readonly group: number;
  /** Bytes of a record; its scales follow the codes; where its zero points are, 0 without. */
  readonly bytes: number;
  readonly zeroPoint: number;
  readonly shared: boolean;
}

/**
 * Arguments of `work`, words. codes: dense rows of `stride` bytes, least significant bit first. scales, zeros: float32
 * [rows, blocks], a block for every `perBlock` groups. out: records. flip: 32 bits turned over in every word. shift:
 * added to zero points.
 */
export const ROW_PACK_ARGUMENTS = ["codes", "stride", "scales", "zeros", "blocks", "perBlock", "out", "groups", "flip", "shift"] as const;

/**
 * Which bits of the indices of fields change places so that code i = 4 q + b of a word, at i * bits, comes to byte b,
 * field q. The index of a code has b in its two low bits, that of a place in its high ones.
 */
export function indexSwaps(bits: number): readonly (readonly [low: number, high: number])[] {
  const count = Math.log2(32 / bits);
  const wanted = Array.from({ length: count }, (_, d) => (d < count - 2 ? d + 2 : d - (count - 2)));
  const now = Array.from({ length: count }, (_, d) => d);
  const swaps: (readonly [number, number])[] = [];
  for (let d = 0; d < count; d++) {
    const p = now.indexOf(wanted[d]);
    if (p === d) continue;
    [now[d], now[p]] = [now[p], now[d]];
    swaps.push([d, p]);
  }
  return swaps;
}

/** Fields whose index has bit `high` change places with those that have bit `low` instead. */
function swapFields(f: FunctionBuilder, bits: number, [low, high]: readonly [number, number], v: Local, t: Local): void {
  const distance = (2 ** high - 2 ** low) * bits;
  let mask = 0;
  for (let i = 0; i < 32 / bits; i++) if ((i >> low) & 1 && !((i >> high) & 1)) mask |= (2 ** bits - 1) << (i * bits);
  f.set(t, f.op("v128.and", f.op("v128.xor", f.op("i32x4.shr_u", v, f.i32(distance)), v), f.constant32(mask)));
  f.set(v, f.op("v128.xor", v, f.op("v128.xor", t, f.op("i32x4.shl", t, f.i32(distance)))));
}

/** Four float32 that are float16 values: the exponent's bias moves from 127 to 15; zeros would fall below. */
function storeHalf(f: FunctionBuilder, at: Local, offset: number, v: Local, t: Local): void {
  const magnitude = f.op("i32x4.sub", f.op("v128.and", v, f.constant32(0x7fffffff)), f.constant32(112 << 23));
  f.set(t, f.op("i32x4.shr_u", f.op("i32x4.max_s", magnitude, f.constant32(0)), f.i32(13)));
  f.set(t, f.op("v128.or", t, f.op("v128.and", f.op("i32x4.shr_u", v, f.i32(16)), f.constant32(0x8000))));
  f.set(t, f.op("i16x8.narrow_i32x4_u", t, t));
  f.run(f.loadLane("v128.store64_lane", at, offset, 0, t));
}

export function rowPackModule(spec: RowPackSpec): Uint8Array<ArrayBuffer> {
  const { bits, group, bytes, zeroPoint } = spec;
  const m = new ModuleBuilder({ shared: spec.shared });
  const codesBytes = 2 * bits * group;
  const swaps = indexSwaps(bits);
  writeWork(m, (f, args) => {
    const field = (name: (typeof ROW_PACK_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * ROW_PACK_ARGUMENTS.indexOf(name));
    const [at, term, out, end, left, inBlock, step] = f.locals("i32", 7);
    const rows = f.locals("i32", 16);
    const scales = f.locals("i32", 16);
    const zeros = zeroPoint === 0 ? [] : f.locals("i32", 16);
    const [v, t, flip] = f.locals("v128", 3);
    /** Words of rows 4 j to 4 j + 3, `offset` bytes on. */
    const gather = (from: readonly Local[], j: number, offset: Local): void => {
      f.set(v, f.load("v128.load32_zero", f.op("i32.add", from[4 * j], offset)));
      for (let i = 1; i < 4; i++) f.set(v, f.loadLane("v128.load32_lane", f.op("i32.add", from[4 * j + i], offset), 0, i, v));
    };
    const place = (to: readonly Local[], base: Emit, item: Local, stride: Emit): void => {
      f.set(step, stride);
      f.set(to[0], f.op("i32.add", base, f.op("i32.mul", item, f.op("i32.shl", step, f.i32(4)))));
      for (let r = 1; r < 16; r++) f.set(to[r], f.op("i32.add", to[r - 1], step));
    };
    return (item) => {
      const blocks = f.op("i32.shl", field("blocks"), f.i32(2));
      place(rows, field("codes"), item, field("stride"));
      place(scales, field("scales"), item, blocks);
      if (zeroPoint !== 0) place(zeros, field("zeros"), item, blocks);
      f.set(out, f.op("i32.add", field("out"), f.op("i32.mul", item, f.op("i32.mul", field("groups"), f.i32(bytes)))));
      f.set(flip, f.op("i32x4.splat", field("flip")));
      f.set(at, f.i32(0));
      f.set(term, f.i32(0));
      f.set(left, field("groups"));
      f.set(inBlock, field("perBlock"));
      f.doWhile(() => {
        f.set(end, f.op("i32.add", out, f.i32(codesBytes)));
        f.doWhile(
          () => {
            for (let j = 0; j < 4; j++) {
              gather(rows, j, at);
              for (const swap of swaps) swapFields(f, bits, swap, v, t);
              f.store("v128.store", out, 16 * j, f.op("v128.xor", v, flip));
            }
            f.bump(at, 4);
            f.bump(out, 64);
          },
          f.op("i32.ne", out, end),
        );
        for (let j = 0; j < 4; j++) {
          gather(scales, j, term);
          if (spec.half) storeHalf(f, out, 8 * j, v, t);
          else f.store("v128.store", out, 16 * j, v);
          if (zeroPoint === 0) continue;
          gather(zeros, j, term);
          const integers = f.op(
            "i32x4.add",
            f.op("i32x4.trunc_sat_f32x4_s", f.op("f32x4.nearest", v)),
            f.op("i32x4.splat", field("shift")),
          );
          f.set(v, integers);
          f.set(v, f.op("i16x8.narrow_i32x4_s", v, v));
          f.run(f.loadLane("v128.store64_lane", out, zeroPoint - codesBytes + 8 * j, 0, v));
        }
        f.bump(out, bytes - codesBytes);
        f.bump(inBlock, -1);
        f.if(f.op("i32.eqz", inBlock), () => {
          f.bump(term, 4);
          f.set(inBlock, field("perBlock"));
        });
        f.bump(left, -1);
      }, left);
    };
  });
  return m.bytes();
}

export const rowPack = family("row pack", rowPackModule);
