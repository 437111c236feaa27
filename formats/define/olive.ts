// Outlier-victim pairs (OliVe, ISCA 2023): neighbouring elements share their slots. Either both are normal integers, or
// one is an outlier and the other, the victim, becomes zero: its slot holds the identifier (the unused code 10..0) and
// the outlier's slot an "abfloat" whose range begins above the integers.
//   4 bits: integers -7..7; outliers +-(2 + m) 2^(e + 2), s ee m: 12, 16, 24, 32, 48, 64, 96 times the scale
//   8 bits: integers -127..127; outliers +-(8 + m) 2^(e + 4), s eeee mmm: 144 .. 30720 (written below 2^15) A block is
//   a float32 scale and its pairs in order, the even element in the low half of a byte. The abfloat code of e = m = 0
//   is never written and reads as zero.
// Spec: the paper; clevercool/ANT-Quantization. Differences: pairs take whichever of the three codings has the least
// squared error (the paper keeps the larger of two outliers, its code the even one), and the scale belongs to a block
// instead of a tensor.
import { LowbitError } from "../core/errors.ts";
import type { OpaqueFormat } from "../core/types.ts";
import { int8 } from "../int8.ts";
import { defineOpaque } from "./opaque.ts";

export interface OliveOptions {
  readonly name?: string;
  readonly aliases?: readonly string[];
  readonly bits: 4 | 8;
  /** Elements per scale, even; default 128. */
  readonly blockSize?: number;
}

/**
 * Outlier-victim pairs (OliVe): beside an outlier, held in a wider code, its neighbour of the pair is dropped. A block
 * has a float32 scale.
 * @throws LowbitError E_FORMAT for an odd block size
 * @example
 * quantize(tensor(new Float32Array(64).fill(0.5), [1, 64]), defineOlive({ bits: 4, blockSize: 32 })).shape // [1, 64]
 */
export function defineOlive(options: OliveOptions): OpaqueFormat {
  const { bits, blockSize = 128 } = options;
  if (blockSize % 2 !== 0)
    throw new LowbitError("E_FORMAT", `defineOlive blockSize: expected an even number, got ${blockSize}. Elements go in pairs.`);
  const mantissa = bits === 4 ? 1 : 3;
  const top = 2 ** (bits - 1) - 1;
  const identifier = 2 ** (bits - 1);
  // Magnitudes by abfloat code without sign; from 2^15 on they are only read.
  const outliers = Array.from({ length: identifier }, (_, c) =>
    c === 0 ? 0 : (2 ** mantissa + (c % 2 ** mantissa)) * 2 ** (Math.floor(c / 2 ** mantissa) + bits / 2),
  );
  const written = outliers.filter((v) => v < 2 ** 15).length;

  const integer = (t: number) => {
    const r = Math.round(Math.abs(t));
    return Math.sign(t) * Math.min(top, r - Math.abs(t) === 0.5 && r % 2 !== 0 ? r - 1 : r);
  };
  /** Abfloat code of the nearest outlier, without sign; ties go to the smaller one. */
  const outlier = (t: number) => {
    const a = Math.abs(t);
    let c = 1;
    while (c + 1 < written && outliers[c + 1] - a < a - outliers[c]) c++;
    return c;
  };
  /** Squared error of the best coding of a pair, and which: 0 both normal, 1 the first an outlier, 2 the second. */
  const choose = (a: number, b: number): { error: number; kind: number } => {
    let [error, kind] = [(integer(a) - a) ** 2 + (integer(b) - b) ** 2, 0];
    if (Math.abs(a) > top || Math.abs(b) > top) {
      const first = (outliers[outlier(a)] - Math.abs(a)) ** 2 + b * b;
      const second = (outliers[outlier(b)] - Math.abs(b)) ** 2 + a * a;
      if (first < error) [error, kind] = [first, 1];
      if (second < error) [error, kind] = [second, 2];
    }
    return { error, kind };
  };

  const scaleOf = (x: Float32Array, at: number): number => {
    let [sum, squares, amax] = [0, 0, 0];
    for (let i = at; i < at + blockSize; i++) {
      sum += x[i];
      squares += x[i] * x[i];
      amax = Math.max(amax, Math.abs(x[i]));
    }
    if (amax === 0) return 0;
    const mean = sum / blockSize;
    const sigma = Math.sqrt(Math.max(0, squares / blockSize - mean * mean));
    const start = Math.min(amax, Math.abs(mean) + 3 * sigma);
    let best = Math.fround(amax / top);
    let least = Infinity;
    // In steps of 2 %, as the reference, and the largest magnitude itself.
    for (let percent = 20; percent <= 150; percent += 2) {
      const s = Math.fround(percent === 150 ? amax / top : (start * percent) / 100 / top);
      if (!(s > 0)) continue;
      let error = 0;
      for (let i = at; i < at + blockSize && error * s * s < least; i += 2) error += choose(x[i] / s, x[i + 1] / s).error;
      if (error * s * s < least) [least, best] = [error * s * s, s];
    }
    return best;
  };

  const twos = (v: number) => (v < 0 ? v + 2 ** bits : v);
  /** Hands on the integer of each element of a block, and returns the block's scale. */
  const read = (bytes: Uint8Array, at: number, put: (j: number, v: number) => void): number => {
    for (let i = 0; i < blockSize; i += 2) {
      const b = bytes[at + 4 + i / 2];
      const codes = bits === 4 ? [b & 15, b >> 4] : [bytes[at + 4 + i], bytes[at + 5 + i]];
      for (let side = 0; side < 2; side++) {
        const c = codes[side];
        if (c === identifier) put(i + side, 0);
        else if (codes[1 - side] === identifier) put(i + side, outliers[c % identifier] * (c >= identifier ? -1 : 1));
        else put(i + side, c >= identifier ? c - 2 * identifier : c);
      }
    }
    return new DataView(bytes.buffer, bytes.byteOffset).getFloat32(at, true);
  };
  /** Writes a block with a given scale. */
  const write = (x: Float32Array, at: number, s: number, out: Uint8Array, to: number): void => {
    new DataView(out.buffer, out.byteOffset).setFloat32(to, s, true);
    if (s === 0) return;
    for (let i = 0; i < blockSize; i += 2) {
      const t = [x[at + i] / s, x[at + i + 1] / s];
      const { kind } = choose(t[0], t[1]);
      const codes = t.map((v, side) =>
        kind === 0 ? twos(integer(v)) : kind === side + 1 ? outlier(v) + (v < 0 ? identifier : 0) : identifier,
      );
      if (bits === 4) out[to + 4 + i / 2] = codes[0] | (codes[1] << 4);
      else out.set(codes, to + 4 + i);
    }
  };
  const isFinite = (bytes: Uint8Array, at: number): boolean => {
    let most = 0;
    const s = read(bytes, at, (_, v) => (most = Math.max(most, Math.abs(v))));
    return Math.fround(most * s) < Infinity;
  };
  const numbers = new Float64Array(blockSize);
  return defineOpaque({
    name: options.name ?? `olive${bits}_b${blockSize}`,
    aliases: options.aliases,
    spec: "OliVe (ISCA 2023) outlier-victim pairs; clevercool/ANT-Quantization",
    blockSize,
    blockBytes: 4 + (blockSize * bits) / 8,
    encodeBlock(x, at, out, to) {
      let s = scaleOf(x, at);
      write(x, at, s, out, to);
      // near the largest float32 the nearest outlier may stand for a value beyond it
      while (!isFinite(out, to)) write(x, at, (s = Math.fround((s * 15) / 16)), out, to);
    },
    // 4-bit pairs reach 96 times the scale: codes of int8
    ...(bits === 4
      ? {
          planes: {
            element: int8,
            span: blockSize,
            readBlock(
              bytes: Uint8Array,
              at: number,
              codes: Uint8Array,
              to: number,
              scales: Float64Array,
              _mins: Float64Array,
              run: number,
            ) {
              scales[run] = read(bytes, at, (j, v) => (codes[to + j] = v));
            },
          },
        }
      : {
          decodeBlock(bytes: Uint8Array, at: number, out: Float32Array, to: number) {
            const s = read(bytes, at, (j, v) => (numbers[j] = v));
            for (let j = 0; j < blockSize; j++) out[to + j] = numbers[j] * s;
          },
        }),
  });
}

/** olive4_b64, olive8_b32. */
export function oliveByName(name: string): OpaqueFormat | undefined {
  const m = /^olive([48])_b([1-9][0-9]*)$/.exec(name);
  if (!m || Number(m[2]) % 2 !== 0 || Number(m[2]) > 2 ** 24) return undefined;
  return defineOlive({ bits: Number(m[1]) as 4 | 8, blockSize: Number(m[2]) });
}
