// Rounding by exact distance: of all finite values of a format the nearest to an exact rational, ties to the even code.
// An oracle: imports nothing of the library; the values are handed in (they are checked against published tables
// elsewhere).
import { addR, compareR, exactDouble, rational, type Rational } from "./rational.ts";

export interface Grid {
  readonly codes: number[];
  readonly values: Rational[];
  /** Next value beyond the largest: at or above the midpoint a result overflows. null: it never does. */
  readonly beyond: Rational | null;
}

/** Distinct finite values ascending; of equal ones the first code given. */
export function gridOf(table: ArrayLike<number>, beyond: number | null, skip: readonly number[] = []): Grid {
  const entries: { code: number; v: number }[] = [];
  for (let code = 0; code < table.length; code++)
    if (Number.isFinite(table[code]) && !skip.includes(code)) entries.push({ code, v: table[code] });
  entries.sort((a, b) => a.v - b.v || (Object.is(a.v, -0) ? 1 : 0) - (Object.is(b.v, -0) ? 1 : 0) || a.code - b.code);
  const distinct = entries.filter((e, i) => i === 0 || e.v !== entries[i - 1].v);
  return {
    codes: distinct.map((e) => e.code),
    values: distinct.map((e) => exactDouble(e.v)),
    beyond: beyond === null ? null : exactDouble(beyond),
  };
}

/** The code, or "above" / "below" for an overflow. */
export function nearest(r: Rational, grid: Grid): number | "above" | "below" {
  const { values, codes, beyond } = grid;
  const last = values.length - 1;
  const half = (a: Rational, b: Rational) => {
    const s = addR(a, b);
    return rational(s.n, s.d * 2n);
  };
  if (compareR(r, values[last]) >= 0) {
    if (beyond === null) return codes[last];
    const c = compareR(r, half(values[last], beyond));
    return c < 0 || (c === 0 && codes[last] % 2 === 0) ? codes[last] : "above";
  }
  if (compareR(r, values[0]) <= 0) {
    if (beyond === null) return codes[0];
    const mirrored = rational(-beyond.n, beyond.d);
    const c = compareR(r, half(values[0], mirrored));
    return c > 0 || (c === 0 && codes[0] % 2 === 0) ? codes[0] : "below";
  }
  let i = 0;
  let j = last;
  while (j - i > 1) {
    const mid = (i + j) >> 1;
    if (compareR(values[mid], r) <= 0) i = mid;
    else j = mid;
  }
  const c = compareR(r, half(values[i], values[j]));
  if (c !== 0) return c < 0 ? codes[i] : codes[j];
  return codes[i] % 2 === 0 ? codes[i] : codes[j];
}
