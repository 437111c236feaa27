// Parts that the ggml blocks share: float16 fields, float32 arithmetic as the `_ref` quantizers do it, and the builders
// of their block families.
// Spec: ggml-org/ggml src/ggml-quants.c and ggml-common.h (read August 2026). Little-endian; in a block of n four-bit
// codes, code j lies in the low and code j + n/2 in the high nibble of byte j ("split halves").
import { LowbitError } from "../core/errors.ts";
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { float16 } from "../float16.ts";
import { float4_e2m1fn } from "../float4_e2m1fn.ts";
import { defineCodebook } from "./codebook.ts";
import { defineOpaque } from "./opaque.ts";

/** One float32 rounding. The references compute in float32, and their codes hang on it. */
export const f32 = Math.fround;

/** C `roundf`: halves away from zero. Exact for a float32, whose sum with 0.5 is exact in a double. */
export const roundAway = (v: number): number => Math.sign(v) * Math.floor(Math.abs(v) + 0.5);

/**
 * Writes a float16.
 * @throws LowbitError E_VALUE where the value overflows it: the block would decode to infinities and NaN
 */
export function putHalf(out: Uint8Array, at: number, value: number): void {
  const code = float16.encode(value);
  if ((code & 0x7c00) === 0x7c00)
    throw new LowbitError(
      "E_VALUE",
      `ggml block scale: expected a magnitude up to 65504 (float16), got ${Number.isFinite(value) ? value : "one beyond float32"}. Scale the data down before encoding.`,
    );
  out[at] = code & 255;
  out[at + 1] = code >> 8;
}

/** 2^(exponent field - 25), the unit of a float16; subnormals have that of field 1. */
const HALF_UNITS = Float64Array.from({ length: 31 }, (_, i) => 2 ** (Math.max(1, i) - 25));

export function getHalf(bytes: Uint8Array, at: number): number {
  const code = bytes[at] | (bytes[at + 1] << 8);
  const field = (code >> 10) & 31;
  if (field === 31) return float16.decode(code);
  const v = ((code & 1023) + (field > 0 ? 1024 : 0)) * HALF_UNITS[field];
  return code & 0x8000 ? -v : v;
}

/** ggml's nearest_int: half to even. */
export const nearestInt = (v: number): number => {
  const r = Math.round(v);
  return r - v === 0.5 && r % 2 !== 0 ? r - 1 : r;
};

/** The element of largest magnitude, with its sign; the first of equals. */
export function signedExtreme(x: Float32Array, at: number, n: number): number {
  let extreme = 0;
  for (let j = at; j < at + n; j++) if (Math.abs(x[j]) > Math.abs(extreme)) extreme = x[j];
  return extreme;
}

/** 1/d in float32, and 0 for d = 0 (or -0). */
const inverse = (d: number): number => (d === 0 ? 0 : f32(1 / d));

export interface GgmlOptions {
  readonly name: string;
  readonly aliases: readonly string[];
  /** What ggml calls it, with its type id. */
  readonly spec: string;
  /** The type id. */
  readonly gguf: number;
}

const spec = (o: GgmlOptions) => `ggml ${o.spec}; ggml-quants.c`;
export const common = (o: GgmlOptions) => ({ name: o.name, aliases: o.aliases, gguf: o.gguf, spec: spec(o) });

/**
 * Q4_0, Q5_0 (signed elements) and Q4_1, Q5_1 (unsigned, a minimum): 32 elements, float16 scale (and minimum), one bit
 * more than four in a 32-bit word.
 *   value = (q - 2^(bits-1)) * d      or      q * d + m
 * The codes follow from the float32 scale, not from the float16 that is stored; halves round up, by truncation of v +
 * 0.5.
 */
export function defineGgmlSplit(options: GgmlOptions & { readonly element: NumberFormat }): OpaqueFormat {
  const { element } = options;
  const { bits } = element;
  const min = element.limits.min === 0;
  const top = 2 ** bits - 1;
  // of a signed element, which is also what two's complement adds to its codes
  const zero = min ? 0 : 2 ** (bits - 1);
  const high = min ? 4 : 2; // the fifth bits
  const nibbles = high + (bits - 4) * 4;
  return defineOpaque({
    ...common(options),
    blockSize: 32,
    blockBytes: nibbles + 16,
    encodeBlock(x, at, out, to) {
      let low = 0;
      let d: number;
      if (min) {
        let max = x[at];
        low = x[at];
        for (let j = at; j < at + 32; j++) {
          if (x[j] < low) low = x[j];
          if (x[j] > max) max = x[j];
        }
        d = f32(f32(max - low) / top);
        putHalf(out, to + 2, low);
      } else d = f32(signedExtreme(x, at, 32) / -zero);
      putHalf(out, to, d);
      const id = inverse(d);
      for (let j = 0; j < 32; j++) {
        const v = f32(f32(f32(x[at + j] - low) * id) + (zero + 0.5));
        // `| 0` truncates, and takes the infinity of a subnormal scale to 0 as the reference does on x86.
        const q = Math.min(top, v | 0);
        out[to + nibbles + (j & 15)] |= (q & 15) << ((j >> 4) * 4);
        if (bits === 5) out[to + high + (j >> 3)] |= (q >> 4) << (j & 7);
      }
    },
    planes: {
      element,
      span: 32,
      min,
      readBlock(bytes, at, codes, to, scales, mins, run) {
        scales[run] = getHalf(bytes, at);
        if (min) mins[run] = getHalf(bytes, at + 2);
        for (let j = 0; j < 32; j++) {
          let q = (bytes[at + nibbles + (j & 15)] >> ((j >> 4) * 4)) & 15;
          if (bits === 5) q |= ((bytes[at + high + (j >> 3)] >> (j & 7)) & 1) << 4;
          codes[to + j] = q ^ zero;
        }
      },
    },
  });
}

/** float4_e2m1fn by code, doubled, as ggml keeps it; code 8 reads as +0. */
const DOUBLED_E2M1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/** ggml's table has +0 twice; the format's code 8 is -0. */
const positiveZero = (code: number): number => (code === 8 ? 0 : code);

/** The first of the nearest: ties go toward zero, and code 8 is never produced. */
function nearestE2M1(x: number, unit: number): number {
  let best = 0;
  let error = f32(Math.abs(x));
  for (let i = 1; i < 16; i++) {
    const e = Math.abs(f32(f32(DOUBLED_E2M1[i] * unit) - x));
    if (e < error) {
      best = i;
      error = e;
    }
  }
  return best;
}

/**
 * MXFP4 and NVFP4: `groups` runs of `size` E2M1 codes, each run with a one-byte scale; scales first. `scale` makes the
 * byte from the largest magnitude, `unit` gives half of what the byte stands for (the codes are doubled).
 */
export function defineGgmlE2M1(
  options: GgmlOptions & {
    readonly groups: number;
    readonly size: number;
    readonly scale: (amax: number) => number;
    readonly unit: (byte: number) => number;
  },
): OpaqueFormat {
  const { groups, size, scale, unit } = options;
  const half = size / 2;
  return defineOpaque({
    ...common(options),
    blockSize: groups * size,
    blockBytes: groups + groups * half,
    encodeBlock(x, at, out, to) {
      for (let g = 0; g < groups; g++) {
        const from = at + g * size;
        const byte = scale(Math.abs(signedExtreme(x, from, size)));
        const d = unit(byte);
        out[to + g] = byte;
        for (let j = 0; j < half; j++)
          out[to + groups + g * half + j] = nearestE2M1(x[from + j], d) | (nearestE2M1(x[from + half + j], d) << 4);
      }
    },
    planes: {
      element: float4_e2m1fn,
      span: size,
      readBlock(bytes, at, codes, to, scales, _mins, run) {
        for (let g = 0; g < groups; g++) {
          scales[run + g] = 2 * unit(bytes[at + g]);
          for (let j = 0; j < half; j++) {
            const b = bytes[at + groups + g * half + j];
            codes[to + g * size + j] = positiveZero(b & 15);
            codes[to + g * size + half + j] = positiveZero(b >> 4);
          }
        }
      },
    },
  });
}

/** What the four codes of a trit's two bits stand for; the last is never written. */
export const trit = /* @__PURE__ */ defineCodebook({ name: "ggml_trit", values: [-1, 0, 1, 2], spec: "ggml TQ1_0 and TQ2_0" });

/**
 * Ternary blocks: 256 elements -1, 0, 1 times the largest magnitude, a float16 at the end. `write` and `read` place the
 * trits 0..2.
 */
export function defineGgmlTernary(
  options: GgmlOptions & {
    readonly bytes: number;
    readonly write: (trits: Uint8Array, out: Uint8Array, to: number) => void;
    readonly read: (bytes: Uint8Array, at: number, trits: Uint8Array) => void;
  },
): OpaqueFormat {
  const { bytes: n, write, read } = options;
  const trits = new Uint8Array(256);
  return defineOpaque({
    ...common(options),
    blockSize: 256,
    blockBytes: n + 2,
    encodeBlock(x, at, out, to) {
      const d = Math.abs(signedExtreme(x, at, 256));
      const id = inverse(d);
      putHalf(out, to + n, d);
      for (let j = 0; j < 256; j++) trits[j] = (roundAway(f32(x[at + j] * id)) | 0) + 1;
      write(trits, out, to);
    },
    planes: {
      element: trit,
      span: 256,
      readBlock(bytes, at, codes, to, scales, _mins, run) {
        scales[run] = getHalf(bytes, at + n);
        read(bytes, at, codes.subarray(to, to + 256));
      },
    },
  });
}
