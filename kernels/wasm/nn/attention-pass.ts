// One pass of attention (attention.ts): a block of keys for one or two query rows. Scores of the block, probabilities
// relative to the greatest score so far, then the weighted sums of its values. Keys and values are read as the cache
// holds them (cache.ts):
//   float32, float16: products in float32
//   int8, int4 keys: the query is rounded to 16 bits, a scale for the row; products are exact in 32 bits, then times
//   both scales
//   int8, int4 values: probabilities times the values' scales are rounded to 16 bits, a scale for the block; products
//   are exact in 32 bits, two tokens at a time
import type { FunctionBuilder, Local } from "../engine/asm.ts";
import { integerDots, integerValues } from "./attention-integer.ts";
import { BLOCK, greatest, least, PASS, passScales, RECORD, recordBytes, type Pass, type PassSpec } from "./attention-layout.ts";
import { cacheRowBytes, halves, hasScales } from "./cache.ts";
import { decay4, tanh4 } from "./math.ts";
import { foldLanes, loadSome, sumFour } from "./rows.ts";

/** Products of four keys with the rows' queries, summed lane by lane into `sums`. */
function floatDots(pass: Pass): void {
  const { f, spec, each, madd, locals: { i, keys, rowAt, v, sums } } = pass; // prettier-ignore
  const half = spec.k === "float16";
  const unroll = [4, 2, 1].find((n) => (spec.head / 4) % n === 0)!;
  for (const r of each) {
    f.set(rowAt[r], pass.record(r, "q"));
    for (const sum of sums[r]) f.set(sum, f.constant32(0));
  }
  f.set(i, f.i32(spec.head / 4 / unroll));
  f.doWhile(() => {
    for (let u = 0; u < unroll; u++) {
      each.forEach((r) => f.set(v[r], f.load("v128.load", rowAt[r], 16 * u)));
      keys.forEach((key, n) => {
        f.set(v[2], half ? halves(f, f.load("v128.load16x4_u", key, 8 * u)) : f.load("v128.load", key, 16 * u));
        each.forEach((r) => madd(sums[r][n], v[r], v[2]));
      });
    }
    if (half) {
      for (const pointer of rowAt) f.bump(pointer, 16 * unroll);
      for (const pointer of keys) f.bump(pointer, 8 * unroll);
    } else for (const pointer of [...rowAt, ...keys]) f.bump(pointer, 16 * unroll);
    f.bump(i, -1);
  }, i);
}

/** Scores of the block into memory, the greatest of each row into `most`. */
function scores(pass: Pass): void {
  const { f, spec, at, each, scale, cap, record, locals: { end, j, left, keys, low, high, most, v, sums } } = pass; // prettier-ignore
  f.set(j, f.i32(0));
  f.doWhile(
    () => {
      // keys beyond the last repeat it
      keys.forEach((key, n) => {
        const index = n === 0 ? f.get(j) : least(f, f.op("i32.add", j, f.i32(n)), f.op("i32.sub", end, f.i32(1)));
        f.set(key, f.op("i32.add", at.k, f.op("i32.mul", index, at.kToken)));
      });
      const integers = hasScales(spec.k ?? "float32");
      if (integers) integerDots(pass);
      else floatDots(pass);
      each.forEach((r) => {
        const s = sums[r][0];
        if (!integers) sumFour(f, sums[r]);
        f.set(s, f.op("f32x4.mul", s, f.op("f32x4.splat", scale)));
        if (spec.softcap) {
          f.set(s, f.op("f32x4.div", s, f.op("f32x4.splat", cap)));
          f.set(s, f.op("f32x4.mul", tanh4(f, s, spec.relaxed), f.op("f32x4.splat", cap)));
        }
        if (spec.mask) {
          const address = f.op("i32.add", record(r, "mask"), f.op("i32.shl", f.op("i32.add", at.first, j), f.i32(2)));
          f.set(left, f.op("i32.sub", end, j));
          f.if(
            f.op("i32.ge_s", left, f.i32(4)),
            () => f.set(v[3], f.load("v128.load", address)),
            () => loadSome(f, v[3], address, left, f.constant32(0)),
          );
          f.set(s, f.op("f32x4.add", s, v[3]));
        }
        const lanes = f.constant("lanes", f.v128([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]));
        f.set(v[2], f.op("i32x4.add", f.op("i32x4.splat", j), lanes));
        const inside = f.op("v128.and", f.op("i32x4.ge_s", v[2], low[r]), f.op("i32x4.lt_s", v[2], high[r]));
        f.set(s, f.op("v128.bitselect", s, f.constantF32(-Infinity), inside));
        // pmax is one instruction, max some nine; a NaN that it passes over makes the sum NaN
        f.set(most[r], f.op("f32x4.pmax", most[r], s));
        f.store("v128.store", f.op("i32.add", at.scores, f.op("i32.shl", j, f.i32(2))), 4 * BLOCK * r, s);
      });
      f.bump(j, 4);
    },
    f.op("i32.lt_s", j, end),
  );
}

/**
 * touch(scores, k, v, kToken, vToken, count, streams): reads a word of each line of a block before any row does. Rows
 * read keys and values some bytes of each token at a time; from memory they come faster as streams, of which a
 * processor prefetches several side by side: keys and values in `streams` parts each.
 */
export function writeTouch(f: FunctionBuilder, spec: PassSpec): void {
  const [scores, k, v, kToken, vToken, count, streams] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
  const [part, token, row, line, left, sum] = f.locals("i32", 6);
  const bytes = (side: "k" | "v"): number => cacheRowBytes(spec[side] ?? "float32", spec.head);
  const sides = [{ base: k, stride: kToken, bytes: bytes("k") }, { base: v, stride: vToken, bytes: bytes("v") }]; // prettier-ignore
  f.set(part, f.op("i32.div_u", f.op("i32.add", count, f.op("i32.sub", streams, f.i32(1))), streams));
  f.set(token, f.i32(0));
  f.doWhile(
    () => {
      f.set(row, f.get(token));
      f.set(left, f.get(streams));
      f.doWhile(() => {
        for (const side of sides) {
          f.set(line, f.op("i32.add", side.base, f.op("i32.mul", row, side.stride)));
          for (let place = 0; place < side.bytes; place += 64) f.set(sum, f.op("i32.or", sum, f.load("i32.load8_u", line, place)));
        }
        f.set(row, least(f, f.op("i32.add", row, part), f.op("i32.sub", count, f.i32(1))));
        f.bump(left, -1);
      }, left);
      f.bump(token, 1);
    },
    f.op("i32.lt_s", token, part),
  );
  // nobody reads it
  f.store("i32.store", scores, 2 * 4 * BLOCK, sum);
}

/**
 * Probabilities in the scores' place, relative to the greatest score so far; what was summed before shrinks by
 * `factor`.
 */
function probabilities(pass: Pass): void {
  const { f, at, each, bytes, record, locals: { end, i, j, most, factor, rowAt, sums } } = pass; // prettier-ignore
  each.forEach((r) => {
    const [x, sum] = sums[r];
    foldLanes(f, "f32x4.pmax", most[r]);
    f.set(x, f.op("f32x4.sub", factor[r], most[r]));
    f.set(factor[r], decay4(f, x, pass.spec.relaxed));
    f.set(sum, f.constant32(0));
    f.set(j, f.get(at.scores));
    f.set(i, f.op("i32.add", at.scores, f.op("i32.shl", end, f.i32(2))));
    const exp = decay4(f, x, pass.spec.relaxed);
    f.doWhile(
      () => {
        f.set(x, f.op("f32x4.sub", f.load("v128.load", j, 4 * BLOCK * r), most[r]));
        f.set(x, exp);
        f.set(sum, f.op("f32x4.add", sum, x));
        f.store("v128.store", j, 4 * BLOCK * r, x);
        f.bump(j, 16);
      },
      f.op("i32.lt_u", j, i),
    );
    foldLanes(f, "f32x4.add", sum);
    f.set(x, f.load("v128.load32_splat", at.record, r * bytes + RECORD.sum));
    f.set(sum, f.op("f32x4.add", f.op("f32x4.mul", x, factor[r]), sum));
    f.store("f32.store", at.record, r * bytes + RECORD.sum, f.lane("f32x4.extract_lane", 0, sum));
    f.store("f32.store", at.record, r * bytes + RECORD.most, f.lane("f32x4.extract_lane", 0, most[r]));
    f.set(rowAt[r], record(r, "y"));
  });
}

/** Weighted sums of float values, up to 16 of each row at a time. */
function floatValues({ f, spec, at, each, madd, locals: { i, j, keys, factor, rowAt, v, sums } }: Pass): void {
  const half = spec.v === "float16";
  for (let from = 0; from < spec.head / 4;) {
    const width = Math.min(4, spec.head / 4 - from);
    const span = Array.from({ length: width }, (_, n) => n);
    const place = 16 * from;
    for (const r of each)
      for (const n of span) f.set(sums[r][n], f.op("f32x4.mul", f.load("v128.load", rowAt[r], place + 16 * n), factor[r]));
    f.set(keys[0], f.get(at.v));
    f.set(j, f.get(at.scores));
    f.doWhile(
      () => {
        each.forEach((r) => f.set(v[r], f.load("v128.load32_splat", j, 4 * BLOCK * r)));
        for (const n of span) {
          if (half) f.set(v[2], halves(f, f.load("v128.load16x4_u", keys[0], place / 2 + 8 * n)));
          else f.set(v[2], f.load("v128.load", keys[0], place + 16 * n));
          each.forEach((r) => madd(sums[r][n], v[r], v[2]));
        }
        f.bump(keys[0], at.vToken);
        f.bump(j, 4);
      },
      f.op("i32.lt_u", j, i),
    );
    for (const r of each) for (const n of span) f.store("v128.store", rowAt[r], place + 16 * n, sums[r][n]);
    from += width;
  }
}

/**
 * One block of keys for one or two rows: parameters are `PASS`, the words beside the cache, the scale of attention and
 * the cap.
 */
export function writePass(f: FunctionBuilder, spec: PassSpec, rows: 1 | 2): void {
  const at = Object.fromEntries(PASS.map((name, i) => [name, f.param(i)])) as Record<(typeof PASS)[number], Local>;
  const beside = passScales(spec);
  const last = PASS.length + beside.length;
  const each = Array.from({ length: rows }, (_, r) => r);
  const bytes = recordBytes(spec);
  const pass: Pass = {
    f,
    spec,
    at,
    scales: Object.fromEntries(beside.map((side, i) => [side, f.param(PASS.length + i)])),
    scale: f.param(last),
    cap: f.param(last + 1),
    each,
    bytes,
    record: (r, name) => f.load("i32.load", at.record, r * bytes + RECORD[name]),
    madd: (sum, a, b) => f.set(sum, spec.relaxed ? f.op("f32x4.relaxed_madd", a, b, sum) : f.op("f32x4.add", sum, f.op("f32x4.mul", a, b))),
    locals: {
      end: f.local("i32"),
      j: f.local("i32"),
      i: f.local("i32"),
      left: f.local("i32"),
      keys: f.locals("i32", 4),
      low: f.locals("v128", rows),
      high: f.locals("v128", rows),
      most: f.locals("v128", rows),
      factor: f.locals("v128", rows),
      rowAt: f.locals("i32", rows),
      v: f.locals("v128", 4),
      sums: each.map(() => f.locals("v128", 4)),
    },
  };
  const { end, low, high, most, factor } = pass.locals;
  const seen = each.map((r) => f.op("i32.sub", pass.record(r, "high"), at.first));
  f.set(end, least(f, at.count, rows === 1 ? seen[0] : greatest(f, seen[0], seen[1])));
  f.if(f.op("i32.gt_s", end, f.i32(0)), () => {
    for (const r of each) {
      f.set(low[r], f.op("i32x4.splat", f.op("i32.sub", pass.record(r, "low"), at.first)));
      f.set(high[r], f.op("i32x4.splat", least(f, seen[r], end)));
      f.set(most[r], f.load("v128.load32_splat", at.record, r * bytes + RECORD.most));
      f.set(factor[r], f.get(most[r]));
    }
    scores(pass);
    probabilities(pass);
    if (hasScales(spec.v ?? "float32")) integerValues(pass);
    else floatValues(pass);
  });
}
