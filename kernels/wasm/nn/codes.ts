// Codes from one scale to another, for integer-only models (src/onnx/integer): rows of int32, one or two of them, times
// factors c / 2^t in 64-bit integers, clipped; as int32, as uint8 around 128, or as what a table holds for them.
//   y = clip(floor((v c + w d + addend + 2^(t - 1)) / 2^t))
// v is x (+ an int32 a column), x b, max(x) - x of its row, or (x - mean) f / 2^8 with mean and f of its row. Exact:
// all sums are below 2^62, and 2^62 is added before the shift, which is of unsigned numbers, and taken off after it.
import { ModuleBuilder, type FunctionBuilder, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";

export interface CodesSpec {
  readonly value: "x" | "biased" | "product" | "distance" | "normalized";
  /** A second operand and its factor are added. */
  readonly sum: boolean;
  /** Factors are one a column; else one for all, or one a row. */
  readonly columns: boolean;
  /** An int64 a column is added. */
  readonly addend: boolean;
  /** uint8 is around 128; table8 and table32 hold bytes or words by code; sums of bytes are kept by row. */
  readonly result: "int32" | "uint8" | "table8" | "table32" | "summed8";
  readonly shared: boolean;
}

/**
 * Arguments of `work`, i32 each; its items are rows. Rows are `width` int32, a multiple of 4; those of x and b are
 * `xStride` and `bStride` bytes apart.
 */
export const CODES_ARGUMENTS = ["x", "b", "y", "width", "factors", "factorStride", "other", "bias", "addend", "means", "reciprocals", "table", "sums", "constants", "shift", "bStride", "xStride"] as const; // prettier-ignore
type Argument = (typeof CODES_ARGUMENTS)[number];

/** Words at `constants`: 2^62 + 2^(t - 1), 2^(62 - t), the lowest and the highest code, as int64. */
export function codesConstants(shift: number, low: number, high: number): BigInt64Array {
  const up = 1n << 62n;
  return BigInt64Array.of(up + (1n << BigInt(shift - 1)), up >> BigInt(shift), BigInt(low), BigInt(high));
}

/** The bits of products with the reciprocal root that are dropped. */
const NORM_SHIFT = 8;
/** The low words of four int64. */
const LOW_WORDS = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27];

function codesRow(f: FunctionBuilder, spec: CodesSpec, row: Local, argument: (name: Argument) => Operand): void {
  const [x, b, y, end, c, bias, addend, table, total] = f.locals("i32", 9);
  const [v, w, factor, other, low, high, top, mean, reciprocal] = f.locals("v128", 9);
  const [up, back, least, most, zero, dropped, droppedUp] = f.locals("v128", 7);
  const { value, result } = spec;
  const width = result === "uint8" || result === "table8" || result === "summed8" ? 1 : 4;
  const bytes = f.local("i32");
  const at = (base: Argument, scale: Operand): Operand => f.op("i32.add", argument(base), f.op("i32.mul", row, scale));
  f.set(bytes, f.op("i32.shl", argument("width"), f.i32(2)));
  f.set(x, at("x", argument("xStride")));
  f.set(end, f.op("i32.add", x, bytes));
  if (value === "product" || spec.sum) f.set(b, at("b", argument("bStride")));
  f.set(y, at("y", width === 4 ? bytes : argument("width")));
  f.set(c, at("factors", argument("factorStride")));
  if (!spec.columns) f.set(factor, f.load("v128.load32_splat", c));
  if (spec.sum) f.set(other, f.load("v128.load32_splat", argument("other")));
  if (value === "biased") f.set(bias, argument("bias"));
  if (spec.addend) f.set(addend, argument("addend"));
  if (result.startsWith("table") || result === "summed8") f.set(table, argument("table"));
  [up, back, least, most].forEach((constant, i) => f.set(constant, f.load("v128.load64_splat", argument("constants"), 8 * i)));
  if (result === "uint8") f.set(zero, f.v128i32(128));
  if (value === "normalized") {
    const perRow = (name: Argument): Operand =>
      f.load("v128.load32_splat", f.op("i32.add", argument(name), f.op("i32.shl", row, f.i32(2))));
    f.set(mean, perRow("means"));
    f.set(reciprocal, perRow("reciprocals"));
    f.set(droppedUp, f.load("v128.load64_splat", argument("constants"), 32));
    f.set(dropped, f.load("v128.load64_splat", argument("constants"), 40));
  }
  if (value === "distance") rowMaximum(f, x, end, top, v);
  if (result === "summed8") f.set(total, f.i32(0));
  f.doWhile(
    () => {
      f.set(v, f.load("v128.load", x));
      if (value === "biased") {
        f.set(v, f.op("i32x4.add", v, f.load("v128.load", bias)));
        f.bump(bias, 16);
      } else if (value === "product") f.set(v, f.op("i32x4.mul", v, f.load("v128.load", b)));
      else if (value === "distance") f.set(v, f.op("i32x4.sub", top, v));
      else if (value === "normalized") {
        f.set(v, f.op("i32x4.sub", v, mean));
        for (const [half, name] of [
          [low, "i64x2.extmul_low_i32x4_s"],
          [high, "i64x2.extmul_high_i32x4_s"],
        ] as const)
          f.set(
            half,
            f.op("i64x2.sub", f.op("i64x2.shr_u", f.op("i64x2.add", f.op(name, v, reciprocal), droppedUp), f.i32(NORM_SHIFT)), dropped),
          );
        f.set(v, f.shuffle(LOW_WORDS, low, high));
      }
      if (spec.columns) {
        f.set(factor, f.load("v128.load", c));
        f.bump(c, 16);
      }
      f.set(low, f.op("i64x2.extmul_low_i32x4_s", v, factor));
      f.set(high, f.op("i64x2.extmul_high_i32x4_s", v, factor));
      if (spec.sum) {
        f.set(w, f.load("v128.load", b));
        f.set(low, f.op("i64x2.add", low, f.op("i64x2.extmul_low_i32x4_s", w, other)));
        f.set(high, f.op("i64x2.add", high, f.op("i64x2.extmul_high_i32x4_s", w, other)));
      }
      if (spec.addend) {
        f.set(low, f.op("i64x2.add", low, f.load("v128.load", addend)));
        f.set(high, f.op("i64x2.add", high, f.load("v128.load", addend, 16)));
        f.bump(addend, 32);
      }
      for (const half of [low, high]) {
        f.set(half, f.op("i64x2.sub", f.op("i64x2.shr_u", f.op("i64x2.add", half, up), argument("shift")), back));
        f.set(half, f.op("v128.bitselect", half, least, f.op("i64x2.gt_s", half, least)));
        f.set(half, f.op("v128.bitselect", most, half, f.op("i64x2.gt_s", half, most)));
      }
      f.set(v, f.shuffle(LOW_WORDS, low, high));
      storeCodes(f, spec, { v, y, table, total, zero });
      f.bump(x, 16);
      if (value === "product" || spec.sum) f.bump(b, 16);
      f.bump(y, 4 * width);
    },
    f.op("i32.lt_u", x, end),
  );
  if (result === "summed8") f.store("i32.store", f.op("i32.add", argument("sums"), f.op("i32.shl", row, f.i32(2))), 0, total);
}

/** Sets `top` to the largest code of a row, in every lane. */
function rowMaximum(f: FunctionBuilder, x: Local, end: Local, top: Local, v: Local): void {
  const at = f.local("i32");
  f.set(at, x);
  f.set(top, f.load("v128.load", x));
  f.doWhile(
    () => {
      f.set(top, f.op("i32x4.max_s", top, f.load("v128.load", at)));
      f.bump(at, 16);
    },
    f.op("i32.lt_u", at, end),
  );
  for (const lanes of [
    [2, 3, 0, 1],
    [1, 0, 3, 2],
  ]) {
    f.set(v, f.shuffle(lanes.flatMap((lane) => [0, 1, 2, 3].map((i) => 4 * lane + i)), top, top)); // prettier-ignore
    f.set(top, f.op("i32x4.max_s", top, v));
  }
}

interface Results {
  readonly v: Local;
  readonly y: Local;
  readonly table: Local;
  readonly total: Local;
  readonly zero: Local;
}

function storeCodes(f: FunctionBuilder, { result }: CodesSpec, { v, y, table, total, zero }: Results): void {
  if (result === "int32") return f.store("v128.store", y, 0, v);
  if (result === "uint8") {
    f.set(v, f.op("i32x4.add", v, zero));
    f.set(v, f.op("i16x8.narrow_i32x4_s", v, v));
    return f.store("i32.store", y, 0, f.lane("i32x4.extract_lane", 0, f.op("i8x16.narrow_i16x8_u", v, v)));
  }
  const entry = f.local("i32");
  for (let lane = 0; lane < 4; lane++) {
    const code = f.lane("i32x4.extract_lane", lane, v);
    if (result === "table32") {
      f.store("i32.store", y, 4 * lane, f.load("i32.load", f.op("i32.add", table, f.op("i32.shl", code, f.i32(2)))));
      continue;
    }
    f.set(entry, f.load("i32.load8_u", f.op("i32.add", table, code)));
    f.store("i32.store8", y, lane, entry);
    if (result === "summed8") f.set(total, f.op("i32.add", total, entry));
  }
}

/** A module whose `work` makes codes of rows; its arguments are `CODES_ARGUMENTS`. */
export function codesModule(spec: CodesSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = m.func(null, ["i32", "i32"], [], (f) => {
    const args = f.param(0);
    codesRow(f, spec, f.param(1), (name) => f.load("i32.load", args, 4 * CODES_ARGUMENTS.indexOf(name)));
  });
  writeWork(m, (f, args) => (item) => f.run(f.call(row, args, item)));
  return m.bytes();
}

export const codes = family("codes", codesModule);
