// ggml_iq2_xs: 256 elements in 74 bytes, 2.3125 bits per value: points of a grid of 512 (eight elements each), seven
// bits of signs, a 4-bit factor per run of 16.
//   d:f16  qs:u16[32]  scales[8]     value = d * (2 f + 1) / 8 * (+-8, 25 or 43)
// qs: the point in the low nine bits, seven signs above (the eighth makes their number even). scales: a nibble per run,
// the low one first.
import { IQ2_XS_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid, evenSigns } from "./define/ggml-grid.ts";
import { getHalf, putHalf } from "./define/ggml.ts";

/**
 * ggml IQ2_XS (type 17); ggml-quants.c: 256 values in 74 bytes, 2.3125 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq2_xs)
 */
export const ggml_iq2_xs = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq2_xs",
  aliases: ["iq2_xs", "gguf_iq2_xs"],
  spec: "IQ2_XS (type 17)",
  gguf: 17,
  blockBytes: 74,
  span: 16,
  factors: /* @__PURE__ */ Array.from({ length: 16 }, (_, f) => (2 * f + 1) / 8),
  length: 8,
  levels: [8, 25, 43],
  set: IQ2_XS_GRID,
  signs: "even",
  write({ d, points, signs, factors }, out, to) {
    putHalf(out, to, d);
    for (let p = 0; p < 32; p++) {
      out[to + 2 + 2 * p] = points[p];
      out[to + 3 + 2 * p] = (points[p] >> 8) | (signs[p] << 1);
    }
    for (let r = 0; r < 16; r++) out[to + 66 + (r >> 1)] |= factors[r] << ((r & 1) * 4);
  },
  read(bytes, at, block) {
    block.d = getHalf(bytes, at);
    for (let p = 0; p < 32; p++) {
      const high = bytes[at + 3 + 2 * p];
      block.points[p] = bytes[at + 2 + 2 * p] | ((high & 1) << 8);
      block.signs[p] = evenSigns(high >> 1);
    }
    for (let r = 0; r < 16; r++) block.factors[r] = (bytes[at + 66 + (r >> 1)] >> ((r & 1) * 4)) & 15;
  },
});
