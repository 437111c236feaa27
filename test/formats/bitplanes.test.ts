// Bit planes: round trips, both bit orders, and the popcount identities against plain dot products of decoded values.
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { dotBitPlanes, format, fromBitPlanes, toBitPlanes, type NumberFormat } from "../../formats/index.ts";

test("planes hold bit i of every code, first code in the lowest or highest bit", () => {
  expect(toBitPlanes([1, 2, 3], 2).planes.map((p) => [...p])).toEqual([[0b101], [0b110]]);
  expect(toBitPlanes([1, 0, 0], 1, "msb").planes[0][0]).toBe(0x80000000);
  const long = toBitPlanes(new Uint8Array(33).fill(1), 1);
  expect([...long.planes[0]]).toEqual([0xffffffff, 1]);
  expect(() => toBitPlanes([4], 2)).toThrow(RangeError);
  expect(() => toBitPlanes([0], 33)).toThrow(RangeError);
});

test("codes come back", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 32 }),
      fc.constantFrom("lsb" as const, "msb" as const),
      fc.array(fc.nat(), { maxLength: 70 }),
      (bits, order, seeds) => {
        const codes = seeds.map((s) => (bits === 32 ? s * 2 : s % 2 ** bits));
        expect([...fromBitPlanes(toBitPlanes(codes, bits, order))]).toEqual(codes);
      },
    ),
  );
});

test("the dot product of planes is that of the values, for every pair of alphabets", () => {
  const names = { unsigned: "uint", twos: "int", bipolar: "bipolar" } as const;
  const alphabets = ["unsigned", "twos", "bipolar"] as const;
  fc.assert(
    fc.property(
      fc.constantFrom(...alphabets),
      fc.constantFrom(...alphabets),
      fc.integer({ min: 1, max: 8 }),
      fc.integer({ min: 1, max: 8 }),
      fc.array(fc.tuple(fc.nat({ max: 255 }), fc.nat({ max: 255 })), { maxLength: 100 }),
      (alphabetA, alphabetB, p, q, pairs) => {
        const [f, g] = [format(`${names[alphabetA]}${p}`), format(`${names[alphabetB]}${q}`)] as NumberFormat[];
        const a = pairs.map(([x]) => x % 2 ** p);
        const b = pairs.map(([, y]) => y % 2 ** q);
        const want = a.reduce((s, x, i) => s + f.decode(x) * g.decode(b[i]), 0);
        expect(dotBitPlanes(toBitPlanes(a, p), toBitPlanes(b, q), alphabetA, alphabetB)).toBe(want + 0);
      },
    ),
  );
  expect(() => dotBitPlanes(toBitPlanes([1], 1), toBitPlanes([1, 0], 1), "twos", "twos")).toThrow(RangeError);
});
