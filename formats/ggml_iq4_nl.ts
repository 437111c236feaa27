// ggml_iq4_nl: 32 elements in 18 bytes, 4.5 bits per value: a table of 16 unevenly spaced integers times a float16.
//   d:f16  qs[16]     qs[j] = q(j) | q(j+16) << 4     value = LEVELS[q] * d
// Codes are the nearest levels for d = extreme / -127; the stored d is then refitted by least squares weighted with
// x^2. A block below 1e-15
// is stored as zero bytes (the reference leaves whatever its buffer held; d = 0 either way).
import { f32, getHalf, putHalf, signedExtreme } from "./define/ggml.ts";
import { defineOpaque } from "./define/opaque.ts";
import { iq4_nl } from "./iq4_nl.ts";

/** By code, as the values of iq4_nl. */
export const LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** Nearest level; halves go to the upper one. */
function nearest(v: number): number {
  let i = 0;
  while (i < 15 && v >= LEVELS[i + 1]) i++;
  if (i === 15 || v <= LEVELS[0]) return i;
  return f32(v - LEVELS[i]) < f32(LEVELS[i + 1] - v) ? i : i + 1;
}

/**
 * ggml IQ4_NL (type 20); ggml-quants.c: 32 values in 18 bytes, 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_iq4_nl)
 */
export const ggml_iq4_nl = /* @__PURE__ */ defineOpaque({
  name: "ggml_iq4_nl",
  aliases: ["gguf_iq4_nl"],
  spec: "ggml IQ4_NL (type 20); ggml-quants.c",
  gguf: 20,
  blockSize: 32,
  blockBytes: 18,
  encodeBlock(x, at, out, to) {
    const extreme = signedExtreme(x, at, 32);
    if (Math.abs(extreme) < f32(1e-15)) return;
    const id = f32(1 / f32(extreme / LEVELS[0]));
    let qx = 0;
    let qq = 0;
    for (let j = 0; j < 32; j++) {
      const v = x[at + j];
      const l = nearest(f32(id * v));
      const wq = f32(f32(v * v) * LEVELS[l]);
      qx = f32(qx + f32(wq * v));
      qq = f32(qq + f32(wq * LEVELS[l]));
      out[to + 2 + (j & 15)] |= l << ((j >> 4) * 4);
    }
    const d = qq > 0 ? f32(qx / qq) : 0;
    // squares beyond float32: refused with the scale that it would be
    putHalf(out, to, Number.isNaN(d) ? extreme / LEVELS[0] : d);
  },
  planes: {
    element: iq4_nl,
    span: 32,
    readBlock(bytes, at, codes, to, scales, _mins, run) {
      scales[run] = getHalf(bytes, at);
      for (let j = 0; j < 32; j++) codes[to + j] = (bytes[at + 2 + (j & 15)] >> ((j >> 4) * 4)) & 15;
    },
  },
});
