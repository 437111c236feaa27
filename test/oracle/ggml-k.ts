// What ggml's reference quantizers make of a block of Q4_K and Q6_K, as the values that it decodes to: written from the
// published rule (ggml-quants.c), in float32, operation by operation. Null where a float16 super scale overflows. Imports nothing
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

const f = Math.fround;
/** A sum as C adds floats: from the left, each step rounded. */
const total = (n: number, term: (i: number) => number): number => {
  let s = f(0);
  for (let i = 0; i < n; i++) s = f(s + term(i));
  return s;
};

/**
 * make_qkx2_quants with 15 steps, weights rms + |x|, 21 trial widths: [scale, minimum]. As in the reference, every grid
 * starts at the minimum of the best one so far.
 */
function run4(x: number[]): [number, number] {
  const n = x.length;
  const rms = f(Math.sqrt(f(total(n, (i) => f(x[i] * x[i])) / n)));
  const w = x.map((v) => f(rms + Math.abs(v)));
  let min = Math.min(0, ...x);
  const max = Math.max(...x);
  if (max === min) return [0, -min];
  const codes = (width: number) => {
    const scale = f(width / f(max - min));
    return x.map((v) => clamp(nearest(f(scale * f(v - min))), 0, 15));
  };
  const square = (v: number) => f(v * v);
  const error = (q: number[], s: number, m: number) => total(n, (i) => f(w[i] * square(f(f(f(s * q[i]) + m) - x[i]))));
  let scale = f(1 / f(15 / f(max - min)));
  let least = error(codes(15), scale, min);
  const sw = total(n, (i) => w[i]);
  const sx = total(n, (i) => f(w[i] * x[i]));
  for (let step = 0; step <= 20; step++) {
    const q = codes(f(f(-1 + f(f(0.1) * step)) + 15));
    const sl = total(n, (i) => f(w[i] * q[i]));
    const sll = total(n, (i) => f(f(w[i] * q[i]) * q[i]));
    const sxl = total(n, (i) => f(f(w[i] * q[i]) * x[i]));
    const det = f(f(sw * sll) - f(sl * sl));
    if (!(det > 0)) continue;
    let s = f(f(f(sw * sxl) - f(sx * sl)) / det);
    let m = f(f(f(sll * sx) - f(sl * sxl)) / det);
    if (m > 0) [s, m] = [f(sxl / sll), 0];
    const e = error(q, s, m);
    if (e < least) [least, scale, min] = [e, s, m];
  }
  return [scale, -min];
}

export function referenceQ4K(x: Float32Array): Float64Array | null {
  const runs = Array.from({ length: 8 }, (_, r) => run4(Array.from(x.subarray(32 * r, 32 * r + 32))));
  const top = [0, 1].map((i) => Math.max(0, ...runs.map((r) => r[i])));
  const [d, dmin] = top.map((t) => half(f(t / 63)));
  if (!(d <= 65504 && dmin <= 65504)) return null;
  const code = (v: number, t: number) => (t > 0 ? Math.min(63, nearest(f(f(63 / t) * v))) : 0);
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
    const width = f(-f(32 + f(f(0.1) * step)) / extreme);
    const q = x.map((v) => clamp(nearest(f(width * v)), -32, 31));
    const w = x.map((v) => f(v * v));
    const xl = total(x.length, (i) => f(f(w[i] * x[i]) * q[i]));
    const ll = total(x.length, (i) => f(f(w[i] * q[i]) * q[i]));
    if (ll > 0 && (step === 0 || f(xl * xl) > f(best * ll))) {
      scale = f(xl / ll);
      best = f(scale * xl);
    }
  }
  return scale;
}

export function referenceQ6K(x: Float32Array): Float64Array | null {
  const runs = Array.from({ length: 16 }, (_, r) => run6(Array.from(x.subarray(16 * r, 16 * r + 16))));
  const largest = runs.reduce((a, s) => (Math.abs(s) > Math.abs(a) ? s : a), 0);
  if (Math.abs(largest) < 1e-15) return new Float64Array(256);
  const inverse = f(-128 / largest);
  const d = half(f(1 / inverse));
  if (!(Math.abs(d) <= 65504)) return null;
  return Float64Array.from(x, (v, i) => {
    const s = d * Math.min(127, nearest(f(inverse * runs[i >> 4])));
    return s === 0 ? 0 : s * clamp(nearest(v / s), -32, 31);
  });
}
