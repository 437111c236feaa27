// Scales of signed codes (Q3_K, Q6_K and the like): the reference's search, the own one, and the place of a block.
import type { SignedSearch } from "../../../formats/core/search.ts";
import type { Emit, FunctionRef, ModuleBuilder } from "../engine/asm.ts";
import { type Codes, lanes, type Layout, overGroups, overWidths, pair, room, storeFour, times } from "./search-lanes.ts";

export const signedCodes = ({ low, high }: SignedSearch): Codes => ({
  value: (_, x) => x,
  code: (l, v) => l.pmin(l.pmax(l.nearest(v), l.constant(low)), l.constant(high)),
  inverse: (f, l, s) => f.op("v128.andnot", l.div(l.constant(1), s), l.eq(s, l.constant(0))),
});

export function signedReference(m: ModuleBuilder, spec: SignedSearch, at: Layout): FunctionRef {
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

export function signedOwn(m: ModuleBuilder, spec: SignedSearch, at: Layout, weighted: boolean): FunctionRef {
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
export function signedPlace(m: ModuleBuilder, spec: SignedSearch, errorOf: FunctionRef, judged: FunctionRef): void {
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
