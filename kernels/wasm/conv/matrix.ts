// Around exact integer products of matrices (../dot/int8.ts): rows of codes packed for its tiles, less their zero point
// where it multiplies i16, and int32 sums finished as finish.ts has it. Sums of rows are kept for weights with zero
// points: sum (a - za) (w - zw) = sum (a - za) w - zw sum (a - za).
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { addBytes } from "../nn/rows.ts";
import { i32s, least } from "../nn/tiles.ts";
import { finishBytes, finishVector, moveSome, narrowCodes, zeroTerm, type Finish } from "./finish.ts";

export interface RowsSpec {
  /** How int8.ts multiplies: signed bytes (unsigned ones less 128), or i16. */
  readonly style: "dot" | "simd";
  readonly unsigned: boolean;
  readonly mr: number;
  readonly shared: boolean;
}

export interface RowsJob {
  /** Codes [m, k], one row after the other. */
  readonly x: number;
  readonly m: number;
  readonly k: number;
  readonly zero: number;
  /** Packed tiles; rows of the last one beyond m are left as they are. */
  readonly a: number;
  /** Sums of rows: of bytes times -128, as int8.ts takes them (dot); of codes less the zero point. */
  readonly rowSums: number;
  readonly sums: number;
}

const ROWS = ["x", "m", "k", "zero", "a", "rowSums", "sums", "aStride"] as const;

/** The argument that is the codes' zero point: it may be known only when the job runs. */
export const ROWS_ZERO = ROWS.indexOf("zero");

/** Items (tiles) and arguments. */
export function rowsJob(job: RowsJob, { style, mr }: RowsSpec): { readonly items: number; readonly args: Int32Array } {
  const values = { ...job, aStride: Math.ceil(job.k / 4) * mr * (style === "dot" ? 4 : 8) };
  return { items: Math.ceil(job.m / mr), args: Int32Array.from(ROWS, (name) => values[name]) };
}

const ROW = ["x", "k", "zero", "a", "rowSum", "sum"] as const;

/** row(...): packs one row, its first quad at `a`. */
function writeRow(f: FunctionBuilder, { style, unsigned, mr }: RowsSpec): void {
  const [x, k, zero, a, rowSum, sum] = ROW.map((_, i) => f.param(i));
  const [v, low, high, sums, zeros] = f.locals("v128", 5);
  const [total, count] = f.locals("i32", 2);
  const words = style === "simd";
  const step = (words ? 8 : 4) * mr;
  f.set(count, k);
  // what the signed bytes, or the words, are less than codes less the zero point
  if (words) f.set(zeros, f.op("i16x8.splat", zero));
  const extend = (half: "low" | "high"): Emit => f.op(`i16x8.extend_${half}_i8x16_${unsigned ? "u" : "s"}`, v);
  /** `quads` quads in v; zeros beyond `tail` bytes of it, where that is given. */
  const put = (quads: 1 | 4): void => {
    if (!words) {
      if (unsigned) f.set(v, f.op("v128.xor", v, quads === 4 ? f.constant8(128) : f.constant("flip a quad", f.v128([128, 128, 128, 128, ...new Array<number>(12).fill(0)])))); // prettier-ignore
      addBytes(f, sums, v);
      for (let q = 0; q < quads; q++) {
        f.store("i32.store", a, 0, f.lane("i32x4.extract_lane", q, v));
        f.bump(a, step);
      }
      return;
    }
    // even k of a quad, then odd k
    const order = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    const half = (w: Local, first: number): void => {
      f.set(sums, f.op("i32x4.add", sums, f.op("i32x4.extadd_pairwise_i16x8_s", w)));
      f.set(w, f.shuffle(order, w, w));
      for (let q = 0; q < 2 && first + q < quads; q++) {
        f.store("i32.store", a, 0, f.lane("i32x4.extract_lane", 2 * q, w));
        f.store("i32.store", a, 4, f.lane("i32x4.extract_lane", 2 * q + 1, w));
        f.bump(a, step);
      }
    };
    f.set(low, f.op("i16x8.sub", extend("low"), zeros));
    if (quads === 1) f.set(low, f.op("v128.and", low, f.constant("one quad", f.v128([...new Array<number>(8).fill(255), ...new Array<number>(8).fill(0)])))); // prettier-ignore
    half(low, 0);
    if (quads === 1) return;
    f.set(high, f.op("i16x8.sub", extend("high"), zeros));
    half(high, 2);
  };
  for (const quads of [4, 1] as const)
    f.while(f.op("i32.ge_u", k, f.i32(4 * quads)), () => {
      f.set(v, f.load(quads === 4 ? "v128.load" : "v128.load32_zero", x));
      put(quads);
      f.bump(x, 4 * quads);
      f.bump(k, -4 * quads);
    });
  f.if(k, () => {
    // beyond the last code: the zero point, which counts for nothing
    f.set(v, f.op("v128.and", f.op("i8x16.splat", zero), f.constant("first quad", f.v128([255, 255, 255, 255, ...new Array<number>(12).fill(0)])))); // prettier-ignore
    for (let t = 0; t < 3; t++) f.if(f.op("i32.gt_u", k, f.i32(t)), () => f.set(v, f.loadLane("v128.load8_lane", x, t, t, v)));
    put(1);
  });
  f.set(total, f.i32(0));
  for (let lane = 0; lane < 4; lane++) f.bump(total, f.lane("i32x4.extract_lane", lane, sums));
  if (!words) {
    f.store("i32.store", rowSum, 0, f.op("i32.mul", total, f.i32(-128)));
    // padded to whole quads, with the zero point
    const padded = f.op("i32.and", f.op("i32.add", count, f.i32(3)), f.i32(-4));
    f.set(total, f.op("i32.sub", total, f.op("i32.mul", padded, unsigned ? f.op("i32.sub", zero, f.i32(128)) : zero)));
  }
  f.store("i32.store", sum, 0, total);
}

/** A module whose `work` packs rows; its arguments are `rowsJob`'s. */
export function rowsModule(spec: RowsSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const part = m.func(null, i32s(ROW.length), [], (f) => writeRow(f, spec));
  const { mr, style } = spec;
  writeWork(m, (f, args) => {
    const field = (name: (typeof ROWS)[number]): Emit => f.load("i32.load", args, 4 * ROWS.indexOf(name));
    const [row, last, a, at] = f.locals("i32", 4);
    return (tile) => {
      f.set(row, f.op("i32.mul", tile, f.i32(mr)));
      f.set(last, least(f, f.op("i32.add", row, f.i32(mr)), field("m")));
      f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", tile, field("aStride"))));
      f.while(f.op("i32.lt_u", row, last), () => {
        f.set(at, f.op("i32.shl", row, f.i32(2)));
        const x = f.op("i32.add", field("x"), f.op("i32.mul", row, field("k")));
        f.run(f.call(part, x, field("k"), field("zero"), a, f.op("i32.add", field("rowSums"), at), f.op("i32.add", field("sums"), at)));
        f.bump(a, style === "dot" ? 4 : 8);
        f.bump(row, 1);
      });
    };
  });
  return m.bytes();
}

export const codeRows = family("code rows", rowsModule);

export interface SumsSpec {
  readonly to: Finish;
  readonly bias: boolean;
  /** Weights have zero points. */
  readonly zeros: boolean;
  readonly shared: boolean;
}

export interface SumsJob {
  readonly m: number;
  readonly n: number;
  /** int32 [m, n], rows `cStep` bytes apart, padded to 16 columns. */
  readonly c: number;
  readonly cStep: number;
  /** Result [m, n], one row after the other. */
  readonly y: number;
  /** By column, padded to 16: int32 addends; int32 zero points; float32 factors and bias. */
  readonly offsets: number;
  readonly zeros: number;
  readonly factors: number;
  readonly bias: number;
  /** By row: int32 factors of the zero points. */
  readonly sums: number;
  readonly yZero: number;
  /** Bounds of float32 values, or of codes less their zero point. */
  readonly low: number;
  readonly high: number;
}

const SUMS = ["m", "n", "c", "cStep", "y", "offsets", "zeros", "factors", "bias", "sums", "yZero", "low", "high", "step"] as const;
type SumsField = (typeof SUMS)[number];

const bits = (value: number): number => new Int32Array(Float32Array.of(value).buffer)[0];

/** Items and arguments. */
export function sumsJob(job: SumsJob): { readonly items: number; readonly args: Int32Array } {
  const step = Math.max(1, Math.round(8192 / job.n));
  const values = { ...job, low: bits(job.low), high: bits(job.high), step };
  return { items: Math.ceil(job.m / step), args: Int32Array.from(SUMS, (name) => values[name]) };
}

/** row(c, y, sum, args, spare): one row of results. */
function writeSumsRow(f: FunctionBuilder, { to, bias, zeros }: SumsSpec): void {
  const [c, y, sum, args, spare] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const v = f.locals("v128", 4);
  const [own, low, high, zero] = f.locals("v128", 4);
  const [at, left, target, from, bytes] = f.locals("i32", 5);
  const size = finishBytes(to);
  const field = (name: SumsField): Emit => f.load("i32.load", args, 4 * SUMS.indexOf(name));
  const word = (name: SumsField): Emit => f.load("v128.load32_splat", args, 4 * SUMS.indexOf(name));
  const column = (name: SumsField, i: number): Emit => f.load("v128.load", f.op("i32.add", field(name), at), 16 * i);
  f.set(left, field("n"));
  if (zeros) f.set(own, f.load("v128.load32_splat", sum));
  if (to !== "int32") {
    f.set(low, word("low"));
    f.set(high, word("high"));
    f.set(zero, zeroTerm(f, word("yZero")));
  }
  f.while(left, () => {
    f.set(target, f.op("select", y, spare, f.op("i32.ge_u", left, f.i32(16))));
    v.forEach((sums, i) => {
      f.set(sums, f.op("i32x4.add", f.load("v128.load", f.op("i32.add", c, at), 16 * i), column("offsets", i)));
      if (zeros) f.set(sums, f.op("i32x4.sub", sums, f.op("i32x4.mul", own, column("zeros", i))));
      finishVector(f, to, sums, column("factors", i), bias ? column("bias", i) : null, { low, high, zero });
      if (size === 4) f.store("v128.store", target, 16 * i, sums);
    });
    if (to === "int8" || to === "uint8") f.store("v128.store", target, 0, narrowCodes(f, to, v));
    f.set(bytes, least(f, left, f.i32(16)));
    f.if(f.op("i32.lt_u", left, f.i32(16)), () => {
      f.set(from, spare);
      f.set(target, y);
      f.set(bytes, f.op("i32.mul", left, f.i32(size)));
      moveSome(f, from, target, bytes);
      f.set(bytes, left);
    });
    f.set(left, f.op("i32.sub", left, bytes));
    f.bump(at, 64);
    f.bump(y, 16 * size);
  });
}

/** A module whose `work` finishes sums; its arguments are `sumsJob`'s, its scratch 64 bytes. */
export function sumsModule(spec: SumsSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const part = m.func(null, i32s(5), [], (f) => writeSumsRow(f, spec));
  const size = finishBytes(spec.to);
  writeWork(m, (f, args, panel) => {
    const field = (name: SumsField): Emit => f.load("i32.load", args, 4 * SUMS.indexOf(name));
    const [row, last] = f.locals("i32", 2);
    return (item) => {
      f.set(row, f.op("i32.mul", item, field("step")));
      f.set(last, least(f, f.op("i32.add", row, field("step")), field("m")));
      f.while(f.op("i32.lt_u", row, last), () => {
        const c = f.op("i32.add", field("c"), f.op("i32.mul", row, field("cStep")));
        const y = f.op("i32.add", field("y"), f.op("i32.mul", row, f.op("i32.mul", field("n"), f.i32(size))));
        f.run(f.call(part, c, y, f.op("i32.add", field("sums"), f.op("i32.shl", row, f.i32(2))), args, panel));
        f.bump(row, 1);
      });
    };
  });
  return m.bytes();
}

export const finishSums = family("finish sums", sumsModule);
