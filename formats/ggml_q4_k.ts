// ggml_q4_k: 256 elements in 144 bytes, 4.5 bits per value: 8 runs of 32, each with a 6-bit scale and minimum under two
// float16.
//   d:f16  dmin:f16  scales[12]  qs[128]     value = d * sc(run) * q - dmin * m(run)
// qs[32 c + l]: low nibble element 64 c + l, high nibble 64 c + 32 + l. The twelve bytes: runs 0..3 in the low six bits
// of bytes 0..3 (sc) and
// 4..7 (m); runs 4..7 in the nibbles of bytes 8..11 (sc low, m high), their upper two bits on top of bytes 0..3 and
// 4..7.
import { defineGgmlK, readScales6, writeScales6 } from "./define/ggml-k.ts";
import { uint4 } from "./uint4.ts";

/**
 * ggml Q4_K (type 12); ggml-quants.c: 256 values in 144 bytes, 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q4_k)
 */
export const ggml_q4_k = /* @__PURE__ */ defineGgmlK({
  name: "ggml_q4_k",
  aliases: ["q4_k", "gguf_q4_k"],
  spec: "Q4_K (type 12)",
  gguf: 12,
  blockBytes: 144,
  size: 32,
  element: uint4,
  most: 63,
  rule: { first: -1, steps: 20, weights: "rms", norm: "squared" },
  write(block, codes, out, to) {
    writeScales6(block, out, to);
    for (let c = 0; c < 256; c += 64) for (let l = c; l < c + 32; l++) out[to + 16 + c / 2 + l - c] = codes[l] | (codes[l + 32] << 4);
  },
  readBlock(bytes, at, out, to, scales, mins, run) {
    readScales6(bytes, at, scales, mins, run);
    for (let i = 0; i < 256; i++) out[to + i] = (bytes[at + 16 + (i >> 6) * 32 + (i & 31)] >> ((i >> 3) & 4)) & 15;
  },
});
