// ggml_mxfp4: 32 elements in 17 bytes, 4.25 bits per value.
//   e:E8M0  qs[16]     qs[j] = q(j) | q(j+16) << 4     value = E2M1(q) * 2^(e - 127)
// Differs from OCP `mxfp4` in its order of nibbles and its rounding: ties go toward zero and -0 is never produced. The
// exponent byte wraps
// for blocks below 2^-125 (they read back as zeros), as in the reference; use `mxfp4` where that matters.
import { defineGgmlE2M1 } from "./define/ggml.ts";

/**
 * ggml MXFP4 (type 39); ggml-quants.c: 32 values in 17 bytes, 4.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_mxfp4)
 */
export const ggml_mxfp4 = /* @__PURE__ */ defineGgmlE2M1({
  name: "ggml_mxfp4",
  aliases: ["gguf_mxfp4"],
  spec: "MXFP4 (type 39)",
  gguf: 39,
  groups: 1,
  size: 32,
  // The reference takes floorf(log2f(amax)), which is one too large up to an ulp or so below a power of two. Bytes must
  // agree with it; the distances there are never near a float32 tie, so a double logarithm rounded to float32 decides
  // alike.
  scale: (amax) => (amax > 0 ? (Math.floor(Math.fround(Math.log2(amax))) + 125) & 255 : 0),
  unit: (byte) => 2 ** (byte - 128),
});
