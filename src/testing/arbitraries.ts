// fast-check arbitraries of lowbit: codes, values biased to where formats go wrong (ties, their neighbours, the ends),
// blocks of float32 as tensors have them. They shrink toward small codes, zero and short blocks.
import * as fc from "fast-check";
import { nextDown, nextUp } from "../../formats/core/round.ts";
import type { NumberFormat } from "../../formats/core/types.ts";
import { checkScalar } from "./law.ts";

/**
 * Any code of a format.
 * @example fc.assert(fc.property(arbitraryCode(int4), (code) => int4.encode(int4.decode(code)) === code))
 */
export function arbitraryCode(format: NumberFormat): fc.Arbitrary<number> {
  checkScalar("arbitraryCode", format);
  return fc.integer({ min: 0, max: 2 ** format.bits - 1 });
}

/** `steps` doubles up or down from x. */
function walk(x: number, steps: number): number {
  for (let i = 0; i < Math.abs(steps); i++) x = steps > 0 ? nextUp(x) : nextDown(x);
  return x;
}

/**
 * A decision boundary: the format's own where it is known, else (wide formats) the midpoint of two neighbouring codes.
 */
function arbitraryTie(format: NumberFormat): fc.Arbitrary<number> {
  const { order } = format;
  if (order !== null) {
    if (order.boundaries.length === 0) return fc.constant(0);
    return fc.integer({ min: 0, max: order.boundaries.length - 1 }).map((i) => order.boundaries[i]);
  }
  return arbitraryCode(format).map((c) => {
    const [a, b] = [format.decode(c), format.decode(c === 2 ** format.bits - 1 ? c - 1 : c + 1)];
    return Number.isFinite(a) && Number.isFinite(b) ? a / 2 + b / 2 : 0;
  });
}

/**
 * Numbers to encode: representable values, ties and doubles within two steps of them, the ends of the range and beyond,
 * plain numbers.
 * @param options specials: also NaN, infinities and -0 (default false)
 * @example fc.assert(fc.property(arbitraryValue(int4), (x) => Math.abs(int4.decode(int4.encode(x))) <= 8))
 */
export function arbitraryValue(format: NumberFormat, options: { specials?: boolean } = {}): fc.Arbitrary<number> {
  checkScalar("arbitraryValue", format);
  const { max, min, minPositive } = format.limits;
  const small = Number.isNaN(minPositive) ? 1 : minPositive;
  const reach = Math.min(Math.max(Math.abs(max), Math.abs(min)) * 2, Number.MAX_VALUE);
  const value = arbitraryCode(format).map((c) => {
    const v = format.decode(c);
    return Number.isFinite(v) ? v : 0;
  });
  const steps = fc.integer({ min: -2, max: 2 });
  const near = (base: fc.Arbitrary<number>) => fc.tuple(base, steps).map(([x, n]) => walk(x, n));
  const ends = fc.constantFrom(
    0,
    max,
    min,
    2 * max,
    small,
    -small,
    small / 2,
    -small / 2,
    5e-324,
    -5e-324,
    Number.MAX_VALUE,
    -Number.MAX_VALUE,
  );
  return fc.oneof(
    { withCrossShrink: true },
    fc.integer({ min: -8, max: 8 }).map((n) => n + 0), // first: counterexamples shrink to small integers where they can
    value,
    arbitraryTie(format),
    near(arbitraryTie(format)),
    near(value),
    ends.filter((x) => Number.isFinite(x)),
    fc.double({ min: -reach, max: reach, noNaN: true }),
    fc.double({ min: -4 * small, max: 4 * small, noNaN: true }),
    ...(options.specials ? [fc.constantFrom(NaN, Infinity, -Infinity, -0)] : []),
  );
}

/**
 * Float32 data of `length` values: bell-shaped, with outliers, all zero, constant, tiny, with one value only; never NaN
 * unless asked for.
 * @param options nonFinite: one value is NaN or infinite (default false)
 * @throws RangeError for the length
 * @example fc.assert(fc.property(arbitraryBlock(32), (x) => x.every(Number.isFinite)))
 */
export function arbitraryBlock(length: number, options: { nonFinite?: boolean } = {}): fc.Arbitrary<Float32Array> {
  if (!Number.isSafeInteger(length) || length < 1)
    throw new RangeError(`arbitraryBlock length: expected a positive integer, got ${String(length)}.`);
  const unit = fc.double({ min: -1, max: 1, noNaN: true });
  // The sum of four is bell-shaped enough, and shrinks to zero.
  const bell = fc
    .array(fc.tuple(unit, unit, unit, unit), { minLength: length, maxLength: length })
    .map((t) => t.map(([a, b, c, d]) => a + b + c + d));
  const scaled = fc.tuple(bell, fc.integer({ min: -12, max: 12 })).map(([x, e]) => x.map((v) => v * 2 ** e));
  const outliers = fc
    .tuple(bell, fc.array(fc.tuple(fc.nat({ max: length - 1 }), fc.integer({ min: -100, max: 100 })), { minLength: 1, maxLength: 3 }))
    .map(([x, spikes]) => {
      for (const [i, v] of spikes) x[i] = v;
      return x;
    });
  const zeros = fc.constant(new Array<number>(length).fill(0));
  const constant = fc.integer({ min: -9, max: 9 }).map((v) => new Array<number>(length).fill(v / 2));
  const single = fc.tuple(fc.nat({ max: length - 1 }), unit).map(([at, v]) => {
    const x = new Array<number>(length).fill(0);
    x[at] = v;
    return x;
  });
  const any = fc.oneof({ withCrossShrink: true }, zeros, constant, single, bell, outliers, scaled).map((x) => Float32Array.from(x));
  if (!options.nonFinite) return any;
  return fc.tuple(any, fc.nat({ max: length - 1 }), fc.constantFrom(NaN, Infinity, -Infinity)).map(([x, at, v]) => {
    x[at] = v;
    return x;
  });
}

/**
 * A matrix [rows, k] of such data, rows 1..3; k runs over whole and broken blocks of the size given.
 * @example fc.assert(fc.property(arbitraryMatrix(32), ({ data, rows, k }) => data.length === rows * k))
 */
export function arbitraryMatrix(
  blockSize: number,
  options: { whole?: boolean } = {},
): fc.Arbitrary<{ data: Float32Array; rows: number; k: number }> {
  const size = Math.min(blockSize, 4096);
  const ks = options.whole ? [size, 2 * size] : [size, 1, Math.max(1, size - 1), size + 1, 2 * size + Math.ceil(size / 2)];
  return fc
    .tuple(fc.integer({ min: 1, max: 3 }), fc.constantFrom(...ks))
    .chain(([rows, k]) => arbitraryBlock(rows * k).map((data) => ({ data, rows, k })));
}
