// Oracle of the block formats, from the wording of their specifications and nothing of the library. Element grids are
// listed or built field by field; the nearest code is found by looking at all of them. Powers of two are found by
// stepping, so no logarithm and no bit trick is shared.
const f = Math.fround;

/**
 * Value by code of a sign, exponent, mantissa format without infinity; `cut` codes at the top of the magnitudes are not
 * numbers.
 */
export function floatGrid(E: number, M: number, bias: number, cut: number): (number | null)[] {
  const half = 2 ** (E + M);
  return Array.from({ length: 2 * half }, (_, code) => {
    const m = code % half;
    if (m >= half - cut) return null;
    const e = Math.floor(m / 2 ** M);
    const frac = (m % 2 ** M) / 2 ** M;
    const v = e === 0 ? frac * 2 ** (1 - bias) : (1 + frac) * 2 ** (e - bias);
    return code >= half ? -v : v;
  });
}

const fixedGrid = (bits: number, fraction: number): (number | null)[] =>
  Array.from({ length: 2 ** bits }, (_, c) => {
    const v = c >= 2 ** (bits - 1) ? c - 2 ** bits : c;
    return v === -(2 ** (bits - 1)) ? null : v / 2 ** fraction;
  });

export interface OracleElement {
  readonly grid: (number | null)[];
  readonly emax: number;
  readonly max: number;
  readonly mantissa: number;
}

export const elements: Record<string, OracleElement> = {
  mxfp8_e4m3: { grid: floatGrid(4, 3, 7, 1), emax: 8, max: 448, mantissa: 3 },
  mxfp8_e5m2: { grid: floatGrid(5, 2, 15, 4), emax: 15, max: 57344, mantissa: 2 },
  mxfp6_e2m3: { grid: floatGrid(2, 3, 1, 0), emax: 2, max: 7.5, mantissa: 3 },
  mxfp6_e3m2: { grid: floatGrid(3, 2, 3, 0), emax: 4, max: 28, mantissa: 2 },
  mxfp4: { grid: floatGrid(2, 1, 1, 0), emax: 2, max: 6, mantissa: 1 },
  mxint8: { grid: fixedGrid(8, 6), emax: 0, max: 127 / 64, mantissa: 6 },
  mxint6: { grid: fixedGrid(6, 4), emax: 0, max: 31 / 16, mantissa: 4 },
  mxint4: { grid: fixedGrid(4, 2), emax: 0, max: 7 / 4, mantissa: 2 },
};

/** Nearest code of t (saturating), ties to the even code; the sign of zero is kept where the grid has two zeros. */
export function nearest(grid: (number | null)[], wanted: number): number {
  const t = Math.max(-1e6, Math.min(1e6, wanted)); // distances stay exact
  let best = -1;
  for (let c = 0; c < grid.length; c++) {
    const v = grid[c];
    if (v === null) continue;
    const negative = t < 0 || Object.is(t, -0);
    if (v === 0 && Object.is(v, -0) !== negative && grid.some((w) => Object.is(w, -0))) continue;
    if (best < 0) best = c;
    const [d, db] = [Math.abs(v - t), Math.abs(grid[best]! - t)];
    if (d < db || (d === db && v !== grid[best] && c % 2 === 0)) best = c;
  }
  return best;
}

/** floor(log2 v) by stepping. */
export function floorLog2(v: number): number {
  let e = 0;
  while (2 ** e > v) e--;
  while (2 ** (e + 1) <= v) e++;
  return e;
}

/** Exponent of the shared scale by rule, before clamping. */
export function sharedExponent(rule: string, amax: number, el: OracleElement): number {
  const e = floorLog2(amax);
  switch (rule) {
    case "floor":
      return e - el.emax;
    case "ceil":
      return (2 ** e === amax ? e : e + 1) - el.emax;
    case "rceil": {
      let x = e - el.emax - 2;
      while (2 ** x * el.max < amax) x++;
      return x;
    }
    case "even": {
      // amax as 1.mmm with the mantissa bits of the element, halves up
      const rounded = Math.floor((amax / 2 ** e) * 2 ** el.mantissa + 0.5) / 2 ** el.mantissa;
      return floorLog2(rounded * 2 ** e) - el.emax;
    }
    default:
      throw new Error(rule);
  }
}

/** One MX block: scale byte and codes; 255 and no codes where a value is not finite. */
export function mxBlock(name: string, x: Float32Array, rule = "floor"): { scale: number; codes: number[] | null; dq: number[] } {
  const el = elements[name];
  if (x.some((v) => !Number.isFinite(v))) return { scale: 255, codes: null, dq: [...x].map(() => NaN) };
  const amax = x.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  const exponent = amax === 0 ? -127 : Math.max(-127, sharedExponent(rule, amax, el));
  const codes = [...x].map((v) => nearest(el.grid, v / 2 ** exponent));
  return { scale: exponent + 127, codes, dq: codes.map((c) => f(el.grid[c]! * 2 ** exponent)) };
}

export const E4M3 = floatGrid(4, 3, 7, 1);
const E2M1 = floatGrid(2, 1, 1, 0);
const e4m3 = (v: number) => nearest(E4M3, Math.min(v, 448));

export interface Nv {
  readonly tensor: number;
  readonly scales: number[];
  readonly codes: number[];
}

/** NVFP4 of a whole tensor in blocks of 16, in float32 steps. */
export function nvfp4(x: Float32Array, rule: "torchao" | "te" | "modelopt"): Nv {
  const amaxOf = (v: Float32Array) => v.reduce((m, a) => Math.max(m, Math.abs(a)), 0);
  const amax = amaxOf(x);
  let tensor = amax === 0 ? 1 : f(amax / 2688);
  const encode = amax === 0 ? 1 : Math.min(f(2688 / amax), 3.4028234663852886e38);
  if (rule === "te") tensor = f(1 / encode);
  const scales: number[] = [];
  const codes: number[] = [];
  for (let i = 0; i < x.length; i += 16) {
    const block = x.subarray(i, i + 16);
    const a = amaxOf(block);
    let s: number;
    if (rule === "torchao") s = Math.max(f(f(a / 6) / tensor), 2 ** -6);
    else if (rule === "te") s = f(f(a / 6) * encode);
    else s = a === 0 ? 1 : Math.max(f(a / f(6 * tensor)), 2 ** -9);
    const code = e4m3(s);
    const stored = E4M3[code]!;
    scales.push(code);
    for (const v of block) {
      const plain = rule === "torchao" || v !== 0 ? v : 0;
      let t: number;
      if (rule === "torchao") t = f(v * f(f(1 / tensor) / stored));
      else if (rule === "te") t = f(plain * Math.min(f(1 / f(stored * tensor)), 3.4028234663852886e38));
      else t = f(plain / f(stored * tensor));
      codes.push(nearest(E2M1, t));
    }
  }
  return { tensor, scales, codes };
}

export const E2M1_GRID = E2M1 as number[];
