// Values that a format refuses are named by their place in every loop; arithmetic takes codes only, and wraps exactly.
import { expect, test } from "vitest";
import { allFormats, arithmetic, decodeArray, encodeArray, format, type NumberFormat } from "../../formats/index.ts";
import { random } from "../helpers/random.ts";

const scalar = (name: string): NumberFormat => format(name) as NumberFormat;
const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");

test("a refused value is named by its place, the first one and negative ones too", () => {
  // the first value, and negative ones, in every format that refuses them
  for (const g of scalars.filter(({ bits }) => bits <= 16))
    for (const bad of [1e38, -1e38])
      for (const at of [0, 4321]) {
        const y = new Float32Array(5000).fill(g.limits.min);
        y[at] = bad;
        let refused = false;
        try {
          g.encode(bad, { overflow: "error" });
        } catch {
          refused = true;
        }
        if (refused) expect(() => encodeArray(g, y, undefined, { overflow: "error" }), g.name).toThrow(`values[${at}]`);
      }
});

test("wrapping fma keeps the low bits of sums that no double holds", () => {
  const w = arithmetic(scalar("int32"), { overflow: "wrap" });
  const signed = (c: number): bigint => BigInt.asIntN(32, BigInt(c));
  const rng = random(9);
  const integer = (below: number): number => rng.integer(below);
  for (let i = 0; i < 400; i++) {
    // products just below 2^53, and a third operand that takes the sum past it
    const x = 2 ** (24 + integer(6));
    const y = 2 ** 53 / x - 1 - integer(3);
    const z = integer(2 ** 32);
    expect(w.fma(x, y, z)).toBe(Number(BigInt.asUintN(32, signed(x) * signed(y) + signed(z))));
  }
});

test("results that are remembered are of codes only", () => {
  const a = arithmetic(scalar("float8_e4m3fn"));
  for (let b = 0; b < 256; b++) a.add(0, b);
  for (const [x, y] of [
    [0.5, 2],
    [0.5, 0.25],
    [0, 0.5],
    [256, 0],
    [0, 256],
    [-1, 0],
  ])
    expect(() => a.add(x, y), `${x}, ${y}`).toThrow();
});

test("what is no array of codes is a TypeError, and a format of more than 16 bits keeps its fields", () => {
  for (const none of [null, undefined, "12", 3, {}, { length: 1.5 }, { length: -1 }])
    expect(() => decodeArray(scalar("float8_e4m3fn"), none as never), String(none)).toThrow(TypeError);
  expect([...decodeArray(scalar("float8_e4m3fn"), [0x38, 0x40])]).toEqual([1, 2]);
  expect(["float32", "posit32_es2"].map((name) => scalar(name).access.kind)).toEqual(["shift", "rule"]);
});
