// ggml_q8_k: 256 elements in 292 bytes: what llama.cpp makes of activations beside k-quants; not meant for files, but a
// type of them.
//   d:f32  qs:i8[256]  bsums:i16[16]     value = d * q; bsums are the sums of the sixteen runs of 16
// 1 / d = -127 / extreme in float32, codes halves to even.
import { f32, nearestInt, signedExtreme } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";
import { int8 } from "./int8.ts";

/**
 * ggml Q8_K (type 15); ggml-quants.c: 256 values in 292 bytes, 9.125 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_q8_k)
 */
export const ggml_q8_k = /* @__PURE__ */ defineOpaque({
  name: "ggml_q8_k",
  aliases: ["q8_k", "gguf_q8_k"],
  spec: "ggml Q8_K (type 15); ggml-quants.c",
  gguf: 15,
  blockSize: 256,
  blockBytes: 292,
  encodeBlock(x, at, out, to) {
    const extreme = signedExtreme(x, at, 256);
    const inverse = extreme === 0 ? 0 : f32(-127 / extreme);
    // a subnormal extreme, whose inverse no float32 holds, is zero
    if (inverse === 0 || !Number.isFinite(inverse)) return;
    const view = new DataView(out.buffer, out.byteOffset + to, 292);
    // rounded up, the scale would take the largest float32s to infinity
    const d = f32(1 / inverse);
    view.setFloat32(0, Number.isFinite(f32(127 * d)) ? d : d * (1 - 2 ** -23), true);
    for (let j = 0; j < 256; j++) {
      const q = Math.min(127, nearestInt(f32(inverse * x[at + j])));
      view.setInt8(4 + j, q);
      const sum = 260 + 2 * (j >> 4);
      view.setInt16(sum, view.getInt16(sum, true) + q, true);
    }
  },
  planes: {
    element: int8,
    span: 256,
    readBlock(bytes, at, codes, to, scales, _mins, run) {
      scales[run] = new DataView(bytes.buffer, bytes.byteOffset + at, 4).getFloat32(0, true);
      codes.set(bytes.subarray(at + 4, at + 260), to);
    },
  },
});
