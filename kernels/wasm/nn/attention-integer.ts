// The parts of a pass of attention (attention-pass.ts) for keys and values of integers: int8 and int4 caches
// (cache.ts).
import type { Emit, Local } from "../engine/asm.ts";
import { BLOCK, fourWords, halvesOf, RECORD, ZEROS, type Pass } from "./attention-layout.ts";
import { HALF_SCALE, isFour } from "./cache.ts";
import { foldLanes, sumFour } from "./rows.ts";

/**
 * Products of four keys with the rows' queries in integers; then the scores of row r, without the scale of attention,
 * are left in the first of its sums.
 */
export function integerDots(pass: Pass): void {
  const { f, spec, each, locals: { rowAt, sums } } = pass; // prettier-ignore
  const halves = halvesOf(spec);
  const totals = halves.length > 1 ? f.locals("v128", each.length) : [];
  const word = f.local("v128");
  for (const r of each) f.set(rowAt[r], f.op("i32.add", pass.at.record, f.i32(r * pass.bytes + RECORD.codes)));
  halves.forEach((values, half) => {
    sumCodes(pass, values);
    if (half === 0) fourWords(pass, word, pass.scales.k!);
    const { scale, zero } = keyScale(pass, word, half);
    for (const r of each) {
      const s = sums[r][0];
      sumFour(f, sums[r], "i32x4.add");
      if (zero !== null) {
        const codes = f.load("v128.load32_splat", pass.at.record, r * pass.bytes + RECORD.codeSum + 4 * half);
        f.set(s, f.op("i32x4.sub", s, f.op("i32x4.mul", zero, codes)));
      }
      const both = f.op("f32x4.mul", scale, f.load("v128.load32_splat", pass.at.record, r * pass.bytes + RECORD.scale));
      f.set(s, f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", s), both));
      if (halves.length === 1) continue;
      if (half === 0) f.set(totals[r], f.get(s));
      else f.set(s, f.op("f32x4.add", totals[r], s));
    }
  });
}

/** Scale of a half of four keys, and the zero point where they have one, of their words. */
function keyScale({ f, spec }: Pass, word: Local, half: number): { readonly scale: Emit; readonly zero: Emit | null } {
  if (!isFour(spec.k)) return { scale: f.get(word), zero: null };
  const zero = f.op("v128.and", half === 0 ? word : f.op("i32x4.shr_u", word, f.i32(16)), f.constant32(15));
  if (spec.k === "int4") return { scale: f.op("v128.and", word, f.constant32(-16)), zero };
  const shifted = half === 0 ? f.op("i32x4.shl", word, f.i32(15)) : f.op("i32x4.shr_u", word, f.i32(1));
  return { scale: f.op("v128.and", shifted, f.constant32(HALF_SCALE)), zero };
}

/** The next `values` of four keys times those of the rows' queries, lane by lane into `sums`. */
function sumCodes(pass: Pass, values: number): void {
  const { f, spec, each, locals: { i, keys, rowAt, v, sums } } = pass; // prettier-ignore
  const four = isFour(spec.k);
  const bytes = four ? 8 : 16;
  const unroll = (values / 16) % 2 === 0 ? 2 : 1;
  for (const r of each) for (const sum of sums[r]) f.set(sum, f.constant32(0));
  f.set(i, f.i32(values / 16 / unroll));
  f.doWhile(() => {
    for (let u = 0; u < unroll; u++)
      keys.forEach((key, n) => {
        const [low, high] = [v[2], v[3]];
        if (four) {
          f.set(v[1], f.load("v128.load8x8_u", key, bytes * u));
          f.set(low, f.op("v128.and", v[1], f.constant16(15)));
          f.set(high, f.op("i16x8.shr_u", v[1], f.i32(4)));
        } else {
          f.set(low, f.load("v128.load8x8_s", key, bytes * u));
          f.set(high, f.load("v128.load8x8_s", key, bytes * u + 8));
        }
        for (const r of each) {
          const dot = (codes: Local, place: number): Emit => f.op("i32x4.dot_i16x8_s", codes, f.load("v128.load", rowAt[r], place));
          f.set(sums[r][n], f.op("i32x4.add", f.op("i32x4.add", sums[r][n], dot(low, 32 * u)), dot(high, 32 * u + 16)));
        }
      });
    for (const pointer of rowAt) f.bump(pointer, 32 * unroll);
    for (const pointer of keys) f.bump(pointer, bytes * unroll);
    f.bump(i, -1);
  }, i);
}

/**
 * Probabilities times the values' scales, as 16-bit codes of a scale for the block, which `unit` takes. A NaN becomes
 * 0: the sum of probabilities has it.
 */
function roundWeights(pass: Pass, unit: readonly Local[]): void {
  const { f, spec, at, each, locals: { end, j, v } } = pass; // prettier-ignore
  const four = spec.v === "int4";
  const word = f.local("v128");
  const there = (r: number): Emit => f.op("i32.add", f.op("i32.add", at.scores, f.i32(4 * BLOCK * r)), f.op("i32.shl", j, f.i32(2)));
  for (const r of each) f.set(unit[r], f.constant32(0));
  const quads = (each4: () => void): void => {
    f.set(j, f.i32(0));
    f.doWhile(
      () => {
        each4();
        f.bump(j, 4);
      },
      f.op("i32.lt_s", j, end),
    );
  };
  quads(() => {
    fourWords(pass, word, pass.scales.v!);
    if (four) {
      f.set(v[3], f.op("v128.and", word, f.constant32(15)));
      f.set(v[3], f.op("i16x8.narrow_i32x4_s", v[3], v[3]));
      f.store("i64.store", f.op("i32.add", at.scores, f.op("i32.shl", j, f.i32(1))), ZEROS, f.lane("i64x2.extract_lane", 0, v[3]));
      f.set(word, f.op("v128.and", word, f.constant32(-16)));
    }
    for (const r of each) {
      f.set(v[r], f.op("f32x4.mul", f.load("v128.load", there(r)), word));
      f.store("v128.store", there(r), 0, v[r]);
      f.set(unit[r], f.op("f32x4.max", unit[r], v[r]));
    }
  });
  for (const r of each) {
    foldLanes(f, "f32x4.max", unit[r]);
    f.set(unit[r], f.op("f32x4.mul", unit[r], f.constantF32(1 / 32767)));
  }
  quads(() => {
    for (const r of each) {
      f.set(v[r], f.op("i32x4.trunc_sat_f32x4_s", f.op("f32x4.nearest", f.op("f32x4.div", f.load("v128.load", there(r)), unit[r]))));
      f.set(v[r], f.op("i16x8.narrow_i32x4_s", v[r], v[r]));
      // in place: two bytes where there were four
      const into = f.op("i32.add", at.scores, f.op("i32.shl", j, f.i32(1)));
      f.store("i64.store", into, 4 * BLOCK * r, f.lane("i64x2.extract_lane", 0, v[r]));
    }
  });
}

/**
 * Weighted sums of integer values: 16 of each row at a time, two tokens in a product. A token beyond the last is that
 * again, with a weight of 0.
 */
export function integerValues(pass: Pass): void {
  const { f, spec, at, each, locals: { end, j, left, keys, factor, rowAt, v, sums } } = pass; // prettier-ignore
  const four = spec.v === "int4";
  const unit = f.locals("v128", each.length);
  const [zeros, pair] = f.locals("v128", 2);
  roundWeights(pass, unit);
  const weave = (from: number): number[] => Array.from({ length: 8 }, (_, i) => [from + i, 16 + from + i]).flat();
  for (let group = 0; group < spec.head / 16; group++) {
    const bytes = (four ? 8 : 16) * group;
    for (const r of each) for (const sum of sums[r]) f.set(sum, f.constant32(0));
    f.set(keys[0], f.get(at.v));
    f.set(j, f.i32(0));
    f.doWhile(
      () => {
        f.set(keys[1], f.op("i32.add", keys[0], at.vToken));
        f.set(keys[2], f.op("select", keys[1], keys[0], f.op("i32.lt_s", f.op("i32.add", j, f.i32(1)), end)));
        f.set(left, f.op("i32.add", at.scores, f.op("i32.shl", j, f.i32(1))));
        each.forEach((r) => f.set(v[r], f.load("v128.load32_splat", left, 4 * BLOCK * r)));
        const take = (n: number, codes: Emit): void => {
          f.set(pair, codes);
          for (const r of each) f.set(sums[r][n], f.op("i32x4.add", sums[r][n], f.op("i32x4.dot_i16x8_s", pair, v[r])));
        };
        if (four) {
          f.set(zeros, f.load("v128.load32_splat", left, ZEROS));
          f.set(v[2], f.shuffle(weave(0), f.load("v128.load64_zero", keys[0], bytes), f.load("v128.load64_zero", keys[2], bytes)));
          for (const [i, half] of (["low", "high"] as const).entries()) {
            f.set(v[3], f.op(`i16x8.extend_${half}_i8x16_u`, v[2]));
            take(i, f.op("i16x8.sub", f.op("v128.and", v[3], f.constant16(15)), zeros));
            take(i + 2, f.op("i16x8.sub", f.op("i16x8.shr_u", v[3], f.i32(4)), zeros));
          }
        } else {
          f.set(v[2], f.load("v128.load", keys[0], bytes));
          f.set(v[3], f.load("v128.load", keys[2], bytes));
          for (const from of [0, 8]) {
            f.set(zeros, f.shuffle(weave(from), v[2], v[3]));
            take(from / 4, f.op("i16x8.extend_low_i8x16_s", zeros));
            take(from / 4 + 1, f.op("i16x8.extend_high_i8x16_s", zeros));
          }
        }
        f.set(keys[0], f.op("i32.add", keys[1], at.vToken));
        f.bump(j, 2);
      },
      f.op("i32.lt_s", j, end),
    );
    for (const r of each)
      sums[r].forEach((sum, n) => {
        const place = 64 * group + 16 * n;
        const before = f.op("f32x4.mul", f.load("v128.load", rowAt[r], place), factor[r]);
        f.store("v128.store", rowAt[r], place, f.op("f32x4.add", before, f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", sum), unit[r])));
      });
  }
}
