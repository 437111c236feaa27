// ggml_q8_1: 32 elements in 36 bytes: ggml_q8_0 with the sum of its codes, for activations beside formats with a
// minimum.
//   d:f16  s:f16  qs:i8[32]     value = q * d; s = d * sum of q
import { f32, getHalf, putHalf, roundAway, signedExtreme } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";
import { int8 } from "./int8.ts";

/**
 * ggml Q8_1 (type 9); ggml-quants.c: 32 values in 36 bytes, 9 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q8_1)
 */
export const ggml_q8_1 = /* @__PURE__ */ defineOpaque({
  name: "ggml_q8_1",
  aliases: ["q8_1", "gguf_q8_1"],
  spec: "ggml Q8_1 (type 9); ggml-quants.c",
  gguf: 9,
  blockSize: 32,
  blockBytes: 36,
  encodeBlock(x, at, out, to) {
    const d = f32(Math.abs(signedExtreme(x, at, 32)) / 127);
    const id = d === 0 ? 0 : f32(1 / d);
    putHalf(out, to, d);
    let sum = 0;
    for (let j = 0; j < 32; j++) {
      const q = roundAway(f32(x[at + j] * id));
      out[to + 4 + j] = q;
      sum += (q << 24) >> 24;
    }
    putHalf(out, to + 2, f32(sum * d));
  },
  planes: {
    element: int8,
    span: 32,
    readBlock(bytes, at, codes, to, scales, _mins, run) {
      scales[run] = getHalf(bytes, at);
      codes.set(bytes.subarray(at + 4, at + 36), to);
    },
  },
});
