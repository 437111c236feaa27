// Packed codes against one long integer: bit i * bits of the bytes is the lowest of code i.
import { expect, test } from "vitest";
import { packCodes, unpackCodes } from "../../../formats/core/pack.ts";
import { packedSizes } from "../../../formats/core/packed.ts";
import { format, type BlockFormat } from "../../../formats/index.ts";
import { random } from "../../helpers/random.ts";

test.each(Array.from({ length: 32 }, (_, i) => [i + 1]))("%i bits", (bits) => {
  const rng = random(bits);
  for (const count of [0, 1, 2, 3, 7, 8, 9, 31, 64]) {
    const codes = Array.from({ length: count }, (_, i) => (i % 5 === 0 ? 2 ** bits - 1 : Math.floor(rng.next() * 2 ** bits)));
    const whole = codes.reduce((sum, c, i) => sum | (BigInt(c) << BigInt(i * bits)), 0n);
    const want = Array.from({ length: Math.ceil((count * bits) / 8) }, (_, i) => Number((whole >> BigInt(8 * i)) & 255n));
    const bytes = packCodes(codes, bits);
    expect([...bytes]).toEqual(want);
    expect([...unpackCodes(bytes, bits, count)]).toEqual(codes);
  }
  for (const at of [0, 1]) {
    const codes = [0, 0];
    for (const bad of [2 ** bits, -1, 0.5, NaN]) {
      codes[at] = bad;
      expect(() => packCodes(codes, bits)).toThrow(`codes[${at}]`);
    }
  }
});

test("widths that no code has", () => {
  for (const bits of [0, -1, 33, 1.5, NaN]) expect(() => packCodes([0], bits)).toThrow(RangeError);
});

test("a vector is packed as one row", () => {
  const blocks = format("int4_b32_float16_zp") as BlockFormat;
  expect(packedSizes(blocks, [96])).toEqual(packedSizes(blocks, [1, 96]));
  expect(packedSizes(blocks, [2, 3, 32])).toEqual(packedSizes(blocks, [2, 96]));
});
