// Scales with minima (Q2_K, Q4_K, Q5_K and the like): the reference's search, the own one, and the place of a block
// between codes of its scale and minimum.
import type { AffineSearch } from "../../../formats/core/search.ts";
import type { Emit, FunctionRef, Local, ModuleBuilder } from "../engine/asm.ts";
import { bounds, type Codes, lanes, type Layout, overGroups, overWidths, pair, room, storeFour, times } from "./search-lanes.ts";

const NEAR = [1, 0, -1, 0, 0, 1, 0, -1, 1, 1, -1, -1];

export function affineReference(m: ModuleBuilder, spec: AffineSearch, at: Layout): FunctionRef {
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

export function affineOwn(m: ModuleBuilder, spec: AffineSearch, at: Layout, weighted: boolean): FunctionRef {
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

export const affineCodes = ({ top }: AffineSearch): Codes => ({
  value: (l, x, m) => l.add(x, m),
  code: (l, v) => l.pmax(l.constant(0), l.pmin(l.nearest(v), l.constant(top))),
  inverse: (_, l, s) => l.where(l.gt(s, l.constant(0)), l.div(l.constant(1), s)),
});

/** place(base, d, dmin, reach): reach 0 or 1. */
export function affinePlace(m: ModuleBuilder, spec: AffineSearch, errorOf: FunctionRef, judged: FunctionRef): void {
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
