// ggml_iq4_xs: 256 elements in 136 bytes, 4.25 bits per value: 8 runs of 32, each with a 6-bit scale under one float16;
// codes as in ggml_iq4_nl.
//   d:f16  scales_h:u16  scales_l[4]  qs[128]     value = d * (scale(run) - 32) * LEVELS[q]
// Scale of run r: low four bits in nibble r & 1 of scales_l[r >> 1], upper two at bit 2 r of scales_h. In a run of 32,
// byte j holds elements j (low
// nibble) and j + 16.
import { defineGgmlKSigned } from "./define/ggml-k-signed.ts";
import { getHalf, putHalf } from "./define/ggml.ts";
import { LEVELS } from "./ggml_iq4_nl.ts";
import { iq4_nl } from "./iq4_nl.ts";

/**
 * ggml IQ4_XS (type 23); ggml-quants.c: 256 values in 136 bytes, 4.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq4_xs)
 */
export const ggml_iq4_xs = /* @__PURE__ */ defineGgmlKSigned({
  name: "ggml_iq4_xs",
  aliases: ["iq4_xs", "gguf_iq4_xs"],
  spec: "IQ4_XS (type 23)",
  gguf: 23,
  blockBytes: 136,
  size: 32,
  element: iq4_nl,
  most: 32,
  steps: 7,
  delta: 1,
  levels: LEVELS,
  write(block, codes, out, to) {
    putHalf(out, to, block.d);
    for (let r = 0; r < 8; r++) {
      const s = block.scales[r] + 32;
      out[to + 2 + (r >> 2)] |= (s >> 4) << ((r & 3) * 2);
      out[to + 4 + (r >> 1)] |= (s & 15) << ((r & 1) * 4);
    }
    for (let i = 0; i < 256; i++) out[to + 8 + (i >> 5) * 16 + (i & 15)] |= codes[i] << ((i >> 2) & 4);
  },
  readBlock(bytes, at, out, to, scales, _mins, run) {
    const d = getHalf(bytes, at);
    for (let r = 0; r < 8; r++) {
      const low = (bytes[at + 4 + (r >> 1)] >> ((r & 1) * 4)) & 15;
      scales[run + r] = d * ((low | (((bytes[at + 2 + (r >> 2)] >> ((r & 3) * 2)) & 3) << 4)) - 32);
    }
    for (let i = 0; i < 256; i++) out[to + i] = (bytes[at + 8 + (i >> 5) * 16 + (i & 15)] >> ((i >> 2) & 4)) & 15;
  },
});
