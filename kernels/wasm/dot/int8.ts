// Integer matrix product: C[M,N] (int32) = A[M,K] (int8 or uint8) * W[N,K]^T (int8), exact (sums wrap at 32 bits as
// everywhere). Weights are stored as in gemm.ts, 16 rows x 4 k per 64 bytes. With an exact unsigned relaxed dot product
// (style "dot") bytes are multiplied as they are, offset by 128 and corrected; otherwise a block is widened to i16 once
// per chunk of k and multiplied with i32x4.dot_i16x8_s.
import { finishVector } from "../conv/finish.ts";
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local, type Operand } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";
import { addBytes } from "../nn/rows.ts";
import { aimAhead, lookAhead, writePackRows } from "../products/tiles.ts";

export interface Int8Spec {
  readonly style: "dot" | "simd";
  /** A is uint8. */
  readonly unsigned: boolean;
  readonly mr: number;
  /**
   * Quads per turn of the inner loop: 8 (4 take 1 % longer), or 1 for V8 11, which schedules longer blocks into spills
   * (.47 of its roof instead of .67).
   */
  readonly unroll: 1 | 8;
  /**
   * Sums become float32 before they leave the registers (style "dot"): plus an int32 a column, times a factor a column,
   * plus a bias, within bounds. Default: they stay int32.
   */
  readonly scaled?: { readonly bias: boolean; readonly bounded: boolean };
  readonly shared: boolean;
}

/** Quads (4 k) per chunk: the widened panel of a block is 16 KB. */
export const INT8_CHUNK = 128;

/**
 * Most rows of a tile: 12 accumulators, two operands and a broadcast; a separate product needs a register of its own.
 */
export const INT8_ROWS = { dot: 6, simd: 4 } as const;

/** Rows of A per pass: their part of a chunk stays in the second-level cache. */
export const INT8_SLAB = 128;

/** What every product takes. */
export const INT8_SUMS_ARGUMENTS = ["a", "w", "c", "ldc", "quads", "tiles", "aStride", "rowSums", "columnSums", "blocks"] as const;

/**
 * Arguments of `work`, i32 each; `rowSums` and `columnSums` are read by style "dot" only, those after them by scaled
 * sums: addresses of what is given a column, bits of bounds, and the last row of c, which the rows of the last tile
 * beyond it share. Its items are blocks of 16 rows of W.
 */
export const INT8_ARGUMENTS = [...INT8_SUMS_ARGUMENTS, "offsets", "factors", "bias", "low", "high", "lastRow"] as const;

/** Bytes of one quad of one row of A as packed. */
export const int8Quad = (style: "dot" | "simd"): number => (style === "dot" ? 4 : 8);

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

const TILE_PARAMETERS = ["a", "b", "c", "ldc", "quads", "tiles", "aStride", "fresh", "rowSums", "columnSums", "ahead", "aheadEnd"] as const; // prettier-ignore
/** Of scaled sums: is the chunk the last, the last row of c and bytes from the first column, the job's arguments. */
const SCALED_PARAMETERS = [...TILE_PARAMETERS, "last", "lastRow", "column", "args"] as const;

const argument = (f: FunctionBuilder, args: Local, name: (typeof INT8_ARGUMENTS)[number]): Emit =>
  f.load("i32.load", args, 4 * INT8_ARGUMENTS.indexOf(name));

/**
 * The tile function: c[mr][16] += products for `tiles` tiles of A, aStride bytes apart; b is the block's bytes (dot) or
 * its widened panel (simd). 8 of its rows at a time, both while a tile of A is in the first-level cache. `fresh`: c is
 * not read, it starts at zero (simd), or at -128 times the sum of a row of A and, where A is unsigned, 128 times that
 * of a row of W (dot). `last`: scaled sums leave as float32.
 */
function writeTile(f: FunctionBuilder, spec: Int8Spec): void {
  const { mr, style, unroll } = spec;
  const nv = 2;
  const [firstA, firstB, c, ldc, allQuads, tiles, aStride, fresh, rowSums, columnSums, ahead, aheadEnd] = TILE_PARAMETERS.map((_, i) => f.param(i)); // prettier-ignore
  const [a, b, quads, half] = f.locals("i32", 4);
  const rows: Local[] = [c, ...f.locals("i32", mr - 1)];
  const acc = Array.from({ length: mr }, () => f.locals("v128", nv));
  const w = f.locals("v128", nv);
  const x = f.local("v128");
  const quad = int8Quad(style);
  const stride = style === "dot" ? 64 : 128;
  const each = (use: (r: number, j: number) => void): void => acc.forEach((row, r) => row.forEach((_, j) => use(r, j)));
  const step = (count: number): void => {
    for (let u = 0; u < count; u++)
      for (let half = 0; half < quad / 4; half++) {
        for (let j = 0; j < nv; j++) f.set(w[j], f.load("v128.load", b, u * stride + 64 * half + 16 * j));
        for (let r = 0; r < mr; r++) {
          f.set(x, f.load("v128.load32_splat", a, (u * mr + r) * quad + 4 * half));
          for (let j = 0; j < nv; j++)
            f.set(
              acc[r][j],
              style === "dot" ? f.op(DOT, x, w[j], acc[r][j]) : f.op("i32x4.add", f.op("i32x4.dot_i16x8_s", w[j], x), acc[r][j]),
            );
        }
      }
    f.bump(a, count * mr * quad);
    f.bump(b, count * stride);
    f.bump(quads, -count);
  };
  const { scaled } = spec;
  const [last, lastRow, column, args] = scaled === undefined ? [] : [0, 1, 2, 3].map((i) => f.param(TILE_PARAMETERS.length + i));
  const finish = scaled === undefined ? null : { ...scaled, args, column, factor: f.local("v128"), bias4: f.local("v128"), at: f.local("i32") }; // prettier-ignore
  const leave = (): void => acc.forEach((_, i) => acc[mr - 1 - i].forEach((v, j) => f.store("v128.store", rows[mr - 1 - i], 16 * j, v)));
  f.doWhile(() => {
    for (let r = 1; r < mr; r++) f.set(rows[r], f.op("i32.add", rows[r - 1], ldc));
    if (scaled !== undefined)
      for (let r = 1; r < mr; r++) f.set(rows[r], f.op("select", rows[r], lastRow, f.op("i32.lt_u", rows[r], lastRow)));
    f.set(half, f.i32(0));
    f.doWhile(
      () => {
        f.set(a, firstA);
        f.set(b, f.op("i32.add", firstB, half));
        lookAhead(f, ahead, aheadEnd);
        f.set(quads, allQuads);
        f.if(
          fresh,
          () => {
            if (style === "simd") return each((r, j) => f.set(acc[r][j], f.constant32(0)));
            if (spec.unsigned) w.forEach((sums, j) => f.set(sums, f.load("v128.load", f.op("i32.add", columnSums, half), 16 * j)));
            each((r, j) => {
              const own = f.load("v128.load32_splat", rowSums, 4 * r);
              f.set(acc[r][j], spec.unsigned ? f.op("i32x4.add", own, w[j]) : own);
            });
          },
          () => each((r, j) => f.set(acc[r][j], f.load("v128.load", rows[r], 16 * j))),
        );
        if (unroll > 1) f.while(f.op("i32.ge_s", quads, f.i32(unroll)), () => step(unroll));
        f.while(f.op("i32.gt_s", quads, f.i32(0)), () => step(1));
        if (finish !== null) f.if(last, () => writeScaled(f, acc, half, finish));
        // rows beyond the last one share its place: it is stored after them
        leave();
        for (const row of rows) f.bump(row, 32);
        f.bump(half, 32);
      },
      f.op("i32.lt_u", half, f.i32(64)),
    );
    f.bump(firstA, aStride);
    f.bump(rowSums, 4 * mr);
    f.set(c, f.op("i32.add", rows[mr - 1], f.op("i32.sub", ldc, f.i32(64))));
    f.bump(tiles, -1);
  }, f.get(tiles));
}

interface Scaling {
  readonly bias: boolean;
  readonly bounded: boolean;
  readonly args: Local;
  /** Bytes from the first column to the block. */
  readonly column: Local;
  readonly factor: Local;
  readonly bias4: Local;
  readonly at: Local;
}

/** Sums of 8 columns, `half` bytes into the block, to float32. */
function writeScaled(f: FunctionBuilder, acc: readonly (readonly Local[])[], half: Local, by: Scaling): void {
  const { bias, bounded, args, column, factor, bias4, at } = by;
  const load = (name: "offsets" | "factors" | "bias", j: number): Emit =>
    f.load("v128.load", f.op("i32.add", argument(f, args, name), at), 16 * j);
  const word = (name: "low" | "high"): Emit => f.load("v128.load32_splat", args, 4 * INT8_ARGUMENTS.indexOf(name));
  const terms = bounded ? { low: word("low"), high: word("high"), zero: f.constant32(0) } : null;
  f.set(at, f.op("i32.add", column, half));
  acc[0].forEach((_, j) => {
    const own = acc.map((row) => row[j]);
    f.set(factor, load("offsets", j));
    for (const v of own) f.set(v, f.op("i32x4.add", v, factor));
    f.set(factor, load("factors", j));
    if (bias) f.set(bias4, load("bias", j));
    for (const v of own) finishVector(f, "float32", v, factor, bias ? bias4 : null, terms);
  });
}

/** widen(w, panel, quads): bytes of 16 rows x 4 k to i16: 4 vectors of even k, 4 of odd k. */
function writeWiden(f: FunctionBuilder): void {
  const [w, panel, quads] = [0, 1, 2].map((i) => f.param(i));
  const v = f.local("v128");
  f.doWhile(
    () => {
      for (let j = 0; j < 4; j++) {
        f.set(v, f.load("v128.load", w, 16 * j));
        f.store("v128.store", panel, 16 * j, f.op("i16x8.shr_s", f.op("i16x8.shl", v, f.i32(8)), f.i32(8)));
        f.store("v128.store", panel, 64 + 16 * j, f.op("i16x8.shr_s", v, f.i32(8)));
      }
      f.bump(w, 64);
      f.bump(panel, 128);
      f.set(quads, f.op("i32.sub", quads, f.i32(1)));
    },
    f.op("i32.gt_s", quads, f.i32(0)),
  );
}

/** A module whose `work` multiplies what `int8PackModule` packed. */
export function int8Module(spec: Int8Spec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const { mr, style } = spec;
  const parameters = spec.scaled === undefined ? TILE_PARAMETERS : SCALED_PARAMETERS;
  const tile = m.func("tile", new Array<"i32">(parameters.length).fill("i32"), [], (f) => writeTile(f, spec));
  const widen = style === "simd" ? m.func("widen", ["i32", "i32", "i32"], [], writeWiden) : null;
  writeWork(m, (f, args, panel) => {
    const field = (name: (typeof INT8_ARGUMENTS)[number]): Emit => argument(f, args, name);
    const [w, c, left, first, count, a, at, from, ahead, aheadEnd, end] = f.locals("i32", 11);
    f.set(end, f.op("i32.add", field("w"), f.op("i32.mul", field("blocks"), f.op("i32.shl", field("quads"), f.i32(6)))));
    return (block) => {
      const column = f.op("i32.shl", block, f.i32(6));
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", block, f.op("i32.shl", field("quads"), f.i32(6)))));
      f.set(c, f.op("i32.add", field("c"), column));
      f.set(left, field("quads"));
      f.set(first, f.i32(0));
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        f.set(count, f.op("select", f.i32(INT8_CHUNK), left, f.op("i32.lt_s", f.i32(INT8_CHUNK), left)));
        f.set(at, f.op("i32.add", w, f.op("i32.shl", first, f.i32(6))));
        // the chunk that follows in memory is the next one of this worker
        f.set(from, f.op("i32.add", at, f.op("i32.shl", count, f.i32(6))));
        aimAhead(f, ahead, aheadEnd, from, f.i32(64 * INT8_CHUNK), end);
        if (widen !== null) {
          f.run(f.call(widen, at, panel, count));
          f.set(at, panel);
        }
        f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", first, f.i32(mr * int8Quad(style)))));
        const given: Record<(typeof SCALED_PARAMETERS)[number], Operand> = {
          a,
          b: at,
          c,
          ldc: field("ldc"),
          quads: count,
          tiles: field("tiles"),
          aStride: field("aStride"),
          fresh: f.op("i32.eqz", first),
          rowSums: field("rowSums"),
          columnSums: f.op("i32.add", field("columnSums"), column),
          ahead,
          aheadEnd,
          last: f.op("i32.eq", count, left),
          lastRow: f.op("i32.add", field("lastRow"), column),
          column,
          args,
        };
        f.run(f.call(tile, ...parameters.map((name) => given[name])));
        f.bump(first, count);
        f.set(left, f.op("i32.sub", left, count));
      });
    };
  });
  return m.bytes();
}

/** Arguments of packing, i32 each: rows of `quads` quads at `x`. Its items are tiles. */
export const INT8_PACK_ARGUMENTS = ["x", "a", "rowSums", "quads", "aStride"] as const;

/**
 * A module whose `work` packs rows of bytes, padded to whole quads, for tiles of mr rows: [quads][mr], and for style
 * "dot" their sums times -128.
 */
export function int8PackModule(spec: Omit<Int8Spec, "unroll">): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const pack = m.func(null, ["i32", "i32", "i32", "i32", "i32"], [], (f) =>
    spec.style === "dot" ? writePackBytes(f, spec) : writePackWords(f, spec),
  );
  writeWork(m, (f, args) => {
    const field = (name: (typeof INT8_PACK_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * INT8_PACK_ARGUMENTS.indexOf(name));
    return (tile) => {
      const width = f.op("i32.shl", field("quads"), f.i32(2));
      const x = f.op("i32.add", field("x"), f.op("i32.mul", tile, f.op("i32.mul", width, f.i32(spec.mr))));
      const a = f.op("i32.add", field("a"), f.op("i32.mul", tile, field("aStride")));
      const sums = f.op("i32.add", field("rowSums"), f.op("i32.mul", tile, f.i32(4 * spec.mr)));
      f.run(f.call(pack, x, a, sums, field("quads"), width));
    };
  });
  return m.bytes();
}

/** Bytes as they are, signed ones offset for the product with unsigned weights; their sums times -128. */
function writePackBytes(f: FunctionBuilder, { mr, unsigned }: Omit<Int8Spec, "unroll">): void {
  const [x, a, rowSums, quads, ldx] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const sums = f.locals("v128", mr);
  writePackRows(f, mr, x, a, quads, ldx, (v, r, count) => {
    if (unsigned) {
      const flip = Array.from({ length: 16 }, (_, byte) => (byte < 4 * count ? 128 : 0));
      f.set(v, f.op("v128.xor", v, f.constant(`flip ${count}`, f.v128(flip))));
    }
    addBytes(f, sums[r], v);
  });
  sums.forEach((sum, r) => {
    const total = [0, 1, 2, 3].map((i): Emit => f.lane("i32x4.extract_lane", i, sum)).reduce((p, q) => f.op("i32.add", p, q));
    f.store("i32.store", rowSums, 4 * r, f.op("i32.mul", total, f.i32(-128)));
  });
}

/** i16 words: even k, then odd k of each quad. */
function writePackWords(f: FunctionBuilder, { mr, unsigned }: Omit<Int8Spec, "unroll">): void {
  const [x, a, , quads, ldx] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const [at, out, n] = f.locals("i32", 3);
  const v = f.local("v128");
  for (let r = 0; r < mr; r++) {
    f.set(at, f.op("i32.add", x, f.op("i32.mul", ldx, f.i32(r))));
    f.set(out, f.op("i32.add", a, f.i32(8 * r)));
    f.set(n, quads);
    f.while(f.op("i32.gt_s", n, f.i32(0)), () => {
      f.set(v, f.load("v128.load32_zero", at));
      f.set(v, f.op(unsigned ? "i16x8.extend_low_i8x16_u" : "i16x8.extend_low_i8x16_s", v));
      f.set(v, f.shuffle([0, 1, 4, 5, 2, 3, 6, 7, 0, 1, 4, 5, 2, 3, 6, 7], v, v));
      f.store("i32.store", out, 0, f.lane("i32x4.extract_lane", 0, v));
      f.store("i32.store", out, 4, f.lane("i32x4.extract_lane", 1, v));
      f.bump(at, 4);
      f.bump(out, 8 * mr);
      f.bump(n, -1);
    });
  }
}

export const int8 = family("int8", int8Module);
export const int8Pack = family("int8 pack", int8PackModule);

/**
 * Packs weights [n, k] of int8 at `bytes`: blocks of 16 rows, 4 k of each together; where bytes are multiplied (style
 * "dot") offset by 128. @returns sums of rows
 */
export function packInt8(w: Int8Array, n: number, k: number, style: Int8Spec["style"], bytes: Uint8Array): Int32Array {
  const quads = Math.ceil(k / 4);
  const offset = style === "dot" ? 128 : 0;
  const sums = new Int32Array(n);
  bytes.fill(offset);
  for (let r = 0; r < n; r++) {
    const base = (r >> 4) * quads * 64 + 4 * (r & 15);
    let sum = 0;
    for (let i = 0; i < k; i++) {
      const v = w[r * k + i];
      sum += v;
      bytes[base + (i >> 2) * 64 + (i & 3)] = v + offset;
    }
    sums[r] = sum;
  }
  return sums;
}
