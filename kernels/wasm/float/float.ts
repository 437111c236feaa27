// Matrix products in float32 with weights decoded on the way: C[M,N] = A[M,K] * W[N,K]^T, activations float32. A panel
// of 16 rows of W x a chunk of k is decoded into the first-level cache as [k][16] float32 (or lies so in memory
// already), then tiles of MR x 8 or MR x 16 run over it. One row of activations takes the fused GEMV instead: decoded
// vectors are multiplied at once. Layout of records: gemm.ts.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { fieldLayout } from "../products/fields.ts";
import { halfWords, placeFields } from "./fields.ts";
import { writeRecords, writeWork } from "../engine/items.ts";
import { aimAhead, lookAhead, writePackRows } from "../products/tiles.ts";

/**
 * How stored fields become float32. `lattice`: an integer operand (a 16-entry table, or the field itself) minus shift
 * or zero point. `table4`: a float per 4-bit field, by four byte planes. `table8`: a float per byte, from memory.
 * `shift`: sign, exponent and mantissa fields moved into place, times 2^exponent. `half`: bfloat16 or float16 in 16-bit
 * words. `float`: panels of float32, nothing to decode.
 */
export type FloatDecode =
  | { readonly kind: "lattice"; readonly table: readonly number[] | null; readonly shift: number }
  | { readonly kind: "table4"; readonly values: readonly number[] }
  | { readonly kind: "table8" }
  | { readonly kind: "shift"; readonly mantissaBits: number; readonly exponent: number }
  | { readonly kind: "half"; readonly mantissaBits: 7 | 10 }
  | { readonly kind: "float" };

export interface FloatSpec {
  readonly decode: FloatDecode;
  readonly relaxed: boolean;
  /** Bits of a stored field: 1..8, 16 or 32. */
  readonly bits: number;
  /** Elements of a group, padded. */
  readonly group: number;
  readonly scale: boolean;
  /**
   * One row of activations: values are scaled before they are multiplied, as in the products of several rows. For
   * elements of a wide range, whose sums overflow or underflow before a scale brings them back; others are summed first
   * and scaled once for each group.
   */
  readonly scaleFirst: boolean;
  readonly zeroPoint: boolean;
  readonly add: boolean;
  readonly mr: number;
  readonly nv: 2 | 4;
  readonly shared: boolean;
}

/** Bytes of one (16 rows x group) record and where its parts are. */
export function floatRecord(spec: Pick<FloatSpec, "bits" | "group" | "scale" | "zeroPoint" | "add">): {
  readonly codes: number;
  readonly zeroPoint: number;
  readonly add: number;
  readonly bytes: number;
} {
  let codes: number;
  if (spec.bits > 8) codes = (spec.group * spec.bits * 16) / 8;
  else {
    const layout = fieldLayout(spec.bits);
    codes = (spec.group / (4 * layout.quads)) * layout.vectors * 64;
  }
  const zeroPoint = codes + (spec.scale ? 64 : 0);
  const add = zeroPoint + (spec.zeroPoint ? 64 : 0);
  return { codes, zeroPoint, add, bytes: add + (spec.add ? 64 : 0) };
}

/** Elements of k per period of the stored layout. */
export const floatPeriod = (bits: number): number => (bits === 32 ? 1 : bits === 16 ? 2 : 4 * fieldLayout(bits).quads);

/** Arguments of `work`, i32 each; `table`: 256 floats. */
export const FLOAT_ARGUMENTS = ["blocks", "a", "w", "c", "ldc", "groups", "tiles", "chunk", "aStride", "table"] as const;

class FloatDecoder {
  readonly #f: FunctionBuilder;
  readonly #spec: FloatSpec;
  readonly #w: Local;
  readonly #table: Local;
  readonly #bytes: Local;
  readonly #t: Local[];
  readonly #rows: Local[];
  readonly #more: Local[];

  constructor(f: FunctionBuilder, spec: FloatSpec, w: Local, table: Local) {
    this.#f = f;
    this.#spec = spec;
    this.#w = w;
    this.#table = table;
    this.#bytes = f.local("v128");
    this.#t = f.locals("v128", 4);
    this.#rows = f.locals("v128", 4);
    this.#more = f.locals("v128", 4);
  }

  /** Field bytes of quad q of the period at `base`, row vector j. */
  #fields(base: number, q: number, j: number): Emit {
    const f = this.#f;
    const pieces = fieldLayout(this.#spec.bits).pieces[q].map((piece) => {
      const v = f.load("v128.load", this.#w, base + piece.vector * 64 + 16 * j);
      const by = piece.from - piece.to;
      const moved = by === 0 ? v : by > 0 ? f.op("i16x8.shr_u", v, f.i32(by)) : f.op("i16x8.shl", v, f.i32(-by));
      const mask = ((1 << piece.bits) - 1) << piece.to;
      return piece.bits === 8 ? moved : f.op("v128.and", moved, f.constant8(mask));
    });
    return pieces.reduce((a, b) => f.op("v128.or", a, b));
  }

  /**
   * All 16 rows of the four k of quad q: calls `use(k, j, value)` k by k where the decoded state of four row vectors
   * fits the registers (then an activation is broadcast once), else row vector by row vector.
   */
  block(base: number, q: number, zeros: readonly Local[] | null, use: (k: number, j: number, value: Emit) => void): void {
    const f = this.#f;
    const { decode, bits } = this.#spec;
    const all = [0, 1, 2, 3];
    const inner = (k: number, value: (j: number) => Emit): void => all.forEach((j) => use(k, j, value(j)));
    if (decode.kind === "lattice") {
      const pieces = fieldLayout(bits).pieces[q];
      const direct = decode.table === null && pieces.length === 1;
      const from = direct ? pieces[0].from : 0;
      const width = direct ? bits : 8;
      for (const j of all) {
        if (direct && fieldLayout(bits).vectors === 1 && q > 0) break; // the vector of the period is there already
        const source = direct ? f.load("v128.load", this.#w, base + pieces[0].vector * 64 + 16 * j) : this.#fields(base, q, j);
        f.set(this.#rows[j], decode.table === null ? source : f.op(this.#swizzle(), f.constant("table", f.v128(decode.table)), source));
      }
      const mask = 2 ** width - 1;
      for (const k of all) {
        const shift = 8 * k + from;
        inner(k, (j) => {
          const at = shift === 0 ? f.get(this.#rows[j]) : f.op("i32x4.shr_u", this.#rows[j], f.i32(shift));
          const u = shift + width === 32 ? at : f.op("v128.and", at, f.constant32(mask));
          return this.#shifted(f.op("f32x4.convert_i32x4_s", u), zeros === null ? null : zeros[j]);
        });
      }
    } else if (decode.kind === "shift") {
      for (const j of all) {
        f.set(this.#bytes, this.#fields(base, q, j));
        f.set(this.#rows[j], this.#place(16 - bits, decode.mantissaBits));
        f.set(this.#more[j], this.#place(8 - bits, decode.mantissaBits));
      }
      const upper = f.constant32(-65536);
      for (const k of all)
        inner(k, (j) => {
          const words = k % 2 === 0 ? this.#rows[j] : this.#more[j];
          return k < 2 ? f.op("i32x4.shl", words, f.i32(16)) : f.op("v128.and", words, upper);
        });
    } else if (decode.kind === "half") {
      for (const k of all)
        inner(k, (j) => {
          const words = f.load("v128.load", this.#w, base + 64 * (k >> 1) + 16 * j);
          return this.#half(words, k, decode.mantissaBits);
        });
    } else if (decode.kind === "float") {
      for (const k of all) inner(k, (j) => f.load("v128.load", this.#w, base + 64 * k + 16 * j));
    } else for (const j of all) this.quad(base, q, j, null, (k, value) => use(k, j, value));
  }

  /** Does `block` go k by k? */
  get byK(): boolean {
    const { kind } = this.#spec.decode;
    return kind !== "table4" && kind !== "table8";
  }

  #swizzle(): string {
    return this.#spec.relaxed ? "i8x16.relaxed_swizzle" : "i8x16.swizzle";
  }

  #shifted(value: Emit, zero: Local | null): Emit {
    const f = this.#f;
    const { decode } = this.#spec;
    if (zero !== null) return f.op("f32x4.sub", value, zero);
    return decode.kind !== "lattice" || decode.shift === 0 ? value : f.op("f32x4.sub", value, f.constantF32(decode.shift));
  }

  /** Fields of `bytes` as bfloat16 in i16 lanes: sign at 15, the exponent field's lowest bit at 7. */
  #place(left: number, mantissaBits: number): Emit {
    const f = this.#f;
    const top = left === 0 ? f.get(this.#bytes) : f.op("i16x8.shl", this.#bytes, f.i32(left));
    return placeFields(f, this.#spec.bits, mantissaBits, top);
  }

  /** Element k of a pair of 16-bit words per i32 lane. */
  #half(words: Emit | Local, k: number, mantissaBits: 7 | 10): Emit {
    return halfWords(this.#f, words, k % 2 === 0 ? "lower" : "upper", mantissaBits);
  }

  /**
   * Four rows (vector j) of the four k of quad q, as float32, scale not applied: calls `use(k, value)` in the order of
   * k. `zero` is the zero point of the rows, where there is one.
   */
  quad(base: number, q: number, j: number, zero: Local | null, use: (k: number, value: Emit) => void): void {
    const f = this.#f;
    const { decode } = this.#spec;
    const swizzle = this.#swizzle();
    const bytes = this.#bytes;
    if (decode.kind === "lattice") {
      const fields = this.#fields(base, q, j);
      f.set(bytes, decode.table === null ? fields : f.op(swizzle, f.constant("table", f.v128(decode.table)), fields));
      for (let k = 0; k < 4; k++) {
        const at = k === 0 ? bytes : f.op("i32x4.shr_u", bytes, f.i32(8 * k));
        const u = k === 3 ? at : f.op("v128.and", at, f.constant32(255));
        use(k, this.#shifted(f.op("f32x4.convert_i32x4_s", u), zero));
      }
    } else if (decode.kind === "table4") {
      // the packer orders bytes by k, then row, so that zipped byte planes are four rows of one k
      f.set(bytes, this.#fields(base, q, j));
      const image = new Uint8Array(new Float32Array(decode.values).buffer);
      const plane = (p: number): Emit =>
        f.op(swizzle, f.constant(`plane ${p}`, f.v128(Array.from({ length: 16 }, (_, i) => image[4 * i + p] ?? 0))), bytes);
      const [p0, p1, p2, p3] = this.#t;
      [p0, p1, p2, p3].forEach((local, p) => f.set(local, plane(p)));
      const low8 = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
      const high8 = low8.map((i) => i + 8);
      const low16 = [0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23];
      const high16 = low16.map((i) => i + 8);
      f.set(bytes, f.shuffle(high8, p0, p1));
      f.set(p0, f.shuffle(low8, p0, p1));
      f.set(p1, f.shuffle(low8, p2, p3));
      f.set(p2, f.shuffle(high8, p2, p3));
      use(0, f.shuffle(low16, p0, p1));
      use(1, f.shuffle(high16, p0, p1));
      use(2, f.shuffle(low16, bytes, p2));
      use(3, f.shuffle(high16, bytes, p2));
    } else if (decode.kind === "table8") {
      const value = this.#t[0];
      for (let k = 0; k < 4; k++) {
        f.set(value, f.v128i32(0));
        for (let row = 0; row < 4; row++) {
          const code = f.load("i32.load8_u", this.#w, base + 16 * j + 4 * row + k);
          const address = f.op("i32.add", this.#table, f.op("i32.shl", code, f.i32(2)));
          f.set(value, f.loadLane("v128.load32_lane", address, 0, row, value));
        }
        use(k, f.get(value));
      }
    } else if (decode.kind === "shift") {
      f.set(bytes, this.#fields(base, q, j));
      const [even, odd] = this.#t;
      f.set(even, this.#place(16 - this.#spec.bits, decode.mantissaBits));
      f.set(odd, this.#place(8 - this.#spec.bits, decode.mantissaBits));
      const upper = f.constant32(-65536);
      use(0, f.op("i32x4.shl", even, f.i32(16)));
      use(1, f.op("i32x4.shl", odd, f.i32(16)));
      use(2, f.op("v128.and", even, upper));
      use(3, f.op("v128.and", odd, upper));
    } else if (decode.kind === "half") {
      for (let pair = 0; pair < 2; pair++) {
        f.set(bytes, f.load("v128.load", this.#w, base + 64 * pair + 16 * j));
        for (let k = 2 * pair; k < 2 * pair + 2; k++) use(k, this.#half(bytes, k, decode.mantissaBits));
      }
    } else for (let k = 0; k < 4; k++) use(k, f.load("v128.load", this.#w, base + 64 * k + 16 * j));
  }
}

/** Power of two that a decoded vector still lacks. */
export function decodeExponent(decode: FloatDecode): number {
  if (decode.kind === "shift") return decode.exponent;
  return decode.kind === "half" && decode.mantissaBits === 10 ? 112 : 0;
}

/** Where quad `i` of a group starts, and its index in its period. */
function quadBase(bits: number, i: number): { base: number; q: number } {
  if (bits > 8) return { base: i * 8 * bits, q: 0 };
  const layout = fieldLayout(bits);
  return { base: Math.floor(i / layout.quads) * layout.vectors * 64, q: i % layout.quads };
}

/** decode(w, panel, table, groups): records to [k][16] float32, scaled. */
function writeDecode(f: FunctionBuilder, spec: FloatSpec): void {
  const [w, panel, table, groups] = [0, 1, 2, 3].map((i) => f.param(i));
  const record = floatRecord(spec);
  const decoder = new FloatDecoder(f, spec, w, table);
  const scales = f.locals("v128", 4);
  const zeros = f.locals("v128", 4);
  const exponent = decodeExponent(spec.decode);
  f.doWhile(
    () => {
      for (let j = 0; j < 4; j++) {
        if (spec.scale) f.set(scales[j], f.load("v128.load", w, record.codes + 16 * j));
        if (spec.zeroPoint) f.set(zeros[j], f.op("f32x4.convert_i32x4_s", f.load("v128.load16x4_s", w, record.zeroPoint + 8 * j)));
      }
      for (let i = 0; i < spec.group / 4; i++) {
        const { base, q } = quadBase(spec.bits, i);
        for (let j = 0; j < 4; j++)
          decoder.quad(base, q, j, spec.zeroPoint ? zeros[j] : null, (k, value) => {
            let v = value;
            if (exponent !== 0) v = f.op("f32x4.mul", v, f.constantF32(2 ** exponent));
            if (spec.scale) v = f.op("f32x4.mul", v, scales[j]);
            if (spec.add) v = f.op("f32x4.add", v, f.load("v128.load", w, record.add + 16 * j));
            f.store("v128.store", panel, 64 * (4 * i + k) + 16 * j, v);
          });
      }
      f.bump(w, record.bytes);
      f.bump(panel, 64 * spec.group);
      f.set(groups, f.op("i32.sub", groups, f.i32(1)));
    },
    f.op("i32.gt_s", groups, f.i32(0)),
  );
}

/** gemv(x, w, c, table, groups): one row of activations, 16 rows of W; decoded vectors are multiplied at once. */
function writeGemv(f: FunctionBuilder, spec: FloatSpec): void {
  const [x, w, c, table, groups] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const record = floatRecord(spec);
  // baseline kernels loop over the periods of a group: V8 11 schedules long blocks into spills
  const steps = Math.max(1, floatPeriod(spec.bits) / 4);
  const rolled = !spec.relaxed && spec.group > 4 * steps;
  const [wAt, xAt] = rolled ? f.locals("i32", 2) : [w, x];
  const left = f.local("i32");
  const decoder = new FloatDecoder(f, spec, wAt, table);
  const sums = f.locals("v128", 4);
  const parts = f.locals("v128", 4);
  const zeros = f.locals("v128", 4);
  const [activation, total] = f.locals("v128", 2);
  const exponent = decodeExponent(spec.decode);
  const scaled = (spec.scale || exponent !== 0) && !spec.scaleFirst;
  const grouped = scaled || spec.add;
  const scales = spec.scale && spec.scaleFirst ? f.locals("v128", 4) : null;
  /** The value as it is multiplied. */
  const factor = (value: Emit, j: number): Emit => {
    if (!spec.scaleFirst) return value;
    const whole = exponent === 0 ? value : f.op("f32x4.mul", value, f.constantF32(2 ** exponent));
    return scales === null ? whole : f.op("f32x4.mul", whole, scales[j]);
  };
  const accumulate = (target: Local, value: Emit, factor: Local): void =>
    f.set(
      target,
      spec.relaxed ? f.op("f32x4.relaxed_madd", value, factor, target) : f.op("f32x4.add", f.op("f32x4.mul", value, factor), target),
    );
  f.doWhile(
    () => {
      const targets = grouped ? parts : sums;
      scales?.forEach((scale, j) => f.set(scale, f.load("v128.load", w, record.codes + 16 * j)));
      if (grouped) parts.forEach((part) => f.set(part, f.v128i32(0)));
      if (spec.add) f.set(total, f.v128i32(0));
      if (spec.zeroPoint)
        zeros.forEach((zero, j) => f.set(zero, f.op("f32x4.convert_i32x4_s", f.load("v128.load16x4_s", w, record.zeroPoint + 8 * j))));
      const quads = (count: number): void => {
        for (let i = 0; i < count; i++) {
          const { base, q } = quadBase(spec.bits, i);
          decoder.block(base, q, spec.zeroPoint ? zeros : null, (k, j, value) => {
            if (j === 0 || !decoder.byK) f.set(activation, f.load("v128.load32_splat", xAt, 4 * (4 * i + k)));
            accumulate(targets[j], factor(value, j), activation);
            if (spec.add && j === 0) f.set(total, f.op("f32x4.add", total, activation));
          });
        }
      };
      if (rolled) {
        const { base: stride } = quadBase(spec.bits, steps);
        f.set(wAt, w);
        f.set(xAt, x);
        f.set(left, f.i32(spec.group / (4 * steps)));
        f.doWhile(() => {
          quads(steps);
          f.bump(wAt, stride);
          f.bump(xAt, 16 * steps);
          f.bump(left, -1);
        }, f.get(left));
      } else quads(spec.group / 4);
      if (grouped)
        for (let j = 0; j < 4; j++) {
          let part: Emit | Local = parts[j];
          if (scaled && exponent !== 0) part = f.op("f32x4.mul", part, f.constantF32(2 ** exponent));
          if (scaled && spec.scale) part = f.op("f32x4.mul", part, f.load("v128.load", w, record.codes + 16 * j));
          if (spec.add) part = f.op("f32x4.add", part, f.op("f32x4.mul", total, f.load("v128.load", w, record.add + 16 * j)));
          f.set(sums[j], f.op("f32x4.add", sums[j], part));
        }
      f.bump(w, record.bytes);
      f.bump(x, 4 * spec.group);
      f.set(groups, f.op("i32.sub", groups, f.i32(1)));
    },
    f.op("i32.gt_s", groups, f.i32(0)),
  );
  for (let j = 0; j < 4; j++) f.store("v128.store", c, 16 * j, sums[j]);
}

/** tile(a, panel, c, ldc, k, more): c[mr][4 nv] = a[k][mr] * panel[k][16], added to what is there where `more`. */
function writeTile(f: FunctionBuilder, spec: FloatSpec): void {
  const { mr, nv } = spec;
  const [a, b, c, ldc, k, more] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const rows: Local[] = [c];
  for (let r = 1; r < mr; r++) {
    const row = f.local("i32");
    f.set(row, f.op("i32.add", rows[r - 1], ldc));
    rows.push(row);
  }
  const acc = Array.from({ length: mr }, () => f.locals("v128", nv));
  const column = f.locals("v128", nv);
  const splat = f.local("v128");
  f.if(more, () => acc.forEach((row, r) => row.forEach((sum, j) => f.set(sum, f.load("v128.load", rows[r], 16 * j)))));
  const step = (unroll: number): void => {
    for (let u = 0; u < unroll; u++) {
      for (let j = 0; j < nv; j++) f.set(column[j], f.load("v128.load", b, 64 * u + 16 * j));
      for (let r = 0; r < mr; r++) {
        f.set(splat, f.load("v128.load32_splat", a, 4 * (mr * u + r)));
        for (let j = 0; j < nv; j++)
          f.set(
            acc[r][j],
            spec.relaxed
              ? f.op("f32x4.relaxed_madd", splat, column[j], acc[r][j])
              : f.op("f32x4.add", f.op("f32x4.mul", splat, column[j]), acc[r][j]),
          );
      }
    }
    f.bump(a, 4 * mr * unroll);
    f.bump(b, 64 * unroll);
    f.set(k, f.op("i32.sub", k, f.i32(unroll)));
  };
  // V8 11, which has no relaxed SIMD, schedules longer blocks into spills: .64 of its roof instead of .85
  if (spec.relaxed) f.while(f.op("i32.ge_s", k, f.i32(4)), () => step(4));
  f.while(f.op("i32.gt_s", k, f.i32(0)), () => step(1));
  for (let r = 0; r < mr; r++) for (let j = 0; j < nv; j++) f.store("v128.store", rows[r], 16 * j, acc[r][j]);
}

/**
 * A module with `work`: items are chunks of activation tiles x 16-row blocks of W; per chunk of groups the block is
 * decoded into the thread's panel, then every tile runs over it. Where mr is 1 it is the fused GEMV.
 */
export function floatModule(spec: FloatSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const record = floatRecord(spec).bytes;
  const { mr } = spec;
  const inPlace = spec.decode.kind === "float" && !spec.scale && !spec.add;
  const gemv: FunctionRef | null = mr === 1 ? m.func("gemv", ["i32", "i32", "i32", "i32", "i32"], [], (f) => writeGemv(f, spec)) : null;
  const decode = mr > 1 && !inPlace ? m.func("decode", ["i32", "i32", "i32", "i32"], [], (f) => writeDecode(f, spec)) : null;
  const tile = mr > 1 ? m.func("tile", ["i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => writeTile(f, spec)) : null;
  writeWork(m, (f, args, panel) => {
    const field = (name: (typeof FLOAT_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * FLOAT_ARGUMENTS.indexOf(name));
    const [block, tile0, tiles, w, c, left, first, count, mt, a, cm, at, n, ahead, aheadEnd, end] = f.locals("i32", 16);
    const blockBytes = f.op("i32.mul", field("groups"), f.i32(record));
    if (decode !== null) f.set(end, f.op("i32.add", field("w"), f.op("i32.mul", field("blocks"), blockBytes)));
    return (item) => {
      f.set(block, f.op("i32.rem_u", item, field("blocks")));
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", block, blockBytes)));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.mul", block, f.i32(64))));
      if (gemv !== null) {
        f.run(f.call(gemv, field("a"), w, c, field("table"), field("groups")));
      } else {
        // "chunk" packs tiles per chunk of rows (high half) and groups per chunk of k (low half)
        f.set(n, f.op("i32.shr_u", field("chunk"), f.i32(16)));
        f.set(tile0, f.op("i32.mul", f.op("i32.div_u", item, field("blocks")), n));
        f.set(tiles, f.op("i32.sub", field("tiles"), tile0));
        f.set(tiles, f.op("select", tiles, n, f.op("i32.lt_s", tiles, n)));
        f.set(c, f.op("i32.add", c, f.op("i32.mul", tile0, f.op("i32.mul", field("ldc"), f.i32(mr)))));
        f.set(left, field("groups"));
        f.set(first, f.i32(0));
        f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
          f.set(count, f.op("i32.and", field("chunk"), f.i32(0xffff)));
          f.set(count, f.op("select", count, left, f.op("i32.lt_s", count, left)));
          f.set(at, f.op("i32.add", w, f.op("i32.mul", first, f.i32(record))));
          if (decode !== null) {
            f.run(f.call(decode, at, panel, field("table"), count));
            // the chunk that follows in memory is the next one of this worker
            const bytes = f.op("i32.mul", count, f.i32(record));
            aimAhead(f, ahead, aheadEnd, f.op("i32.add", at, bytes), bytes, end);
            f.set(at, panel);
          }
          for (let half = 0; half < 4 / spec.nv; half++) {
            f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", tile0, field("aStride"))));
            f.set(a, f.op("i32.add", a, f.op("i32.mul", first, f.i32(4 * mr * spec.group))));
            f.set(cm, f.op("i32.add", c, f.i32(32 * half)));
            f.set(mt, tiles);
            f.while(f.op("i32.gt_s", mt, f.i32(0)), () => {
              if (decode !== null) lookAhead(f, ahead, aheadEnd);
              const panelHalf = f.op("i32.add", at, f.i32(32 * half));
              f.run(f.call(tile!, a, panelHalf, cm, field("ldc"), f.op("i32.mul", count, f.i32(spec.group)), first));
              f.bump(a, field("aStride"));
              f.bump(cm, f.op("i32.mul", field("ldc"), f.i32(mr)));
              f.set(mt, f.op("i32.sub", mt, f.i32(1)));
            });
          }
          f.bump(first, count);
          f.set(left, f.op("i32.sub", left, count));
        });
      }
    };
  });
  return m.bytes();
}

/** A module whose `work` packs staged rows of float32 for tiles of mr rows, [k][mr]: see `recordJob`. */
export function floatPackModule(spec: Pick<FloatSpec, "mr" | "shared">): Uint8Array<ArrayBuffer> {
  const { mr } = spec;
  const m = new ModuleBuilder({ shared: spec.shared });
  const pack = m.func(null, ["i32", "i32", "i32", "i32"], [], (f) => {
    const [x, a, k, ldx] = [0, 1, 2, 3].map((i) => f.param(i));
    writePackRows(f, mr, x, a, k, ldx);
  });
  writeRecords(m, mr, (f, x, a, count, stride, field) =>
    f.run(f.call(pack, x, a, f.op("i32.mul", count, f.op("i32.shr_u", field("width"), f.i32(2))), stride)),
  );
  return m.bytes();
}

export const float = family("float", floatModule);
export const floatPack = family("float pack", floatPackModule);
