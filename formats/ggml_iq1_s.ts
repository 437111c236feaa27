// ggml_iq1_s: 256 elements in 50 bytes, 1.5625 bits per value: points of a grid of 2048 (eight trits each), and per run
// of 32 a 3-bit factor and a shift.
//   d:f16  qs[32]  qh:u16[8]     value = d * (2 f + 1) * (-1, 0 or 1, +- 1/8)
// Point p: low eight bits in qs[p], the upper three at bit 3 (p & 3) of qh[p >> 2], whose bits 12..14 are f and whose
// bit 15 says that the shift is negative.
import { IQ1_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid } from "./define/ggml-grid.ts";
import { getHalf, putHalf } from "./define/ggml.ts";

/**
 * ggml IQ1_S (type 19); ggml-quants.c: 256 values in 50 bytes, 1.5625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq1_s)
 */
export const ggml_iq1_s = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq1_s",
  aliases: ["iq1_s", "gguf_iq1_s"],
  spec: "IQ1_S (type 19)",
  gguf: 19,
  blockBytes: 50,
  span: 32,
  factors: /* @__PURE__ */ Array.from({ length: 8 }, (_, f) => 2 * f + 1),
  length: 8,
  levels: [-1, 0, 1],
  set: IQ1_GRID,
  signs: "none",
  shiftSpan: 32,
  write({ d, points, shifts, factors }, out, to) {
    putHalf(out, to, d);
    for (let r = 0; r < 8; r++) {
      let word = (factors[r] << 12) | (shifts[4 * r] << 15);
      for (let l = 0; l < 4; l++) {
        out[to + 2 + 4 * r + l] = points[4 * r + l];
        word |= (points[4 * r + l] >> 8) << (3 * l);
      }
      out[to + 34 + 2 * r] = word;
      out[to + 35 + 2 * r] = word >> 8;
    }
  },
  read(bytes, at, block) {
    block.d = getHalf(bytes, at);
    for (let r = 0; r < 8; r++) {
      const word = bytes[at + 34 + 2 * r] | (bytes[at + 35 + 2 * r] << 8);
      block.factors[r] = (word >> 12) & 7;
      block.shifts.fill(word >> 15, 4 * r, 4 * r + 4);
      for (let l = 0; l < 4; l++) block.points[4 * r + l] = bytes[at + 2 + 4 * r + l] | (((word >> (3 * l)) & 7) << 8);
    }
  },
});
