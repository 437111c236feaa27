// ggml_iq3_s: 256 elements in 110 bytes, 3.4375 bits per value: points of a grid of 512 (four elements each), eight
// signs, a 4-bit factor per run of 32.
//   d:f16  qs[64]  qh[8]  signs[32]  scales[4]     value = d * (2 f + 1) * (+-1, 3, ... 15)
// Point p: low eight bits in qs[p], the ninth is bit p & 7 of qh[p >> 3]. scales: a nibble per run, the low one first.
import { IQ3_S_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid } from "./define/ggml-grid.ts";
import { getHalf, putHalf } from "./define/ggml.ts";

/**
 * ggml IQ3_S (type 21); ggml-quants.c: 256 values in 110 bytes, 3.4375 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq3_s)
 */
export const ggml_iq3_s = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq3_s",
  aliases: ["iq3_s", "gguf_iq3_s"],
  spec: "IQ3_S (type 21)",
  gguf: 21,
  blockBytes: 110,
  span: 32,
  factors: /* @__PURE__ */ Array.from({ length: 16 }, (_, f) => 2 * f + 1),
  length: 4,
  levels: [1, 3, 5, 7, 9, 11, 13, 15],
  set: IQ3_S_GRID,
  signs: "free",
  write({ d, points, signs, factors }, out, to) {
    putHalf(out, to, d);
    for (let p = 0; p < 64; p++) {
      out[to + 2 + p] = points[p];
      out[to + 66 + (p >> 3)] |= (points[p] >> 8) << (p & 7);
    }
    out.set(signs, to + 74);
    for (let r = 0; r < 8; r++) out[to + 106 + (r >> 1)] |= factors[r] << ((r & 1) * 4);
  },
  read(bytes, at, block) {
    block.d = getHalf(bytes, at);
    for (let p = 0; p < 64; p++) block.points[p] = bytes[at + 2 + p] | (((bytes[at + 66 + (p >> 3)] >> (p & 7)) & 1) << 8);
    block.signs.set(bytes.subarray(at + 74, at + 106));
    for (let r = 0; r < 8; r++) block.factors[r] = (bytes[at + 106 + (r >> 1)] >> ((r & 1) * 4)) & 15;
  },
});
