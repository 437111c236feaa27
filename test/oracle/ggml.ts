// Oracle of the ggml blocks, written from their layout tables: every element is described by the bits it takes and read
// through a DataView. Imports nothing of the library. Encoders follow the reference's float32 steps in the plainest
// way.
const f = Math.fround;

/** float16 by its definition. */
export function half(code: number): number {
  const sign = code & 0x8000 ? -1 : 1;
  const e = (code >> 10) & 31;
  const m = code & 1023;
  if (e === 31) return m ? NaN : sign * Infinity;
  return sign * (e === 0 ? m / 1024 / 16384 : (1 + m / 1024) * Math.pow(2, e - 15));
}

/** Nearest float16 by search over all codes, ties to the even code. */
export function toHalf(v: number): number {
  if (v === 0) return Object.is(v, -0) ? 0x8000 : 0;
  const a = Math.abs(v);
  let lo = 0;
  let hi = 0x7bff;
  while (hi - lo > 1) {
    const mid = (lo + hi) >> 1;
    if (half(mid) <= a) lo = mid;
    else hi = mid;
  }
  if (half(hi) <= a) lo = hi;
  const up = a - half(lo) - (half(hi) - a);
  const code = up > 0 || (up === 0 && lo % 2 === 1) ? hi : lo;
  return v < 0 ? code + 0x8000 : code;
}

const bit = (b: Uint8Array, byte: number, at: number, n: number) => (b[byte] >> at) & (2 ** n - 1);
const nib = (b: Uint8Array, base: number, j: number, n: number) => bit(b, base + (j % (n / 2)), j < n / 2 ? 0 : 4, 4);
const i8 = (v: number) => (v > 127 ? v - 256 : v);
const h16 = (b: Uint8Array, at: number) => half(b[at] + 256 * b[at + 1]);
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const e2m1 = (q: number) => (q < 8 ? E2M1[q] : q === 8 ? 0 : -E2M1[q - 8]);
export const IQ4NL = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

export interface OracleBlock {
  readonly size: number;
  readonly bytes: number;
  decode(b: Uint8Array): number[];
}
const each = (n: number, at: (j: number) => number) => Array.from({ length: n }, (_, j) => f(at(j)));

/** Scale and minimum of one of eight runs in the twelve bytes of Q4_K and Q5_K. */
function sixBit(s: Uint8Array, run: number): [number, number] {
  if (run < 4) return [s[run] % 64, s[run + 4] % 64];
  return [(s[run + 4] % 16) + 16 * (s[run - 4] >> 6), (s[run + 4] >> 4) + 16 * (s[run] >> 6)];
}

export const blocks: Record<string, OracleBlock> = {
  q4_0: { size: 32, bytes: 18, decode: (b) => each(32, (j) => (nib(b, 2, j, 32) - 8) * h16(b, 0)) },
  q4_1: { size: 32, bytes: 20, decode: (b) => each(32, (j) => nib(b, 4, j, 32) * h16(b, 0) + h16(b, 2)) },
  q5_0: {
    size: 32,
    bytes: 22,
    decode: (b) => each(32, (j) => (nib(b, 6, j, 32) + 16 * bit(b, 2 + Math.floor(j / 8), j % 8, 1) - 16) * h16(b, 0)),
  },
  q5_1: {
    size: 32,
    bytes: 24,
    decode: (b) => each(32, (j) => (nib(b, 8, j, 32) + 16 * bit(b, 4 + Math.floor(j / 8), j % 8, 1)) * h16(b, 0) + h16(b, 2)),
  },
  q8_0: { size: 32, bytes: 34, decode: (b) => each(32, (j) => i8(b[2 + j]) * h16(b, 0)) },
  iq4_nl: { size: 32, bytes: 18, decode: (b) => each(32, (j) => IQ4NL[nib(b, 2, j, 32)] * h16(b, 0)) },
  mxfp4: { size: 32, bytes: 17, decode: (b) => each(32, (j) => e2m1(nib(b, 1, j, 32)) * Math.pow(2, b[0] - 127)) },
  nvfp4: {
    size: 64,
    bytes: 36,
    decode: (b) =>
      each(64, (j) => {
        const run = Math.floor(j / 16);
        const s = b[run];
        const e = (s >> 3) & 15;
        const scale = s === 127 ? 0 : e === 0 ? (s & 7) / 512 : (1 + (s & 7) / 8) * Math.pow(2, e - 7);
        return e2m1(nib(b, 4 + 8 * run, j % 16, 16)) * scale;
      }),
  },
  q4_k: {
    size: 256,
    bytes: 144,
    decode: (b) =>
      each(256, (j) => {
        const run = Math.floor(j / 32);
        const s = b.subarray(4, 16);
        const sc = run < 4 ? s[run] % 64 : (s[run + 4] % 16) + 16 * (s[run - 4] >> 6);
        const m = run < 4 ? s[run + 4] % 64 : (s[run + 4] >> 4) + 16 * (s[run] >> 6);
        const q = bit(b, 16 + 32 * Math.floor(j / 64) + (j % 32), run % 2 === 0 ? 0 : 4, 4);
        return h16(b, 0) * sc * q - h16(b, 2) * m;
      }),
  },
  q5_k: {
    size: 256,
    bytes: 176,
    decode: (b) =>
      each(256, (j) => {
        const [sc, m] = sixBit(b.subarray(4, 16), Math.floor(j / 32));
        const q = bit(b, 48 + 32 * Math.floor(j / 64) + (j % 32), Math.floor(j / 32) % 2 === 0 ? 0 : 4, 4);
        return h16(b, 0) * sc * (q + 16 * bit(b, 16 + (j % 32), Math.floor(j / 32), 1)) - h16(b, 2) * m;
      }),
  },
  q2_k: {
    size: 256,
    bytes: 84,
    decode: (b) =>
      each(256, (j) => {
        const q = bit(b, 16 + 32 * Math.floor(j / 128) + (j % 32), 2 * (Math.floor(j / 32) % 4), 2);
        return h16(b, 80) * bit(b, Math.floor(j / 16), 0, 4) * q - h16(b, 82) * bit(b, Math.floor(j / 16), 4, 4);
      }),
  },
  q3_k: {
    size: 256,
    bytes: 110,
    decode: (b) =>
      each(256, (j) => {
        const run = Math.floor(j / 16);
        const low = bit(b, 96 + (run % 8), run < 8 ? 0 : 4, 4);
        const scale = low + 16 * bit(b, 104 + (run % 4), 2 * Math.floor(run / 4), 2) - 32;
        const q = bit(b, 32 + 32 * Math.floor(j / 128) + (j % 32), 2 * (Math.floor(j / 32) % 4), 2);
        return h16(b, 108) * scale * (q + 4 * bit(b, j % 32, Math.floor(j / 32), 1) - 4);
      }),
  },
  iq4_xs: {
    size: 256,
    bytes: 136,
    decode: (b) =>
      each(256, (j) => {
        const run = Math.floor(j / 32);
        const low = bit(b, 4 + Math.floor(run / 2), run % 2 === 0 ? 0 : 4, 4);
        const scale = low + 16 * bit(b, 2 + Math.floor(run / 4), 2 * (run % 4), 2) - 32;
        return h16(b, 0) * scale * IQ4NL[nib(b, 8 + 16 * run, j % 32, 32)];
      }),
  },
  q8_1: { size: 32, bytes: 36, decode: (b) => each(32, (j) => i8(b[4 + j]) * h16(b, 0)) },
  q8_k: {
    size: 256,
    bytes: 292,
    decode: (b) => each(256, (j) => i8(b[4 + j]) * new DataView(b.buffer, b.byteOffset).getFloat32(0, true)),
  },
  q1_0: { size: 128, bytes: 18, decode: (b) => each(128, (j) => (bit(b, 2 + Math.floor(j / 8), j % 8, 1) === 1 ? 1 : -1) * h16(b, 0)) },
  q2_0: { size: 64, bytes: 18, decode: (b) => each(64, (j) => (bit(b, 2 + Math.floor(j / 4), 2 * (j % 4), 2) - 1) * h16(b, 0)) },
  q6_k: {
    size: 256,
    bytes: 210,
    decode: (b) =>
      each(256, (j) => {
        const [h, c, l] = [Math.floor(j / 128), Math.floor((j % 128) / 32), j % 32];
        const low = bit(b, 64 * h + (c % 2) * 32 + l, c < 2 ? 0 : 4, 4);
        const high = bit(b, 128 + 32 * h + l, 2 * c, 2);
        return h16(b, 208) * i8(b[192 + Math.floor(j / 16)]) * (low + 16 * high - 32);
      }),
  },
  tq1_0: {
    size: 256,
    bytes: 54,
    decode: (b) =>
      each(256, (j) => {
        const [byte, n] =
          j < 160
            ? [j % 32, Math.floor(j / 32)]
            : j < 240
              ? [32 + ((j - 160) % 16), Math.floor((j - 160) / 16)]
              : [48 + ((j - 240) % 4), Math.floor((j - 240) / 4)];
        return (Math.floor((((b[byte] * [1, 3, 9, 27, 81][n]) % 256) * 3) / 256) - 1) * h16(b, 52);
      }),
  },
  tq2_0: {
    size: 256,
    bytes: 66,
    decode: (b) => each(256, (j) => (bit(b, 32 * Math.floor(j / 128) + (j % 32), 2 * (Math.floor(j / 32) % 4), 2) - 1) * h16(b, 64)),
  },
};

/** Codes and scale fields of the formats whose quantizer is a formula. q: one code per element. */
export function encodeFormula(name: string, x: Float32Array): { q: number[]; d: number; m?: number } {
  const xs = [...x];
  const amax = Math.max(...xs.map(Math.abs));
  const extreme = amax === 0 ? 0 : xs.find((v) => Math.abs(v) === amax)!;
  const inv = (d: number) => (d === 0 ? 0 : f(1 / d));
  if (name === "q4_0" || name === "q5_0") {
    const top = name === "q4_0" ? 16 : 32;
    const d = f(extreme / (-top / 2));
    return { d: toHalf(d), q: xs.map((v) => Math.min(top - 1, Math.trunc(f(f(v * inv(d)) + (top / 2 + 0.5))))) };
  }
  if (name === "q4_1" || name === "q5_1") {
    const top = name === "q4_1" ? 15 : 31;
    const m = xs.reduce((low, v) => (v < low ? v : low));
    const d = f(f(Math.max(...xs) - m) / top);
    return { d: toHalf(d), m: toHalf(m), q: xs.map((v) => Math.min(top, Math.trunc(f(f(f(v - m) * inv(d)) + 0.5)))) };
  }
  const away = (v: number) => (v < 0 ? -Math.floor(-v + 0.5) : Math.floor(v + 0.5));
  const d = name === "q8_0" ? f(amax / 127) : amax;
  return { d: toHalf(d), q: xs.map((v) => away(f(v * inv(d)))) };
}
