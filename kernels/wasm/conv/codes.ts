// Between float32 and codes of 8 or 16 bits, in rows: the range of values (DynamicQuantizeLinear), codes of values
// (QuantizeLinear: round(x / scale), half to even, plus a zero point, within bounds), values of codes
// (DequantizeLinear: (code - zero) * scale).
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachRow, foldLanes, placeWords, ROW_WORDS, rowAddress, type Rows } from "../nn/rows.ts";
import { i32s, least } from "../nn/tiles.ts";
import { bounded, narrowCodes, toCodes, zeroTerm } from "./finish.ts";

export type Code = "int8" | "uint8" | "int16" | "uint16";
export type Coded = Code | "int32";

export const codeBytes = (type: Coded): 1 | 2 | 4 => (type === "int32" ? 4 : type.endsWith("16") ? 2 : 1);

/** Least and greatest code. */
export const codeBounds = (type: Code): readonly [number, number] => {
  const bits = 8 * codeBytes(type);
  return type.startsWith("u") ? [0, 2 ** bits - 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
};

/** Floats of an item. */
const SPAN = 16384;

/** Items and arguments: each item writes the least and the greatest of its floats and 0 to `out` + 8 i. */
export function rangeJob(x: number, count: number, out: number): { readonly items: number; readonly args: Int32Array } {
  return { items: Math.ceil(count / SPAN), args: Int32Array.of(x, count, out) };
}

/** A module whose `work` finds ranges; NaN is passed over. */
export function rangeModule({ shared }: { readonly shared: boolean }): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  const part = m.func(null, i32s(3), [], (f) => {
    const [x, count, out] = [0, 1, 2].map((i) => f.param(i));
    const v = f.local("v128");
    const lows = f.locals("v128", 4);
    const highs = f.locals("v128", 4);
    const take = (i: number): void => {
      f.set(lows[i], f.op("f32x4.pmin", lows[i], v));
      f.set(highs[i], f.op("f32x4.pmax", highs[i], v));
    };
    for (const turn of [4, 1])
      f.while(f.op("i32.ge_u", count, f.i32(4 * turn)), () => {
        for (let i = 0; i < turn; i++) {
          f.set(v, f.load("v128.load", x, 16 * i));
          take(i);
        }
        f.bump(x, 16 * turn);
        f.bump(count, -4 * turn);
      });
    f.while(count, () => {
      f.set(v, f.load("v128.load32_splat", x));
      take(0);
      f.bump(x, 4);
      f.bump(count, -1);
    });
    for (let i = 1; i < 4; i++) {
      f.set(lows[0], f.op("f32x4.pmin", lows[0], lows[i]));
      f.set(highs[0], f.op("f32x4.pmax", highs[0], highs[i]));
    }
    foldLanes(f, "f32x4.pmin", lows[0]);
    foldLanes(f, "f32x4.pmax", highs[0]);
    f.store("f32.store", out, 0, f.lane("f32x4.extract_lane", 0, lows[0]));
    f.store("f32.store", out, 4, f.lane("f32x4.extract_lane", 0, highs[0]));
  });
  writeWork(m, (f, args) => {
    const field = (i: number): Emit => f.load("i32.load", args, 4 * i);
    const [first, count] = f.locals("i32", 2);
    return (item) => {
      f.set(first, f.op("i32.mul", item, f.i32(SPAN)));
      f.set(count, least(f, f.op("i32.sub", field(1), first), f.i32(SPAN)));
      const x = f.op("i32.add", field(0), f.op("i32.shl", first, f.i32(2)));
      f.run(f.call(part, x, count, f.op("i32.add", field(2), f.op("i32.shl", item, f.i32(3)))));
    };
  });
  return m.bytes();
}

export const range = family("range", rangeModule);

export interface EncodeSpec {
  readonly to: Code;
  readonly shared: boolean;
}

export interface DecodeSpec {
  readonly from: Coded;
  readonly shared: boolean;
}

export interface CodesJob {
  readonly rows: number;
  readonly width: number;
  /** Rows of a run, see rows.ts; default all. */
  readonly per?: number;
  readonly x: Rows;
  readonly y: Rows;
  /** Rows of a float32, an int32: of each row, or (steps of 0) of all of them. */
  readonly scale: Rows;
  readonly zero: Rows;
}

const PLACES = ["x", "y", "scale", "zero"] as const;

/** Items and arguments of both directions. */
export function codesJob(job: CodesJob): { readonly items: number; readonly args: Int32Array } {
  const { rows, width, per = rows } = job;
  const step = Math.max(1, Math.round(4096 / Math.max(1, width)));
  const words = [width, Math.max(1, per), rows, step];
  return { items: width === 0 ? 0 : Math.ceil(rows / step), args: Int32Array.of(...words, ...placeWords(PLACES.map((name) => job[name]))) };
}

/** Rows of one long run of `count` values with one scale: as many threads as there are may share them. */
export function longRows(count: number): { readonly rows: number; readonly width: number } {
  for (let rows = Math.min(64, Math.ceil(count / 4096)); rows > 1; rows--) if (count % rows === 0) return { rows, width: count / rows };
  return { rows: 1, width: count };
}

function writeRows(m: ModuleBuilder, row: (f: FunctionBuilder) => void): void {
  const part = m.func(null, i32s(5), [], row);
  writeWork(m, (f, args) => (item) => {
    const width = f.load("i32.load", args);
    eachRow(f, args, item, (run, within) => {
      const at = (i: number): Emit => rowAddress(f, args, ROW_WORDS.length, i, run, within);
      f.run(f.call(part, at(0), at(1), width, at(2), at(3)));
    });
  });
}

/** A module whose `work` encodes rows; its arguments are `codesJob`'s. */
export function encodeModule({ to, shared }: EncodeSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  const [low, high] = codeBounds(to);
  writeRows(m, (f) => {
    const [x, y, width, scaleAt, zeroAt] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const v = f.locals("v128", 4);
    const [scale, zero, least4, most4] = f.locals("v128", 4);
    f.set(scale, f.load("v128.load32_splat", scaleAt));
    f.set(zero, f.load("v128.load32_splat", zeroAt));
    f.set(least4, f.op("f32x4.convert_i32x4_s", f.op("i32x4.sub", f.constant32(low), zero)));
    f.set(most4, f.op("f32x4.convert_i32x4_s", f.op("i32x4.sub", f.constant32(high), zero)));
    f.set(zero, zeroTerm(f, zero));
    const code = (i: number, value: Emit): void => {
      f.set(v[i], f.op("f32x4.div", value, scale));
      bounded(f, v[i], least4, most4);
      toCodes(f, v[i], zero);
    };
    const bytes = codeBytes(to);
    f.while(f.op("i32.ge_u", width, f.i32(16)), () => {
      for (let i = 0; i < 4; i++) code(i, f.load("v128.load", x, 16 * i));
      if (to === "int8" || to === "uint8") f.store("v128.store", y, 0, narrowCodes(f, to, v));
      else
        for (let i = 0; i < 2; i++)
          f.store("v128.store", y, 16 * i, f.op(to === "int16" ? "i16x8.narrow_i32x4_s" : "i16x8.narrow_i32x4_u", v[2 * i], v[2 * i + 1]));
      f.bump(x, 64);
      f.bump(y, 16 * bytes);
      f.bump(width, -16);
    });
    f.while(width, () => {
      code(0, f.load("v128.load32_splat", x));
      f.store(bytes === 1 ? "i32.store8" : "i32.store16", y, 0, f.lane("i32x4.extract_lane", 0, v[0]));
      f.bump(x, 4);
      f.bump(y, bytes);
      f.bump(width, -1);
    });
  });
  return m.bytes();
}

export const encodeRows = family("encode rows", encodeModule);

/** Sets v to four codes at `at` + offset, as i32. */
function loadCodes(f: FunctionBuilder, from: Coded, v: Local, at: Local, offset: number): void {
  const sign = from.startsWith("u") ? "u" : "s";
  if (from === "int32") f.set(v, f.load("v128.load", at, offset));
  else if (codeBytes(from) === 2) f.set(v, f.load(`v128.load16x4_${sign}`, at, offset));
  else f.set(v, f.op(`i32x4.extend_low_i16x8_${sign}`, f.op(`i16x8.extend_low_i8x16_${sign}`, f.load("v128.load32_zero", at, offset))));
}

/** A module whose `work` decodes rows; its arguments are `codesJob`'s. */
export function decodeModule({ from, shared }: DecodeSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  const bytes = codeBytes(from);
  const scalar = { int8: "i32.load8_s", uint8: "i32.load8_u", int16: "i32.load16_s", uint16: "i32.load16_u", int32: "i32.load" }[from];
  writeRows(m, (f) => {
    const [x, y, width, scaleAt, zeroAt] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const [v, scale, zero] = f.locals("v128", 3);
    f.set(scale, f.load("v128.load32_splat", scaleAt));
    f.set(zero, f.load("v128.load32_splat", zeroAt));
    const value = (): Emit => f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", f.op("i32x4.sub", v, zero)), scale);
    for (const turn of [4, 1])
      f.while(f.op("i32.ge_u", width, f.i32(4 * turn)), () => {
        for (let i = 0; i < turn; i++) {
          loadCodes(f, from, v, x, 4 * bytes * i);
          f.store("v128.store", y, 16 * i, value());
        }
        f.bump(x, 4 * bytes * turn);
        f.bump(y, 16 * turn);
        f.bump(width, -4 * turn);
      });
    f.while(width, () => {
      f.set(v, f.op("i32x4.splat", f.load(scalar, x)));
      f.store("f32.store", y, 0, f.lane("f32x4.extract_lane", 0, value()));
      f.bump(x, bytes);
      f.bump(y, 4);
      f.bump(width, -1);
    });
  });
  return m.bytes();
}

export const decodeRows = family("decode rows", decodeModule);
