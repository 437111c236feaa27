// AdaRound of one layer by the paper's steps (Nagel et al., arXiv 2004.10568, equations 21 to 25): h(V) = clip(1.2
// sigmoid(V) - 0.1), the regulariser 1 - |2 h - 1|^beta from a fifth of the steps on, beta on half a cosine from 20 to
// 2, Adam (Kingma and Ba 2015); then coordinate descent on single roundings. Rows are independent, so a row at a time.

export interface AdaRoundCase {
  /** The row over its scales, and the scale of each weight. */
  readonly scaled: readonly number[];
  readonly steps: readonly number[];
  /** Smallest and largest code. */
  readonly low: number;
  readonly high: number;
  readonly hessian: readonly (readonly number[])[];
  readonly iterations: number;
  readonly rate: number;
  readonly lambda: number;
}

/** Codes before descent from the learned roundings, and from the nearest ones: each with its output error. */
export function adaroundRow(c: AdaRoundCase): { codes: number[]; error: number }[] {
  const { hessian, steps, scaled } = c;
  const k = scaled.length;
  const mean = hessian.reduce((sum, row, i) => sum + row[i], 0) / k;
  const floor = scaled.map(Math.floor);
  // weights beyond the codes have no choice
  const free = floor.map((f) => f >= c.low && f + 1 <= c.high);
  const clip = (v: number) => Math.min(c.high, Math.max(c.low, v));
  const errorsOf = (codes: readonly number[]) => codes.map((q, j) => (q - scaled[j]) * steps[j]);
  const times = (d: readonly number[]) => hessian.map((row) => row.reduce((sum, v, j) => sum + v * d[j], 0));
  const h = (v: number) => Math.min(1, Math.max(0, 1.2 / (1 + Math.exp(-v)) - 0.1));
  // h(v) is the fraction at the start
  const v = scaled.map((q, j) => -Math.log(1.2 / (Math.min(0.99, Math.max(0.01, q - floor[j])) + 0.1) - 1));
  const [first, second] = [v.map(() => 0), v.map(() => 0)];
  for (let t = 1; t <= c.iterations; t++) {
    const d = errorsOf(floor.map((f, j) => (free[j] ? f + h(v[j]) : clip(Math.round(scaled[j])))));
    const slopes = times(d);
    const share = (t - 1) / c.iterations;
    const beta = 2 + 9 * (1 + Math.cos((Math.PI * (share - 0.2)) / 0.8));
    for (let j = 0; j < k; j++) {
      if (!free[j]) continue;
      // of the error in units of a step at a mean input
      let g = (2 * slopes[j]) / (mean * steps[j]);
      const r = 2 * h(v[j]) - 1;
      if (share >= 0.2) g -= c.lambda * 2 * beta * Math.sign(r) * Math.abs(r) ** (beta - 1);
      const s = 1 / (1 + Math.exp(-v[j]));
      const outwards = (h(v[j]) === 0 && g > 0) || (h(v[j]) === 1 && g < 0);
      const slope = outwards ? 0 : g * 1.2 * s * (1 - s);
      first[j] = 0.9 * first[j] + 0.1 * slope;
      second[j] = 0.999 * second[j] + 0.001 * slope ** 2;
      const step = first[j] / (1 - 0.9 ** t) / (Math.sqrt(second[j] / (1 - 0.999 ** t)) + 1e-12);
      v[j] = Math.min(8, Math.max(-8, v[j] - c.rate * step));
    }
  }
  const learned = floor.map((f, j) => (free[j] ? f + (h(v[j]) >= 0.5 ? 1 : 0) : clip(Math.round(scaled[j]))));
  const nearest = floor.map((f, j) => (free[j] ? f + (scaled[j] - f > 0.5 ? 1 : 0) : clip(Math.round(scaled[j]))));
  return [learned, nearest].map((start) => {
    const codes = [...start];
    for (let changed = true; changed;) {
      changed = false;
      for (let j = 0; j < k; j++) {
        if (!free[j]) continue;
        const other = codes.with(j, codes[j] === floor[j] ? floor[j] + 1 : floor[j]);
        if (errorOf(errorsOf(other)) >= errorOf(errorsOf(codes)) * (1 - 1e-12)) continue;
        codes[j] = other[j];
        changed = true;
      }
    }
    return { codes, error: errorOf(errorsOf(codes)) };
  });
  function errorOf(d: readonly number[]): number {
    return times(d).reduce((sum, s, j) => sum + s * d[j], 0);
  }
}
