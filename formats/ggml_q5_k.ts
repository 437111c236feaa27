// ggml_q5_k: 256 elements in 176 bytes, 5.5 bits per value: 8 runs of 32, each with a 6-bit scale and minimum under two
// float16.
//   d:f16  dmin:f16  scales[12]  qh[32]  qs[128]     value = d * sc(run) * q - dmin * m(run)
// Scales, minima and the low four bits of q as in ggml_q4_k; the fifth bit of element 32 r + l is bit r of qh[l].
import { defineGgmlK, readScales6, writeScales6 } from "./define/ggml-k.ts";
import { uint5 } from "./uint5.ts";

/**
 * ggml Q5_K (type 13); ggml-quants.c: 256 values in 176 bytes, 5.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q5_k)
 */
export const ggml_q5_k = /* @__PURE__ */ defineGgmlK({
  name: "ggml_q5_k",
  aliases: ["q5_k", "gguf_q5_k"],
  spec: "Q5_K (type 13)",
  gguf: 13,
  blockBytes: 176,
  size: 32,
  element: uint5,
  most: 63,
  rule: { first: -0.5, steps: 15, weights: "rms", norm: "squared" },
  write(block, codes, out, to) {
    writeScales6(block, out, to);
    for (let l = 0; l < 32; l++) {
      let high = 0;
      for (let r = 0; r < 8; r++) high |= (codes[32 * r + l] >> 4) << r;
      out[to + 16 + l] = high;
      for (let r = 0; r < 8; r += 2) out[to + 48 + 16 * r + l] = (codes[32 * r + l] & 15) | ((codes[32 * r + 32 + l] & 15) << 4);
    }
  },
  readBlock(bytes, at, out, to, scales, mins, run) {
    readScales6(bytes, at, scales, mins, run);
    for (let i = 0; i < 256; i++) {
      const low = (bytes[at + 48 + (i >> 6) * 32 + (i & 31)] >> ((i >> 3) & 4)) & 15;
      out[to + i] = low | (((bytes[at + 16 + (i & 31)] >> (i >> 5)) & 1) << 4);
    }
  },
});
