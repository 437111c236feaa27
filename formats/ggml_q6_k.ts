// ggml_q6_k: 256 elements in 210 bytes, 6.5625 bits per value: 16 runs of 16, each with an int8 scale under one float16.
//   ql[128]  qh[64]  scales:i8[16]  d:f16     value = d * scale(run) * (q - 32)
// Element 128 h + 32 c + l (h 0..1, c 0..3, l 0..31): low four bits in ql[64 h + 32 (c & 1) + l], low nibble for c < 2, else high; upper two bits in
// qh[32 h + l] at bit 2 c.
// Decoding is exact; encoding is an own search for the least squared error (the reference minimises an error weighted with x^2). What the
// reference's rule gives is tried as well, so that no block is worse, and refused is what it cannot store.
import { f32, getHalf, nearestInt, putHalf, signedExtreme } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";
import { float16 } from "./float16.ts";
import { int6 } from "./int6.ts";

const RUNS = 16;
const SIZE = 16;
const codes = new Int8Array(SIZE);

/** Codes -32..31 of one run for value = s * q; returns the squared error. */
function fit(x: Float32Array, at: number, s: number): number {
  const inverse = s === 0 ? 0 : 1 / s;
  let error = 0;
  for (let j = 0; j < SIZE; j++) {
    const v = x[at + j];
    const t = v * inverse + 32;
    const q = t >= 63 ? 31 : t > 0 ? ((t + 0.5) | 0) - 32 : -32;
    const e = s * q - v;
    codes[j] = q;
    error += e * e;
  }
  return error;
}

/** The scale of one run that comes close to the least squared error; either sign, since the code range is not symmetric. */
function search(x: Float32Array, at: number): number {
  const extreme = signedExtreme(x, at, SIZE);
  if (extreme === 0) return 0;
  let best = 0;
  let least = Infinity;
  // 32, 32 +- 1/8, ...: of equals the first stays, so that what fits the code range exactly is found exactly.
  for (let step = 0; step < 33; step++) {
    const width = 32 + (step & 1 ? step + 1 : -step) / 16;
    for (let s of [-extreme / width, extreme / width])
      for (let pass = 0; pass < 2; pass++) {
        const error = fit(x, at, s);
        if (error < least) {
          least = error;
          best = s;
        }
        let [qq, xq] = [0, 0];
        for (let j = 0; j < SIZE; j++) {
          qq += codes[j] * codes[j];
          xq += codes[j] * x[at + j];
        }
        if (qq === 0) break;
        s = xq / qq;
      }
  }
  return best;
}

const half = (v: number) => float16.decode(float16.encode(v, { overflow: "saturate" }));

/** Where the low and high bits of element 16 r + j lie: [ql byte, nibble shift, qh byte, pair shift]. */
function place(r: number, j: number): [number, number, number, number] {
  const i = r * SIZE + j;
  const h = i >> 7;
  const c = (i >> 5) & 3;
  const l = i & 31;
  return [64 * h + 32 * (c & 1) + l, (c >> 1) * 4, 128 + 32 * h + l, c * 2];
}

/** Codes that the largest run scale may take at first. */
const TOPS = [127, -126, 124, -121, 117, -112, 106];

interface Attempt {
  readonly error: number;
  readonly d: number;
  readonly scales: Int8Array;
  /** The float16 super scale that would fit the codes of this attempt best. */
  readonly next: number;
}

/** The best int8 scales within `reach` of the wanted ones, for a given super scale. */
function attempt(x: Float32Array, at: number, d: number, wanted: readonly number[], reach: number): Attempt {
  const scales = new Int8Array(RUNS);
  for (let r = 0; r < RUNS; r++) {
    const from = at + r * SIZE;
    const middle = d === 0 ? 0 : Math.max(-128, Math.min(127, Math.round(wanted[r] / d)));
    let least = Infinity;
    for (let s = Math.max(-128, middle - reach); s <= Math.min(127, middle + reach); s++) {
      const e = fit(x, from, d * s);
      if (e < least) {
        least = e;
        scales[r] = s;
      }
    }
  }
  return judge(x, at, d, scales);
}

/** Error of given scales, and the super scale that suits their codes. */
function judge(x: Float32Array, at: number, d: number, scales: Int8Array): Attempt {
  let [error, aa, ax] = [0, 0, 0];
  for (let r = 0; r < RUNS; r++) {
    const from = at + r * SIZE;
    error += fit(x, from, d * scales[r]);
    for (let j = 0; j < SIZE; j++) {
      const a = scales[r] * codes[j];
      aa += a * a;
      ax += a * x[from + j];
    }
  }
  return { error, d, scales, next: aa > 0 ? half(ax / aa) : d };
}

/** The plain width first. */
const STEPS = [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/** The reference's scale of one run, in float32 steps: of 19 widths around 32 the one with the best least-squares scale, weighted with x^2. */
function referenceRun(x: Float32Array, at: number): number {
  const extreme = signedExtreme(x, at, SIZE);
  if (Math.abs(extreme) < f32(1e-15)) return 0;
  let [scale, best] = [0, 0];
  for (const step of STEPS) {
    const inverse = f32(-f32(32 + f32(f32(0.1) * step)) / extreme);
    let [xq, qq] = [0, 0];
    for (let j = at; j < at + SIZE; j++) {
      const v = x[j];
      const q = Math.max(-32, Math.min(31, nearestInt(f32(inverse * v))));
      const w = f32(v * v);
      xq = f32(xq + f32(f32(w * v) * q));
      qq = f32(qq + f32(f32(w * q) * q));
    }
    if (step === 0 ? qq !== 0 : qq > 0 && f32(xq * xq) > f32(best * qq)) {
      scale = f32(xq / qq);
      best = f32(scale * xq);
    }
  }
  return scale;
}

/** What the reference's rule makes of a block. @throws LowbitError E_VALUE beyond its float16 super scale */
function reference(x: Float32Array, at: number, out: Uint8Array, to: number): Attempt {
  const runs = Array.from({ length: RUNS }, (_, r) => referenceRun(x, at + r * SIZE));
  const largest = runs.reduce((a, s) => (Math.abs(s) > Math.abs(a) ? s : a), 0);
  // written again below; squares beyond float32 leave no scale
  putHalf(out, to + 208, runs.some(Number.isNaN) ? signedExtreme(x, at, 256) / 4096 : f32(largest / -128));
  const inverse = largest === 0 ? 0 : f32(-128 / largest);
  const scales = Int8Array.from(runs, (s) => Math.max(-128, Math.min(127, nearestInt(f32(inverse * s)))));
  return judge(x, at, getHalf(out, to + 208), scales);
}

export const ggml_q6_k = /* @__PURE__ */ defineOpaque({
  name: "ggml_q6_k",
  aliases: ["q6_k", "gguf_q6_k"],
  spec: "ggml Q6_K (type 14); ggml-quants.c",
  blockSize: 256,
  blockBytes: 210,
  encodeBlock(x, at, out, to) {
    const wanted = Array.from({ length: RUNS }, (_, r) => search(x, at + r * SIZE));
    const largest = wanted.reduce((a, s) => (Math.abs(s) > Math.abs(a) ? s : a), 0);
    let best = reference(x, at, out, to);
    // The super scale starts where the largest run scale takes one of the outer codes; the best start is refined.
    for (const top of [-128, ...TOPS]) {
      const other = attempt(x, at, half(largest / top), wanted, 1);
      if (other.error < best.error) best = other;
    }
    for (let pass = 0; pass < 4; pass++) {
      const near = Array.from(best.scales, (s) => best.d * s);
      const next = attempt(x, at, best.next, near, 3);
      if (!(next.error < best.error)) break;
      best = next;
    }
    putHalf(out, to + 208, best.d);
    for (let r = 0; r < RUNS; r++) {
      out[to + 192 + r] = best.scales[r];
      fit(x, at + r * SIZE, best.d * best.scales[r]);
      for (let j = 0; j < SIZE; j++) {
        const [low, nibble, high, pair] = place(r, j);
        const q = codes[j] + 32;
        out[to + low] |= (q & 15) << nibble;
        out[to + high] |= (q >> 4) << pair;
      }
    }
  },
  planes: {
    element: int6,
    span: SIZE,
    readBlock(bytes, at, out, to, scales, _mins, run) {
      const d = getHalf(bytes, at + 208);
      for (let r = 0; r < RUNS; r++) {
        scales[run + r] = d * ((bytes[at + 192 + r] << 24) >> 24);
        for (let j = 0; j < SIZE; j++) {
          const [low, nibble, high, pair] = place(r, j);
          const q = ((bytes[at + low] >> nibble) & 15) | (((bytes[at + high] >> pair) & 3) << 4);
          // offset 32 as two's complement
          out[to + r * SIZE + j] = q ^ 32;
        }
      }
    },
  },
});
