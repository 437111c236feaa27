// ggml_iq1_m: 256 elements in 56 bytes, 1.75 bits per value: points of a grid of 2048 (eight trits each) with a shift
// each, and a 3-bit factor per run of 16.
//   qs[32]  qh[16]  scales:u16[4]     value = d * (2 f + 1) * (-1, 0 or 1, +- 1/8)
// Point p: low eight bits in qs[p]; nibble p & 1 of qh[p >> 1] has its upper three bits and, as bit 3, whether the
// shift is negative. Factor of run r: bits
// 3 (r & 3) of scales[r >> 2]. The float16 d is in the top nibbles of the four words, lowest first.
import { IQ1_GRID } from "./define/ggml-grids.ts";
import { defineGgmlGrid } from "./define/ggml-grid.ts";
import { float16 } from "./float16.ts";

/**
 * ggml IQ1_M (type 29); ggml-quants.c: 256 values in 56 bytes, 1.75 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq1_m)
 */
export const ggml_iq1_m = /* @__PURE__ */ defineGgmlGrid({
  name: "ggml_iq1_m",
  aliases: ["iq1_m", "gguf_iq1_m"],
  spec: "IQ1_M (type 29)",
  gguf: 29,
  blockBytes: 56,
  span: 16,
  factors: /* @__PURE__ */ Array.from({ length: 8 }, (_, f) => 2 * f + 1),
  length: 8,
  levels: [-1, 0, 1],
  set: IQ1_GRID,
  signs: "none",
  shiftSpan: 8,
  write({ d, points, shifts, factors }, out, to) {
    for (let p = 0; p < 32; p++) {
      out[to + p] = points[p];
      out[to + 32 + (p >> 1)] |= ((points[p] >> 8) | (shifts[p] << 3)) << ((p & 1) * 4);
    }
    const code = float16.encode(d);
    for (let w = 0; w < 4; w++) {
      let word = ((code >> (4 * w)) & 15) << 12;
      for (let r = 0; r < 4; r++) word |= factors[4 * w + r] << (3 * r);
      out[to + 48 + 2 * w] = word;
      out[to + 49 + 2 * w] = word >> 8;
    }
  },
  read(bytes, at, block) {
    for (let p = 0; p < 32; p++) {
      const nibble = (bytes[at + 32 + (p >> 1)] >> ((p & 1) * 4)) & 15;
      block.points[p] = bytes[at + p] | ((nibble & 7) << 8);
      block.shifts[p] = nibble >> 3;
    }
    let code = 0;
    for (let w = 0; w < 4; w++) {
      const word = bytes[at + 48 + 2 * w] | (bytes[at + 49 + 2 * w] << 8);
      code |= (word >> 12) << (4 * w);
      for (let r = 0; r < 4; r++) block.factors[4 * w + r] = (word >> (3 * r)) & 7;
    }
    block.d = float16.decode(code);
  },
});
