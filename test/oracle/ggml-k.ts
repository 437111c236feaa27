// What ggml's reference quantizers make of a block of Q4_K and Q6_K, as the values that it decodes to: written from the
// published rule (ggml-quants.c), in float64, run by run. Null where a float16 super scale overflows. Imports nothing
// of the library.

const clamp = (v: number, low: number, high: number) => Math.min(high, Math.max(low, v));
function nearest(v: number): number {
  const below = Math.floor(v);
  return v - below === 0.5 ? below + (Math.abs(below) % 2) : Math.round(v);
}
function half(v: number): number {
  const a = Math.abs(v);
  if (a === 0) return 0;
  const unit = 2 ** (Math.max(-14, Math.floor(Math.log2(a))) - 10);
  return Math.sign(v) * nearest(a / unit) * unit;
}

/** make_qkx2_quants with 15 steps, weights rms + |x|, 21 trial widths: [scale, minimum]. */
function run4(x: number[]): [number, number] {
  const rms = Math.sqrt(x.reduce((s, v) => s + v * v, 0) / x.length);
  const w = x.map((v) => rms + Math.abs(v));
  const min = Math.min(0, ...x);
  const max = Math.max(...x);
  if (max === min) return [0, -min];
  const total = (f: (i: number) => number) => x.reduce((s, _, i) => s + f(i), 0);
  const codes = (width: number) => x.map((v) => clamp(nearest((width / (max - min)) * (v - min)), 0, 15));
  const error = (q: number[], s: number, m: number) => total((i) => w[i] * (s * q[i] + m - x[i]) ** 2);
  let best = [(max - min) / 15, min];
  let least = error(codes(15), best[0], min);
  for (let step = 0; step <= 20; step++) {
    const q = codes(14 + 0.1 * step);
    const [sw, sx, sl, sll, sxl] = [total((i) => w[i]), total((i) => w[i] * x[i]), total((i) => w[i] * q[i]), total((i) => w[i] * q[i] ** 2), total((i) => w[i] * q[i] * x[i])]; // prettier-ignore
    const det = sw * sll - sl * sl;
    if (det <= 0) continue;
    let [s, m] = [(sw * sxl - sx * sl) / det, (sll * sx - sl * sxl) / det];
    if (m > 0) [s, m] = [sxl / sll, 0];
    if (error(q, s, m) < least) [least, best] = [error(q, s, m), [s, m]];
  }
  return [best[0], -best[1]];
}

export function referenceQ4K(x: Float32Array): Float64Array | null {
  const runs = Array.from({ length: 8 }, (_, r) => run4(Array.from(x.subarray(32 * r, 32 * r + 32))));
  const top = [0, 1].map((i) => Math.max(0, ...runs.map((r) => r[i])));
  const [d, dmin] = top.map((t) => half(t / 63));
  if (d > 65504 || dmin > 65504) return null;
  const code = (v: number, t: number) => (t > 0 ? Math.min(63, nearest((63 / t) * v)) : 0);
  return Float64Array.from(x, (v, i) => {
    const [s, m] = [d * code(runs[i >> 5][0], top[0]), dmin * code(runs[i >> 5][1], top[1])];
    return s === 0 ? -m : s * clamp(nearest((v + m) / s), 0, 15) - m;
  });
}

/** make_qx_quants for 64 levels, weights x^2. */
function run6(x: number[]): number {
  const extreme = x.reduce((a, v) => (Math.abs(v) > Math.abs(a) ? v : a), 0);
  if (Math.abs(extreme) < 1e-15) return 0;
  let [scale, best] = [0, 0];
  for (const step of [0, ...Array.from({ length: 19 }, (_, i) => i - 9).filter((i) => i !== 0)]) {
    let [xl, ll] = [0, 0];
    for (const v of x) {
      const q = clamp(nearest((-(32 + 0.1 * step) / extreme) * v), -32, 31);
      xl += v ** 3 * q;
      ll += v * v * q * q;
    }
    if (ll > 0 && (step === 0 || xl * xl > best * ll)) [scale, best] = [xl / ll, (xl / ll) * xl];
  }
  return scale;
}

export function referenceQ6K(x: Float32Array): Float64Array | null {
  const runs = Array.from({ length: 16 }, (_, r) => run6(Array.from(x.subarray(16 * r, 16 * r + 16))));
  const largest = runs.reduce((a, s) => (Math.abs(s) > Math.abs(a) ? s : a), 0);
  if (Math.abs(largest) < 1e-15) return new Float64Array(256);
  const d = half(largest / -128);
  if (Math.abs(d) > 65504) return null;
  return Float64Array.from(x, (v, i) => {
    const s = d * Math.min(127, nearest((-128 / largest) * runs[i >> 4]));
    return s === 0 ? 0 : s * clamp(nearest(v / s), -32, 31);
  });
}
