// ggml_iq2_s: 256 elements in 82 bytes, 2.5625 bits per value: points of a grid of 1024 (eight elements each), eight
// signs, a 4-bit factor per run of 16.
//   d:f16  qs[32]  signs[32]  qh[8]  scales[8]     value = d * (2 f + 1) / 8 * (+-8, 25 or 43)
// Point p: low eight bits in qs[p], the upper two at bit 2 (p & 3) of qh[p >> 2]. scales: a nibble per run, the low one
// first.
import { IQ2_S_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid } from "./define/ggml-grid.ts";
import { getHalf, putHalf } from "./define/ggml.ts";

/**
 * ggml IQ2_S (type 22); ggml-quants.c: 256 values in 82 bytes, 2.5625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq2_s)
 */
export const ggml_iq2_s = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq2_s",
  aliases: ["iq2_s", "gguf_iq2_s"],
  spec: "IQ2_S (type 22)",
  gguf: 22,
  blockBytes: 82,
  span: 16,
  factors: /* @__PURE__ */ Array.from({ length: 16 }, (_, f) => (2 * f + 1) / 8),
  length: 8,
  levels: [8, 25, 43],
  set: IQ2_S_GRID,
  signs: "free",
  write({ d, points, signs, factors }, out, to) {
    putHalf(out, to, d);
    for (let p = 0; p < 32; p++) {
      out[to + 2 + p] = points[p];
      out[to + 34 + p] = signs[p];
      out[to + 66 + (p >> 2)] |= (points[p] >> 8) << ((p & 3) * 2);
    }
    for (let r = 0; r < 16; r++) out[to + 74 + (r >> 1)] |= factors[r] << ((r & 1) * 4);
  },
  read(bytes, at, block) {
    block.d = getHalf(bytes, at);
    for (let p = 0; p < 32; p++) {
      block.points[p] = bytes[at + 2 + p] | (((bytes[at + 66 + (p >> 2)] >> ((p & 3) * 2)) & 3) << 8);
      block.signs[p] = bytes[at + 34 + p];
    }
    for (let r = 0; r < 16; r++) block.factors[r] = (bytes[at + 74 + (r >> 1)] >> ((r & 1) * 4)) & 15;
  },
});
