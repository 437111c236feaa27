// ggml_q6_k: 256 elements in 210 bytes, 6.5625 bits per value: 16 runs of 16, each with an int8 scale under one
// float16.
//   ql[128]  qh[64]  scales:i8[16]  d:f16     value = d * scale(run) * (q - 32)
// Element 128 h + 32 c + l (h 0..1, c 0..3, l 0..31): low four bits in ql[64 h + 32 (c & 1) + l], low nibble for c < 2,
// else high; upper two bits in
// qh[32 h + l] at bit 2 c.
import { defineGgmlKSigned } from "./define/ggml-k-signed.ts";
import { getHalf, putHalf } from "./define/ggml.ts";
import { int6 } from "./int6.ts";

/**
 * ggml Q6_K (type 14); ggml-quants.c: 256 values in 210 bytes, 6.5625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q6_k)
 */
export const ggml_q6_k = /* @__PURE__ */ defineGgmlKSigned({
  name: "ggml_q6_k",
  aliases: ["q6_k", "gguf_q6_k"],
  spec: "Q6_K (type 14)",
  gguf: 14,
  blockBytes: 210,
  size: 16,
  element: int6,
  most: 128,
  steps: 9,
  delta: 0.1,
  levels: 32,
  write(block, codes, out, to) {
    for (let h = 0; h < 2; h++)
      for (let l = 0; l < 32; l++) {
        const i = 128 * h + l;
        const [a, b, c, d] = [codes[i], codes[i + 32], codes[i + 64], codes[i + 96]];
        out[to + 64 * h + l] = (a & 15) | ((c & 15) << 4);
        out[to + 64 * h + 32 + l] = (b & 15) | ((d & 15) << 4);
        out[to + 128 + 32 * h + l] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6);
      }
    for (let r = 0; r < 16; r++) out[to + 192 + r] = block.scales[r];
    putHalf(out, to + 208, block.d);
  },
  readBlock(bytes, at, out, to, scales, _mins, run) {
    const d = getHalf(bytes, at + 208);
    for (let r = 0; r < 16; r++) scales[run + r] = d * ((bytes[at + 192 + r] << 24) >> 24);
    for (let i = 0; i < 256; i++) {
      const low = (bytes[at + (i >> 7) * 64 + (i & 63)] >> ((i >> 4) & 4)) & 15;
      // offset 32 as two's complement
      out[to + i] = (low | (((bytes[at + 128 + (i >> 7) * 32 + (i & 31)] >> ((i >> 4) & 6)) & 3) << 4)) ^ 32;
    }
  },
});
