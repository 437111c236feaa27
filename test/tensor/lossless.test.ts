// Lossless bfloat16: every bit pattern round-trips, the size is that of the entropy, hostile input is refused.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { compressBfloat16, decompressBfloat16 } from "../../src/index.ts";
import { random } from "../helpers/random.ts";

const same = (a: Uint16Array, b: Uint16Array) => a.length === b.length && a.every((v, i) => v === b[i]);
const gaussian = (n: number, sigma: number, seed: number) => {
  const rng = random(seed);
  const f = Float32Array.from({ length: n }, () => rng.normal() * sigma);
  const u = new Uint32Array(f.buffer);
  return Uint16Array.from(u, (v) => (v + 0x7fff + ((v >>> 16) & 1)) >>> 16);
};
const refused = expect.objectContaining({ code: "E_CONTAINER" });

describe("round trip", () => {
  test("all 65,536 patterns, in order and shuffled", () => {
    const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
    expect(same(decompressBfloat16(compressBfloat16(all)), all)).toBe(true);
    const rng = random(1);
    const shuffled = all.slice().sort(() => rng.next() - 0.5);
    expect(same(decompressBfloat16(compressBfloat16(shuffled)), shuffled)).toBe(true);
  });
  test("nothing, one value, one symbol, two symbols", () => {
    for (const list of [[], [0x7fc1], new Array(1000).fill(0x3f80), [0x8000, 0x0000, 0xffff, 0xff80, 0x0001]])
      expect(same(decompressBfloat16(compressBfloat16(Uint16Array.from(list))), Uint16Array.from(list))).toBe(true);
  });
  test("counts so skewed that plain Huffman codes exceed 24 bits", () => {
    // Fibonacci counts give the deepest trees: 29 symbols, about 1.3 million values.
    const counts = [1, 1];
    while (counts.length < 29) counts.push(counts[counts.length - 1] + counts[counts.length - 2]);
    const values = new Uint16Array(counts.reduce((a, b) => a + b));
    let at = 0;
    for (const [s, n] of counts.entries()) at = values.fill((s + 3) << 7, at, at + n) && at + n;
    const bytes = compressBfloat16(values);
    const lengths = Array.from({ length: 29 }, (_, i) => bytes[10 + 2 * i + 1]);
    expect(Math.max(...lengths)).toBeLessThanOrEqual(24);
    expect(Math.max(...lengths)).toBeGreaterThan(12);
    expect(same(decompressBfloat16(bytes), values)).toBe(true);
  });
  test("any values", () => {
    fc.assert(
      fc.property(fc.uint16Array({ maxLength: 300 }), (v) => same(decompressBfloat16(compressBfloat16(v)), v)),
      { seed: 3, numRuns: 300 },
    );
  });
  test("the container, byte by byte", () => {
    // 1, 1, -2, 1: exponents 127 (code 0) and 128 (code 1); sign and mantissa 0, 0, 0x80, 0; codes 0010.
    const bytes = [0x4c, 0x42, 0x46, 0x31, 4, 0, 0, 0, 2, 0, 127, 1, 128, 1, 0, 0, 0x80, 0, 0b00100000];
    expect([...compressBfloat16(Uint16Array.of(0x3f80, 0x3f80, 0xc000, 0x3f80))]).toEqual(bytes);
    // Lengths 1, 2, 2 in canonical order: 0, 10, 11.
    const three = compressBfloat16(Uint16Array.of(0x3f80, 0x3f80, 0xc000, 0x3f80, 0x0000));
    expect([...three.subarray(10, 16)]).toEqual([127, 1, 0, 2, 128, 2]);
    expect(three[three.length - 1]).toBe(0b00110100);
  });
  test("a view into a larger buffer", () => {
    const bytes = compressBfloat16(gaussian(100, 1, 5));
    const padded = new Uint8Array(bytes.length + 20);
    padded.set(bytes, 7);
    expect(same(decompressBfloat16(padded.subarray(7, 7 + bytes.length)), gaussian(100, 1, 5))).toBe(true);
  });
});

test("Gaussian weights of any size take 66.2 % (exponent entropy 2.545, Huffman 2.59 bits)", () => {
  for (const sigma of [1, 0.02, 3e-5]) {
    const v = gaussian(200_000, sigma, 9);
    const counts = new Map<number, number>();
    for (const x of v) counts.set((x >> 7) & 255, (counts.get((x >> 7) & 255) ?? 0) + 1);
    const entropy = [...counts.values()].reduce((s, c) => s - (c / v.length) * Math.log2(c / v.length), 0);
    const bytes = compressBfloat16(v);
    const huffman = (8 * (bytes.length - v.length - 10 - 2 * counts.size)) / v.length;
    expect(huffman).toBeGreaterThanOrEqual(entropy);
    expect(huffman).toBeLessThan(entropy + 0.1);
    // The position of sigma within its binade moves the entropy a little.
    expect(bytes.length / (2 * v.length)).toBeGreaterThan(0.65);
    expect(bytes.length / (2 * v.length)).toBeLessThan(0.675);
    expect(same(decompressBfloat16(bytes), v)).toBe(true);
  }
});

describe("hostile input", () => {
  const good = compressBfloat16(gaussian(500, 1, 2));
  test("every truncation and a byte too many", () => {
    for (let n = 0; n < good.length; n++) expect(() => decompressBfloat16(good.subarray(0, n))).toThrow(refused);
    expect(() => decompressBfloat16(Uint8Array.from([...good, 0]))).toThrow(refused);
  });
  test("damaged fields", () => {
    const with_ = (at: number, ...values: number[]) => {
      const b = good.slice();
      b.set(values, at);
      return b;
    };
    expect(() => decompressBfloat16(with_(0, 0x58))).toThrow(refused);
    expect(() => decompressBfloat16(with_(4, 0xff, 0xff, 0xff, 0xff))).toThrow(refused); // four billion values
    expect(() => decompressBfloat16(with_(4, 0, 0, 0, 0))).toThrow(refused); // none, yet a code
    expect(() => decompressBfloat16(with_(8, 0, 0))).toThrow(refused); // no symbols
    expect(() => decompressBfloat16(with_(8, 0xff, 0xff))).toThrow(refused);
    expect(() => decompressBfloat16(with_(11, 25))).toThrow(refused); // too long a code
    expect(() => decompressBfloat16(with_(11, 0))).toThrow(refused);
    expect(() => decompressBfloat16(with_(11, good[11] + 1))).toThrow(refused); // an incomplete code
    expect(() => decompressBfloat16(with_(12, good[10]))).toThrow(refused); // a symbol twice
  });
  test("any change of one byte is refused or decodes to as many values; nothing hangs", () => {
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const b = good.slice();
        b[at] ^= change;
        try {
          return decompressBfloat16(b).length === 500;
        } catch (e) {
          return (e as { code?: string }).code === "E_CONTAINER";
        }
      }),
      { seed: 8, numRuns: 400 },
    );
  });
  test("an incomplete code that the data never leaves", () => {
    const bytes = Uint8Array.of(0x4c, 0x42, 0x46, 0x31, 1, 0, 0, 0, 2, 0, 127, 1, 128, 2, 0, 0);
    expect(() => decompressBfloat16(bytes)).toThrow(refused);
    bytes[13] = 1;
    expect([...decompressBfloat16(bytes)]).toEqual([0x3f80]);
  });
  test("arguments of another kind", () => {
    expect(() => compressBfloat16(new Float32Array(2) as never)).toThrow(TypeError);
    expect(() => decompressBfloat16("LBF1" as never)).toThrow(TypeError);
  });
});
