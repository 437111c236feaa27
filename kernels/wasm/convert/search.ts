// The loops of encoders that search scales (formats/core/search.ts), runs in the lanes: a reference's search in
// float32, four runs at a time, the own one and the judging of codes in float64, two at a time. Every lane does what
// formats/define/ggml-search.ts does, operation by operation, so that results are the same bits.
//
// One workspace in memory (`searchLayout`): the room's arrays, the block as it is, its values by element with the runs
// side by side (x32: [runs / 4][size][4], x64 and u64: [runs / 2][size][2]), and the widths of both searches.
import type { SearchSpec } from "../../../formats/core/search.ts";
import { ModuleBuilder, type FunctionRef } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { affineCodes, affineOwn, affinePlace, affineReference } from "./search-affine.ts";
import { HIGH, lanes, overGroups, pair, room, searchLayout, times, type Codes, type Layout } from "./search-lanes.ts";
import { signedCodes, signedOwn, signedPlace, signedReference } from "./search-signed.ts";

export { searchLayout } from "./search-lanes.ts";

export interface SearchModuleSpec {
  readonly search: SearchSpec;
  /** Errors have weights; else all weights are one. */
  readonly weighted: boolean;
  readonly shared: boolean;
}

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
