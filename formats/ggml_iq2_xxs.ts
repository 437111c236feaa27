// ggml_iq2_xxs: 256 elements in 66 bytes, 2.0625 bits per value: points of a grid of 256 (eight elements each), seven
// bits of signs, a 4-bit factor per run of 32.
//   d:f16  then per run: points[4]  word:u32     value = d * (2 f + 1) / 8 * (+-8, 25 or 43)
// word: seven signs for each of four points, lowest first (the eighth makes their number even), and f in the top four
// bits.
import { IQ2_XXS_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid, evenSigns, getWord, putWord } from "./define/ggml-grid.ts";
import { getHalf, putHalf } from "./define/ggml.ts";

/**
 * ggml IQ2_XXS (type 16); ggml-quants.c: 256 values in 66 bytes, 2.0625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq2_xxs)
 */
export const ggml_iq2_xxs = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq2_xxs",
  aliases: ["iq2_xxs", "gguf_iq2_xxs"],
  spec: "IQ2_XXS (type 16)",
  gguf: 16,
  blockBytes: 66,
  span: 32,
  factors: /* @__PURE__ */ Array.from({ length: 16 }, (_, f) => (2 * f + 1) / 8),
  length: 8,
  levels: [8, 25, 43],
  set: IQ2_XXS_GRID,
  signs: "even",
  write({ d, points, signs, factors }, out, to) {
    putHalf(out, to, d);
    for (let r = 0; r < 8; r++) {
      let word = factors[r] << 28;
      for (let l = 0; l < 4; l++) {
        out[to + 2 + 8 * r + l] = points[4 * r + l];
        word |= (signs[4 * r + l] & 127) << (7 * l);
      }
      putWord(out, to + 6 + 8 * r, word);
    }
  },
  read(bytes, at, block) {
    block.d = getHalf(bytes, at);
    for (let r = 0; r < 8; r++) {
      const word = getWord(bytes, at + 6 + 8 * r);
      block.factors[r] = word >>> 28;
      for (let l = 0; l < 4; l++) {
        block.points[4 * r + l] = bytes[at + 2 + 8 * r + l];
        block.signs[4 * r + l] = evenSigns((word >>> (7 * l)) & 127);
      }
    }
  },
});
