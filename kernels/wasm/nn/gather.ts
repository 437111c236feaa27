// Rows of a block-quantized table by index, as float32: y = (code - zero) * scale, one rounding. The table is what
// GatherBlockQuantized and MatMulNBits store: codes of 4 bits (low nibble first) or 8, a float32 scale for each block
// of a row, zero points packed as the codes are, a row's padded to a byte, or one zero for all.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachRow, placeWords, ROW_WORDS, rowAddress, rowJob, type Rows } from "./rows.ts";

export interface GatherSpec {
  readonly bits: 4 | 8;
  /** Codes and zero points are two's complement. */
  readonly signed: boolean;
  readonly zeroPoints: boolean;
  readonly shared: boolean;
}

export interface GatherJob {
  /** How many rows are read, and their length: a multiple of 8, as blocks are. */
  readonly rows: number;
  readonly width: number;
  readonly block: number;
  /** Address of an int32 for each row, from 0 to the rows of the table - 1: checked by the caller. */
  readonly indices: number;
  readonly codes: number;
  readonly scales: number;
  /** Address of the zero points where the spec has them. */
  readonly zeroPoints?: number;
  /** The zero of all codes where it has not; default 0. */
  readonly zero?: number;
  readonly y: Rows;
}

const FIRST = ROW_WORDS.length;
const FIELDS = ["indices", "codes", "codesRow", "scales", "blocks", "zeros", "zerosRow", "zero", "block"] as const;

/** Items and arguments. @throws RangeError for lengths that are no multiple of 8 */
export function gatherJob(job: GatherJob, spec: GatherSpec): { readonly items: number; readonly args: Int32Array } {
  const { rows, width, block } = job;
  if (width % 8 !== 0 || block % 8 !== 0 || block < 8)
    throw new RangeError(`gather: expected rows and blocks of a multiple of 8 codes, got ${width} and ${block}.`);
  const { items, words } = rowJob(rows, width, 1);
  const blocks = Math.ceil(width / block);
  const bytes = (codes: number): number => Math.ceil((codes * spec.bits) / 8);
  const own = [job.indices, job.codes, bytes(width), job.scales, blocks, job.zeroPoints ?? 0, bytes(blocks), job.zero ?? 0, block];
  return { items, args: Int32Array.of(...words, ...own, ...placeWords([job.y])) };
}

/** The zero point of block `at` of a row. */
function zeroPoint(f: FunctionBuilder, spec: GatherSpec, zeros: Local, at: Local): Emit {
  if (spec.bits === 8) return f.load(spec.signed ? "i32.load8_s" : "i32.load8_u", f.op("i32.add", zeros, at));
  const byte = f.load("i32.load8_u", f.op("i32.add", zeros, f.op("i32.shr_u", at, f.i32(1))));
  const nibble = f.op("i32.shr_u", byte, f.op("i32.shl", f.op("i32.and", at, f.i32(1)), f.i32(2)));
  const up = f.op("i32.shl", nibble, f.i32(28));
  return f.op(spec.signed ? "i32.shr_s" : "i32.shr_u", up, f.i32(28));
}

function gatherRow(f: FunctionBuilder, spec: GatherSpec): void {
  const [codes, scales, zeros, zero, block, width, y] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
  const [at, end, stop] = f.locals("i32", 3);
  const [v, scale, z] = f.locals("v128", 3);
  const sign = spec.signed ? "s" : "u";
  f.set(stop, f.op("i32.add", y, f.op("i32.shl", width, f.i32(2))));
  f.set(z, f.op("i32x4.splat", zero));
  f.while(f.op("i32.lt_u", y, stop), () => {
    f.set(scale, f.load("v128.load32_splat", scales));
    if (spec.zeroPoints) f.set(z, f.op("i32x4.splat", zeroPoint(f, spec, zeros, at)));
    f.set(end, f.op("i32.add", y, f.op("i32.shl", block, f.i32(2))));
    f.set(end, f.op("select", end, stop, f.op("i32.lt_u", end, stop)));
    f.doWhile(
      () => {
        if (spec.bits === 8) f.set(v, f.load(`v128.load8x8_${sign}`, codes));
        else {
          // nibbles at the top of bytes, so that a shift brings the sign along
          f.set(v, f.load("v128.load32_zero", codes));
          f.set(v, f.shuffle([0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23], f.op("i8x16.shl", v, f.i32(4)), v));
          f.set(v, f.op(`i16x8.extend_low_i8x16_${sign}`, f.op(`i8x16.shr_${sign}`, v, f.i32(4))));
        }
        for (const [i, half] of (["low", "high"] as const).entries()) {
          const whole = f.op("i32x4.sub", f.op(`i32x4.extend_${half}_i16x8_${sign}`, v), z);
          f.store("v128.store", y, 16 * i, f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", whole), scale));
        }
        f.bump(codes, spec.bits);
        f.bump(y, 32);
      },
      f.op("i32.lt_u", y, end),
    );
    f.bump(scales, 4);
    f.bump(at, 1);
  });
}

/** A module whose `work` reads rows; its arguments are `gatherJob`'s. */
export function gatherModule(spec: GatherSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => gatherRow(f, spec));
  writeWork(m, (f, args) => (item) => {
    const field = (name: (typeof FIELDS)[number]): Emit => f.load("i32.load", args, 4 * (FIRST + FIELDS.indexOf(name)));
    const index = f.local("i32");
    eachRow(f, args, item, (run, within) => {
      f.set(index, f.load("i32.load", f.op("i32.add", field("indices"), f.op("i32.shl", run, f.i32(2)))));
      const codes = f.op("i32.add", field("codes"), f.op("i32.mul", index, field("codesRow")));
      const scales = f.op("i32.add", field("scales"), f.op("i32.mul", index, f.op("i32.shl", field("blocks"), f.i32(2))));
      const zeros = f.op("i32.add", field("zeros"), f.op("i32.mul", index, field("zerosRow")));
      const y = rowAddress(f, args, FIRST + FIELDS.length, 0, run, within);
      f.run(f.call(row, codes, scales, zeros, field("zero"), field("block"), f.load("i32.load", args), y));
    });
  });
  return m.bytes();
}

export const gather = family("gather", gatherModule);
