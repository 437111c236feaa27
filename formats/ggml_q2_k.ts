// ggml_q2_k: 256 elements in 84 bytes, 2.625 bits per value: 16 runs of 16, each with a 4-bit scale and minimum under
// two float16.
//   scales[16]  qs[64]  d:f16  dmin:f16     value = d * sc(run) * q - dmin * m(run)
// scales[run]: sc in the low, m in the high nibble. Element 128 h + 32 c + l (h 0..1, c 0..3, l 0..31): bits 2 c and 2
// c + 1 of qs[32 h + l].
import { defineGgmlK } from "./define/ggml-k.ts";
import { getHalf, putHalf } from "./define/ggml.ts";
import { uint2 } from "./uint2.ts";

/**
 * ggml Q2_K (type 10); ggml-quants.c: 256 values in 84 bytes, 2.625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q2_k)
 */
export const ggml_q2_k = /* @__PURE__ */ defineGgmlK({
  name: "ggml_q2_k",
  aliases: ["q2_k", "gguf_q2_k"],
  spec: "Q2_K (type 10)",
  gguf: 10,
  blockBytes: 84,
  size: 16,
  element: uint2,
  most: 15,
  rule: { first: -0.5, steps: 15, weights: "abs", norm: "absolute" },
  write(block, codes, out, to) {
    for (let r = 0; r < 16; r++) out[to + r] = block.scales[r] | (block.mins[r] << 4);
    for (let i = 0; i < 256; i++) out[to + 16 + (i >> 7) * 32 + (i & 31)] |= codes[i] << ((i >> 4) & 6);
    putHalf(out, to + 80, block.d);
    putHalf(out, to + 82, block.dmin);
  },
  readBlock(bytes, at, out, to, scales, mins, run) {
    const [d, dmin] = [getHalf(bytes, at + 80), getHalf(bytes, at + 82)];
    for (let r = 0; r < 16; r++) {
      scales[run + r] = d * (bytes[at + r] & 15);
      mins[run + r] = -(dmin * (bytes[at + r] >> 4));
    }
    for (let i = 0; i < 256; i++) out[to + i] = (bytes[at + 16 + (i >> 7) * 32 + (i & 31)] >> ((i >> 4) & 6)) & 3;
  },
});
