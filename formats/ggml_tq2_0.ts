// ggml_tq2_0: 256 ternary elements in 66 bytes, 2.0625 bits per value: four trits to a byte.
//   qs[64]  d:f16     value = (trit - 1) * d     qs[32 h + m]: bits 2n, 2n+1 = element 128 h + m + 32 n
// d = amax: meant for weights that are ternary already. The unused code 3 decodes to 2 d, as in the reference.
import { defineGgmlTernary } from "./define/ggml.ts";

/** The element of byte i, pair n. */
const element = (i: number, n: number) => (i >> 5) * 128 + (i & 31) + 32 * n;

/**
 * ggml TQ2_0 (type 35); ggml-quants.c: 256 values in 66 bytes, 2.0625 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_tq2_0)
 */
export const ggml_tq2_0 = /* @__PURE__ */ defineGgmlTernary({
  name: "ggml_tq2_0",
  aliases: ["tq2_0", "gguf_tq2_0"],
  spec: "TQ2_0 (type 35)",
  gguf: 35,
  bytes: 64,
  write(trits, out, to) {
    for (let i = 0; i < 64; i++) for (let n = 0; n < 4; n++) out[to + i] |= trits[element(i, n)] << (2 * n);
  },
  read(bytes, at, trits) {
    for (let i = 0; i < 64; i++) for (let n = 0; n < 4; n++) trits[element(i, n)] = (bytes[at + i] >> (2 * n)) & 3;
  },
});
