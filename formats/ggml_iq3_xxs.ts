// ggml_iq3_xxs: 256 elements in 98 bytes, 3.0625 bits per value: points of a grid of 256 (four elements each), seven
// bits of signs for eight, a 4-bit factor per run of 32.
//   d:f16  points[64]  words:u32[8]     value = d * (2 f + 1) / 4 * (+-4, 12, ... 52 or 62)
// word of a run: seven signs for each eight elements, lowest first (the eighth makes their number even), and f in the
// top four bits.
import { IQ3_XXS_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid, evenSigns, getWord, putWord } from "./define/ggml-grid.ts";
import { getHalf, putHalf } from "./define/ggml.ts";

/**
 * ggml IQ3_XXS (type 18); ggml-quants.c: 256 values in 98 bytes, 3.0625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq3_xxs)
 */
export const ggml_iq3_xxs = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq3_xxs",
  aliases: ["iq3_xxs", "gguf_iq3_xxs"],
  spec: "IQ3_XXS (type 18)",
  gguf: 18,
  blockBytes: 98,
  span: 32,
  factors: /* @__PURE__ */ Array.from({ length: 16 }, (_, f) => (2 * f + 1) / 4),
  length: 4,
  levels: [4, 12, 20, 28, 36, 44, 52, 62],
  set: IQ3_XXS_GRID,
  signs: "even",
  write({ d, points, signs, factors }, out, to) {
    putHalf(out, to, d);
    out.set(points, to + 2);
    for (let r = 0; r < 8; r++) {
      let word = factors[r] << 28;
      for (let l = 0; l < 4; l++) word |= (signs[4 * r + l] & 127) << (7 * l);
      putWord(out, to + 66 + 4 * r, word);
    }
  },
  read(bytes, at, block) {
    block.d = getHalf(bytes, at);
    block.points.set(bytes.subarray(at + 2, at + 66));
    for (let r = 0; r < 8; r++) {
      const word = getWord(bytes, at + 66 + 4 * r);
      block.factors[r] = word >>> 28;
      for (let l = 0; l < 4; l++) block.signs[4 * r + l] = evenSigns((word >>> (7 * l)) & 127);
    }
  },
});
