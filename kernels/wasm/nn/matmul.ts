// float32 matrix products of activations: C = A B, for every matrix of a batch, each operand strided, with or without
// what C holds added. B lies by rows [k][n] or transposed [n][k] (keys of attention, Gemm's transB), A by rows [m][k]
// or transposed. Weights that are known beforehand run faster packed (kernels/wasm/float).
//   many rows: panels of B are packed [256 of k][8] by the thread that uses them, for as many rows as an item has
//              (tiles.ts)
//   few rows:  B is read once where it lies: by rows, eight at a time, sums of a row of C in the first-level cache;
//              transposed, as dot products
// Sums run over k in order, in float32; where B is transposed and rows are few, in four partial sums. A value of B
// outside of a matrix is never read.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachVector, loadSome, storeSome, sumFour, transposeFour } from "./rows.ts";
import { COLUMNS, DEPTH, i32s, least, madd, PANEL_BYTES, panelTiles, tileBytes, tileRows, type TileSpec } from "./tiles.ts";

export interface MatmulSpec extends TileSpec {
  /** B by rows [k][n], or transposed [n][k]. */
  readonly b: "rows" | "columns";
  /** Rows of A: few of them, with A by rows, or any number. */
  readonly rows: "few" | "many";
  readonly shared: boolean;
}

/**
 * A matrix of each batch: address + outer i + inner j, rows (of the stored matrix) `step` apart; all in bytes. A stride
 * of 0 broadcasts.
 */
export interface Matrix {
  readonly address: number;
  readonly step: number;
  readonly outer?: number;
  readonly inner?: number;
}

export interface MatmulJob {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Matrices: `outer` times `inner`, default 1. */
  readonly outer?: number;
  readonly inner?: number;
  readonly a: Matrix;
  readonly b: Matrix;
  readonly c: Matrix;
  /** C += A B. */
  readonly accumulate?: boolean;
}

/** Rows up to which B is not packed, where it lies by rows and transposed. */
const FEW_ROWS = { rows: 8, columns: 4 } as const;
/** Rows of A that stay in the second-level cache while panels go by. */
const MOST_ROWS = 240;

const FIELDS = [
  "inner", "mBlocks", "nBlocks", "m", "n", "k", "mSpan", "nSpan", "a", "aOuter", "aInner", "aStep", "b", "bOuter", "bInner", "bStep",
  "c", "cOuter", "cInner", "cStep", "keep",
] as const; // prettier-ignore
type Field = (typeof FIELDS)[number];

/** The kernel that suits a job. A transposed A of one row is a row. */
export const matmulSpec = (
  job: Pick<MatmulJob, "m">,
  layout: Pick<MatmulSpec, "a" | "b">,
  engine: { readonly relaxed: boolean; readonly shared: boolean },
): MatmulSpec => ({
  ...layout,
  rows: job.m <= FEW_ROWS[layout.b] && layout.a === "rows" ? "few" : "many",
  relaxed: engine.relaxed,
  shared: engine.shared,
});

/** Items, arguments and scratch of a job. `threads`: for how many it is cut. */
export function matmulJob(
  job: MatmulJob,
  spec: MatmulSpec,
  threads: number,
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const { m, n, k, outer = 1, inner = 1, a, b, c } = job;
  if (spec.rows === "few" && m > FEW_ROWS[spec.b])
    throw new RangeError(`matmul: expected at most ${FEW_ROWS[spec.b]} rows for this kernel, got ${m}.`);
  const batch = outer * inner;
  const up = (value: number, unit: number): number => Math.ceil(value / unit) * unit;
  let [mSpan, nSpan] = [m, n];
  const blocks = (): number => Math.ceil(m / mSpan) * Math.ceil(n / nSpan) * batch;
  if (spec.rows === "few") {
    // B by rows: as wide as can be, since rows lie far apart; transposed: some 128 KB of it. Something to do for every
    // thread
    nSpan = up(spec.b === "rows" ? Math.min(2048, n) : Math.min(4096, 32768 / Math.max(1, k)), 64);
    while (nSpan > 64 && blocks() < 2 * threads) nSpan = up(nSpan / 2, 64);
  } else {
    const unit = tileRows(spec.relaxed);
    mSpan = Math.min(up(m, unit), Math.floor(MOST_ROWS / unit) * unit);
    nSpan = Math.min(up(n, 16), 256);
    const enough = (): boolean => threads === 1 || blocks() >= 4 * threads || mSpan * nSpan * k < 65536;
    while (nSpan > 32 && !enough()) nSpan = up(nSpan / 2, 16);
    while (mSpan > 8 * unit && !enough()) mSpan = up(mSpan / 2, unit);
  }
  const [mBlocks, nBlocks] = [Math.ceil(m / Math.max(1, mSpan)), Math.ceil(n / Math.max(1, nSpan))];
  const place = ({ address, step, outer: o = 0, inner: i = 0 }: Matrix): number[] => [address, o, i, step];
  const args = Int32Array.of(
    inner,
    mBlocks,
    nBlocks,
    m,
    n,
    k,
    mSpan,
    nSpan,
    ...place(a),
    ...place(b),
    ...place(c),
    Number(job.accumulate ?? false),
  );
  const panelBytes = spec.rows === "few" ? 0 : 2 * PANEL_BYTES + tileBytes(spec.relaxed);
  return { items: mBlocks * nBlocks * batch, args, panelBytes };
}

/** pack(b, bStep, panel, k, columns) of [k][n]: up to 16 columns into two panels. */
function packRows(f: FunctionBuilder): void {
  const [b, bStep, panel, k, columns] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const v = f.local("v128");
  const [left, at] = f.locals("i32", 2);
  f.if(
    f.op("i32.eq", columns, f.i32(2 * COLUMNS)),
    () =>
      f.while(k, () => {
        for (let i = 0; i < 4; i++) f.store("v128.store", panel, (i >> 1) * PANEL_BYTES + 16 * (i & 1), f.load("v128.load", b, 16 * i));
        f.bump(b, bStep);
        f.bump(panel, 32);
        f.bump(k, -1);
      }),
    () =>
      f.while(k, () => {
        for (let i = 0; i < 4; i++) {
          f.set(at, f.op("i32.add", panel, f.i32((i >> 1) * PANEL_BYTES + 16 * (i & 1))));
          f.set(left, f.op("i32.sub", columns, f.i32(4 * i)));
          f.if(
            f.op("i32.ge_s", left, f.i32(4)),
            () => f.store("v128.store", at, 0, f.load("v128.load", b, 16 * i)),
            () =>
              f.if(f.op("i32.gt_s", left, f.i32(0)), () => {
                loadSome(f, v, f.op("i32.add", b, f.i32(16 * i)), left, f.constant32(0));
                f.store("v128.store", at, 0, v);
              }),
          );
        }
        f.bump(b, bStep);
        f.bump(panel, 32);
        f.bump(k, -1);
      }),
  );
}

/** pack(b, bStep, panel, k, columns) of [n][k]: transposed four by four. Columns beyond the last repeat it. */
function packColumns(f: FunctionBuilder): void {
  const [b, bStep, panel, k, columns] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const rows = f.locals("i32", 4);
  const v = f.locals("v128", 4);
  const [first, end, to] = f.locals("i32", 3);
  const t = f.locals("v128", 2);
  f.while(f.op("i32.lt_u", first, columns), () => {
    rows.forEach((row, i) => {
      const index = f.op("i32.add", first, f.i32(i));
      f.set(row, f.op("i32.add", b, f.op("i32.mul", least(f, index, f.op("i32.sub", columns, f.i32(1))), bStep)));
    });
    // columns 0..3 and 4..7 of either panel
    f.set(to, f.op("i32.mul", f.op("i32.shr_u", first, f.i32(3)), f.i32(PANEL_BYTES)));
    f.set(to, f.op("i32.add", f.op("i32.add", panel, to), f.op("i32.shl", f.op("i32.and", first, f.i32(4)), f.i32(2))));
    f.set(end, f.op("i32.add", rows[0], f.op("i32.shl", f.op("i32.and", k, f.i32(-4)), f.i32(2))));
    f.while(f.op("i32.lt_u", rows[0], end), () => {
      rows.forEach((row, i) => f.set(v[i], f.load("v128.load", row)));
      transposeFour(f, v, t);
      v.forEach((value, i) => f.store("v128.store", to, 32 * i, value));
      for (const row of rows) f.bump(row, 16);
      f.bump(to, 128);
    });
    f.set(end, f.op("i32.and", k, f.i32(3)));
    f.if(end, () => {
      rows.forEach((row, i) => loadSome(f, v[i], row, end, f.constant32(0)));
      transposeFour(f, v, t);
      for (let i = 0; i < 3; i++) f.if(f.op("i32.gt_u", end, f.i32(i)), () => f.store("v128.store", to, 32 * i, v[i]));
    });
    f.bump(first, 4);
  });
}

/** axpy(a, b, bStep, c, n): c += a[0..count) times as many rows of B, whole vectors and the tail. */
function writeAxpy(f: FunctionBuilder, relaxed: boolean, count: number): void {
  const [a, b, bStep, c, n] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const factors = f.locals("v128", count);
  const rows = [b, ...f.locals("i32", count - 1)];
  const [sum, v] = f.locals("v128", 2);
  const [place, at] = f.locals("i32", 2);
  factors.forEach((factor, i) => f.set(factor, f.load("v128.load32_splat", a, 4 * i)));
  for (let i = 1; i < count; i++) f.set(rows[i], f.op("i32.add", rows[i - 1], bStep));
  eachVector(f, n, place, 2, (i, tail) => {
    f.set(at, f.op("i32.add", c, place));
    if (tail === null) f.set(sum, f.load("v128.load", at, 16 * i));
    else loadSome(f, sum, at, tail, f.constant32(0));
    rows.forEach((row, r) => {
      const from = f.op("i32.add", row, place);
      if (tail === null) f.set(v, f.load("v128.load", from, 16 * i));
      else loadSome(f, v, from, tail, f.constant32(0));
      madd(f, relaxed, sum, factors[r], v);
    });
    if (tail === null) f.store("v128.store", at, 16 * i, sum);
    else storeSome(f, at, tail, sum);
  });
}

/** few(a, aStep, b, bStep, c, cStep, m, n, k, keep) of B [k][n]. */
function fewByRows(f: FunctionBuilder, axpy: Readonly<Record<1 | 8, FunctionRef>>): void {
  const [a, aStep, b, bStep, c, cStep, m, n, k, keep] = Array.from({ length: 10 }, (_, i) => f.param(i));
  const [row, ar, cr] = f.locals("i32", 3);
  const eachRow = (each: () => void): void => {
    f.set(row, f.get(m));
    f.set(ar, f.get(a));
    f.set(cr, f.get(c));
    f.while(row, () => {
      each();
      f.bump(ar, aStep);
      f.bump(cr, cStep);
      f.bump(row, -1);
    });
  };
  f.if(f.op("i32.eqz", keep), () => eachRow(() => f.run(f.op("memory.fill", cr, f.i32(0), f.op("i32.shl", n, f.i32(2))))));
  for (const count of [8, 1] as const)
    f.while(f.op("i32.ge_u", k, f.i32(count)), () => {
      eachRow(() => f.run(f.call(axpy[count], ar, b, bStep, cr, n)));
      f.bump(a, 4 * count);
      f.bump(b, f.op("i32.mul", bStep, f.i32(count)));
      f.bump(k, -count);
    });
}

/**
 * dot(a, aStep, b0, b1, b2, b3, k, c, cStep, columns, keep): `rows` of A with four rows of B, of which `columns` count.
 */
function writeDot(f: FunctionBuilder, relaxed: boolean, rows: number): void {
  const [a, aStep, b0, b1, b2, b3, k, c, cStep, columns, keep] = Array.from({ length: 11 }, (_, i) => f.param(i));
  const from = [a, ...f.locals("i32", rows - 1)];
  const b = [b0, b1, b2, b3];
  const sums = from.map(() => f.locals("v128", 4));
  const values = f.locals("v128", rows);
  const [w] = f.locals("v128", 1);
  const place = f.local("i32");
  for (let r = 1; r < rows; r++) f.set(from[r], f.op("i32.add", from[r - 1], aStep));
  eachVector(f, k, place, 2, (i, tail) => {
    const load = (into: Local, base: Local): void => {
      const at = f.op("i32.add", base, place);
      if (tail === null) f.set(into, f.load("v128.load", at, 16 * i));
      else loadSome(f, into, at, tail, f.constant32(0));
    };
    from.forEach((base, r) => load(values[r], base));
    b.forEach((base, j) => {
      load(w, base);
      values.forEach((value, r) => madd(f, relaxed, sums[r][j], value, w));
    });
  });
  sums.forEach((four, r) => {
    sumFour(f, four);
    const [sum] = four;
    f.if(
      f.op("i32.ge_u", columns, f.i32(4)),
      () => {
        f.if(keep, () => f.set(sum, f.op("f32x4.add", sum, f.load("v128.load", c))));
        f.store("v128.store", c, 0, sum);
      },
      () => {
        f.if(keep, () => {
          loadSome(f, w, c, columns, f.constant32(0));
          f.set(sum, f.op("f32x4.add", sum, w));
        });
        storeSome(f, c, columns, sum);
      },
    );
    if (r + 1 < rows) f.bump(c, cStep);
  });
}

/** few(a, aStep, b, bStep, c, cStep, m, n, k, keep) of B [n][k]. */
function fewByColumns(f: FunctionBuilder, dot: Readonly<Record<1 | 2, FunctionRef>>): void {
  const [a, aStep, b, bStep, c, cStep, m, n, k, keep] = Array.from({ length: 10 }, (_, i) => f.param(i));
  const [row, ar, cr] = f.locals("i32", 3);
  const rows = [b, ...f.locals("i32", 3)];
  f.while(n, () => {
    for (let i = 1; i < 4; i++) {
      const next = f.op("i32.add", rows[i - 1], bStep);
      f.set(rows[i], f.op("select", next, rows[i - 1], f.op("i32.gt_u", n, f.i32(i))));
    }
    f.set(row, f.get(m));
    f.set(ar, f.get(a));
    f.set(cr, f.get(c));
    for (const count of [2, 1] as const)
      f.while(f.op("i32.ge_u", row, f.i32(count)), () => {
        f.run(f.call(dot[count], ar, aStep, ...rows, k, cr, cStep, n, keep));
        f.bump(ar, f.op("i32.mul", aStep, f.i32(count)));
        f.bump(cr, f.op("i32.mul", cStep, f.i32(count)));
        f.bump(row, -count);
      });
    f.bump(c, 16);
    f.set(b, f.op("i32.add", rows[3], bStep));
    f.set(n, f.op("i32.sub", n, least(f, n, f.i32(4))));
  });
}

interface Parts {
  readonly pack: FunctionRef;
  readonly tiles: FunctionRef;
}

/** An item of many rows: panels of two times eight columns, chunk by chunk of k. */
function manyRows(
  f: FunctionBuilder,
  spec: MatmulSpec,
  at: Record<"a" | "b" | "c" | "m" | "n", Local>,
  panel: Local,
  field: (name: Field) => Emit,
  parts: Parts,
): void {
  const [columns, some, done, depth, keep, a, b, spare] = f.locals("i32", 8);
  f.set(spare, f.op("i32.add", panel, f.i32(2 * PANEL_BYTES)));
  f.while(at.n, () => {
    f.set(columns, least(f, at.n, f.i32(2 * COLUMNS)));
    f.set(done, f.i32(0));
    f.set(keep, field("keep"));
    f.set(a, f.get(at.a));
    f.set(b, f.get(at.b));
    f.doWhile(
      () => {
        f.set(depth, least(f, f.op("i32.sub", field("k"), done), f.i32(DEPTH)));
        f.run(f.call(parts.pack, b, field("bStep"), panel, depth, columns));
        const half = (b8: Operand, c: Operand, count: Operand): Emit =>
          f.call(parts.tiles, a, field("aStep"), b8, c, field("cStep"), at.m, count, depth, keep, spare);
        f.run(half(panel, at.c, least(f, columns, f.i32(COLUMNS))));
        f.if(f.op("i32.gt_u", columns, f.i32(COLUMNS)), () => {
          f.set(some, f.op("i32.sub", columns, f.i32(COLUMNS)));
          f.run(half(f.op("i32.add", panel, f.i32(PANEL_BYTES)), f.op("i32.add", at.c, f.i32(4 * COLUMNS)), some));
        });
        f.set(keep, f.i32(1));
        f.bump(a, spec.a === "rows" ? 4 * DEPTH : f.op("i32.mul", field("aStep"), f.i32(DEPTH)));
        f.bump(b, spec.b === "columns" ? 4 * DEPTH : f.op("i32.mul", field("bStep"), f.i32(DEPTH)));
        f.bump(done, DEPTH);
      },
      f.op("i32.lt_u", done, field("k")),
    );
    f.bump(at.c, 8 * COLUMNS);
    f.bump(at.b, spec.b === "rows" ? 8 * COLUMNS : f.op("i32.mul", field("bStep"), f.i32(2 * COLUMNS)));
    f.set(at.n, f.op("i32.sub", at.n, columns));
  });
}

/** The function of an item of few rows. */
function writeFew(m: ModuleBuilder, { b, relaxed }: MatmulSpec): FunctionRef {
  if (b === "rows") {
    const axpy = (count: number): FunctionRef => m.func(null, i32s(5), [], (f) => writeAxpy(f, relaxed, count));
    const both = { 1: axpy(1), 8: axpy(8) };
    return m.func(null, i32s(10), [], (f) => fewByRows(f, both));
  }
  const dot = (rows: number): FunctionRef => m.func(null, i32s(11), [], (f) => writeDot(f, relaxed, rows));
  const both = { 1: dot(1), 2: dot(2) };
  return m.func(null, i32s(10), [], (f) => fewByColumns(f, both));
}

/** A module whose `work` multiplies; its arguments are `matmulJob`'s. */
export function matmulModule(spec: MatmulSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const few = spec.rows === "few" ? writeFew(m, spec) : null;
  const pack = few === null ? m.func(null, i32s(5), [], spec.b === "rows" ? packRows : packColumns) : null;
  const tiles = few === null ? panelTiles(m, spec) : null;
  writeWork(m, (f, args, panel) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const [batch, outer, inner, row, column, left] = f.locals("i32", 6);
    const at = { a: f.local("i32"), b: f.local("i32"), c: f.local("i32"), m: f.local("i32"), n: f.local("i32") };
    const base = (name: "a" | "b" | "c"): void =>
      f.set(
        at[name],
        f.op(
          "i32.add",
          f.op("i32.add", field(name), f.op("i32.mul", outer, field(`${name}Outer`))),
          f.op("i32.mul", inner, field(`${name}Inner`)),
        ),
      );
    return (item) => {
      f.set(column, f.op("i32.mul", f.op("i32.rem_u", item, field("nBlocks")), field("nSpan")));
      f.set(left, f.op("i32.div_u", item, field("nBlocks")));
      f.set(row, f.op("i32.mul", f.op("i32.rem_u", left, field("mBlocks")), field("mSpan")));
      f.set(batch, f.op("i32.div_u", left, field("mBlocks")));
      f.set(outer, f.op("i32.div_u", batch, field("inner")));
      f.set(inner, f.op("i32.rem_u", batch, field("inner")));
      for (const name of ["a", "b", "c"] as const) base(name);
      f.set(at.m, least(f, field("mSpan"), f.op("i32.sub", field("m"), row)));
      f.set(at.n, least(f, field("nSpan"), f.op("i32.sub", field("n"), column)));
      f.bump(at.a, spec.a === "rows" ? f.op("i32.mul", row, field("aStep")) : f.op("i32.shl", row, f.i32(2)));
      f.bump(at.b, spec.b === "rows" ? f.op("i32.shl", column, f.i32(2)) : f.op("i32.mul", column, field("bStep")));
      f.bump(at.c, f.op("i32.add", f.op("i32.mul", row, field("cStep")), f.op("i32.shl", column, f.i32(2))));
      if (few === null) manyRows(f, spec, at, panel, field, { pack: pack!, tiles: tiles! });
      else f.run(f.call(few, at.a, field("aStep"), at.b, field("bStep"), at.c, field("cStep"), at.m, at.n, field("k"), field("keep")));
    };
  });
  return m.bytes();
}

export const matmul = family("matmul", matmulModule);
