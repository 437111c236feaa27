// olive8: outlier-victim pairs of 8 bits in blocks of 128 with a float32 scale: 8.25 bits per value.
//   integers -127..127, outliers 144..30720 times the scale; an outlier takes its neighbour's place
import { defineOlive } from "./define/olive.ts";

/**
 * OliVe (ISCA 2023) outlier-victim pairs; clevercool/ANT-Quantization: 128 values in 132 bytes, 8.25 bits per value.
 * @example quantize(tensor(values, [rows, k]), olive8)
 */
export const olive8 = /* @__PURE__ */ defineOlive({ name: "olive8", aliases: ["olive8_b128"], bits: 8, blockSize: 128 });
