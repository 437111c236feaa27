// ggml_q3_k: 256 elements in 110 bytes, 3.4375 bits per value: 16 runs of 16, each with a 6-bit scale under one
// float16.
//   hmask[32]  qs[64]  scales[12]  d:f16     value = d * (scale(run) - 32) * (q - 4)
// Element 128 h + 32 c + l (h 0..1, c 0..3, l 0..31): low two bits of q at bit 2 c of qs[32 h + l], the third at bit 4
// h + c of hmask[l].
// Scale of run r: low four bits in byte r & 7 (low nibble for r < 8, else high), upper two at bit 2 (r >> 2) of byte 8
// + (r & 3).
import { defineGgmlKSigned } from "./define/ggml-k-signed.ts";
import { getHalf, putHalf } from "./define/ggml.ts";
import { int3 } from "./int3.ts";

/**
 * ggml Q3_K (type 11); ggml-quants.c: 256 values in 110 bytes, 3.4375 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q3_k)
 */
export const ggml_q3_k = /* @__PURE__ */ defineGgmlKSigned({
  name: "ggml_q3_k",
  aliases: ["q3_k", "gguf_q3_k"],
  spec: "Q3_K (type 11)",
  gguf: 11,
  blockBytes: 110,
  size: 16,
  element: int3,
  most: 32,
  steps: 9,
  delta: 0.1,
  levels: 4,
  write(block, codes, out, to) {
    for (let i = 0; i < 256; i++) {
      out[to + 32 + (i >> 7) * 32 + (i & 31)] |= (codes[i] & 3) << ((i >> 4) & 6);
      out[to + (i & 31)] |= (codes[i] >> 2) << (i >> 5);
    }
    for (let r = 0; r < 16; r++) {
      const s = block.scales[r] + 32;
      out[to + 96 + (r & 7)] |= (s & 15) << ((r >> 3) * 4);
      out[to + 104 + (r & 3)] |= (s >> 4) << ((r >> 2) * 2);
    }
    putHalf(out, to + 108, block.d);
  },
  readBlock(bytes, at, out, to, scales, _mins, run) {
    const d = getHalf(bytes, at + 108);
    for (let r = 0; r < 16; r++) {
      const low = (bytes[at + 96 + (r & 7)] >> ((r >> 3) * 4)) & 15;
      scales[run + r] = d * ((low | (((bytes[at + 104 + (r & 3)] >> ((r >> 2) * 2)) & 3) << 4)) - 32);
    }
    for (let i = 0; i < 256; i++) {
      const low = (bytes[at + 32 + (i >> 7) * 32 + (i & 31)] >> ((i >> 4) & 6)) & 3;
      // offset 4 as two's complement
      out[to + i] = (low | (((bytes[at + (i & 31)] >> (i >> 5)) & 1) << 2)) ^ 4;
    }
  },
});
