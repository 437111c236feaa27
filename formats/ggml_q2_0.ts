// ggml_q2_0: 64 elements -1, 0, 1 or 2 times a float16, in 18 bytes, 2.25 bits per value.
//   d:f16  qs[16]     value = (q - 1) * d, q at bit 2 (j & 3) of qs[j >> 2]
// d = amax, as ggml chooses it: meant for weights that are ternary already. Halves round away from zero; 2 is never
// produced.
import { f32, getHalf, putHalf, roundAway, signedExtreme, trit } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";

/**
 * ggml Q2_0 (type 42); ggml-quants.c: 64 values in 18 bytes, 2.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q2_0)
 */
export const ggml_q2_0 = /* @__PURE__ */ defineOpaque({
  name: "ggml_q2_0",
  aliases: ["q2_0", "gguf_q2_0"],
  spec: "ggml Q2_0 (type 42); ggml-quants.c",
  gguf: 42,
  blockSize: 64,
  blockBytes: 18,
  encodeBlock(x, at, out, to) {
    const d = Math.abs(signedExtreme(x, at, 64));
    const id = d === 0 ? 0 : f32(1 / d);
    putHalf(out, to, d);
    for (let j = 0; j < 64; j++) out[to + 2 + (j >> 2)] |= ((roundAway(f32(x[at + j] * id)) | 0) + 1) << ((j & 3) * 2);
  },
  planes: {
    element: trit,
    span: 64,
    readBlock(bytes, at, codes, to, scales, _mins, run) {
      scales[run] = getHalf(bytes, at);
      for (let j = 0; j < 64; j++) codes[to + j] = (bytes[at + 2 + (j >> 2)] >> ((j & 3) * 2)) & 3;
    },
  },
});
