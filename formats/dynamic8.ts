// dynamic8: the signed 8-bit dynamic map of bitsandbytes: decades of evenly spaced values, finer ones toward 1. Sorted
// by value; +1 is exact, -1 is missing.
//   iiiiiiii   2^d values per decade d = 0..6 and sign: the midpoints of 2^d equal parts of 0.1..1, times 10^(d - 6);
//   with 0 and 1
// Not a float8, though papers call it one.
import { defineCodebook } from "./define/codebook.ts";

function values(): number[] {
  const out = [0, 1];
  for (let d = 0; d < 7; d++)
    for (let i = 0; i < 2 ** d; i++) {
      const v = Math.fround((0.1 + (0.9 * (i + 0.5)) / 2 ** d) * 10 ** (d - 6));
      out.push(v, -v);
    }
  return out.sort((a, b) => a - b);
}

/**
 * bitsandbytes create_dynamic_map (signed, 7 exponent bits): `iiiiiiii`, 8 bits; -0.992968738079071 .. 1, smallest
 * positive 5.499999815583578e-7; 256 finite.
 * @example dynamic8.decode(0xcd) // 0.30390626192092896
 */
export const dynamic8 = /* @__PURE__ */ defineCodebook({
  name: "dynamic8",
  values: /* @__PURE__ */ values(),
  spec: "bitsandbytes create_dynamic_map (signed, 7 exponent bits)",
});
