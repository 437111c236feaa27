// ggml_q1_0: 128 signs in 18 bytes, 1.125 bits per value.
//   d:f16  qs[16]     value = d where bit j & 7 of qs[j >> 3] is set, else -d
// d = mean magnitude, which is what least squares gives.
import { defineCodebook } from "./define/codebook.ts";
import { f32, getHalf, putHalf } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";

const sign = /* @__PURE__ */ defineCodebook({ name: "ggml_sign", values: [-1, 1], spec: "ggml Q1_0" });

/**
 * ggml Q1_0 (type 41); ggml-quants.c: 128 values in 18 bytes, 1.125 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q1_0)
 */
export const ggml_q1_0 = /* @__PURE__ */ defineOpaque({
  name: "ggml_q1_0",
  aliases: ["q1_0", "gguf_q1_0"],
  spec: "ggml Q1_0 (type 41); ggml-quants.c",
  gguf: 41,
  blockSize: 128,
  blockBytes: 18,
  encodeBlock(x, at, out, to) {
    let sum = 0;
    for (let j = at; j < at + 128; j++) sum = f32(sum + Math.abs(x[j]));
    putHalf(out, to, f32(sum / 128));
    for (let j = 0; j < 128; j++) if (x[at + j] >= 0) out[to + 2 + (j >> 3)] |= 1 << (j & 7);
  },
  planes: {
    element: sign,
    span: 128,
    readBlock(bytes, at, codes, to, scales, _mins, run) {
      scales[run] = getHalf(bytes, at);
      for (let j = 0; j < 128; j++) codes[to + j] = (bytes[at + 2 + (j >> 3)] >> (j & 7)) & 1;
    },
  },
});
