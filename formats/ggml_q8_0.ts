// ggml_q8_0: 32 elements in 34 bytes, 8.5 bits per value.
//   d:f16  qs:i8[32]     value = q * d
// d = amax / 127; codes follow from the float32 d and round halves away from zero. -128 is never produced, and decodes.
import { f32, getHalf, putHalf, roundAway, signedExtreme } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";
import { int8 } from "./int8.ts";

/**
 * ggml Q8_0 (type 8); ggml-quants.c: 32 values in 34 bytes, 8.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q8_0)
 */
export const ggml_q8_0 = /* @__PURE__ */ defineOpaque({
  name: "ggml_q8_0",
  aliases: ["q8_0", "gguf_q8_0"],
  spec: "ggml Q8_0 (type 8); ggml-quants.c",
  gguf: 8,
  blockSize: 32,
  blockBytes: 34,
  encodeBlock(x, at, out, to) {
    const d = f32(Math.abs(signedExtreme(x, at, 32)) / 127);
    const id = d === 0 ? 0 : f32(1 / d);
    putHalf(out, to, d);
    for (let j = 0; j < 32; j++) out[to + 2 + j] = roundAway(f32(x[at + j] * id));
  },
  planes: {
    element: int8,
    span: 32,
    readBlock(bytes, at, codes, to, scales, _mins, run) {
      scales[run] = getHalf(bytes, at);
      codes.set(bytes.subarray(at + 2, at + 34), to);
    },
  },
});
