// olive4: outlier-victim pairs of 4 bits in blocks of 128 with a float32 scale: 4.25 bits per value.
//   integers -7..7, outliers 12..96 times the scale; an outlier takes its neighbour's place
import { defineOlive } from "./define/olive.ts";

/**
 * OliVe (ISCA 2023) outlier-victim pairs; clevercool/ANT-Quantization: 128 values in 68 bytes, 4.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), olive4)
 */
export const olive4 = /* @__PURE__ */ defineOlive({ name: "olive4", aliases: ["olive4_b128"], bits: 4, blockSize: 128 });
