// ggml_tq1_0: 256 ternary elements in 54 bytes, 1.6875 bits per value: five trits to a byte, in base 3.
//   qs[48]  qh[4]  d:f16     value = (trit - 1) * d
// A byte is ceil(sum(trit_n * 3^(4-n)) * 256 / 243), so that trit n = ((byte * 3^n mod 256) * 3) >> 8. qs[m] holds
// elements m + 32 n, the next 16
// bytes 160 + m + 16 n, qh[j] the four elements 240 + j + 4 n. d = amax: meant for weights that are ternary already.
import { defineGgmlTernary } from "./define/ggml.ts";

/** [first element, bytes, trits per byte] of the three runs. */
const RUNS = [
  [0, 32, 5],
  [160, 16, 5],
  [240, 4, 4],
];

/**
 * ggml TQ1_0 (type 34); ggml-quants.c: 256 values in 54 bytes, 1.6875 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_tq1_0)
 */
export const ggml_tq1_0 = /* @__PURE__ */ defineGgmlTernary({
  name: "ggml_tq1_0",
  aliases: ["tq1_0", "gguf_tq1_0"],
  spec: "TQ1_0 (type 34)",
  gguf: 34,
  bytes: 52,
  write(trits, out, to) {
    for (const [first, bytes, count] of RUNS)
      for (let m = 0; m < bytes; m++) {
        let q = 0;
        for (let n = 0; n < 5; n++) q = q * 3 + (n < count ? trits[first + m + n * bytes] : 0);
        out[to++] = Math.ceil((q * 256) / 243);
      }
  },
  read(bytes, at, trits) {
    for (const [first, width, count] of RUNS)
      for (let m = 0; m < width; m++, at++)
        for (let n = 0; n < count; n++) trits[first + m + n * width] = (((bytes[at] * 3 ** n) & 255) * 3) >> 8;
  },
});
