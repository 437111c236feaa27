// Tiles of float32 products: rows of A x a packed panel of eight columns of B, in registers over k. What matrix
// products (matmul.ts) and convolutions (conv.ts) run on: they differ in how panels are packed. Six rows at a time with
// fused multiply-add, four without: as many sums as V8 keeps in registers.
//
// A panel is [k][8] float32. A lies by rows (k side by side) or by columns (rows side by side).
import type { Emit, FunctionBuilder, FunctionRef, Local, ModuleBuilder, Operand } from "../engine/asm.ts";
import { loadSome, storeSome } from "./rows.ts";

/** Columns of a panel. */
export const COLUMNS = 8;
/** Elements of k of a panel: 8 KB, which stay in the first-level cache beside the rows. */
export const DEPTH = 256;

export interface TileSpec {
  /** A by rows, or transposed. */
  readonly a: "rows" | "columns";
  /** Fused multiply-add, where the engine has it. */
  readonly relaxed: boolean;
}

export const tileRows = (relaxed: boolean): number => (relaxed ? 6 : 4);

/** Bytes of one panel, and of a tile that lies beside the result where that ends within it. */
export const PANEL_BYTES = DEPTH * COLUMNS * 4;
export const tileBytes = (relaxed: boolean): number => tileRows(relaxed) * COLUMNS * 4;

/** sum += a * b. */
export const madd = (f: FunctionBuilder, relaxed: boolean, sum: Local, a: Operand, b: Operand): void =>
  f.set(sum, relaxed ? f.op("f32x4.relaxed_madd", a, b, sum) : f.op("f32x4.add", sum, f.op("f32x4.mul", a, b)));

/** Parameters of a function: `count` addresses or counts. */
export const i32s = (count: number): "i32"[] => Array.from({ length: count }, () => "i32");

export const least = (f: FunctionBuilder, a: Operand, b: Operand): Emit => f.op("select", a, b, f.op("i32.lt_u", a, b));

/**
 * tile(a, aStep, b, c, cStep, k, keep): `rows` x 8 results at c, added to what is there where `keep` is not 0. aStep:
 * bytes between rows of A, or between its columns.
 */
function writeTile(f: FunctionBuilder, spec: TileSpec, rows: number): void {
  const [a, aStep, b, c, cStep, k, keep] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
  const sums = Array.from({ length: rows }, () => f.locals("v128", 2));
  const [b0, b1, v] = f.locals("v128", 3);
  const turns = f.local("i32");
  const byRows = spec.a === "rows";
  const places = byRows ? [a, ...f.locals("i32", rows - 1)] : [a];
  const results = [c, ...f.locals("i32", rows - 1)];
  for (let r = 1; r < rows; r++) {
    if (byRows) f.set(places[r], f.op("i32.add", places[r - 1], aStep));
    f.set(results[r], f.op("i32.add", results[r - 1], cStep));
  }
  f.if(keep, () => sums.forEach((pair, r) => pair.forEach((sum, i) => f.set(sum, f.load("v128.load", results[r], 16 * i)))));
  const step = (i: number): void => {
    f.set(b0, f.load("v128.load", b, 32 * i));
    f.set(b1, f.load("v128.load", b, 32 * i + 16));
    sums.forEach(([low, high], r) => {
      f.set(v, byRows ? f.load("v128.load32_splat", places[r], 4 * i) : f.load("v128.load32_splat", a, 4 * r));
      madd(f, spec.relaxed, low, v, b0);
      madd(f, spec.relaxed, high, v, b1);
    });
    if (!byRows) f.bump(a, aStep);
  };
  for (const unroll of [4, 1]) {
    f.set(turns, unroll === 4 ? f.op("i32.shr_u", k, f.i32(2)) : f.op("i32.and", k, f.i32(3)));
    f.while(turns, () => {
      for (let i = 0; i < unroll; i++) step(i);
      if (byRows) for (const place of places) f.bump(place, 4 * unroll);
      f.bump(b, 32 * unroll);
      f.bump(turns, -1);
    });
  }
  sums.forEach((pair, r) => pair.forEach((sum, i) => f.store("v128.store", results[r], 16 * i, sum)));
}

/** copy(from, fromStep, to, toStep, rows, columns): at most eight columns. */
function writeCopy(f: FunctionBuilder): void {
  const [from, fromStep, to, toStep, rows, columns] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const v = f.local("v128");
  const tail = f.local("i32");
  f.while(rows, () => {
    f.set(tail, f.get(columns));
    f.if(f.op("i32.ge_u", columns, f.i32(4)), () => {
      f.store("v128.store", to, 0, f.load("v128.load", from));
      f.set(tail, f.op("i32.sub", columns, f.i32(4)));
    });
    f.if(tail, () => {
      const offset = f.op("i32.and", f.op("i32.shl", columns, f.i32(2)), f.i32(16));
      loadSome(f, v, f.op("i32.add", from, offset), tail, f.constant32(0));
      storeSome(f, f.op("i32.add", to, offset), tail, v);
    });
    f.bump(from, fromStep);
    f.bump(to, toStep);
    f.bump(rows, -1);
  });
}

/** Parameters of `panelTiles`; `spare`: memory of `tileBytes`. */
export const PANEL_PARAMETERS = ["a", "aStep", "b", "c", "cStep", "rows", "columns", "k", "keep", "spare"] as const;
export type PanelParameter = (typeof PANEL_PARAMETERS)[number];

/** A function: any number of rows of A x one panel of up to eight columns, c row by row `cStep` bytes apart. */
export function panelTiles(m: ModuleBuilder, spec: TileSpec): FunctionRef {
  const most = tileRows(spec.relaxed);
  const tiles = Array.from({ length: most }, (_, r) => m.func(null, i32s(7), [], (f) => writeTile(f, spec, r + 1)));
  const copy = m.func(null, i32s(6), [], writeCopy);
  return m.func(null, i32s(PANEL_PARAMETERS.length), [], (f) => {
    const at = Object.fromEntries(PANEL_PARAMETERS.map((name, i) => [name, f.param(i)])) as Record<PanelParameter, Local>;
    const whole = f.op("i32.eq", at.columns, f.i32(COLUMNS));
    const run = (rows: number): void => {
      const tile = (c: Operand, cStep: Operand): Emit => f.call(tiles[rows - 1], at.a, at.aStep, at.b, c, cStep, at.k, at.keep);
      f.if(
        whole,
        () => f.run(tile(at.c, at.cStep)),
        () => {
          const spare = f.i32(COLUMNS * 4);
          f.if(at.keep, () => f.run(f.call(copy, at.c, at.cStep, at.spare, spare, f.i32(rows), at.columns)));
          f.run(tile(at.spare, spare));
          f.run(f.call(copy, at.spare, spare, at.c, at.cStep, f.i32(rows), at.columns));
        },
      );
    };
    const take = (rows: number): void => {
      run(rows);
      f.bump(at.a, spec.a === "rows" ? f.op("i32.mul", at.aStep, f.i32(rows)) : 4 * rows);
      f.bump(at.c, f.op("i32.mul", at.cStep, f.i32(rows)));
      f.bump(at.rows, -rows);
    };
    // sums of one or two rows wait for each other: seven rows are 4 + 3 and eight 4 + 4, not 6 + 1 and 6 + 2
    f.while(f.op("i32.ge_u", at.rows, f.i32(most > 4 ? most + 3 : most)), () => take(most));
    if (most > 4) f.if(f.op("i32.gt_u", at.rows, f.i32(most)), () => take(4));
    for (let rows = 1; rows <= most; rows++) f.if(f.op("i32.eq", at.rows, f.i32(rows)), () => run(rows));
  });
}
