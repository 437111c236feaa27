// The loops of encoders that search scales (formats/core/search.ts), runs in the lanes: a reference's search in
// float32, four runs at a time, the own one and the judging of codes in float64, two at a time. Every lane does what
// formats/define/ggml-search.ts does, operation by operation, so that results are the same bits.
//
// One workspace in memory (`searchLayout`): the room's arrays, the block as it is, its values by element with the runs
// side by side (x32: [runs / 4][size][4], x64 and u64: [runs / 2][size][2]), and the widths of both searches.
import type { AffineSearch, SearchSpec, SignedSearch } from "../../../formats/core/search.ts";
import { ROOM } from "../../../formats/core/search.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";

export interface SearchModuleSpec {
  readonly search: SearchSpec;
  /** Errors have weights; else all weights are one. */
  readonly weighted: boolean;
  readonly shared: boolean;
}

export interface SearchLayout {
  readonly room: number;
  readonly x: number;
  readonly u: number;
  readonly x32: number;
  readonly w32: number;
  readonly q32: number;
  readonly x64: number;
  readonly u64: number;
  /** Widths as float32 and as float64. */
  readonly widths: number;
  readonly own: number;
  readonly bytes: number;
}

/** Where things lie in the workspace of a search. */
export function searchLayout({ runs, size, widths, own }: SearchSpec): SearchLayout {
  let bytes = 0;
  const take = (n: number): number => ((bytes += Math.ceil(n / 16) * 16), bytes - Math.ceil(n / 16) * 16);
  const n = runs * size;
  return {
    room: take(8 * runs * ROOM.length),
    x: take(4 * n),
    u: take(4 * n),
    x32: take(4 * n),
    w32: take(8 * n),
    q32: take(16 * size),
    x64: take(8 * n),
    u64: take(8 * n),
    widths: take(4 * widths.length),
    own: take(8 * own.length),
    bytes,
  };
}

const MAGIC = 6755399441055744;
const MAGIC32 = 12582912;
const NEAR = [1, 0, -1, 0, 0, 1, 0, -1, 1, 1, -1, -1];

/** A lane type with its operations as expressions, and what several functions share. */
function lanes(f: FunctionBuilder, type: "f32x4" | "f64x2") {
  const op = (name: string) => (a: Operand, b?: Operand) => f.op(`${type}.${name}`, a, b);
  const constant = (value: number): Local => {
    if (type === "f32x4") return f.constantF32(value);
    const bytes = new Uint8Array(Float64Array.of(value, value).buffer);
    return f.constant(`f64 ${Object.is(value, -0) ? "-0" : value}`, f.v128(bytes));
  };
  const magic = type === "f32x4" ? MAGIC32 : MAGIC;
  const [add, sub] = [op("add"), op("sub")];
  return {
    add,
    sub,
    mul: op("mul"),
    div: op("div"),
    abs: op("abs"),
    neg: op("neg"),
    /** pmin(a, b) = b < a ? b : a, pmax(a, b) = a < b ? b : a */
    pmin: op("pmin"),
    pmax: op("pmax"),
    gt: op("gt"),
    lt: op("lt"),
    ge: op("ge"),
    le: op("le"),
    eq: op("eq"),
    constant,
    nearest: (v: Operand): Emit => sub(add(v, constant(magic)), constant(magic)),
    select: (mask: Operand, then: Operand, otherwise: Operand): Emit => f.op("v128.bitselect", then, otherwise, mask),
    where: (mask: Operand, v: Operand): Emit => f.op("v128.and", v, mask),
  };
}

type Lanes = ReturnType<typeof lanes>;
type Layout = SearchLayout;

const HIGH = [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];
/** Elements 0 and 1, or 2 and 3, of two vectors, side by side. */
const PAIRS = [
  [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23],
  [8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31],
];
const LOW_HALVES = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const HIGH_HALVES = [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31];

/** arrange(base): x (and u) of the block to runs side by side. */
function arrange(m: ModuleBuilder, { runs, size }: SearchSpec, at: Layout, weighted: boolean): FunctionRef {
  return m.func(null, ["i32"], [], (f) => {
    const base = f.param(0);
    const rows = f.locals("v128", 4);
    const pairs = f.locals("v128", 2);
    for (const [from, to32, to64] of weighted
      ? [
          [at.x, at.x32, at.x64],
          [at.u, -1, at.u64],
        ]
      : [[at.x, at.x32, at.x64]])
      // prettier-ignore
      for (let g = 0; g < runs / 4; g++)
        for (let j = 0; j < size; j += 4) {
          rows.forEach((row, i) => f.set(row, f.load("v128.load", base, from + 4 * ((4 * g + i) * size + j))));
          for (let h = 0; h < 2; h++) {
            for (let p = 0; p < 2; p++) {
              f.set(pairs[p], f.shuffle(PAIRS[h], rows[2 * p], rows[2 * p + 1]));
              const to = to64 + 16 * ((2 * g + p) * size + j + 2 * h);
              f.store("v128.store", base, to, f.op("f64x2.promote_low_f32x4", pairs[p]));
              f.store("v128.store", base, to + 16, f.op("f64x2.promote_low_f32x4", f.shuffle(HIGH, pairs[p], pairs[p])));
            }
            if (to32 < 0) continue;
            const to = to32 + 16 * (g * size + j + 2 * h);
            f.store("v128.store", base, to, f.shuffle(LOW_HALVES, pairs[0], pairs[1]));
            f.store("v128.store", base, to + 16, f.shuffle(HIGH_HALVES, pairs[0], pairs[1]));
          }
        }
  });
}

/** body(a, o) for every group of runs: x at a + its offset, the room's arrays at o + their offsets. */
function overGroups(f: FunctionBuilder, spec: SearchSpec, lane: 2 | 4, body: (a: Local, o: Local) => void): void {
  const base = f.param(0);
  const [a, o, left] = f.locals("i32", 3);
  f.set(a, base);
  f.set(o, base);
  f.set(left, f.i32(spec.runs / lane));
  f.doWhile(() => {
    body(a, o);
    f.bump(a, 16 * spec.size);
    f.bump(o, 8 * lane);
    f.bump(left, -1);
  }, left);
}

/** body(pointer) for each of `count` widths of `bytes` bytes at base + offset. */
function overWidths(f: FunctionBuilder, offset: number, bytes: number, count: number, body: (width: Local) => void): void {
  const [width, left] = f.locals("i32", 2);
  f.set(width, f.op("i32.add", f.param(0), f.i32(offset)));
  f.set(left, f.i32(count));
  f.doWhile(() => {
    body(width);
    f.bump(width, bytes);
    f.bump(left, -1);
  }, left);
}

const room = (spec: SearchSpec, name: (typeof ROOM)[number]): number => 8 * spec.runs * ROOM.indexOf(name);

/** Four float32 results to the room. */
function storeFour(f: FunctionBuilder, o: Local, offset: number, v: Local): void {
  f.store("v128.store", o, offset, f.op("f64x2.promote_low_f32x4", v));
  f.store("v128.store", o, offset + 16, f.op("f64x2.promote_low_f32x4", f.shuffle(HIGH, v, v)));
}

const times = (n: number, body: (j: number) => void): void => {
  for (let j = 0; j < n; j++) body(j);
};

/** Least and largest value of each run; the least at most 0. */
function bounds(f: FunctionBuilder, l: Lanes, size: number, value: (j: number) => Emit, low: Local, high: Local): void {
  f.set(low, l.constant(0));
  f.set(high, l.constant(-Infinity));
  const v = f.local("v128");
  times(size, (j) => {
    f.set(v, value(j));
    f.set(low, l.pmin(low, v));
    f.set(high, l.pmax(high, v));
  });
}

function affineReference(m: ModuleBuilder, spec: AffineSearch, at: Layout): FunctionRef {
  const { size, top, lift, absolute, widths } = spec;
  return m.func(null, ["i32"], [], (f) => {
    const l = lanes(f, "f32x4");
    const [low, start, high, sw, sx, lifted, inverse, wq, wqq, wxq, q, a, s, mm, det, error, best, bestS, bestM, better] = f.locals("v128", 20); // prettier-ignore
    overGroups(f, spec, 4, (g, o) => {
      const x = (j: number): Emit => f.load("v128.load", g, at.x32 + 16 * j);
      const w = (j: number): Emit => f.load("v128.load", g, at.w32 + 16 * j);
      const code = (j: number): Emit => f.load("v128.load", f.param(0), at.q32 + 16 * j);
      bounds(f, l, size, x, low, high);
      f.set(start, low);
      f.set(lifted, l.constant(0));
      if (lift) {
        times(size, (j) => f.set(lifted, l.add(lifted, l.mul(x(j), x(j)))));
        f.set(lifted, f.op("f32x4.sqrt", l.div(lifted, l.constant(size))));
      }
      f.set(sw, l.constant(0));
      f.set(sx, l.constant(0));
      times(size, (j) => {
        f.set(a, l.add(lifted, l.abs(x(j))));
        f.store("v128.store", g, at.w32 + 16 * j, a);
        f.set(sw, l.add(sw, a));
        f.set(sx, l.add(sx, l.mul(a, x(j))));
      });
      const codesOf = (sums: boolean): void => {
        for (const sum of [wq, wqq, wxq]) f.set(sum, l.constant(0));
        times(size, (j) => {
          f.set(q, l.pmax(l.constant(0), l.pmin(l.nearest(l.mul(inverse, l.sub(x(j), low))), l.constant(top))));
          f.store("v128.store", f.param(0), at.q32 + 16 * j, q);
          if (!sums) return;
          f.set(a, l.mul(w(j), q));
          f.set(wq, l.add(wq, a));
          f.set(wqq, l.add(wqq, l.mul(a, q)));
          f.set(wxq, l.add(wxq, l.mul(a, x(j))));
        });
      };
      const judge = (): void => {
        f.set(error, l.constant(0));
        times(size, (j) => {
          f.set(a, l.sub(l.add(l.mul(s, code(j)), mm), x(j)));
          f.set(error, l.add(error, l.mul(w(j), absolute ? l.abs(a) : l.mul(a, a))));
        });
      };
      f.set(inverse, l.div(l.constant(widths[0]), l.sub(high, low)));
      codesOf(false);
      f.set(s, l.div(l.constant(1), inverse));
      f.set(mm, low);
      judge();
      f.set(best, error);
      f.set(bestS, s);
      f.set(bestM, mm);
      overWidths(f, at.widths + 4, 4, widths.length - 1, (width) => {
        f.set(inverse, l.div(f.load("v128.load32_splat", width), l.sub(high, low)));
        codesOf(true);
        f.set(det, l.sub(l.mul(sw, wqq), l.mul(wq, wq)));
        f.set(s, l.div(l.sub(l.mul(sw, wxq), l.mul(sx, wq)), det));
        f.set(mm, l.div(l.sub(l.mul(wqq, sx), l.mul(wq, wxq)), det));
        f.set(better, l.gt(mm, l.constant(0)));
        f.set(s, l.select(better, l.div(wxq, wqq), s));
        f.set(mm, f.op("v128.andnot", mm, better));
        judge();
        f.set(better, f.op("v128.and", l.gt(det, l.constant(0)), l.lt(error, best)));
        f.set(best, l.select(better, error, best));
        f.set(bestS, l.select(better, s, bestS));
        f.set(bestM, l.select(better, mm, bestM));
        f.set(low, l.select(better, mm, low));
      });
      // runs of one value
      f.set(better, l.eq(high, start));
      f.set(s, f.op("v128.andnot", bestS, better));
      f.set(mm, l.neg(l.select(better, start, bestM)));
      storeFour(f, o, room(spec, "refS"), s);
      storeFour(f, o, room(spec, "refM"), mm);
    });
  });
}

/** Values and weights of a pair of runs. */
const pair = (f: FunctionBuilder, a: Local, at: Layout, weighted: boolean) => ({
  x: (j: number): Emit => f.load("v128.load", a, at.x64 + 16 * j),
  /** v times the weight of element j. */
  weigh: (j: number, v: Operand): Operand => (weighted ? f.op("f64x2.mul", f.load("v128.load", a, at.u64 + 16 * j), v) : v),
});

function affineOwn(m: ModuleBuilder, spec: AffineSearch, at: Layout, weighted: boolean): FunctionRef {
  const { size, top, own } = spec;
  return m.func(null, ["i32"], [], (f) => {
    const l = lanes(f, "f64x2");
    const [low, high, su, ux, uxx, inverse, uq, uqq, uxq, v, q, b, det, s, mm, e, mask, best, bestS, bestM] = f.locals("v128", 20);
    overGroups(f, spec, 2, (g, o) => {
      const { x, weigh } = pair(f, g, at, weighted);
      bounds(f, l, size, x, low, high);
      for (const sum of [su, ux, uxx]) f.set(sum, l.constant(0));
      times(size, (j) => {
        f.set(v, x(j));
        f.set(b, weigh(j, v));
        if (weighted) f.set(su, l.add(su, f.load("v128.load", g, at.u64 + 16 * j)));
        f.set(ux, l.add(ux, b));
        f.set(uxx, l.add(uxx, l.mul(b, v)));
      });
      if (!weighted) f.set(su, l.constant(size));
      f.set(best, l.constant(Infinity));
      f.set(bestS, l.constant(0));
      f.set(bestM, low);
      overWidths(f, at.own, 8, own.length, (width) => {
        f.set(inverse, l.div(f.load("v128.load64_splat", width), l.sub(high, low)));
        for (const sum of [uq, uqq, uxq]) f.set(sum, l.constant(0));
        times(size, (j) => {
          f.set(v, x(j));
          f.set(q, l.pmin(l.nearest(l.mul(inverse, l.sub(v, low))), l.constant(top)));
          f.set(b, weigh(j, q));
          f.set(uq, l.add(uq, b));
          f.set(uqq, l.add(uqq, l.mul(b, q)));
          f.set(uxq, l.add(uxq, l.mul(b, v)));
        });
        f.set(det, l.sub(l.mul(su, uqq), l.mul(uq, uq)));
        f.set(mask, l.gt(det, l.constant(0)));
        f.set(s, l.where(mask, l.div(l.sub(l.mul(su, uxq), l.mul(ux, uq)), det)));
        f.set(mm, l.select(mask, l.div(l.sub(l.mul(uqq, ux), l.mul(uq, uxq)), det), l.constant(1)));
        f.set(mask, l.gt(mm, l.constant(0)));
        f.set(s, l.select(mask, l.div(uxq, uqq), s));
        f.set(mm, f.op("v128.andnot", mm, mask));
        const two = l.constant(2);
        const ofScale = l.mul(s, l.add(l.mul(s, uqq), l.mul(two, l.sub(l.mul(mm, uq), uxq))));
        const ofMinimum = l.mul(mm, l.sub(l.mul(mm, su), l.mul(two, ux)));
        f.set(e, l.add(l.add(uxx, ofScale), ofMinimum));
        f.set(mask, f.op("v128.and", l.lt(e, best), l.gt(s, l.constant(0))));
        f.set(best, l.select(mask, e, best));
        f.set(bestS, l.select(mask, s, bestS));
        f.set(bestM, l.select(mask, mm, bestM));
      });
      f.set(mask, l.eq(high, low));
      f.store("v128.store", o, room(spec, "ownS"), f.op("v128.andnot", bestS, mask));
      f.store("v128.store", o, room(spec, "ownM"), l.neg(l.select(mask, low, bestM)));
      f.store("v128.store", o, room(spec, "su"), su);
      f.store("v128.store", o, room(spec, "ux"), ux);
    });
  });
}

/** How codes follow from values: v(j) is what the scale divides, `code` makes a code of the quotient. */
interface Codes {
  value(l: Lanes, x: Emit, m: Local): Emit;
  code(l: Lanes, quotient: Emit): Emit;
  inverse(f: FunctionBuilder, l: Lanes, s: Local): Emit;
}

const affineCodes = ({ top }: AffineSearch): Codes => ({
  value: (l, x, m) => l.add(x, m),
  code: (l, v) => l.pmax(l.constant(0), l.pmin(l.nearest(v), l.constant(top))),
  inverse: (_, l, s) => l.where(l.gt(s, l.constant(0)), l.div(l.constant(1), s)),
});

const signedCodes = ({ low, high }: SignedSearch): Codes => ({
  value: (_, x) => x,
  code: (l, v) => l.pmin(l.pmax(l.nearest(v), l.constant(low)), l.constant(high)),
  inverse: (f, l, s) => f.op("v128.andnot", l.div(l.constant(1), s), l.eq(s, l.constant(0))),
});

/** (a, scale, minimum) -> the squared error of a pair of runs. */
function runError(m: ModuleBuilder, spec: SearchSpec, at: Layout, weighted: boolean, codes: Codes): FunctionRef {
  return m.func(null, ["i32", "v128", "v128"], ["v128"], (f) => {
    const l = lanes(f, "f64x2");
    const [a, s, mm] = [0, 1, 2].map((i) => f.param(i));
    const { x, weigh } = pair(f, a, at, weighted);
    const [inverse, v, e, error] = f.locals("v128", 4);
    f.set(inverse, codes.inverse(f, l, s));
    f.set(error, l.constant(0));
    times(spec.size, (j) => {
      f.set(v, codes.value(l, x(j), mm));
      f.set(e, l.sub(l.mul(s, codes.code(l, l.mul(f.get(v), inverse))), v));
      f.set(error, l.add(error, l.mul(weigh(j, e), e)));
    });
    f.run(f.get(error));
  });
}

/** judge(base, d, dmin). */
function judge(m: ModuleBuilder, spec: SearchSpec, at: Layout, weighted: boolean, codes: Codes): FunctionRef {
  return m.func("judge", ["i32", "f64", "f64"], [], (f) => {
    const l = lanes(f, "f64x2");
    const [d, dmin, s, mm, inverse, x0, v, q, b, e, error, uq, uqq, uxq] = f.locals("v128", 14);
    f.set(d, f.op("f64x2.splat", f.param(1)));
    f.set(dmin, f.op("f64x2.splat", f.param(2)));
    overGroups(f, spec, 2, (g, o) => {
      const { x, weigh } = pair(f, g, at, weighted);
      f.set(s, l.mul(d, f.load("v128.load", o, room(spec, "scales"))));
      f.set(mm, l.mul(dmin, f.load("v128.load", o, room(spec, "mins"))));
      f.set(inverse, codes.inverse(f, l, s));
      for (const sum of [error, uq, uqq, uxq]) f.set(sum, l.constant(0));
      times(spec.size, (j) => {
        f.set(x0, x(j));
        f.set(v, codes.value(l, f.get(x0), mm));
        f.set(q, codes.code(l, l.mul(f.get(v), inverse)));
        f.set(e, l.sub(l.mul(s, q), v));
        f.set(error, l.add(error, l.mul(weigh(j, e), e)));
        f.set(b, weigh(j, q));
        if (spec.kind === "affine") f.set(uq, l.add(uq, b));
        f.set(uqq, l.add(uqq, l.mul(b, q)));
        f.set(uxq, l.add(uxq, l.mul(b, x0)));
      });
      f.store("v128.store", o, room(spec, "error"), error);
      f.store("v128.store", o, room(spec, "uq"), uq);
      f.store("v128.store", o, room(spec, "uqq"), uqq);
      f.store("v128.store", o, room(spec, "uxq"), uxq);
    });
  });
}

/** place(base, d, dmin, reach): reach 0 or 1. */
function affinePlace(m: ModuleBuilder, spec: AffineSearch, errorOf: FunctionRef, judged: FunctionRef): void {
  m.func("place", ["i32", "f64", "f64", "i32"], [], (f) => {
    const l = lanes(f, "f64x2");
    const [d, dmin, s0, m0, bestS, bestM, least, i, k, e, ok] = f.locals("v128", 11);
    f.set(d, f.op("f64x2.splat", f.param(1)));
    f.set(dmin, f.op("f64x2.splat", f.param(2)));
    const most = l.constant(spec.most);
    const zero = l.constant(0);
    const code = (o: Local, from: "ownS" | "ownM", unit: Local): Emit => {
      const q = l.nearest(l.div(f.load("v128.load", o, room(spec, from)), unit));
      return l.where(l.gt(unit, zero), l.pmax(zero, l.pmin(q, most)));
    };
    overGroups(f, spec, 2, (g, o) => {
      f.set(s0, code(o, "ownS", d));
      f.set(m0, code(o, "ownM", dmin));
      f.set(bestS, s0);
      f.set(bestM, m0);
      f.if(f.param(3), () => {
        f.set(least, f.call(errorOf, g, l.mul(d, s0), l.mul(dmin, m0)));
        for (let n = 0; n < NEAR.length; n += 2) {
          const [ds, dm] = [NEAR[n], NEAR[n + 1]];
          f.set(i, l.add(s0, l.constant(ds)));
          f.set(k, l.add(m0, l.constant(dm)));
          f.set(e, f.call(errorOf, g, l.mul(d, i), l.mul(dmin, k)));
          f.set(ok, l.lt(e, least));
          for (const [code, step] of [
            [i, ds],
            [k, dm],
          ] as const)
            // prettier-ignore
            if (step !== 0) f.set(ok, f.op("v128.and", ok, step > 0 ? l.le(code, most) : l.ge(code, zero)));
          if (dm !== 0) f.set(ok, f.op("v128.and", ok, l.gt(dmin, zero)));
          f.set(least, l.select(ok, e, least));
          f.set(bestS, l.select(ok, i, bestS));
          f.set(bestM, l.select(ok, k, bestM));
        }
      });
      f.store("v128.store", o, room(spec, "scales"), bestS);
      f.store("v128.store", o, room(spec, "mins"), bestM);
    });
    f.run(f.call(judged, f.param(0), f.param(1), f.param(2)));
  });
}

function signedReference(m: ModuleBuilder, spec: SignedSearch, at: Layout): FunctionRef {
  const { size, low, high, widths } = spec;
  return m.func(null, ["i32"], [], (f) => {
    const l = lanes(f, "f32x4");
    const [v, extreme, zero, inverse, q, xl, ll, best, scale, mask] = f.locals("v128", 10);
    overGroups(f, spec, 4, (g, o) => {
      const x = (j: number): Emit => f.load("v128.load", g, at.x32 + 16 * j);
      // squares and cubes, which every width needs
      const w = (j: number, cube: boolean): Emit => f.load("v128.load", g, at.w32 + 16 * j + (cube ? 4 * spec.runs * size : 0));
      f.set(extreme, l.constant(0));
      times(size, (j) => {
        f.set(v, x(j));
        f.set(extreme, l.select(l.gt(l.abs(v), l.abs(extreme)), v, extreme));
        f.store("v128.store", g, at.w32 + 16 * j, l.mul(v, v));
        f.store("v128.store", g, at.w32 + 16 * j + 4 * spec.runs * size, l.mul(l.mul(v, v), v));
      });
      f.set(zero, l.lt(l.abs(extreme), l.constant(1e-15)));
      f.set(best, l.constant(0));
      f.set(scale, l.constant(0));
      const step = (first: boolean): void => {
        f.set(xl, l.constant(0));
        f.set(ll, l.constant(0));
        times(size, (j) => {
          f.set(q, l.pmin(l.pmax(l.nearest(l.mul(inverse, x(j))), l.constant(low)), l.constant(high)));
          f.set(xl, l.add(xl, l.mul(w(j, true), q)));
          f.set(ll, l.add(ll, l.mul(l.mul(w(j, false), q), q)));
        });
        f.set(mask, l.gt(ll, l.constant(0)));
        if (!first) f.set(mask, f.op("v128.and", mask, l.gt(l.mul(xl, xl), l.mul(best, ll))));
        f.set(scale, l.select(mask, l.div(xl, ll), scale));
        f.set(best, l.select(mask, l.mul(scale, xl), best));
      };
      f.set(inverse, l.div(l.constant(widths[0]), extreme));
      step(true);
      overWidths(f, at.widths + 4, 4, widths.length - 1, (width) => {
        f.set(inverse, l.div(f.load("v128.load32_splat", width), extreme));
        step(false);
      });
      f.set(scale, f.op("v128.andnot", scale, zero));
      storeFour(f, o, room(spec, "refS"), scale);
    });
  });
}

function signedOwn(m: ModuleBuilder, spec: SignedSearch, at: Layout, weighted: boolean): FunctionRef {
  const { size, low, high, own } = spec;
  return m.func(null, ["i32"], [], (f) => {
    const l = lanes(f, "f64x2");
    const [v, extreme, inverse, q, b, uqq, uxq, best, scale, mask] = f.locals("v128", 10);
    overGroups(f, spec, 2, (g, o) => {
      const { x, weigh } = pair(f, g, at, weighted);
      f.set(extreme, l.constant(0));
      times(size, (j) => {
        f.set(v, x(j));
        f.set(extreme, l.select(l.gt(l.abs(v), l.abs(extreme)), v, extreme));
      });
      f.set(best, l.constant(0));
      f.set(scale, l.constant(0));
      overWidths(f, at.own, 8, own.length, (width) => {
        f.set(inverse, l.div(f.load("v128.load64_splat", width), extreme));
        f.set(uqq, l.constant(0));
        f.set(uxq, l.constant(0));
        times(size, (j) => {
          f.set(v, x(j));
          f.set(q, l.pmin(l.pmax(l.nearest(l.mul(inverse, v)), l.constant(low)), l.constant(high)));
          f.set(b, weigh(j, q));
          f.set(uqq, l.add(uqq, l.mul(b, q)));
          f.set(uxq, l.add(uxq, l.mul(b, v)));
        });
        f.set(mask, f.op("v128.and", l.gt(uqq, l.constant(0)), l.gt(l.mul(uxq, uxq), l.mul(best, uqq))));
        f.set(scale, l.select(mask, l.div(uxq, uqq), scale));
        f.set(best, l.select(mask, l.mul(scale, uxq), best));
      });
      f.set(mask, l.lt(l.abs(extreme), l.constant(Math.fround(1e-15))));
      f.store("v128.store", o, room(spec, "ownS"), f.op("v128.andnot", scale, mask));
    });
  });
}

/** place(base, d, dmin, reach). */
function signedPlace(m: ModuleBuilder, spec: SignedSearch, errorOf: FunctionRef, judged: FunctionRef): void {
  m.func("place", ["i32", "f64", "f64", "i32"], [], (f) => {
    const l = lanes(f, "f64x2");
    const [d, none, middle, bestS, least, i, e, ok, step] = f.locals("v128", 9);
    const left = f.local("i32");
    f.set(d, f.op("f64x2.splat", f.param(1)));
    const [lowest, highest] = [l.constant(-spec.most), l.constant(spec.most - 1)];
    overGroups(f, spec, 2, (g, o) => {
      f.set(e, l.nearest(l.div(f.load("v128.load", o, room(spec, "ownS")), d)));
      f.set(middle, f.op("v128.andnot", l.pmin(l.pmax(e, lowest), highest), l.eq(d, l.constant(0))));
      f.set(bestS, middle);
      f.if(f.param(3), () => {
        f.set(least, f.call(errorOf, g, l.mul(d, middle), none));
        f.set(left, f.op("i32.shl", f.param(3), f.i32(1)));
        f.set(step, f.op("f64x2.splat", f.op("f64.convert_i32_s", f.op("i32.sub", f.i32(0), f.param(3)))));
        f.while(left, () => {
          f.set(i, l.add(middle, step));
          f.set(e, f.call(errorOf, g, l.mul(d, i), none));
          f.set(ok, f.op("v128.and", f.op("v128.and", l.lt(e, least), l.ge(i, lowest)), l.le(i, highest)));
          f.set(least, l.select(ok, e, least));
          f.set(bestS, l.select(ok, i, bestS));
          // the middle itself is known
          f.set(step, l.add(step, l.constant(1)));
          f.set(step, l.select(l.eq(step, l.constant(0)), l.constant(1), step));
          f.bump(left, -1);
        });
      });
      f.store("v128.store", o, room(spec, "scales"), bestS);
    });
    f.run(f.call(judged, f.param(0), f.param(1), f.param(2)));
  });
}

/** Module with search(base), place(base, d, dmin, reach) and judge(base, d, dmin). */
export function searchModule({ search: spec, weighted, shared }: SearchModuleSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  const at = searchLayout(spec);
  const affine = spec.kind === "affine";
  const codes = affine ? affineCodes(spec) : signedCodes(spec);
  const parts = [
    arrange(m, spec, at, weighted),
    affine ? affineReference(m, spec, at) : signedReference(m, spec, at),
    affine ? affineOwn(m, spec, at, weighted) : signedOwn(m, spec, at, weighted),
  ];
  m.func("search", ["i32"], [], (f) => {
    for (const part of parts) f.run(f.call(part, f.param(0)));
  });
  const errorOf = runError(m, spec, at, weighted, codes);
  const judged = judge(m, spec, at, weighted, codes);
  if (affine) affinePlace(m, spec, errorOf, judged);
  else signedPlace(m, spec, errorOf, judged);
  return m.bytes();
}

export const search = family("search of scales", searchModule);
